"""Which units behind a layer were active, and for how much of the client's way.

ReLU lets a slope pass where its unit is active. A unit close to zero is easily misjudged, and costs
as much as a large one: its slope does not depend on its size. In a mean of gradients along a
client's way it may be right neither as active nor as inactive, since it switched on the way. So let
every unit near zero be active for a share of the way, between 0 and 1. The layer's weight gradient
is linear in these shares, given its inputs, and linear in the inputs, given the shares. Of what the
shares change, the part that other inputs could make up for tells nothing: only the rest is fitted
(variable projection, Golub & Pereyra 1973).
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from torch import nn

from gleak.inversion.closed.solve import (
    Equations,
    Solved,
    by_output,
    by_tap,
    double,
    solve_input,
    span_of,
    taps,
)
from gleak.labels.tolerance import FLOAT32, scaled

ROUNDS = 6  # of telling which units of a layer were active
SURE = 6.0  # standard errors above a bound, beyond which a value does not lie on it
HOPELESS = 30  # times the misfit allowed: more than units near zero can explain


def inverse_relu(
    layer: nn.Module, outputs: torch.Tensor, shape: tuple[int, ...], rounding: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What entered a ReLU, and where that is known: where it was active.

    outputs: (K, ...) up to noise. What is zero comes out of least squares as noise, as large as the
    negative values, of which there are none behind a ReLU.
    """
    noise = -outputs.flatten(1).amin(1).clamp_max(0).view(-1, *[1] * (outputs.ndim - 1))
    active = outputs > (1.5 * noise).clamp_min(scaled(2e-6, rounding) * outputs.max())
    return torch.where(active, outputs, 0.0), active


def put_on_bound(
    values: torch.Tensor, deviation: torch.Tensor, least: float, rounding: float
) -> torch.Tensor:
    """Values (K, ...) behind a layer, those that may be its smallest output set to that.

    deviation: (K, ...) their standard errors. Behind a trained network the errors of one image may
    be a thousand times those of another, so that one bar for all of them would not do.
    """
    above = values - least
    largest = above.flatten(1).abs().amax(1).view(-1, *[1] * (values.ndim - 1))
    bar = (SURE * deviation).maximum(scaled(1e-5, rounding) * largest)
    return torch.where(above > bar, values, least)


def settle_units(
    layer: nn.Conv2d | nn.Linear,
    above: torch.Tensor,
    active: torch.Tensor,
    observed: torch.Tensor,
    solved: Solved,
    rounding: float = FLOAT32,
    onwards: Sequence[nn.Module] = (),
    level: bool = False,
) -> tuple[torch.Tensor, Solved]:
    """The slope at a layer's output and its input, better than they were.

    above: the slope here if all units of the ReLU that follows were active, (K, ...). onwards: the
    layers between. level: as of `solve_input`. With almost right inputs, the layer
    itself says which of its units were active, and these give better inputs.
    """
    slope, share = above * active, active.double()
    near_zero = 0.1 if solved.misfit < 0.1 else 0.2
    enough = scaled(1e-5, rounding)  # an equation with right slopes, rounding summed up
    for _ in range(ROUNDS):
        inputs = solved.inputs
        if solved.misfit < enough:
            break
        with torch.no_grad():
            outputs = units = double(layer, inputs)
            for between in onwards:
                units = double(between, units)
        share = active_shares(layer, above, observed, inputs, units, share, near_zero, rounding)
        tried = above * share
        try:
            found = solve_input(
                layer, tried, observed, outputs, units > 0, inputs.shape[1:], rounding, level
            )
        except ArithmeticError:
            break
        slow = found.misfit > 0.7 * solved.misfit
        if found.misfit < solved.misfit:
            slope, solved = tried, found
        if slow:
            break
    return slope, solved


def active_shares(
    layer: nn.Conv2d | nn.Linear,
    slope: torch.Tensor,
    observed: torch.Tensor,
    inputs: torch.Tensor,
    outputs: torch.Tensor,
    share: torch.Tensor,
    near_zero: float = 0.1,
    rounding: float = FLOAT32,
) -> torch.Tensor:
    """For how much of the way each unit behind a linear or convolutional layer was active.

    slope: at the output, if all units were active (K, out, ...). observed: the layer's weight
    gradient. inputs, outputs: an estimate of them. share (like outputs): what to start from.
    near_zero: outputs below this share of their channel's root mean square are in question.
    """
    size = outputs.square().mean([0, *range(2, outputs.ndim)], keepdim=True).sqrt()
    near = outputs.abs() < near_zero * size
    share = torch.where(near, share, (outputs > 0).to(share))
    if not near.any():
        return share

    # the part of the gradient that no inputs explain, in units of its size
    span = span_of(Equations(layer, slope * share, inputs.shape[1:]), rounding)
    missing = by_tap(observed).flatten(0, 1)
    missing = missing - span @ (span.T @ missing)
    unit = missing.norm()
    missing, span = (missing / unit).float(), span.float()  # digits enough, in half the time

    # each unit adds to the gradient of its output what it sees, times its slope
    seen = taps(layer, inputs).permute(0, 3, 1, 2).flatten(0, 1).flatten(1).float()
    asked = by_output(near)
    shares = by_output(share)
    slopes, now = by_output(slope)[asked], shares[asked]
    scale = slopes.abs() * seen.norm(dim=1).expand(asked.shape)[asked]
    scale = scale.clamp_min(1e-30)
    slopes = (slopes / scale).float()

    def loss(changes: np.ndarray) -> tuple[float, np.ndarray]:
        weights = slopes.new_zeros(asked.shape)
        weights[asked] = torch.from_numpy(changes).to(slopes) * slopes
        made = (weights @ seen).view_as(missing)
        rest = missing - made + span @ (span.T @ made)
        gradient = -(rest.view(len(weights), -1) @ seen.T)[asked] * slopes
        return 0.5 * rest.square().sum().item(), gradient.double().cpu().numpy()

    bounds = torch.stack([-now * scale, (1 - now) * scale], dim=1) / unit
    found = minimize(
        loss,
        np.zeros(len(now)),
        jac=True,
        bounds=bounds.cpu().numpy(),
        method="L-BFGS-B",
        options={"maxiter": 30},
    )
    shares[asked] = now + torch.from_numpy(found.x).to(now) * unit / scale
    return shares.unflatten(1, (len(share), -1)).transpose(0, 1).reshape(share.shape)
