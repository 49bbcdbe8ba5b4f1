"""What an update gives away, against what anybody could have said without it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

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
    images, None if the update leaves nothing to search by; scores: one row an image, as `score`.
    """

    counts: torch.Tensor
    labels: Mapping[str, float]
    result: Inversion | None
    scores: pd.DataFrame

    @property
    def grades(self) -> list[int]:
        """For each image the index into GRADES."""
        return grade(self.scores)

    @property
    def labels_leak(self) -> bool:
        return self.labels["corrected"] > LABELS_LEAK

    @property
    def images_leak(self) -> bool:
        return max(self.grades) > 0


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
    guessed evenly; where it has nothing to search by, the images are mid gray.
    """
    try:
        counts = restore_labels(update, "zlg-bias" if has_bias(update) else "zlg", seed=seed)
    except MissingKnowledge:
        order = torch.randperm(
            update.num_classes, generator=torch.Generator().manual_seed(seed)
        ).repeat(-(-update.num_samples // update.num_classes))
        counts = torch.bincount(order[: update.num_samples], minlength=update.num_classes)
    try:
        result = invert(update, counts, "gleak", iterations=iterations, seed=seed, progress=False)
        images = result.images
    except InversionFailed as error:
        result, images = error.best, error.best.images
    except ValueError:  # a gradient of zeros
        result, images = None, torch.full_like(truth.images, 0.5)
    return Leak(
        counts, score_labels(counts, truth.label_counts), result, score(images, truth.images)
    )


def has_bias(update: Update) -> bool:
    sent = update.gradient if update.gradient is not None else update.weights_after
    return f"{update.classifier.name}.bias" in sent


def headless(update: Update) -> Update:
    """The update without the classifier, which stays with the client (FedPer, Arivazhagan 2019)."""
    kind = "gradient" if update.gradient is not None else "weights_after"
    sent, own = getattr(update, kind), update.classifier.name
    kept = {name: tensor for name, tensor in sent.items() if name.rpartition(".")[0] != own}
    return replace(update, **{kind: kept})


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
    """One row for each name: the share of right labels, that of a guess, and the images."""
    rows = {}
    for name, leak in leaks.items():
        grades = leak.grades
        rows[name] = {
            "labels right": leak.labels["instance"],
            "by guessing": leak.labels["chance"],
            "PSNR": leak.scores["psnr"].mean(),
            "best": leak.scores["psnr"].max(),
            "recognisable": grades.count(2),
            "coarse": grades.count(1),
        }
    return pd.DataFrame(rows).T.astype({"recognisable": int, "coarse": int})


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
        lines = {"one colour": ("mean_colour", ":"), "4×4 pixels": ("thumb4", "--")}
        lines["8×8 pixels"] = ("thumb8", "-")
        for word, (name, style) in lines.items():
            right.axvline(scores[name].mean(), color="black", linestyle=style, lw=1, label=word)
        right.set_xlabel("PSNR of each restored image (dB)")
        for axis, title in ((left, "labels"), (right, "images")):
            axis.set_title(title)
            place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.5 / (1 + len(leaks) / 4))}
            axis.legend(**place, ncols=3, columnspacing=1, handlelength=1.5)
    found = "; ".join(
        f"{name}: {leak.labels['instance']:.0%} and {leak.scores['psnr'].mean():.0f} dB"
        for name, leak in leaks.items()
    )
    alt = (
        f"Two panels with a row for each update. Left, the share of labels that were restored, "
        f"beside {chance:.0%} by guessing; right, how well each image was restored, beside what a "
        f"single colour and thumbnails have without any leak. {found}."
    )
    return figure, alt


def advice(leak: Leak, defended: Mapping[str, tuple[float, Leak]]) -> str:
    """Which defence closes the leak at the least cost, in a sentence or two.

    defended: name -> how much of the update is kept, and what leaks of that.
    """
    if not (leak.images_leak or leak.labels_leak):
        return "Nothing was found in the plain update that a guess would not have found."
    by_cost = sorted(defended, key=lambda name: -defended[name][0])
    images = [name for name in by_cost if not defended[name][1].images_leak]
    both = [name for name in images if not defended[name][1].labels_leak]
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
    grades = leak.grades
    labels = (
        f"The server reads {right:.0%} of the labels from the update; guessing would find "
        f"{leak.labels['chance']:.0%}."
    )
    if not leak.labels_leak:
        labels = f"The labels that the server reads are no better than guesses ({right:.0%} right)."
    if max(grades) == 0:
        images = (
            f"None of the {count} images comes back better than its 4×4 thumbnail: this attack, "
            "with this effort, finds nothing of what they show."
        )
    else:
        kinds = {
            2: "clear enough to be recognised (better than an 8×8 thumbnail)",
            1: "in coarse shapes (better than a 4×4 one)",
        }
        found = [f"{grades.count(n)} of {count} {kinds[n]}" for n in kinds if n in grades]
        images = f"Images come back: {', '.join(found)}."
    return f"{labels} {images}"
