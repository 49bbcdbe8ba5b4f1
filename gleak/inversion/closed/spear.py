"""Images in closed form, where the network allows it."""

import torch
from torch import nn

from gleak.inversion.closed.peel import chain, peel
from gleak.inversion.closed.solve import separate
from gleak.models import Normalise
from gleak.update import MissingKnowledge, Update


def exact_images(update: Update, counts: torch.Tensor) -> torch.Tensor:
    """Images (K, C, H, W) by peeling the whole network, or from a first linear layer by SPEAR.

    Raises MissingKnowledge where neither is possible.
    """
    try:
        peeled = peel(update, counts)
        if peeled.depth == 0:
            return peeled.activations
        reason = f"peeling ends at {peeled}"
    except MissingKnowledge as error:
        reason = str(error)
    layers = chain_or_nothing(update.model)
    first = [layer for layer in layers if any(True for _ in layer.parameters())][:1]
    if not first or not isinstance(first[0], nn.Linear):
        raise MissingKnowledge(
            f"no closed form for this network: {reason}; and its first layer is not linear"
        )
    start = layers.index(first[0])
    name = next(n for n, module in update.model.named_modules() if module is first[0])
    sent = update.equivalent_gradient()
    weight, bias = sent.get(f"{name}.weight"), sent.get(f"{name}.bias")
    if weight is None or bias is None or not isinstance(layers[start + 1], nn.ReLU):
        raise MissingKnowledge(
            f"no closed form for this network: {reason}; and SPEAR needs a first linear layer with "
            "bias, followed by ReLU"
        )
    images = spear(weight.double(), bias.double(), int(counts.sum()))
    images = images.view(-1, *update.input_shape)
    for layer in layers[:start]:
        if isinstance(layer, Normalise):
            images = images * layer.std.double() + layer.mean.double()
    return images.to(weight.dtype)


def chain_or_nothing(model: nn.Module) -> list[nn.Module]:
    """The chain of layers, or none."""
    try:
        return chain(model)
    except MissingKnowledge:
        return []


def spear(weight: torch.Tensor, bias: torch.Tensor, size: int, seed: int = 0) -> torch.Tensor:
    """Inputs (K, D) of a linear layer with ReLU from its weight (H, D) and bias (H,) gradients.

    weight = S^T X with the slopes S (K, H) at the layer's output, so it has rank K and its factors
    are known up to a K x K matrix. ReLU makes about half of each row of S zero, which tells them
    from their mixtures, see `separate` (Dimitrov et al. 2024, SPEAR). Batches of 10 are the end.
    """
    if size > 10:
        raise MissingKnowledge(f"SPEAR separates up to 10 inputs here; the batch has {size}")
    left, values, _ = torch.linalg.svd(weight, full_matrices=False)
    rank = int((values > 1e-6 * values[0]).sum())
    if rank != size:
        raise MissingKnowledge(
            f"SPEAR needs a first-layer gradient of rank {size}, the batch size; it is {rank}"
        )
    left = left[:, :size]  # S^T = left @ mix for some mix (K, K)
    found = separate(left, size, seed)
    slopes = left @ found.T  # (H, K), each column up to a factor
    inputs = torch.linalg.lstsq(slopes, weight).solution
    factors = torch.linalg.lstsq(slopes, bias[:, None]).solution  # the bias gradient has inputs 1
    return inputs / factors
