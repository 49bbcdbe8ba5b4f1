"""Behind GELU, SiLU or Hardswish: which of two inputs with the same output a unit had.

These layers fall before they rise, so that a negative output has two inputs, each with a slope of
its own. Untrained networks have most of their units on the rising side. With that as a guess, the
layer in front has an almost right input; this says for each unit which of the two it made; and so
on, until the weight gradient fits.
"""

import torch
from torch import nn

from gleak.inversion.closed.solve import Solved, double, solve_input
from gleak.labels.tolerance import scaled

ROUNDS = 12  # of telling sides and solving

Pair = tuple[torch.Tensor, torch.Tensor]  # values and slope, (K, ...) each


def settle_branches(
    layer: nn.Conv2d | nn.Linear,
    likely: Pair,
    other: Pair,
    known: torch.Tensor,
    observed: torch.Tensor,
    shape: tuple[int, ...],
    rounding: float,
    level: bool = False,
) -> tuple[torch.Tensor, Solved]:
    """The slope at a layer's output and its input, (K, ...) each.

    likely, other: what each unit's value and slope may be, the likelier first. known: where the
    two are the same. observed: the layer's weight gradient. shape: of one input. level: as of
    `solve_input`.

    Raises ArithmeticError as `solve_input`.
    """
    second = torch.zeros_like(known)
    tried: set[bytes] = set()
    best: tuple[torch.Tensor, Solved] | None = None
    for _ in range(ROUNDS):
        values, slope = (torch.where(second, b, a) for a, b in zip(likely, other, strict=True))
        sure = known if best is None else torch.ones_like(known)
        solved = solve_input(layer, slope, observed, values, sure, shape, rounding, level)
        if best is None or solved.misfit < best[1].misfit:
            best = slope, solved
        if solved.misfit < scaled(1e-5, rounding):
            break
        with torch.no_grad():
            outputs = double(layer, solved.inputs)
        second = (outputs - other[0]).abs() < (outputs - likely[0]).abs()
        state = second.cpu().numpy().tobytes()
        if state in tried:
            break
        tried.add(state)
    assert best is not None
    return best
