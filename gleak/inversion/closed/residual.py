"""Peeling residual networks with batch norm, in eval and in train mode, block by block.

Global average pooling hides where in the image a feature was. Three facts bring that back.

The last convolution. Its weight gradient is S^T A, with the slopes S at its output and the patches
A of its input, one row for each image and position. The rows of A span the row space of the
gradient. Being patches of one image, with zeros around it, they overlap: inputs whose patches all
lie in that space form a space of dimension K, the mixtures of the K images. Behind ReLU half of an
input is zero, which tells the images from their mixtures (as in SPEAR, Dimitrov et al. 2024).

The mask. The slope at the block's output is known but for the ReLU's mask: pooling spreads it
evenly. With A known, least squares gives S, and S gives the mask.

The layers before. With the slope at a convolution's output known, its weight gradient is linear in
its input. In train mode, batch norm subtracts from the slope what only the forward pass knows; but
the means that it subtracts are the gradients of its own bias and weight, and the rest follows by
going back and forth a few times. Batch norm hides the scale of what enters it; the bias gradient of
the batch norm before gives that, too.

Where a layer has fewer weights than the batch has values, it ends.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torchvision.models.resnet import BasicBlock

from gleak.inversion.closed.solve import (
    by_tap,
    double,
    input_equations,
    pull_back,
    separate,
    solve_least_squares,
    taken_pixels,
    taps,
)

ROUNDS = 40  # between the slope and the input of a batch norm; each gains about a digit
LARGEST = 8000  # unknowns of the eigenvalue problem in `unmix`: beyond, it takes minutes
SETTLED = 1e-7  # relative change of the standardised values at which they end


class Norm:
    """A batch norm layer as the client ran it; `sent` holds its own gradients, in float64."""

    def __init__(self, layer: nn.BatchNorm2d, name: str, sent: dict):
        self.training = layer.training
        self.eps = layer.eps
        self.weight = layer.weight.detach().double()[:, None, None]
        self.bias = layer.bias.detach().double()[:, None, None]
        self.mean = layer.running_mean.double()[:, None, None]
        self.deviation = (layer.running_var.double()[:, None, None] + self.eps).sqrt()
        self.weight_gradient, self.bias_gradient = sent[f"{name}.weight"], sent[f"{name}.bias"]

    def standardise(self, values: torch.Tensor) -> torch.Tensor:
        """Values (K, C, H, W) less their mean, over their deviation, which is remembered."""
        if self.training:
            self.mean = values.mean((0, 2, 3))[:, None, None]
            variance = values.var((0, 2, 3), unbiased=False)[:, None, None]
            self.deviation = (variance + self.eps).sqrt()
        return (values - self.mean) / self.deviation

    def output(self, values: torch.Tensor) -> torch.Tensor:
        return self.weight * self.standardise(values) + self.bias

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

    def slope(self, above: torch.Tensor, standard: torch.Tensor) -> torch.Tensor:
        """The slope at the layer's input from the one at its output."""
        return (above - self.absorbed(standard)) * self.weight / self.deviation


class Block:
    """One residual block, its convolutions and norms with their gradients."""

    def __init__(self, block: BasicBlock, name: str, sent: dict):
        self.conv1, self.conv2 = block.conv1, block.conv2
        self.gradient1, self.gradient2 = sent[f"{name}.conv1.weight"], sent[f"{name}.conv2.weight"]
        self.norm1 = Norm(block.bn1, f"{name}.bn1", sent)
        self.norm2 = Norm(block.bn2, f"{name}.bn2", sent)
        self.short = None
        if block.downsample is not None:
            self.short, norm = block.downsample
            self.short_gradient = sent[f"{name}.downsample.0.weight"]
            self.short_norm = Norm(norm, f"{name}.downsample.1", sent)


def peel_blocks(layers, names, shapes, sent, pooled_slope):
    """Yield the inputs (K, C, H, W) of the residual blocks in `layers`, the last one first.

    names: of the blocks; shapes: of what enters each block, and what leaves the last; pooled_slope
    (K, M): of the loss by the pooled features. Ends where least squares has too few equations.

    Raises ArithmeticError where it cannot even begin.
    """
    blocks = [Block(layer, name, sent) for layer, name in zip(layers, names, strict=True)]
    above = last_slope(blocks[-1], shapes[-1], pooled_slope)
    after = None  # the output of the block, where it is known
    for index in range(len(blocks) - 1, -1, -1):
        block = blocks[index]
        inner = inner_input(block, above)
        if inner is None:
            return
        inside, slope_inside, branch = inner
        slope1 = pull_back(block.conv2, slope_inside, inside)
        active, scale = settle(inside, slope1, 0.0, block.norm1)
        inside, slope1 = inside / scale, slope1 * scale * active
        found = block_input(block, slope1, inside, active, above, after, branch, shapes[index])
        if found is None:
            return
        entered, slope, passed = found
        if index:
            active, scale = settle(entered, slope, passed, blocks[index - 1].norm2)
            entered, slope = entered / scale, slope * scale
        yield entered * active if index else entered
        after, above = entered * active, (slope + passed) * active


def last_slope(block: Block, shape, pooled_slope: torch.Tensor) -> torch.Tensor:
    """The slope (K, M, H, W) behind the last block's ReLU: the pooled one where it was active."""
    size, positions = len(pooled_slope), shape[1] * shape[2]
    inputs = unmix(block.conv2, block.gradient2, shape, size, centred=block.norm2.training)
    patches = taps(block.conv2, inputs).permute(0, 3, 2, 1).flatten(2)
    patches = patches.flatten(0, 1)  # (K x positions, C x taps)
    observed = block.gradient2.flatten(1)
    slope = torch.linalg.lstsq(patches.T, observed.T).solution
    slope = slope.view(size, positions, -1).transpose(1, 2).reshape(size, *shape)
    active = positive(inputs)
    behind = (pull_back(block.conv2, slope, inputs) * active).sum((2, 3))
    shares = torch.linalg.lstsq(behind.T, block.norm1.bias_gradient[:, None]).solution
    inputs, slope = inputs / shares[..., None, None], slope * shares[..., None, None]
    standard = block.norm2.standardise(double(block.conv2, inputs))
    above = slope * block.norm2.deviation / block.norm2.weight + block.norm2.absorbed(standard)
    # Which of the inputs is which image? The one whose slopes are zero or as the pooled ones tell.
    even = pooled_slope[:, :, None, None] / positions
    share = above[None] / even[:, None]  # (image, input, M, H, W)
    wrong = ((share - (share > 0.5).double()) * even[:, None]).square().sum((2, 3, 4))
    _, which = linear_sum_assignment(wrong.cpu())
    return even * (above[torch.from_numpy(which)] / even > 0.5)


def unmix(layer, observed, shape, size: int, centred: bool) -> torch.Tensor:
    """Inputs (K, C, H, W) of a convolution behind ReLU from its weight gradient alone.

    Each comes up to a factor, in no order. centred: batch norm in train mode makes the slopes sum
    to zero over the batch, so that the gradient knows patches only up to one common patch.
    """
    channels, height, width = shape
    taken = taken_pixels(layer, shape).to(observed)  # (H x W, taps, positions)
    area, positions = taken.shape[1:]
    rank = size * positions - centred
    if rank > len(observed) or rank * positions > LARGEST:
        raise ArithmeticError(f"{rank} independent patches are too many to tell apart")
    right = torch.linalg.svd(observed.flatten(1), full_matrices=False).Vh[:rank]
    right = right.view(rank, channels, area)
    # patches that fit together, one channel: the range of `fitting`
    fitting = taken.permute(2, 1, 0).reshape(positions * area, -1)
    moves = torch.eye(positions).to(observed)
    if centred:
        fitting = torch.cat([fitting, torch.eye(area).to(fitting).repeat(positions, 1)], dim=1)
        moves = torch.linalg.qr(torch.cat([torch.ones_like(moves[:, :1]), moves[:, 1:]], 1)).Q
        moves = moves[:, 1:]  # what all positions have in common is the common patch's
    inverse = torch.linalg.pinv(fitting)
    misfit = torch.eye(len(fitting)).to(fitting) - fitting @ inverse
    misfit = misfit.view(positions, area, positions, area)
    misfit = torch.einsum("pi,ptqu,qj->itju", moves, misfit, moves)
    products = torch.einsum("rct,scu->turs", right, right)
    form = torch.einsum("turs,itju->irjs", products, misfit).flatten(2).flatten(0, 1)
    mixtures = torch.linalg.eigh(form).eigenvectors[:, :size].T  # those without any misfit
    mixtures = mixtures.view(size, -1, rank)
    patches = torch.einsum("pi,kir,rct->kcpt", moves, mixtures, right)
    pixels = patches.flatten(2) @ inverse.T[:, : height * width]
    pixels = pixels.flatten(1)  # (K, C x H x W)
    alone = separate(pixels.T, size) @ pixels
    alone = alone * alone.sum(1, keepdim=True).sign()
    return (alone / alone.norm(dim=1, keepdim=True)).view(size, *shape)


def inner_input(block: Block, above):
    """What enters the second convolution, the slope at its output, and the norm's output."""
    norm, shape = block.norm2, (block.conv2.in_channels, *above.shape[2:])
    standard = torch.zeros_like(above)
    if norm.training:
        norm.deviation = torch.ones_like(norm.weight)
    for _ in range(ROUNDS):
        slope = norm.slope(above, standard)
        inputs = solve_inputs([(block.conv2, slope, block.gradient2)], shape)
        if inputs is None:
            return None
        before, standard = standard, norm.standardise(double(block.conv2, inputs))
        if settled(norm, before, standard):
            break
    return inputs, norm.slope(above, standard), norm.weight * standard + norm.bias


def block_input(block: Block, slope1, inside, active, above, after, branch, shape):
    """What enters the block, the slope that its convolutions send there, and what goes past them.

    inside, slope1: behind the first ReLU, active where it was; after: the block's output or None.
    """
    norm = block.norm1
    known = norm.inverse(inside)
    standard = torch.where(active, known, known[active].mean() - 2 * known[active].std())
    if norm.training:
        norm.deviation = torch.ones_like(norm.weight)
    short = block.short_norm if block.short is not None else None
    if short is not None:
        known_short, active_short = torch.zeros_like(above), torch.zeros_like(active[:, :1])
        if after is not None:
            known_short, active_short = short.inverse(after - branch), above != 0
        standard_short = torch.where(active_short, known_short, 0.0)
        if short.training:
            short.deviation = torch.ones_like(short.weight)
    for _ in range(ROUNDS):
        parts = [(block.conv1, norm.slope(slope1, standard), block.gradient1)]
        if short is not None:
            slope_short = short.slope(above, standard_short)
            parts.append((block.short, slope_short, block.short_gradient))
        inputs = solve_inputs(parts, shape)
        if inputs is None:
            return None
        before, standard = standard, norm.standardise(double(block.conv1, inputs))
        standard = torch.where(active, known, standard)
        if short is not None:
            fresh = short.standardise(double(block.short, inputs))
            standard_short = torch.where(active_short, known_short, fresh)
        if settled(norm, before, standard):
            break
    stride = block.conv1.stride[0]
    if norm.training and stride > 1:
        # A constant on the pixels that only the central tap sees moves every output alike, so
        # batch norm hides it. The input comes from a ReLU: in each channel its least value is 0.
        seen = inputs[..., ::stride, ::stride]
        inputs = inputs.clone()
        inputs[..., ::stride, ::stride] = seen - seen.amin((0, 2, 3), keepdim=True)
    slope = pull_back(block.conv1, norm.slope(slope1, standard), inputs)
    if short is None:
        return inputs, slope, above
    slope = slope + pull_back(block.short, short.slope(above, standard_short), inputs)
    return inputs, slope, torch.zeros_like(slope)


def solve_inputs(parts, shape) -> torch.Tensor | None:
    """The input (K, C, H, W) that layers share: (layer, slope at its output, weight gradient) each.

    None where the equations are fewer than the unknowns.
    """
    channels, height, width = shape
    matrix = torch.cat(
        [input_equations(conv, slope, shape).flatten(0, 1) for conv, slope, _ in parts]
    )
    target = torch.cat([by_tap(observed).flatten(0, 1) for _, _, observed in parts])
    solution = solve_least_squares(matrix, target)
    if solution is None:
        return None
    return solution.T.reshape(channels, -1, height, width).transpose(0, 1)


def positive(values: torch.Tensor) -> torch.Tensor:
    """Where values behind a ReLU are positive; negative ones show how large the noise is."""
    noise = -values.flatten(1).amin(1).clamp_max(0)
    least = 1e-6 * values.flatten(1).amax(1)
    return values > torch.maximum(2 * noise, least).view(-1, 1, 1, 1)


def settle(values, slope, fixed, norm: Norm) -> tuple[torch.Tensor, torch.Tensor | float]:
    """Where a ReLU behind `norm` was active, and by how much `values` are too large.

    values: at the ReLU's output, up to noise and, in train mode, a factor: batch norm hides the
    scale of what enters it. The slope there goes with the inverse of that factor, but for a `fixed`
    part. Summed up where the ReLU was active, it is the bias gradient of the norm: that gives the
    factor, and it corrects the mask where values are so small that noise decided.
    """
    active, scale = positive(values), 1.0
    noise = -values.amin((1, 2, 3), keepdim=True).clamp_max(0)
    unsure = values.abs() < torch.maximum(20 * noise, 1e-5 * values.amax((1, 2, 3), keepdim=True))
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
        better &= missing.abs() > 1e-5 * (whole * active).abs().sum((0, 2, 3))
        if not better.any():
            break
        flat = active.transpose(0, 1).flatten(1)
        flat[better, which[better]] ^= True
        active = flat.view(active.transpose(0, 1).shape).transpose(0, 1)
    return active, scale


def settled(norm: Norm, before, after) -> bool:
    """Whether the rounds between slope and input are over: in eval mode there is only one."""
    return not norm.training or bool((after - before).norm() < SETTLED * after.norm())
