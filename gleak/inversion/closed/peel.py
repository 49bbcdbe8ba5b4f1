"""What a gradient gives away in closed form: activations of single images, layer by layer.

The last layer. Its gradient is sum_k (p_k - y_k) o_k^T / K. With the labels known, the features o_k
follow from the softmax p_k by least squares, and the softmax follows from the features. The two
equations together have one solution: the features of every single image.

The layers before. With o_k and p_k known, backpropagation from the loss down to a layer's output is
known too, as ReLU and sigmoid tell their slope by their value. The layer's weight gradient is then
linear in the layer's input, and least squares gives that, as long as the layer has more weights
than the batch has values there. ReLU's units near zero are told along with it, see `switching`.
This peels a network from its end, until a pooling layer or a layer with too few weights stops it.
For single images this is R-GAP (Zhu & Blaschko 2021). Residual networks have a module of their own,
`residual`.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, ResNet

from gleak.inversion.closed.relu import active_shares
from gleak.inversion.closed.residual import peel_blocks
from gleak.inversion.closed.solve import (
    by_tap,
    double,
    input_equations,
    pull_back,
    solve_least_squares,
)
from gleak.labels.features import image_features
from gleak.labels.last_layer import LastLayer
from gleak.labels.statistics import FEW
from gleak.models import Normalise
from gleak.update import MissingKnowledge, Update

TOLERANCE = 1e-2  # relative error above which an equation counts as not solved
EXACT = 1e-5  # and below which the slopes in it are right
HOPELESS = 30  # times the misfit allowed: more than units near zero can explain
ROUNDS = 6  # of telling which units of a layer were active


@dataclass(frozen=True, eq=False)
class Peeled:
    """Activations (K, ...), in the order of the labels, that enter layer `depth` of the chain.

    depth 0 is the image itself. layers: the chain.
    """

    layers: tuple[nn.Module, ...]
    depth: int
    activations: torch.Tensor

    def __str__(self) -> str:
        into = type(self.layers[self.depth]).__name__ if self.depth else "the network"
        shape = "x".join(map(str, self.activations.shape[1:]))
        return f"what enters {into} (layer {self.depth} of {len(self.layers)}), {shape} values each"


def peel(
    update: Update,
    counts: torch.Tensor,
    precision: float = 0.0,
    misfit_allowed: float | None = None,
) -> Peeled:
    """Peel the network from its end, as far towards the image as the gradient allows.

    precision: as for `image_features`. The layers before ask for more digits than the features do,
    so that noise or rounding ends the peeling early.
    misfit_allowed: relative error of a layer's equations, by default the precision, 1 % at least.

    Raises MissingKnowledge for networks that are no chain of known layers, and where
    `image_features` does.
    """
    layers, sent = chain(update.model), update.equivalent_gradient()
    names = {id(module): name for name, module in update.model.named_modules()}
    with torch.no_grad():
        shapes = [(2, *update.input_shape)]  # two, as batch norm may refuse one
        probe = torch.full(shapes[0], 0.5).to(update.classifier.weight)
        for layer in layers:
            probe = layer(probe)
            shapes.append(tuple(probe.shape))

    features, probabilities = image_features(
        LastLayer.of(update, inputs=FEW, precision=precision / 2), counts
    )
    tolerance = max(TOLERANCE, precision)
    misfit_allowed = tolerance if misfit_allowed is None else misfit_allowed
    labels = torch.repeat_interleave(torch.arange(len(counts)).to(counts), counts)
    wrong = (probabilities - F.one_hot(labels, len(counts)).to(probabilities)) / len(labels)
    values = features
    active = torch.ones_like(values, dtype=torch.bool)  # where the values are known
    slope = wrong @ update.classifier.weight.double()  # d loss / d values
    depth, known = len(layers) - 1, values
    for index in range(len(layers) - 2, -1, -1):
        layer = layers[index]
        if isinstance(layer, nn.Flatten):
            values, slope = (t.reshape(-1, *shapes[index][1:]) for t in (values, slope))
        elif isinstance(layer, nn.ReLU):
            # what is zero comes out of least squares as noise, as large as the negative values
            noise = -values.flatten(1).amin(1).clamp_max(0).view(-1, *[1] * (values.ndim - 1))
            active = values > (1.5 * noise).clamp_min(2e-6 * values.max())
            above, slope = slope, slope * active
            continue  # what entered is known only where it was positive
        elif isinstance(layer, nn.Sigmoid):
            values = values.clamp(1e-9, 1 - 1e-9)
            slope, values = slope * values * (1 - values), values.logit()
            active = torch.ones_like(values, dtype=torch.bool)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            observed = sent.get(f"{names[id(layer)]}.weight")
            if observed is None:
                break
            shape = shapes[index][1:]
            target = observed.double()
            inputs, misfit = solve_input(layer, slope, target, values, active, shape)
            if isinstance(layers[index + 1], nn.ReLU) and misfit <= HOPELESS * misfit_allowed:
                slope, inputs, misfit = settle_units(layer, above, active, target, inputs, misfit)
            if inputs is None or misfit > misfit_allowed:
                break
            slope = pull_back(layer, slope, inputs)
            values = inputs
        elif isinstance(layer, nn.AdaptiveAvgPool2d):
            if shapes[index + 1][2:] != (1, 1):
                break
            below = peel_residual(layers, names, shapes, index, sent, slope.flatten(1), features)
            depth, known = below or (depth, known)
            break
        elif isinstance(layer, Normalise):
            values = values * layer.std.double() + layer.mean.double()
        else:
            break
        if not consistent(layers[index:], values, features, tolerance):
            break
        depth, known = index, values
    return Peeled(tuple(layers), depth, known.to(update.classifier.weight.dtype))


def settle_units(layer, above, active, observed, inputs, misfit):
    """The slope at a layer's output, its input and their misfit, better than they were.

    above: the slope behind the ReLU that follows. With almost right inputs, the layer itself says
    which of its units were active, and these give better inputs.
    """
    slope, share = above * active, active.double()
    near_zero = 0.1 if misfit < 0.1 else 0.2
    for _ in range(ROUNDS):
        if misfit < EXACT:
            break
        with torch.no_grad():
            outputs = double(layer, inputs)
        share = active_shares(layer, above, observed, inputs, outputs, share, near_zero)
        tried = above * share
        found, left = solve_input(layer, tried, observed, outputs, outputs > 0, inputs.shape[1:])
        slow = left > 0.7 * misfit
        if left < misfit:
            slope, inputs, misfit = tried, found, left
        if slow:
            break
    return slope, inputs, misfit


def peel_residual(layers, names, shapes, pool, sent, pooled_slope, features):
    """Depth and activations as far as residual blocks below layer `pool` let it go, or None."""
    begin = pool
    while begin and isinstance(layers[begin - 1], BasicBlock):
        begin -= 1
    blocks = layers[begin:pool]
    needed = [f"{names[id(b)]}.{name}" for b in blocks for name, _ in b.named_parameters()]
    if not blocks or not set(needed) <= set(sent):
        return None
    deepest = None
    inputs = peel_blocks(
        blocks,
        [names[id(block)] for block in blocks],
        [shape[1:] for shape in shapes[begin : pool + 1]],
        {name: sent[name].double() for name in needed},
        pooled_slope,
    )
    try:
        for depth, values in zip(range(pool - 1, begin - 1, -1), inputs, strict=False):
            if not consistent(layers[depth:], values, features, 0.2 * TOLERANCE):
                break
            deepest = depth, values
    except (ArithmeticError, torch.linalg.LinAlgError):
        pass  # what was found before stands
    return deepest


def chain(model: nn.Module) -> list[nn.Module]:
    """The layers of nested Sequentials and ResNets in order, residual blocks whole.

    Raises MissingKnowledge for any other shape of model.
    """
    layers = []
    for module in model.children() if isinstance(model, nn.Sequential) else [model]:
        if isinstance(module, nn.Sequential):
            layers += chain(module)
        elif isinstance(module, ResNet):
            *parts, pool, classifier = module.children()
            layers += [*chain(nn.Sequential(*parts)), pool, nn.Flatten(), classifier]
        elif any(True for _ in module.children()) and not isinstance(module, BasicBlock):
            raise MissingKnowledge(
                f"peeling needs a plain chain of layers; got a {type(module).__name__}"
            )
        else:
            layers.append(module)
    return layers


def solve_input(layer, slope, observed, outputs, known, shape) -> tuple[torch.Tensor | None, float]:
    """The input (K, *shape) of a linear layer, None where it is not determined, and the relative
    error of the gradient that it makes.

    Two sets of equations: the weight gradient is linear in the input, given the slope at the
    output; and so is the output itself, as far as it is known (behind ReLU: where it is active).
    """
    if isinstance(layer, nn.Conv2d) and (layer.groups != 1 or layer.padding_mode != "zeros"):
        return None, torch.inf
    channels = shape[0]
    # one matrix serves all input channels
    matrix = input_equations(layer, slope, shape).flatten(0, 1)
    target = by_tap(observed).flatten(0, 1)

    def as_inputs(solution):  # (image x pixel, channel) -> (K, *shape)
        if isinstance(layer, nn.Linear):
            return solution
        solution = solution.T.reshape(channels, len(slope), *shape[1:])
        return solution.transpose(0, 1)

    left, values, right = torch.linalg.svd(matrix, full_matrices=len(matrix) < matrix.shape[1])
    rank = int((values > 1e-6 * values[0]).sum())
    solution = right[:rank].T @ ((left[:, :rank].T @ target) / values[:rank, None])
    misfit = ((matrix @ solution - target).norm() / target.norm()).item()
    inputs = as_inputs(solution)
    free = len(right) - rank
    if not free:
        return inputs, misfit
    # What the gradient leaves open, the output may tell.
    if isinstance(layer, nn.Linear) or free * channels > min(4096, int(known.sum())):
        return None, torch.inf
    directions = right[rank:].reshape(-1, 1, *shape[1:])  # the same for every channel
    with torch.no_grad():
        weight = layer.weight.double()
        settings = (None, layer.stride, layer.padding, layer.dilation)
        columns = [
            F.conv2d(directions, weight[:, [channel]], *settings).view(free, *known.shape)[:, known]
            for channel in range(channels)
        ]
        missing = (outputs - double(layer, inputs))[known]
    columns = torch.stack(columns, dim=1).flatten(0, 1).T  # (known, directions x channels)
    solution = solve_least_squares(columns, missing[:, None], refine=True)
    if solution is None:
        return None, torch.inf
    return inputs + as_inputs(right[rank:].T @ solution.view(free, channels)), misfit


@torch.no_grad()
def consistent(layers, values, features: torch.Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether the activations, sent forward again, give the classifier's features."""
    for layer in layers[:-1]:
        values = double(layer, values)
    return bool((values - features).norm() < tolerance * features.norm())
