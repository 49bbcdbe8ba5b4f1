"""Our own method: label counts with an uncertainty, without any data.

A sample of class n moves softmax mass R_nj to the wrong classes j. In these flows the gradient is

    K grad W_j = sum_n R_nj e_n - (sum_j R_nj of class j) e_j,     K grad b_j: the same with e = 1,

where e_n is a mean embedding of class n. The server does not know e_n, but it knows W: training
turns the rows of W towards the embeddings of their classes, so e_n = o + s W_n (W_n less the mean
row) is a fair dictionary, with o read off the gradient itself. From it follow

- on a network that is still unsure of everything: `tied`. Within a class all samples flow alike,
  R_nj = lambda_n softmax(W e_n + b)_j, and the counts are solved for directly;
- on a trained one: `flows`. Most samples say almost nothing, so R is free (non-negative least
  squares), and each class gets its share of the total flow.

`blend` decides between the two by what the update says; `label_posterior` turns the shares, with
the signs of the gradient, into a posterior over whole counts.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.linalg import solve_triangular
from scipy.optimize import nnls
from scipy.special import gammaln

from gleak.labels.case import Case
from gleak.update import Update

MANY_CLASSES = 20  # beyond this the N(N-1) flows are too many to solve for one by one
ALPHAS = (0.1, 0.3, 1.0, 3.0, 30.0)  # of the Dirichlet prior over counts, equally likely

MISSED = 0.07  # chance that a class is there though its row of grad W has no negative entry

# Noise of a share x around the count l: mixtures of (weight, v0, v1, v2), each a Gamma of mean
# l + v0 K/64 and variance (v0 K/64)^2 + v1 l + v2 l^2. Where the gradient gives the counts
# directly, the evidence chooses among levels from nearly exact to rough. Fitted by hand once, on
# other networks trained on digits than those of the study.
SURE = (
    ((0.9, 0.03, 3e-4, 1e-5), (0.1, 0.3, 0.05, 0.01)),
    ((0.9, 0.1, 0.01, 1e-3), (0.1, 1.0, 0.1, 0.05)),
    ((0.8, 0.3, 0.05, 0.01), (0.2, 2.0, 0.3, 0.1)),
    ((0.6, 1.0, 0.1, 0.05), (0.4, 3.0, 1.0, 0.5)),
)
UNSURE = ((0.5, 1.0, 1.0, 0.5), (0.5, 2.0, 3.0, 5.0))


@dataclass(frozen=True, eq=False)
class LabelPosterior:
    """Counts with their uncertainty, each (N,).

    counts: whole numbers that sum to K, the best in expected instance accuracy.
    mean, low, high: posterior mean and the interval that holds the count with 90 % probability.
    at_least: what the signs of the gradient prove to be there.
    certain: whether the interval is a single number.
    trust: 1 where the gradient gives the counts directly, 0 where it gives only shares of a flow.
    """

    counts: torch.Tensor
    mean: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    at_least: torch.Tensor
    trust: float

    @property
    def certain(self) -> torch.Tensor:
        return self.low == self.high

    def frame(self) -> pd.DataFrame:
        """One row for each class."""
        names = ("counts", "mean", "low", "high", "at_least", "certain")
        return pd.DataFrame({name: getattr(self, name).tolist() for name in names})


def label_posterior(update: Update, *, seed: int = 0, along: str = "start") -> LabelPosterior:
    """Label counts with 90 % intervals, from the update alone.

    Raises MissingKnowledge when the classifier has no bias.
    """
    return describe(Case(update, seed=seed, inputs=100, along=along))


def gleak(case: Case) -> torch.Tensor:
    """Counts of `label_posterior`, without their uncertainty."""
    return describe(case).counts.double()


def describe(case: Case) -> LabelPosterior:
    """The posterior of one case; see `label_posterior`."""
    shares, trust = blend(case)
    at_least = proven(case)
    sure = 0.9 * trust
    levels = [(sure / len(SURE), level) for level in SURE] + [(1 - sure, UNSURE)]
    table = marginals(shares, case.k, levels, at_least, unseen(case))
    cumulative = np.cumsum(table, axis=1)
    counts = best_counts(table, case.k)
    return LabelPosterior(
        counts=torch.from_numpy(counts),
        mean=torch.from_numpy(table @ np.arange(table.shape[1])),
        low=torch.from_numpy((cumulative >= 0.05).argmax(1)),
        high=torch.from_numpy((cumulative >= 0.95).argmax(1)),
        at_least=torch.from_numpy(at_least),
        trust=trust,
    )


def blend(case: Case) -> tuple[np.ndarray, float]:
    """Shares (N,) that sum to K, and how far they come from `tied` (1) or from `flows` (0).

    The decision is by the total flow over what it would be if the network were as unsure as `tied`
    takes it to be, for the counts that `flows` finds: about 1 before training, near 0 after it. A
    network that has not learned at all, so that even the embedding most like a class gets less than
    three times the softmax of chance, has one softmax for all inputs: that of random ones (`zlg`).
    """
    k = case.k
    gradient = (k * case.weight_gradient, k * case.bias_gradient)
    weight, bias = case.weight, case.bias
    mean = mean_embedding(*gradient, case.non_negative)
    likely = dictionary(mean, weight, 1.0, case.non_negative) @ weight.T + bias
    if likely.softmax(1).diagonal().mean() < min(3 / case.n, (1 + 1 / case.n) / 2):
        direct = (k * case.statistics[0].mean(0) - gradient[1]).clamp_min(0)
        return (k * direct / direct.sum().clamp_min(1e-30)).numpy(), 1.0
    direct, q, embeddings = tied(*gradient, weight, bias, k, case.non_negative)
    out = flows(*gradient, weight, case.non_negative)
    by_flow = k * out / out.sum() if out.sum() > 0 else np.full(case.n, k / case.n)
    wrong = (torch.from_numpy(by_flow)[:, None] * (q - torch.eye(case.n).double())).T
    unsure = flows(wrong @ embeddings, wrong.sum(1), weight, case.non_negative).sum()
    ratio = out.sum() / unsure if unsure > 0 else 1.0
    trust = float(min(max((ratio - 0.4) / 0.2, 0.0), 1.0))
    if alike(*gradient, weight, k):
        trust = 1.0
    direct = k * direct / max(direct.sum(), 1e-12)
    return trust * direct + (1 - trust) * by_flow, trust


def alike(weight_gradient, bias_gradient, weight, k: int) -> bool:
    """Whether the images are alike to the network, though their number shows in the gradient.

    If all embeddings were one, grad W would be of rank one. What is left over, in logits and for
    one unit of bias gradient, is how far the logits of the samples lie apart; less than one changes
    little. With flat counts `flows` cannot tell that from a network that knows its images, but
    then the bias gradient would be small against the sampling noise of counts, sqrt(K).
    """
    size = bias_gradient.square().sum().clamp_min(1e-30)
    rest = weight_gradient - torch.outer(bias_gradient, weight_gradient.T @ bias_gradient / size)
    apart = (rest @ (weight - weight.mean(0)).T).norm() / size.sqrt()
    return bool(apart < 1 and size > 0.3 * k)


def mean_embedding(weight_gradient, bias_gradient, non_negative: bool) -> torch.Tensor:
    """Embedding (M,) of the batch, from the row of the class that is most surely absent."""
    absent = bias_gradient.argmax()
    mean = weight_gradient[absent] / bias_gradient[absent].clamp_min(1e-30)
    return mean.clamp_min(0) if non_negative else mean


def dictionary(mean: torch.Tensor, weight: torch.Tensor, reach: float, non_negative: bool):
    """Embeddings e_n = o + reach |o| W_n (N, M); W_n is row n less the mean row, of norm 1."""
    rows = weight - weight.mean(0)
    rows = rows / rows.norm(dim=1).mean().clamp_min(1e-30)
    embeddings = mean + reach * mean.norm() * rows
    return embeddings.clamp_min(0) if non_negative else embeddings


def tied(weight_gradient, bias_gradient, weight, bias, k: int, non_negative: bool):
    """Counts when all samples of a class have the softmax q_n = softmax(W e_n + b).

    For each reach of the dictionary: counts by non-negative least squares, then o anew from them;
    the reach with the smallest residual wins. Returns counts (N,), q (N, N), embeddings (N, M).
    """
    n = len(bias)
    eye = torch.eye(n).double()
    start = mean_embedding(weight_gradient, bias_gradient, non_negative)
    unit = start.norm().clamp_min(1e-30)
    reaches = [0.0, *np.geomspace(0.02, 4, 14)] if n <= MANY_CLASSES else [0.0, 0.05, 0.25]
    best = None
    for reach in reaches:
        mean = start
        for _ in range(12 if n <= MANY_CLASSES else 2):
            step = dictionary(start, weight, reach, non_negative=False) - start
            embeddings = mean + step
            embeddings = embeddings.clamp_min(0) if non_negative else embeddings
            q = (embeddings @ weight.T + bias).softmax(1)
            terms = q - eye
            counts, residual = rank_one_nnls(
                terms, embeddings / unit, weight_gradient / unit, bias_gradient, k
            )
            flow = (torch.from_numpy(counts)[:, None] * terms).T
            new = (weight_gradient - flow @ step).T @ bias_gradient
            new = new / bias_gradient.square().sum().clamp_min(1e-30)
            new = new.clamp_min(0) if non_negative else new
            if (new - mean).norm() < 1e-6 * unit:
                break
            mean = new
        if best is None or residual < best[0]:
            best = (residual, counts, q, embeddings)
    return best[1:]


def rank_one_nnls(terms, embeddings, weight_gradient, bias_gradient, total=None):
    """min over x >= 0 of |G - sum_n x_n d_n e_n^T|^2 + |g - sum_n x_n d_n|^2, with sum x = total.

    terms d (N, N), embeddings e (N, M). The Gram matrix of the rank-one terms is the entrywise
    product of theirs, so nothing larger than N x N is built. Returns x and the squared residual.
    """
    gram = (terms @ terms.T) * (embeddings @ embeddings.T + 1)
    right = ((terms @ weight_gradient) * embeddings).sum(1) + terms @ bias_gradient
    square = weight_gradient.square().sum() + bias_gradient.square().sum()
    if total is not None:
        gram, right, square = gram + 1, right + total, square + total**2
    gram, right = gram.numpy(), right.numpy()
    ridge = 1e-12 * np.trace(gram) * np.eye(len(gram))
    lower = np.linalg.cholesky(gram + ridge)
    x = nnls(lower.T, solve_triangular(lower, right, lower=True), maxiter=50 * len(gram))[0]
    return x, float(x @ gram @ x - 2 * right @ x + square)


def flows(weight_gradient, bias_gradient, weight, non_negative: bool) -> np.ndarray:
    """Total flow out of each class (N,), by non-negative least squares over all R_nj.

    With many classes only the N totals are free, and each class flows to the others in proportion
    to their positive bias gradients.
    """
    n = len(weight)
    mean = mean_embedding(weight_gradient, bias_gradient, non_negative)
    unit = mean.norm().clamp_min(1e-30)
    eye = torch.eye(n).double()
    if n > MANY_CLASSES:
        embeddings = dictionary(mean, weight, 1.5, non_negative)
        floor = 1e-3 * bias_gradient.abs().max().clamp_min(1e-30)
        to = (bias_gradient.clamp_min(0) + floor) * (1 - eye)
        terms = to / to.sum(1, keepdim=True) - eye
        gradient = weight_gradient / unit
        return rank_one_nnls(terms, embeddings / unit, gradient, bias_gradient)[0]
    # Only the span of the embeddings matters, so work in an orthonormal basis of it.
    embeddings = dictionary(mean, weight, 0.25, non_negative) / unit
    ones = torch.ones(n, 1).double()
    embeddings = torch.cat([embeddings, ones / unit], 1)
    gradient = torch.cat([weight_gradient / unit, bias_gradient[:, None] / unit], 1)
    basis = torch.linalg.qr(embeddings.T)[0]
    embeddings, gradient = embeddings @ basis, gradient @ basis
    source, target = (1 - eye).nonzero(as_tuple=True)
    move = eye[target] - eye[source]  # (N(N-1), N): one unit of flow
    system = (move[:, :, None] * embeddings[source][:, None, :]).flatten(1).T
    out = nnls(system.numpy(), gradient.flatten().numpy(), maxiter=50 * len(move))[0]
    return np.bincount(source.numpy(), weights=out, minlength=n)


def proven(case: Case) -> np.ndarray:
    """The least count (N,) that the signs prove: K grad b_n >= -lambda_n, and where the features
    are never negative, a negative entry in row n of grad W can only come from class n.

    Nothing is proven for several local steps, whose gradients are taken at different weights.
    """
    if case.update.local_steps > 1:
        return np.zeros(case.n, dtype=int)
    bias, weight = case.bias_gradient, case.weight_gradient
    least = torch.ceil(-case.k * bias - 1e-4 * case.k * bias.abs().max()).clamp_min(0)
    if case.non_negative:
        least = torch.maximum(least, (weight.amin(1) < -1e-6 * weight.abs().max()).double())
    least = least.long().numpy()
    return least if least.sum() <= case.k else np.zeros_like(least)


def unseen(case: Case) -> np.ndarray:
    """Classes (N,) without a negative entry in their row of grad W: most likely absent."""
    weight = case.weight_gradient
    if not case.non_negative:
        return np.zeros(case.n, dtype=bool)
    return (weight.amin(1) >= -1e-6 * weight.abs().max()).numpy()


def marginals(shares: np.ndarray, k: int, levels, at_least, absent) -> np.ndarray:
    """Posterior (N, L) of each count, given shares (N,) and that all counts sum to K.

    Averaged by the evidence over noise `levels` (weight, mixture) and over ALPHAS, concentrations
    of a Dirichlet-multinomial prior. The sum is held in the mean, by one factor exp(t l) for all.
    """
    n, size = len(shares), min(k, max(int(4 * shares.max()) + 40, int(at_least.max()))) + 1
    count = np.arange(size)
    tables, evidence = [], []
    for chance, mixture in levels:
        if chance <= 0:
            continue
        likelihood = np.logaddexp.reduce(
            [np.log(w) + gamma_log(shares[:, None], count, k, *v) for w, *v in mixture]
        )
        likelihood[absent, 1:] += np.log(MISSED)
        likelihood[count < at_least[:, None]] = -np.inf
        for alpha in ALPHAS:
            prior = gammaln(count + alpha) - gammaln(count + 1) - gammaln(alpha)
            table, log_z = tilted(likelihood + prior, k)
            tables.append(table)
            evidence.append(np.log(chance) + log_z + gammaln(n * alpha) - gammaln(k + n * alpha))
    weight = np.exp(np.array(evidence) - max(evidence))
    return np.einsum("a,anl->nl", weight / weight.sum(), np.array(tables))


def gamma_log(share, count, k: int, v0: float, v1: float, v2: float):
    """Log density of a share given the count; see SURE for the parameters."""
    floor = v0 * k / 64
    mean = count + floor
    variance = floor**2 + v1 * count + v2 * count**2
    shape, scale = mean**2 / variance, variance / mean
    x = share + floor
    return (shape - 1) * np.log(x) - x / scale - shape * np.log(scale) - gammaln(shape)


def tilted(log_weight: np.ndarray, k: int) -> tuple[np.ndarray, float]:
    """Tables (N, L) in proportion to exp(log_weight + t l), with t such that the means sum to K.

    Also the logarithm of the total weight of all counts that sum to K, in the Gaussian
    approximation of their sum (its variance is that of the tables).
    """
    count = np.arange(log_weight.shape[1])

    def at(tilt):
        table = log_weight + tilt * count
        top = table.max(1, keepdims=True)
        table = np.exp(table - top)
        total = table.sum(1, keepdims=True)
        return table / total, float((np.log(total) + top).sum())

    low, high = -30.0, 30.0
    for _ in range(45):
        middle = (low + high) / 2
        low, high = (low, middle) if (at(middle)[0] @ count).sum() > k else (middle, high)
    table, log_z = at(low)
    variance = (table @ count**2 - (table @ count) ** 2).sum()
    return table, log_z - low * k - 0.5 * np.log(2 * np.pi * variance + 1)


def best_counts(table: np.ndarray, k: int) -> np.ndarray:
    """The whole counts (N,), sum K, of the highest expected instance accuracy under the marginals.

    Each sample goes where it is most likely to be right: to the largest P(count > given so far).
    """
    tail = np.zeros((table.shape[0], k + 1))
    tail[:, : table.shape[1]] = np.clip(1 - np.cumsum(table, 1), 0, 1)
    best = np.argsort(-tail, axis=None, kind="stable")[:k]  # tails fall, so the order is kept
    return np.bincount(best // (k + 1), minlength=len(table))
