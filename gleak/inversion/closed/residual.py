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

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from gleak.inversion.closed.chain import BasicBlock
from gleak.inversion.closed.known import Place, Sent
from gleak.inversion.closed.patches import unmix
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

    def standardise(self, values: torch.Tensor) -> Standard:
        """Of values (K, C, H, W): by the running statistics, or their own in train mode."""
        mean, deviation = self.mean, self.deviation
        if self.training:
            mean = values.mean((0, 2, 3))[:, None, None]
            variance = values.var((0, 2, 3), unbiased=False)[:, None, None]
            deviation = (variance + self.eps).sqrt()
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

    def settled(self, before: Standard, after: Standard) -> bool:
        """Whether the rounds between slope and input are over: in eval mode there is only one."""
        if not self.training:
            return True
        change = (after.values - before.values).norm()
        return bool(change < scaled(1e-7, self.rounding) * after.values.norm())


class Block:
    """One residual block, its convolutions and norms with their gradients."""

    def __init__(self, block: BasicBlock, sent: Sent) -> None:
        self.conv1, self.conv2 = block.conv1, block.conv2
        self.gradient1, self.gradient2 = sent.of(block.conv1.weight), sent.of(block.conv2.weight)
        self.norm1, self.norm2 = Norm(block.norm1, sent), Norm(block.norm2, sent)
        self.short: tuple[nn.Conv2d, torch.Tensor, Norm] | None = None
        if block.short is not None and block.short_norm is not None:
            gradient = sent.of(block.short.weight)
            self.short = block.short, gradient, Norm(block.short_norm, sent)


def through_block(
    layer: BasicBlock, place: Place, shapes: tuple[tuple[int, ...], tuple[int, ...]], sent: Sent
) -> Place:
    """What is known in front of a block (values, slope and what went past), from behind it.

    place: behind the block, as `tell_output` left it; or behind it and in front of a pooling over
    all positions. shapes: of what enters the block and leaves it.

    Raises ArithmeticError where that cannot be told.
    """
    block = Block(layer, sent)
    above, after = place.slope, place.values
    if after is None:
        above = last_slope(block, shapes[1], place.slope, sent.rounding)
    inside, slope_inside, branch = inner_input(block, above)
    slope1 = pull_back(block.conv2, slope_inside, inside)
    active, scale = settle(inside, slope1, 0.0, block.norm1)
    inside, slope1 = inside / scale, slope1 * scale * active
    return block_input(block, slope1, inside, active, above, after, branch, shapes[0])


def tell_output(layer: BasicBlock, place: Place, sent: Sent) -> Place:
    """What a block tells of its own output: where its ReLU was active, and the scale.

    The slope of the place that is returned is the one in front of that ReLU.
    """
    if place.values is None:
        return place
    norm = Norm(layer.norm2, sent)
    active, scale = settle(place.values, place.slope, place.passed, norm)
    slope = (place.slope * scale + place.passed) * active
    return Place(slope, place.values / scale * active)


def last_slope(
    block: Block, shape: tuple[int, ...], even: torch.Tensor, rounding: float
) -> torch.Tensor:
    """The slope (K, M, H, W) in front of the last block's ReLU: `even` where it was active.

    even: the slope behind it, as the pooling spreads it over the positions.
    """
    size, positions = len(even), shape[1] * shape[2]
    centred = block.norm2.training
    inputs = unmix(block.conv2, block.gradient2, shape, size, centred, rounding)
    patches = taps(block.conv2, inputs).permute(0, 3, 2, 1).flatten(2)
    patches = patches.flatten(0, 1)  # (K x positions, C x taps)
    observed = block.gradient2.flatten(1)
    slope = torch.linalg.lstsq(patches.T, observed.T).solution
    slope = slope.view(size, positions, -1).transpose(1, 2).reshape(size, *shape)
    active = positive(inputs, rounding)
    behind = (pull_back(block.conv2, slope, inputs) * active).sum((2, 3))
    shares = torch.linalg.lstsq(behind.T, block.norm1.bias_gradient[:, None]).solution
    inputs, slope = inputs / shares[..., None, None], slope * shares[..., None, None]
    standard = block.norm2.standardise(double(block.conv2, inputs))
    absorbed = block.norm2.absorbed(standard.values)
    above = slope * standard.deviation / block.norm2.weight + absorbed
    # Which of the inputs is which image? The one whose slopes are zero or as the pooled ones tell.
    share = above[None] / even[:, None]  # (image, input, M, H, W)
    wrong = ((share - (share > 0.5).double()) * even[:, None]).square().sum((2, 3, 4))
    _, which = linear_sum_assignment(wrong.cpu())
    return even * (above[torch.from_numpy(which)] / even > 0.5)


def inner_input(
    block: Block, above: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What enters the second convolution, the slope at its output, and the norm's output."""
    norm, shape = block.norm2, (block.conv2.in_channels, *above.shape[2:])
    standard = norm.guess(torch.zeros_like(above))
    for _ in range(ROUNDS):
        slope = norm.slope(above, standard)
        inputs = solve_inputs([(block.conv2, slope, block.gradient2)], shape)
        before, standard = standard, norm.standardise(double(block.conv2, inputs))
        if norm.settled(before, standard):
            break
    return inputs, norm.slope(above, standard), norm.weight * standard.values + norm.bias


def block_input(
    block: Block,
    slope1: torch.Tensor,
    inside: torch.Tensor,
    active: torch.Tensor,
    above: torch.Tensor,
    after: torch.Tensor | None,
    branch: torch.Tensor,
    shape: tuple[int, ...],
) -> Place:
    """What enters the block, the slope that its convolutions send there, and what goes past them.

    inside, slope1: behind the first ReLU, active where it was; above: the slope in front of the
    last one; after: the block's output or None; branch: what the second norm gives.
    """
    norm = block.norm1
    known = norm.inverse(inside)
    filled = torch.where(active, known, known[active].mean() - 2 * known[active].std())
    standard = norm.guess(filled)
    if block.short:
        short_conv, short_gradient, short = block.short
        known_short, active_short = torch.zeros_like(above), torch.zeros_like(active[:, :1])
        if after is not None:
            known_short, active_short = short.inverse(after - branch), above != 0
        standard_short = short.guess(torch.where(active_short, known_short, 0.0))
    told: list[Told] = []
    if not norm.training:  # otherwise up to their mean and deviation
        told.append(Told(block.conv1, known * norm.deviation + norm.mean, active))
        if block.short and after is not None:
            outputs = known_short * short.deviation + short.mean
            told.append(Told(short_conv, outputs, active_short))
    for _ in range(ROUNDS):
        parts = [(block.conv1, norm.slope(slope1, standard), block.gradient1)]
        if block.short:
            parts.append((short_conv, short.slope(above, standard_short), short_gradient))
        inputs = solve_inputs(parts, shape, told, norm.rounding)
        fresh = norm.standardise(double(block.conv1, inputs))
        before, standard = standard, known_or(active, known, fresh)
        if block.short:
            fresh = short.standardise(double(short_conv, inputs))
            standard_short = known_or(active_short, known_short, fresh)
        if norm.settled(before, standard):
            break
    stride = block.conv1.stride[0]
    if norm.training and stride > 1:
        # A constant on the pixels that only the central tap sees moves every output alike, so
        # batch norm hides it. The input comes from a ReLU: in each channel its least value is 0.
        seen = inputs[..., ::stride, ::stride]
        inputs = inputs.clone()
        inputs[..., ::stride, ::stride] = seen - seen.amin((0, 2, 3), keepdim=True)
    slope = pull_back(block.conv1, norm.slope(slope1, standard), inputs)
    if not block.short:
        return Place(slope, inputs, passed=above)
    slope = slope + pull_back(short_conv, short.slope(above, standard_short), inputs)
    return Place(slope, inputs, passed=torch.zeros_like(slope))


def known_or(where: torch.Tensor, known: torch.Tensor, other: Standard) -> Standard:
    """Standardised values as they are known, and the others where they are not."""
    return Standard(torch.where(where, known, other.values), other.deviation)


def solve_inputs(
    parts: list[tuple[nn.Conv2d, torch.Tensor, torch.Tensor]],
    shape: tuple[int, ...],
    told: list[Told] | None = None,
    rounding: float = FLOAT32,
) -> torch.Tensor:
    """The input (K, C, H, W) that layers share: (layer, slope at its output, weight gradient) each.

    told: outputs that are known, for what the gradients leave open.

    Raises ArithmeticError where the equations are fewer than the unknowns.
    """
    equations = [input_equations(conv, slope, shape) for conv, slope, _ in parts]
    targets = [by_tap(observed).flatten(0, 1) for _, _, observed in parts]
    refuse_too_few(equations, sum(one.count for one in equations), shape[0], told or [])
    square = total(one.square() for one in equations)
    factor = well_conditioned(square)
    if factor is not None:
        return equations[0].as_inputs(refined(equations, targets, factor))
    if told:
        refuse_too_few(equations, rank_of(square), shape[0], told)
        found = jointly(equations, targets, told, square, rounding=rounding)
        return equations[0].as_inputs(found)
    factor = factor_of(square)  # what stays open in train mode, batch norm hides: see `block_input`
    if factor is None:
        raise ArithmeticError("its weight gradients leave its input open")
    sides = total(one.back(target) for one, target in zip(equations, targets, strict=True))
    return equations[0].as_inputs(torch.cholesky_solve(sides, factor))


def positive(values: torch.Tensor, rounding: float) -> torch.Tensor:
    """Where values behind a ReLU are positive; negative ones show how large the noise is."""
    noise = -values.flatten(1).amin(1).clamp_max(0)
    least = scaled(1e-6, rounding) * values.flatten(1).amax(1)
    return values > torch.maximum(2 * noise, least).view(-1, 1, 1, 1)


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
            total = (slope * active).sum((0, 2, 3))
            scale = (total @ missing) / (total @ total)
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
