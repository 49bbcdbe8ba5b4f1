"""How many samples a client used, where it did not tell: the rank of its last layer's gradient.

The gradient of the classifier is a sum of one term (p_k - y_k) o_k^T for each sample, also over
several local steps as long as each sample is in one of them. Terms of different images are
independent, so its rank is K while there is room: the p_k - y_k sum to zero and span N - 1
dimensions at most, the features with the one for the bias M + 1.

The rank alone is not sound. Images that are the same, and images that the network knows so well
that rounding hides what they leave, make it smaller; pruning and rounding to a grid make one of
their own. So the gradient has to be taken apart into as many single images (`find_singles`): the
length of each term is known, and their sum fits one K alone. (A batch in which every image occurs
twice sends what its half does.) benchmarks/samples.py counts how often that can be done: for 87 of
720 updates of 1 to 8 digits, most of them defended or of trained networks; none was wrong.
"""

from dataclasses import replace

import torch

from gleak.labels.last_layer import LastLayer
from gleak.labels.singles import MOST, find_singles
from gleak.labels.statistics import FEW as INPUTS
from gleak.update import MissingKnowledge, Update, WeightsUpdate

FEW = 0.01  # of the entries: more zeros where none belong, or fewer different sizes, were made so
GAP = 10  # by how much the last singular value of the images exceeds the first that is rounding
ASK = "so how many samples it used has to be told"


def guess_samples(update: Update, *, summed: bool = False, seed: int = 0) -> int:
    """How many samples the client used, whatever `update.num_samples` says.

    Parameters
    ----------
    update
        What the client sent.
    summed
        Whether the client sums its loss over the batch, see `Update.of_summed_loss`.
    seed
        Of random draws.

    Returns
    -------
    int
        K.

    Raises
    ------
    MissingKnowledge
        Where the update does not show it for certain: without the gradient of the classifier's
        weight, for weights after more than one epoch or an unknown number of them, for as many
        images as classes or more, and where single images cannot be told apart.

    Examples
    --------
    >>> import gleak
    >>> batch = gleak.load_batch("cifar10-samples", indices=[0, 1, 2])
    >>> update = gleak.fedsgd(gleak.build_model("convnet", batch), batch)
    >>> guess_samples(update)
    3
    """
    rank = rank_of(update)
    if not taken_apart(update, rank, summed, seed):
        raise MissingKnowledge(
            f"its last layer's gradient has rank {rank}, as that of {rank} samples or more, {ASK}"
        )
    return rank


def unlike_single_images(update: Update, seed: int = 0) -> str:
    """Why the gradient of one step is that of no cross-entropy of so many images; empty where it
    may be one, or nothing can be said.

    Its rank is K then, and yet its terms are no (p_k - y_k) o_k^T with softmax p_k and one label
    each.

    Parameters
    ----------
    update
        What the client sent.
    seed
        Of random draws.
    """
    try:
        one_step, rank = update.local_steps == 1, rank_of(update)
    except MissingKnowledge:
        return ""
    if not one_step or rank != update.num_samples or rank > MOST:
        return ""
    if taken_apart(update, rank, False, seed):
        return ""
    return (
        f"the last layer's gradient has the rank of {rank} images, and none of it fits the "
        "cross-entropy of one label each: smoothed or mixed labels, weights of classes, another "
        "loss, another learning rate than was told, or other weights before"
    )


def rank_of(update: Update) -> int:
    """The rank of the classifier's gradient, K or less.

    Raises MissingKnowledge where it does not show, or says no more than that there are many.
    """
    if isinstance(update, WeightsUpdate) and update.facts.get("epochs") != 1:
        raise MissingKnowledge(
            f"after more than one epoch, or an unknown number, the update does not show it, {ASK}"
        )
    values, room = spectrum(update)
    floor = max(rounding_of(update), torch.finfo(torch.float64).eps) * values[0].item()
    if not values[0] > 0:
        raise MissingKnowledge(f"the classifier did not change, {ASK}")
    rank = int((values > floor).sum())
    below = max(values[rank].item() if rank < len(values) else 0.0, floor / GAP)
    if rank >= room:
        raise MissingKnowledge(
            f"there are at least {room} samples, which is all that the last layer tells apart, "
            f"{ASK}"
        )
    if values[rank - 1] < GAP * below:
        raise MissingKnowledge(
            f"noise or rounding hides the rank of the last layer's gradient, {ASK}"
        )
    return rank


def spectrum(update: Update) -> tuple[torch.Tensor, int]:
    """Singular values of what the classifier's weight changed by, and the largest rank there is."""
    name = f"{update.classifier_name}.weight"
    change = dict(update.message())
    if isinstance(update, WeightsUpdate) and update.facts.get("weight_decay"):
        change = update.equivalent_gradient()
    if name not in change:
        raise MissingKnowledge(f"the update has nothing of the classifier's {name}, {ASK}")
    matrix = change[name].detach().flatten(1).double()
    zero = matrix == 0
    used = matrix[~zero.all(1)][:, ~zero.all(0)]
    if (used == 0).double().mean().item() > FEW:
        raise MissingKnowledge(f"values of the last layer's gradient were set to zero, {ASK}")
    if len(used.abs().unique()) < FEW * used.numel():
        raise MissingKnowledge(f"values of the last layer's gradient have few sizes, {ASK}")
    return torch.linalg.svdvals(matrix), min(matrix.shape[0] - 1, matrix.shape[1])


def rounding_of(update: Update) -> float:
    """The singular values that rounding makes in that matrix, as a part of the largest, at most.

    Roundings of deviation s of an N x M matrix have the norm (sqrt(N) + sqrt(M)) s. What was sent
    is rounded by up to the precision; of weights that is the precision of the weights, not of their
    difference. Ten times that, as the client's own sums round as well.
    """
    name = f"{update.classifier_name}.weight"
    sent = update.sent[name].detach().flatten(1).double()
    change = update.message()[name].detach().flatten(1).double()
    size = sent.square().mean().sqrt().item() * update.precision / 3**0.5
    norm = (sent.shape[0] ** 0.5 + sent.shape[1] ** 0.5) * size
    return 10 * norm / max(torch.linalg.matrix_norm(change, 2).item(), 1e-300)


def taken_apart(update: Update, samples: int, summed: bool, seed: int) -> bool:
    """Whether the gradient is the sum of the terms of so many single images."""
    if samples > MOST:
        return False
    try:
        told = replace(update, num_samples=samples)
        told = told.of_summed_loss() if summed else told
        return find_singles(LastLayer.of(told, seed=seed, inputs=INPUTS)).complete
    except MissingKnowledge:
        return False
