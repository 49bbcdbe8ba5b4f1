"""The first singular values and vectors of a large matrix whose rank is far below its size."""

import numpy as np
import torch
from scipy import linalg

MORE = 10  # random directions beyond those that are asked for
LARGE = 2**24  # numbers of a matrix above which it is not written in float64: 128 MiB


def first_parts(
    matrix: np.ndarray, count: int, careful: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U (m, count), S (count,) and V^T (count, n) of a matrix (m, n) of floats.

    Random directions, twice sent through the matrix and back, span what is largest of it (Halko,
    Martinsson and Tropp 2011, algorithm 4.3); they are always the same ones. To the last bit as
    scikit-learn's randomized_svd with n_iter=2 and random_state=0, without that dependency.

    >>> U, S, V = first_parts(np.outer(np.arange(300.0), np.ones(250)), 1)
    >>> np.allclose(U * S @ V, np.outer(np.arange(300.0), np.ones(250)))
    True
    """
    if len(matrix) < matrix.shape[1]:
        right, values, left = (part.T for part in tall(matrix.T, count, careful))
    else:
        left, values, right = tall(matrix, count, careful)
    # a vector and its opposite serve as well: the largest entry of each left one is positive
    signs = np.sign(left[np.abs(left).argmax(0), np.arange(count)])
    return left * signs, values, right * signs[:, None]


def tall(
    matrix: np.ndarray, count: int, careful: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same for m >= n, but for the signs of the vectors."""
    random = np.random.RandomState(0)  # noqa: NPY002, as in scikit-learn
    basis = random.normal(size=(matrix.shape[1], count + MORE)).astype(matrix.dtype, copy=False)
    for _ in range(2):
        basis = matrix.T @ (matrix @ basis)
        if careful:
            basis, _ = linalg.qr(basis, mode="economic", check_finite=False)
    basis, _ = linalg.qr(matrix @ basis, mode="economic", check_finite=False)
    small, values, right = linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ small)[:, :count], values[:count], right[:count]


def times(matrix: torch.Tensor, thin: np.ndarray) -> np.ndarray:
    """A matrix (m, n) times a thin one (n, r), in float64; of the matrix, some rows at a time."""
    with torch.no_grad():
        rows = matrix.split(max(LARGE // matrix.shape[1], 1))
        return np.concatenate([part.cpu().double().numpy() @ thin for part in rows])


def times_transposed(matrix: torch.Tensor, thin: np.ndarray) -> np.ndarray:
    """The transpose of a matrix (m, n) times a thin one (m, r), as `times`."""
    made, start = np.zeros((matrix.shape[1], thin.shape[1])), 0
    with torch.no_grad():
        for part in matrix.split(max(LARGE // matrix.shape[1], 1)):
            made += part.cpu().double().numpy().T @ thin[start : start + len(part)]
            start += len(part)
    return made


def spanning_rows(matrix: torch.Tensor, count: int) -> np.ndarray:
    """Orthogonal rows (count + 10, n) that span what is largest of a matrix (m, n).

    As `first_parts`, but in float64 whatever the matrix is in, and without a copy of it.

    >>> rows = spanning_rows(torch.arange(300.0)[:, None] * torch.ones(250), 1)
    >>> np.allclose(np.ones(250) @ rows.T @ rows, 1)
    True
    """
    random = np.random.RandomState(0)  # noqa: NPY002, as `first_parts`
    basis = random.normal(size=(matrix.shape[1], count + MORE))
    for _ in range(3):
        left = linalg.qr(times(matrix, basis), mode="economic")[0]
        basis = linalg.qr(times_transposed(matrix, left), mode="economic")[0]
    return basis.T
