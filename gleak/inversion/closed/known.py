"""What is known on the way down a network: the gradient sent, and a place between two layers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from gleak.labels.tolerance import of_dtype
from gleak.update import Update


class Sent:
    """A client's gradient, in float64, found by the parameter that it belongs to.

    precision: how far two values that were sent as one may lie apart, relative: twice the error
    of each. rounding: the precision of the arithmetic behind them.
    """

    def __init__(self, update: Update) -> None:
        self.gradient = update.equivalent_gradient()
        self.names = {id(weight): name for name, weight in update.model.named_parameters()}
        self.precision = 2 * update.precision
        own = of_dtype(update.classifier.weight.dtype)
        self.rounding = max(own, update.precision)

    def of(self, parameter: torch.Tensor) -> torch.Tensor:
        """The gradient of one parameter. Raises ArithmeticError if it was not sent."""
        name = self.names[id(parameter)]
        if name not in self.gradient:
            raise ArithmeticError(f"the client did not send the gradient of {name}")
        return self.gradient[name].double()


@dataclass(frozen=True, eq=False)
class Place:
    """What is known at a place between two layers, for each of K images, in float64.

    slope: derivative of the loss by the values there, (K, ...).
    values: (K, ...), up to noise; None behind a pooling.
    known: (K, ...) where the values are known; None where all are.
    unmasked: in front of a ReLU, the slope if all its units were active; otherwise None.
    onwards: the layers from here to that ReLU, where it is not the next one.
    deviation: (K, ...) standard error of the values, where least squares tell it; otherwise None.
    other: in front of a layer that is not monotone, a second pair of values and slope (K, ...), one
    of which each unit has; the values above are the likelier ones. Otherwise None.
    as_run: what the layer behind this place did to this batch, where that is more than the layer
    tells: dropout with what it kept. Otherwise None.
    again: makes this place anew once it is known by how much the values are too large, where batch
    norm in train mode hides that; otherwise None.
    passed: in front of a residual block, what more of the slope went past it. In train mode batch
    norm hides the scale of the values, the inverse of which `slope` has and this has not.
    """

    slope: torch.Tensor
    values: torch.Tensor | None
    known: torch.Tensor | None = None
    unmasked: torch.Tensor | None = None
    onwards: tuple[nn.Module, ...] = ()
    passed: torch.Tensor | float = 0.0
    deviation: torch.Tensor | None = None
    other: tuple[torch.Tensor, torch.Tensor] | None = None
    as_run: nn.Module | None = None
    again: "Callable[[torch.Tensor | float], Place] | None" = None

    @property
    def whole_slope(self) -> torch.Tensor:
        """The slope with what went past."""
        return self.slope + self.passed
