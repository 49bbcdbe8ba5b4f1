"""Each class's share of the batch, from the gradient of the last layer and its weights alone.

A sample of class n moves softmax mass R_nj to the wrong classes j. In these flows the gradient is

    K grad W_j = sum_n R_nj e_n - (sum_j R_nj of class j) e_j,     K grad b_j: the same with e = 1,

where e_n is a mean embedding of class n. The server does not know e_n, but it knows W: training
turns the rows of W towards the embeddings of their classes, so e_n = o + s W_n (W_n less the mean
row) is a fair dictionary, with o read off the gradient itself. From it follow

- `tied`, for a network that is still unsure of everything: all samples of a class flow alike,
  R_nj = lambda_n softmax(W e_n + b)_j, and the counts lambda are solved for directly, unless those
  of zlg-bias are nearer to whole numbers (`unsure`);
- `flows`, for one that knows its images: most samples say almost nothing, so R is free
  (non-negative least squares), and each class gets its share of the total flow.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls

from gleak.labels.case import Case

MANY_CLASSES = 20  # beyond this the N(N-1) flows are too many to solve for one by one
REACH = 0.5  # s in `flows`, in units of |o|; how far hardly matters, that it is towards W_n does
ROUNDS = 12  # of solving for counts and for o in turn


@dataclass(frozen=True, eq=False)
class Shares:
    """What the least squares say, before any prior.

    share (N,): sums to K. trust: how far it comes from `tied` (1) or from `flows` (0).
    """

    share: np.ndarray
    trust: float


@dataclass(frozen=True, eq=False)
class LastLayer:
    """G = K grad W (N, M) and g = K grad b (N,), W and b, in float64; `signed`: features may be."""

    gradient: torch.Tensor
    bias_gradient: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    signed: bool

    @classmethod
    def of(cls, case: Case) -> "LastLayer":
        gradient, bias_gradient = case.k * case.weight_gradient, case.k * case.bias_gradient
        return cls(gradient, bias_gradient, case.weight, case.bias, not case.non_negative)

    def clamp(self, embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings if self.signed else embeddings.clamp_min(0)

    def mean_embedding(self) -> torch.Tensor:
        """Embedding (M,) of the batch, from the row of the class that is most surely absent."""
        absent = self.bias_gradient.argmax()
        return self.clamp(self.gradient[absent] / self.bias_gradient[absent].clamp_min(1e-30))

    def rows(self) -> torch.Tensor:
        """Directions (N, M) of the classes: W less its mean row, of mean norm 1."""
        rows = self.weight - self.weight.mean(0)
        return rows / rows.norm(dim=1).mean().clamp_min(1e-30)


def find_shares(case: Case) -> Shares:
    """The shares of `tied` where the network is unsure, those of `flows` where it is not."""
    k, trust = case.k, unlearned(case)
    layer = LastLayer.of(case)
    share = np.zeros(case.n)
    for part, method in ((trust, unsure), (1 - trust, flows)):
        if part:
            found = method(layer, case)
            total = found.sum()
            share += part * (k * found / total if total > 0 else np.full(case.n, k / case.n))
    return Shares(share, trust)


def unlearned(case: Case) -> float:
    """1 for a network that has hardly learned, 0 for one that tells images apart.

    It has not if it gives almost the same softmax to all smooth images, or if it finds no more
    difference between them than between images of noise.
    """
    smooth, noise = alike(case.few_natural[0]), alike(case.few_gaussian[0])
    no_more = ramp((1 - noise) / max(1 - smooth, 1e-12), 0.85, 1.0)
    return max(ramp(smooth, 0.92, 0.97), ramp(smooth, 0.7, 0.75) * no_more)


def alike(softmax: torch.Tensor) -> float:
    """How much alike rows of softmax (S, N) are, 1 if they are equal.

    The share of the mean softmax's Gini impurity that each row has; on smooth random images it is
    above 0.97 for networks that have hardly learned, below 0.92 for others. Of rows that differ
    in more of their norm than they have in common, it is 0: among many classes all are impure.
    """
    mean, square = softmax.mean(0).square().sum(), softmax.square().sum(1).mean()
    impurity = (1 - square) / (1 - mean).clamp_min(1e-30)
    return float(impurity) * ramp(float(mean / square), 0.45, 0.55)


def ramp(value: float, low: float, high: float) -> float:
    return float(np.clip((value - low) / (high - low), 0, 1))


def unsure(layer: LastLayer, case: Case) -> np.ndarray:
    """Counts (N,) by `tied` or by zlg-bias, whichever lie nearer to whole numbers, as they should.

    Where random inputs have the softmax of the client's, zlg-bias is right to a few hundredths.
    """
    direct = (case.k * (case.statistics[0].mean(0) - case.bias_gradient)).numpy()
    solved = tied(layer, case)
    solved = case.k * solved / max(solved.sum(), 1e-30)
    return min(solved, direct, key=unwhole).clip(0)


def unwhole(counts: np.ndarray) -> float:
    """The mean distance of counts to whole numbers >= 0: about 1/4 for numbers at random."""
    return float(np.abs(counts - counts.round().clip(0)).mean())


def tied(layer: LastLayer, case: Case) -> np.ndarray:
    """Counts (N,) when the samples of class n have embeddings o + s W_n + noise.

    The noise is how the features of random inputs differ from their mean. For each s: counts by
    non-negative least squares, then o anew from them, in turn; the s with the smallest residual
    wins. On a network that has learned nothing (s = 0) this is zlg-bias with the random inputs
    moved to the mean embedding that the gradient shows.
    """
    n = case.n
    features = case.few_gaussian[1]
    features = features[: max(1, min(32, 10**6 // n**2))]  # for the memory's sake
    noise = features - features.mean(0)
    start = layer.mean_embedding()
    unit = start.norm().clamp_min(1e-30)
    g, eye = layer.bias_gradient, torch.eye(n).double()

    best = None
    few = n <= MANY_CLASSES
    for reach in [0.0, *np.geomspace(0.02, 4, 14)] if few else [0.0, 0.05, 0.25]:
        mean, step = start, reach * unit * layer.rows()
        counts = torch.full((n,), case.k / n).double()
        for _ in range(ROUNDS if few else 2):
            embeddings = layer.clamp(mean + step)
            logits = embeddings @ layer.weight.T + layer.bias
            p = (logits[:, None] + noise @ layer.weight.T).softmax(2)  # of class, input
            terms = p.mean(1) - eye
            # what the noise adds to the gradient: sum_k p_k noise_k^T
            rest = layer.gradient - torch.einsum("n,nij->ji", counts, p) @ noise / len(noise)
            x, residual = rank_one_nnls(terms, embeddings / unit, rest / unit, g, case.k)
            counts = torch.from_numpy(x)
            new = (rest - (counts[:, None] * terms).T @ step).T @ g
            new = layer.clamp(new / g.square().sum().clamp_min(1e-30))
            if (new - mean).norm() < 1e-6 * unit:
                break
            mean = new
        if best is None or residual < best[0]:
            best = (residual, x)
    return best[1]


def flows(layer: LastLayer, _: Case) -> np.ndarray:
    """Total flow out of each class (N,), by non-negative least squares over all R_nj.

    With many classes only the N totals are free, and each class flows to the others in proportion
    to their positive bias gradients.
    """
    n, g = len(layer.bias), layer.bias_gradient
    mean = layer.mean_embedding()
    unit = mean.norm().clamp_min(1e-30)
    embeddings = layer.clamp(mean + REACH * unit * layer.rows()) / unit
    eye = torch.eye(n).double()
    if n > MANY_CLASSES:
        floor = 1e-3 * g.abs().max().clamp_min(1e-30)
        to = (g.clamp_min(0) + floor) * (1 - eye)
        terms = to / to.sum(1, keepdim=True) - eye
        return rank_one_nnls(terms, embeddings, layer.gradient / unit, g)[0]
    # Only the span of the embeddings matters, so work in an orthonormal basis of it.
    embeddings = torch.cat([embeddings, torch.ones(n, 1).double() / unit], 1)
    gradient = torch.cat([layer.gradient / unit, g[:, None] / unit], 1)
    basis = torch.linalg.qr(embeddings.T)[0]
    embeddings, gradient = embeddings @ basis, gradient @ basis
    source, target = (1 - eye).nonzero(as_tuple=True)
    move = eye[target] - eye[source]  # (N(N-1), N): one unit of flow
    system = (move[:, :, None] * embeddings[source][:, None, :]).flatten(1).T
    out = nnls(system.numpy(), gradient.flatten().numpy(), maxiter=50 * len(move))[0]
    return np.bincount(source.numpy(), weights=out, minlength=n)


def rank_one_nnls(terms, embeddings, gradient, bias_gradient, total=None):
    """min over x >= 0 of |G - sum_n x_n d_n e_n^T|^2 + |g - sum_n x_n d_n|^2, with sum x = total.

    terms d (N, N), embeddings e (N, M). The Gram matrix of the rank-one terms is the entrywise
    product of theirs, so nothing larger than N x N is built. Returns x and the squared residual.
    """
    gram = (terms @ terms.T) * (embeddings @ embeddings.T + 1)
    right = ((terms @ gradient) * embeddings).sum(1) + terms @ bias_gradient
    square = gradient.square().sum() + bias_gradient.square().sum()
    if total is not None:
        gram, right, square = gram + 1, right + total, square + total**2
    gram, right = gram.numpy(), right.numpy()
    x = gram_nnls(gram + 1e-12 * np.trace(gram) * np.eye(len(gram)), right)
    return x, float(x @ gram @ x - 2 * right @ x + square)


def gram_nnls(gram: np.ndarray, right: np.ndarray) -> np.ndarray:
    """min over x >= 0 of x^T A x / 2 - r^T x for positive definite A: block principal pivoting.

    Solve for the classes taken to be positive, swap those with the wrong sign, until there are
    none. All at once as long as that helps, else only the last one. Kim & Park 2011.
    """
    positive = right > 0
    fewest, patience = len(right) + 1, 3
    for _ in range(20 * len(right)):
        x = np.zeros_like(right)
        x[positive] = np.linalg.solve(gram[np.ix_(positive, positive)], right[positive])
        slope = gram @ x - right
        limit = 1e-12 * np.abs(right).max()
        wrong = np.where(positive, x < 0, slope < -limit)
        if not wrong.any():
            break
        if wrong.sum() < fewest:
            fewest, patience = wrong.sum(), 3
        elif patience:
            patience -= 1
        else:
            wrong = np.arange(len(right)) == wrong.nonzero()[0].max()
        positive = positive ^ wrong
    return x.clip(0)
