"""What the buffers of batch norm, which travel with a state dict, say of a client's batch.

A step in train mode moves the running statistics r of a layer to (1 - m) r + m s, where s are the
mean and the unbiased variance of what entered the layer in that step, and m is its momentum, or
1 / n at its n-th step where it has none. From one step s follows exactly. Over several it is a mean
over batches and over the weights on the way, which is the statistics of none of them.
"""

from collections.abc import Mapping

import torch
from torch import nn

from gleak.network import batch_norms

RUNNING = ("running_mean", "running_var")
COUNT = "num_batches_tracked"
ROUNDED = 2**-8  # relative error of bfloat16
EXACT = (torch.float32, torch.float64)  # a momentum of 0.1 makes rounding ten times as coarse

Pair = tuple[torch.Tensor, torch.Tensor]


def buffers_in(names: Mapping[str, object], model: nn.Module) -> list[str]:
    """The batch norm layers whose running statistics are among the names."""
    return [
        name for name in batch_norms(model) if all(f"{name}.{kind}" in names for kind in RUNNING)
    ]


def have_moved(model: nn.Module, sent: Mapping[str, torch.Tensor]) -> bool | None:
    """Whether running statistics came back other than the model has them, by more than rounding to
    half precision; None where none came.
    """
    norms, layers = batch_norms(model), buffers_in(sent, model)
    if not layers:
        return None
    return any(
        not torch.allclose(sent[f"{name}.{kind}"].to(before), before, rtol=ROUNDED, atol=1e-6)
        for name in layers
        for kind in RUNNING
        if (before := getattr(norms[name], kind)) is not None
    )


def steps_counted(model: nn.Module, sent: Mapping[str, torch.Tensor]) -> int | None:
    """Local steps, as the layers counted them, the most of any; None where they did not."""
    counted = [
        int(sent[f"{name}.{COUNT}"]) - int(norm.num_batches_tracked)
        for name, norm in batch_norms(model).items()
        if f"{name}.{COUNT}" in sent and norm.num_batches_tracked is not None
    ]
    return max(counted, default=None)


def statistics_sent(
    model: nn.Module,
    sent: Mapping[str, torch.Tensor],
    num_samples: int,
    input_shape: tuple[int, int, int],
    steps: int | None,
) -> tuple[dict[str, Pair], str]:
    """The statistics of a client's only batch, from the buffers that came back with its weights.

    Parameters
    ----------
    model
        In train mode, with the buffers that the server sent.
    sent
        Name to tensor, buffers among them.
    num_samples, input_shape
        Of the batch.
    steps
        Local steps, as told; None where that is not known. What the layers counted goes before it.

    Returns
    -------
    statistics : dict
        Name of a layer to mean and biased variance (channels,) of what entered it.
    reason : str
        Why there are none, empty where there are.
    """
    layers, norms = buffers_in(sent, model), batch_norms(model)
    if not layers:
        return {}, "the client sent none, or the server does not have those before"
    if not have_moved(model, sent):
        return {}, (
            "they did not move. If the client ran batch norm in eval mode, say so (--evaluation); "
            "else it kept them to itself"
        )
    counted = steps_counted(model, sent)
    steps = counted or steps
    if steps != 1:
        many = "an unknown number of" if steps is None else f"{steps}"
        return {}, (
            f"they are means over {many} local steps, each at weights of its own, and so the "
            "statistics of no single batch"
        )
    if any(sent[f"{name}.{kind}"].dtype not in EXACT for name in layers for kind in RUNNING):
        return {}, "they came in half precision, which leaves too few digits of a single step"
    positions, found = positions_of(model, input_shape), {}
    for name in layers:
        norm = norms[name]
        assert norm.running_mean is not None and norm.running_var is not None
        count = int(norm.num_batches_tracked) if norm.num_batches_tracked is not None else 0
        share = 1 / (count + 1) if norm.momentum is None else norm.momentum
        mean, variance = (
            before.double().lerp(sent[f"{name}.{kind}"].to(before).double(), 1 / share)
            for kind, before in zip(RUNNING, (norm.running_mean, norm.running_var), strict=True)
        )
        values = num_samples * positions[name]
        noise = variance.abs().max() * 1e-3 + 1e-9
        if variance.min() < -noise:
            return {}, f"those of {name} fit no single step with the momentum that the network has"
        kind = norm.running_mean.dtype
        found[name] = (mean.to(kind), (variance.clamp_min(0) * (values - 1) / values).to(kind))
    return found, ""


@torch.no_grad()
def entering(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Name of a batch norm layer to what enters it, (K, channels, ...), for images (K, C, H, W)."""
    found: dict[str, torch.Tensor] = {}
    hooks = [
        norm.register_forward_pre_hook(lambda _, i, name=name: found.update({name: i[0].detach()}))
        for name, norm in batch_norms(model).items()
    ]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def positions_of(model: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, int]:
    """Name of a batch norm layer to how many values of a channel one image brings."""
    gray = torch.full((2, *input_shape), 0.5).to(next(model.parameters()))
    return {name: x.numel() // (2 * x.shape[1]) for name, x in entering(model, gray).items()}


def statistics_of(model: nn.Module, images: torch.Tensor) -> dict[str, Pair]:
    """Name of a batch norm layer to mean and biased variance (channels,) of what enters it."""
    values = {n: x.transpose(0, 1).flatten(1) for n, x in entering(model, images).items()}
    return {name: (x.mean(1), x.var(1, unbiased=False)) for name, x in values.items()}
