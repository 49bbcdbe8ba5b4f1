"""The published rules, each in the words of its own formula.

With mean cross-entropy over K samples, softmax outputs p_k, one-hot labels y_k and features o_k,

    grad b_n = 1/K sum_k (p_kn - y_kn),      grad W_n = 1/K sum_k (p_kn - y_kn) o_k.

Each function takes a `LastLayer` and returns real-valued counts (N,); `largest_remainder` makes
them whole. g stands for the row sums of grad W, K for the number of samples, N for that of classes.
"""

import torch
from scipy.optimize import nnls

from gleak.labels.last_layer import LastLayer
from gleak.labels.tolerance import zero


def idlg(layer: LastLayer) -> torch.Tensor:
    """The sign rule: a class with g_n < 0 is in the batch. Zhao et al. 2020 (iDLG).

    Exact for one sample. It finds classes, not counts; what K leaves over is dealt out evenly among
    them, the most negative first.
    """
    layer.need_non_negative()
    row_sum = layer.weight_gradient.sum(1)
    return deal(row_sum.argsort()[: max(1, int((row_sum < 0).sum()))], layer)


def gradinversion(layer: LastLayer) -> torch.Tensor:
    """The K classes with the smallest min_m grad W_nm, one sample each. Yin et al. 2021.

    It assumes that no label repeats; with K > N all classes are dealt out in turn.
    """
    layer.need_non_negative()
    return deal(layer.weight_gradient.amin(1).argsort()[: layer.k], layer)


def zlg(layer: LastLayer) -> torch.Tensor:
    """lambda_n = K p_n - K g_n / O, with mean softmax p and mean feature sum O of random inputs.

    Geng et al. 2021, arXiv 2110.09074. Needs features whose sum is not near zero.
    """
    softmax, features = layer.statistics
    feature_sum = features.sum(1).mean()
    if feature_sum.abs() < zero(layer.precision) * features.abs().sum(1).mean().clamp_min(1e-12):
        raise ValueError("zlg divides by the mean feature sum, which is zero for this model")
    return layer.k * (softmax.mean(0) - layer.weight_gradient.sum(1) / feature_sum)


def zlg_bias(layer: LastLayer) -> torch.Tensor:
    """lambda_n = K (p_n - grad b_n): no assumption on features, exact with the batch's own p."""
    return layer.k * (layer.statistics[0].mean(0) - layer.bias_gradient)


def llg(layer: LastLayer) -> torch.Tensor:
    """Greedy: each hit of a class moves g by m = (1 + 1/N) / K sum of the negative g.

    Wainakh et al. 2022 (LLG, PoPETs).
    """
    layer.need_non_negative()
    g = layer.weight_gradient.sum(1)
    impact = (1 + 1 / layer.n) / layer.k * g[g < 0].sum()
    return greedy(g, impact.expand(layer.n), 0.0, layer.k)


def llg_star(layer: LastLayer) -> torch.Tensor:
    """LLG with impact and offset from random inputs (LLG*) or aux data (LLG+). Same paper.

    m = (1 + 1/N) / K * mean of g_i over batches all of class i; the offset s_j is the mean of g_j
    over batches of other classes.
    """
    layer.need_non_negative()
    softmax, features = layer.statistics
    part = softmax * features.sum(1, keepdim=True)  # p_kj S_k
    total = features.sum(1)
    if layer.labels is None:
        own, offset = part.mean(0) - total.mean(), part.mean(0)
    else:
        by_class = layer.by_class(part)
        own = by_class.diagonal() - layer.by_class(total)
        offset = others(by_class)
    impact = (1 + 1 / layer.n) / layer.k * own.mean()
    return greedy(layer.weight_gradient.sum(1), impact.expand(layer.n), offset, layer.k)


def llg_plus(layer: LastLayer) -> torch.Tensor:
    """LLG with auxiliary data: see `llg_star`."""
    layer.by_class(layer.statistics[0])  # refuses when there is none
    return llg_star(layer)


def ebi(layer: LastLayer) -> torch.Tensor:
    """LLG on the bias gradient, with m = 1/K sum of the negative grad b (breaching)."""
    g = layer.bias_gradient
    return greedy(g, (g[g < 0].sum() / layer.k).expand(layer.n), 0.0, layer.k)


def llbg(layer: LastLayer) -> torch.Tensor:
    """Greedy on the bias gradient with the impact that theory gives. Gat & Sharif 2024 (LLBG).

    Each hit of class i moves grad b_i by -(1 - c_i) / K. The confidence c_i is 0 (untrained), or
    the mean softmax of class i on aux data. The offset is 1/N.
    """
    confidence = torch.zeros(layer.n).double()
    if layer.labels is not None:
        confidence = layer.class_softmax.diagonal().clamp(max=0.95)
    return greedy(layer.bias_gradient, -(1 - confidence) / layer.k, 1 / layer.n, layer.k)


def ilrg(layer: LastLayer) -> torch.Tensor:
    """Class embeddings e_n = grad W_n / grad b_n give q_n = softmax(W e_n + b); then solve.

    sum_j q_jn lambda_j - lambda_n = K grad b_n and sum_n lambda_n = K, by pseudoinverse.
    Ma et al. 2023 (iLRG, ICLR). Where these equations are nearly singular a count may come out
    above K: it is K here, and 0 in the authors' code.
    """
    return ilrg_solution(layer).clamp(0, layer.k)


def ilrg_solution(layer: LastLayer) -> torch.Tensor:
    """The solution as it comes, of any sign and size."""
    g = layer.bias_gradient
    safe = torch.where(g.abs() < 1e-12, torch.full_like(g, 1e-12), g)
    logits = (layer.weight_gradient / safe[:, None]) @ layer.weight.T + layer.bias
    system = logits.softmax(1).T - torch.eye(layer.n).double()
    system = torch.cat([system, torch.ones(1, layer.n).double()])
    right = torch.cat([layer.k * g, torch.tensor([layer.k]).double()])
    return torch.linalg.pinv(system) @ right


def posterior(layer: LastLayer) -> torch.Tensor:
    """lambda_n = K (p-_n - grad b_n) / (1 + p-_n - p+_n), with p+ and p- from aux data.

    p+_n is the mean softmax of class n on its own samples, p-_n that on all others'.
    """
    q = layer.class_softmax
    own, other = q.diagonal(), others(q)
    return layer.k * (other - layer.bias_gradient) / (1 + other - own).clamp_min(1e-6)


def rlu(layer: LastLayer) -> torch.Tensor:
    """lambda_n in proportion to max(0, eps_n - grad b_n). Chen & Vikalo 2024 (RLU).

    eps_n is the mean softmax at n of the aux data of other classes (erroneous confidence); in the
    authors' code, the softmax of their mean logits. For several local steps it is the mean along a
    simulated path, see `rlu_path`.
    """
    steps = layer.local_steps
    counts = rlu_counts(others(layer.class_softmax), layer)
    if steps == 1:
        return counts
    start, end = (others(class_logits(layer.at(place))) for place in (0.0, 1.0))
    return rlu_path(counts, start, end, layer)


def rlu_counts(erroneous: torch.Tensor, layer: LastLayer) -> torch.Tensor:
    counts = (erroneous - layer.bias_gradient).clamp_min(0)
    return layer.k * counts / counts.sum().clamp_min(1e-12)


def rlu_path(
    counts: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    layer: LastLayer,
    rounds: int = 5,
) -> torch.Tensor:
    """Local training on `counts`, simulated on the mean logits (N,) of the wrong classes.

    With o the mean embedding, a step moves them by -lr (softmax - counts / K) |o|^2. One sample
    goes from the class that ends most above `end` to the one most below, until they agree or after
    `rounds`; then the erroneous confidence is that of the path's mean.
    """
    g = layer.bias_gradient
    embedding = layer.weight_gradient / torch.where(g.abs() < 1e-12, 1e-12, g)[:, None]
    size = embedding.mean(0).square().sum()
    for _ in range(rounds):
        logits, path = start, []
        for _ in range(layer.local_steps):
            path.append(logits.softmax(0))
            logits = logits - layer.lr * size * (path[-1] - counts / layer.k)
        gap = logits - end
        if gap.abs().max() < 0.1:
            break
        move = min(1.0, float(counts[gap.argmax()]))
        counts = counts.clone()
        counts[gap.argmax()] -= move
        counts[gap.argmin()] += move
    return rlu_counts(torch.stack(path).mean(0), layer)


def class_logits(layer: LastLayer) -> torch.Tensor:
    """Mean logits (N, N) of the aux data of each class."""
    return layer.by_class(layer.statistics[1] @ layer.weight.T + layer.bias)


def others(q: torch.Tensor) -> torch.Tensor:
    """Mean over the rows of the other classes: column j of q (N, N) without its diagonal."""
    return (q.sum(0) - q.diagonal()) / (len(q) - 1)


def confusion(layer: LastLayer) -> torch.Tensor:
    """Least squares on the whole class-conditional softmax Q of the aux data, lambda >= 0.

    sum_n lambda_n (Q_nj - [n = j]) = K grad b_j and sum_n lambda_n = K. `ilrg`, `posterior` and
    `rlu` are special cases of these equations.
    """
    system = layer.class_softmax.T - torch.eye(layer.n).double()
    system = torch.cat([system, torch.ones(1, layer.n).double()])
    right = torch.cat([layer.k * layer.bias_gradient, torch.tensor([layer.k]).double()])
    return torch.from_numpy(nnls(system.numpy(), right.numpy(), maxiter=50 * layer.n)[0])


def deal(classes: torch.Tensor, layer: LastLayer) -> torch.Tensor:
    """K samples dealt out to the classes in turn."""
    dealt = classes[torch.arange(layer.k) % len(classes)]
    return torch.bincount(dealt, minlength=layer.n).double()


def greedy(
    g: torch.Tensor, impact: torch.Tensor, offset: float | torch.Tensor, k: int
) -> torch.Tensor:
    """One hit for each class with negative g, then always one for the most negative.

    A hit of class n takes impact_n off g_n; the offset is subtracted after the first hits.
    """
    g, counts = g.clone(), torch.zeros_like(g)
    first = (g < 0).nonzero().flatten()
    first = first[g[first].argsort()][:k]
    counts[first] += 1
    g[first] -= impact[first]
    g -= offset
    for _ in range(k - len(first)):
        n = g.argmin()
        counts[n] += 1
        g[n] -= impact[n]
    return counts
