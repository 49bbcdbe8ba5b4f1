"""What can be told of a layer, for each kind: a table with one row a kind.

A row says how activations go up through the layer, how the slope comes down, and what is known of
the input: from the output, which the layer may let one invert, or from the gradient of its weight,
which is linear in the input. A layer without a row ends the peeling.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from gleak.inversion.closed.chain import NormBehind, NormedConv, Pad, Reshape, ResidualBlock, Spread
from gleak.inversion.closed.known import Place, Sent
from gleak.inversion.closed.relu import inverse_relu
from gleak.inversion.closed.residual import (
    AGREES,
    tell_output,
    through_block,
    through_norm_behind,
    through_normed,
)
from gleak.inversion.closed.solve import Equations, double, input_equations, pull_back
from gleak.labels.tolerance import scaled
from gleak.models import Normalise

NOISE = 1e-3  # of the largest value: negative ones smaller than this are noise behind a ReLU
SATURATED = 1e-9  # distance of an output from its bounds, below which the input is made up

HALVINGS = 60  # of the interval in which an input lies: float64's digits
FAR = 40.0  # below zero, where the derivative of SiLU and GELU has faded

Shape = tuple[int, ...]
Known = tuple[torch.Tensor, torch.Tensor | None]  # values (K, ...), where they are known or all


def slope_of(
    layer: nn.Module, slope: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor | None
) -> torch.Tensor:
    """By differentiating the layer."""
    return pull_back(layer, slope, inputs)


class Bounds(NamedTuple):
    """Of a layer that is linear between two inputs and constant beyond."""

    inputs: tuple[float, float]
    outputs: tuple[float, float]

    @property
    def gain(self) -> float:
        """The derivative between the bounds."""
        (low, high), (least, most) = self.inputs, self.outputs
        return (most - least) / (high - low) if math.isfinite(high) else 1.0

    def onwards(self) -> tuple[nn.Module, ...]:
        """Layers that turn an input into how far inside the bounds it lies, negative outside."""
        return () if self.inputs == (0.0, math.inf) else (Inside(*self.inputs),)


class Inside(nn.Module):
    """How far values lie inside of two bounds, negative where they do not."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """The distance to the nearer bound."""
        return torch.minimum(values - self.low, self.high - values)


class Kept(nn.Module):
    """Dropout with what it kept of this batch: a factor (K, ...) for each value, 0 if dropped."""

    def __init__(self, factor: torch.Tensor) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(K, ...), in double as `factor`."""
        return values * self.factor


class Row(NamedTuple):
    """What can be told of one kind of layer, all in float64; None where there is no way.

    forward(layer, inputs): the output.
    slope(layer, slope, inputs, outputs): the slope at the input from the one at the output.
    equations(layer, slope, shape): the equations that the weight gradient makes of the input.
    inverse(layer, outputs, shape, rounding): the input, and where it is known.
    whole(layer, place, shapes, sent), told(layer, place, sent): of a layer that is solved as one,
    the place in front of it, and what it tells of the place behind it.
    bounds(layer): of a layer that hides its input where its output lies on one of them.
    other(layer, outputs): a second input with these outputs, where the layer is not monotone.
    agrees: relative error of the features that the input must make, if not the usual one.
    """

    forward: Callable[[nn.Module, torch.Tensor], torch.Tensor] = double
    slope: Callable[..., torch.Tensor] = slope_of
    equations: Callable[[nn.Module, torch.Tensor, Shape], Equations] | None = None
    inverse: Callable[..., Known] | None = None
    whole: Callable[..., Place] | None = None
    told: Callable[..., Place] | None = None
    bounds: Callable[..., Bounds] | None = None
    other: Callable[[nn.Module, torch.Tensor], torch.Tensor] | None = None
    agrees: float | None = None


def inverse_sigmoid(
    layer: nn.Module, outputs: torch.Tensor, shape: Shape, rounding: float
) -> Known:
    """The logits."""
    return outputs.clamp(SATURATED, 1 - SATURATED).logit(), None


def slope_of_sigmoid(
    layer: nn.Module, slope: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor
) -> torch.Tensor:
    """s (1 - s) times the slope, for outputs s."""
    outputs = outputs.clamp(SATURATED, 1 - SATURATED)
    return slope * outputs * (1 - outputs)


def inverse_tanh(layer: nn.Module, outputs: torch.Tensor, shape: Shape, rounding: float) -> Known:
    """The area hyperbolic tangent."""
    return outputs.clamp(SATURATED - 1, 1 - SATURATED).atanh(), None


def inverse_leaky_relu(
    layer: nn.LeakyReLU, outputs: torch.Tensor, shape: Shape, rounding: float
) -> Known:
    """Negative outputs over the slope there. Raises ArithmeticError if that is not positive."""
    if layer.negative_slope <= 0:
        raise ArithmeticError("its outputs do not tell its inputs")
    return torch.where(outputs > 0, outputs, outputs / layer.negative_slope), None


def inverse_elu(layer: nn.ELU, outputs: torch.Tensor, shape: Shape, rounding: float) -> Known:
    """log(1 + y / alpha) of negative outputs y."""
    below = (outputs / layer.alpha).clamp(SATURATED - 1, 0).log1p()
    return torch.where(outputs > 0, outputs, below), None


def inverse_softplus(
    layer: nn.Softplus, outputs: torch.Tensor, shape: Shape, rounding: float
) -> Known:
    """log(exp(beta y) - 1) / beta, or the output itself where the layer is the identity."""
    scaled_up = (outputs * layer.beta).clamp_min(SATURATED)
    inputs = (scaled_up + (-torch.expm1(-scaled_up)).log()) / layer.beta
    return torch.where(inputs * layer.beta > layer.threshold, outputs, inputs), None


def inverse_norm(
    layer: nn.BatchNorm2d | nn.BatchNorm1d, outputs: torch.Tensor, shape: Shape, rounding: float
) -> Known:
    """Of a batch norm in eval mode, which is affine. Raises ArithmeticError in train mode."""
    if layer.training or layer.running_mean is None or layer.running_var is None:
        raise ArithmeticError("it took the mean and variance of the batch, which are not known")
    each = (-1, *[1] * (outputs.ndim - 2))
    mean = layer.running_mean.double().view(each)
    deviation = (layer.running_var.double() + layer.eps).sqrt().view(each)
    standard = outputs
    if layer.weight is not None:
        weight, bias = (t.detach().double().view(each) for t in (layer.weight, layer.bias))
        if not weight.all():
            raise ArithmeticError("its weight is zero in some channel")
        standard = (outputs - bias) / weight
    return standard * deviation + mean, None


def hidden_norm(layer: nn.Module, outputs: torch.Tensor, shape: Shape, rounding: float) -> Known:
    """Raises ArithmeticError: of a norm that takes its statistics from each image."""
    raise ArithmeticError("it took the mean and variance of each image, which are not known")


def inverse_pad(layer: Pad, outputs: torch.Tensor, shape: Shape, rounding: float) -> Known:
    """Without the border. Raises ArithmeticError where the layer cuts pixels off."""
    if min(layer.sides) < 0:
        raise ArithmeticError("it cuts pixels off, which nothing tells")
    for dim, before in zip((-1, -2, -3), layer.sides[::2], strict=False):
        outputs = outputs.narrow(dim, before, shape[dim])
    return outputs, None


def inverse_dropout(
    layer: nn.Dropout, outputs: torch.Tensor, shape: Shape, rounding: float
) -> Known:
    """What was kept, in its size before; the rest is zero, and its input unknown."""
    largest = outputs.flatten(1).abs().amax(1).view(-1, *[1] * (outputs.ndim - 1))
    noise = -outputs.flatten(1).amin(1).clamp_max(0).view(largest.shape)
    some = scaled(2e-6, rounding) * largest
    # behind a ReLU, negative values are noise
    kept = outputs.abs() > torch.where(noise < NOISE * largest, 1.5 * noise, 0.0).maximum(some)
    return torch.where(kept, outputs * (1 - layer.p), 0.0), kept


def slope_of_dropout(
    layer: nn.Dropout, slope: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor
) -> torch.Tensor:
    """None at what was dropped."""
    return slope * (inputs != 0) / (1 - layer.p)


def bounds_of_relu(layer: nn.ReLU) -> Bounds:
    """Inactive below zero."""
    return Bounds((0.0, math.inf), (0.0, math.inf))


def bounds_of_hardtanh(layer: nn.Hardtanh) -> Bounds:
    """Also of ReLU6, which is one."""
    bounds = (float(layer.min_val), float(layer.max_val))
    return Bounds(bounds, bounds)


def bounds_of_hardsigmoid(layer: nn.Hardsigmoid) -> Bounds:
    """A sixth of the input plus a half, between 0 and 1."""
    return Bounds((-3.0, 3.0), (0.0, 1.0))


def inverse_clamp(layer: nn.Module, outputs: torch.Tensor, shape: Shape, rounding: float) -> Known:
    """Of a layer that is linear between two bounds; beyond them, inputs are unknown.

    As for ReLU, values beyond the bounds show how large the noise is.
    """
    bounds = row_of(layer).bounds
    assert bounds is not None
    (low, _), (least, most), gain = *bounds(layer), bounds(layer).gain
    beyond = torch.maximum(least - outputs, outputs - most).flatten(1).amax(1)
    noise = beyond.clamp_min(0).view(-1, *[1] * (outputs.ndim - 1))
    bar = (1.5 * noise).clamp_min(scaled(2e-6, rounding) * outputs.abs().max())
    between = (outputs > least + bar) & (outputs < most - bar)
    inputs = low + (outputs.clamp(least, most) - least) / gain
    # on a bound, a little beyond the bound's input, where the layer has no slope
    outside = torch.where(outputs > (least + most) / 2, 1.0, -1.0) * (most - least)
    return torch.where(between, inputs, inputs + outside), between


def lowest_of(layer: nn.Module) -> float:
    """Where a layer that falls and then rises has its least output."""
    low, high = -3.0, 0.0
    for _ in range(HALVINGS):
        middle = torch.tensor((low + high) / 2, dtype=torch.float64)
        rises = torch.func.grad(lambda x: layer(x).sum())(middle) > 0
        low, high = (low, middle.item()) if rises else (middle.item(), high)
    return (low + high) / 2


def halve(
    layer: nn.Module, outputs: torch.Tensor, falling: torch.Tensor, rising: torch.Tensor
) -> torch.Tensor:
    """Inputs between two ends with these outputs: below them at one end, above at the other."""
    for _ in range(HALVINGS):
        middle = (falling + rising) / 2
        below = layer(middle) < outputs
        falling, rising = torch.where(below, middle, falling), torch.where(below, rising, middle)
    return (falling + rising) / 2


@torch.no_grad()
def inverse_dipped(layer: nn.Module, outputs: torch.Tensor, shape: Shape, rounding: float) -> Known:
    """The larger of two inputs of GELU, SiLU or Hardswish: it is known only above zero."""
    lowest = torch.full_like(outputs, lowest_of(layer))
    inputs = halve(layer, outputs, lowest, outputs.clamp_min(0) + 1)
    least = layer(lowest)
    noise = (least - outputs).clamp_min(0).flatten(1).amax(1)
    bar = noise.clamp_min(scaled(2e-6, rounding) * outputs.abs().max())
    bar = bar.view(-1, *[1] * (outputs.ndim - 1))
    if isinstance(layer, nn.Hardswish):  # all inputs below -3 have output 0, and no slope
        inputs = torch.where(outputs.abs() > bar, inputs, -4.0)
    return inputs, outputs > bar


@torch.no_grad()
def other_dipped(layer: nn.Module, outputs: torch.Tensor) -> torch.Tensor:
    """The smaller of the two inputs, or the only one for positive outputs."""
    lowest = torch.full_like(outputs, lowest_of(layer))
    above = halve(layer, outputs, lowest, outputs.clamp_min(0) + 1)
    return torch.where(outputs < 0, halve(layer, outputs, lowest, lowest - FAR), above)


def inverse_shape(layer: nn.Module, outputs: torch.Tensor, shape: Shape, rounding: float) -> Known:
    """The same values in their shape before."""
    return outputs.reshape(-1, *shape), None


def inverse_spread(layer: Spread, outputs: torch.Tensor, shape: Shape, rounding: float) -> Known:
    """What the means of neighbours are means of. Raises ArithmeticError where they leave it open.

    A dimension at a time: the outputs are a matrix times the inputs.
    """
    for dim, before in ((-1, shape[2]), (-2, shape[1])):
        each = torch.eye(before).to(outputs)
        means = F.adaptive_avg_pool1d(each[None], outputs.shape[dim])[0].T
        if int(torch.linalg.matrix_rank(means)) < before:
            raise ArithmeticError("its averages leave its input open")
        solved = outputs.transpose(dim, -1) @ torch.linalg.pinv(means).T
        outputs = solved.transpose(dim, -1)
    return outputs, None


def inverse_normalise(
    layer: Normalise, outputs: torch.Tensor, shape: Shape, rounding: float
) -> Known:
    """Times the deviation, plus the mean."""
    return outputs * layer.get_buffer("std").double() + layer.get_buffer("mean").double(), None


def hidden_maxima(layer: nn.Module, place: Place, shapes: tuple[Shape, Shape], sent: Sent) -> Place:
    """Images tell which place of a window held its maximum, see `pooling`; nothing here does."""
    raise ArithmeticError("which place of each window held the maximum is not known")


ROWS: dict[type[nn.Module], Row] = {
    nn.Conv2d: Row(equations=input_equations),
    nn.Linear: Row(equations=input_equations),
    nn.ReLU: Row(inverse=inverse_relu, bounds=bounds_of_relu),
    nn.Hardtanh: Row(inverse=inverse_clamp, bounds=bounds_of_hardtanh),  # and ReLU6, which is one
    nn.Hardsigmoid: Row(inverse=inverse_clamp, bounds=bounds_of_hardsigmoid),
    nn.LeakyReLU: Row(inverse=inverse_leaky_relu),
    nn.ELU: Row(inverse=inverse_elu),
    nn.Softplus: Row(inverse=inverse_softplus),
    nn.Sigmoid: Row(inverse=inverse_sigmoid, slope=slope_of_sigmoid),
    nn.Tanh: Row(inverse=inverse_tanh),
    nn.GELU: Row(inverse=inverse_dipped, other=other_dipped),
    nn.SiLU: Row(inverse=inverse_dipped, other=other_dipped),
    nn.Hardswish: Row(inverse=inverse_dipped, other=other_dipped),
    nn.BatchNorm2d: Row(inverse=inverse_norm),
    nn.BatchNorm1d: Row(inverse=inverse_norm),
    nn.GroupNorm: Row(inverse=hidden_norm),
    nn.LayerNorm: Row(inverse=hidden_norm),
    nn.InstanceNorm2d: Row(inverse=hidden_norm),
    nn.Dropout: Row(inverse=inverse_dropout, slope=slope_of_dropout),
    Kept: Row(),
    nn.Identity: Row(inverse=inverse_shape),
    nn.Flatten: Row(inverse=inverse_shape),
    Reshape: Row(inverse=inverse_shape),
    Pad: Row(inverse=inverse_pad),
    Normalise: Row(inverse=inverse_normalise),
    Spread: Row(inverse=inverse_spread),
    nn.AdaptiveAvgPool2d: Row(),  # hides its input, but spreads the slope
    nn.AvgPool2d: Row(),
    nn.MaxPool2d: Row(whole=hidden_maxima),
    ResidualBlock: Row(whole=through_block, told=tell_output, agrees=AGREES),
    NormedConv: Row(whole=through_normed, told=tell_output, agrees=AGREES),
    NormBehind: Row(whole=through_norm_behind, agrees=AGREES),
}


def find_row(layer: nn.Module) -> Row | None:
    """The row of a layer, or None."""
    return next((ROWS[kind] for kind in type(layer).__mro__ if kind in ROWS), None)


def row_of(layer: nn.Module) -> Row:
    """The row of a layer. Raises ArithmeticError if there is none."""
    row = find_row(layer)
    if row is None:
        raise ArithmeticError("there is no closed form for this kind of layer")
    return row
