"""Label counts from the gradient of the last layer: every published rule, and our own."""

from collections.abc import Sequence

import torch

from gleak.data import Batch
from gleak.labels import posterior, rules
from gleak.labels.last_layer import DISTRIBUTIONS, PATH, Case
from gleak.labels.posterior import LabelPosterior, label_posterior
from gleak.labels.rounding import largest_remainder
from gleak.labels.singles import Singles, single_images
from gleak.update import MissingKnowledge, Update

__all__ = [
    "LabelPosterior",
    "Singles",
    "label_posterior",
    "compare_labels",
    "largest_remainder",
    "list_label_methods",
    "restore_labels",
    "single_images",
]

METHODS = {
    "zlg": rules.zlg,
    "zlg-bias": rules.zlg_bias,
    "gleak": posterior.gleak,
    "idlg": rules.idlg,
    "gradinversion": rules.gradinversion,
    "llg": rules.llg,
    "llg-star": rules.llg_star,
    "llg-plus": rules.llg_plus,
    "ebi": rules.ebi,
    "llbg": rules.llbg,
    "ilrg": rules.ilrg,
    "posterior": rules.posterior,
    "rlu": rules.rlu,
    "confusion": rules.confusion,
}
NEED_AUX = ("llg-plus", "posterior", "rlu", "confusion")
TAKE_AUX = ("zlg", "zlg-bias", "llbg", *NEED_AUX)


def restore_labels(
    update: Update,
    method: str = "zlg",
    *,
    seed: int = 0,
    inputs: int = 1000,
    distribution: str = "gaussian",
    aux: Batch | None = None,
    along: str = "start",
) -> torch.Tensor:
    """How often each class occurs in the client's batch: (N,) long, summing to K.

    method: one of `list_label_methods()`. The zero-shot ones take their statistics from `inputs`
    random images, fixed by `seed`, of a `distribution`: "gaussian" pixels or "natural" smoothness;
    with `aux`, a Batch of the server's own, from that instead.
    along: for FedAvg, the weights at which statistics are taken: start, end or average. gleak does
    not ask: it has its own (see `gleak.labels.shares`).

    Raises ValueError for an unknown method, MissingKnowledge for one that needs more than the
    update offers.

    >>> import gleak
    >>> batch = gleak.load_batch("cifar10-samples", indices=[0, 1, 2, 3])
    >>> update = gleak.fedsgd(gleak.build_model("convnet", batch), batch)
    >>> restore_labels(update, method="zlg-bias").tolist()
    [1, 0, 0, 1, 0, 0, 0, 0, 2, 0]
    """
    if aux is not None and method not in TAKE_AUX:
        raise ValueError(f"{method} takes no auxiliary data; these do: {', '.join(TAKE_AUX)}")
    case = {"seed": seed, "inputs": inputs, "distribution": distribution, "along": along}
    return compare_labels(update, [method], aux=aux, **case)[method]


def compare_labels(
    update: Update,
    methods: Sequence[str] | None = None,
    *,
    seed: int = 0,
    inputs: int = 1000,
    distribution: str = "gaussian",
    aux: Batch | None = None,
    along: str = "start",
) -> dict[str, torch.Tensor]:
    """The counts of several methods, which share their statistics; see `restore_labels`.

    methods: by default all that need no auxiliary data. With `aux`, every method that takes it
    gets it; ask for the zero-shot ones in a call without.
    """
    methods = list_label_methods() if methods is None else methods
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
        if aux is None and method in NEED_AUX:
            raise MissingKnowledge(f"{method} needs auxiliary data with labels: aux=Batch(...)")
    if along not in PATH:
        raise ValueError(f"along must be one of {', '.join(PATH)}; got {along!r}")
    if distribution not in DISTRIBUTIONS:
        raise ValueError(
            f"distribution must be one of {', '.join(DISTRIBUTIONS)}; got {distribution!r}"
        )
    if inputs < 1:
        raise ValueError(f"inputs must be at least 1; got {inputs}")
    if aux is not None and aux.num_classes != update.num_classes:
        raise ValueError(
            f"aux has {aux.num_classes} classes, the update's classifier {update.num_classes}"
        )
    case = Case(update, seed, inputs, distribution, aux, along)
    k = update.num_samples
    return {method: largest_remainder(METHODS[method](case), k) for method in methods}


def list_label_methods(aux: bool = False) -> list[str]:
    """The names that `restore_labels` takes: the zero-shot ones; with `aux`, all of them."""
    return [name for name in METHODS if (name in NEED_AUX) <= aux]
