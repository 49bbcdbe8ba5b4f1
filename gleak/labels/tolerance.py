"""Every tolerance of the closed forms, from the precision of what was sent.

The precision is the largest relative error of a value that the server got: of a floating point
format half the spacing of its numbers (`of_dtype`: 2^-53 for float64, 2^-24 for float32, 2^-11 for
float16, 2^-8 for bfloat16), and more where values carry noise that the server knows of.

Two things follow from it.

What was computed. A client computes in float32 or better, and rounds or adds noise in the end. So
the arithmetic behind a value is as exact as the precision, between float32 and what the server's
own float64 can follow: float32 / 2^22 for linear algebra, where a sum of thousands of terms loses
three or four digits, and float32 / 2^10 for a search with differences for derivatives, which ends
where squares of the error reach float64's last digit. `rank_cutoff`, `noise`, `zero`, `settled`,
`whole`, `faint` are of this kind. Each says what it is for float32 and shrinks with the arithmetic;
rounding in the end does not widen them, as it turns no sign and makes no zero.

What was sent. Equations between values that were sent hold no better than these: `misfit`, what
one image must leave behind to be `told_apart`, and what is `drowned` grow with the precision and
have no limit.
"""

import torch

FLOAT32 = 2.0**-24  # rounding of float32, in units of which the constants are written
ALGEBRA = FLOAT32 / 2**22  # what linear algebra in float64 leaves, 2^-46
SEARCH = FLOAT32 / 2**10  # what a search in float64 leaves, 2^-34


def of_dtype(*dtypes: torch.dtype) -> float:
    """The precision of values in these formats: of the coarsest, half the spacing of its numbers.

    >>> of_dtype(torch.float32, torch.bfloat16)
    0.00390625
    """
    return max(torch.finfo(dtype).eps for dtype in dtypes) / 2


def arithmetic(precision: float, least: float = ALGEBRA) -> float:
    """How exact the arithmetic behind what was sent was, in units of float32: 1 at most.

    least: what the server's own arithmetic leaves.

    >>> arithmetic(of_dtype(torch.bfloat16)), arithmetic(of_dtype(torch.float32)) # rounded at last
    (1.0, 1.0)
    >>> arithmetic(of_dtype(torch.float64)) == 2.0**-22
    True
    """
    return min(max(precision, least), FLOAT32) / FLOAT32


def scaled(single: float, precision: float) -> float:
    """A tolerance for what rounding does to a client's arithmetic: `single` for float32.

    >>> scaled(1e-6, FLOAT32), scaled(1e-6, 2.0**-8), scaled(1e-6, 2.0**-53)
    (1e-06, 1e-06, 2.384185791015625e-13)
    """
    return single * arithmetic(precision)


def excess(precision: float) -> float:
    """The precision where it is worse than float32, from rounding in the end or noise; else 0."""
    return precision if precision > FLOAT32 else 0.0


def rank_cutoff(precision: float, derived: bool = False) -> float:
    """Singular values below this part of the largest are rounding.

    float32: 1e-7, of a matrix that was sent. Its error E has |E_ij| <= 2^-24 |G_ij|, so the norm
    of E is 2^-24 of G's Frobenius norm at most, which for rank K is sqrt(K) times the largest
    singular value at most: 1e-7 is the bound for K = 3, and what is typical is a tenth of it.
    derived: of a matrix computed from what was sent, 1e-6: see `zero`.

    >>> rank_cutoff(of_dtype(torch.float32)), rank_cutoff(of_dtype(torch.float32), derived=True)
    (1e-07, 1e-06)
    """
    return (1e-6 if derived else 1e-7) * arithmetic(precision)


def noise(precision: float) -> float:
    """The singular values that rounding makes, as a part of the largest.

    float32: 1e-8. Roundings are as good as independent and uniform, of deviation 2^-24 / sqrt(3)
    of a value, and those of an N x M matrix have the norm (sqrt(N) + sqrt(M)) of them, of
    sqrt(N M) in the Frobenius norm: 1.2e-8 for 10 classes, 5e-9 for 100.
    """
    return 1e-8 * arithmetic(precision)


def drowned(precision: float) -> float:
    """As `noise`, of a gradient that was rounded in the end or got noise; 0 of any other.

    A singular value as small as that may be all noise, and then no search is to find what made it.
    """
    return 1e-8 * excess(precision) / FLOAT32


def zero(precision: float) -> float:
    """A value below this part of the largest beside it is zero.

    float32: 1e-6, the error of a sum of 280 terms that are rounded by 2^-24 each and add up like a
    random walk.

    >>> zero(of_dtype(torch.float16))  # rounding to float16 makes no zero and turns no sign
    1e-06
    """
    return 1e-6 * arithmetic(precision)


def settled(precision: float) -> float:
    """A search has ended when it changes by less than this part: as `zero`, but no finer than a
    search is.
    """
    return 1e-6 * arithmetic(precision, SEARCH)


def whole(precision: float) -> float:
    """How far a sum of softmax may be from a whole number and still be taken for it.

    float32: 1e-4. Softmax is small where a network is sure, and then as good as any number between
    rounding and one. The square root of the precision, half of its digits, is as far from either;
    a third of it leaves no count unproven for want of care.
    """
    return 1e-4 * arithmetic(precision) ** 0.5


def misfit(precision: float) -> float:
    """Norm of the equations of all images for softmax and features up to which they hold, over
    sqrt(2): (N + 1) K numbers, those of the mean softmax weighed ten times.

    float32: 3e-6, which is 53 roundings; true counts reach 1 to 7, as a client's arithmetic is more
    than one rounding, and wrong ones on networks that tell images apart reach 1e6. To rounding in
    the end or noise goes twice its size: true counts sent in float16 or bfloat16 reach 0.3 to 0.7
    of it.

    >>> misfit(0.005) == (0.01**2 + 1e-11) ** 0.5
    True
    """
    own = 1e-11 * arithmetic(precision, SEARCH) ** 2
    return (own + (2 * excess(precision)) ** 2) ** 0.5


def faint(precision: float) -> float:
    """A part of the gradient's largest below which an image's label drowns in its arithmetic.

    float32: 1e-5, sqrt(10) times the misfit: half a digit above what equations may be off.
    """
    return 1e-5 * arithmetic(precision, SEARCH)


def told_apart(precision: float) -> float:
    """|p - y| of an image above which a solution tells its label: as `faint`, for what was sent.

    Below it the equations hold about as well without the image, and so with any other label.
    """
    return 10**0.5 * misfit(precision)
