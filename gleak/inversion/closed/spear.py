"""Images in closed form, where the network allows it."""

import torch
from torch import nn

from gleak.inversion.closed.chain import Step, Unknown, trace
from gleak.inversion.closed.embedding import embedded_image
from gleak.inversion.closed.known import Sent
from gleak.inversion.closed.layers import find_row
from gleak.inversion.closed.peel import peel
from gleak.inversion.closed.start import unmixed
from gleak.labels.tolerance import FLOAT32
from gleak.update import MissingKnowledge, Update


def exact_images(update: Update, counts: torch.Tensor) -> torch.Tensor:
    """Images (K, C, H, W) by peeling the whole network, or from its first layer: SPEAR for a linear
    one, the patch embedding of a transformer.

    Raises MissingKnowledge where none of these is possible.
    """
    patches = embedded_image(update)
    if patches is not None:
        if not patches.restored.all():
            raise MissingKnowledge(f"no closed form for all of the image: {patches}")
        return patches.image.to(update.classifier.weight)
    try:
        peeled = peel(update, counts)
        if peeled.is_image:
            return peeled.activations
        reason = f"peeling ends at {peeled}"
    except MissingKnowledge as error:
        reason = str(error)
    layers = steps_or_none(update)
    start = next((i for i, step in enumerate(layers) if has_parameters(step)), 0)
    linear = layers[start].layer if layers else None
    if not isinstance(linear, nn.Linear):
        raise MissingKnowledge(
            f"no closed form for this network: {reason}; and its first layer is not linear"
        )
    behind, sent = layers[start + 1 : start + 2], Sent(update)
    if linear.bias is None or not behind or not isinstance(behind[0].layer, nn.ReLU):
        raise MissingKnowledge(
            f"no closed form for this network: {reason}; and SPEAR needs a first linear layer with "
            "bias, followed by ReLU"
        )
    try:
        gradients = sent.of(linear.weight), sent.of(linear.bias)
    except ArithmeticError as error:
        raise MissingKnowledge(
            f"no closed form for this network: {reason}; and for SPEAR {error}"
        ) from error
    images = spear(*gradients, int(counts.sum()), rounding=sent.rounding)
    for step in reversed(layers[:start]):
        row = find_row(step.layer)
        if row is None or row.inverse is None:
            raise MissingKnowledge(
                f"no closed form for this network: {reason}; and what is in front of its first "
                f"linear layer, {step.kind}, cannot be inverted"
            )
        images, _ = row.inverse(step.layer, images, step.entering, sent.rounding)
    return images.view(-1, *update.input_shape).to(update.classifier.weight.dtype)


def steps_or_none(update: Update) -> tuple[Step, ...]:
    """The layers of the model, or none where it is no chain."""
    try:
        return trace(update.model, update.input_shape).steps
    except MissingKnowledge:
        return ()


def has_parameters(step: Step) -> bool:
    """Whether there is anything to be learnt in the layer, or may be."""
    return isinstance(step.layer, Unknown) or any(True for _ in step.layer.parameters())


def spear(
    weight: torch.Tensor,
    bias: torch.Tensor,
    size: int,
    seed: int = 0,
    rounding: float = FLOAT32,
) -> torch.Tensor:
    """Inputs (K, D) of a linear layer with ReLU from its weight (H, D) and bias (H,) gradients.

    weight = S^T X with the slopes S (K, H) at the layer's output, so it has rank K and its factors
    are known up to a K x K matrix. ReLU makes about half of each row of S zero, which tells them
    from their mixtures, see `separate` (Dimitrov et al. 2024, SPEAR). Batches of 10 are the end.
    rounding: of the arithmetic that made the gradients, relative.

    Raises MissingKnowledge for more inputs, and where the gradient has not rank K.

    >>> draws = torch.Generator().manual_seed(1)
    >>> inputs = torch.rand(3, 12, generator=draws).double()
    >>> slopes = torch.randn(3, 80, generator=draws).double()
    >>> slopes *= torch.rand(3, 80, generator=draws) > 0.5
    >>> found = spear(slopes.T @ inputs, slopes.sum(0), 3)
    >>> torch.cdist(found, inputs).min(0).values.max().item() < 1e-6
    True
    """
    return unmixed(weight, bias, size, seed, rounding)[0]
