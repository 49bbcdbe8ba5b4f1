"""What one update gives away, against what anybody could have said without it.

`assess` attacks labels first and images then, by several searches; what is known exactly without
any picture, and what cannot leak, is told besides. `gleak.answers` sums up many updates.
"""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch

from gleak.data import Batch
from gleak.defended import UNDEFENDED, Search
from gleak.inversion import GradientMatching, Inversion, InversionFailed, invert, peel
from gleak.labels import label_posterior, restore_labels, single_images
from gleak.labels.features import image_features
from gleak.metrics import score, score_labels
from gleak.update import Update

# How much of an image came back, by the thumbnail that shows as much: see `grade`.
GRADES = ("nothing", "coarse shapes", "recognisable")
SAME = 0.01  # relative error of features that are known exactly
SAME_IN_THE_MIDDLE = 0.1  # the same, at weights in the middle of a client's way
# The rules for labels that are tried: the study's own, and two that noise confuses less.
RULES = ("gleak", "zlg-bias", "zlg")
INPUTS = 250  # random images for the statistics of the latter two: 1000 take 3 s on a ConvNet
SUBJECTS = ("labels", "images", "pixels")


@dataclass(frozen=True)
class Known:
    """What an update says without any picture.

    Parameters
    ----------
    certain
        Classes whose count is one number with 90 % certainty; of: how many classes there are.
    certain_right
        How many of those counts are right.
    at_least
        Labels that are proven to be there, by signs or as single images.
    features
        Images whose features, what enters the classifier, are known exactly.
    layers
        The place up to which layers were peeled, for people; empty where not even the features
        are known.
    statistics
        Batch norm layers of which mean and variance of what entered them are known exactly.
    """

    certain: int | None = None
    certain_right: int | None = None
    at_least: int | None = None
    features: int = 0
    layers: str = ""
    statistics: int = 0


@dataclass(frozen=True, eq=False)
class Leak:
    """What the attacks on one update found; the truth is in the scores alone.

    Parameters
    ----------
    labels
        Rule -> scores of its counts, as `score_labels`.
    counts
        Rule -> restored label counts (N,).
    chance
        The share of labels that guesses have right.
    images
        Search -> what it restored.
    scores
        One row an image, as `score`, with the search that came nearest; NaN where there was none.
    known
        What is known without pictures.
    not_attacked
        "labels" or "images" -> why an attack could not be run on them. All attacks, where there are
        no counts or images.
    cannot
        Subject -> why it cannot leak.
    given
        Whether the images were attacked with the true label counts, as those restored were wrong.
    seconds
        Of all attacks.
    """

    labels: Mapping[str, Mapping[str, float]]
    counts: Mapping[str, torch.Tensor]
    chance: float
    images: Mapping[str, Inversion]
    scores: pd.DataFrame
    known: Known
    not_attacked: Mapping[str, str] = field(default_factory=dict)
    cannot: Mapping[str, str] = field(default_factory=dict)
    given: bool = False
    seconds: float = 0.0

    @property
    def grades(self) -> list[int]:
        """For each image the index into GRADES."""
        return grade(self.scores)


def grade(scores: pd.DataFrame) -> list[int]:
    """2 for an image restored better than its 8x8 thumbnail, 1 than its 4x4 one, else 0.

    A single colour is the least that a picture can have, so 1 also asks for more than that.
    """
    coarse = scores["psnr"] > scores[["thumb4", "mean_colour"]].max(axis=1)
    sharp = coarse & (scores["psnr"] > scores["thumb8"])
    return (coarse.astype(int) + sharp.astype(int)).tolist()


def assess(
    update: Update,
    truth: Batch,
    *,
    iterations: int,
    seed: int = 0,
    searches: Mapping[str, Search] = UNDEFENDED,
    cannot: Mapping[str, str] | None = None,
    starts: int = 1,
) -> Leak:
    """Attack an update, labels first, and score what came back against the client's own batch.

    Parameters
    ----------
    update
        What the server sees.
    truth
        The client's batch. It scores what was found. Where the label counts that were read are
        wrong, the images are attacked with the true ones: the report then errs to the warning.
    iterations
        Of each search.
    seed
        Of all random draws.
    searches
        Name -> arguments of `invert`; the images of each are scored, and the best count.
    cannot
        Subject -> why it cannot leak, as known beforehand.
    starts
        Searches of each kind, each from another seed.

    Returns
    -------
    Leak
        What was found. What cannot be attacked, such as labels of weights whose client told no
        learning rate, is in `Leak.not_attacked`.

    Raises
    ------
    ValueError
        For iterations or starts below 1, or a batch of another size than the update's.
    """
    if iterations < 1 or starts < 1:
        raise ValueError(f"iterations and starts must be at least 1; got {iterations} and {starts}")
    size = (update.num_samples, *update.input_shape)
    if truth.images.shape != size:
        raise ValueError(
            f"the update is of images {size}, the batch of images {tuple(truth.images.shape)}"
        )
    began = time.perf_counter()
    right = truth.label_counts
    chance = score_labels(right, right)["chance"]
    impossible = {**limits(update), **(cannot or {})}
    not_attacked: dict[str, str] = {}
    if is_zero(update):
        return Leak(
            {}, {}, chance, {}, unknown(truth), Known(), cannot=impossible, seconds=since(began)
        )
    counts, refused = read_labels(update, seed)
    if not counts:
        not_attacked["labels"] = refused
    best = next((found for found in counts.values() if torch.equal(found, right)), None)
    images: dict[str, Inversion] = {}
    tried: list[str] = []
    for name, search in searches.items():
        for start in range(starts):
            label = name if start == 0 else f"{name}, start {start + 1}"
            if start == 0 and ran_before(search, iterations, images.values()):
                break
            try:
                images[label] = restored(update, right, search, iterations, seed + 1000 * start)
            except REFUSALS as error:
                tried.append(f"{name}: {in_a_line(error)}")
    if tried or not images:
        not_attacked["images"] = "; ".join(dict.fromkeys(tried)) or "no search was asked for"
    return Leak(
        labels={rule: score_labels(found, right) for rule, found in counts.items()},
        counts=counts,
        chance=chance,
        images=images,
        scores=best_of(images, truth),
        known=known_of(update, truth, seed),
        not_attacked=not_attacked,
        cannot=impossible,
        given=best is None,
        seconds=since(began),
    )


def ran_before(search: Search, iterations: int, images: Iterable[Inversion]) -> bool:
    """Whether an attack of one's own settings has been run already, as another's last resort."""
    attack = search["attack"]
    return isinstance(attack, GradientMatching) and any(
        found.attack == attack.override(iterations=iterations) for found in images
    )


# What an attack cannot do with an update: what it needs and does not get, or what breaks in torch.
REFUSALS = (ValueError, RuntimeError, ArithmeticError)


def since(began: float) -> float:
    return time.perf_counter() - began


def in_a_line(error: Exception) -> str:
    """The message of an error, its first line."""
    return (str(error) or type(error).__name__).splitlines()[0]


def is_zero(update: Update) -> bool:
    """Whether nothing but zeros was sent, or weights that did not move."""
    return not any(tensor.any() for tensor in update.message().values())


def limits(update: Update) -> dict[str, str]:
    """Subject -> why it cannot leak, as counting what was sent tells."""
    if is_zero(update):
        reason = "the update is all zeros: it is the same for every batch that moves nothing"
        return dict.fromkeys(SUBJECTS, reason)
    numbers = sum(int((tensor != 0).sum()) for tensor in update.message().values())
    unknowns = update.num_samples * math.prod(update.input_shape)
    if numbers < unknowns:
        return {
            "pixels": f"{numbers:,} numbers were sent and {unknowns:,} pixel values are unknown: "
            "fewer equations than unknowns, so many batches send this very update"
        }
    return {}


def read_labels(update: Update, seed: int) -> tuple[dict[str, torch.Tensor], str]:
    """Rule -> label counts (N,) of those that can read the update, and why the others cannot."""
    counts, refused = {}, []
    for rule in RULES:
        try:
            counts[rule] = restore_labels(update, rule, seed=seed, inputs=INPUTS)
        except REFUSALS as error:
            refused.append(in_a_line(error))
    return counts, "; ".join(dict.fromkeys(refused))


def restored(
    update: Update, counts: torch.Tensor, search: Search, iterations: int, seed: int
) -> Inversion:
    """The images of one search, also of one whose loss stopped being finite."""
    try:
        return invert(update, counts, iterations=iterations, seed=seed, progress=False, **search)
    except InversionFailed as error:
        return error.best


def best_of(images: Mapping[str, Inversion], truth: Batch) -> pd.DataFrame:
    """The scores of the search that came nearest to each image, with its name in `search`."""
    if not images:
        return unknown(truth)
    each = [score(found.images, truth.images).assign(search=name) for name, found in images.items()]
    best = pd.concat([frame["psnr"] for frame in each], axis=1).to_numpy().argmax(axis=1)
    rows = [each[choice].iloc[[row]] for row, choice in enumerate(best)]
    return pd.concat(rows)


def unknown(truth: Batch) -> pd.DataFrame:
    """The scores of images that were not attacked: the baselines alone."""
    found = score(torch.full_like(truth.images, 0.5), truth.images)
    return found.assign(match=-1, psnr=math.nan, ssim=math.nan, search="")


def known_of(update: Update, truth: Batch, seed: int) -> Known:
    """What the update says without any picture, checked against the truth."""
    known, counts = Known(statistics=len(update.statistics)), truth.label_counts
    try:
        found = label_posterior(update, seed=seed)
    except REFUSALS:
        pass
    else:
        certain = found.certain
        known = replace(
            known,
            certain=int(certain.sum()),
            certain_right=int((found.counts == counts)[certain].sum()),
            at_least=int(found.at_least.sum()),
        )
    features = features_of(update, counts)
    if features is None:
        return known
    order = truth.labels.argsort(stable=True)
    theirs, _ = update.forward(truth.images[order])
    allowed = SAME if update.local_steps == 1 else SAME_IN_THE_MIDDLE
    distance = torch.cdist(theirs.double(), features.to(theirs.device)).amin(dim=1)
    exact = int((distance < allowed * theirs.double().norm(dim=1)).sum())
    if not exact:
        return known
    try:
        place = peel(update.as_gradient(), counts).place
    except REFUSALS:
        place = "what enters the classifier"
    return replace(known, features=exact, layers=place)


def features_of(update: Update, counts: torch.Tensor) -> torch.Tensor | None:
    """Features (m, M) of the images that the classifier's gradient gives away, None for none.

    Of all images at once, for which one attempt has to do; else of those found one by one.
    """
    try:
        return image_features(update.as_gradient(), counts, attempts=1)[0]
    except REFUSALS:
        pass
    try:
        features = single_images(update).features
    except REFUSALS:
        return None
    return features if len(features) else None


def rows_of(leak: Leak) -> list[dict[str, Any]]:
    """A plain row for each image, as `answers` and a file take them.

    What is known of the batch stands in all its rows; `right RULE` is how many labels of the batch
    that rule has right, `way SEARCH` and `fell back SEARCH` what a search says of itself.
    """
    size = len(leak.scores)
    shared = {
        "chance": leak.chance,
        "given": leak.given,
        "seconds": leak.seconds,
        **{f"known {name}": value for name, value in vars(leak.known).items()},
        **{f"right {rule}": round(s["instance"] * size) for rule, s in leak.labels.items()},
        **{f"not attacked {what}": why for what, why in leak.not_attacked.items()},
        **{f"cannot {what}": why for what, why in leak.cannot.items()},
        **{f"way {name}": found.way for name, found in leak.images.items()},
        **{f"fell back {name}": "; ".join(found.fell_back) for name, found in leak.images.items()},
    }
    rows = leak.scores.assign(grade=leak.grades).to_dict("records")
    return [{**row, **shared} for row in rows]
