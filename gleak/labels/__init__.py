"""Label counts from the gradient of the last layer: every published rule, and our own."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from gleak.data import Batch
from gleak.labels import posterior, rules
from gleak.labels.last_layer import PATH, LastLayer
from gleak.labels.posterior import LabelPosterior, label_posterior
from gleak.labels.rounding import largest_remainder
from gleak.labels.samples import guess_samples
from gleak.labels.singles import Singles, single_images
from gleak.labels.statistics import DISTRIBUTIONS
from gleak.update import MissingKnowledge, Update

__all__ = [
    "LabelPosterior",
    "LastLayer",
    "Singles",
    "guess_samples",
    "label_posterior",
    "compare_labels",
    "largest_remainder",
    "list_label_methods",
    "restore_labels",
    "single_images",
]

Rule = Callable[[LastLayer], torch.Tensor]  # real-valued counts (N,)


class Method(NamedTuple):
    """A rule, and whether it takes the server's own data with labels, or cannot do without."""

    rule: Rule
    takes_aux: bool = False
    needs_aux: bool = False


METHODS = {
    "zlg": Method(rules.zlg, takes_aux=True),
    "zlg-bias": Method(rules.zlg_bias, takes_aux=True),
    "gleak": Method(posterior.gleak),
    "idlg": Method(rules.idlg),
    "gradinversion": Method(rules.gradinversion),
    "llg": Method(rules.llg),
    "llg-star": Method(rules.llg_star),
    "llg-plus": Method(rules.llg_plus, takes_aux=True, needs_aux=True),
    "ebi": Method(rules.ebi),
    "llbg": Method(rules.llbg, takes_aux=True),
    "ilrg": Method(rules.ilrg),
    "posterior": Method(rules.posterior, takes_aux=True, needs_aux=True),
    "rlu": Method(rules.rlu, takes_aux=True, needs_aux=True),
    "confusion": Method(rules.confusion, takes_aux=True, needs_aux=True),
}


def restore_labels(
    update: Update,
    method: str | Rule = "zlg",
    *,
    seed: int = 0,
    inputs: int = 1000,
    distribution: str = "gaussian",
    aux: Batch | None = None,
    along: str = "start",
) -> torch.Tensor:
    """How often each class occurs in the client's batch.

    Parameters
    ----------
    update
        What the client sent.
    method
        One of `list_label_methods()`, or a function from a `LastLayer` to real-valued counts (N,),
        as those of `gleak.labels.rules` are. Without a bias gradient "gleak" takes the counts of
        "zlg", which needs none.
    seed
        Fixes the random images of the zero-shot methods.
    inputs
        How many random images these methods take their statistics from.
    distribution
        What these images are: "gaussian" pixels or "natural" smoothness.
    aux
        Data of the server's own, with labels, that statistics are taken from instead.
    along
        For FedAvg, the weights at which statistics are taken: start, end or average. gleak does not
        ask: it has its own (see `gleak.labels.shares`).

    Returns
    -------
    Tensor (N,), long
        The counts, which sum to K.

    Raises
    ------
    ValueError
        For an unknown method or setting, or data that do not fit.
    MissingKnowledge
        For a method that needs more than the update offers.
    Contradiction
        Where the update cannot be what the client is said to have sent.

    References
    ----------
    Each rule in `gleak.labels.rules` names its paper.

    Examples
    --------
    >>> import gleak
    >>> batch = gleak.load_batch("cifar10-samples", indices=[0, 1, 2, 3])
    >>> update = gleak.fedsgd(gleak.build_model("convnet", batch), batch)
    >>> restore_labels(update, method="zlg-bias").tolist()
    [1, 0, 0, 1, 0, 0, 0, 0, 2, 0]
    >>> def even(layer):  # a rule of your own: zlg-bias, as if all softmax were even
    ...     return layer.k * (1 / layer.n - layer.bias_gradient)
    >>> restore_labels(update, even).tolist()
    [1, 0, 0, 1, 0, 0, 0, 0, 2, 0]
    """
    if aux is not None and isinstance(method, str) and not known(method).takes_aux:
        taking = ", ".join(name for name, one in METHODS.items() if one.takes_aux)
        raise ValueError(f"{method} takes no auxiliary data; these do: {taking}")
    counts = compare_labels(
        update,
        [method],
        seed=seed,
        inputs=inputs,
        distribution=distribution,
        aux=aux,
        along=along,
    )
    return counts[method]


def compare_labels(
    update: Update,
    methods: Sequence[str | Rule] | None = None,
    *,
    seed: int = 0,
    inputs: int = 1000,
    distribution: str = "gaussian",
    aux: Batch | None = None,
    along: str = "start",
) -> dict[Any, torch.Tensor]:  # by the methods as given: names, or rules
    """The counts of several methods, which share their statistics; see `restore_labels`.

    Parameters
    ----------
    update
        What the client sent.
    methods
        By default all that need no auxiliary data. With `aux`, every method that takes it gets it;
        ask for the zero-shot ones in a call without.
    seed, inputs, distribution, aux, along
        As for `restore_labels`.

    Returns
    -------
    dict
        Method, as it was given, to its counts (N,).

    Raises
    ------
    ValueError
        As `restore_labels`.
    MissingKnowledge
        As `restore_labels`.

    Examples
    --------
    >>> import gleak
    >>> batch = gleak.load_batch("cifar10-samples", indices=[0, 1])
    >>> update = gleak.fedsgd(gleak.build_model("lenet", batch), batch)
    >>> {name: counts[batch.labels].tolist() for name, counts in
    ...     compare_labels(update, ["zlg", "ebi"], inputs=50).items()}
    {'zlg': [1, 1], 'ebi': [1, 1]}
    """
    methods = list_label_methods() if methods is None else methods
    chosen = {method: known(method) for method in methods}
    for name, method in chosen.items():
        if aux is None and method.needs_aux:
            raise MissingKnowledge(f"{name} needs auxiliary data with labels: aux=Batch(...)")
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
    update.refuse_contradictions()
    layer = LastLayer.of(
        update, seed=seed, inputs=inputs, distribution=distribution, aux=aux, along=along
    )
    return {
        name: largest_remainder(real_counts(method.rule, layer), layer.k)
        for name, method in chosen.items()
    }


def known(method: str | Rule) -> Method:
    """The method of this name; a rule stands for itself. ValueError for any other name."""
    if callable(method):
        return Method(method, takes_aux=True)
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    return METHODS[method]


def real_counts(rule: Rule, layer: LastLayer) -> torch.Tensor:
    """What the rule says, (N,); ValueError for anything else."""
    counts = rule(layer)
    if not isinstance(counts, torch.Tensor) or counts.shape != (layer.n,):
        raise ValueError(f"a rule returns a tensor of one number for each of {layer.n} classes")
    return counts


def list_label_methods(aux: bool = False) -> list[str]:
    """The names that `restore_labels` takes.

    Parameters
    ----------
    aux
        Whether those that need auxiliary data are listed besides the zero-shot ones.

    Examples
    --------
    >>> set(list_label_methods(aux=True)) - set(list_label_methods()) == {
    ...     "llg-plus", "posterior", "rlu", "confusion"
    ... }
    True
    """
    return [name for name, method in METHODS.items() if aux or not method.needs_aux]
