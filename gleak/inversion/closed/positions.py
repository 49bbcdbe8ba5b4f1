"""Which rows of a 1x1 convolution's gradient belong to which position of which image.

Such a gradient is S^T A, with one row of the slopes S and of the inputs A for each position of each
image. Behind a pooling over all positions and a ReLU, S has at each position what the pooling
spread where the ReLU was active, and zero elsewhere: patterns of zeros and ones, which a mixture of
two is not. That tells the rows apart, in no order. What a 3x3 convolution before sees at its taps
tells which position is beside which.
"""

from collections.abc import Sequence

import torch
from scipy.linalg import qr

MOST = 16  # positions that are told apart: each doubles the patterns to try
WRONG = 1e-3  # squared error of patterns, relative, below which they are right


def zeros_and_ones(span: torch.Tensor, scale: torch.Tensor, number: int) -> torch.Tensor:
    """The patterns (number, M) of zeros and ones that, times `scale` (M,), lie in a space.

    span: (M, rank), whose columns span it. As many rows as the rank say what a vector of the space
    is, so that all patterns that it may have there can be tried.

    Raises ArithmeticError unless there are as many.
    """
    rank = span.shape[1]
    large = (scale.abs() > 0.3 * scale.abs().median()).nonzero()[:, 0]
    share = span[large] / scale[large, None]
    order = qr(share.T.cpu().numpy(), mode="r", pivoting=True)[1]  # rows that are far from alike
    first = torch.from_numpy(order[:rank].astype(int))
    made = torch.linalg.solve(share[first], share, left=False)  # of ones in these rows
    tried = torch.cartesian_prod(*[torch.arange(2.0).to(share)] * rank).view(-1, rank)[1:]
    some = tried @ made[torch.from_numpy(order[rank : rank + 64].astype(int))].T
    best = (some - some.round().clamp(0, 1)).square().sum(1).argsort()[: 4 * number]
    made = torch.linalg.solve(share[first], span / scale[:, None], left=False)
    whole = tried[best] @ made.T
    patterns = whole.round().clamp(0, 1)
    wrong = ((whole - patterns) * scale).square().sum(1) / (patterns * scale).square().sum(1)
    found = wrong.argsort()[:number]
    if wrong[found].max() > WRONG:
        raise ArithmeticError("its positions could not be told apart")
    return patterns[found] > 0.5


def arranged(seen: Sequence[torch.Tensor], height: int, width: int) -> list[list[int]]:
    """The positions of each image, row by row, as numbers of those that were seen in no order.

    seen: for each of the nine taps, what the tap sees at each position (positions, C): the input
    there, or beside it, or zero beyond the border.

    Raises ArithmeticError where they do not fit together.
    """
    zero = torch.zeros_like(seen[0][:1])
    candidates = torch.cat([seen[4], zero])  # one row for each position, and one for the border
    border = len(candidates) - 1
    found = {tap: torch.cdist(seen[tap], candidates).argmin(1).tolist() for tap in (1, 3, 5, 7)}
    up, left, right, down = (found[tap] for tap in (1, 3, 5, 7))
    corners = [at for at in range(border) if up[at] == border == left[at]]
    images = []
    for corner in corners:
        rows = [corner]
        while down[rows[-1]] != border and len(rows) <= height:
            rows.append(down[rows[-1]])
        image = []
        for at in rows:
            for _ in range(width):
                if at == border:
                    break
                image.append(at)
                at = right[at]
        images.append(image)
    if sorted(sum(images, [])) != list(range(border)) or len(images) * height * width != border:
        raise ArithmeticError("its positions do not fit together")
    return images
