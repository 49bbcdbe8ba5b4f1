"""Where the peeling may start without the classifier: a hidden linear layer with ReLU behind it.

Its weight gradient is S^T X, with the slopes S (K, H) at its output and the inputs X (K, D). ReLU
makes about half of each row of S zero, which tells the images from their mixtures (Dimitrov et al.
2024, SPEAR). That needs no labels and no softmax. So it holds for as many images as classes and
more, and for trained networks, at whose classifier the search for the softmax gets stuck.

The rest of the network turns the inputs into probabilities, and these and a label into a slope.
It must be the slope that was found: that tells the labels.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from gleak.inversion.closed.chain import Chain, Step
from gleak.inversion.closed.known import Place, Sent
from gleak.inversion.closed.layers import find_row
from gleak.inversion.closed.solve import double, rank_cut, separate
from gleak.labels.tolerance import FLOAT32
from gleak.update import MissingKnowledge

MOST = 10  # inputs that are told apart: each doubles the draws that it takes
AGREES = 0.3  # relative error of the slope that a label makes: a wrong label makes another one


def unmixed(
    weight: torch.Tensor,
    bias: torch.Tensor,
    size: int,
    seed: int = 0,
    rounding: float = FLOAT32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (K, D) and slopes (K, H) of a linear layer with ReLU, from its gradients.

    weight (H, D), bias (H,): the gradients. rounding: of the arithmetic that made them, relative.

    Raises MissingKnowledge for more than `MOST` inputs, and where the gradient has not rank K;
    ArithmeticError where fewer than K inputs are found.
    """
    if size > MOST:
        raise MissingKnowledge(f"SPEAR separates up to {MOST} inputs here; the batch has {size}")
    left, values, _ = torch.linalg.svd(weight, full_matrices=False)
    rank = int((values > rank_cut(rounding) * values[0]).sum())
    if rank != size:
        raise MissingKnowledge(
            f"SPEAR needs a first-layer gradient of rank {size}, the batch size; it is {rank}"
        )
    left = left[:, :size]  # S^T = left @ mix for some mix (K, K)
    found = separate(left, size, seed, rounding)
    slopes = left @ found.T  # (H, K), each column up to a factor
    inputs = torch.linalg.lstsq(slopes, weight).solution
    factors = torch.linalg.lstsq(slopes, bias[:, None]).solution  # the bias gradient has inputs 1
    return inputs / factors, (slopes * factors[:, 0]).T


def hidden_start(chain: Chain, sent: Sent, counts: torch.Tensor) -> tuple[int, Place, torch.Tensor]:
    """The step behind a hidden linear layer, what is known there, and the features (K, M).

    The images are in ascending order of their labels, of which counts (N,) says how often each
    occurs. The layer nearest to the images that works is taken.

    Raises MissingKnowledge where there is none.
    """
    steps = chain.steps
    reason = "no hidden linear layer with bias is followed by ReLU"
    for index, step in enumerate(steps[:-1]):
        layer, rest = step.layer, steps[index + 1 :]
        if (
            not isinstance(layer, nn.Linear)
            or layer.bias is None
            or len(step.entering) != 1
            or not isinstance(rest[0].layer, nn.ReLU)
            or not all(find_row(other.layer) for other in rest)
        ):
            continue
        try:
            gradients = sent.of(layer.weight), sent.of(layer.bias)
            inputs, slopes = unmixed(*gradients, int(counts.sum()), rounding=sent.rounding)
            order, outputs, features = in_order(layer, rest, inputs, slopes, counts)
        except (ArithmeticError, MissingKnowledge, torch.linalg.LinAlgError) as error:
            reason = f"{step.kind} (layer {index} of {len(steps)}): {error}"
            continue
        # what the inputs say of the slopes is more than what came apart
        seen = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
        made = torch.cat([gradients[0], gradients[1][:, None]], dim=1)
        slopes = torch.linalg.lstsq(seen.T, made.T).solution * (outputs > 0)
        return index + 1, Place(slopes[order], outputs[order]), features[order]
    raise MissingKnowledge(f"there is no start without the classifier: {reason}")


def in_order(
    layer: nn.Linear,
    rest: tuple[Step, ...],
    inputs: torch.Tensor,
    slopes: torch.Tensor,
    counts: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The order of inputs (K, D) by their labels, the layer's outputs (K, H), features (K, M).

    slopes: at the outputs (K, H). Raises ArithmeticError where no labels of these counts make them.
    """
    with torch.no_grad():
        outputs = double(layer, inputs)
    values = features = outputs.requires_grad_()
    for step in rest:
        row = find_row(step.layer)
        assert row is not None
        features, values = values, row.forward(step.layer, values)
    by_class = torch.stack(  # slope of each logit, (K, N, H)
        [torch.autograd.grad(one.sum(), outputs, retain_graph=True)[0] for one in values.T], dim=1
    )
    mean = (values.softmax(1).detach()[:, None] @ by_class).squeeze(1)
    labels = torch.repeat_interleave(torch.arange(len(counts)).to(counts), counts)
    made = (mean[:, None] - by_class[:, labels]) / len(labels)  # (image, label, H)
    errors = (made - slopes[:, None]).norm(dim=2) / slopes.norm(dim=1)[:, None]
    images, places = linear_sum_assignment(errors.clamp_max(1e6).cpu().numpy())
    if max(errors[images, places]) > AGREES:
        raise ArithmeticError("no labels of these counts make the slopes that were found")
    order = torch.as_tensor(images[places.argsort()]).to(labels.device)
    return order, outputs.detach(), features.detach()
