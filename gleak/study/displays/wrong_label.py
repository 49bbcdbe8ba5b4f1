"""Tables, figures, checks and verdicts of the chapter on wrong labels."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

import gleak
from gleak import figures
from gleak.study import criterion
from gleak.study.book import Row, verdict
from gleak.study.experiments import wrong_label as experiment
from gleak.study.experiments.wrong_label import ABOUT, NOISE, WRONG, compared
from gleak.study.verdicts import setting

# -- which images fail ----------------------------------------------------------------------------


def dots(frame: pd.DataFrame, model: str) -> tuple[Figure, str]:
    """Every image of every seed in four panels; the figure and its alt text."""
    panels = [
        ("distinct", model, "cosine", "matching, cosine"),
        ("distinct", model, "L2", "matching, L2"),
        ("larger", model, "cosine", "larger batch, cosine"),
        ("distinct", "lenet", "gleak", "gleak on LeNet"),
    ]
    with plt.rc_context(figures.STYLE):
        widths = [4, 2, 2, 2]
        figure, axes = plt.subplots(
            1, 4, figsize=(8, 3), sharey=True, layout="constrained", width_ratios=widths
        )
        for axis, (*case, title) in zip(axes, panels, strict=True):
            images_on(axis, frame[(frame[["kind", "network", "attack"]] == case).all(axis=1)])
            axis.set_title(title, fontsize=9)
        axes[0].set_ylabel("PSNR (dB)")
        axes[0].plot([], [], "o", color="C0", ms=4, label="label right")
        axes[0].plot([], [], "X", color="C1", ms=4, label="label wrong")
        axes[0].legend(fontsize=8, loc="upper right")
    return figure, (
        "Dots for every image in four panels. With right labels most dots lie above the flat "
        "colour; with a wrong label those of most images fall to it or below, also of images "
        "whose own label is right. Only under L2 these stay above it."
    )


def images_on(axis: Axes, rows: pd.DataFrame) -> None:
    """The images of one panel, a column for each way of being wrong."""
    shown = [wrong for wrong in WRONG if (rows.wrong == wrong).any()]
    for place, wrong in enumerate(shown):
        for touched, colour, marker in ((False, "C0", "o"), (True, "C1", "X")):
            values = rows[(rows.wrong == wrong) & (rows.touched == touched)].psnr
            shift = torch.linspace(-0.2, 0.2, max(len(values), 2))[: len(values)]
            axis.plot(place + shift, values, marker, color=colour, ms=4, alpha=0.8)
    axis.axhline(rows.flat.mean(), color="0.5", lw=1, ls="--")
    axis.set_xticks(range(len(shown)), shown)
    axis.set_xlim(-0.5, len(shown) - 0.5)


def losses(pairs: Mapping[str, pd.Series]) -> dict[str, float]:
    """What wrong labels cost the images whose own label is right, in dB."""
    return {name: found["right"] - found["wrong"] for name, found in pairs.items()}


def numbers(
    frame: pd.DataFrame, pairs: Mapping[str, pd.Series], model: str, larger_size: int
) -> dict[str, float]:
    """What the text says of these runs."""
    return {f"lost_{name}": value for name, value in losses(pairs).items()} | {
        "right": pairs["cosine"]["right"],
        "absent": pairs["cosine"]["wrong"],
        "absent_L2": pairs["L2"]["wrong"],
        "touched": mean(frame, model, "absent", "touched"),
        "flat": pairs["cosine"]["flat"],
        "larger": larger_size,
    }


def mean(
    frame: pd.DataFrame,
    model: str,
    wrong: str,
    column: str = "untouched",
    attack: str = "cosine",
) -> float:
    """A mean of the batch of distinct labels."""
    return float(experiment.means(frame)[column]["distinct", model, attack, wrong])


def check_losses(
    frame: pd.DataFrame, pairs: Mapping[str, pd.Series], model: str, dataset: str
) -> None:
    """Print what the text claims of these runs; it is said of the samples, and of several seeds."""
    if dataset != "cifar10-samples" or frame.seed.nunique() < 2:
        return
    above = mean(frame, model, "right") > mean(frame, model, "right", "flat colour") + 3
    print(f"right labels, cosine: 3 dB above a flat colour: {above}")
    for name, lost in losses(pairs).items():
        least = 1 if name in ("L2", "gleak") else 2
        print(f"{name}: the other images lose {least} dB or more: {lost > least}")
    cosine, squared = pairs["cosine"], pairs["L2"]
    flat = cosine["wrong"] < cosine["flat"]
    print(f"cosine, one wrong: the others no better than flat: {flat}")
    above = squared["wrong"] > squared["flat"] + 0.5
    print(f"L2, one wrong: the others are above flat: {above}")


# -- every network, every attack ------------------------------------------------------------------


def recorded_table(recorded: pd.DataFrame, found: pd.DataFrame) -> Styler:
    """What one wrong label does in each recorded case, in words and numbers."""
    by = ["network", "attack", "images"]
    right = recorded[recorded.wrong == "right"].groupby(by)[["psnr", "flat"]].mean()
    columns = {("flat", ""): right.flat, ("right", ""): right.psnr}
    for wrong in WRONG[1:]:
        columns[wrong, "others"] = compared(recorded, by, wrong)["wrong"]
        columns[wrong, "touched"] = compared(recorded, by, wrong, touched=True)["wrong"]
    every = pd.DataFrame({("one wrong label", ""): found.words, **columns})  # in words, first
    return every.style.format(precision=1, na_rep="–")


def recorded_numbers(recorded: pd.DataFrame, found: pd.DataFrame) -> dict[str, float]:
    """What the text says of the recorded cases."""
    times = found.words.value_counts()
    words = {
        "lost": "all are lost",
        "worse": "all are worse",
        "only": "only the touched",
        "nothing": "nothing to lose",
    }
    told: dict[str, float] = {
        f"times_{name}": int(times.get(outcome, 0)) for name, outcome in words.items()
    }
    by, few = ["network", "attack", "images"], recorded.images.min()
    right = recorded[recorded.wrong == "right"].groupby(by).psnr.mean()
    told |= {
        "cases": len(experiment.at_stake(found.words)),
        "few_images": few,
        "resnet_right": right["resnet18", "gleak", few],
        "resnet_wrong": found.wrong["resnet18", "gleak", few],
        "joint_lenet": right["lenet", "joint labels", few],
        "right_lenet": right["lenet", "cosine", few],
    }
    for network in ("convnet", "lenet", "lenet-relu"):
        for attack in ("cosine", "L2"):
            case = found.loc[network, attack]
            lost = (case["right"] - case["wrong"]).mean()
            told[f"loses_{network.replace('-', '_')}_{attack}"] = lost
    return told


def check_recorded(found: pd.DataFrame) -> None:
    """Print what the text claims of the recorded cases."""
    spared, words = found.loc["lenet", "cosine"], found.words
    relu = "only the touched" not in set(words[["convnet", "lenet-relu"]])
    print(f"recorded: matching on ReLU networks never loses only the touched image: {relu}")
    less = bool((spared["right"] - spared["wrong"] < 1).all())
    print(f"LeNet with sigmoids, cosine: the others lose less than 1 dB: {less}")
    lost = bool((words.xs("gleak", level="attack") == "all are lost").all())
    print(f"gleak loses all on every network: {lost}")


# -- why the others are pulled along --------------------------------------------------------------


def pull_lines(
    pulls: Mapping[str, tuple[torch.Tensor, torch.Tensor]], others: torch.Tensor
) -> tuple[Figure, str]:
    """The pull over the noise, a panel for each distance; the figure and its alt text."""
    with plt.rc_context(figures.STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(7, 2.8), sharex=True, layout="constrained")
        for axis, (distance, (right, wrong)) in zip(axes, pulls.items(), strict=True):
            axis.loglog(NOISE, right, "o-", ms=4, label="labels right")
            axis.loglog(NOISE, wrong[:, others].mean(1), "s-", ms=4, label="one wrong: the others")
            axis.loglog(NOISE, wrong[:, ~others].mean(1), "X-", ms=4, label="one wrong: that image")
            axis.set(title=distance, xlabel="noise on the pixels")
        axes[0].set_ylabel("pull at an image")
        axes[1].legend(fontsize=8, frameon=False)
    return figure, (
        "Two panels, cosine and L2. The pull with right labels falls with the noise; with one "
        "wrong label it is flat, and at small noise well above it, also at the other images."
    )


def pull_numbers(
    pulls: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    alone: torch.Tensor,
    others: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """What the text says of the pull; alone: in the classifier's gradient alone, at each image."""
    (cosine_right, cosine_wrong), (right, wrong) = pulls["cosine"], pulls["l2"]
    return {
        "alone": alone[others].mean() / alone[~others].mean(),
        "pull_share": wrong[0, others].mean() / wrong[0, ~others].mean(),
        "pull_cosine": cosine_wrong[0, others].mean() / cosine_right[1],
        "pull_l2": wrong[0, others].mean() / right[1],
    }


def check_pulls(
    found: Mapping[str, torch.Tensor],
    lenet: Mapping[str, float],
    near: Mapping[str, float],
    dataset: str,
) -> None:
    """Print what the text claims of the pull; it is said of the samples."""
    if dataset != "cifar10-samples":
        return
    half = bool(found["pull_share"] < 0.5)
    print(f"L2: the others are pulled less than half as much as the touched image: {half}")
    print(f"in the classifier alone, less than a tenth: {bool(found['alone'] < 0.1)}")
    more = lenet["sigmoid"] > 1.5 * lenet["relu"]
    print(f"LeNet: the others are pulled more with sigmoids than with ReLU: {more}")
    worse = near["right"] > near["wrong"] + 4
    print(f"from the goal, one wrong label costs the others 4 dB or more: {worse}")


# -- where the order of labels matters ------------------------------------------------------------


def order_numbers(effect: pd.DataFrame) -> dict[str, float]:
    """What the text says of exchanged steps, in percent of the update."""
    return {
        "order_small": 100 * effect["two steps exchanged"][0.01],
        "order_large": 100 * effect["two steps exchanged"][0.1],
        "wrong_share": 100 * effect["one label wrong"][0.01],
    }


def order_table(effect: pd.DataFrame) -> Styler:
    """How much of the update changes, for each learning rate."""
    return effect.style.format("{:.3f}").format_index("{:g}")


def steps_table(steps: pd.DataFrame) -> Styler:
    """PSNR of a client with a step for each image, where the attacker takes something for other."""
    by = ["images", "lr"]
    columns = {
        ("flat", ""): steps.groupby(by).flat.mean(),
        ("right", ""): steps[steps.wrong == "right"].groupby(by).psnr.mean(),
    }
    for wrong, name in (("swapped", "two exchanged"), ("absent", "one wrong")):
        columns[name, "others"] = compared(steps, by, wrong)["wrong"]
        columns[name, "touched"] = compared(steps, by, wrong, touched=True)["wrong"]
    table = pd.DataFrame(columns).rename_axis(["images", "learning rate"])
    return table.style.format(precision=1).format_index("{:g}")


def exchange_numbers(cost: Mapping[bool, pd.Series]) -> dict[str, float]:
    """What the text says of two images' exchanged steps, in dB."""
    return {
        f"swap_{name}_{which}": cost[touched].xs(lr, level="lr").mean()
        for lr, name in ((0.01, "small"), (0.1, "large"))
        for touched, which in ((True, "touched"), (False, "others"))
    }


def check_order(effect: pd.DataFrame, cost: Mapping[bool, pd.Series]) -> None:
    """Print what the text claims of the order."""
    swapped, wrong = effect["two steps exchanged"], effect["one label wrong"]
    grows = bool(swapped.is_monotonic_increasing)
    print(f"the effect of the order grows with the learning rate: {grows}")
    tenth = bool(swapped[0.01] < 0.1 * wrong[0.01])
    print(f"at 0.01 it is less than a tenth of that of a wrong label: {tenth}")
    small, large = cost[True].xs(0.01, level="lr"), cost[True].xs(0.1, level="lr")
    less = bool((small.abs() < 0.7).all())
    print(f"recorded, labels exchanged at 0.01: less than 0.7 dB: {less}")
    print(f"at 0.1: the two images lose 1 dB or more: {bool((large > 1).all())}")


# -- three tests that need no images, and the repair ----------------------------------------------


def tests_table(tests: pd.DataFrame) -> Styler:
    """What the tests say of right and wrong labels."""
    view = (
        tests[tests.attack != "joint labels"]
        .groupby(ABOUT)
        .agg(
            lowest_softmax=("lowest softmax", "mean"),
            floor=("floor", "mean"),
            reached=("reached", "mean"),
            softmax_passes=("softmax test", "mean"),
            closed_form_passes=("closed form", "mean"),
        )
    )
    view.columns = view.columns.str.replace("_", " ")
    return view.style.format(precision=3, na_rep="–")


def check_tests(tests: pd.DataFrame, model: str, dataset: str) -> None:
    """Print what the text claims of the tests."""
    wrong, passed = tests.wrong != "right", tests[["softmax test", "closed form"]]
    always, never = bool(passed[~wrong].all().all()), bool(~passed[wrong].any().any())
    print(f"right labels pass both tests always: {always}")
    print(f"wrong labels never pass either: {never}")
    if dataset == "cifar10-samples":
        own = tests[tests.network == model]
        reached = own.pivot_table("reached", ["kind", "attack", "seed"], "wrong")
        ratio = reached.drop(columns="right").div(reached["right"], axis=0).min(axis=None)
        print(f"the distance reached is ten times higher: {bool(ratio > 10)}")


def joint_numbers(frame: pd.DataFrame, model: str) -> dict[str, float]:
    """What labels that are searched for cost, and what they win against a wrong one."""
    joint = mean(frame, model, "right", attack="joint labels")
    chosen = (frame.kind == "distinct") & (frame.attack == "cosine") & (frame.wrong == "absent")
    return {
        "joint_cost": mean(frame, model, "right") - joint,
        "joint_gain": joint - frame[chosen].psnr.mean(),
    }


def repair_numbers(repair: pd.DataFrame, batches: int) -> dict[str, float]:
    """What the text says of the repair."""
    return {
        "repair_batches": batches,
        "zlg_middle": repair["zlg exact"][15],
        "zlg_late": repair["zlg exact"][150],
        "exact_middle": repair["exact"][15],
        "exact_late": repair["exact"][150],
        "none_late": repair["no answer"][150],
    }


def check_repair(stages: pd.DataFrame, repair: pd.DataFrame) -> None:
    """Print what the text claims of the repair."""
    print(f"untrained: always exact: {repair['exact'][0] == 1}")
    wrong = (stages.outcome == "wrong").mean()
    print(f"a wrong answer in less than one batch in ten: {wrong < 0.1}")
    if len(stages) > 20:
        often = repair["exact"][15] >= repair["zlg exact"][15]
        print(f"early: at least as often right as the rule: {often}")


# -- verdicts -------------------------------------------------------------------------------------

RECORDED = "cifar10-samples"  # whose images the recorded runs attacked
KEYS = ["kind", "network", "attack", "images", "seed"]


def thumbnails(dataset: str, size: int, repeated: bool = False) -> pd.Series:
    """PSNR of the 8x8 thumbnails of a batch's images, in dB; a row for each image."""
    images = experiment.drawn(dataset, size, repeated).images
    return gleak.score(images, images)["thumb8"].rename_axis("image")


def untouched(rows: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """PSNR of the images whose own label is right: all labels right, one wrong, thumbnails.

    rows: with kind and images (in the batch); a row for each run.
    """
    keys = [*KEYS, "image"]
    right = rows[rows.wrong == "right"].groupby(keys).psnr.mean()
    one = rows[rows.wrong.isin(["absent", "count"]) & ~rows.touched]
    wrong = one.groupby(keys).psnr.mean()
    pairs = pd.DataFrame({"right": right.reindex(wrong.index), "wrong": wrong}).reset_index()
    parts = []
    for (kind, size), chosen in pairs.groupby(["kind", "images"], sort=False):
        bars = thumbnails(dataset, int(size), kind == "repeated")
        parts.append(chosen.assign(thumbnail=chosen.image.map(bars)))
    return pd.concat(parts).groupby(KEYS, sort=False)[["right", "wrong", "thumbnail"]].mean()


def case_rows(rows: pd.DataFrame, dataset: str, made: str) -> list[Row]:
    """A row for each network and batch; made: where the runs are from."""
    found: list[Row] = []
    cases = untouched(rows, dataset).groupby(["kind", "network", "images"], sort=False)
    for (kind, network, size), runs in cases:
        local = "local steps" in runs.index.unique("attack")
        words = f"{made}: {size} images ({kind}), {network}, untrained"
        where = setting(words, images=size, more=f"on {network}")
        judged = {
            str(attack): criterion.spoilt(str(attack), one.right, one.wrong, one.thumbnail)
            for attack, one in runs.groupby(level="attack", sort=False)
            if attack != "local steps"
        }
        found.append((where, criterion.columns(judged, "L2", harmed=True)))
        if local:
            one = runs.xs("local steps", level="attack").groupby("seed").mean()
            where = setting(f"{words}, a local step for each", images=size, weights=True)
            steps = criterion.spoilt("local steps", one.right, one.wrong, one.thumbnail)
            found.append((where, criterion.columns({"local steps": steps}, "L2", harmed=True)))
    return found


def verdict_on_wrong_labels(
    frame: pd.DataFrame, stored: pd.DataFrame, dataset: str, size: int, larger_size: int
) -> None:
    """Claim 4, from this page's runs and the recorded ones; `L2` is the published attack.

    Of several attacks the one that one wrong label harms least stands for any method.
    """
    here = frame.assign(images=frame.kind.map({"larger": larger_size}).fillna(size).astype(int))
    recorded = stored.assign(kind="distinct")
    verdict(
        [4],
        [
            *case_rows(recorded, RECORDED, "recorded"),
            *case_rows(here[here.attack != "joint labels"], dataset, "this page"),
        ],
    )
