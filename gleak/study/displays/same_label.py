"""Tables, figures, checks and verdicts of the chapter on equal labels."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from gleak import figures
from gleak.inversion import Inversion
from gleak.study import criterion
from gleak.study.book import Row, verdict
from gleak.study.experiments.same_label import CLOSED_FORM, PATTERNS, SENT, likeness
from gleak.study.verdicts import setting

# -- the sum comes back, the differences do not ---------------------------------------------------


def pictures(
    images: torch.Tensor, results: Mapping[str, tuple[Inversion, pd.DataFrame]]
) -> tuple[Figure, str]:
    """Originals, what came back of them, and the mean of each row; the figure and its alt text."""
    rows = {"original": images} | {
        name: found.images[scores["match"].tolist()] for name, (found, scores) in results.items()
    }
    size = (1.35 * (len(images) + 1) + 0.5, 4.6)
    with plt.rc_context(figures.STYLE):
        figure, axes = plt.subplots(3, len(images) + 1, figsize=size, layout="constrained")
        for line, (name, shown) in zip(axes, rows.items(), strict=True):
            for column, (axis, picture) in enumerate(zip(line, shown, strict=False)):
                title = "" if name == "original" else f"{results[name][1]['psnr'][column]:.1f} dB"
                figures.show_image(axis, picture, title)
            figures.show_image(line[-1], shown.mean(0), "mean" if name == "original" else "")
            line[0].set_ylabel(name)
    return figure, (
        f"Three rows of {len(images)} pictures and their mean. With distinct labels the images are "
        "recognisable; with equal labels they are mixtures; the means look the same in "
        "all rows."
    )


def pattern_lines(frame: pd.DataFrame) -> tuple[Figure, str]:
    """Images, their mean and their differences over the patterns; the figure and its alt text."""
    main = frame[frame.case == "matching"]
    mean_image = main["mean image"].mean()
    with plt.rc_context(figures.STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3), layout="constrained")
        line(left, main, "mean restored", "C2", "mean of the batch")
        line(left, main, "psnr", "C0", "the images")
        left.axhline(mean_image, color="0.5", ls="--", lw=1)
        left.text(0, mean_image + 0.2, "true mean shown for every image", fontsize=7)
        left.set_ylabel("PSNR (dB)")
        left.legend(fontsize=8)
        line(right, main, "differences", "C1")
        right.set(ylim=(0, 1), ylabel="correlation of differences")
        for axis in (left, right):
            axis.set_xticks(range(len(PATTERNS)), PATTERNS, fontsize=8)
            axis.set_xlabel("labels of the same images")
    return figure, (
        "Two panels over label patterns from distinct to equal. The images' PSNR falls to that of "
        "the mean image while the PSNR of the mean stays high; the correlation of the "
        "differences falls."
    )


def line(
    axis: Axes, rows: pd.DataFrame, column: str, colour: str, label: str | None = None
) -> None:
    """A dot for each seed and a line through their means, over the patterns."""
    means = rows.groupby("labels")[column].mean()[list(PATTERNS)]
    axis.plot(range(len(PATTERNS)), means, "-", color=colour, lw=1)
    places = [PATTERNS.index(name) for name in rows.labels]
    axis.plot(places, rows[column], "o", ms=4, color=colour, label=label)


def value(table: pd.DataFrame, column: str, labels: str, case: str = "matching") -> float:
    """One number of the table of means."""
    return float(table[column][case, labels])


def share(table: pd.DataFrame, case: str) -> float:
    """How much of the differences is left when labels are equal."""
    left = value(table, "differences", "equal", case)
    return left / value(table, "differences", "distinct", case)


def numbers(frame: pd.DataFrame, table: pd.DataFrame, images: torch.Tensor) -> dict[str, float]:
    """What the text says of these runs on these images."""
    told: dict[str, float] = {}
    for labels in ("distinct", "equal"):
        told |= {
            f"psnr_{labels}": value(table, "psnr", labels),
            f"mean_{labels}": value(table, "mean restored", labels),
            f"difference_{labels}": value(table, "differences", labels),
            f"likeness_{labels}": value(table, "likeness", labels),
            f"gleak_{labels}": value(table, "psnr", labels, CLOSED_FORM),
            f"gleak_difference_{labels}": value(table, "differences", labels, CLOSED_FORM),
        }
    equations = frame[(frame.case == CLOSED_FORM) & (frame.labels == "equal")]
    return told | {
        "gleak_lowest": equations.psnr.min(),
        "gleak_highest": equations.psnr.max(),
        "mean_image": value(table, "mean image", "equal"),
        "spread": value(table, "spread", "equal"),
        "flat": value(table, "flat", "equal"),
        "true_likeness": likeness(images, images.mean(0)),
    }


def check_fusion(table: pd.DataFrame, dataset: str, seeds: int) -> None:
    """Print what the text claims of the fusion; it is said of the samples, and of several seeds."""
    if dataset != "cifar10-samples" or seeds < 2:
        return
    distinct, equal = (value(table, "psnr", labels) for labels in ("distinct", "equal"))
    print(f"equal labels cost 3 dB or more: {distinct > equal + 3}")
    near = equal < value(table, "mean image", "equal") + 0.5
    print(f"equal labels: no better than the mean image: {near}")
    worst = min(value(table, "mean restored", labels) for labels in ("distinct", "equal"))
    print(f"the mean is restored at 20 dB or more both times: {worst > 20}")
    print(f"the differences lose half of their correlation: {share(table, 'matching') < 0.65}")


# -- why: one slope for all -----------------------------------------------------------------------


def slope_lines(cosines: Mapping[str, Sequence[float]]) -> tuple[Figure, str]:
    """The cosine of slopes over the layers, for each kind of labels; the figure and its alt."""
    with plt.rc_context(figures.STYLE):
        figure, axis = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
        for (name, cosine), style in zip(cosines.items(), ("o-", "s-"), strict=True):
            axis.plot(range(1, len(cosine) + 1), cosine, style, ms=4, label=f"labels {name}")
        axis.axhline(0, color="0.7", lw=0.8)
        axis.set(xlabel="layer (the last one is the classifier)", ylabel="cosine of slopes")
        axis.legend(fontsize=8)
    return figure, (
        "Two lines over the layers. With equal labels the cosine rises to one at the classifier; "
        "with distinct labels it is near zero or below everywhere."
    )


def check_slopes(cosines: Mapping[str, Sequence[float]]) -> None:
    """Print what the text claims of the slopes."""
    equal = cosines["equal"]
    print(f"equal labels: slopes agree at the classifier: {equal[-1] > 0.99}")
    print(f"they agree less at the first layer: {equal[0] < equal[-1]}")
    never = max(cosines["distinct"]) < 0.5
    print(f"distinct labels: slopes never agree by more than 0.5: {never}")


# -- in the fifth digit they are apart ------------------------------------------------------------


def digits_table(errors: pd.DataFrame) -> Styler:
    """The errors of the features, to a digit."""
    return errors.style.format("{:.0e}")


def digit_numbers(errors: pd.DataFrame, best: pd.DataFrame) -> dict[str, float]:
    """What the text says of the errors of the worst feature, and of the best."""
    equal, told = errors.loc["convnet", "equal"], errors["bfloat16, told"]["convnet"]
    names = zip(SENT, ("float64", "float32", "bfloat16", "told"), strict=True)
    return {
        "second": equal["second singular value"],
        **{f"error_{name}": equal[sent] for sent, name in names},
        "mean_feature": equal["mean feature"],
        "told_distinct": told["distinct"],
        "told_pair": told["2 + 1 + 1"],
        "told_alone": best["bfloat16, told"]["convnet", "2 + 1 + 1"],
        "lenet_equal": errors["float32"]["lenet", "equal"],
    }


def check_digits(errors: pd.DataFrame, table: pd.DataFrame, dataset: str, seeds: int) -> None:
    """Print what the text claims of the closed form."""
    print(f"float32 separates equal labels to 10 %: {bool((errors['float32'] < 0.1).all())}")
    if dataset != "cifar10-samples" or seeds < 2:
        return
    told, mean = errors["bfloat16, told"]["convnet"], errors["mean feature"]["convnet"]
    print(f"bfloat16, convnet: no answer: {(errors['bfloat16']['convnet'] == 1).all()}")
    print(f"told of the rounding, distinct labels come out to 1 %: {told['distinct'] < 0.01}")
    print(f"equal ones are worse than the mean feature: {told['equal'] > mean['equal']}")
    gain = value(table, "psnr", "equal", CLOSED_FORM) - value(table, "psnr", "equal")
    print(f"equal labels: the closed form is ahead of matching by 1.5 dB: {gain > 1.5}")
    print(f"matching keeps less than half of the differences: {share(table, 'matching') < 0.4}")
    kept = share(table, CLOSED_FORM) > 2 / 3
    print(f"the closed form keeps two thirds and more: {kept}")


# -- what else might break the fusion -------------------------------------------------------------


def remedy_numbers(table: pd.DataFrame) -> dict[str, float]:
    """What the text says of what else was tried; 0 for what the model does not have."""

    def known(column: str, labels: str, case: str) -> float:
        return value(table, column, labels, case) if (case, labels) in table.index else 0.0

    cases = {
        "classifier": "classifier only",
        "l2": "L2",
        "steps": "local steps",
        "train": "batch norm, train",
        "eval": "batch norm, eval",
        "group": "group consistency",
        "apart": "starts apart",
    }
    told = {f"d_{name}": known("differences", "equal", case) for name, case in cases.items()}
    return told | {
        "p_apart": value(table, "psnr", "equal", "starts apart"),
        "p_train": known("psnr", "distinct", "batch norm, train"),
        "d_train_distinct": known("differences", "distinct", "batch norm, train"),
    }


def check_remedies(frame: pd.DataFrame, table: pd.DataFrame, dataset: str, seeds: int) -> None:
    """Print what the text claims of them."""
    if dataset != "cifar10-samples" or seeds < 2:
        return
    rest = frame[(frame.labels == "equal") & (frame.case != CLOSED_FORM)]
    kept = rest.groupby("case").differences.mean()
    norm = kept[kept.index.str.contains("batch norm")]
    print(f"batch norm brings no differences back in either mode: {bool((norm < 0.35).all())}")
    apart = value(table, "psnr", "equal", "starts apart") < value(table, "psnr", "equal") + 0.5
    print(f"starts far apart make no better images: {apart}")
    near = kept.max() < value(table, "differences", "equal", CLOSED_FORM) - 0.2
    print(f"none of these comes near the closed form: {near}")


# -- verdicts -------------------------------------------------------------------------------------

PAPER = "L2"  # the case with the published attack


def fusion(frame: pd.DataFrame, case: str) -> criterion.Finding | None:
    """Claim 5 in one case, paired by seed; None where it was not run with both kinds of labels."""
    runs = frame[frame.case == case].set_index(["labels", "seed"])
    if not {"distinct", "equal"} <= set(runs.index.unique("labels")):
        return None
    distinct, equal = runs.loc["distinct"], runs.loc["equal"]
    both = distinct.index.intersection(equal.index)
    distinct, equal = distinct.loc[both], equal.loc[both]
    return criterion.fused(
        case,
        distinct["differences"],
        equal["differences"],
        equal["mean restored"],
        equal["mean image"],
    )


def verdict_on_fusion(frame: pd.DataFrame, model: str, dataset: str, images: int) -> None:
    """Claim 5; of several attacks the one that keeps most apart stands for any method."""
    about = f"{images} images of one class of {dataset}, untrained {model}"
    settings = {
        (PAPER, "matching", CLOSED_FORM): setting(about, images=images, more=f"on {model}"),
        ("batch norm, train", "batch norm, eval"): setting(
            f"{about} with batch norm", images=images, more="with batch norm"
        ),
        ("local steps",): setting(f"{about}, two local steps", images=images, weights=True),
    }
    rows: list[Row] = []
    for cases, where in settings.items():
        found = {case: one for case in cases if (one := fusion(frame, case))}
        if found:
            rows.append((where, criterion.columns(found, PAPER, harmed=True)))
    verdict([5], rows)
