"""Max-pooling: which place of each window held the largest value.

A pooling tells the largest value of each window and hides the rest. A convolution in front of it
has a weight gradient that is linear in its input once it is known which place of each window passed
its value on, since only there is a slope. Images that a search found from what lies behind the
pooling give a first input. Then in turns:

The places. The convolution of the present input should be the pooled value at one place of a window
and no more than that at the others. With errors of standard deviation s the log-likelihood of a
place with output z and pooled value v is -((z - v) / s)^2 / 2 - log Phi((v - z) / s). The gradient
has a say in it too: what moving the slope to that place mends of it. The softmax of both over the
window gives each place a share.

The input. Least squares on the weight gradient with these shares, see `held`: outputs whose places
are unsure count less, and images that are still far off are held more firmly to what they were.
Then some steps of projection on what the forward pass tells: equal at the place, at most the pooled
value elsewhere, and no activation beyond its bounds.

Layers between the convolution and the pooling that act on each value alone are taken behind it: the
largest of the values is the value of the largest, or of the smallest where a layer turns the order.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from gleak.inversion.closed.chain import Step
from gleak.inversion.closed.held import gain_of, held_input, noise_of
from gleak.inversion.closed.known import Place, Sent
from gleak.inversion.closed.layers import row_of
from gleak.inversion.closed.solve import double, pull_back, taps

SPARE = 1.25  # equations of the convolution in front, for each unknown: 2 do, 1.1 do not
LARGEST = 3500  # unknowns; a round solves for them at once, and takes seconds beyond
ROUNDS = 60  # of places and input in turns; it takes five to forty
LOOSER = 0.01  # how firmly an input is held, since projections hide part of its error
CALM = 3  # rounds without a change of places that end them
KICKS = 5  # of an input that settled on a wrong answer, at most
KICK = 0.01  # how firmly it is held then
MOVES = 40  # of a place in each channel and round, at most
LITTLE = 1e-9  # of log-likelihood: a move that gains less is none
PROJECTIONS = 8  # on the forward pass, in each of them
RISING = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Softplus, nn.Sigmoid, nn.Tanh)  # and batch norm


def windows(pool: nn.MaxPool2d, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """For each window its places, (windows, places), as indices of an image (H x W) of `shape`.

    Last, where there is none, behind the border: (windows, places), False.

    >>> windows(nn.MaxPool2d(2), (1, 2, 4))[0]
    tensor([[0, 1, 4, 5],
            [2, 3, 6, 7]])
    """
    if pool.ceil_mode:
        raise ArithmeticError("poolings that round the size up are open")
    size = shape[1] * shape[2]
    numbers = torch.arange(1, size + 1, dtype=torch.float64).view(1, 1, *shape[1:])
    found = F.unfold(numbers, pool.kernel_size, pool.dilation, pool.padding, pool.stride)
    index = found[0].T.long() - 1
    return index.clamp_min(0), index >= 0


class Windows:
    """The places of a pooling's windows, all channels and images alike."""

    def __init__(self, pool: nn.MaxPool2d, shape: tuple[int, ...], device: torch.device) -> None:
        self.shape = shape
        index, inside = windows(pool, shape)
        self.index, self.inside = index.to(device), inside.to(device)

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """Values (K, C, H, W) as (K, C, windows, places)."""
        return values.flatten(2)[:, :, self.index]

    def back(self, values: torch.Tensor) -> torch.Tensor:
        """Values (K, C, windows, places) summed where they lie, (K, C, H, W)."""
        values = torch.where(self.inside, values, 0.0).flatten(2)
        index = self.index.flatten().expand_as(values)
        found = values.new_zeros(*values.shape[:2], self.shape[1] * self.shape[2])
        return found.scatter_add(2, index, values).unflatten(2, self.shape[1:])


def behind(steps: Sequence[Step], index: int) -> tuple[int, list[Step], torch.Tensor]:
    """The convolution in front of the pooling `steps[index]`, and the steps between, at its size.

    Last the order that these leave, (C, 1): 1 where they keep it, -1 where they turn it.

    Raises ArithmeticError where there is anything else in front of the pooling.
    """
    pool, at = steps[index], conv_before(steps, index)
    turns = torch.ones(pool.leaving[0], 1)
    between: list[Step] = []
    for step in reversed(steps[at + 1 : index]):
        if isinstance(step.layer, nn.BatchNorm2d) and step.layer.weight is not None:
            turns = turns * step.layer.weight.detach().sign().cpu()[:, None]
        between.append(replace(step, entering=pool.leaving, leaving=pool.leaving))
    return at, between, turns


def conv_before(steps: Sequence[Step], index: int) -> int:
    """The index of the convolution in front of a pooling, which only acts on each value between.

    Raises ArithmeticError where there is anything else in front of the pooling.
    """
    for at in range(index - 1, -1, -1):
        layer = steps[at].layer
        if isinstance(layer, nn.Conv2d):
            if layer.groups != 1 or layer.padding_mode != "zeros":
                break
            return at
        normed = isinstance(layer, nn.BatchNorm2d) and not layer.training
        if not normed and not isinstance(layer, (*RISING, nn.Identity)):
            break
    raise ArithmeticError(
        "its places are found only behind a plain convolution and layers that rise"
    )


def bounds(steps: Sequence[Step], index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Between what all values lie that enter `steps[index]`: twice (C, 1, 1), or infinite."""
    first = index
    while first and isinstance(
        steps[first - 1].layer, (*RISING, nn.BatchNorm2d, nn.MaxPool2d, nn.Identity)
    ):
        first -= 1
    low = torch.full((1, steps[index].entering[0], 1, 1), -torch.inf, dtype=torch.float64)
    if first == 0:
        low = torch.zeros_like(low)
    high = torch.ones_like(low) if first == 0 else -low
    for step in steps[first:index]:
        if isinstance(step.layer, nn.MaxPool2d):
            continue
        device = next((t.device for t in step.layer.buffers()), low.device)
        ends = [row_of(step.layer).forward(step.layer, end.to(device)) for end in (low, high)]
        low, high = torch.minimum(*ends).cpu(), torch.maximum(*ends).cpu()
        low = torch.where(low.isnan(), -torch.inf, low)
        high = torch.where(high.isnan(), torch.inf, high)
    return low[0], high[0]


def find_places(
    conv: nn.Conv2d,
    pool: nn.MaxPool2d,
    place: Place,
    sent: Sent,
    start: torch.Tensor,
    limits: tuple[torch.Tensor, torch.Tensor],
    turns: torch.Tensor,
    allowed: float,
) -> Place:
    """What is known in front of a convolution with a max-pooling behind it: its input, with errors.

    place: behind the pooling, as if it came right behind the convolution. start: a first input (K,
    C, H, W). limits: between what it lies. turns: as in `behind`. allowed: relative misfit of the
    gradient, above which the places are wrong.

    Raises ArithmeticError where nothing is known behind the pooling, or no places fit.
    """
    if place.values is None:
        raise ArithmeticError("its output is hidden")
    observed = sent.of(conv.weight)
    wins = Windows(pool, place_shape(conv, start), start.device)
    turns = turns.to(start)
    pooled = place.values.flatten(2) * turns  # (K, C, windows)
    slope = place.whole_slope.flatten(2)
    known = torch.ones_like(pooled, dtype=torch.bool)
    if place.known is not None:
        known = place.known.flatten(2)
    low, high = (end.to(start) for end in limits)
    inputs = start.double().clamp(low, high)
    calm = kicks = 0
    norm = squared_norm(conv, inputs)
    gain = gain_of(conv)
    nothing = noise_of(observed, sent)
    misfit, places = None, torch.empty(0)
    for _ in range(ROUNDS):
        outputs = oriented(conv, inputs, wins, turns)
        count = known.flatten(1).sum(1).clamp_min(1)
        off = torch.where(known, (outputs.amax(3) - pooled).square(), 0.0).flatten(1).sum(1)
        size = torch.where(known, pooled.square(), 0.0).flatten(1).sum(1)
        least = 1e-12 * pooled.abs().max()
        ask = partial(by_votes, conv, wins, slope, known, inputs, observed, nothing)
        if misfit is None:
            *_, misfit = ask(outputs, 0)
        # a search matched what is known here, so that its images seem nearer than they are
        spread = (off / count).sqrt().maximum(misfit * (size / count).sqrt()).clamp_min(least)
        spread = spread.view(-1, 1, 1, 1)
        likely = likelihood(outputs, pooled[..., None], spread)
        before = places
        places, votes, misfit = ask(likely, MOVES)
        shares = (likely + votes).softmax(3) * known[..., None]
        same = before.shape == places.shape and bool((places == before)[known].all())
        calm = calm + 1 if same else 0
        unsure = (slope[..., None].square() * shares * (1 - shares)).sum((2, 3))
        varied = inputs.var((2, 3)).mean(1, keepdim=True)
        variance = (unsure * varied).sum(0) + nothing
        tilted = wins.back(shares * slope[..., None])
        firm = LOOSER * (gain / spread).flatten().square()
        if calm == CALM:
            if misfit <= allowed or kicks == KICKS:
                break
            calm, kicks = 0, kicks + 1
            sure = wins.back(
                F.one_hot(places, shares.shape[3]) * known[..., None] * slope[..., None]
            )
            least = nothing.expand(len(variance))
            inputs = held_input(conv, sure, observed, inputs, KICK * firm, least)[0].clamp(
                low, high
            )
            continue
        inputs = held_input(conv, tilted, observed, inputs, firm, variance)[0].clamp(low, high)
        chosen = F.one_hot(places, shares.shape[3]).bool() & known[..., None]
        for _ in range(PROJECTIONS):
            miss = oriented(conv, inputs, wins, turns) - pooled[..., None]
            told = known[..., None] | (turns > 0)[..., None]  # of turned ones, one place is below
            miss = torch.where(chosen, miss, torch.where(told, miss.clamp_min(0), 0.0))
            miss = torch.where(miss.isfinite(), miss, 0.0)  # behind the border
            step = pull_back(conv, wins.back(miss * turns[..., None]), inputs)
            inputs = (inputs - step / norm).clamp(low, high)
    assert misfit is not None
    if misfit > allowed:
        raise ArithmeticError(f"the best that were found miss the gradient by {misfit:.1%}")
    chosen = F.one_hot(places, wins.index.shape[1]).bool() & known[..., None]
    tilted = wins.back(chosen * slope[..., None])
    inputs, deviation = held_input(
        conv, tilted, observed, inputs, firm, nothing.expand(len(variance))
    )
    return Place(pull_back(conv, tilted, inputs), inputs, deviation=deviation)


def place_shape(conv: nn.Conv2d, inputs: torch.Tensor) -> tuple[int, ...]:
    """The shape of what leaves the convolution, for one image."""
    with torch.no_grad():
        return tuple(double(conv, inputs[:1]).shape[1:])


@torch.no_grad()
def oriented(
    conv: nn.Conv2d, inputs: torch.Tensor, wins: Windows, turns: torch.Tensor
) -> torch.Tensor:
    """The convolution's output by windows, (K, C, windows, places), the larger passed on."""
    outputs = wins.of(double(conv, inputs)) * turns[..., None]
    return outputs.masked_fill(~wins.inside, -torch.inf)


def likelihood(outputs: torch.Tensor, pooled: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """Log-likelihood of each place of a window that it passed its value on, up to a constant.

    outputs: (K, C, windows, places). pooled: (K, C, windows, 1). spread: (K, 1, 1, 1).

    >>> values = torch.tensor([1.0, 1.0, -9.0])
    >>> likelihood(values, torch.tensor(1.0), torch.tensor(0.1)).softmax(0).tolist()
    [0.5, 0.5, 0.0]
    """
    off = (outputs - pooled) / spread
    return (-0.5 * off.square() - torch.special.log_ndtr(-off)).nan_to_num(nan=-1e30, neginf=-1e30)


def by_votes(
    conv: nn.Conv2d,
    wins: Windows,
    slope: torch.Tensor,
    known: torch.Tensor,
    inputs: torch.Tensor,
    observed: torch.Tensor,
    nothing: torch.Tensor,
    likely: torch.Tensor,
    moves: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The places of the maxima by their likelihood and by the weight gradient, given the input.

    To move a slope D from one place to another changes the gradient by D times the difference of
    the patches that the convolution sees there. What that mends of what the gradient misses adds
    to the likelihood. In each pass every channel moves the one that it gains most from.

    Returns places (K, C, windows), the votes for each place (K, C, windows, places), and the
    relative misfit of the gradient ().
    """
    settings: Any = (conv.stride, conv.padding, conv.dilation)
    patches = taps(conv, inputs).flatten(1, 2)[:, :, wins.index]  # (K, taps x C, windows, places)
    patches = torch.where(wins.inside, patches, 0.0)
    inner = torch.einsum("kdwp,kdwq->kwpq", patches, patches)[:, None]
    size = inner.diagonal(dim1=-2, dim2=-1)  # (K, 1, windows, places)
    places, votes = likely.argmax(3), torch.zeros_like(likely)

    def misses() -> torch.Tensor:
        chosen = F.one_hot(places, likely.shape[3]) * known[..., None]
        tilted = wins.back(chosen * slope[..., None])
        made = conv2d_weight(inputs, conv.weight.shape, tilted, *settings)
        return observed - made

    for _ in range(moves):
        missing = misses()
        noise = missing.square().mean((1, 2, 3)) + nothing
        seen = wins.of(F.conv2d(inputs, missing, None, *settings))
        here = places[..., None]
        index = here[..., None].expand(*here.shape, likely.shape[3])
        crossed = inner.expand(*likely.shape, -1).gather(3, index).squeeze(3)
        apart = size + size.expand_as(likely).gather(3, here) - 2 * crossed
        mended = 2 * slope[..., None] * (seen - seen.gather(3, here))
        mended = mended - slope[..., None].square() * apart
        votes = mended / (2 * noise.view(-1, 1, 1))
        gain = likely - likely.gather(3, here) + votes
        gain = torch.where(known[..., None] & wins.inside, gain, 0.0).movedim(1, 0).flatten(1)
        most, where = gain.max(1, keepdim=True)
        if not (most > LITTLE).any():
            break
        move = torch.zeros_like(gain, dtype=torch.bool).scatter(1, where, most > LITTLE)
        move = move.unflatten(1, (len(likely), *likely.shape[2:])).movedim(0, 1)
        places = torch.where(move.any(3), move.long().argmax(3), places)
    return places, votes, misses().norm() / observed.norm()


@torch.no_grad()
def squared_norm(conv: nn.Conv2d, like: torch.Tensor) -> torch.Tensor:
    """The largest squared singular value of a convolution without its bias, by power iteration."""
    draws = torch.Generator().manual_seed(0)
    vector = torch.randn(1, *like.shape[1:], generator=draws).to(like)
    size = vector.norm()
    for _ in range(20):
        vector = vector / size
        out = double(conv, vector) - double(conv, torch.zeros_like(vector))
        with torch.enable_grad():
            vector = pull_back(conv, out, vector)
        size = vector.norm()
    return size
