"""Tables, figures, checks and verdicts of the chapter on equal labels."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gleak import figures
from gleak.inversion import Inversion
from gleak.study import criterion
from gleak.study.book import Row, verdict
from gleak.study.experiments.same_label import CLOSED_FORM, PATTERNS, SENT, likeness
from gleak.study.verdicts import setting
from gleak.study.words import name, on

# -- the sum comes back, the differences do not ---------------------------------------------------


def pictures(
    images: torch.Tensor, results: Mapping[str, tuple[Inversion, pd.DataFrame]]
) -> tuple[Figure, str]:
    """Originals, what came back of them, and the mean of each row; the figure and its alt text."""
    rows = {"original": images} | {
        name: found.images[scores["match"].tolist()] for name, (found, scores) in results.items()
    }
    size = (figures.across(len(images) + 1), 4.2)
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
        figure, (left, right) = plt.subplots(2, 1, figsize=(4.8, 5), layout="constrained")
        line(left, main, "mean restored", "C2", "mean of the batch")
        line(left, main, "psnr", "C0", "the images")
        left.axhline(mean_image, color="0.5", ls="--", lw=1)
        left.text(4, mean_image + 0.2, "true mean shown for every image", ha="right")
        left.set_ylabel("PSNR (dB)")
        left.legend()
        line(right, main, "differences", "C1")
        right.set(ylim=(0, 1), ylabel="correlation of differences")
        for axis in (left, right):
            axis.set_xticks(range(len(PATTERNS)), PATTERNS)
        right.set_xlabel("labels of the same images")
    return figure, (
        "Two panels, one above the other, over label patterns from distinct to equal. The images' "
        "PSNR falls to that of the mean image while the PSNR of the mean stays high; the "
        "correlation of the differences falls."
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


def attacks_table(table: pd.DataFrame) -> pd.DataFrame:
    """What three attacks bring back of the images and of their differences, by labels."""
    words = {"matching": "by cosine", "L2": "by L2", CLOSED_FORM: "the study's attack"}
    rows = [(case, labels) for case in words for labels in ("distinct", "equal")]
    shown = table.loc[rows, ["psnr", "mean image", "mean restored", "differences"]]
    shown.index = pd.MultiIndex.from_tuples(
        [(words[case], labels) for case, labels in rows], names=["search", "labels"]
    )
    return shown.rename(
        columns={
            "mean image": "mean image for each (dB)",
            "mean restored": "PSNR of the mean (dB)",
            "differences": "correlation of differences",
        }
    )


def fusion_claims(table: pd.DataFrame, dataset: str, seeds: int) -> dict[str, bool]:
    """What the text claims of the fusion; it is said of the samples, and of several networks."""
    if dataset != "cifar10-samples" or seeds < 2:
        return {}
    distinct, equal = (value(table, "psnr", labels) for labels in ("distinct", "equal"))
    worst = min(value(table, "mean restored", labels) for labels in ("distinct", "equal"))
    return {
        "equal labels cost 3 dB or more": distinct > equal + 3,
        "equal labels: no better than the mean image": (
            equal < value(table, "mean image", "equal") + 0.5
        ),
        "the mean is restored at 20 dB or more both times": worst > 20,
        "most of the correlation of the differences is lost": share(table, "matching") < 0.5,
    }


# -- why: one slope for all -----------------------------------------------------------------------


def slope_lines(cosines: Mapping[str, Sequence[float]]) -> tuple[Figure, str]:
    """The cosine of slopes over the layers, for each kind of labels; the figure and its alt."""
    with plt.rc_context(figures.STYLE):
        figure, axis = plt.subplots(figsize=(4.8, 2.8), layout="constrained")
        for (name, cosine), style in zip(cosines.items(), ("o-", "s-"), strict=True):
            axis.plot(range(1, len(cosine) + 1), cosine, style, ms=4, label=f"labels {name}")
        axis.axhline(0, color="0.7", lw=0.8)
        axis.set(xlabel="layer (the last one is the classifier)", ylabel="cosine of slopes")
        axis.legend()
    return figure, (
        "Two lines over the layers. With equal labels the cosine rises to one at the classifier; "
        "with distinct labels it is near zero or below everywhere."
    )


def slope_claims(cosines: Mapping[str, Sequence[float]]) -> dict[str, bool]:
    """What the text claims of the slopes."""
    equal = cosines["equal"]
    return {
        "equal labels: slopes agree at the classifier": equal[-1] > 0.99,
        "they agree less at the first layer": equal[0] < equal[-1],
        "distinct labels: slopes never agree by more than 0.5": max(cosines["distinct"]) < 0.5,
    }


# -- in the fifth digit they are apart ------------------------------------------------------------


def digits_table(errors: pd.DataFrame) -> pd.DataFrame:
    """The errors of the features, to a digit."""
    shown = errors.drop(columns=["second singular value"]).map("{:.0e}".format)
    return shown.rename_axis(columns=None)


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


def digit_claims(
    errors: pd.DataFrame, table: pd.DataFrame, dataset: str, seeds: int
) -> dict[str, bool]:
    """What the text claims of the closed form."""
    found = {"float32 separates equal labels to 10 %": bool((errors["float32"] < 0.1).all())}
    if dataset != "cifar10-samples" or seeds < 2:
        return found
    told, mean = errors["bfloat16, told"]["convnet"], errors["mean feature"]["convnet"]
    gain = value(table, "psnr", "equal", CLOSED_FORM) - value(table, "psnr", "equal")
    return found | {
        "bfloat16, convnet: no answer": bool((errors["bfloat16"]["convnet"] == 1).all()),
        "told of the rounding, distinct labels come out to 1 %": bool(told["distinct"] < 0.01),
        "equal ones are worse than the mean feature": bool(told["equal"] > mean["equal"]),
        "equal labels: the closed form is ahead of matching by 1.5 dB": gain > 1.5,
        "the closed form keeps two thirds of the differences": share(table, CLOSED_FORM) > 2 / 3,
    }


# -- what else might break the fusion -------------------------------------------------------------


REMEDIES = {
    "matching": "nothing: cosine, full gradient",
    "classifier only": "the classifier's gradient alone",
    "local steps": "two local steps, simulated",
    "batch norm, eval": "batch norm, eval mode",
    "batch norm, train": "batch norm, train mode",
    "group consistency": "restarts that agree",
    "starts apart": "starts far apart",
}


def remedies_table(table: pd.DataFrame) -> pd.DataFrame:
    """Correlation of the differences, and PSNR, by what was tried; equal labels and distinct."""
    both = ["equal", "distinct"]
    words = {"differences": "differences", "psnr": "PSNR (dB)"}
    parts = [
        table.reset_index()
        .pivot_table(column, "case", "labels")
        .reindex(columns=both)
        .add_prefix(f"{name}, labels ")
        for column, name in words.items()
    ]
    frame = pd.concat(parts, axis=1)
    kept = [case for case in REMEDIES if case in frame.index]
    return frame.loc[kept].rename(REMEDIES).rename_axis("what was tried")


def remedy_dots(frame: pd.DataFrame) -> tuple[Figure, str]:
    """The differences that come back, by what was tried and by labels; the figure and its alt."""
    named = frame.assign(
        tried=frame.case.map(REMEDIES), labels="labels " + frame["labels"].astype(str)
    )
    named = named.rename(columns={"differences": "correlation of differences"})
    named = named.sort_values("tried", key=lambda tried: tried.map(list(REMEDIES.values()).index))
    summary = "With equal labels less than half of the correlation comes back in every row."
    return figures.dots(
        named, summary, row="tried", value="correlation of differences", series="labels"
    )


def remedy_numbers(table: pd.DataFrame) -> dict[str, float]:
    """What the text says of what else was tried; 0 for what the model does not have."""

    def known(column: str, labels: str, case: str) -> float:
        return value(table, column, labels, case) if (case, labels) in table.index else 0.0

    cases = {
        "matching": "matching",
        "classifier": "classifier only",
        "steps": "local steps",
        "train": "batch norm, train",
        "eval": "batch norm, eval",
        "group": "group consistency",
        "apart": "starts apart",
    }
    told = {f"d_{name}": known("differences", "equal", case) for name, case in cases.items()}
    return told | {
        "p_apart": value(table, "psnr", "equal", "starts apart"),
        "p_matching": value(table, "psnr", "equal"),
        "spread": value(table, "spread", "equal"),
        "p_train": known("psnr", "distinct", "batch norm, train"),
        "d_train_distinct": known("differences", "distinct", "batch norm, train"),
    }


def remedy_claims(frame: pd.DataFrame, table: pd.DataFrame, dataset: str) -> dict[str, bool]:
    """What the text claims of them; of the samples, and of several networks."""
    if dataset != "cifar10-samples" or frame.seed.nunique() < 2:
        return {}
    kept = frame[frame.labels == "equal"].groupby("case").differences.mean()
    norm = kept[kept.index.str.contains("batch norm")]
    apart = value(table, "psnr", "equal", "starts apart") < value(table, "psnr", "equal") + 0.5
    return {
        "batch norm brings no differences back in either mode": bool((norm < 0.35).all()),
        "starts far apart make no better images": apart,
        "nothing brings back more than half of the correlation": bool(kept.max() < 0.5),
    }


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
    """Claim 5, in the settings that were run.

    Of several attacks the one that keeps most apart stands for any method.
    """
    about = f"{images} images of one class of {name(dataset, 'data')}, untrained {model}"
    settings = {
        (PAPER, "matching", CLOSED_FORM): setting(
            about, images=images, more=f"{on(model)} as it is"
        ),
        ("batch norm, train", "batch norm, eval"): setting(
            f"{about} with batch norm", images=images, more="with batch norm"
        ),
        ("local steps",): setting(
            f"{about}, weights after two local steps", images=images, weights=True
        ),
    }
    ran = set(frame.case)
    rows: list[Row] = []
    for cases, where in settings.items():
        found = {case: one for case in cases if (one := fusion(frame, case))}
        if found and cases[0] in ran:
            rows.append((where, criterion.columns(found, PAPER, harmed=True)))
    verdict([5], rows)
