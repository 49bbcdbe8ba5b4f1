"""What an update gives away, against what anybody could have said without it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure

from gleak import defences
from gleak.data import Batch
from gleak.figures import STYLE
from gleak.inversion import Inversion, InversionFailed, invert
from gleak.labels import restore_labels
from gleak.metrics import score, score_labels
from gleak.update import MissingKnowledge, Update

# How much of an image came back, by the thumbnail that shows as much: see `grade`.
GRADES = ("nothing", "coarse shapes", "recognisable")
# Labels count as leaked above this share of the way from guessing to all right.
LABELS_LEAK = 0.25


@dataclass(frozen=True, eq=False)
class Leak:
    """What the attack on one update found; the truth is in the scores alone.

    counts: (N,) restored label counts; labels: their scores, as `score_labels`; result: restored
    images, None for an update of zeros, which leaves nothing to search by, and where they were not
    attacked; scores: one row an image, as `score`.
    not_attacked: "labels" or "images" -> why no attack could be run on them. Whether they leak is
    then unknown: their scores are NaN, beside the baselines, and to ask for more than that raises
    MissingKnowledge.
    """

    counts: torch.Tensor
    labels: Mapping[str, float]
    result: Inversion | None
    scores: pd.DataFrame
    not_attacked: Mapping[str, str] = field(default_factory=dict)

    @property
    def grades(self) -> list[int]:
        """For each image the index into GRADES."""
        self.need("images")
        return grade(self.scores)

    @property
    def labels_leak(self) -> bool:
        self.need("labels")
        return self.labels["corrected"] > LABELS_LEAK

    @property
    def images_leak(self) -> bool:
        return max(self.grades) > 0

    def need(self, what: str) -> None:
        """Raise MissingKnowledge unless the labels or images were attacked."""
        if what in self.not_attacked:
            raise MissingKnowledge(f"the {what} were not attacked: {self.not_attacked[what]}")

    def leaks(self, what: str) -> bool:
        """Whether the labels or images were attacked, and leak."""
        return what not in self.not_attacked and getattr(self, f"{what}_leak")

    def closed(self, what: str) -> bool:
        """Whether the labels or images were attacked, and nothing was found."""
        return what not in self.not_attacked and not self.leaks(what)


def grade(scores: pd.DataFrame) -> list[int]:
    """2 for an image restored better than its 8x8 thumbnail, 1 than its 4x4 one, else 0.

    A single colour is the least that a picture can have, so 1 also asks for more than that.
    """
    coarse = scores["psnr"] > scores[["thumb4", "mean_colour"]].max(axis=1)
    sharp = coarse & (scores["psnr"] > scores["thumb8"])
    return (coarse.astype(int) + sharp.astype(int)).tolist()


def assess(update: Update, truth: Batch, *, iterations: int, seed: int = 0) -> Leak:
    """Attack an update, labels first, and score what came back against the client's own batch.

    The attack sees the update alone. Where the update does not have the classifier, the labels are
    guessed evenly; where it is all zeros, the images are mid gray. What cannot be attacked for any
    other reason, such as a learning rate that the client did not tell, is in `Leak.not_attacked`.

    Raises ValueError for iterations below 1, or a batch of another size than the update's.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1; got {iterations}")
    size = (update.num_samples, *update.input_shape)
    if truth.images.shape != size:
        raise ValueError(
            f"the update is of images {size}, the batch of images {tuple(truth.images.shape)}"
        )
    zero = not any(tensor.any() for tensor in update.message().values())
    not_attacked = {}
    counts = guessed_counts(update, seed)
    if sends_classifier(update, "weight"):
        rule = "zlg-bias" if sends_classifier(update, "bias") else "zlg"
        try:
            counts = restore_labels(update, rule, seed=seed)
        except ValueError as error:
            if not zero:
                not_attacked = {"labels": str(error), "images": "the search needs their labels"}
    result, images = None, torch.full_like(truth.images, 0.5)
    if not (zero or not_attacked):
        try:
            # weights are read in the middle of the way: in a short search the rounds that undo the
            # drift find no more, in three times the time
            result = invert(
                update,
                counts,
                "gleak",
                update_model="equivalent",
                iterations=iterations,
                seed=seed,
                progress=False,
            )
        except InversionFailed as error:
            result = error.best
        except ValueError as error:
            not_attacked["images"] = str(error)
    if result is not None:
        images = result.images
    labels, scores = score_labels(counts, truth.label_counts), score(images, truth.images)
    if "labels" in not_attacked:
        labels |= {name: math.nan for name in labels if name not in ("chance", "even")}
    if "images" in not_attacked:
        scores = scores.assign(psnr=math.nan, ssim=math.nan)
    return Leak(counts, labels, result, scores, not_attacked)


def guessed_counts(update: Update, seed: int) -> torch.Tensor:
    """(N,) label counts as even as they can be, the classes in a drawn order."""
    order = torch.randperm(
        update.num_classes, generator=torch.Generator().manual_seed(seed)
    ).repeat(-(-update.num_samples // update.num_classes))
    return torch.bincount(order[: update.num_samples], minlength=update.num_classes)


def sends_classifier(update: Update, kind: str) -> bool:
    """Whether the classifier's weight or bias is part of what was sent."""
    return f"{update.classifier_name}.{kind}" in update.sent


def headless(update: Update) -> Update:
    """The update without the classifier, which stays with the client (FedPer, Arivazhagan 2019)."""
    own = update.classifier_name
    kept = {name: tensor for name, tensor in update.sent.items() if name.rpartition(".")[0] != own}
    return update.resent(kept)


def noise(update: Update, strength: float, seed: int) -> Update:
    """Gaussian noise whose norm is `strength` times that of what is sent."""
    size = sum(tensor.numel() for tensor in update.message().values())
    return defences.add_noise(update, strength * update.norm() / size**0.5, seed=seed)


def usual_defences(seed: int) -> dict[str, Callable[[Update], Update]]:
    """Name -> what a client can do to its update before it leaves."""
    return {
        "send 10 % of the values": lambda update: defences.prune(update, 0.9),
        "send 1 % of the values": lambda update: defences.prune(update, 0.99),
        "signs only": defences.sign,
        "noise as large as the update": lambda update: noise(update, 1, seed),
        "noise 100 times the update": lambda update: noise(update, 100, seed),
        "classifier stays at the client": headless,
    }


def kept(defended: Update, plain: Update) -> float:
    """How much of an update's direction is left: the cosine of the angle to the plain one."""
    ours, theirs = defended.message(), plain.message()
    a = torch.cat([tensor.flatten() for tensor in theirs.values()])
    b = torch.cat([ours.get(name, torch.zeros_like(t)).flatten() for name, t in theirs.items()])
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0).item()


def table(leaks: Mapping[str, Leak]) -> pd.DataFrame:
    """One row for each name: the share of right labels, that of a guess, and the images.

    What was not attacked has no number, and a column of its own that says why.
    """
    rows = {}
    for name, leak in leaks.items():
        known = "images" not in leak.not_attacked
        grades = leak.grades if known else []
        rows[name] = {
            "labels right": leak.labels["instance"],
            "by guessing": leak.labels["chance"],
            "PSNR": leak.scores["psnr"].mean(),
            "best": leak.scores["psnr"].max(),
            "recognisable": grades.count(2) if known else math.nan,
            "coarse": grades.count(1) if known else math.nan,
        }
    whole = all("images" not in leak.not_attacked for leak in leaks.values())
    kind = int if whole else "Int64"  # which has a place for what is unknown
    frame = pd.DataFrame(rows).T.astype({"recognisable": kind, "coarse": kind})
    if any(leak.not_attacked for leak in leaks.values()):
        frame["not attacked"] = [why_not(leak) for leak in leaks.values()]
    return frame


def why_not(leak: Leak) -> str:
    """What was not attacked, and why; empty if all was."""
    return "; ".join(f"{what}: {why}" for what, why in leak.not_attacked.items())


def risk(leaks: Mapping[str, Leak]) -> tuple[Figure, str]:
    """Labels and images of several updates beside the baselines; the figure and its alt text."""
    names, rows = list(leaks), range(len(leaks))
    scores = next(iter(leaks.values())).scores
    chance = next(iter(leaks.values())).labels["chance"]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(8, 1.2 + 0.32 * len(leaks)), sharey=True, layout="constrained"
        )
        left.barh(rows, [leak.labels["instance"] for leak in leaks.values()], height=0.5)
        left.axvline(chance, color="black", linestyle=":", label="by guessing")
        left.set_xlim(0, 1.02)
        left.set_xlabel("share of labels restored")
        left.set_yticks(list(rows), names)
        left.invert_yaxis()
        for row, leak in zip(rows, leaks.values(), strict=True):
            values = leak.scores["psnr"].clip(upper=50)  # what is exact needs no more of the axis
            right.plot(values, [row] * len(values), "o", color="C0", alpha=0.6)
            for what, axis in (("labels", left), ("images", right)):
                if what in leak.not_attacked:
                    place = axis.get_yaxis_transform()
                    axis.text(0.02, row, "not attacked", transform=place, va="center")
        lines = {"one colour": ("mean_colour", ":"), "4×4 pixels": ("thumb4", "--")}
        lines["8×8 pixels"] = ("thumb8", "-")
        for word, (name, style) in lines.items():
            right.axvline(scores[name].mean(), color="black", linestyle=style, lw=1, label=word)
        right.set_xlabel("PSNR of each restored image (dB)")
        for axis, title in ((left, "labels"), (right, "images")):
            axis.set_title(title)
            place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.5 / (1 + len(leaks) / 4))}
            axis.legend(**place, ncols=3, columnspacing=1, handlelength=1.5)
    found = "; ".join(f"{name}: {in_numbers(leak)}" for name, leak in leaks.items())
    alt = (
        f"Two panels with a row for each update. Left, the share of labels that were restored, "
        f"beside {chance:.0%} by guessing; right, how well each image was restored, beside what a "
        f"single colour and thumbnails have without any leak. {found}."
    )
    return figure, alt


def in_numbers(leak: Leak) -> str:
    """The share of right labels, and how well the images came back."""
    labels, images = f"{leak.labels['instance']:.0%}", f"{leak.scores['psnr'].mean():.0f} dB"
    if "labels" in leak.not_attacked:
        labels = "labels not attacked"
    if "images" in leak.not_attacked:
        images = "images not attacked"
    return f"{labels} and {images}"


def advice(leak: Leak, defended: Mapping[str, tuple[float, Leak]]) -> str:
    """Which defence closes the leak at the least cost, in a sentence or two.

    defended: name -> how much of the update is kept, and what leaks of that. A defence closes only
    what was attacked behind it; those of which something was not are named.
    """
    if not (leak.leaks("images") or leak.leaks("labels")):
        if leak.not_attacked:
            return (
                "No defence can be advised: of the plain update, "
                f"{' and '.join(leak.not_attacked)} were not attacked ({why_not(leak)})."
            )
        return "Nothing was found in the plain update that a guess would not have found."
    judged = {name: row for name, row in defended.items() if not row[1].not_attacked}
    sentences = [] if defended and not judged else [advised(judged)]
    if leak.not_attacked:
        sentences.append(f"Of the plain update not attacked: {why_not(leak)}.")
    if unknown := [name for name in defended if name not in judged]:
        sentences.append(f"Not attacked in full, so not judged: {', '.join(unknown)}.")
    return " ".join(sentences)


def advised(defended: Mapping[str, tuple[float, Leak]]) -> str:
    """Which of the defences closes what at the least cost."""
    by_cost = sorted(defended, key=lambda name: -defended[name][0])
    images = [name for name in by_cost if defended[name][1].closed("images")]
    both = [name for name in images if defended[name][1].closed("labels")]
    if both:
        return (
            f"Of the defences tried, **{both[0]}** closes the leak of labels and images at the "
            f"least cost: {defended[both[0]][0]:.2f} of the update's direction is left."
        )
    if images:
        return (
            f"Of the defences tried, **{images[0]}** closes the leak of images at the least cost "
            f"({defended[images[0]][0]:.2f} of the update's direction is left); none closes that "
            "of the labels."
        )
    return "None of the defences tried closes the leak. More images a client would make it smaller."


def in_words(leak: Leak) -> str:
    """What leaks, in two or three sentences."""
    count, right = len(leak.scores), leak.labels["instance"]
    labels = (
        f"The server reads {right:.0%} of the labels from the update; guessing would find "
        f"{leak.labels['chance']:.0%}."
    )
    if "labels" in leak.not_attacked:
        labels = f"The labels were not attacked: {leak.not_attacked['labels']}."
    elif leak.closed("labels"):
        labels = f"The labels that the server reads are no better than guesses ({right:.0%} right)."
    if "images" in leak.not_attacked:
        images = f"The images were not attacked: {leak.not_attacked['images']}."
    elif leak.closed("images"):
        images = (
            f"None of the {count} images comes back better than its 4×4 thumbnail: this attack, "
            "with this effort, finds nothing of what they show."
        )
    else:
        kinds = {
            2: "clear enough to be recognised (better than an 8×8 thumbnail)",
            1: "in coarse shapes (better than a 4×4 one)",
        }
        grades = leak.grades
        found = [f"{grades.count(n)} of {count} {kinds[n]}" for n in kinds if n in grades]
        images = f"Images come back: {', '.join(found)}."
    return f"{labels} {images}"
