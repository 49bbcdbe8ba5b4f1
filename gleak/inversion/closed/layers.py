"""What can be told of a layer, for each kind: a table with one row a kind.

A row says how activations go up through the layer, how the slope comes down, and what is known of
the input: from the output, which the layer may let one invert, or from the gradient of its weight,
which is linear in the input. A layer without a row ends the peeling.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from gleak.inversion.closed.chain import BasicBlock, Reshape
from gleak.inversion.closed.known import Place
from gleak.inversion.closed.relu import inverse_relu
from gleak.inversion.closed.residual import AGREES, tell_output, through_block
from gleak.inversion.closed.solve import Equations, double, input_equations, pull_back
from gleak.models import Normalise

SATURATED = 1e-9  # distance of an output from its bounds, below which the input is made up

Shape = tuple[int, ...]
Known = tuple[torch.Tensor, torch.Tensor | None]  # values (K, ...), where they are known or all


def slope_of(
    layer: nn.Module, slope: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor | None
) -> torch.Tensor:
    """By differentiating the layer."""
    return pull_back(layer, slope, inputs)


class Row(NamedTuple):
    """What can be told of one kind of layer, all in float64; None where there is no way.

    forward(layer, inputs): the output.
    slope(layer, slope, inputs, outputs): the slope at the input from the one at the output.
    equations(layer, slope, shape): the equations that the weight gradient makes of the input.
    inverse(layer, outputs, shape, rounding): the input, and where it is known.
    whole(layer, place, shapes, sent), told(layer, place, sent): of a layer that is solved as one,
    the place in front of it, and what it tells of the place behind it.
    least: the smallest output, where the inputs of all outputs that lie there are unknown.
    agrees: relative error of the features that the input must make, if not the usual one.
    """

    forward: Callable[[nn.Module, torch.Tensor], torch.Tensor] = double
    slope: Callable[..., torch.Tensor] = slope_of
    equations: Callable[[nn.Module, torch.Tensor, Shape], Equations] | None = None
    inverse: Callable[..., Known] | None = None
    whole: Callable[..., Place] | None = None
    told: Callable[..., Place] | None = None
    least: float | None = None
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
    layer: nn.BatchNorm2d, outputs: torch.Tensor, shape: Shape, rounding: float
) -> Known:
    """Of a batch norm in eval mode, which is affine. Raises ArithmeticError in train mode."""
    if layer.training or layer.running_mean is None or layer.running_var is None:
        raise ArithmeticError("it took the mean and variance of the batch, which are not known")
    mean, deviation = layer.running_mean.double(), (layer.running_var.double() + layer.eps).sqrt()
    standard = outputs
    if layer.weight is not None:
        weight, bias = (t.detach().double()[:, None, None] for t in (layer.weight, layer.bias))
        if not weight.all():
            raise ArithmeticError("its weight is zero in some channel")
        standard = (outputs - bias) / weight
    return standard * deviation[:, None, None] + mean[:, None, None], None


def inverse_shape(layer: nn.Module, outputs: torch.Tensor, shape: Shape, rounding: float) -> Known:
    """The same values in their shape before."""
    return outputs.reshape(-1, *shape), None


def inverse_normalise(
    layer: Normalise, outputs: torch.Tensor, shape: Shape, rounding: float
) -> Known:
    """Times the deviation, plus the mean."""
    return outputs * layer.get_buffer("std").double() + layer.get_buffer("mean").double(), None


ROWS: dict[type[nn.Module], Row] = {
    nn.Conv2d: Row(equations=input_equations),
    nn.Linear: Row(equations=input_equations),
    nn.ReLU: Row(inverse=inverse_relu, least=0.0),
    nn.LeakyReLU: Row(inverse=inverse_leaky_relu),
    nn.ELU: Row(inverse=inverse_elu),
    nn.Softplus: Row(inverse=inverse_softplus),
    nn.Sigmoid: Row(inverse=inverse_sigmoid, slope=slope_of_sigmoid),
    nn.Tanh: Row(inverse=inverse_tanh),
    nn.BatchNorm2d: Row(inverse=inverse_norm),
    nn.Identity: Row(inverse=inverse_shape),
    nn.Flatten: Row(inverse=inverse_shape),
    Reshape: Row(inverse=inverse_shape),
    Normalise: Row(inverse=inverse_normalise),
    nn.AdaptiveAvgPool2d: Row(),  # hides its input, but spreads the slope
    nn.AvgPool2d: Row(),
    BasicBlock: Row(whole=through_block, told=tell_output, agrees=AGREES),
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
