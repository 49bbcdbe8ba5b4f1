"""From real-valued counts to whole ones: the one place where counts are rounded."""

import torch


def largest_remainder(counts: torch.Tensor, total: int) -> torch.Tensor:
    """Non-negative integers (N,) that sum to `total`, nearest to the real-valued `counts` (N,).

    Negative counts become 0 and the rest is scaled down when it is too much; then each class gets
    its whole part, and those with the largest remainders get one more (Hamilton's method).

    >>> largest_remainder(torch.tensor([1.6, -0.3, 2.3, 0.4]), 4).tolist()
    [2, 0, 2, 0]
    """
    counts = counts.double().clamp_min(0)
    if not torch.isfinite(counts).all():
        raise ValueError("the label counts are not finite")
    if counts.sum() == 0:
        counts = torch.ones_like(counts)
    if counts.sum() > total or counts.floor().sum() + len(counts) < total:
        counts = counts / counts.max()  # first to 1, as the smallest floats have no reciprocal
        counts = counts * (total / counts.sum())
    whole = counts.floor()
    left = total - int(whole.sum())
    order = (counts - whole).argsort(descending=True, stable=True)
    whole[order[:left]] += 1
    return whole.long()
