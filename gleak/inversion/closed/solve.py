"""Linear algebra that the closed forms share."""

import torch
from torch import nn
from torch.nn import functional as F


def double(layer, inputs: torch.Tensor) -> torch.Tensor:
    """The layer's output in float64."""
    state = {name: value.double() for name, value in layer.state_dict().items()}
    return torch.func.functional_call(layer, state, (inputs.double(),))


def pull_back(layer, slope: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """The slope at a linear layer's input from the one at its output."""
    inputs = torch.zeros_like(inputs).requires_grad_()
    return torch.autograd.grad(double(layer, inputs), inputs, slope)[0]


def input_equations(layer, slope: torch.Tensor, shape) -> torch.Tensor:
    """The matrix (out, taps, K x pixels) that makes a weight gradient of a layer's inputs.

    slope: at the output (K, out, ...). shape: of one input. A linear layer has one tap and one
    pixel. The product with inputs (K x pixels, channels) is the gradient as `by_tap` has it.
    """
    if isinstance(layer, nn.Linear):
        return slope.T[:, None]
    taken = taken_pixels(layer, shape).to(slope)
    return torch.einsum("kop,qtp->otkq", slope.flatten(2), taken).flatten(2)


def taken_pixels(layer, shape) -> torch.Tensor:
    """(pixels, taps, places): 1 where a convolution's tap takes a pixel; shape: of one input."""
    size = shape[1] * shape[2]
    unit = torch.eye(size).to(layer.weight).view(-1, 1, *shape[1:])
    return taps(layer, unit)[:, :, 0]


def taps(layer, inputs: torch.Tensor) -> torch.Tensor:
    """What each weight of a layer sees of its inputs: (K, taps, channels, places)."""
    if isinstance(layer, nn.Linear):
        return inputs[:, None, :, None]
    found = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return found.unflatten(1, (inputs.shape[1], -1)).transpose(1, 2)


def by_tap(weight: torch.Tensor) -> torch.Tensor:
    """The weight (out, channels, ...) of a layer as (out, taps, channels)."""
    return weight.view(*weight.shape[:2], -1).transpose(1, 2)


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
    square.diagonal().add_(1e-14 * square.diagonal().max())
    factor, failed = torch.linalg.cholesky_ex(square)
    if failed:
        return None
    solution = torch.cholesky_solve(matrix.T @ target, factor)
    if refine:
        solution += torch.cholesky_solve(matrix.T @ (target - matrix @ solution), factor)
    return solution


def separate(mixed: torch.Tensor, size: int, seed: int = 0) -> torch.Tensor:
    """Combinations (K, K) that undo a mixture: each row makes mixed (D, K) zero in many places.

    Behind ReLU about half of the values of each source are zero, and a wrong mixture has no zeros
    but those by design: draw K - 1 rows, find the combination that is zero there, and keep those
    that are zero on most others (Dimitrov et al. 2024, SPEAR). The draws that this takes double
    with each source. Raises ArithmeticError when fewer than K are found.
    """
    if size == 1:
        return mixed.new_ones(1, 1)
    norms = mixed.norm(dim=1)
    rows = mixed[norms > 1e-6 * norms.max()]
    rows = rows / rows.norm(dim=1, keepdim=True)
    draws = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(rows), (200 * 2**size, size - 1), generator=draws)
    combinations = torch.linalg.svd(rows[chosen], full_matrices=True).Vh[:, -1]
    some = rows[torch.randperm(len(rows), generator=draws)[:1000]]
    zeros = ((combinations @ some.T).abs() < 1e-4).sum(1)
    found = combinations[:0]
    for combination in combinations[zeros.argsort(descending=True)]:  # mixtures of two have fewer
        candidate = torch.cat([found, combination[None]])
        if torch.linalg.svdvals(candidate)[-1] < 1e-3:
            continue
        for tolerance in (1e-4, 1e-5):  # all its zeros tell the combination better than K - 1
            near = rows[(rows @ combination).abs() < tolerance]
            if len(near) >= size:
                combination = torch.linalg.svd(near.T @ near).Vh[-1]
        found = torch.cat([found, combination[None]])
        if len(found) == size:
            return found
    raise ArithmeticError(f"only {len(found)} of {size} sources could be told apart")
