"""What in an update cannot be, if the client did what it told; on plain tensors.

With mean cross-entropy over any samples, the gradient of the last layer's bias is the mean of
p_k - y_k: its entries sum to zero, and the negative ones to -1 at most. Both hold for the mean over
steps of plain SGD, at any weights, and clipping keeps them. Noise, pruning and rounding break the
first, so it is a sign; broken by itself it is no proof.
"""

from collections.abc import Mapping

import torch

ZERO = 0.01  # a sum below this part of the sum of sizes is zero
BEYOND = 0.05  # of 1: how far the negative entries may exceed it
ALIKE = 2.5  # factor between sizes that are nearly equal
ONE = 0.01  # relative difference of sizes that are equal
MANY = 128  # fewer entries may be alike by chance


def sums_to_zero(bias_gradient: torch.Tensor, rounding: float = 0.0) -> bool:
    """Whether the entries (N,) sum to zero; rounding: how far off each may be.

    >>> sums_to_zero(torch.tensor([-0.5, 0.25, 0.25])), sums_to_zero(torch.tensor([-0.5, 0.4, 0.4]))
    (True, False)
    """
    g = bias_gradient.double()
    return bool(g.sum().abs() <= ZERO * g.abs().sum() + len(g) * rounding)


def times_too_large(bias_gradient: torch.Tensor) -> float:
    """By how much the negative entries (N,) exceed what a mean can have; 1 where they do not.

    >>> times_too_large(torch.tensor([-2.0, 1.0, 1.0])), times_too_large(torch.tensor([-0.2, 0.2]))
    (2.0, 1.0)
    """
    least = -bias_gradient.double().clamp_max(0).sum().item()
    return least if least > 1 + BEYOND else 1.0


def sizes_alike(changes: Mapping[str, torch.Tensor]) -> bool:
    """Whether most values, of all tensors, changed by nearly as much as the one that changed most.

    Steps of Adam and its kin have one size whatever the gradient; those of SGD differ by orders.
    Pruned updates, where most are zero, do not count, nor signs with a size for each tensor.

    >>> draws = torch.Generator().manual_seed(0)
    >>> gradient = {"w": torch.randn(1000, generator=draws).pow(3)}
    >>> sizes_alike(gradient), sizes_alike({"w": gradient["w"].sign()})
    (False, True)
    """
    sizes = [change.detach().abs().flatten() for change in changes.values()]
    largest = torch.stack([size.max() for size in sizes])
    signs_alone = all(
        bool(((size == 0) | (size >= (1 - ONE) * top)).all())
        for size, top in zip(sizes, largest, strict=True)
    )
    if signs_alone and (largest < (1 - ONE) * largest.max()).any():
        return False
    values = torch.cat(sizes)
    alike = (values > largest.max() / ALIKE).sum().item()
    changed = (values > 0).sum().item()
    return 2 * changed > len(values) >= MANY and 2 * alike > changed


def is_a_difference(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> bool:
    """Whether `after` is near zero in place of near `before`: no weights, but what they changed by.

    Weights that were trained have about the direction of those before, or are longer.

    >>> before = {"w": torch.tensor([3.0, -4.0, 1.0])}
    >>> [is_a_difference(before, {"w": torch.tensor(w)}) for w in ([3.1, -4, 1], [0.1, 0.1, 0])]
    [False, True]
    """
    pairs = [(before[name].detach().double(), value.double()) for name, value in after.items()]
    old, new = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
    return bool(new.norm() < 0.5 * old.norm() and old @ new < 0.5 * old.norm() * new.norm())
