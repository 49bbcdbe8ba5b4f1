"""The loss of an attack: a list of terms, each with its weight.

A term is a function of what one evaluation of the loss has at hand; `reads` names it:

images     the candidates (copies x K, C, H, W), at full size
simulated  the update that they would make, tensor by tensor
observed   the one that the client sent
features   what the candidates are at the place to which a closed form leads
peeled     what the closed form says they are there
spread     how far that is from a gray image's, image by image
entered    what enters the batch norm layers: layer -> tensor (K, C, ...)
norms      what should enter them: layer -> mean and variance (C,)
restarts   the images of all restarts (R, K, C, h, w); the search itself evaluates these terms

A prior of one's own is a function of images, or a Term around it, in the `priors` of an attack:

>>> def dark(images):
...     return images.square().mean()
>>> print(Term("dark", 0.1, dark))
0.1 dark(x)
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from gleak.inversion.batch_norm import statistics_distance
from gleak.inversion.priors import (
    away_from_consensus,
    clip,
    isotropic_variation,
    norm,
    scale,
    total_variation,
)


def check_number(name: str, value: float) -> None:
    """Raise ValueError for anything but a finite number >= 0."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a number >= 0; got {value}")


@dataclass(frozen=True)
class Term:
    """weight * function(*what it reads), about 1 for bad images before the weight.

    fades: whether the weight falls during the search, to `tv_end` of the attack.
    reads: names of what the function takes, see above.
    formula: how the term is printed.

    Raises ValueError for a weight that is no number >= 0.
    """

    name: str
    weight: float
    function: Callable[..., torch.Tensor]
    fades: bool = False
    reads: tuple[str, ...] = ("images",)
    formula: str = ""

    def __post_init__(self) -> None:
        check_number(self.name, self.weight)

    def __str__(self) -> str:
        formula = self.formula or f"{self.name}(x)"
        return formula if self.weight == 1 else f"{self.weight:g} {formula}"


Prior = Term | Callable[[torch.Tensor], torch.Tensor]


def spread_error(
    features: torch.Tensor, peeled: torch.Tensor, spread: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of features (K, ...), each image's in units of its spread (K, 1, ...)."""
    return ((features - peeled).square() / spread).mean()


# The terms that an attack has a field for: its weight, 0 by default.
TERMS = {
    term.name: term
    for term in (
        Term(
            "features",
            1,
            spread_error,
            reads=("features", "peeled", "spread"),
            formula="|features - peeled|^2",
        ),
        Term("tv", 1, total_variation, fades=True, formula="TV(x)"),
        Term("smooth_tv", 1, isotropic_variation, fades=True, formula="TV2(x)"),
        Term("clip", 1, clip, formula="|x - clip(x)|^2"),
        Term("scale", 1, scale, formula="|x - stretch(x)|^2"),
        Term("norm", 1, norm, formula="|x - gray|^2"),
        Term(
            "batch_norm",
            1,
            statistics_distance,
            reads=("entered", "norms"),
            formula="|statistics - known|",
        ),
        Term(
            "group",
            1,
            away_from_consensus,
            reads=("restarts",),
            formula="|x - mean over restarts|^2",
        ),
    )
}


def weighted(name: str, weight: float) -> Term:
    """The term of this name with this weight."""
    return replace(TERMS[name], weight=weight)


def as_terms(priors: Prior | Iterable[Prior]) -> tuple[Term, ...]:
    """Priors as terms: a function of images weighs 1; one of them need be in no list.

    >>> [term.name for term in as_terms([total_variation, Term("mine", 0.1, clip)])]
    ['total_variation', 'mine']
    """
    if isinstance(priors, Term):
        return (priors,)
    if callable(priors):
        return (Term(label(priors), 1, priors),)
    return tuple(term for prior in priors for term in as_terms(prior))


def label(value: object) -> str:
    """How something is called that may be a name or a function.

    >>> label("cosine"), label(print)
    ('cosine', 'print')
    """
    function = getattr(value, "func", value)  # of a partial
    return value if isinstance(value, str) else getattr(function, "__name__", type(value).__name__)
