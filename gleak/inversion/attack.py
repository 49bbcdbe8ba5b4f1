"""What an attack is: a small object that gets its settings when it is made, an update when it runs.

Final ones are `GradientMatching` and `ClosedForm` here and the study's own, `gleak.inversion.own`.
One's own is a class with a `run`:

>>> class Gray(Attack):
...     def run(self, update, labels, options=DEFAULT):
...         gray = torch.full((len(labels), *update.input_shape), 0.5)
...         return found_at_once(gray, labels, "gray")
"""

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import pandas as pd
import torch

from gleak.inversion.closed import Peeled, exact_images, peel
from gleak.inversion.distances import DISTANCES, Gradient
from gleak.inversion.objective import Objective
from gleak.inversion.search import Inversion, search
from gleak.inversion.terms import TERMS, Prior, Term, as_terms, check_number, label, weighted
from gleak.inversion.update_models import UpdateModel, equivalent, known_model, name_of
from gleak.update import Update

OPTIMIZERS = ("adam", "adamw", "signed-adam", "lbfgs")
SCHEDULES = ("constant", "step", "cosine")
DERIVATIVES = ("difference", "exact")
STARTS = ("normal", "uniform", "gray", "patterned")
Distance = Callable[[Gradient, Gradient], torch.Tensor]
OptimizerOf = Callable[[Iterable], torch.optim.Optimizer]


@dataclass(frozen=True, eq=False)
class Options:
    """What is asked of one run, whatever the attack; the arguments of `invert`, checked.

    seed: of all random draws. progress: whether to show a bar, with `name` on it.
    start: images (K, C, H, W) to start from, in ascending order of their labels.
    compile: run the step through torch.compile.
    update_model: how a candidate batch is turned into what the client sends; None leaves the choice
    to the attack.
    snapshots: evaluations whose images are kept beside the result.
    """

    seed: int = 0
    progress: bool = False
    start: torch.Tensor | None = None
    compile: bool = False
    update_model: UpdateModel | None = None
    snapshots: Sequence[int] = ()
    name: str = "search"


DEFAULT = Options()


class Attack(ABC):
    """What restores images from an update."""

    @abstractmethod
    def run(self, update: Update, labels: torch.Tensor, options: Options = DEFAULT) -> Inversion:
        """Images (K, C, H, W) for labels (K,), which come in ascending order.

        Raises MissingKnowledge where the update does not offer what the attack needs.
        """

    def override(self, **settings: Any) -> Self:
        """The attack with single settings replaced: fields, if it is a dataclass.

        Raises ValueError for settings that it has not.
        """
        if not dataclasses.is_dataclass(self):
            check_settings(type(self).__name__, settings, [])
            return self
        check_settings(type(self).__name__, settings, [f.name for f in dataclasses.fields(self)])
        return dataclasses.replace(self, **settings)


@dataclass(frozen=True)
class GradientMatching(Attack):
    """A loss and how it is minimised. Weights multiply terms that are about 1 for bad images.

    Step sizes and weights are for images in [0, 1]; papers that work on normalised images have
    steps about 4 times as large. Names are short-hands: a distance may be a function of two lists
    of tensors, an optimiser a function of parameters that gives a torch.optim.Optimizer.

    Raises ValueError for unknown names and for numbers out of range.

    >>> print(GradientMatching("an example", distance="l2", tv=0.01, optimizer="adam", box=False))
    minimise  l2(gradient, observed) + 0.01 TV(x)
    over      x, from 1 normal start
    by        adam, step 0.1 (step), 300 iterations
    after     an example
    """

    reference: str
    # the loss
    distance: str | Distance = "cosine"  # between the simulated and the observed gradient
    match: float = 1.0  # weight of that distance; 0 leaves the gradient out
    features: float = 0.0  # distance to the activations that `peel` gives in closed form
    tv: float = 0.0  # total variation
    smooth_tv: float = 0.0  # isotropic total variation
    tv_end: float = 1.0  # both variations end at this share of their weight, falling geometrically
    clip: float = 0.0  # leaving the valid range
    scale: float = 0.0  # not filling the valid range
    norm: float = 0.0  # distance to mid gray
    batch_norm: float = 0.0  # distance to known batch norm statistics
    group: float = 0.0  # distance to the mean over the restarts
    priors: Sequence[Prior] | Prior = ()  # one's own, see `gleak.inversion.terms`
    # the search
    derivative: str = "difference"  # of the gradient by the images; L-BFGS takes the exact one
    optimizer: str | OptimizerOf = "signed-adam"
    lr: float = 0.1  # an optimiser of one's own brings its step size along
    schedule: str = "step"  # step: divided by 10 at 3/8, 5/8 and 7/8 of the way
    noise: float = 0.0  # of Langevin steps, in units of the step size
    start: str = "normal"
    resolution: float = 1.0  # search images of this share of the size, smoothly enlarged
    box: bool = True  # clip to [0, 1] after every step
    joint_labels: bool = False  # optimise soft labels along with the images
    restarts: int = 1  # the one with the smallest loss wins
    iterations: int = 300  # steps of the optimiser, for each restart
    evaluations: int = 1  # of the loss and its gradient in a step; L-BFGS can take more
    then: "GradientMatching | None" = None  # goes on from the images that this one found

    def __post_init__(self) -> None:
        check_known("distance", self.distance, DISTANCES)
        check_known("optimizer", self.optimizer, OPTIMIZERS)
        for name, known in (
            ("schedule", SCHEDULES),
            ("derivative", DERIVATIVES),
            ("start", STARTS),
        ):
            check_known(name, getattr(self, name), known, open_to_functions=False)
        for name in ("match", *TERMS, "lr", "noise", "tv_end"):
            check_number(name, getattr(self, name))
        for name in ("restarts", "iterations", "evaluations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if not 0 < self.resolution <= 1:
            raise ValueError(f"resolution must be in (0, 1]; got {self.resolution}")
        if not (self.match or self.features):
            raise ValueError(
                "an attack needs match or features: without them it asks the update nothing"
            )
        if self.group and self.quasi_newton:
            raise ValueError("group consistency needs restarts side by side, which L-BFGS has not")
        if self.evaluations > 1 and not self.quasi_newton:
            raise ValueError(
                f"a step of {label(self.optimizer)} takes one evaluation; got {self.evaluations}"
            )
        priors = as_terms(self.priors)
        names = ["loss", "distance", *TERMS, *(term.name for term in priors)]
        for name in sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"there is more than one term of the name {name!r}; rename the prior")
        object.__setattr__(self, "priors", priors)

    @property
    def distance_function(self) -> Distance:
        """The distance, also where a name was given."""
        return DISTANCES[self.distance] if isinstance(self.distance, str) else self.distance

    @property
    def quasi_newton(self) -> bool:
        """Whether it learns curvature from differences of gradients, where all digits count."""
        return self.optimizer == "lbfgs"

    @property
    def needs_digits(self) -> bool:
        """Whether the search has to go on in float64.

        Gradients in float32 are right to about 1e-6. Where the simulated one comes as near to the
        client's as 1e-4, rounding is a hundredth of their difference, and the differences of those,
        from which L-BFGS learns, are rounding: on a LeNet it crawls at 50 dB.
        """
        return self.quasi_newton and not self.features

    @property
    def terms(self) -> list[Term]:
        """The loss: the distance, then all that has a weight."""
        name = label(self.distance)
        distance = Term(
            "distance",
            self.match,
            self.distance_function,
            reads=("simulated", "observed"),
            formula=f"{name}(gradient, observed)",
        )
        named = [weighted(name, getattr(self, name)) for name in TERMS if getattr(self, name)]
        return [distance, *named, *as_terms(self.priors)]

    @property
    def stages(self) -> "list[GradientMatching]":
        """The attack and all that goes on from it."""
        return [self, *self.then.stages] if self.then else [self]

    def override(self, **settings: Any) -> "GradientMatching":
        """The attack with settings replaced in all its stages; iterations are shared out evenly.

        Raises ValueError for settings that it has not.

        >>> GradientMatching("an example").override(tv=0.1, iterations=20).tv
        0.1
        """
        fields = [f.name for f in dataclasses.fields(self)]
        known = [name for name in fields if name not in ("reference", "then")]
        check_settings("gradient matching", settings, known)
        stages = self.stages
        if "iterations" in settings:
            if settings["iterations"] < 1:
                raise ValueError(f"iterations must be at least 1; got {settings['iterations']}")
            settings["iterations"] = max(settings["iterations"] // len(stages), 1)
        result = None
        for stage in reversed(stages):
            result = dataclasses.replace(stage, then=result, **settings)
        assert result is not None
        return result

    def run(self, update: Update, labels: torch.Tensor, options: Options = DEFAULT) -> Inversion:
        """The images with the smallest loss. Where features count, they are peeled first.

        Raises MissingKnowledge for features without a closed form, and where the client told less
        than the update model (by default "equivalent") needs; ValueError where the closed form
        gives the images themselves; InversionFailed when the loss stops being finite.
        """
        if options.update_model is None:
            options = dataclasses.replace(options, update_model=known_model(update, "equivalent"))
        peeled = None
        if self.features:
            counts = torch.bincount(labels, minlength=update.num_classes)
            peeled = peel(update, counts)
            if peeled.is_image:
                raise ValueError(
                    "the closed form ends at the images: there are no features left to search for; "
                    'attack="gleak" returns these images'
                )
        return self.search(update, labels, options, peeled)

    def search(
        self,
        update: Update,
        labels: torch.Tensor,
        options: Options,
        peeled: Peeled | None = None,
    ) -> Inversion:
        """The search alone: through the update model of the options, for what was peeled."""
        model, sent_in = options.update_model or equivalent, update.classifier.weight.dtype

        def objective(stage: GradientMatching) -> Objective:
            return Objective(
                in_double(update) if stage.needs_digits else update,
                labels,
                stage,
                peeled,
                compile=options.compile,
                update_model=model,
                seed=options.seed,
            )

        found = search(objective, self, options)
        return dataclasses.replace(
            found,
            images=found.images.to(sent_in),
            snapshots={step: images.to(sent_in) for step, images in found.snapshots.items()},
            way=self.way(model, peeled),
        )

    def way(self, update_model: UpdateModel, peeled: Peeled | None = None) -> str:
        """In words: what the search holds on to."""
        held = []
        if any(stage.features for stage in self.stages):
            held.append(f"matching {peeled}")
        if any(stage.match for stage in self.stages):
            held.append(f"gradient matching, update model {name_of(update_model)}")
        return ", then ".join(held)

    def __str__(self) -> str:
        fading = f" (falling to {self.tv_end:g} of that)" if self.tv_end != 1 else ""
        terms = [f"{term}{fading if term.fades else ''}" for term in self.terms if term.weight]
        over = "x in [0, 1]" if self.box else "x"
        if self.resolution < 1:
            over += f" at {self.resolution:g} of the size"
        over += " and soft labels" if self.joint_labels else ""
        lines = [
            f"minimise  {' + '.join(terms)}",
            f"over      {over}, from {self.restarts} {self.start} start{'s'[: self.restarts > 1]}",
            f"by        {label(self.optimizer)}, step {self.lr:g} ({self.schedule}), "
            f"{self.iterations} iterations"
            + (f" of {self.evaluations} evaluations" if self.evaluations > 1 else "")
            + (f", noise {self.noise:g}" if self.noise else ""),
            f"after     {self.reference}",
        ]
        if self.then:
            lines += ["then", str(self.then)]
        return "\n".join(lines)


def in_double(update: Update) -> Update:
    """The update with its model and what was sent in float64."""
    sent = {name: tensor.double() for name, tensor in update.sent.items()}
    change: dict[str, Any] = {"model": copy.deepcopy(update.model).double(), update.holds: sent}
    return dataclasses.replace(update, **change)


@dataclass(frozen=True)
class ClosedForm(Attack):
    """Images without any search, where the network and the batch allow it."""

    def override(self, **settings: Any) -> Self:
        if settings:
            raise ValueError("exact is a closed form; it has nothing to override")
        return self

    def run(self, update: Update, labels: torch.Tensor, options: Options = DEFAULT) -> Inversion:
        """The images. Raises MissingKnowledge where there is no closed form for all of them."""
        counts = torch.bincount(labels, minlength=update.num_classes)
        return found_at_once(exact_images(update, counts), labels, "closed form")

    def __str__(self) -> str:
        return "images in closed form, without a search"


def found_at_once(images: torch.Tensor, labels: torch.Tensor, way: str) -> Inversion:
    """An Inversion that needed no search, of images (K, C, H, W) in any range."""
    history = pd.DataFrame({"loss": pd.Series(dtype=float), "distance": pd.Series(dtype=float)})
    history.index.name = "iteration"
    return Inversion(images.clamp(0, 1).float().cpu(), labels.cpu(), history, None, way=way)


def check_known(
    what: str, value: object, known: Iterable[str], open_to_functions: bool = True
) -> None:
    """Raise ValueError with the list of what is known; functions pass, where they may.

    >>> check_known("optimizer", "luck", ["adam"])
    Traceback (most recent call last):
    ValueError: unknown optimizer 'luck'; known: adam
    """
    if not (value in known if isinstance(value, str) else open_to_functions and callable(value)):
        raise ValueError(f"unknown {what} {value!r}; known: {', '.join(known)}")


def check_settings(what: str, settings: Iterable[str], known: Sequence[str]) -> None:
    """Raise ValueError for settings that are not known."""
    unknown = sorted(set(settings) - set(known))
    if unknown:
        known = known or ["none"]
        raise ValueError(f"{what} has no {', '.join(unknown)}; known: {', '.join(known)}")
