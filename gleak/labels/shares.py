"""Each class's share of the batch, from the gradient of the last layer and its weights alone.

A sample of class n moves softmax mass R_nj to the wrong classes j. In these flows the gradient is

    K grad W_j = sum_n R_nj e_n - (sum_j R_nj of class j) e_j,     K grad b_j: the same with e = 1,

where e_n is a mean embedding of class n. The server does not know e_n, but it knows W: training
turns the rows of W towards the embeddings of their classes, so e_n = o + s W_n (W_n less the mean
row) is a fair dictionary, with o read off the gradient itself. From it follow

- `unsure`, for a network that is still unsure of everything: all samples flow alike (s = 0), and
  the bias gives the counts once the softmax at o is known;
- `flows`, for one that knows its images: most samples say almost nothing, so R is free
  (non-negative least squares), and each class gets its share of the total flow.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import solve_triangular
from scipy.optimize import nnls

from gleak.labels.last_layer import LastLayer
from gleak.labels.tolerance import settled

MANY_CLASSES = 20  # beyond this the N(N-1) flows are too many to solve for one by one
REACH = 0.5  # s in `flows`, in units of |o|; how far hardly matters, that it is towards W_n does
ROUNDS = 12  # of solving for counts and for the mean embedding in turn


@dataclass(frozen=True, eq=False)
class Shares:
    """What the least squares say, before any prior.

    share (N,): sums to K, or to more where negative ones were set to 0. spread (N,): K times
    the deviation of the softmax among random images, which errors of `unsure` follow. trust: how
    far the shares come from `unsure` (1) or from `flows` (0).
    """

    share: np.ndarray
    spread: np.ndarray
    trust: float


def find_shares(layer: LastLayer) -> Shares:
    """The shares of `unsure` where the network is that, those of `flows` where it is not.

    Of weights after local training, `flows` takes those that the server sent: most of the change
    was made while p - y was still large. `unsure` takes those that came back: the client's images
    get their labels sooner than random ones, whose softmax in the middle falls short of theirs.
    """
    start = layer.at(0.0)
    trust = unlearned(start)
    share, spread = np.zeros(layer.n), np.ones(layer.n)
    if trust > 0:
        counts, spread = unsure(layer.at(1.0))
        share = trust * counts
    if trust < 1:
        share = share + (1 - trust) * flows(start)
    return Shares(share, spread, trust)


def unlearned(layer: LastLayer) -> float:
    """1 for a network that has hardly learned, 0 for one that tells images apart.

    It has not if it gives almost the same softmax to all smooth images, or if the rows of W have no
    more to do with the features of those than random directions would. The rows of a thousand
    classes hardly prefer a direction; but then each image has a softmax of its own.
    """
    softmax, features = layer.few_natural
    random = 1 - ramp(aligned(layer, features), 1.4, 1.6)
    return max(ramp(alike(softmax), 0.92, 0.97), min(random, ramp(common(softmax), 0.2, 0.3)))


def aligned(layer: LastLayer, features: torch.Tensor) -> float:
    """How much of the features' (S, M) variance the rows of W show, 1 for random directions.

    0.8 to 1.4 for networks without training; for those that know something 1.3 to 1.8 behind
    sigmoids, above 5 behind ReLUs.
    """
    rows = layer.weight - layer.weight.mean(0)
    features = features - features.mean(0)
    chance = rows.square().sum() * features.square().sum() / features.shape[1]
    return float((features @ rows.T).square().sum() / chance.clamp_min(1e-30))


def alike(softmax: torch.Tensor) -> float:
    """How much alike rows of softmax (S, N) are, 1 if they are equal.

    The share of the mean softmax's Gini impurity that each row has; on smooth random images it is
    above 0.97 for networks that have hardly learned, below 0.92 for others. Of rows that differ
    in more of their norm than they have in common, it is 0: among many classes all are impure.
    """
    mean, square = softmax.mean(0).square().sum(), softmax.square().sum(1).mean()
    impurity = (1 - square) / (1 - mean).clamp_min(1e-30)
    return float(impurity) * ramp(common(softmax), 0.45, 0.55)


def common(softmax: torch.Tensor) -> float:
    """What part of the square of a row of softmax (S, N) the mean row has: 1 if all are equal.

    0.76 to 1 for networks without training, 0.15 for one trained on ImageNet.
    """
    return float(softmax.mean(0).square().sum() / softmax.square().sum(1).mean())


def ramp(value: float, low: float, high: float) -> float:
    return float(np.clip((value - low) / (high - low), 0, 1))


def mean_embedding(layer: LastLayer) -> torch.Tensor:
    """Embedding (M,) of the batch, from the row of the class that is most surely absent."""
    gradient, bias_gradient = layer.sums
    absent = bias_gradient.argmax()
    return layer.clamp(gradient[absent] / bias_gradient[absent].clamp_min(1e-30))


def directions(layer: LastLayer) -> torch.Tensor:
    """Directions (N, M) of the classes: W less its mean row, of mean norm 1."""
    rows = layer.weight - layer.weight.mean(0)
    return rows / rows.norm(dim=1).mean().clamp_min(1e-30)


def unsure(layer: LastLayer) -> tuple[np.ndarray, np.ndarray]:
    """Counts (N,) of a network that tells little apart, lambda_n = K (p_n - grad b_n), and spread.

    p is the mean softmax of random inputs, half of them smooth and half noise, with their features
    moved to the mean embedding o that the gradient shows. Each row shows one, as
    K grad W_j = sum_k p_kj (o_k - o) + K grad b_j o - sum over class j of (o_k - o); the first term
    is taken from the random inputs as well. What the rows say is weighed by the number of single
    images that disturb them, and the mean of the random inputs counts as much as one image.
    """
    k, (gradient, g) = layer.k, layer.sums
    features = torch.cat([layer.few_gaussian[1], layer.few_natural[1]])
    guess = mean = features.mean(0)
    noise = features - guess
    for _ in range(ROUNDS):
        p = ((mean + noise) @ layer.weight.T + layer.bias).softmax(1)
        counts = (k * p.mean(0) - g).clamp_min(0)
        say = g / (1 + counts + k * p.square().mean(0))
        rest = gradient - k * p.T @ noise / len(noise)
        new = layer.clamp((say @ rest + guess) / (say @ g + 1))
        if (new - mean).norm() < settled(layer.precision) * guess.norm():
            break
        mean = new
    return counts.numpy(), (k * p.std(0)).numpy()


def flows(layer: LastLayer) -> np.ndarray:
    """K parts (N,) of the total flow, for each class as much as flows out of it."""
    out = flow_out(layer)
    total = out.sum()
    return layer.k * out / total if total > 0 else np.full(layer.n, layer.k / layer.n)


def flow_out(layer: LastLayer) -> np.ndarray:
    """Total flow out of each class (N,), by non-negative least squares over all R_nj.

    With many classes only the N totals are free, and each class flows to the others in proportion
    to their positive bias gradients.
    """
    n, (total, g) = layer.n, layer.sums
    mean = mean_embedding(layer)
    unit = mean.norm().clamp_min(1e-30)
    embeddings = layer.clamp(mean + REACH * unit * directions(layer)) / unit
    eye = torch.eye(n).double()
    if n > MANY_CLASSES:
        floor = 1e-3 * g.abs().max().clamp_min(1e-30)
        to = (g.clamp_min(0) + floor) * (1 - eye)
        terms = to / to.sum(1, keepdim=True) - eye
        return rank_one_nnls(terms, embeddings, total / unit, g)
    # Only the span of the embeddings matters, so work in an orthonormal basis of it.
    embeddings = torch.cat([embeddings, torch.ones(n, 1).double() / unit], 1)
    gradient = torch.cat([total / unit, g[:, None] / unit], 1)
    basis = torch.linalg.qr(embeddings.T)[0]
    embeddings, gradient = embeddings @ basis, gradient @ basis
    source, target = (1 - eye).nonzero(as_tuple=True)
    move = eye[target] - eye[source]  # (N(N-1), N): one unit of flow
    system = (move[:, :, None] * embeddings[source][:, None, :]).flatten(1).T
    out = nnls(system.numpy(), gradient.flatten().numpy(), maxiter=50 * len(move))[0]
    return np.bincount(source.numpy(), weights=out, minlength=n)


def rank_one_nnls(
    terms: torch.Tensor,
    embeddings: torch.Tensor,
    gradient: torch.Tensor,
    bias_gradient: torch.Tensor,
) -> np.ndarray:
    """min over x >= 0 of |G - sum_n x_n d_n e_n^T|^2 + |g - sum_n x_n d_n|^2.

    terms d (N, N), embeddings e (N, M). The Gram matrix of the rank-one terms is the entrywise
    product of theirs, so nothing larger than N x N is built.
    """
    gram = ((terms @ terms.T) * (embeddings @ embeddings.T + 1)).numpy()
    right = (((terms @ gradient) * embeddings).sum(1) + terms @ bias_gradient).numpy()
    root = np.linalg.cholesky(gram + 1e-12 * np.trace(gram) * np.eye(len(gram)))  # A = L L^T
    # x^T A x / 2 - r^T x is |L^T x - L^-1 r|^2 / 2 but for a constant
    return nnls(root.T, solve_triangular(root, right, lower=True), maxiter=50 * len(gram))[0]
