"""Which units behind a layer were active, and for how much of the client's way.

ReLU lets a slope pass where its unit is active. A unit close to zero is easily misjudged, and costs
as much as a large one: its slope does not depend on its size. In a mean of gradients along a
client's way it may be right neither as active nor as inactive, since it switched on the way. So let
every unit near zero be active for a share of the way, between 0 and 1. The layer's weight gradient
is linear in these shares, given its inputs, and linear in the inputs, given the shares. Of what the
shares change, the part that other inputs could make up for tells nothing: only the rest is fitted
(variable projection, Golub & Pereyra 1973).
"""

import numpy as np
import torch
from scipy.optimize import minimize

from gleak.inversion.linear import by_tap, input_equations, taps


def active_shares(
    layer,
    slope: torch.Tensor,
    observed: torch.Tensor,
    inputs: torch.Tensor,
    outputs: torch.Tensor,
    share: torch.Tensor,
    near_zero: float = 0.1,
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
    places = near.flatten(1).unflatten(1, (near.shape[1], -1))  # (K, out, places)
    image, out, place = places.nonzero().T
    now = share.view_as(places)[image, out, place]

    # the part of the gradient that no inputs explain, in units of its size
    matrix = input_equations(layer, slope * share, inputs.shape[1:])
    span, values, _ = torch.linalg.svd(matrix.flatten(0, 1), full_matrices=False)
    span = span[:, values > 1e-6 * values[0]]
    missing = by_tap(observed).flatten(0, 1)
    missing = missing - span @ (span.T @ missing)
    unit = missing.norm()
    missing, span = (missing / unit).float(), span.float()  # digits enough, in half the time

    # what each unit adds to the gradient of its output channel: (units, taps, channels)
    added = taps(layer, inputs)[image, :, :, place]
    added = added * slope.reshape(places.shape)[image, out, place][:, None, None]
    scale = added.flatten(1).norm(dim=1).clamp_min(1e-30)
    added = (added / scale[:, None, None]).float()

    def loss(changes):
        changes = torch.from_numpy(changes).to(added)[:, None, None]
        made = added.new_zeros(*matrix.shape[:2], added.shape[2])
        made = made.index_add_(0, out, changes * added).flatten(0, 1)
        rest = missing - made + span @ (span.T @ made)
        gradient = -(added * rest.view(*matrix.shape[:2], -1)[out]).sum((1, 2))
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
    share.view_as(places)[image, out, place] = (
        now + torch.from_numpy(found.x).to(now) * unit / scale
    )
    return share
