"""Figures, numbers, checks and verdicts of the chapter on the stage of training."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure

from gleak import figures
from gleak.study import criterion
from gleak.study.book import Row, verdict
from gleak.study.experiments.training_stage import RULES, gain_by_kind
from gleak.study.verdicts import setting

# -- images ---------------------------------------------------------------------------------------


def gain_dots(
    stages: pd.DataFrame, pools: Sequence[str], steps: Sequence[int], reference: bool
) -> tuple[Figure, str]:
    """The gain of each image over the stages, a panel for each pool; the figure and its alt text.

    reference: whether the pools and the network are those that the text speaks of.
    """
    size = (3.7 * len(pools), 2.9)
    with plt.rc_context(figures.STYLE):
        figure, axes = plt.subplots(
            1, len(pools), figsize=size, squeeze=False, sharey=True, layout="constrained"
        )
        for axis, pool in zip(axes[0], pools, strict=True):
            rows = stages[stages.pool == pool]
            for place, step in enumerate(steps):
                values = rows[rows.step == step].gain
                shift = torch.linspace(-0.15, 0.15, max(len(values), 2))[: len(values)]
                axis.plot(place + shift, values, "o", color="C0", ms=3, alpha=0.6)
            means = rows.groupby("step", sort=False).gain.mean()
            axis.plot(range(len(steps)), means, "o-", color="C1", ms=7)
            axis.axhline(0, color="0.5", ls="--", lw=1)
            axis.set_xticks(range(len(steps)), steps)
            axis.set(title=pool, xlabel="training steps")
        axes[0, 0].set_ylabel("PSNR above a flat colour (dB)")
    alt = (
        "Dots for each image over the stages of training, a panel for each data set, and a line "
        "through their means."
    )
    return figure, alt + " The means fall with training, and the single images spread." * reference


def gain_numbers(stages: pd.DataFrame, steps: Sequence[int]) -> dict[str, float]:
    """What the text says of the gain, over all pools."""
    gain = stages.groupby("step").gain.mean()
    early = steps[:-1][: max(len(steps) // 2, 1)]
    return {
        "gain_first": gain[steps[0]],
        "gain_early": float(gain[list(early)].max()),
        "gain_last": gain[steps[-1]],
        "last": steps[-1],
    }


def share_dots(trained: pd.DataFrame, pools: Sequence[str], reference: bool) -> tuple[Figure, str]:
    """The gain of each image over its share of the gradient; the figure and its alt text.

    reference: as for `gain_dots`.
    """
    with plt.rc_context(figures.STYLE):
        figure, axis = plt.subplots(figsize=(5.5, 3), layout="constrained")
        for pool, marker in zip(pools, "osd^v", strict=False):
            rows = trained[trained.pool == pool]
            axis.plot(rows.share, rows.gain, marker, ms=5, alpha=0.8, label=pool)
        axis.axhline(0, color="0.5", ls="--", lw=1)
        axis.set(xlabel="the image's share of the gradient", ylabel="PSNR above a flat colour (dB)")
        axis.legend(fontsize=8)
    seen = (
        " On the digits, those with nearly all of the gradient lie well above a flat colour, those "
        "with little of it below."
    )
    alt = "A dot for each image, its gain over its share of the gradient."
    return figure, alt + seen * reference


def share_numbers(trained: pd.DataFrame) -> dict[str, float]:
    """What the text says of images with half of the gradient or more, and of the others."""
    return {
        "large": trained[trained.share >= 0.5].gain.mean(),
        "small": trained[trained.share < 0.5].gain.mean(),
        "rank": trained.share.corr(trained.gain, method="spearman"),
    }


def late_numbers(
    frame: pd.DataFrame, late: pd.DataFrame, pools: Sequence[str], last: int
) -> dict[str, float]:
    """What the text says of images that the network names right, and wrong, at the last stage."""
    by_kind, rows = gain_by_kind(late), frame[frame.step == last]
    wrong, right = rows[rows.kind == "wrong"], rows[rows.kind == "right"]
    return {
        f"gain_{kind}_{number}": by_kind[kind][pool]
        for number, pool in enumerate((pools[0], pools[-1]))
        for kind in ("right", "wrong")
    } | {
        "solved_wrong": wrong["closed form"].mean(),
        "solved_right": right["closed form"].mean(),
        "gleak_wrong": wrong["gleak gain"].mean(),
    }


def late_words(late: pd.DataFrame, pools: Sequence[str]) -> dict[str, str]:
    """The names of the two pools that the text speaks of, and how far one gets on the second."""
    reach = gain_by_kind(late).loc[pools[-1]].max()
    nowhere = "gets nowhere in this budget, whoever speaks"
    return {
        "pool_0": pools[0],
        "pool_1": pools[-1],
        "reach_1": nowhere if reach < 1 else f"gains {reach:.1f} dB at best",
    }


def check_images(told: dict[str, float], table: pd.DataFrame, reference: bool, whole: bool) -> None:
    """Print what the text claims of the images.

    told: the numbers of the functions above. reference: as for `gain_dots`; whole: and whether the
    stages and seeds are those of the text, too.
    """
    if whole:
        print(f"training costs gain: {told['gain_last'] < told['gain_first'] - 1}")
        print(f"trained: the larger share gains more: {told['large'] > told['small'] + 1}")
        digits = told["gain_wrong_0"] > told["gain_right_0"] + 1
        print(
            "last stage, digits: images named wrong gain 1 dB more than images named right: "
            f"{digits}"
        )
        often = told["solved_wrong"] > told["solved_right"]
        print(f"last stage: the closed form finds hard images more often: {often}")
        hard = told["gleak_wrong"] > 1
        print(f"last stage: gleak restores hard images above a flat colour: {hard}")
    if reference:
        entropy = table.entropy.groupby("pool")
        falling = bool((entropy.last() < entropy.first()).all())
        print(f"the softmax gets sure of itself in every pool: {falling}")


# -- labels ---------------------------------------------------------------------------------------


def label_numbers(named: pd.DataFrame, steps: Sequence[int]) -> dict[str, float]:
    """What the text says of the labels, over all pools."""
    first, last = named.loc[steps[0]], named.loc[steps[-1]]
    return {
        "zlg_first": first.zlg,
        "zlg_last": last.zlg,
        "gleak_last": last.gleak,
        "even_last": last.even,
    }


def label_lines(named: pd.DataFrame, reference: bool) -> tuple[Figure, str]:
    """The share of labels over the stages, a line for each rule; the figure and its alt text.

    reference: as for `gain_dots`.
    """
    with plt.rc_context(figures.STYLE):
        figure, axis = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
        for rule, style in zip(("even", *RULES), ("k:", "C1-", "C3-", "C0-"), strict=True):
            axis.plot(range(len(named)), named[rule], style, marker=".", label=rule)
        axis.set_xticks(range(len(named)), named.index)
        axis.set(xlabel="training steps", ylabel="instance accuracy", ylim=(0, 1.03))
        axis.legend(fontsize=8)
    alt = "Lines of the share of labels restored over the stages of training, one for each rule."
    seen = " All rules are near one on the untrained network; zlg falls towards the guess, gleak "
    return figure, alt + f"{seen}stays above it." * reference


def check_labels(told: dict[str, float], whole: bool) -> None:
    """Print what the text claims of the labels; `whole` as for `check_images`."""
    if not whole:
        return
    print(f"untrained: zlg names 90 % of the labels: {told['zlg_first'] > 0.9}")
    lost = told["zlg_last"] < told["zlg_first"] - 0.2
    print(f"last: zlg has lost 0.2 or more: {lost}")
    ahead = told["gleak_last"] > told["zlg_last"] + 0.05
    print(f"last: gleak is ahead of zlg by 0.05: {ahead}")


# -- verdicts -------------------------------------------------------------------------------------


def long_images(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each image and attack, with the columns that the criterion reads."""
    about = rows.rename(columns={"flat": "mean_colour"})
    own = about[about.gleak.notna()]
    return pd.concat(
        [about.assign(attack="inverting-gradients"), own.assign(attack="gleak", psnr=own.gleak)]
    )


def verdict_on_images(frame: pd.DataFrame, model: str, size: int) -> None:
    """Claims 2 and 6 at each stage, and at the last one of images that are named right or wrong.

    All batches of a network are averaged.
    """
    rows: list[Row] = []
    for (step, kind), runs in frame.groupby(["step", "kind"], sort=False):
        which = "" if kind == "all" else f", images that the network names {kind}"
        pools = ", ".join(runs.pool.unique())
        words = f"{size} images, {model} on {pools} after {step} steps{which}"
        where = setting(
            words,
            images=size,
            trained=bool(step),
            more=f"for images that are named {kind}" if which else "",
        )
        found = criterion.image_columns(long_images(runs), criterion.TRAINED)
        rows.append((where, found))
    verdict([2, 6], rows)


def verdict_on_labels(labels: pd.DataFrame, model: str, size: int) -> None:
    """Claims 1 and 6 at each stage."""
    rows: list[Row] = []
    about = [name for name in (*criterion.TRAINED, "step", "seed", "even") if name in labels]
    long = labels.melt(about, list(RULES), var_name="method", value_name="instance")
    for step, runs in long.groupby("step", sort=False):
        words = f"{size} images, {model} on {', '.join(runs.pool.unique())} after {step} steps"
        where = setting(words, what="labels", images=size, trained=bool(step))
        rows.append((where, criterion.label_columns(runs, criterion.TRAINED)))
    verdict([1, 6], rows)
