"""An attack is data: which distance, which priors with which weight, which optimiser."""

import dataclasses
from dataclasses import dataclass

from gleak.inversion.distances import DISTANCES

OPTIMIZERS = ("adam", "adamw", "signed-adam", "lbfgs")
SCHEDULES = ("constant", "step", "cosine")
DERIVATIVES = ("difference", "exact")
STARTS = ("normal", "uniform", "gray", "patterned")


@dataclass(frozen=True)
class Attack:
    """The loss and how it is minimised. Weights multiply terms that are about 1 for bad images.

    Step sizes and weights are for images in [0, 1]; papers that work on normalised images have
    steps about 4 times as large.
    """

    reference: str
    # the loss
    distance: str = "cosine"  # between the simulated and the observed gradient
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
    # the search
    derivative: str = "difference"  # of the gradient by the images; L-BFGS takes the exact one
    optimizer: str = "signed-adam"
    lr: float = 0.1
    schedule: str = "step"  # step: divided by 10 at 3/8, 5/8 and 7/8 of the way
    noise: float = 0.0  # of Langevin steps, in units of the step size
    start: str = "normal"
    resolution: float = 1.0  # search images of this share of the size, smoothly enlarged
    box: bool = True  # clip to [0, 1] after every step
    joint_labels: bool = False  # optimise soft labels along with the images
    restarts: int = 1  # the one with the smallest loss wins
    iterations: int = 300  # evaluations of the loss and its gradient, for each restart
    then: "Attack | None" = None  # goes on from the images that this one found

    def __post_init__(self):
        check_known("distance", self.distance, DISTANCES)
        check_known("optimizer", self.optimizer, OPTIMIZERS)
        check_known("schedule", self.schedule, SCHEDULES)
        check_known("derivative", self.derivative, DERIVATIVES)
        check_known("start", self.start, STARTS)
        for name in (*WEIGHTS, "lr", "noise", "tv_end"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number >= 0; got {getattr(self, name)}")
        for name in ("restarts", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if not 0 < self.resolution <= 1:
            raise ValueError(f"resolution must be in (0, 1]; got {self.resolution}")
        if not (self.match or self.features):
            raise ValueError(
                "an attack needs match or features: without them it asks the update nothing"
            )
        if self.group and self.optimizer == "lbfgs":
            raise ValueError("group consistency needs restarts side by side, which L-BFGS has not")

    def __str__(self) -> str:
        terms = [f"{self.match:g} {self.distance}(gradient, observed)"] if self.match else []
        fading = f" (falling to {self.tv_end:g} of that)" if self.tv_end != 1 else ""
        for name, words in WEIGHTS.items():
            weight = getattr(self, name)
            if weight and words:
                terms.append(f"{weight:g} {words}{fading if 'tv' in name else ''}")
        over = "x in [0, 1]" if self.box else "x"
        if self.resolution < 1:
            over += f" at {self.resolution:g} of the size"
        over += " and soft labels" if self.joint_labels else ""
        lines = [
            f"minimise  {' + '.join(terms)}".replace("  1 ", "  ").replace("+ 1 ", "+ "),
            f"over      {over}, from {self.restarts} {self.start} start{'s'[: self.restarts > 1]}",
            f"by        {self.optimizer}, step {self.lr:g} ({self.schedule}), "
            f"{self.iterations} iterations" + (f", noise {self.noise:g}" if self.noise else ""),
            f"after     {self.reference}",
        ]
        if self.then:
            lines += ["then", str(self.then)]
        return "\n".join(lines)


# Weight -> its term in the formula.
WEIGHTS = {
    "match": "",
    "features": "|features - peeled|^2",
    "tv": "TV(x)",
    "smooth_tv": "TV2(x)",
    "clip": "|x - clip(x)|^2",
    "scale": "|x - stretch(x)|^2",
    "norm": "|x - gray|^2",
    "batch_norm": "|statistics - known|",
    "group": "|x - mean over restarts|^2",
}


def check_known(what: str, value: str, known) -> None:
    """Raise ValueError with the list of what is known."""
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}; known: {', '.join(known)}")


def coarse_to_fine(attack: Attack, *shares: float) -> Attack:
    """The attack in stages, one for each share of the resolution, in this order."""
    stage = None
    for share in reversed(shares):
        stage = dataclasses.replace(attack, resolution=share, then=stage)
    return stage


# The closed form gives activations of single images; images follow by matching those.
# Behind ReLU and max-pooling that is a search among many minima: large signed steps that shrink.
GLEAK_FEATURES = Attack(
    reference="this study",
    match=0,
    features=1,
    tv=0.5,
    tv_end=0.1,
    lr=0.3,
    schedule="cosine",
    iterations=3000,
)
# Smooth networks let L-BFGS follow; the gradient of the early layers then adds what is missing.
GLEAK_SMOOTH = Attack(
    reference="this study",
    match=0,
    features=1,
    smooth_tv=0.01,
    clip=0.1,
    optimizer="lbfgs",
    lr=1,
    schedule="constant",
    start="gray",
    box=False,
    iterations=300,
)
for weight in (40, 4, 0.4, 0.04):  # last stage first: each goes on from the one before
    GLEAK_SMOOTH = dataclasses.replace(
        GLEAK_SMOOTH,
        then=dataclasses.replace(
            GLEAK_SMOOTH, distance="layer-l2", match=weight, then=GLEAK_SMOOTH.then
        ),
    )
# Deep inside a residual network, and on larger images, the search gets stuck in detail that is
# wrong in the large: coarse images first.
GLEAK_COARSE = coarse_to_fine(
    dataclasses.replace(GLEAK_FEATURES, lr=0.05, start="gray", iterations=150), 0.25, 0.5, 1
)
# Where nothing can be peeled, all is left to gradient matching, coarse images first.
GLEAK_GRADIENT = coarse_to_fine(
    Attack(
        reference="this study", tv=0.02, lr=0.05, schedule="cosine", start="gray", iterations=150
    ),
    0.125,
    0.25,
    0.5,
    1,
)

DLG = Attack(
    reference="Deep Leakage from Gradients (Zhu et al. 2019)",
    distance="l2",
    optimizer="lbfgs",
    lr=1,
    schedule="constant",
    box=False,
    joint_labels=True,
)

ATTACKS = {
    "dlg": DLG,
    "idlg": dataclasses.replace(DLG, reference="iDLG (Zhao et al. 2020)", joint_labels=False),
    "inverting-gradients": Attack(
        reference="Inverting Gradients (Geiping et al. 2020)",
        tv=0.04,
    ),
    "gradinversion": Attack(
        reference="GradInversion (Yin et al. 2021)",
        distance="l2",
        tv=0.02,
        norm=1e-4,
        batch_norm=0.1,
        group=0.01,
        optimizer="adam",
        schedule="cosine",
        noise=0.02,
        restarts=2,
    ),
    "general": Attack(
        reference="Towards General Deep Leakage (Geng et al. 2021); optimiser and weights ours",
        distance="l2",
        tv=0.04,
        clip=1,
        scale=0.01,
        box=False,
    ),
    "gleak": GLEAK_GRADIENT,
}
