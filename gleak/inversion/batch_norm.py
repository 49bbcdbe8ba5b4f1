"""The batch norm prior: statistics inside the network, where they are known."""

from collections.abc import Mapping
from contextlib import contextmanager

import torch
from torch import nn

Statistics = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def batch_norm_targets(model: nn.Module, statistics: Statistics | None) -> dict:
    """Batch norm layer -> mean and variance (C,) that should enter it.

    Without statistics of the client the running ones serve, if the model was ever trained: those
    of a new model, 0 and 1, say nothing. Raises ValueError for layers that the model has not.
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    if statistics is None:
        return {
            module: (module.running_mean, module.running_var)
            for module in norms.values()
            if module.num_batches_tracked
        }
    unknown = sorted(set(statistics) - set(norms))
    if unknown:
        raise ValueError(f"the model has no batch norm layer {', '.join(unknown)}")
    return {norms[name]: pair for name, pair in statistics.items()}


@contextmanager
def listen(model: nn.Module, targets: dict):
    """Collect what enters the layers in `targets`: layer -> tensor (K, C, ...)."""
    entered = {}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs: entered.update({layer: inputs[0]}))
        for layer in targets
    ]
    try:
        yield entered
    finally:
        for hook in hooks:
            hook.remove()


def statistics_distance(entered: dict, targets: dict) -> torch.Tensor:
    """Mean over layers of |mean - known| and |variance - known|, each relative to the known."""
    errors = []
    for layer, (mean, variance) in targets.items():
        values = entered[layer].transpose(0, 1).flatten(1)  # (C, K x positions)
        errors.append((values.mean(1) - mean).norm() / variance.norm().sqrt())
        errors.append((values.var(1, unbiased=False) - variance).norm() / variance.norm())
    return torch.stack(errors).mean()
