"""The features of every single image, from the gradient of the last layer and the label counts."""

from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares
from scipy.sparse.linalg import LinearOperator
from scipy.special import softmax

from gleak.labels.last_layer import LastLayer
from gleak.labels.low_rank import LARGE, first_parts, spanning_rows, times
from gleak.labels.singles import find_singles
from gleak.labels.statistics import FEW
from gleak.labels.tolerance import misfit, rank_cutoff
from gleak.update import MissingKnowledge, Update

MOST = 64  # images; K^2 unknowns take minutes beyond
DENSE = 16  # images up to which the slopes of all K^2 unknowns are written down


class NoSoftmaxFits(MissingKnowledge):
    """No features were found whose softmax fits: most likely the counts are wrong."""

    def __init__(self) -> None:
        super().__init__("no softmax fits the classifier's gradient: are the counts right?")


def image_features(
    update: Update | LastLayer, counts: torch.Tensor, attempts: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (K, M) and softmax (K, N) of every image, in float64, in ascending order of labels.

    From the images that `single_images` finds, if those are all, and else from a search for all at
    once: see `features_at_once`, also for the arguments.

    Raises NoSoftmaxFits for counts that are not those found, MissingKnowledge where there is no
    closed form.

    >>> import gleak
    >>> batch = gleak.load_batch("cifar10-samples", indices=[0, 1])
    >>> update = gleak.fedsgd(gleak.build_model("lenet", batch), batch)
    >>> features, softmax = image_features(update, batch.label_counts)
    >>> truth, _ = update.forward(batch.images[batch.labels.argsort()])
    >>> bool((features - truth).norm() < 1e-4 * truth.norm())
    True
    """
    layer = LastLayer.of(update, inputs=FEW)
    try:  # those of weights would belong to another model, see `Update.as_gradient`
        singles = find_singles(layer) if layer.local_steps == 1 else None
    except MissingKnowledge:
        singles = None
    if not singles or not singles.complete:
        return features_at_once(layer, counts, attempts)
    if not torch.equal(torch.bincount(singles.labels, minlength=len(counts)), counts.cpu()):
        raise NoSoftmaxFits
    try:  # the equations of all together leave fewer digits open than those of one
        return features_at_once(layer, counts, 1, singles.softmax.numpy())
    except MissingKnowledge:
        device = layer.sent_weight.device
        return singles.features.to(device), singles.softmax.to(device)


def features_at_once(
    update: Update | LastLayer,
    counts: torch.Tensor,
    attempts: int | None = None,
    start: np.ndarray | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (K, M) and softmax (K, N) of every image by one search for all of them.

    The classifier's gradient is G = (P - Y)^T O / K, of rank K at most. What spans its columns is
    known, so P = Y + C U^T with a K x K matrix C, and O follows from C. The classifier must turn O
    into P again: that decides C. Images of one class differ only by their softmax, which on
    untrained networks is a matter of the fifth digit; it is in the gradient all the same.

    attempts: starts of the search for C, by default as many as a minute allows.
    start: softmax (K, N) to start from.

    How well the equations must hold is a matter of the precision of what was sent, see
    `gleak.labels.tolerance.misfit`.

    Raises MissingKnowledge without the gradients of the classifier's weight and bias, for more
    images than classes less one, and for a gradient that does not tell the images apart;
    NoSoftmaxFits when no solution is found.
    """
    layer = LastLayer.of(update)
    if not layer.has_bias:
        raise MissingKnowledge("features in closed form need the gradient of the classifier's bias")
    device = layer.sent_weight.device
    bias_gradient, bias = (t.detach().cpu().numpy() for t in (layer.bias_gradient, layer.bias))
    one_hot = one_hot_of(counts)
    size, classes = one_hot.shape
    if size > min(classes - 1, MOST):
        raise MissingKnowledge(
            f"features in closed form need fewer images than classes, and {MOST} at most; "
            f"here {size} images and {classes} classes"
        )
    mean_softmax = bias_gradient + one_hot.mean(0)
    if layer.sent_gradient.numel() > LARGE:
        frame = spanning_rows(layer.sent_gradient, size)
        made = times(layer.sent_gradient, frame.T)
        left, values, right = np.linalg.svd(made, full_matrices=False)
        right = right @ frame
    else:
        gradient = layer.weight_gradient.detach().cpu().numpy()
        if min(gradient.shape) > 8 * size:  # of a rank far lower
            left, values, right = first_parts(gradient, size, careful=True)
        else:
            left, values, right = np.linalg.svd(gradient, full_matrices=False)
    if values[size - 1] < rank_cutoff(layer.precision) * values[0]:
        raise MissingKnowledge("the classifier's gradient does not tell the images apart")
    columns, rows = left[:, :size], size * values[:size, None] * right[:size]
    outputs = times(layer.sent_weight, rows.T).T

    def logits_of(mix: np.ndarray) -> np.ndarray:
        return np.linalg.solve(mix.T, outputs) + bias

    def residual(flat: np.ndarray) -> np.ndarray:
        mix = flat.reshape(size, size)
        guess = one_hot + mix @ columns.T
        try:
            error = softmax(logits_of(mix), axis=1) - guess
        except np.linalg.LinAlgError:
            return np.full(size * classes + classes, 1e3)
        return np.concatenate([error.ravel(), 10 * (guess.mean(0) - mean_softmax)])

    def parts(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the slope is made of: inverse (K, K), softmax and logits without bias (K, N)."""
        mix = flat.reshape(size, size)
        logits = logits_of(mix)
        return np.linalg.inv(mix.T), softmax(logits, axis=1), logits - bias

    def dense_slope(flat: np.ndarray) -> np.ndarray:
        """Of the residual by the mix, (K N + N, K^2)."""
        inverse, p, scores = parts(flat)
        by_mix = p[:, :, None] * ((p @ scores.T)[:, None] - scores.T)
        error = by_mix[..., None] * inverse[:, None, None]  # (K, N, K, K)
        error[range(size), :, range(size)] -= columns
        of_mean = np.broadcast_to(10 / size * columns[:, None], (classes, size, size))
        return np.concatenate([error.reshape(-1, size**2), of_mean.reshape(-1, size**2)])

    def slope(flat: np.ndarray) -> LinearOperator:
        """The same, K N numbers to K^2, by products of a cost of K^2 N."""
        inverse, p, scores = parts(flat)

        def by_logits(change: np.ndarray) -> np.ndarray:
            return p * (change - (p * change).sum(1, keepdims=True))

        def ahead(change: np.ndarray) -> np.ndarray:
            change = change.reshape(size, size)
            guess = change @ columns.T
            error = by_logits(-inverse @ (change.T @ scores)) - guess
            return np.concatenate([error.ravel(), 10 * guess.mean(0)])

        def back(left: np.ndarray) -> np.ndarray:
            error, of_mean = left[: size * classes].reshape(size, classes), left[size * classes :]
            change = -scores @ by_logits(error).T @ inverse
            return (change + (10 / size * of_mean - error) @ columns).ravel()

        shape = (size * classes + classes, size * size)
        return LinearOperator(shape, matvec=ahead, rmatvec=back, dtype=float)

    how: dict[str, Any] = {"max_nfev": 200, "jac": dense_slope}
    if size > DENSE:
        within = {"atol": 1e-10, "btol": 1e-10, "maxiter": 500}
        how = {"max_nfev": 40, "jac": slope, "tr_solver": "lsmr", "tr_options": within}
    draws = np.random.default_rng(0)
    for attempt in range(attempts or (40 if size <= 8 else 8 if size <= DENSE else 2)):
        spread = 0.5 + 3 * draws.random() if attempt else 0.0
        guess = mean_softmax.clip(1e-6) * np.exp(spread * draws.normal(size=one_hot.shape))
        # images of one class must start apart
        guess = guess * np.exp(1e-3 * draws.normal(size=one_hot.shape))
        guess = guess / guess.sum(1, keepdims=True) if start is None else start
        found = least_squares(
            residual,
            ((guess - one_hot) @ columns).ravel(),
            xtol=1e-15,
            ftol=1e-15,
            **how,
        )
        if found.cost < misfit(layer.precision) ** 2:
            mix = found.x.reshape(size, size)
            return (
                torch.from_numpy(np.linalg.solve(mix.T, rows)).to(device),
                torch.from_numpy(one_hot + mix @ columns.T).to(device),
            )
    raise NoSoftmaxFits


def one_hot_of(counts: torch.Tensor) -> np.ndarray:
    """Labels Y (K, N) of a batch with these counts (N,), in ascending order.

    >>> one_hot_of(torch.tensor([2, 0, 1])).tolist()
    [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    return np.repeat(np.eye(len(counts)), counts.cpu().numpy(), axis=0)
