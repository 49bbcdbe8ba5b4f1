"""Linear algebra that the closed forms share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from gleak.labels.tolerance import FLOAT32, scaled

RIDGE = 1e-14  # on normal equations, of their largest entry: some fifty roundings of float64
ALIKE = 1e-3  # least singular value of combinations, below which two of them are the same
BLOCKS = 64  # of Lanczos' method, before it begins again
RESTARTS = 3
MOST = 4096  # unknowns that the gradient may leave to what the output tells


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


def input_equations(layer: nn.Module, slope: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The matrix (out, taps, K x pixels) that makes a weight gradient of a layer's inputs.

    slope: at the output (K, out, ...). shape: of one input. A linear layer has one tap and one
    pixel. The product with inputs (K x pixels, channels) is the gradient as `by_tap` has it.
    """
    if isinstance(layer, nn.Linear):
        return slope.T[:, None]
    assert isinstance(layer, nn.Conv2d)
    slope, taken = slope.flatten(2).transpose(0, 1), taken_pixels(layer, shape)
    made = slope.new_zeros(len(slope), len(taken), slope.shape[1], shape[1] * shape[2])
    for tap, pixels in enumerate(taken):
        made[:, tap, :, pixels[pixels > 0] - 1] = slope[..., pixels > 0]
    return made.flatten(2)


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

    >>> matrix = torch.arange(9.0).double().diag() / 8
    >>> found = largest_vectors(lambda vectors: vectors @ matrix, torch.ones(2, 9).double().triu())
    >>> bool(found[:, :7].abs().max() < 1e-6)
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
    the standard error of each value (K, ...), as that tells it; None where the output told more.
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
    thousand times smaller, as trained networks have them, are not taken for noise.

    Raises ArithmeticError where they are fewer than the unknowns.
    """
    if isinstance(layer, nn.Conv2d) and (layer.groups != 1 or layer.padding_mode != "zeros"):
        raise ArithmeticError("convolutions in groups or with another padding than zeros are open")
    channels = shape[0]
    # one matrix serves all input channels
    matrix = input_equations(layer, slope, shape).flatten(0, 1)
    size = slope.flatten(1).norm(dim=1) if level else slope.new_ones(len(slope))
    size = size.clamp_min(torch.finfo(size.dtype).tiny)
    size = size.repeat_interleave(matrix.shape[1] // len(slope))
    matrix = matrix / size
    target = by_tap(observed).flatten(0, 1)

    def as_inputs(solution: torch.Tensor) -> torch.Tensor:  # (image x pixel, channel)
        solution = solution / size[:, None]
        if isinstance(layer, nn.Linear):
            return solution
        solution = solution.T.reshape(channels, len(slope), *shape[1:])
        return solution.transpose(0, 1)

    left, values, right = torch.linalg.svd(matrix, full_matrices=len(matrix) < matrix.shape[1])
    rank = int((values > rank_cut(rounding) * values[0]).sum())
    solution = right[:rank].T @ ((left[:, :rank].T @ target) / values[:rank, None])
    missing = matrix @ solution - target
    misfit = (missing.norm() / target.norm()).item()
    inputs = as_inputs(solution)
    free = len(right) - rank
    if not free:
        variance = missing.square().sum(0) / max(len(matrix) - rank, 1)  # of each channel
        spread = (right / values[:, None]).square().sum(0)
        return Solved(inputs, misfit, as_inputs((spread[:, None] * variance).sqrt()))
    # What the gradient leaves open, the output may tell.
    if isinstance(layer, nn.Linear) or free * channels > min(MOST, int(known.sum())):
        raise ArithmeticError(
            f"its weight gradient gives {rank} equations for {len(right)} unknowns of each channel"
        )
    directions = (right[rank:] / size).reshape(-1, 1, *shape[1:])  # the same for every channel
    with torch.no_grad():
        weight = layer.weight.double()
        settings: Any = (None, layer.stride, layer.padding, layer.dilation)
        columns = [
            F.conv2d(directions, weight[:, [channel]], *settings).view(free, *known.shape)[:, known]
            for channel in range(channels)
        ]
        missing = (outputs - double(layer, inputs))[known]
    seen = torch.stack(columns, dim=1).flatten(0, 1).T  # (known, directions x channels)
    rest = solve_least_squares(seen, missing[:, None], refine=True)
    if rest is None:
        raise ArithmeticError("its gradient and its output together leave its input open")
    inputs = inputs + as_inputs(right[rank:].T @ rest.view(free, channels))
    return Solved(inputs, misfit, None)


def solve_least_squares(
    matrix: torch.Tensor, target: torch.Tensor, refine: bool = False
) -> torch.Tensor | None:
    """What (n, c) times the matrix (m, n) comes nearest to the target (m, c), in float64.

    By normal equations, in a fraction of the time of an orthogonal factorisation. refine: solve
    once more for what is left, which brings back the digits that they cost. None where the
    equations are fewer than the unknowns, or the factorisation fails.
    """
    if len(matrix) < matrix.shape[1]:
        return None
    square = matrix.T @ matrix
    square.diagonal().add_(RIDGE * square.diagonal().max())
    factor, failed = torch.linalg.cholesky_ex(square)
    if failed:
        return None
    solution = torch.cholesky_solve(matrix.T @ target, factor)
    if refine:
        solution += torch.cholesky_solve(matrix.T @ (target - matrix @ solution), factor)
    return solution


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
