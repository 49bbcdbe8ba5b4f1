"""Linear algebra that the closed forms share."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from gleak.labels.tolerance import FLOAT32, scaled

RIDGE = 1e-14  # on normal equations, of their largest entry: some fifty roundings of float64
ALIKE = 1e-3  # least singular value of combinations, below which two of them are the same
BLOCKS = 64  # of Lanczos' method, before it begins again
RESTARTS = 3
CONDITION = 1e-5  # least singular value over the largest, above which equations are squared
REFINED = 3  # rounds of solving squared equations: each brings back five digits or more
LOST = 2e-3  # of inputs drawn at random, relative: one open value of 250000 loses as much
OPEN = "its gradient and its output together leave its input open"
WEAK = 1e-3  # singular value over the largest, below which known outputs tell more
SETTLES = 500  # steps of conjugate gradients, after which known outputs leave something open
WORK = 2e11  # multiplications that these may take, half a minute, beyond a fifth of them
MOST = 4096  # unknowns left open, up to which they are solved for at once


def rank_cut(rounding: float) -> float:
    """Singular values below this share of the largest one are noise."""
    return scaled(1e-6, rounding)


def double(layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """The layer's output in float64."""
    state = {name: value.double() for name, value in layer.state_dict().items()}
    return torch.func.functional_call(layer, state, (inputs.double(),))


def pull_back(layer: nn.Module, slope: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """The slope at a layer's input, which a linear layer does not look at, from that behind it."""
    inputs = inputs.detach().requires_grad_()
    return torch.autograd.grad(double(layer, inputs), inputs, slope)[0]


class Equations:
    """A layer's weight gradient as linear equations for its input, the slope at its output given.

    One matrix (out x taps, K x pixels) serves all input channels: it times the input (K x pixels,
    channels) is the gradient (out x taps, channels). A linear layer has one tap and one pixel.
    Products with it are convolutions, and its square is a sum of shifted squares of the slope, out
    x taps times less work than from the matrix itself.
    """

    def __init__(self, layer: nn.Module, slope: torch.Tensor, shape: tuple[int, ...]) -> None:
        """slope: at the output (K, out, ...). shape: of one input."""
        self.layer, self.shape = layer, shape
        self.slope = by_output(slope)  # (out, K x places)
        self.size, self.pixels = len(slope), math.prod(shape[1:])
        if isinstance(layer, nn.Conv2d):
            taken = taken_pixels(layer, shape)
        else:
            taken = torch.ones(1, 1, dtype=torch.long, device=slope.device)
        self.taken = taken
        self.count, self.unknowns = len(self.slope) * len(taken), self.size * self.pixels

    def dense(self) -> torch.Tensor:
        """The matrix (out x taps, K x pixels)."""
        slope = self.slope.view(len(self.slope), self.size, -1)
        made = slope.new_zeros(len(slope), len(self.taken), self.size, self.pixels)
        for tap, pixels in enumerate(self.taken):
            made[:, tap].index_add_(2, pixels[pixels > 0] - 1, slope[..., pixels > 0])
        return made.view(self.count, self.unknowns)

    def square(self) -> torch.Tensor:
        """The matrix transposed times itself, (K x pixels, K x pixels)."""
        images = torch.arange(self.size, device=self.slope.device)[:, None]
        slopes = self.slope.T @ self.slope
        made = slopes.new_zeros(self.unknowns, self.unknowns)
        for pixels in self.taken:
            places = pixels.nonzero().flatten()
            into = (images * self.pixels + pixels[places] - 1).flatten()
            out_of = (images * len(pixels) + places).flatten()
            half = slopes.new_zeros(self.unknowns, len(into))
            half.index_add_(0, into, slopes[out_of[:, None], out_of])
            made.index_add_(0, into, half.T)
        return made

    def gradient(self, inputs: torch.Tensor) -> torch.Tensor:
        """The matrix times inputs (K x pixels, channels): (out x taps, channels)."""
        seen = taps(self.layer, self.as_inputs(inputs))  # (K, taps, channels, places)
        seen = seen.permute(0, 3, 1, 2).reshape(self.slope.shape[1], -1)
        return (self.slope @ seen).view(self.count, -1)

    def back(self, gradient: torch.Tensor) -> torch.Tensor:
        """The transposed matrix times a gradient (out x taps, channels): (K x pixels, channels)."""
        channels = gradient.shape[1]
        patches = self.slope.T @ gradient.view(len(self.slope), -1)
        patches = patches.view(self.size, -1, len(self.taken), channels).flatten(1, 2)
        inputs = patches.new_zeros(self.size, self.pixels + 1, channels)
        return inputs.index_add_(1, self.taken.T.flatten(), patches)[:, 1:].flatten(0, 1)

    def as_inputs(self, solution: torch.Tensor) -> torch.Tensor:
        """(K x pixels, channels) as inputs (K, channels, ...)."""
        inputs = solution.view(self.size, self.pixels, -1).transpose(1, 2)
        return inputs.reshape(self.size, -1, *self.shape[1:])


def input_equations(layer: nn.Module, slope: torch.Tensor, shape: tuple[int, ...]) -> Equations:
    """The equations that a layer's weight gradient makes of its input."""
    return Equations(layer, slope, shape)


def by_output(values: torch.Tensor) -> torch.Tensor:
    """Values (K, out, ...) as (out, K x places)."""
    return values.reshape(*values.shape[:2], -1).transpose(0, 1).flatten(1)


def taken_pixels(layer: nn.Conv2d, shape: tuple[int, ...]) -> torch.Tensor:
    """(taps, places): which pixel a convolution's tap takes at each place, counted from 1.

    0 stands for the padding. shape: of one input.
    """
    device, size = layer.weight.device, shape[1] * shape[2]
    numbers = torch.arange(1, size + 1, dtype=torch.float64, device=device)
    return taps(layer, numbers.view(1, 1, *shape[1:]))[0, :, 0].long()


def taps(layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """What each weight of a layer sees of its inputs: (K, taps, channels, places)."""
    if isinstance(layer, nn.Linear):
        return inputs[:, None, :, None]
    assert isinstance(layer, nn.Conv2d)
    padding: str | tuple[int, ...] = layer.padding
    if layer.padding_mode != "zeros":
        sides = layer._reversed_padding_repeated_twice
        inputs, padding = F.pad(inputs, sides, layer.padding_mode), (0, 0)
    if isinstance(padding, str):  # "same" puts the odd pixel behind, "valid" has none
        sides = [
            side if padding == "same" else 0
            for size, step in zip(layer.kernel_size[::-1], layer.dilation[::-1], strict=True)
            for side in (step * (size - 1) // 2, (step * (size - 1) + 1) // 2)
        ]
        inputs, padding = F.pad(inputs, sides), (0, 0)
    found = F.unfold(inputs, layer.kernel_size, layer.dilation, padding, layer.stride)
    return found.unflatten(1, (inputs.shape[1], -1)).transpose(1, 2)


def by_tap(weight: torch.Tensor) -> torch.Tensor:
    """The weight (out, channels, ...) of a layer as (out, taps, channels)."""
    return weight.view(*weight.shape[:2], -1).transpose(1, 2)


def row_space(matrix: torch.Tensor, rank: int, seed: int = 0) -> torch.Tensor:
    """Orthogonal rows (rank, n) that span those of a matrix (m, n), but for what is far smaller.

    A few random directions more than the rank, sent through the matrix and back (Halko, Martinsson
    and Tropp 2011, algorithm 4.4, which keeps small singular values apart from rounding). Where the
    rank is not far below the size, that is no cheaper than all singular vectors.
    """
    wide = rank + 10
    if 2 * wide > min(matrix.shape):
        return torch.linalg.svd(matrix, full_matrices=False).Vh[:rank]
    draws = torch.Generator().manual_seed(seed)
    basis = torch.randn(wide, matrix.shape[1], generator=draws, dtype=torch.float64).to(matrix).T
    for _ in range(2):
        basis = torch.linalg.qr(matrix @ basis).Q
        basis = torch.linalg.qr(matrix.T @ basis).Q
    right = torch.linalg.svd(matrix @ basis, full_matrices=False).Vh[:rank]
    return right @ basis.T


def largest_vectors(
    product: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor, rounding: float = FLOAT32
) -> torch.Tensor:
    """Eigenvectors (count, n) of the largest eigenvalues of a symmetric matrix, in float64.

    product(vectors): (count, n) times the matrix, all that is known of it; its norm is 1 at most.
    start: (count, n), any vectors. By Lanczos' method with blocks of `count` vectors, so that equal
    eigenvalues come together; each block is made orthogonal to all before. It ends when products
    leave no more than rounding beside the vectors. With `BLOCKS` blocks it begins again from the
    best vectors, so that memory has an end, and after `RESTARTS` of these it gives what it has.

    >>> matrix = torch.arange(10.0).double().diag() / 9
    >>> found = largest_vectors(lambda vectors: vectors @ matrix, torch.ones(2, 10).double().triu())
    >>> bool(found[:, :8].abs().max() < 1e-6)
    True
    """
    count, size = start.shape
    best = torch.linalg.qr(start.T).Q.T
    enough = max(scaled(1e-7, rounding), 1e-13)
    steps = min(BLOCKS, size // count)
    basis = start.new_empty(steps * count, size)
    for _ in range(RESTARTS):
        made, small = best, start.new_zeros(steps * count, steps * count)
        for step in range(1, steps + 1):
            end = step * count
            here, after = slice(end - count, end), slice(end, end + count)
            basis[here] = made
            made = product(made)
            small[here, here] = made @ basis[here].T
            left = torch.eye(count).to(start)
            for _ in range(2):  # once more for what rounding left, and where nothing was left
                made = made - (made @ basis[:end].T) @ basis[:end]
                orthogonal, factor = torch.linalg.qr(made.T)
                made, left = orthogonal.T.contiguous(), factor @ left
            if step % 4 == 0 or step == steps:
                vectors = torch.linalg.eigh(small[:end, :end]).eigenvectors[:, -count:]
                if (left @ vectors[-count:]).norm() < enough:
                    return vectors.T @ basis[:end]
            if step < steps:
                small[after, here], small[here, after] = left, left.T
        best = vectors.T @ basis
    return best


class Solved(NamedTuple):
    """The input (K, ...) of a linear layer, the relative error of the gradient that it makes, and
    the standard error of each value (K, ...), as that tells it, where one asks for it; None where
    the output told more.
    """

    inputs: torch.Tensor
    misfit: float
    deviation: torch.Tensor | None


def solve_input(
    layer: nn.Conv2d | nn.Linear,
    slope: torch.Tensor,
    observed: torch.Tensor,
    outputs: torch.Tensor,
    known: torch.Tensor,
    shape: tuple[int, ...],
    rounding: float = FLOAT32,
    level: bool = False,
) -> Solved:
    """The input (K, *shape) of a linear layer.

    Two sets of equations: the weight gradient `observed` is linear in the input, given the slope at
    the output; and so are the outputs, where they are known (behind ReLU: where it is active).
    level: weigh the unknowns of each image by its slopes, so that those of an image with slopes a
    thousand times smaller, as trained networks have them, are not taken for noise; and tell the
    error of each value.

    Raises ArithmeticError where they are fewer than the unknowns.
    """
    equations = Equations(layer, slope, shape)
    told = [Told(layer, outputs, known)] if isinstance(layer, nn.Conv2d) else []
    refuse_too_few([equations], equations.count, shape[0], told)
    size = slope.flatten(1).norm(dim=1) if level else slope.new_ones(len(slope))
    size = size.clamp_min(torch.finfo(size.dtype).tiny)
    size = size.repeat_interleave(equations.pixels)[:, None]
    target = by_tap(observed).flatten(0, 1)
    square = equations.square() / size / size.T
    spread: torch.Tensor | None = None
    rank = len(size)

    factor = well_conditioned(square)
    if factor is not None:
        solution = refined([equations], [target], factor, size)
        if level:
            spread = torch.cholesky_inverse(factor).diagonal()[:, None]
    elif told and known.any():
        rank = rank_of(square)
        refuse_too_few([equations], rank, shape[0], told)
        if (len(size) - rank) * shape[0] <= MOST:
            solution = in_the_open(equations, target, told[0], size, rounding)
        else:
            solution = jointly([equations], [target], told, square, size, rounding)
        rank = len(size)
    else:
        left, values, right = torch.linalg.svd(equations.dense() / size.T, full_matrices=False)
        rank = int((values > rank_cut(rounding) * values[0]).sum())
        refuse_too_few([equations], rank, shape[0], [])
        solution = right.T @ ((left.T @ target) / values[:, None]) / size
        spread = (right / values[:, None]).square().sum(0)[:, None]
    missing = target - equations.gradient(solution)
    misfit = (missing.norm() / target.norm()).item()
    inputs = equations.as_inputs(solution)
    if spread is None:
        return Solved(inputs, misfit, None)
    variance = missing.square().sum(0) / max(equations.count - rank, 1)  # of each channel
    deviation = (spread * variance).sqrt() / size
    return Solved(inputs, misfit, equations.as_inputs(deviation))


def in_the_open(
    equations: Equations, target: torch.Tensor, told: "Told", size: torch.Tensor, rounding: float
) -> torch.Tensor:
    """What (K x pixels, C) solves the gradient, and the outputs where that leaves it open.

    With all digits, and in time that is cubic in what is left open. size: as of `refined`.

    Raises ArithmeticError where both together leave it open.
    """
    left, values, right = torch.linalg.svd(equations.dense() / size.T)
    rank = int((values > rank_cut(rounding) * values[0]).sum())
    solution = right[:rank].T @ ((left[:, :rank].T @ target) / values[:rank, None]) / size
    free, channels = len(right) - rank, target.shape[1]
    if not free:  # more digits show what normal equations did not
        return solution
    refuse_too_few([equations], rank, channels, [told])
    layer = told.layer
    directions = equations.as_inputs((right[rank:] / size.T).T)  # (K, free, H, W)
    directions = directions.transpose(0, 1).flatten(0, 1)[:, None]
    columns = directions.new_empty(free, channels, int(told.known.sum()))
    for channel in range(channels):
        alone = directions.new_zeros(len(directions), channels, *directions.shape[2:])
        alone[:, channel] = directions[:, 0]
        made = without_bias(layer, alone).view(free, *told.known.shape)
        columns[:, channel] = made[:, told.known]
    with torch.no_grad():
        missing = (told.outputs - double(layer, equations.as_inputs(solution)))[told.known]
    seen = columns.flatten(0, 1).T  # (known, free x channels)
    factor = factor_of(seen.T @ seen)
    if factor is None:
        raise ArithmeticError(OPEN)

    def solved(wanted: torch.Tensor) -> torch.Tensor:
        found = torch.cholesky_solve(seen.T @ wanted, factor)
        return found + torch.cholesky_solve(seen.T @ (wanted - seen @ found), factor)

    draws = torch.Generator().manual_seed(0)
    drawn = torch.randn(seen.shape[1], 1, generator=draws, dtype=torch.float64).to(seen)
    if (solved(seen @ drawn) - drawn).norm() > LOST * drawn.norm():  # as in `jointly`
        raise ArithmeticError(OPEN)
    rest = solved(missing[:, None]).view(free, channels)
    return solution + right[rank:].T @ rest / size


class Told(NamedTuple):
    """Outputs (K, out, ...) of a convolution, and where they are known."""

    layer: nn.Conv2d
    outputs: torch.Tensor
    known: torch.Tensor


def refuse_too_few(
    equations: Sequence[Equations], rank: int, channels: int, told: Sequence[Told]
) -> None:
    """Raise ArithmeticError if fewer outputs are told than `rank` equations leave open."""
    unknowns = equations[0].unknowns
    if (unknowns - rank) * channels > sum(int(one.known.sum()) for one in told):
        gradients = "its weight gradient gives" if len(equations) == 1 else "its gradients give"
        raise ArithmeticError(
            f"{gradients} {rank} equations for {unknowns} unknowns of each channel"
        )


def well_conditioned(square: torch.Tensor) -> torch.Tensor | None:
    """The Cholesky factor of squared equations, if they leave digits enough.

    None where the smallest singular value of the equations is below `CONDITION` of the largest, by
    a few rounds of the power method and its inverse.
    """
    factor = factor_of(square)
    if factor is None:
        return None
    draws = torch.Generator().manual_seed(0)
    high = low = torch.randn(len(square), 1, generator=draws).to(square)
    for _ in range(8):
        high, low = square @ (high / high.norm()), torch.cholesky_solve(low / low.norm(), factor)
    return factor if 1 / (low.norm() * high.norm()) > CONDITION**2 else None


def rank_of(square: torch.Tensor) -> int:
    """How many of squared equations are independent."""
    values = torch.linalg.eigvalsh(square)
    return int((values > CONDITION**2 * values[-1]).sum())


def refined(
    equations: Sequence[Equations],
    targets: Sequence[torch.Tensor],
    factor: torch.Tensor,
    size: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """What (K x pixels, C) solves equations best, given the factor of their square.

    size: by which the unknowns of the factor are larger. What is left over is solved for again,
    which brings back the digits that squaring cost.
    """
    solution, missing = factor.new_zeros(()), list(targets)
    for _ in range(REFINED):
        side = total(one.back(left) for one, left in zip(equations, missing, strict=True))
        solution = solution + torch.cholesky_solve(side / size, factor) / size
        missing = [
            target - one.gradient(solution) for one, target in zip(equations, targets, strict=True)
        ]
    return solution


def jointly(
    equations: Sequence[Equations],
    targets: Sequence[torch.Tensor],
    told: Sequence[Told],
    square: torch.Tensor,
    size: torch.Tensor | float = 1.0,
    rounding: float = FLOAT32,
) -> torch.Tensor:
    """What (K x pixels, C) solves gradient equations together with the outputs that are told.

    square: of the gradient equations, their unknowns `size` times as large. By conjugate gradients
    on the least squares, with the square as what they divide by, raised to what the outputs tell of
    an unknown. The outputs weigh so little that they decide what the gradient says at less than
    `WEAK` of its best. They may tell the same things twice, so that a count of the equations does
    not say whether there is another solution: inputs drawn at random have to come back, too.

    Raises ArithmeticError where they do not, or the steps do not settle.
    """
    channels = targets[0].shape[1]
    weights = [one.layer.weight.detach().double() for one in told]
    shared = sum(
        (weight.square().mean((1, 2, 3)) * weight[0, 0].numel() * one.known.sum((0, 2, 3))).sum()
        for one, weight in zip(told, weights, strict=True)
    ) / len(square)  # what the outputs tell of an unknown, on average
    each = shared / (square.new_ones(len(square), 1) * size).square().flatten()
    trust = WEAK**2 * square.diagonal().max() / each.mean()
    factor = torch.linalg.cholesky(square + (trust * each).diag())
    first = equations[0]
    steps = int(min(SETTLES, max(SETTLES // 5, WORK / (4 * len(square) ** 2 * channels))))

    def made(inputs: torch.Tensor) -> list[torch.Tensor]:  # (K x pixels, C)
        inputs = inputs / size
        images = first.as_inputs(inputs)
        return [one.gradient(inputs) for one in equations] + [
            trust.sqrt() * one.known * without_bias(one.layer, images) for one in told
        ]

    def back(left: list[torch.Tensor]) -> torch.Tensor:
        sides = [one.back(part) for one, part in zip(equations, left, strict=False)]
        empty = first.as_inputs(torch.zeros_like(sides[0]))
        for one, part in zip(told, left[len(equations) :], strict=True):
            side = pull_back(one.layer, trust.sqrt() * one.known * part, empty)
            sides.append(side.flatten(2).transpose(1, 2).flatten(0, 1))
        return total(sides) / size

    def solved(missing: list[torch.Tensor]) -> torch.Tensor:
        found = square.new_zeros(len(square), channels)
        left = back(missing)
        step = torch.cholesky_solve(left, factor)
        power = start = (left * step).sum()
        enough = max(scaled(1e-8, rounding), 1e-13) ** 2 * start
        for _ in range(steps):
            if power <= enough:
                return found
            moved = made(step)
            length = power / total(part.square().sum() for part in moved)
            found = found + length * step
            missing = [part - length * move for part, move in zip(missing, moved, strict=True)]
            left = back(missing)
            divided = torch.cholesky_solve(left, factor)
            power, before = (left * divided).sum(), power
            step = divided + power / before * step
        raise ArithmeticError(OPEN)

    wanted = list(targets)
    for one in told:
        bias = 0.0 if one.layer.bias is None else one.layer.bias.detach().double()[:, None, None]
        wanted.append(trust.sqrt() * one.known * (one.outputs - bias))
    found = solved(wanted)
    draws = torch.Generator().manual_seed(0)
    drawn = torch.randn(found.shape, generator=draws, dtype=torch.float64).to(found)
    if (solved(made(drawn)) - drawn).norm() > LOST * drawn.norm():
        raise ArithmeticError(OPEN)
    return found / size


def without_bias(layer: nn.Conv2d, inputs: torch.Tensor) -> torch.Tensor:
    """The output of a convolution in float64, less its bias."""
    state = {"weight": layer.weight.detach().double()}
    if layer.bias is not None:
        state["bias"] = torch.zeros_like(layer.bias, dtype=torch.float64)
    return torch.func.functional_call(layer, state, (inputs,))


def total(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum of tensors of one shape."""
    return torch.stack(list(parts)).sum(0)


def span_of(equations: Equations, rounding: float) -> torch.Tensor:
    """Orthogonal vectors (out x taps, rank) that span all gradients that inputs can make."""
    factor = well_conditioned(equations.square())
    if factor is not None:
        return torch.linalg.solve_triangular(factor.T, equations.dense(), upper=True, left=False)
    span, values, _ = torch.linalg.svd(equations.dense(), full_matrices=False)
    return span[:, values > rank_cut(rounding) * values[0]]


def factor_of(square: torch.Tensor) -> torch.Tensor | None:
    """The Cholesky factor of a matrix that is never negative; None where that fails."""
    ridge = RIDGE * square.diagonal().max()
    factor, failed = torch.linalg.cholesky_ex(square + torch.eye(len(square)).to(square) * ridge)
    return None if failed else factor


def separate(
    mixed: torch.Tensor, size: int, seed: int = 0, rounding: float = FLOAT32
) -> torch.Tensor:
    """Combinations (K, K) that undo a mixture: each row makes mixed (D, K) zero in many places.

    Behind ReLU about half of the values of each source are zero, and a wrong mixture has no zeros
    but those by design: draw K - 1 rows, find the combination that is zero there, and keep those
    that are zero on most others (Dimitrov et al. 2024, SPEAR). The draws that this takes double
    with each source. Raises ArithmeticError when fewer than K are found.
    """
    if size == 1:
        return mixed.new_ones(1, 1)
    norms = mixed.norm(dim=1)
    rows = mixed[norms > rank_cut(rounding) * norms.max()]
    rows = rows / rows.norm(dim=1, keepdim=True)
    draws = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(rows), (200 * 2**size, size - 1), generator=draws)
    combinations = torch.linalg.svd(rows[chosen], full_matrices=True).Vh[:, -1]
    some = rows[torch.randperm(len(rows), generator=draws)[:1000]]
    nothing = scaled(1e-4, rounding)  # a combination of rows that rounding left at a hundredth
    zeros = ((combinations @ some.T).abs() < nothing).sum(1)
    found = combinations[:0]
    for combination in combinations[zeros.argsort(descending=True)]:  # mixtures of two have fewer
        candidate = torch.cat([found, combination[None]])
        if torch.linalg.svdvals(candidate)[-1] < ALIKE:
            continue
        for tolerance in (
            nothing,
            nothing / 10,
        ):  # all its zeros tell the combination better than K - 1
            near = rows[(rows @ combination).abs() < tolerance]
            if len(near) >= size:
                combination = torch.linalg.svd(near.T @ near).Vh[-1]
        found = torch.cat([found, combination[None]])
        if len(found) == size:
            return found
    raise ArithmeticError(f"only {len(found)} of {size} sources could be told apart")
