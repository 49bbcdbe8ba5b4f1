"""Are these label counts right? Tests that need no images, and a search for counts that pass.

The bias gradient is mean(p) - counts / K, so counts / K + gradient must be a softmax: positive.
The classifier's gradient is (P - Y)^T O / K, so every p_k - y_k lies in the span of its columns:
a class n can be there only if that span holds a vector that is negative at n and nowhere else
(Dang et al. 2021). And the closed form of `image_features` has a solution for the right counts.

All take an update of one step, or a `LastLayer`, and allow for what its precision leaves open.
"""

import itertools

import numpy as np
import torch
from scipy.optimize import linprog

from gleak.labels.features import NoSoftmaxFits, features_at_once, one_hot_of
from gleak.labels.last_layer import LastLayer
from gleak.labels.singles import find_singles
from gleak.labels.statistics import FEW
from gleak.labels.tolerance import drowned, excess, faint, rank_cutoff, told_apart, whole
from gleak.update import MissingKnowledge, Update


def least_counts(update: Update | LastLayer) -> torch.Tensor:
    """(N,) long: how often each class occurs at least, proven by the bias gradient alone.

    The smallest counts that keep counts / K + gradient positive. They leave open as many labels as
    there are whole units in K mean(p): none on an untrained network with K <= N.

    Raises MissingKnowledge without the gradient of a single step and its bias.

    >>> softmax, counts = torch.tensor([0.7, 0.3]), torch.tensor([2, 0])
    >>> gradient = torch.zeros(2, 4), softmax - counts / 2
    >>> layer = LastLayer(*gradient, weight=torch.zeros(2, 4), bias=torch.zeros(2), num_samples=2)
    >>> least_counts(layer).tolist()  # with none of class 0, its softmax would be negative
    [1, 0]
    """
    layer = of_one_step(update)
    sent = layer.sums[1]
    # a softmax that is zero to all digits proves nothing
    slack = whole(layer.precision) + excess(layer.precision) * sent.abs()
    return ((-sent - slack).floor() + 1).clamp_min(0).long().cpu()


def possible_classes(update: Update | LastLayer, tolerance: float = 1e-3) -> torch.Tensor:
    """(N,) bool: the classes that the column space of the classifier's gradient allows.

    For each class n a linear program asks for a vector of that space with -1 at n that is at least
    -tolerance everywhere else, and below that as far as rounding or noise may have turned the
    space. It rules out little unless K is well below N.

    Raises MissingKnowledge as `least_counts` does.

    >>> import gleak
    >>> batch = gleak.load_batch("cifar10-samples", indices=[0, 1, 2])
    >>> update = gleak.fedsgd(gleak.build_model("lenet", batch), batch)
    >>> possible_classes(update).nonzero().flatten().tolist(), batch.labels.tolist()
    ([3, 8], [3, 8, 8])
    """
    layer = of_one_step(update)
    left, values, _ = np.linalg.svd(layer.weight_gradient.cpu().numpy(), full_matrices=False)
    values = values[: layer.k]
    known = values > rank_cutoff(layer.precision) * values[0]
    columns = left[:, : layer.k][:, known]
    tolerance = tolerance + excess(layer.precision) * values[0] / values[known][-1]
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


def repair_counts(
    update: Update | LastLayer, counts: torch.Tensor, most: int = 500
) -> torch.Tensor:
    """The counts (N,) nearest to the given ones for which the closed form has a solution.

    counts: (N,) summing to K, such as `restore_labels` gives. Near means few labels moved. Only
    counts that `least_counts` and `possible_classes` allow are tried, `most` of them at most; if
    they allow a single one, that is the answer, and so it is where `single_images` finds all.

    Raises MissingKnowledge where there is no closed form (see `image_features`), when none of the
    counts that were tried fits, and where the network is so sure of some image that its part of the
    gradient drowns in rounding: wrong counts could fit then.

    >>> import gleak
    >>> batch = gleak.load_batch("cifar10-samples", indices=[0, 1, 2])
    >>> update = gleak.fedsgd(gleak.build_model("lenet", batch), batch)
    >>> wrong = torch.tensor([1, 0, 0, 1, 0, 0, 0, 0, 1, 0])
    >>> repair_counts(update, wrong).tolist()
    [0, 0, 0, 1, 0, 0, 0, 0, 2, 0]
    """
    layer = of_one_step(update)
    counts = torch.as_tensor(counts).cpu()
    least, classes = least_counts(layer), possible_classes(layer).nonzero().flatten().tolist()
    left_open = layer.k - int(least.sum())
    if left_open < 0 or left_open and not classes:
        raise MissingKnowledge("no counts fit the classifier's gradient: is it of a single step?")
    try:
        singles = find_singles(layer)
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
    trace = torch.linalg.svdvals(layer.weight_gradient)
    if len(trace) < layer.k or trace[layer.k - 1] < faint(layer.precision) * trace[0]:
        raise MissingKnowledge("some image leaves too little in the gradient to tell its label")
    allowed.sort(key=lambda candidate: int((candidate - counts).abs().sum()))
    for candidate in allowed[:most]:
        if fits(layer, candidate):
            return candidate
    raise MissingKnowledge(f"none of {min(len(allowed), most)} counts has a softmax that fits")


def fits(update: Update | LastLayer, counts: torch.Tensor, attempts: int = 4) -> bool:
    """Whether the closed form of `features_at_once` has a solution for these counts.

    Raises MissingKnowledge where that has no ground to stand on, and where the digits that were
    sent are too few for an answer: there is no solution, but some image is no more in the gradient
    than rounding is; or there is one that says nothing, as the network is so sure of an image that
    the equations would hold with another label as well.

    >>> import gleak
    >>> batch = gleak.load_batch("cifar10-samples", indices=[0, 1, 2])
    >>> update = gleak.fedsgd(gleak.build_model("lenet", batch), batch)
    >>> fits(update, batch.label_counts), fits(update, batch.label_counts.flip(0))
    (True, False)
    """
    layer = LastLayer.of(update)
    try:
        _, softmax = features_at_once(layer, counts, attempts)
    except NoSoftmaxFits:
        trace = torch.linalg.svdvals(layer.weight_gradient)
        if trace[layer.k - 1] < drowned(layer.precision) * trace[0]:
            raise MissingKnowledge(
                f"no telling whether these counts fit: what was sent is exact to "
                f"{layer.precision:.1e} only, and some image leaves less than that in it"
            ) from None
        return False
    left = np.linalg.norm(softmax.cpu().numpy() - one_hot_of(counts), axis=1).min()
    if left < told_apart(layer.precision):
        raise MissingKnowledge(
            f"these counts fit, and so might others: p - y of an image is {left:.1e} in size, and "
            f"what was sent is exact to {layer.precision:.1e} only"
        )
    return True


def of_one_step(update: Update | LastLayer) -> LastLayer:
    """The last layer; MissingKnowledge where these proofs have no ground."""
    layer = LastLayer.of(update, inputs=FEW)
    if layer.of_weights or not layer.has_bias:
        raise MissingKnowledge("counts are proven by the gradient of one step, with its bias")
    return layer
