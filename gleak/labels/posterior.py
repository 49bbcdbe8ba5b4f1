"""Our own method: label counts with an uncertainty, without any data.

`find_shares` reads from the gradient what share of the batch each class seems to have. Here the
shares become a posterior over whole counts: a Dirichlet prior of unknown skew, a noise model for
the shares, and what the signs of the gradient prove. Where the gradient says nothing, the prior is
left, and with it the guess of K/N for each class. Where counts stay open and the batch is smaller
than the number of classes, `single` finds its images one by one, and their labels count.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.special import gammaln

from gleak.labels import rules
from gleak.labels.last_layer import LastLayer
from gleak.labels.shares import Shares, find_shares
from gleak.labels.singles import find_singles
from gleak.labels.statistics import FEW
from gleak.labels.tolerance import excess, whole
from gleak.update import MissingKnowledge, Update

# Dirichlet prior over counts, concentration -> chance: labels drawn evenly (the K/N guess), or of
# unknown skew. Batches far from even say so by their signs and shares.
PRIOR = {0.01: 0.1, 0.1: 0.1, 0.3: 0.1, 1.0: 0.1, 3.0: 0.1, 1000.0: 0.5}

# On an unsure network the shares are counts, wrong by some part of K times the deviation of the
# softmax of a class among images. The evidence chooses the part.
LEVELS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)

# On a network that knows its images a share is a matter of how hard the images of a class are. LEAK
# of it goes to other classes, which get FLOOR K/N, and its variance is UNEVEN l^2 (1 - l/K) at the
# count l. The chance that l samples of a class leave no negative entry in its row of grad W is
# MISSED^(l^FADES). Fitted on networks trained on the digits, and tested on others, by
# benchmarks/label_noise.py.
LEAK, FLOOR, UNEVEN = 0.28, 0.38, 1.01
MISSED, FADES = 0.29, 0.33


@dataclass(frozen=True, eq=False)
class Grid:
    """The counts that are considered for each class, one class after the other in flat arrays (L,).

    Each class has a range of its own, so that many classes and many samples fit in memory.
    """

    count: np.ndarray
    owner: np.ndarray
    start: np.ndarray  # (N,)

    @classmethod
    def around(cls, share: np.ndarray, k: int, at_least: np.ndarray) -> "Grid":
        """From 0 to well above the share."""
        size = np.minimum(k, np.maximum(4 * share.astype(int) + 40, at_least)) + 1
        start = np.concatenate([[0], size.cumsum()[:-1]])
        owner = np.repeat(np.arange(len(share)), size)
        return cls(np.arange(size.sum()) - start[owner], owner, start)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Over the counts of each class: (..., L) -> (..., N)."""
        return np.add.reduceat(values, self.start, axis=-1)

    def top(self, values: np.ndarray) -> np.ndarray:
        return np.maximum.reduceat(values, self.start, axis=-1)

    def cumulate(self, table: np.ndarray) -> np.ndarray:
        """P(count of the owner <= this one) (L,)."""
        total = np.concatenate([[0], table.cumsum()])
        return total[1:] - total[self.start][self.owner]


@dataclass(frozen=True, eq=False)
class LabelPosterior:
    """Counts with their uncertainty.

    Parameters
    ----------
    counts : (N,)
        Whole numbers that sum to K, the best in expected instance accuracy.
    mean, low, high : (N,)
        Posterior mean and the interval that holds the count with 90 % probability.
    at_least : (N,)
        What the signs of the gradient prove to be there, and the images found one by one; the
        latter are next to certain for one local step, and likely for several.
    trust
        1 where the gradient gives the counts directly, 0 where it gives only shares of a flow.
    """

    counts: torch.Tensor
    mean: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    at_least: torch.Tensor
    trust: float

    @property
    def certain(self) -> torch.Tensor:
        """Whether the interval of each class is a single number (N,)."""
        return self.low == self.high

    def frame(self) -> pd.DataFrame:
        """One row for each class."""
        names = ("counts", "mean", "low", "high", "at_least", "certain")
        return pd.DataFrame({name: getattr(self, name).tolist() for name in names})


def label_posterior(update: Update, *, seed: int = 0) -> LabelPosterior:
    """Label counts with 90 % intervals, from the update alone.

    Parameters
    ----------
    update
        What the client sent.
    seed
        Of the random images that tell how the network answers.


    Raises
    ------
    MissingKnowledge
        When the classifier has no bias.
    Contradiction
        As `restore_labels`.

    Examples
    --------
    >>> import gleak
    >>> batch = gleak.load_batch("cifar10-samples", indices=[0, 1, 2])
    >>> found = label_posterior(gleak.fedsgd(gleak.build_model("lenet", batch), batch))
    >>> found.frame()[["counts", "low", "high"]].query("counts > 0")
       counts  low  high
    3       1    1     1
    8       2    2     2
    """
    update.refuse_contradictions()
    return describe(LastLayer.of(update, seed=seed, inputs=FEW))


def gleak(layer: LastLayer) -> torch.Tensor:
    """Counts of `label_posterior`, without their uncertainty.

    Without a bias gradient they are those of `rules.zlg`, the strongest rule that needs none.
    """
    if layer.has_bias:
        return describe(layer).counts.double()
    return rules.zlg(layer)


def describe(layer: LastLayer) -> LabelPosterior:
    """The posterior of one last layer; see `label_posterior`."""
    found, least = find_shares(layer), proven(layer)
    posterior = posterior_of(layer, found, least)
    if not posterior.certain.all():
        try:
            labels = find_singles(layer).labels
        except MissingKnowledge:
            return posterior
        least = np.maximum(least, np.bincount(labels, minlength=layer.n))
        if least.sum() <= layer.k:
            posterior = posterior_of(layer, found, least)
    return posterior


def posterior_of(layer: LastLayer, found: Shares, least: np.ndarray) -> LabelPosterior:
    """The posterior, given the shares and the least count (N,) of each class."""
    grid = Grid.around(found.share, layer.k, least)
    sent = layer.k * layer.bias_gradient.numpy()
    likelihood, chance = likelihoods(grid, found, layer.k, layer.unseen)
    likelihood[:, grid.count < least[grid.owner]] = -np.inf
    table = marginals(grid, layer.k, likelihood, chance)
    cumulative = grid.cumulate(table)
    return LabelPosterior(
        counts=torch.from_numpy(best_counts(grid, cumulative, layer.k, first=sent)),
        mean=torch.from_numpy(grid.sum(table * grid.count)),
        low=torch.from_numpy(grid.sum(cumulative < 0.05).astype(int)),
        high=torch.from_numpy(grid.sum(cumulative < 0.95).astype(int)),
        at_least=torch.from_numpy(least),
        trust=found.trust,
    )


def likelihoods(
    grid: Grid, found: Shares, k: int, absent: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log density (A, L) of shares and signs given each count, for A noises; their chances (A,).

    absent: `LastLayer.unseen` (N,).
    """
    share, count, n = found.share[grid.owner], grid.count, len(found.share)
    spread = found.spread[grid.owner] + 1e-3
    errors = [level * spread for level in LEVELS]
    table = [gamma_log(share + error, count + error, error**2) for error in errors]
    flow = flow_log(share, count, k, n, LEAK, FLOOR, UNEVEN)
    if k < n:  # few rows are negative, and what the others share is what others flow to them
        flow[absent[grid.owner]] = 0.0
    table.append(flow)
    chance = np.array([found.trust / len(LEVELS)] * len(LEVELS) + [1 - found.trust])
    signs = np.where(absent[grid.owner], np.log(MISSED) * count**FADES, 0.0)
    return np.array(table)[chance > 0] + signs, chance[chance > 0]


def proven(layer: LastLayer) -> np.ndarray:
    """The least count (N,) that the signs prove: K grad b_n >= -lambda_n, and where the features
    are never negative, a negative entry in row n of grad W can only come from class n.

    Both hold at any weights, and so for the mean over local steps; the first needs steps in which
    each sample weighs the same.
    """
    least = np.zeros(layer.n, dtype=int)
    if layer.weighs_alike:
        bias = layer.bias_gradient
        size, precision = bias.abs(), layer.precision
        rounding = whole(precision) * size.max() + excess(precision) * size + layer.rounding("bias")
        least = torch.ceil(layer.k * (-bias - rounding)).clamp_min(0).long().numpy()
    if layer.non_negative:
        least = np.maximum(least, ~layer.unseen)
    return least if least.sum() <= layer.k else np.zeros_like(least)


def marginals(grid: Grid, k: int, likelihood: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """Posterior (L,) of each count, given log likelihoods (A, L) and that all counts sum to K.

    Averaged by the evidence over the A noises of the given chances, and over PRIOR. The sum is held
    in the mean, by one factor exp(t l) for all.
    """
    n, count = len(grid.start), grid.count
    tables, evidence = [], []
    for alpha, prior_chance in PRIOR.items():
        prior = gammaln(count + alpha) - gammaln(count + 1) - gammaln(alpha)
        table, log_z = tilted(grid, likelihood + prior, k)
        tables.append(table)
        offset = gammaln(n * alpha) - gammaln(k + n * alpha) + np.log(prior_chance)
        evidence.append(np.log(chance) + log_z + offset)
    weight = np.exp(np.array(evidence) - np.max(evidence))
    return np.einsum("pa,pal->l", weight / weight.sum(), np.array(tables))


def gamma_log(value: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Log density of a Gamma distribution."""
    shape, scale = mean**2 / variance, variance / mean
    return (shape - 1) * np.log(value) - value / scale - shape * np.log(scale) - gammaln(shape)


def flow_log(
    share: np.ndarray,
    count: np.ndarray,
    k: int | np.ndarray,
    n: int | np.ndarray,
    leak: float,
    floor: float,
    uneven: float,
) -> np.ndarray:
    """Log density of a class's share of the flow given its count; see LEAK for the noise."""
    mean = (1 - leak) * count + floor * k / n
    variance = (floor * k / n) ** 2 + uneven * count**2 * (1 - count / k)
    return gamma_log(share + 0.1 * k / n, mean, variance)


def tilted(grid: Grid, log_weight: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Tables (A, L) in proportion to exp(log_weight + t l), with t such that the means sum to K.

    Also the logarithm (A,) of the total weight of all counts that sum to K, in the Gaussian
    approximation of their sum (its variance is that of the tables).
    """

    def at(tilt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        table = log_weight + tilt[:, None] * grid.count
        top = grid.top(table)
        table = np.exp(table - top[:, grid.owner])
        total = grid.sum(table)
        return table / total[:, grid.owner], (np.log(total) + top).sum(1)

    low, high = np.full(len(log_weight), -30.0), np.full(len(log_weight), 30.0)
    for _ in range(36):
        middle = (low + high) / 2
        much = at(middle)[0] @ grid.count > k
        low, high = np.where(much, low, middle), np.where(much, middle, high)
    table, log_z = at(low)
    variance = (table @ grid.count**2) - np.square(grid.sum(table * grid.count)).sum(1)
    return table, log_z - low * k - 0.5 * np.log(2 * np.pi * variance + 1)


def best_counts(grid: Grid, cumulative: np.ndarray, k: int, first: np.ndarray) -> np.ndarray:
    """The whole counts (N,), sum K, of the highest expected instance accuracy under the marginals.

    Each sample goes where it is most likely to be right: to the largest P(count > given so far). Of
    classes that are equally likely the one with the smaller `first` (N,) comes first.
    """
    order = np.lexsort((grid.count, first[grid.owner], cumulative.round(9)))
    return np.bincount(grid.owner[order[:k]], minlength=len(grid.start))
