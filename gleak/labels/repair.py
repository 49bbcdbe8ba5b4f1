"""Are these label counts right? Tests that need no images, and a search for counts that pass.

The bias gradient is mean(p) - counts / K, so counts / K + gradient must be a softmax: positive.
The classifier's gradient is (P - Y)^T O / K, so every p_k - y_k lies in the span of its columns:
a class n can be there only if that span holds a vector that is negative at n and nowhere else
(Dang et al. 2021). And the closed form of `image_features` has a solution for the right counts.
"""

import itertools

import numpy as np
import torch
from scipy.optimize import linprog

from gleak.labels.features import features_at_once
from gleak.labels.singles import single_images
from gleak.update import GradientUpdate, MissingKnowledge, Update


def least_counts(update: Update) -> torch.Tensor:
    """(N,) long: how often each class occurs at least, proven by the bias gradient alone.

    The smallest counts that keep counts / K + gradient positive. They leave open as many labels as
    there are whole units in K mean(p): none on an untrained network with K <= N.

    Raises MissingKnowledge without the gradient of a single step and its bias.
    """
    _, bias = classifier_gradient(update)
    # the small number: float32 where the softmax is zero to seven digits
    return ((-update.num_samples * bias - 1e-4).floor() + 1).clamp_min(0).long().cpu()


def possible_classes(update: Update, tolerance: float = 1e-3) -> torch.Tensor:
    """(N,) bool: the classes that the column space of the classifier's gradient allows.

    For each class n a linear program asks for a vector of that space with -1 at n that is at least
    -tolerance everywhere else. It rules out little unless K is well below N.

    Raises MissingKnowledge as `least_counts` does.
    """
    weight, _ = classifier_gradient(update)
    left, values, _ = np.linalg.svd(weight.double().cpu().numpy(), full_matrices=False)
    columns = left[:, : update.num_samples][:, values[: update.num_samples] > 1e-7 * values[0]]
    size = columns.shape[1]
    possible = []
    for label in range(len(columns)):
        others = np.delete(columns, label, axis=0)
        found = linprog(
            np.zeros(size),
            A_ub=-others,
            b_ub=np.full(len(others), tolerance),
            A_eq=columns[label : label + 1],
            b_eq=[-1.0],
            bounds=[(None, None)] * size,
        )
        possible.append(found.status == 0)
    return torch.tensor(possible)


def repair_counts(update: Update, counts: torch.Tensor, most: int = 500) -> torch.Tensor:
    """The counts (N,) nearest to the given ones for which the closed form has a solution.

    counts: (N,) summing to K, such as `restore_labels` gives. Near means few labels moved. Only
    counts that `least_counts` and `possible_classes` allow are tried, `most` of them at most; if
    they allow a single one, that is the answer, and so it is where `single_images` finds all.

    Raises MissingKnowledge where there is no closed form (see `image_features`), when none of the
    counts that were tried fits, and where the network is so sure of some image that its part of the
    gradient drowns in rounding: wrong counts could fit then.
    """
    counts = torch.as_tensor(counts).cpu()
    least, classes = least_counts(update), possible_classes(update).nonzero().flatten().tolist()
    left_open = update.num_samples - int(least.sum())
    if left_open < 0 or left_open and not classes:
        raise MissingKnowledge("no counts fit the classifier's gradient: is it of a single step?")
    try:
        singles = single_images(update)
    except MissingKnowledge:
        singles = None
    if singles and singles.complete:
        return torch.bincount(singles.labels, minlength=len(least))
    extras = itertools.combinations_with_replacement(classes, left_open)
    allowed = [
        least + torch.bincount(torch.tensor(extra).long(), minlength=len(least))
        for extra in itertools.islice(extras, 20_000)
    ]
    if len(allowed) == 1:
        return allowed[0]
    trace = torch.linalg.svdvals(classifier_gradient(update)[0].double())
    if len(trace) < update.num_samples or trace[update.num_samples - 1] < 1e-5 * trace[0]:
        raise MissingKnowledge("some image leaves too little in the gradient to tell its label")
    allowed.sort(key=lambda candidate: int((candidate - counts).abs().sum()))
    for candidate in allowed[:most]:
        if fits(update, candidate):
            return candidate
    raise MissingKnowledge(f"none of {min(len(allowed), most)} counts has a softmax that fits")


def fits(update: Update, counts: torch.Tensor, attempts: int = 4) -> bool:
    """Whether the closed form of `features_at_once` has a solution for these counts."""
    try:
        features_at_once(update, counts, attempts=attempts)
    except MissingKnowledge as error:
        if "no softmax" not in str(error):
            raise
        return False
    return True


def classifier_gradient(update: Update) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of W and b; MissingKnowledge where these proofs have no ground."""
    weight, bias = update.classifier_gradient()
    if not isinstance(update, GradientUpdate) or bias is None:
        raise MissingKnowledge("counts are proven by the gradient of one step, with its bias")
    return weight, bias
