"""The attacks of papers, and the searches of this study, as tables of their settings.

Effort is the papers': 300 steps of L-BFGS with twenty evaluations each (`dlg`, `idlg`), 24,000
iterations (`inverting-gradients`, as its code for ImageNet has), 20,000 from each of eight starts
(`gradinversion`). That of `general` is not known. A comparison at equal effort says so by
`iterations` and `restarts`. What differs from the papers otherwise:

`dlg`, `idlg`: steps are looked for along a line, which the authors' code does not do. Full steps
from the beginning leap into saturated sigmoids from some starts, where every gradient is zero. And
they are searched in float64: see `GradientMatching.needs_digits`. What is left of `dlg` is its
labels: a softmax comes near to one of them by ever smaller steps.

`gradinversion`: its paper sums the norms of the differences layer by layer; the distance here is
relative and squared, so weights are not the paper's numbers. Registration is by whole pixels, and
from the first step on, without warm-up of the step size. Batch norm statistics are matched where
the client sent them or the model was trained, as in the paper; on a new model there are none.

Its authors have published code for a later attack only (Hatamizadeh et al. 2023,
NVlabs/DeepInversion, folder FLGradientInversion), which differs from both: gray X-rays, one start
from a mean image in place of eight from noise, no group term, labels searched along, statistics of
the client's own batches, told from how they moved the running ones; 40,000 iterations of Adam,
step .1 with a cosine after 100 steps of warm-up, weights 1e-3 for gradients, .1 for batch norm,
1e-4 for variation, 1e-5 for the norm. Its noise of .1 goes to a copy of the images that the next
step makes anew, so it has no effect.
"""

from dataclasses import replace

from gleak.inversion.attack import GradientMatching


def coarse_to_fine(attack: GradientMatching, *shares: float) -> GradientMatching:
    """The attack in stages, one for each share of the resolution, in this order.

    >>> [stage.resolution for stage in coarse_to_fine(PAPERS["general"], 0.5, 1).stages]
    [0.5, 1]
    """
    stage = None
    for share in reversed(shares):
        stage = replace(attack, resolution=share, then=stage)
    if stage is None:
        raise ValueError("there must be a share of the resolution")
    return stage


DLG = GradientMatching(
    reference="Deep Leakage from Gradients (Zhu et al. 2019)",
    distance="l2",
    optimizer="lbfgs",
    lr=1,
    schedule="constant",
    box=False,
    joint_labels=True,
    iterations=300,
    evaluations=20,
)

PAPERS = {
    "dlg": DLG,
    "idlg": replace(DLG, reference="iDLG (Zhao et al. 2020)", joint_labels=False),
    "inverting-gradients": GradientMatching(
        reference="Inverting Gradients (Geiping et al. 2020)",
        tv=0.04,
        iterations=24_000,
    ),
    "gradinversion": GradientMatching(
        reference="GradInversion (Yin et al. 2021)",
        distance="l2",
        tv=0.02,
        norm=1e-4,
        batch_norm=0.1,
        group=0.01,
        optimizer="adam",
        schedule="cosine",
        noise=0.02,
        restarts=8,
        iterations=20_000,
    ),
    "general": GradientMatching(
        reference="Towards General Deep Leakage (Geng et al. 2021); optimiser and weights ours",
        distance="l2",
        tv=0.04,
        clip=1,
        scale=0.01,
        box=False,
    ),
}

# The searches that `gleak` chooses from.
# The closed form gives activations of single images; images follow by matching those.
# Behind ReLU and max-pooling that is a search among many minima: large signed steps that shrink.
GLEAK_FEATURES = GradientMatching(
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
GLEAK_SMOOTH = GradientMatching(
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
    GLEAK_SMOOTH = replace(
        GLEAK_SMOOTH,
        then=replace(GLEAK_SMOOTH, distance="layer-l2", match=weight, then=GLEAK_SMOOTH.then),
    )
# Deep inside a residual network, and on larger images, the search gets stuck in detail that is
# wrong in the large: coarse images first.
GLEAK_COARSE = coarse_to_fine(
    replace(GLEAK_FEATURES, lr=0.05, start="gray", iterations=150), 0.25, 0.5, 1
)
# Where the activations are known to many digits, a prior only gets in their way.
GLEAK_DIGITS = coarse_to_fine(
    replace(GLEAK_FEATURES, tv=0.1, tv_end=0.01, lr=0.05, start="gray", iterations=200),
    0.25,
    0.5,
    1,
)
# Where activations are many times the pixels, nothing is open: from a start that is right in the
# large, see `linear`, they lead to the images to as many digits as they have themselves. The weight
# keeps L-BFGS off its absolute tolerances, which losses of 1e-7 would meet.
GLEAK_MANY = GradientMatching(
    reference="this study",
    match=0,
    features=1e6,
    optimizer="lbfgs",
    lr=1,
    schedule="constant",
    box=False,
    iterations=150,
)
# Where nothing can be peeled, all is left to gradient matching, coarse images first.
GLEAK_GRADIENT = coarse_to_fine(
    GradientMatching(
        reference="this study", tv=0.02, lr=0.05, schedule="cosine", start="gray", iterations=150
    ),
    0.125,
    0.25,
    0.5,
    1,
)
# Where drift hides all features, so many steps along the line from W0 to WT show the way to them.
GLEAK_FIRST_GUESS = replace(PAPERS["inverting-gradients"], iterations=100)
