"""Images told apart in the last layer's gradient, one by one: label, softmax and features of each.

The gradient is a sum of rank-one terms, K grad [W b] = sum_k v_k o_k^T with v_k = p_k - y_k, and
the features o_k end in a one, for the bias. With fewer images than classes its row space holds
every o_k and its column space every v_k, and no more than they span.

Behind a ReLU features are never negative and often zero. The vectors of the row space that are
never negative form a cone, and features with zeros where others have none lie on its edges: linear
programs find them. Their softmax then says which class is missing in v.

Whatever the features are, they can be solved for. For each class n, o = V d in the row space whose
own softmax fits into the column space,

    softmax([W b] o) - e_n  in  span(U),      where K grad [W b] = U S V^T,

is N - 1 - K equations for K numbers d. Two more hold for every image of the batch: its last feature
is one, and c^T S^-1 d = 1 for c = U^T v, as the terms have to sum to S.

Neither way needs counts or data, and both work at any stage of training. What is found is taken
from the gradient, and the rest is easier to find. An image that the network knows to seven digits,
though, has left nothing in a gradient of seven digits.

Weights after several local steps are read as one gradient in the middle of the way. What the way
bends counts as noise, in which fewer images are clear, and one in hundreds is mistaken.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares, linprog, nnls
from scipy.special import softmax

from gleak.labels.last_layer import LastLayer
from gleak.labels.low_rank import LARGE, first_parts, spanning_rows, times
from gleak.labels.shares import directions, mean_embedding
from gleak.labels.statistics import FEW
from gleak.labels.tolerance import noise, settled, zero
from gleak.update import MissingKnowledge, Update

MOST = 32  # images; more take too long
STARTS = 24  # of the search, and three more for each image
SOME = 1500  # features, and twenty for each image, bound the cone in a linear program
CLEAR = 0.03  # a term is told from noise if that could change it by no more than this part
LOOSE = 0.01  # how far features from linear programs may be off
SAME = 0.02  # relative distance of features below which two solutions are one


@dataclass(frozen=True, eq=False)
class Singles:
    """Images found in the gradient of a batch, m of them, in ascending order of their labels.

    Parameters
    ----------
    labels : (m,)
        Their classes.
    features : (m, M) float64
        What entered the classifier.
    softmax : (m, N) float64
        What the network makes of them.
    complete
        Whether they make up the whole gradient, so that m = K and nothing is left to find.
    """

    labels: torch.Tensor
    features: torch.Tensor
    softmax: torch.Tensor
    complete: bool


@dataclass(frozen=True, eq=False)
class Single:
    """One image: its label, features (M + 1,) with the one at the end, and softmax (N,)."""

    label: int
    features: np.ndarray
    softmax: np.ndarray

    @property
    def wrong(self) -> np.ndarray:
        """v = p - y (N,)."""
        return less_one(self.softmax, self.label)


def single_images(update: Update, *, seed: int = 0) -> Singles:
    """The images of a batch that its gradient gives away one by one.

    Parameters
    ----------
    update
        What the client sent.
    seed
        Of all random draws.

    Raises
    ------
    MissingKnowledge
        Without the gradients of the classifier's weight and bias, for weights whose client did not
        tell lr, epochs and batch size, for as many images as classes or more, and for more than 32.

    Examples
    --------
    >>> import gleak
    >>> batch = gleak.load_batch("cifar10-samples", indices=[0, 1])
    >>> found = single_images(gleak.fedsgd(gleak.build_model("lenet", batch), batch))
    >>> found.labels.tolist(), found.complete, tuple(found.features.shape)
    ([3, 8], True, (2, 768))
    """
    update.refuse_contradictions()
    return find_singles(LastLayer.of(update, seed=seed, inputs=FEW))


def find_singles(layer: LastLayer) -> Singles:
    """See `single_images`."""
    if layer.local_steps > 1:
        layer = layer.at(None)
    if layer.k > min(layer.n - 1, MOST):
        raise MissingKnowledge(
            f"one by one come fewer images than classes, and {MOST} at most; "
            f"here are {layer.k} images and {layer.n} classes"
        )
    scale = float(layer.few_gaussian[1].square().mean().sqrt().clamp_min(1e-12))
    whole = Terms(*seen_in_frame(layer, scale), scale, layer.k, layer.precision)
    draws = np.random.default_rng(layer.seed)
    found: list[Single] = []
    while len(found) < layer.k:
        rest = whole.without(found)
        both = whole.chosen(found + rest.solutions(layer, draws))
        if len(both) <= len(found):
            break
        found = both
    found.sort(key=lambda single: single.label)

    def stacked(rows: list[np.ndarray], length: int) -> torch.Tensor:
        return torch.from_numpy(np.array(rows).reshape(len(found), length))

    return Singles(
        torch.tensor([single.label for single in found], dtype=torch.long),
        stacked([single.features[:-1] for single in found], layer.sent_weight.shape[1]),
        stacked([single.softmax for single in found], layer.n),
        complete=len(found) == layer.k and whole.explained_by(found),
    )


def seen_in_frame(
    layer: LastLayer, scale: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """K grad [W, scale b] and [W, b / scale] (N, M + 1) each; and None.

    Of a large classifier (N, r) each, in a frame of r orthogonal rows (r, M + 1) that span the
    gradient: last comes the frame.
    """
    gradient, weight = layer.bias_gradient[:, None] * scale, layer.bias[:, None] / scale
    gradient, weight = gradient.detach(), weight.detach()
    if layer.sent_gradient.numel() <= LARGE:
        gradient = torch.cat([layer.weight_gradient, gradient], 1)
        weight = torch.cat([layer.weight, weight], 1)
        return layer.k * gradient.cpu().numpy(), weight.detach().cpu().numpy(), None
    last, last_weight = gradient.cpu().numpy(), weight.cpu().numpy()
    rows = spanning_rows(layer.sent_gradient, layer.k + 1)
    frame = np.zeros((len(rows) + 1, rows.shape[1] + 1))  # and the bias's own direction
    frame[:-1, :-1], frame[-1, -1] = rows, 1.0
    made = np.hstack([times(layer.sent_gradient, rows.T), last])
    return layer.k * made, np.hstack([times(layer.sent_weight, rows.T), last_weight]), frame


@dataclass(frozen=True, eq=False)
class Terms:
    """A sum of at most `most` rank-one terms v o^T, (N, M + 1), and the classifier [W, b / scale].

    frame: None, or the rows (r, M + 1) that the sum and the classifier are written by, (N, r) each.
    The last feature of every image is `scale` in place of one: as large as the others.
    noise: how large a term rounding alone could make. precision: of what was sent.
    """

    gradient: np.ndarray
    weight: np.ndarray
    frame: np.ndarray | None
    scale: float
    most: int
    precision: float
    given_noise: float | None = None

    @cached_property
    def parts(self) -> tuple[np.ndarray, ...]:
        """U, S and V^T, one longer than `most` at least where the shape allows."""
        if min(self.gradient.shape) > 200:  # the rank is far lower, so a part of the SVD will do
            return first_parts(self.gradient, self.most + 1)
        return np.linalg.svd(self.gradient, full_matrices=False)

    @cached_property
    def decomposition(self) -> tuple[np.ndarray, ...]:
        """U (N, r), S (r,), V^T (r, M + 1), of what is larger than noise."""
        left, values, right = self.parts
        rank = int((values[: self.most] > 3 * self.noise).sum())
        right = right[:rank] if self.frame is None else right[:rank] @ self.frame
        return left[:, :rank], values[:rank], right

    def in_frame(self, features: np.ndarray) -> np.ndarray:
        """Features (..., M + 1) as the sum and the classifier are written."""
        return features if self.frame is None else features @ self.frame.T

    @cached_property
    def noise(self) -> float:
        if self.given_noise is not None:
            return self.given_noise
        values = self.parts[1]
        return max([noise(self.precision) * values[0], *values[self.most : self.most + 1]])

    def without(self, found: list[Single]) -> "Terms":
        """What is left of the sum."""
        terms = sum(np.outer(single.wrong, self.in_frame(single.features)) for single in found)
        left = self.most - len(found)
        gradient = self.gradient - terms
        given = self.weight, self.frame, self.scale, left, self.precision, self.noise
        return Terms(gradient, *given)

    def explained_by(self, found: list[Single]) -> bool:
        left = np.linalg.norm(self.without(found).gradient)
        return bool(left < 0.02 * np.linalg.norm(self.gradient))

    def chosen(self, candidates: list[Single]) -> list[Single]:
        """Those whose terms sum to this one, each as often as it takes: c d^T weighted sum to S."""
        left, values, right = self.decomposition
        if not candidates:
            return []
        root = np.sqrt(values)
        terms = [  # of size one, however little an image has left
            np.outer(left.T @ single.wrong / root, right @ single.features / root).ravel()
            for single in candidates
        ]
        times, _ = nnls(np.array(terms).T, np.eye(len(root)).ravel(), maxiter=10_000)
        counted = zip(candidates, times.round().astype(int), strict=True)
        return [single for single, count in counted for _ in range(count)]

    def solutions(self, layer: LastLayer, draws: np.random.Generator) -> list[Single]:
        """Different images that this sum may hold, from edges of the cone, or from guesses."""
        right = self.decomposition[2]
        if not len(right):
            return []
        found: list[Single] = []
        zeros = layer.non_negative and bool((layer.few_gaussian[1] == 0).any())
        starts = self.edges(draws) if zeros else guesses(layer, self.scale, draws)
        for features, label in starts:
            single = self.solved(right @ features, label)
            if single and not any(near(single.features, other.features) for other in found):
                found.append(single)
            if len(found) == self.most:
                break
        return found

    def edges(self, draws: np.random.Generator) -> Iterator[tuple[np.ndarray, int]]:
        """Edges of the cone of features that are never negative, each with its likeliest label.

        A linear program with a random objective ends at an edge, cut where the last feature is one.
        The features that are zero there, if they are many, say exactly where it runs.
        """
        _, values, right = self.decomposition
        used = right[:, np.linalg.norm(right, axis=0) > zero(self.precision)].T
        some = draws.permutation(len(used))[: SOME + 20 * len(values)]
        slack = self.scale * max(settled(self.precision), self.noise / values[-1])
        seen: list[np.ndarray] = []
        for _ in range(STARTS + 3 * self.most):
            found = linprog(
                draws.normal(size=len(values)),
                A_ub=-used[some],
                b_ub=np.full(len(some), slack),
                A_eq=right[None, :, -1],
                b_eq=[self.scale],
                bounds=(None, None),
            )
            if found.status:
                continue
            mix = found.x
            for _ in range(2):
                zeros = used[used @ mix < 1e-3 * self.scale]
                if len(zeros) >= 2 * len(values):
                    line = np.linalg.svd(zeros, full_matrices=False)[2][-1]
                    height = right[:, -1] @ line
                    if abs(height) > 1e-9:
                        mix = line * self.scale / height
            if not any(near(mix, other) for other in seen):
                seen.append(mix)
                yield mix @ right, self.likeliest(mix)

    def likeliest(self, mix: np.ndarray) -> int:
        """The class whose label makes the features V d a term of the sum."""
        left, values, right = self.decomposition
        p = softmax(self.weight @ self.in_frame(mix @ right))
        dual = left @ (mix / values)
        share = dual @ p - dual  # c^T S^-1 d for each class
        # how much of v lies outside of span(U), from |U^T v|^2 and |v|^2 for each class
        inside = left.T @ p
        inside = inside @ inside - 2 * left @ inside + np.square(left).sum(1)
        outside = np.sqrt((1 - inside / (p @ p - 2 * p + 1).clip(1e-30)).clip(0))
        return int(np.argmin(outside + np.abs(share - 1).clip(max=1)))

    def solved(self, mix: np.ndarray, label: int) -> Single | None:
        """The term of this label nearest to features V d, or None if there is none nearby."""
        left, values, right = self.decomposition
        logits, last = self.weight @ self.in_frame(right).T, right[:, -1] / self.scale

        def parts(mix: np.ndarray) -> tuple[Any, ...]:
            p = softmax(logits @ mix)
            wrong = less_one(p, label)
            inside = left.T @ wrong
            return p, wrong, inside, np.linalg.norm(wrong) + 1e-30, inside @ (mix / values) - 1

        def residual(mix: np.ndarray) -> np.ndarray:
            _, wrong, inside, norm, share = parts(mix)
            equations = (wrong - left @ inside) / norm
            return np.concatenate([equations, [0.1 * np.tanh(share), 0.1 * (last @ mix - 1)]])

        def slope(mix: np.ndarray) -> np.ndarray:
            p, wrong, inside, norm, share = parts(mix)
            change = p[:, None] * (logits - p @ logits)
            change_inside = left.T @ change
            outside = (wrong - left @ inside) / norm
            equations = change - left @ change_inside - np.outer(outside, wrong @ change / norm)
            of_share = change_inside.T @ (mix / values) + inside / values
            of_share *= 0.1 * (1 - np.tanh(share) ** 2)
            return np.vstack([equations / norm, of_share, 0.1 * last])

        determined = 2 * self.most <= len(self.weight) + 1
        if determined:
            found = least_squares(residual, mix, slope, method="lm", max_nfev=60, xtol=1e-12)
            mix = found.x
        p, wrong, inside, norm, share = parts(mix)
        # what noise in the sum does to first order
        v_noise, o_noise = (self.noise * np.linalg.norm(x / values) for x in (inside, mix))
        clear = v_noise * o_noise / self.noise < CLEAR
        loose = 0.0 if determined else LOOSE
        left_open = settled(self.precision)
        if (
            not clear
            or np.linalg.norm(wrong - left @ inside) > 10 * v_noise + loose * norm
            or abs(share) > 10 * v_noise * o_noise / self.noise + left_open + loose
            or abs(last @ mix - 1) > 10 * o_noise / self.scale + left_open
        ):
            return None
        return Single(label, mix @ right, p)


def guesses(
    layer: LastLayer, scale: float, draws: np.random.Generator
) -> Iterator[tuple[np.ndarray, int]]:
    """Features that images of each class might have: those of random inputs, moved towards the
    mean that the gradient shows and the class's row of W.
    """
    mean, towards = mean_embedding(layer).cpu().numpy(), directions(layer).cpu().numpy()
    inputs = torch.cat([layer.few_natural[1], layer.few_gaussian[1]]).cpu().numpy()
    inputs = inputs - inputs.mean(0)
    unit = np.linalg.norm(mean)
    for label in np.flatnonzero(~layer.unseen).tolist():
        for attempt in range(STARTS):
            guess = mean + (0, 0.3, 1, 2)[attempt % 4] * unit * towards[label]
            guess = guess + draws.choice(inputs) * draws.choice([0, 1, 2])
            yield np.append(layer.clamp(torch.from_numpy(guess)).numpy(), scale), label


def less_one(softmax: np.ndarray, label: int) -> np.ndarray:
    """p - y (N,)."""
    wrong = softmax.copy()
    wrong[label] -= 1
    return wrong


def near(one: np.ndarray, other: np.ndarray) -> bool:
    return np.linalg.norm(one - other) < SAME * np.linalg.norm(one)
