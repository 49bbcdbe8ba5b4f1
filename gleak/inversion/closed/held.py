"""Least squares for a convolution's input that are held to a first guess and bear wrong slopes.

Behind a max-pooling, and in a trained network whose images differ a thousandfold in their slopes,
some slopes are wrong: a maximum at another place, a unit near zero taken for inactive. Each spoils
the equations of one output channel. So the equations of a channel count the less, the more they
miss (iteratively reweighted least squares); the others outvote it. What the equations leave open,
or tell only in digits that rounding took, stays as the guess had it.
"""

import torch
from torch import nn

from gleak.inversion.closed.known import Place, Sent
from gleak.inversion.closed.solve import by_tap, double, input_equations, pull_back
from gleak.labels.tolerance import scaled

REWEIGHTED = 10  # times that the equations are weighed anew by what they miss
ROUNDS = 5  # of masks and input in turns


def gain_of(conv: nn.Conv2d) -> torch.Tensor:
    """How much larger than its input a convolution's output is, for noise: ()."""
    return conv.weight.detach().double().flatten(1).square().sum(1).mean().sqrt()


def noise_of(observed: torch.Tensor, sent: Sent) -> torch.Tensor:
    """The variance that rounding leaves in an equation, with a margin of ten: ()."""
    return (scaled(1e-6, sent.rounding) * observed.square().mean().sqrt()).square()


def held_through(conv: nn.Conv2d, place: Place, sent: Sent, guess: torch.Tensor) -> Place:
    """What is known in front of a convolution, from what is known behind it and a guess.

    guess: (K, C, H, W) at the input. Units that lay on a ReLU's bound are told by the input found.

    Raises ArithmeticError where the equations are fewer than the unknowns.
    """
    if conv.groups != 1 or conv.padding_mode != "zeros":
        raise ArithmeticError("convolutions in groups or with another padding than zeros are open")
    observed, unknown = sent.of(conv.weight), len(guess) * guess[0, 0].numel()
    equations = observed[:, 0].numel()
    if equations < unknown:
        raise ArithmeticError(
            f"its weight gradient gives {equations} equations for {unknown} unknowns a channel"
        )
    slope, variance = place.whole_slope, noise_of(observed, sent).expand(len(observed))
    assert place.values is not None
    known = torch.ones_like(slope, dtype=torch.bool) if place.known is None else place.known
    told = known.flatten(1).sum(1).clamp_min(1)
    inputs, share, held = guess.double(), known, None
    for _ in range(ROUNDS):
        with torch.no_grad():
            outputs = units = double(conv, inputs)
            for layer in place.onwards:
                units = double(layer, units)
        miss = torch.where(known, outputs - place.values, 0.0)
        spread = (miss.flatten(1).square().sum(1) / told).sqrt()
        spread = spread.clamp_min(1e-12 * place.values.abs().max())
        if held is None:
            held = (gain_of(conv) / spread).square()
        elif place.unmasked is not None:
            before, share = share, known | (units > 3 * spread.view(-1, *[1] * (units.ndim - 1)))
            slope = place.unmasked * share
            if torch.equal(before, share):
                break
        else:
            break
        inputs, deviation = held_input(conv, slope, observed, guess, held, variance)
    return Place(pull_back(conv, slope, inputs), inputs, deviation=deviation)


def held_input(
    conv: nn.Conv2d,
    slope: torch.Tensor,
    observed: torch.Tensor,
    present: torch.Tensor,
    firm: torch.Tensor,
    variance: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The input (K, C, H, W) that makes the weight gradient, held to the present one, its error.

    firm: (K,) how firmly each image's is held. variance: (O,) of the equations of each output
    channel; what an equation misses adds to it, as a place that is taken for sure may be wrong.
    """
    size = slope.flatten(1).norm(dim=1).clamp_min(torch.finfo(slope.dtype).tiny)
    pixels = present[0, 0].numel()
    equations = input_equations(conv, slope / size.view(-1, 1, 1, 1), present.shape[1:])
    matrix = equations.dense().unflatten(0, (len(observed), -1))
    target = by_tap(observed)
    scaled = size.repeat_interleave(pixels)[:, None]
    start = present.flatten(2).transpose(1, 2).flatten(0, 1) * scaled
    missing = target - matrix @ start
    held = firm.repeat_interleave(pixels) / scaled[:, 0].square()
    off = torch.zeros_like(variance)
    for _ in range(REWEIGHTED):
        weights = (variance + off).rsqrt().view(-1, 1, 1)
        seen, wanted = (matrix * weights).flatten(0, 1), (missing * weights).flatten(0, 1)
        square = seen.T @ seen
        square.diagonal().add_(held)
        square.diagonal().add_(1e-14 * square.diagonal().max())
        factor = torch.linalg.cholesky(square)
        change = torch.cholesky_solve(seen.T @ wanted, factor)
        off = (missing - matrix @ change).square().mean((1, 2))
    spread = torch.cholesky_inverse(factor).diagonal().sqrt()[:, None].expand_as(change)

    def as_input(values: torch.Tensor) -> torch.Tensor:
        values = (values / scaled).unflatten(0, (len(present), -1)).transpose(1, 2)
        return values.reshape(present.shape)

    return as_input(start + change), as_input(spread)
