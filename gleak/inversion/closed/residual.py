"""Peeling residual networks with batch norm, in eval and in train mode, block by block.

Global average pooling hides where in the image a feature was. Three facts bring that back.

The last convolution. Its weight gradient alone gives its input, as patches of one image overlap:
see `patches`.

The mask. The slope at the block's output is known but for the ReLU's mask: pooling spreads it
evenly. The gradient is linear in the slope at the convolution's output, given its input, and least
squares gives that slope, which has the mask.

The layers before. With the slope at a convolution's output known, its weight gradient is linear in
its input. In train mode, batch norm subtracts from the slope what only the forward pass knows; but
the means that it subtracts are the gradients of its own bias and weight, and the rest follows by
going back and forth a few times. Batch norm hides the scale of what enters it; the bias gradient of
the batch norm before gives that, too.

Where a layer has fewer weights than the batch has values, it ends.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from gleak.inversion.closed.chain import NormBehind, NormedConv, ResidualBlock
from gleak.inversion.closed.known import Place, Sent
from gleak.inversion.closed.patches import unmix
from gleak.inversion.closed.positions import MOST, arranged, zeros_and_ones
from gleak.inversion.closed.relu import SURE
from gleak.inversion.closed.solve import (
    Told,
    by_tap,
    double,
    factor_of,
    input_equations,
    jointly,
    pull_back,
    rank_of,
    refined,
    refuse_too_few,
    taps,
    total,
    well_conditioned,
)
from gleak.labels.tolerance import FLOAT32, scaled

ROUNDS = 40  # between the slope and the input of a batch norm; each gains about a digit
SMALL = 1e-5  # change in a round, below which one that is not half the last is rounding
SOME = 1 / 8  # of the values behind a ReLU: fewer zeros than that may be none
CLEAR = (40, 300)  # times the spread of most zeros; images with faint slopes have a wider one
APART = 10  # times the least change of a round, beyond which the next ones lead away
AGREES = 2e-3  # relative error of the features below which a block's input is right


@dataclass(frozen=True, eq=False)
class Standard:
    """Values (K, C, H, W) less their mean, over their deviation (C, 1, 1)."""

    values: torch.Tensor
    deviation: torch.Tensor


class Norm:
    """A batch norm layer as the client ran it, with its own gradients, in float64."""

    def __init__(self, layer: nn.BatchNorm2d, sent: Sent) -> None:
        self.training = layer.training
        self.eps = layer.eps
        self.rounding = sent.rounding
        self.weight = layer.weight.detach().double()[:, None, None]
        self.bias = layer.bias.detach().double()[:, None, None]
        assert layer.running_mean is not None and layer.running_var is not None
        self.mean = layer.running_mean.double()[:, None, None]
        self.deviation = (layer.running_var.double()[:, None, None] + self.eps).sqrt()
        self.weight_gradient, self.bias_gradient = sent.of(layer.weight), sent.of(layer.bias)

    def standardise(self, values: torch.Tensor, scale: torch.Tensor | float = 1.0) -> Standard:
        """Of values (K, C, H, W): by the running statistics, or their own in train mode.

        scale: by how much the values are too large, which the norm's epsilon would tell.
        """
        mean, deviation = self.mean, self.deviation
        if self.training:
            mean = values.mean((0, 2, 3))[:, None, None]
            variance = values.var((0, 2, 3), unbiased=False)[:, None, None]
            deviation = (variance + self.eps * scale**2).sqrt()
        return Standard((values - mean) / deviation, deviation)

    def guess(self, values: torch.Tensor) -> Standard:
        """Standardised values to begin with, before anything tells their deviation."""
        return Standard(values, torch.ones_like(self.weight) if self.training else self.deviation)

    def inverse(self, output: torch.Tensor) -> torch.Tensor:
        """The standardised values behind an output."""
        return (output - self.bias) / self.weight

    def absorbed(self, standard: torch.Tensor) -> torch.Tensor:
        """What a layer in train mode takes away from the slope at its output."""
        if not self.training:
            return torch.zeros_like(standard)
        gradients = (self.bias_gradient, self.weight_gradient)
        bias, weight = (gradient[:, None, None] for gradient in gradients)
        return (bias + weight * standard) / standard[:, 0].numel()

    def slope(self, above: torch.Tensor, standard: Standard) -> torch.Tensor:
        """The slope at the layer's input from the one at its output."""
        return (above - self.absorbed(standard.values)) * self.weight / standard.deviation

    def again(self) -> int:
        """How often an input is found again once its scale is known; each gains four digits."""
        if not self.training:
            return 0
        return 2 if self.rounding < FLOAT32 else 1

    def change(self, before: Standard, after: Standard) -> float:
        """Of standardised values in a round, relative; none in eval mode."""
        if not self.training:
            return 0.0
        return ((after.values - before.values).norm() / after.values.norm()).item()


class Rounds:
    """Whether rounds between slope and input go on: while they bring the two nearer."""

    def __init__(self, rounding: float) -> None:
        self.enough, self.last = scaled(1e-7, rounding), math.inf

    def over(self, change: float) -> bool:
        """Whether a round that changed this much, relative, was the last."""
        slow = change < SMALL and change > 0.5 * self.last
        self.last = change
        return change < self.enough or slow


class Part:
    """A convolution and the batch norm behind it, with their gradients.

    entering: shape of one input.
    """

    def __init__(
        self, conv: nn.Conv2d, norm: nn.BatchNorm2d, sent: Sent, entering: tuple[int, ...]
    ) -> None:
        self.conv, self.gradient, self.norm = conv, sent.of(conv.weight), Norm(norm, sent)
        self.entering = entering


class Behind(NamedTuple):
    """What is known behind a part: the slope there (K, M, H, W), and standardised values.

    known: (K, M, H, W), where `active`; None for nothing.
    """

    part: Part
    above: torch.Tensor
    known: torch.Tensor | None = None
    active: torch.Tensor | None = None


class Block:
    """One residual block: the parts of its branch, and of its shortcut, if it has any."""

    def __init__(self, block: ResidualBlock, sent: Sent, shape: tuple[int, ...]) -> None:
        self.parts, entering = [], shape
        for conv, norm in block.branch:
            self.parts.append(Part(conv, norm, sent, entering))
            with torch.no_grad():
                entering = tuple(conv(conv.weight.new_zeros(1, *entering)).shape[1:])
        self.short: Part | None = None
        if block.short:
            self.short = Part(*block.short, sent, shape)


def through_block(
    layer: ResidualBlock, place: Place, shapes: tuple[tuple[int, ...], tuple[int, ...]], sent: Sent
) -> Place:
    """What is known in front of a block (values, slope and what went past), from behind it.

    place: behind the block, as `tell_output` left it; or behind it and in front of a pooling over
    all positions. shapes: of what enters the block and leaves it.

    Raises ArithmeticError where that cannot be told.
    """
    block = Block(layer, sent, shapes[0])
    above, after = place.slope, place.values
    if after is None:
        tell = last_slope if block.parts[-1].conv.kernel_size != (1, 1) else last_slope_by_columns
        above = tell(block, shapes[1], place.slope, sent.rounding)
    behind, branch = Behind(block.parts[-1], above), None
    for before in block.parts[-2::-1]:
        norm = behind.part.norm
        inputs, standards = normed_input([behind])
        slope = slope_before([behind], standards, inputs)
        active, scale = settle(inputs, slope, 0.0, before.norm)
        for _ in range(norm.again()):
            inputs, standards = normed_input([behind], scale, standards)
            slope = slope_before([behind], standards, inputs)
            active, scale = settle(inputs, slope, 0.0, before.norm)
        if branch is None:
            branch = norm.weight * standards[0].values + norm.bias
        known = before.norm.inverse(inputs / scale)
        behind = Behind(before, slope * scale * active, known, active)
    parts = [behind]
    if block.short and after is not None and branch is not None:
        known = block.short.norm.inverse(after - branch)
        parts.append(Behind(block.short, above, known, above != 0))
    elif block.short:
        parts.append(Behind(block.short, above))
    given: Told | None = None
    if not block.short and after is not None and branch is not None:
        given = Told(identity(after), after - branch, above != 0)
    return in_front_of(parts, 0.0 if block.short else above, given)


def identity(values: torch.Tensor) -> nn.Conv2d:
    """The convolution with values (K, C, H, W) as input and output."""
    channels = values.shape[1]
    layer = nn.utils.skip_init(
        nn.Conv2d, channels, channels, 1, bias=False, device=values.device, dtype=values.dtype
    )
    nn.init.dirac_(layer.weight)
    return layer


def in_front_of(
    parts: Sequence[Behind],
    passed: torch.Tensor | float = 0.0,
    given: Told | None = None,
    scale: torch.Tensor | float = 1.0,
    standards: Sequence[Standard] | None = None,
) -> Place:
    """What is known in front of parts, from what is known behind them.

    passed: as of the place. given, scale, standards: as of `normed_input`.
    """
    inputs, standards = normed_input(parts, scale, standards, given)
    slope = slope_before(parts, standards, inputs)
    if not parts[0].part.norm.training:
        return Place(slope, inputs, passed=passed)
    again = functools.partial(in_front_of, parts, passed, given, standards=standards)
    return Place(slope, inputs, passed=passed, again=lambda scale: again(scale=scale))


def slope_before(
    parts: Sequence[Behind], standards: Sequence[Standard], inputs: torch.Tensor
) -> torch.Tensor:
    """The slope that parts send to their common input (K, C, H, W)."""
    slope = torch.zeros_like(inputs)
    for (part, above, *_), standard in zip(parts, standards, strict=True):
        slope = slope + pull_back(part.conv, part.norm.slope(above, standard), inputs)
    return slope


def through_normed(
    layer: NormedConv, place: Place, shapes: tuple[tuple[int, ...], tuple[int, ...]], sent: Sent
) -> Place:
    """What is known in front of a convolution with batch norm in train mode and ReLU behind it.

    place: behind the ReLU, as `tell_output` left it. shapes: as of `through_block`.

    Raises ArithmeticError where that cannot be told.
    """
    if place.values is None:
        raise ArithmeticError("its output is hidden behind a pooling")
    part, active = Part(layer.conv, layer.norm, sent, shapes[0]), place.values > 0
    known = part.norm.inverse(place.values)
    return in_front_of([Behind(part, place.whole_slope, known, active)])


def through_norm_behind(
    layer: NormBehind, place: Place, shapes: tuple[tuple[int, ...], tuple[int, ...]], sent: Sent
) -> Place:
    """What is known in front of a convolution with ReLU and batch norm in train mode behind it.

    What the ReLU made zero shows as the least output of each channel: that tells the mean in units
    of the deviation. The convolution's bias gradient is the sum of the slopes at its output, which
    have the inverse of the deviation for a factor: that tells the deviation. Channels without zeros
    tell neither; the input that the others give makes up for them.

    place: behind the norm. shapes: as of `through_block`.

    Raises ArithmeticError where that cannot be told.
    """
    if place.values is None:
        raise ArithmeticError("its output is hidden behind a pooling")
    if place.known is not None:
        raise ArithmeticError("its output is not known at all places")
    if layer.conv.bias is None:
        raise ArithmeticError("without a bias before it nothing tells the deviation that it took")
    part = Part(layer.conv, layer.norm, sent, shapes[0])
    standard = part.norm.inverse(place.values)
    slope = (place.whole_slope - part.norm.absorbed(standard)) * part.norm.weight
    least = math.inf
    for clear in CLEAR:
        zero = zeros_of(standard, place.deviation, part.norm, clear)
        change, *found = in_front_of_zeros(part, standard, slope, zero, sent.of(layer.conv.bias))
        if change < least:
            least, best = change, found
        if least < AGREES:
            break
    return Place(pull_back(layer.conv, *best), best[1])


def in_front_of_zeros(
    part: Part,
    standard: torch.Tensor,
    slope: torch.Tensor,
    zero: torch.Tensor,
    bias_gradient: torch.Tensor,
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """What is known in front of a convolution, the zeros that the ReLU behind it left given.

    standard: (K, M, H, W) behind the ReLU, standardised. slope: there, times the deviation.
    bias_gradient: (M,) of the convolution.

    Returns the change of the standardised values in the best round, relative: small where the zeros
    are right; the slope at the convolution's output, and its input.
    """
    norm = part.norm
    told = zero.sum((0, 2, 3)) >= max(SOME * zero[:, 0].numel(), 2)  # the least one always is
    deviation = (slope * ~zero).sum((0, 2, 3)) / bias_gradient
    told &= deviation.isfinite() & (deviation > 0)
    deviation = deviation.where(told, 1.0)[:, None, None]
    active = ~zero & told[:, None, None]
    observed = part.gradient * told[:, None, None, None]
    before, rounds, least = Standard(standard, deviation), Rounds(norm.rounding), math.inf
    for _ in range(ROUNDS):
        inner = slope * active / deviation
        inputs = solve_inputs([(part.conv, inner, observed)], part.entering)
        outputs = double(part.conv, inputs)
        after = norm.standardise(outputs.relu())
        deviation, observed = after.deviation, part.gradient
        active = torch.where(told[:, None, None], ~zero, outputs > 0)
        change = norm.change(before, after)
        if change < least:
            least, best = change, (slope * active / deviation, inputs)
        if rounds.over(change) or change > APART * least:  # rounding may drive the two apart again
            break
        before = after
    return least, *best


def zeros_of(
    standard: torch.Tensor, error: torch.Tensor | None, norm: Norm, clear: float
) -> torch.Tensor:
    """Where values (K, C, H, W) behind a ReLU and a norm were zero.

    standard: the values, standardised. error: of the norm's outputs, if that is known. Many
    channels have some zeros, and their spread shows the noise. clear: times that, beyond which a
    value is none.
    """
    ordered = standard.transpose(0, 1).flatten(1).sort(dim=1).values
    inner = ordered[:, max(int(SOME * ordered.shape[1]), 1)]
    noise = (inner - ordered[:, 0]).quantile(0.25)
    least = torch.minimum(inner, ordered[:, 0] + noise)[:, None, None]
    bar = (clear * noise).maximum(scaled(1e-5, norm.rounding) * (standard - least).amax())
    if error is not None:
        bar = bar.maximum(SURE * (error / norm.weight).abs())
    return standard - least <= bar


def tell_output(layer: ResidualBlock | NormedConv, place: Place, sent: Sent) -> Place:
    """What a block tells of its own output: where its ReLU was active, and the scale.

    The slope of the place that is returned is the one in front of that ReLU.
    """
    if place.values is None or place.values.ndim != 4:
        return place
    norm = Norm(layer.branch[-1][1] if isinstance(layer, ResidualBlock) else layer.norm, sent)
    active, scale = settle(place.values, place.slope, place.passed, norm)
    for _ in range(norm.again() if place.again else 0):
        assert place.again is not None
        place = place.again(scale)
        assert place.values is not None
        active, scale = settle(place.values, place.slope, place.passed, norm)
    assert place.values is not None
    slope = (place.slope * scale + place.passed) * active
    return Place(slope, place.values / scale * active)


def last_slope(
    block: Block, shape: tuple[int, ...], even: torch.Tensor, rounding: float
) -> torch.Tensor:
    """The slope (K, M, H, W) in front of the last block's ReLU: `even` where it was active.

    even: the slope behind it, as the pooling spreads it over the positions.
    """
    before, last = block.parts[-2:]
    size, positions = len(even), shape[1] * shape[2]
    inputs = unmix(last.conv, last.gradient, shape, size, last.norm.training, rounding)
    patches = taps(last.conv, inputs).permute(0, 3, 2, 1).flatten(2)
    patches = patches.flatten(0, 1)  # (K x positions, C x taps)
    observed = last.gradient.flatten(1)
    slope = torch.linalg.lstsq(patches.T, observed.T).solution
    slope = slope.view(size, positions, -1).transpose(1, 2).reshape(size, *shape)
    active = positive(inputs, rounding)
    behind = (pull_back(last.conv, slope, inputs) * active).sum((2, 3))
    shares = torch.linalg.lstsq(behind.T, before.norm.bias_gradient[:, None]).solution
    inputs, slope = inputs / shares[..., None, None], slope * shares[..., None, None]
    standard = last.norm.standardise(double(last.conv, inputs))
    absorbed = last.norm.absorbed(standard.values)
    above = slope * standard.deviation / last.norm.weight + absorbed
    # Which of the inputs is which image? The one whose slopes are zero or as the pooled ones tell.
    share = above[None] / even[:, None]  # (image, input, M, H, W)
    wrong = ((share - (share > 0.5).double()) * even[:, None]).square().sum((2, 3, 4))
    _, which = linear_sum_assignment(wrong.cpu())
    return even * (above[torch.from_numpy(which)] / even > 0.5)


def last_slope_by_columns(
    block: Block, shape: tuple[int, ...], even: torch.Tensor, rounding: float
) -> torch.Tensor:
    """`last_slope` where the last convolution has one tap, so that its patches do not overlap.

    Its weight gradient is S^T A, with one row for each image and position. At each position S has
    the image's pooled slope where the ReLU was active and zero elsewhere: that tells the rows from
    their mixtures, and their images. The convolution before has more taps, and tells which position
    is beside which: with the slopes U at its output its gradient at each tap is U^T X, where X are
    the inputs as far to the side as the tap is.

    Raises ArithmeticError where that cannot be told.
    """
    middle, last = block.parts[-2:]
    size, height, width = len(even), *shape[1:]
    rank = size * height * width
    gradient, conv = last.gradient.flatten(1), middle.conv
    if last.norm.training:
        raise ArithmeticError("batch norm in train mode mixes the slopes of all positions")
    if rank > MOST:
        raise ArithmeticError(f"{rank} independent positions are too many to tell apart")
    if (conv.kernel_size, conv.padding, conv.dilation) != ((3, 3), (1, 1), (1, 1)):
        raise ArithmeticError("its convolutions do not tell which position is beside which")
    left = torch.linalg.svd(gradient, full_matrices=False).U[:, :rank]
    whole = even[:, :, 0, 0] * (last.norm.weight / last.norm.deviation)[:, 0, 0]  # (K, M)
    active = torch.cat([zeros_and_ones(left, one, height * width) for one in whole])
    image = torch.arange(size).repeat_interleave(height * width)
    rows = whole[image] * active
    inputs = torch.linalg.lstsq(rows.T, gradient).solution  # (rank, C)
    weight = last.conv.weight.detach().double().flatten(1)
    slope = rows @ weight * positive(inputs[..., None, None], rounding)[..., 0, 0]
    slope = slope * (middle.norm.weight / middle.norm.deviation).flatten()
    seen = [torch.linalg.lstsq(slope.T, tap).solution for tap in by_tap(middle.gradient).unbind(1)]
    above = torch.zeros(size, *shape).to(even)
    for at in arranged(seen, height, width):
        k = image[at[0]]
        above[k] = even[k] * active[at].T.reshape(shape)
    return above


def normed_input(
    parts: Sequence[Behind],
    scale: torch.Tensor | float = 1.0,
    standards: Sequence[Standard] | None = None,
    given: Told | None = None,
) -> tuple[torch.Tensor, list[Standard]]:
    """The input (K, C, H, W) that parts share, and what their norms standardise.

    scale: by how much the input will be too large. standards: to begin with. given: of the input.

    Raises ArithmeticError where the equations are fewer than the unknowns.
    """
    standards = list(standards or ()) or [
        behind.part.norm.guess(filled(behind)) for behind in parts
    ]
    first, rounds = parts[0].part, Rounds(parts[0].part.norm.rounding)
    told = told_of(parts, given)
    for _ in range(ROUNDS):
        inputs = solve_inputs(
            [
                (part.conv, part.norm.slope(above, standard), part.gradient)
                for (part, above, *_), standard in zip(parts, standards, strict=True)
            ],
            first.entering,
            told,
            first.norm.rounding,
        )
        before = standards[0]
        standards = [
            known_or(behind, behind.part.norm.standardise(double(behind.part.conv, inputs), scale))
            for behind in parts
        ]
        if rounds.over(first.norm.change(before, standards[0])):
            break
    stride = first.conv.stride[0]
    if first.norm.training and (stride > 1 or first.conv.kernel_size == (1, 1)):
        # A constant on the pixels that only the central tap sees moves every output alike, so
        # batch norm hides it. The input comes from a ReLU: in each channel its least value is 0.
        seen = inputs[..., ::stride, ::stride]
        inputs = inputs.clone()
        inputs[..., ::stride, ::stride] = seen - seen.amin((0, 2, 3), keepdim=True)
    return inputs, standards


def told_of(parts: Sequence[Behind], given: Told | None) -> list[Told]:
    """What is known of the outputs of parts, and `given` of their input.

    Nothing in train mode, where outputs are known up to their mean and deviation only.
    """
    if parts[0].part.norm.training:
        return []
    told = [
        Told(part.conv, known * part.norm.deviation + part.norm.mean, active)
        for part, _, known, active in parts
        if known is not None and active is not None
    ]
    return [*told, given] if given else told


def filled(behind: Behind) -> torch.Tensor:
    """Standardised values to begin with: those known, and low ones where the ReLU was inactive."""
    known, active = behind.known, behind.active
    if known is None or active is None:
        return torch.zeros_like(behind.above)
    return torch.where(active, known, known[active].mean() - 2 * known[active].std())


def known_or(behind: Behind, other: Standard) -> Standard:
    """Standardised values as they are known, and the others where they are not."""
    if behind.known is None or behind.active is None:
        return other
    return Standard(torch.where(behind.active, behind.known, other.values), other.deviation)


def solve_inputs(
    parts: list[tuple[nn.Conv2d, torch.Tensor, torch.Tensor]],
    shape: tuple[int, ...],
    told: Sequence[Told] = (),
    rounding: float = FLOAT32,
) -> torch.Tensor:
    """The input (K, C, H, W) that layers share: (layer, slope at its output, weight gradient) each.

    told: outputs that are known, for what the gradients leave open. The unknowns of each image are
    weighed by its slopes.

    Raises ArithmeticError where the equations are fewer than the unknowns.
    """
    equations = [input_equations(conv, slope, shape) for conv, slope, _ in parts]
    targets = [by_tap(observed).flatten(0, 1) for _, _, observed in parts]
    first = equations[0]
    refuse_too_few(equations, sum(one.count for one in equations), shape[0], told)
    square = total(one.square() for one in equations)
    size = square.diagonal().view(-1, first.pixels).mean(1).sqrt()
    size = size.clamp_min(torch.finfo(size.dtype).tiny).repeat_interleave(first.pixels)[:, None]
    square = square / size / size.T
    factor = well_conditioned(square)
    if factor is None and told:
        refuse_too_few(equations, rank_of(square), shape[0], told)
        return first.as_inputs(jointly(equations, targets, told, square, size, rounding))
    if factor is None:  # what stays open in train mode, batch norm hides: see `normed_input`
        factor = factor_of(square)
    if factor is None:
        raise ArithmeticError("its weight gradients leave its input open")
    return first.as_inputs(refined(equations, targets, factor, size))


def positive(values: torch.Tensor, rounding: float) -> torch.Tensor:
    """Where values behind a ReLU are positive; negative ones show how large the noise is."""
    noise = -values.flatten(1).amin(1).clamp_max(0)
    least = scaled(1e-6, rounding) * values.flatten(1).amax(1)
    return values > torch.maximum(2 * noise, least).view(-1, 1, 1, 1)


def common_factor(values: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The factor by which values (C,) make the target (C,), in most channels."""
    weight = values.abs()
    ratio, order = (target / values.where(values != 0, 1.0)).sort()
    shares = weight[order].cumsum(0)
    middle = ratio[int((shares < shares[-1] / 2).sum())]  # the weighted median
    left = (target - middle * values).abs()
    agree = left <= 3 * left.median()  # a wrong mask spoils its channel
    return (values * target * agree).sum() / (values.square() * agree).sum()


def settle(
    values: torch.Tensor, slope: torch.Tensor, fixed: torch.Tensor | float, norm: Norm
) -> tuple[torch.Tensor, torch.Tensor | float]:
    """Where a ReLU behind `norm` was active, and by how much `values` are too large.

    values: at the ReLU's output, up to noise and, in train mode, a factor: batch norm hides the
    scale of what enters it. The slope there goes with the inverse of that factor, but for a `fixed`
    part. Summed up where the ReLU was active, it is the bias gradient of the norm: that gives the
    factor, and it corrects the mask where values are so small that noise decided.
    """
    active = positive(values, norm.rounding)
    scale: torch.Tensor | float = 1.0
    small = scaled(1e-5, norm.rounding)  # of the largest value: what rounding may have moved
    noise = -values.amin((1, 2, 3), keepdim=True).clamp_max(0)
    unsure = values.abs() < torch.maximum(20 * noise, small * values.amax((1, 2, 3), keepdim=True))
    slope, fixed = torch.broadcast_tensors(slope, torch.as_tensor(fixed).to(slope))
    for _ in range(8):
        missing = norm.bias_gradient - (fixed * active).sum((0, 2, 3))
        if norm.training:
            scale = common_factor((slope * active).sum((0, 2, 3)), missing)
        whole = scale * slope + fixed
        missing = norm.bias_gradient - (whole * active).sum((0, 2, 3))
        flips = torch.where(active, -whole, whole)
        left = (missing[:, None, None] - flips).abs().masked_fill(~unsure, torch.inf)
        left, which = left.transpose(0, 1).flatten(1).min(1)  # the best flip in each channel
        better = left < 0.3 * missing.abs()
        better &= missing.abs() > small * (whole * active).abs().sum((0, 2, 3))
        if not better.any():
            break
        flat = active.transpose(0, 1).flatten(1)
        flat[better, which[better]] ^= True
        active = flat.view(active.transpose(0, 1).shape).transpose(0, 1)
    return active, scale
