"""The features of every single image, from the gradient of the last layer and the label counts."""

import numpy as np
import torch
from scipy.optimize import least_squares
from scipy.special import softmax

from gleak.labels.singles import single_images
from gleak.update import MissingKnowledge, Update

WRONG_COUNTS = "no softmax fits the classifier's gradient: are the counts right?"


def image_features(
    update: Update,
    counts: torch.Tensor,
    precision: float = 0.0,
    attempts: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (K, M) and softmax (K, N) of every image, in float64, in ascending order of labels.

    From the images that `single_images` finds, if those are all, and else from a search for all at
    once: see `features_at_once`, also for the arguments.

    Raises MissingKnowledge where neither finds them, and for counts that are not those found.
    """
    try:  # those of weights would belong to another model, see `Update.as_gradient`
        singles = single_images(update) if update.local_steps == 1 else None
    except MissingKnowledge:
        singles = None
    if not singles or not singles.complete:
        return features_at_once(update, counts, precision, attempts)
    if not torch.equal(torch.bincount(singles.labels, minlength=len(counts)), counts.cpu()):
        raise MissingKnowledge(WRONG_COUNTS)
    try:  # the equations of all together leave fewer digits open than those of one
        return features_at_once(update, counts, precision, 1, singles.softmax.numpy())
    except MissingKnowledge:
        device = update.classifier.weight.device
        return singles.features.to(device), singles.softmax.to(device)


def features_at_once(
    update: Update,
    counts: torch.Tensor,
    precision: float = 0.0,
    attempts: int | None = None,
    start: np.ndarray | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (K, M) and softmax (K, N) of every image by one search for all of them.

    The classifier's gradient is G = (P - Y)^T O / K, of rank K at most. What spans its columns is
    known, so P = Y + C U^T with a K x K matrix C, and O follows from C. The classifier must turn O
    into P again: that decides C. Images of one class differ only by their softmax, which on
    untrained networks is a matter of the fifth digit; it is in the gradient all the same.

    precision: relative error of what was sent, from rounding or noise; the equations then need to
    hold no better than that.
    attempts: starts of the search for C, by default as many as a minute allows.
    start: softmax (K, N) to start from.

    Raises MissingKnowledge without the gradients of the classifier's weight and bias, for more
    images than classes less one, and when no solution is found.
    """
    weight_gradient, bias_gradient = update.classifier_gradient()
    if bias_gradient is None or update.classifier.bias is None:
        raise MissingKnowledge("features in closed form need the gradient of the classifier's bias")
    device = update.classifier.weight.device
    gradient, bias_gradient, weight, bias = (
        tensor.double().cpu().numpy()
        for tensor in (
            weight_gradient,
            bias_gradient,
            update.classifier.weight,
            update.classifier.bias,
        )
    )
    counts = counts.cpu().numpy()
    labels = np.repeat(np.arange(len(counts)), counts)
    size, classes = len(labels), len(counts)
    if size >= min(classes, 17):  # a system of K^2 unknowns; beyond 16 images it takes too long
        raise MissingKnowledge(
            "features in closed form need fewer images than classes, and 16 at most; "
            f"here {size} images and {classes} classes"
        )
    one_hot = np.eye(classes)[labels]
    mean_softmax = bias_gradient + one_hot.mean(0)
    left, values, right = np.linalg.svd(gradient, full_matrices=False)
    if values[size - 1] < 1e-7 * values[0]:
        raise MissingKnowledge("the classifier's gradient does not tell the images apart")
    columns, rows = left[:, :size], size * values[:size, None] * right[:size]

    def residual(flat):
        mix = flat.reshape(size, size)
        guess = one_hot + mix @ columns.T
        try:
            logits = np.linalg.solve(mix.T, rows @ weight.T) + bias
        except np.linalg.LinAlgError:
            return np.full(size * classes + classes, 1e3)
        error = softmax(logits, axis=1) - guess
        return np.concatenate([error.ravel(), 10 * (guess.mean(0) - mean_softmax)])

    draws = np.random.default_rng(0)
    for attempt in range(attempts or (40 if size <= 8 else 8)):
        spread = 0.5 + 3 * draws.random() if attempt else 0.0
        guess = mean_softmax.clip(1e-6) * np.exp(spread * draws.normal(size=one_hot.shape))
        # images of one class must start apart
        guess = guess * np.exp(1e-3 * draws.normal(size=one_hot.shape))
        guess = guess / guess.sum(1, keepdims=True) if start is None else start
        found = least_squares(
            residual, ((guess - one_hot) @ columns).ravel(), max_nfev=200, xtol=1e-15, ftol=1e-15
        )
        if found.cost < 1e-11 + precision**2:
            mix = found.x.reshape(size, size)
            return (
                torch.from_numpy(np.linalg.solve(mix.T, rows)).to(device),
                torch.from_numpy(one_hot + mix @ columns.T).to(device),
            )
    raise MissingKnowledge(WRONG_COUNTS)
