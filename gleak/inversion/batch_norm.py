"""The batch norm prior: statistics inside the network, where they are known."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from gleak.network import batch_norms
from gleak.update import Update

# Batch norm layer -> mean and variance (C,) that should enter it.
Targets = Mapping[nn.Module, tuple[torch.Tensor, torch.Tensor]]
Entered = dict[nn.Module, torch.Tensor]


def batch_norm_targets(update: Update) -> Targets:
    """Batch norm layer -> mean and variance (C,) that should enter it.

    Without statistics of the client the running ones serve, if the model was ever trained: those
    of a new model, 0 and 1, say nothing.
    """
    norms = batch_norms(update.model)
    if update.statistics:
        return {norms[name]: pair for name, pair in update.statistics.items()}
    return {
        module: (module.running_mean, module.running_var)
        for module in norms.values()
        if module.num_batches_tracked
        and module.running_mean is not None
        and module.running_var is not None
    }


@contextmanager
def listen(targets: Targets) -> Iterator[Entered]:
    """Collect what enters the layers in `targets`: layer -> tensor (K, C, ...)."""
    entered: Entered = {}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs: entered.update({layer: inputs[0]}))
        for layer in targets
    ]
    try:
        yield entered
    finally:
        for hook in hooks:
            hook.remove()


def statistics_distance(entered: Entered, targets: Targets) -> torch.Tensor:
    """Mean over layers of |mean - known| and |variance - known|, each relative to the known."""
    errors = []
    for layer, (mean, variance) in targets.items():
        values = entered[layer].transpose(0, 1).flatten(1)  # (C, K x positions)
        errors.append((values.mean(1) - mean).norm() / variance.norm().sqrt())
        errors.append((values.var(1, unbiased=False) - variance).norm() / variance.norm())
    return torch.stack(errors).mean()
