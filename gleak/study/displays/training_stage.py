"""Figures, tables, numbers, claims and verdicts of the chapter on the stage of training."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from gleak import figures
from gleak.study import criterion
from gleak.study.book import Row, verdict
from gleak.study.displays import label_lines
from gleak.study.displays.labels_fedsgd import listed, network_name
from gleak.study.experiments.training_stage import ATTACKS, LOCAL, RULES
from gleak.study.verdicts import setting
from gleak.study.words import name

LOOKS: dict[str, dict[str, Any]] = {
    "general": {"color": "C1", "marker": "s"},
    "gleak": {"color": "C0", "marker": "o"},
}
BARS = {"thumb8": ("8×8 thumbnail", "--"), "mean_colour": ("mean colour", ":")}

# -- images ---------------------------------------------------------------------------------------


def by_stage(frame: pd.DataFrame) -> tuple[Figure, str]:
    """PSNR over the stages, a panel for each pool: dots for networks, intervals for their means."""
    whole = frame[frame.kind == "all"]
    pools = dict.fromkeys(whole.pool)
    with plt.rc_context(figures.STYLE):
        figure, axes = plt.subplots(
            1,
            len(pools),
            figsize=(figures.PAGE * len(pools), 3.3),
            squeeze=False,
            layout="constrained",
        )
        for axis, pool in zip(axes[0], pools, strict=True):
            rows = whole[whole.pool == pool]
            steps = sorted(rows.step.unique())
            for bar, (words, style) in BARS.items():
                level = rows.groupby("step")[bar].mean()
                axis.plot(range(len(steps)), level, color="0.5", linestyle=style, label=words)
            for number, attack in enumerate(ATTACKS):
                runs = rows[rows.attack == attack].assign(method=attack)
                units = runs.groupby(["step", "training"]).psnr.mean().reset_index()
                spots = units.step.map(steps.index) + 0.12 * (2 * number - 1)
                axis.plot(spots, units.psnr, LOOKS[attack]["marker"], alpha=0.45, ms=3,
                          color=LOOKS[attack]["color"])  # fmt: skip
                found = label_lines.shares(runs, "step", criterion.TRAINED, "psnr")
                found = found.sort_values("step")
                label = name(attack, "attack")
                axis.plot(range(len(steps)), found["mean"], label=label, **LOOKS[attack])
                colour = LOOKS[attack]["color"]
                axis.fill_between(
                    range(len(steps)), found.low, found.high, color=colour, alpha=0.15, linewidth=0
                )
            axis.set_xticks(range(len(steps)), [str(step) for step in steps])
            axis.set(title=name(str(pool), "data"), xlabel="steps of training")
        axes[0, 0].set_ylabel("PSNR (dB)")
        figures.legend(figure, axes[0, 0])
    return figure, (
        "PSNR over the steps of training: a line for the paper's attack and one for the study's, "
        "with dots for single networks, beside the levels of 8×8 thumbnails and of one flat colour."
    )


def image_numbers(frame: pd.DataFrame) -> dict[str, Any]:
    """What the text says of images: first, last, and best stage of each attack."""
    whole = frame[frame.kind == "all"]
    steps = sorted(whole.step.unique())
    mean = whole.groupby(["attack", "step"])[["psnr", "thumb8", "mean_colour"]].mean()
    told: dict[str, Any] = {
        "last": steps[-1],
        "networks": whole[["pool", "training"]].drop_duplicates().shape[0],
        "accuracy": whole[whole.step == steps[-1]].accuracy.mean(),
        "thumbnail": whole.thumb8.mean(),
        "flat": whole.mean_colour.mean(),
    }
    for attack in ATTACKS:
        psnr = mean.loc[attack].psnr
        told |= {
            f"{attack}_first": psnr[steps[0]],
            f"{attack}_last": psnr[steps[-1]],
            f"{attack}_best": psnr.max(),
            f"{attack}_best_step": psnr.idxmax(),
        }
    return told


def share_dots(frame: pd.DataFrame) -> tuple[Figure, str]:
    """The gain of each image by the study's attack over its share of the gradient."""
    rows = trained_images(frame)
    with plt.rc_context(figures.STYLE):
        figure, axis = plt.subplots(figsize=(figures.PAGE, 3.2), layout="constrained")
        for (step, part), marker in zip(rows.groupby("step"), "osd^vP", strict=False):
            axis.plot(part.share, part.gain, marker, ms=5, alpha=0.8, label=f"{step} steps")
        axis.axhline(0, color="0.5", ls=":", lw=1)
        axis.set(xlabel="the image's share of the gradient", ylabel="PSNR above mean colour (dB)")
        figures.legend(figure, axis)
    return figure, (
        "A dot for each image restored from a trained network: its gain over one flat colour "
        "against its share of the batch's gradient."
    )


def trained_images(frame: pd.DataFrame) -> pd.DataFrame:
    """What the study's attack restored from trained networks, any images."""
    return frame[(frame.kind == "all") & (frame.step > 0) & (frame.attack == "gleak")]


def share_numbers(frame: pd.DataFrame) -> dict[str, float]:
    """What the text says of images with half of the gradient or more, and of the others."""
    rows = trained_images(frame)
    return {
        "large": rows[rows.share >= 0.5].gain.mean(),
        "small": rows[rows.share < 0.5].gain.mean(),
        "rank": rows.share.corr(rows.gain, method="spearman"),
    }


def late_numbers(frame: pd.DataFrame) -> dict[str, float]:
    """What the text says of images that the network names right, and wrong, at the last stage."""
    rows = frame[(frame.step == frame.step.max()) & (frame.attack == "gleak")]
    return {
        f"{what}_{kind}": rows[rows.kind == kind][column].mean()
        for what, column in (("gleak", "psnr"), ("bar", "thumb8"), ("solved", "closed form"))
        for kind in ("right", "wrong")
    }


def claims_images(frame: pd.DataFrame) -> dict[str, bool]:
    """The claims on images, and whether they hold."""
    told, late = image_numbers(frame), late_numbers(frame)
    whole = frame[(frame.kind == "all") & (frame.attack == "gleak")]
    entropy = whole.groupby("step").entropy.mean()
    return {
        "at the last stage networks name 90 % of the clients' images": (told["accuracy"] >= 0.9),
        "the softmax gets sure of itself": entropy.iloc[-1] < entropy.iloc[0] / 2,
        "at the last stage images named wrong come back better than those named right": (
            late["gleak_wrong"] > late["gleak_right"] + 1
        ),
    }


def budget_table(longer: pd.DataFrame) -> pd.DataFrame:
    """Means over networks by stage and budget."""
    means = longer.groupby(["step", "iterations"])[["psnr", "mean_colour", "apart", "error"]].mean()
    named = {"apart": "features apart", "error": "feature error"}
    return means.rename(columns=named).rename_axis(["step", "iterations of the search"])


def budget_numbers(longer: pd.DataFrame) -> dict[str, float]:
    """What the text says of longer searches, at the first stage and the second."""
    means = longer.groupby(["step", "iterations"])[["psnr", "apart", "error"]].mean()
    first, second = (means.loc[step] for step in sorted(longer.step.unique()))
    told: dict[str, float] = {
        "least_budget": longer.iterations.min(),
        "most_budget": longer.iterations.max(),
        "second_step": longer.step.max(),
    }
    for when, rows in (("first", first), ("second", second)):
        told |= {
            f"budget_{when}": rows.psnr.iloc[-1] - rows.psnr.iloc[0],
            f"apart_{when}": rows.apart.mean(),
            f"error_{when}": rows.error.iloc[0],
            f"left_{when}": rows.error.iloc[-1],
        }
    return told


def claims_crops(frame: pd.DataFrame, longer: pd.DataFrame) -> dict[str, bool]:
    """The claims on crops of photographs, and whether they hold."""
    told, budget = image_numbers(frame), budget_numbers(longer)
    first, flat = told["gleak_first"], told["flat"]
    return {
        "untrained: the study's attack stays below one flat colour": first < flat,
        "it does better after some training": told["gleak_best"] > first + 2,
        "untrained: a longer search gains 2 dB or more": budget["budget_first"] > 2,
        "the short search leaves a larger error of features on untrained networks": (
            budget["error_first"] > 2 * budget["error_second"]
        ),
    }


# -- labels ---------------------------------------------------------------------------------------


def label_lines_of(labels: pd.DataFrame) -> tuple[Figure, str]:
    """The share of labels over the stages, from gradients and from weights."""
    rules = [rule for rule in ("even", *RULES) if rule in set(labels.method)]
    panels = {f"from the {sent}": rows for sent, rows in labels.groupby("sent", sort=False)}
    return label_lines.lines(panels, "step", "steps of training", rules, criterion.TRAINED)


def label_numbers(labels: pd.DataFrame) -> dict[str, float]:
    """What the text says of labels at the first and the last stage, from gradients."""
    named = labels[labels.sent == "gradient"].pivot_table("instance", "step", "method")
    first, last = named.iloc[0], named.iloc[-1]
    return {
        f"{rule.replace('-', '_')}_{when}": stage.get(rule, float("nan"))
        for rule in ("even", *RULES)
        for when, stage in (("labels_first", first), ("labels_last", last))
    }


def claims_labels(told: Mapping[str, float]) -> dict[str, bool]:
    """The claims on labels, and whether they hold."""
    return {
        "untrained: the paper's rule names 85 % of the labels": told["zlg_labels_first"] > 0.85,
        "at the last stage it has lost 0.2 or more": (
            told["zlg_labels_last"] < told["zlg_labels_first"] - 0.2
        ),
        "there the study's rule is ahead of it by 0.05": (
            told["gleak_labels_last"] > told["zlg_labels_last"] + 0.05
        ),
    }


# -- verdicts -------------------------------------------------------------------------------------


def verdict_on_images(frame: pd.DataFrame, model: str, size: int) -> None:
    """Claims 2 and 6 at each stage, and at the last one of images that are named right or wrong."""
    rows: list[Row] = []
    for (step, kind), runs in frame.groupby(["step", "kind"], sort=False):
        which = "" if kind == "all" else f", images that the network names {kind}"
        pools = listed(runs.pool, "data")
        words = (
            f"{size} images, {network_name(model)} on {pools} after {step} steps of training{which}"
        )
        where = setting(
            words,
            images=size,
            trained=bool(step),
            more=f"for images that are named {kind}" if which else "",
        )
        found = criterion.image_columns(runs, criterion.TRAINED)
        rows.append((where, found))
    verdict([2, 6], rows)


def verdict_on_labels(labels: pd.DataFrame, model: str, size: int) -> None:
    """Claims 1 and 6 at each stage, from gradients and from weights."""
    rows: list[Row] = []
    local = f"{LOCAL['epochs']} local epochs at a rate of {LOCAL['lr']:g}"
    for (step, sent), runs in labels.groupby(["step", "sent"], sort=False):
        weights = sent == "weights"
        pools = listed(runs.pool, "data")
        words = f"{size} images, {network_name(model)} on {pools} after {step} steps of training"
        words += f", {local}" if weights else ""
        where = setting(words, what="labels", images=size, trained=bool(step), weights=weights)
        rows.append((where, criterion.label_columns(runs, criterion.TRAINED)))
    verdict([1, 6], rows)
