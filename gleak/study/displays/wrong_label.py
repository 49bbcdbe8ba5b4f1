"""Tables, figures, checks and verdicts of the chapter on wrong labels."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import gleak
from gleak import figures
from gleak.study import criterion
from gleak.study.book import Row, verdict
from gleak.study.experiments import wrong_label as experiment
from gleak.study.experiments.wrong_label import NOISE, compared
from gleak.study.verdicts import OWN, setting

# -- which images fail ----------------------------------------------------------------------------


def dots(frame: pd.DataFrame, bars: pd.Series) -> tuple[Figure, str]:
    """Every image on every network, a panel for each attack; the figure and its alt text.

    bars: PSNR of each image's thumbnail, in dB.
    """
    panels = {"cosine": "matching by cosine", "L2": "matching by L2"}
    with plt.rc_context(figures.STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(4.8, 3.2), sharey=True, layout="constrained")
        for axis, (attack, title) in zip(axes, panels.items(), strict=True):
            images_on(axis, frame[frame.attack == attack])
            axis.axhline(bars.mean(), color="0.5", lw=1, ls=":", label="8×8 thumbnails")
            axis.set_title(title)
        axes[0].set_ylabel("PSNR (dB)")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure, (
        "Dots for every image in two panels. With right labels most dots lie near the thumbnails "
        "and well above the mean colour. With one wrong label all fall, also those of images whose "
        "own label is right: under the cosine to the mean colour, under L2 less far."
    )


def images_on(axis: Axes, rows: pd.DataFrame) -> None:
    """The images of one panel, a column for each way of being wrong, the touched ones aside."""
    names = {"right": "all right", "absent": "one wrong"}
    for place, wrong in enumerate(names):
        for touched, colour, marker, aside in ((False, "C0", "o", -0.08), (True, "C1", "X", 0.34)):
            values = rows[(rows.wrong == wrong) & (rows.touched == touched)].psnr
            spread = torch.linspace(-0.22, 0.22, max(len(values), 2))[: len(values)]
            shift = aside + spread * (0.3 if touched else 1)
            label = ("own label wrong" if touched else "own label right") if place else None
            axis.plot(place + shift, values, marker, color=colour, alpha=0.8, label=label)
    axis.axhline(rows.flat.mean(), color="0.5", lw=1, ls="--", label="mean colour")
    axis.set_xticks(range(len(names)), names.values())
    axis.set_xlim(-0.5, len(names) - 0.4)


def losses(pairs: Mapping[str, pd.Series]) -> dict[str, float]:
    """What wrong labels cost the images whose own label is right, in dB."""
    return {name: found["right"] - found["wrong"] for name, found in pairs.items()}


def numbers(frame: pd.DataFrame, model: str, bars: pd.Series) -> dict[str, float]:
    """What the text says of these runs; bars: PSNR of each image's thumbnail."""
    pairs = experiment.pairs(frame, model)
    return {
        "right": pairs["cosine"]["right"],
        "absent": pairs["cosine"]["wrong"],
        "right_L2": pairs["L2"]["right"],
        "absent_L2": pairs["L2"]["wrong"],
        "lost_L2": losses(pairs)["L2"],
        "touched": mean(frame, model, "absent", "touched"),
        "flat": pairs["cosine"]["flat"],
        "thumbnail": bars.mean(),
        "networks": frame.seed.nunique(),
    }


def more_numbers(frame: pd.DataFrame, model: str, larger_size: int) -> dict[str, float]:
    """What the appendix says of other ways of being wrong, and of other batches."""
    pairs = experiment.pairs(frame, model)
    lost = {f"lost_{name}": value for name, value in losses(pairs).items()}
    own = {f"gleak_{kind}": pairs["gleak"][kind] for kind in ("right", "wrong") if "gleak" in pairs}
    return lost | own | {"larger": larger_size, "flat": pairs["cosine"]["flat"]}


def mean(
    frame: pd.DataFrame,
    model: str,
    wrong: str,
    column: str = "untouched",
    attack: str = "cosine",
) -> float:
    """A mean of the batch of distinct labels."""
    return float(experiment.means(frame)[column]["distinct", model, attack, wrong])


def losses_table(frame: pd.DataFrame, model: str) -> pd.DataFrame:
    """PSNR of the images whose own label is right, for each case of `experiment.pairs`."""
    words = {
        "cosine": "absent class",
        "count": "class of another image",
        "two": "two labels wrong",
        "larger": "absent class, larger batch",
        "repeated": "wrong count of a repeated class",
        "gleak": "absent class, LeNet, the study's attack",
    }
    found = pd.DataFrame(experiment.pairs(frame, model)).T.rename_axis("what is wrong")
    shown = found.loc[[name for name in words if name in found.index]].rename(words)
    names = {"right": "labels right (dB)", "wrong": "labels wrong (dB)", "flat": "mean colour (dB)"}
    return shown.rename(columns=names)


def loss_claims(frame: pd.DataFrame, model: str, dataset: str, bars: pd.Series) -> dict[str, bool]:
    """What the text claims of these runs; it is said of the samples, and of several networks."""
    if dataset != "cifar10-samples" or frame.seed.nunique() < 2:
        return {}
    pairs = experiment.pairs(frame, model)
    cosine, squared, thumbnail = pairs["cosine"], pairs["L2"], bars.mean()
    return {
        "right labels, cosine: 3 dB above the mean colour": cosine["right"] > cosine["flat"] + 3,
        "cosine, one wrong: the others lose 2 dB or more": losses(pairs)["cosine"] > 2,
        "they are no better than their mean colour": cosine["wrong"] < cosine["flat"],
        "L2, one wrong: the others lose 1 dB or more": losses(pairs)["L2"] > 1,
        "and fall 2 dB or more below their thumbnails": squared["wrong"] < thumbnail - 2,
    }


def more_loss_claims(frame: pd.DataFrame, model: str, dataset: str) -> dict[str, bool]:
    """What the appendix claims of its runs; of the samples, and of several networks."""
    if dataset != "cifar10-samples" or frame.seed.nunique() < 2:
        return {}
    least = {"count": 2, "two": 2, "larger": 2, "repeated": 2}
    lost = losses(experiment.pairs(frame, model))
    return {
        f"{name}: the other images lose {dB} dB or more": lost[name] > dB
        for name, dB in least.items()
    }


# -- every network, every attack ------------------------------------------------------------------


NETWORKS = {
    "convnet": "convnet",
    "lenet": "LeNet with sigmoids",
    "lenet-relu": "LeNet with ReLU",
    "resnet18": "ResNet-18",
}
ATTACKS = {"cosine": "cosine", "L2": "L2", "gleak": "study's attack"}


def falls(stored: pd.DataFrame, images: int) -> tuple[Figure, str]:
    """What one wrong label does to the others, a line for each network and attack, and the alt.

    stored: the recorded rows; images: in the batch. In dB above the thumbnails.
    """
    told = stored[(stored.attack.isin(list(ATTACKS))) & (stored.images == images)]
    told = told.assign(kind="distinct", fresh=False)
    means = untouched(told, RECORDED).groupby(["network", "attack"]).mean()
    flat = told.groupby("network").flat.mean()
    cases = [
        (net, attack) for net in NETWORKS for attack in ATTACKS if (net, attack) in means.index
    ]
    with plt.rc_context(figures.STYLE):
        figure, axis = plt.subplots(figsize=(4.8, 0.32 * len(cases) + 1.1), layout="constrained")
        for place, case in enumerate(cases):
            right, wrong = (
                means[name][case] - means.thumbnail[case] for name in ("right", "wrong")
            )
            axis.annotate("", (wrong, place), (right, place), arrowprops=ARROW)
            axis.plot(right, place, "o", color="C0", label=None if place else "labels right")
            axis.plot(wrong, place, "X", color="C1", label=None if place else "one wrong")
            colour = flat[case[0]] - means.thumbnail[case]
            label = None if place else "mean colour"
            axis.plot(colour, place, "|", color="0.5", ms=10, mew=1.6, label=label)
        axis.axvline(0, color="0.5", lw=1, ls=":")
        names = [f"{NETWORKS[net]}: {ATTACKS[attack]}" for net, attack in cases]
        axis.set_yticks(range(len(cases)), names)
        axis.invert_yaxis()
        axis.set_xscale("symlog", linthresh=10)
        axis.set_xticks([-10, -5, 0, 5, 10, 25], ["-10", "-5", "0", "5", "10", "25"])
        axis.set_xlabel("PSNR above thumbnails (dB)")
        figure.legend(loc="outside upper center", ncols=3)
    return figure, (
        "A line for each network and attack, from right labels to one wrong. On networks with "
        "ReLU the arrows end near the mean colour or between it and the thumbnails; on the LeNet "
        "with sigmoids those of matching are short."
    )


ARROW = {"arrowstyle": "-", "color": "0.5", "lw": 1.2, "shrinkA": 0, "shrinkB": 0}


def recorded_table(recorded: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """What one wrong label does in each recorded case, in words and numbers."""
    by = ["network", "attack", "images"]
    right = recorded[recorded.wrong == "right"].groupby(by)[["psnr", "flat"]].mean()
    columns = {"mean colour (dB)": right.flat, "all right (dB)": right.psnr}
    for wrong, words in {"absent": "absent class", "count": "counts"}.items():
        columns[f"{words}, others (dB)"] = compared(recorded, by, wrong)["wrong"]
    columns["absent class, touched (dB)"] = compared(recorded, by, "absent", touched=True)["wrong"]
    return pd.DataFrame({"one wrong label": found.words, **columns})


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


def recorded_claims(found: pd.DataFrame) -> dict[str, bool]:
    """What the text claims of the recorded cases."""
    spared, words = found.loc["lenet", "cosine"], found.words
    relu = "only the touched" not in set(words[["convnet", "lenet-relu"]])
    less = bool((spared["right"] - spared["wrong"] < 1).all())
    lost = bool((words.xs("gleak", level="attack") == "all are lost").all())
    return {
        "recorded: matching on ReLU networks never loses only the touched image": relu,
        "LeNet with sigmoids, cosine: the others lose less than 1 dB": less,
        "the study's attack loses all on every network": lost,
    }


# -- why the others are pulled along --------------------------------------------------------------


def pull_lines(
    pulls: Mapping[str, tuple[torch.Tensor, torch.Tensor]], others: torch.Tensor
) -> tuple[Figure, str]:
    """The pull over the noise, a panel for each distance; the figure and its alt text."""
    with plt.rc_context(figures.STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(5.2, 3), sharex=True, layout="constrained")
        for axis, (distance, (right, wrong)) in zip(axes, pulls.items(), strict=True):
            axis.loglog(NOISE, right, "o-", ms=4, label="labels right")
            axis.loglog(NOISE, wrong[:, others].mean(1), "s-", ms=4, label="one wrong: the others")
            axis.loglog(NOISE, wrong[:, ~others].mean(1), "X-", ms=4, label="one wrong: that image")
            title = {"l2": "L2"}.get(distance, distance)
            axis.set(title=title, xlabel="noise on the pixels")
            figures.plain_ticks(axis.xaxis, axis.yaxis)
        axes[0].set_ylabel("pull at an image")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
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


def pull_claims(
    found: Mapping[str, torch.Tensor], near: Mapping[str, float], dataset: str
) -> dict[str, bool]:
    """What the text claims of the pull; it is said of the samples."""
    if dataset != "cifar10-samples":
        return {}
    return {
        "L2: the others are pulled less than half as much as the touched image": bool(
            found["pull_share"] < 0.5
        ),
        "in the classifier alone, less than a fifth": bool(found["alone"] < 0.2),
        "from the goal, one wrong label costs the others 4 dB or more": (
            near["right"] > near["wrong"] + 4
        ),
    }


def lenet_claims(lenet: Mapping[str, float], dataset: str) -> dict[str, bool]:
    """What the appendix claims of the pull on the LeNet, by activation; of the samples."""
    if dataset != "cifar10-samples":
        return {}
    more = lenet["sigmoid"] > 1.5 * lenet["relu"]
    return {"LeNet: the others are pulled more with sigmoids than with ReLU": more}


# -- where the order of labels matters ------------------------------------------------------------


def order_numbers(effect: pd.DataFrame) -> dict[str, float]:
    """What the text says of exchanged steps, in percent of the update."""
    return {
        "order_small": 100 * effect["two steps exchanged"][0.01],
        "order_large": 100 * effect["two steps exchanged"][0.1],
        "wrong_share": 100 * effect["one label wrong"][0.01],
    }


def order_lines(effect: pd.DataFrame) -> tuple[Figure, str]:
    """How much of the update changes, over the learning rate; the figure and its alt text."""
    summary = "Exchanged steps change more with the rate, a wrong label the same at any rate."
    return figures.curves(effect, "learning rate", "change of the update", summary)


def steps_table(steps: pd.DataFrame) -> pd.DataFrame:
    """PSNR of a client with a step for each image, where the attacker takes something for other."""
    by = ["images", "lr"]
    columns = {
        "mean colour (dB)": steps.groupby(by).flat.mean(),
        "right (dB)": steps[steps.wrong == "right"].groupby(by).psnr.mean(),
    }
    for wrong, name in (("swapped", "two exchanged"), ("absent", "one wrong")):
        columns[f"{name}: others (dB)"] = compared(steps, by, wrong)["wrong"]
        columns[f"{name}: touched (dB)"] = compared(steps, by, wrong, touched=True)["wrong"]
    return pd.DataFrame(columns)


def exchange_numbers(cost: Mapping[bool, pd.Series]) -> dict[str, float]:
    """What the text says of two images' exchanged steps, in dB."""
    return {
        f"swap_{name}_{which}": cost[touched].xs(lr, level="lr").mean()
        for lr, name in ((0.01, "small"), (0.1, "large"))
        for touched, which in ((True, "touched"), (False, "others"))
    }


def order_claims(effect: pd.DataFrame, cost: Mapping[bool, pd.Series]) -> dict[str, bool]:
    """What the text claims of the order."""
    swapped, wrong = effect["two steps exchanged"], effect["one label wrong"]
    small, large = cost[True].xs(0.01, level="lr"), cost[True].xs(0.1, level="lr")
    return {
        "the effect of the order grows with the learning rate": bool(
            swapped.is_monotonic_increasing
        ),
        "at 0.01 it is less than a tenth of that of a wrong label": bool(
            swapped[0.01] < 0.1 * wrong[0.01]
        ),
        "recorded, labels exchanged at 0.01: less than 0.7 dB": bool((small.abs() < 0.7).all()),
        "at 0.1: the two images lose 1 dB or more": bool((large > 1).all()),
    }


# -- three tests that need no images, and the repair ----------------------------------------------


def tests_table(tests: pd.DataFrame) -> pd.DataFrame:
    """What the tests say of right and wrong labels, by attack."""
    words = {"right": "all right", "absent": "one of an absent class"}
    named = tests.assign(labels=tests.wrong.map(words), search="by " + tests.attack)
    return named.groupby(["search", "labels"], sort=False).agg(
        **{
            "lowest softmax": ("lowest softmax", "mean"),
            "floor": ("floor", "mean"),
            "distance reached": ("reached", "mean"),
            "equations solved": ("closed form", "mean"),
        }
    )


def claims_of_tests(tests: pd.DataFrame, model: str, dataset: str) -> dict[str, bool]:
    """What the text claims of the tests."""
    wrong, passed = tests.wrong != "right", tests[["softmax test", "closed form"]]
    found = {
        "right labels pass both tests always": bool(passed[~wrong].all().all()),
        "wrong labels never pass either": bool(~passed[wrong].any().any()),
    }
    if dataset == "cifar10-samples":
        own = tests[tests.network == model]
        reached = own.pivot_table("reached", ["kind", "attack", "seed"], "wrong")
        ratio = reached.drop(columns="right").div(reached["right"], axis=0).min(axis=None)
        found["the distance reached is ten times higher"] = bool(ratio > 10)
    return found


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


def repair_table(repair: pd.DataFrame) -> pd.DataFrame:
    """What the rule and the repair do at each stage, as shares of the batches."""
    names = {"zlg exact": "the paper's rule right", "exact": "right after the repair"}
    return repair.drop(columns=["classes possible", "classes present"]).rename(columns=names)


def repair_claims(stages: pd.DataFrame, repair: pd.DataFrame) -> dict[str, bool]:
    """What the text claims of them."""
    found = {
        "untrained: always exact": bool(repair["exact"][0] == 1),
        "a wrong answer in less than one batch in ten": bool(
            (stages.outcome == "wrong").mean() < 0.1
        ),
    }
    if len(stages) > 20:
        often = bool(repair["exact"][15] >= repair["zlg exact"][15])
        found["early: at least as often right as the rule"] = often
    return found


# -- verdicts -------------------------------------------------------------------------------------

RECORDED = "cifar10-samples"  # whose images the recorded runs attacked
KEYS = ["kind", "network", "attack", "images", "seed"]
BATCHES = {  # kind of batch -> its size in words
    "distinct": "{0} images of {0} classes",
    "larger": "{0} images of {0} classes",
    "repeated": "{} images, two of one class",
}


def thumbnails(dataset: str, size: int, repeated: bool = False, fresh: bool = True) -> pd.Series:
    """PSNR of the 8x8 thumbnails of a batch's images, in dB; a row for each image."""
    images = experiment.drawn(dataset, size, repeated, fresh).images
    return gleak.score(images, images)["thumb8"].rename_axis("image")


def untouched(rows: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """PSNR of the images whose own label is right: all labels right, one wrong, thumbnails.

    rows: with kind, images (in the batch), and fresh (as `drawn` has it); a row for each run.
    """
    keys = [*KEYS, "image", "fresh"]
    right = rows[rows.wrong == "right"].groupby(keys).psnr.mean()
    one = rows[rows.wrong.isin(["absent", "count"]) & ~rows.touched]
    wrong = one.groupby(keys).psnr.mean()
    pairs = pd.DataFrame({"right": right.reindex(wrong.index), "wrong": wrong}).reset_index()
    parts = []
    for (kind, size, fresh), chosen in pairs.groupby(["kind", "images", "fresh"], sort=False):
        bars = thumbnails(dataset, int(size), kind == "repeated", bool(fresh))
        parts.append(chosen.assign(thumbnail=chosen.image.map(bars)))
    return pd.concat(parts).groupby(KEYS, sort=False)[["right", "wrong", "thumbnail"]].mean()


def case_rows(rows: pd.DataFrame, dataset: str, made: str) -> list[Row]:
    """A row for each network and batch; made: where the runs are from."""
    found: list[Row] = []
    cases = untouched(rows, dataset).groupby(["kind", "network", "images"], sort=False)
    for (kind, network, size), runs in cases:
        local = "local steps" in runs.index.unique("attack")
        words = f"{made}: {BATCHES[kind].format(size)}, {NETWORKS[network]}, untrained"
        where = setting(words, images=size, more=f"on the {NETWORKS[network]}")
        attacks = runs[runs.index.get_level_values("attack") != "local steps"]
        found.append((where, spoilt_columns(attacks)))
        if local:
            one = runs.xs("local steps", level="attack").groupby("seed").mean()
            where = setting(f"{words}, a local step for each image", images=size, weights=True)
            steps = criterion.spoilt("local steps", one.right, one.wrong, one.thumbnail)
            found.append((where, criterion.columns({"local steps": steps}, "L2", harmed=True)))
    return found


def spoilt_columns(runs: pd.DataFrame) -> dict[str, criterion.Finding]:
    """Both columns of claim 4; runs: a row for each attack and network, as of `untouched`.

    Of the attacks that bring images back with right labels, the one that a wrong one harms least
    stands for any method; where none does, of all.
    """
    judged, able = {}, {}
    for attack, one in runs.groupby(level="attack", sort=False):
        name = str(attack)
        judged[name] = criterion.spoilt(name, one.right, one.wrong, one.thumbnail)
        before = criterion.interval(one.right - one.thumbnail)
        if criterion.decided(before) == criterion.HOLDS:
            able[name] = judged[name]
    paper = criterion.columns(judged, "L2", harmed=True)["paper"]
    return criterion.columns(able or judged, "L2", harmed=True) | {"paper": paper}


def verdict_on_wrong_labels(
    frame: pd.DataFrame, stored: pd.DataFrame, dataset: str, size: int
) -> None:
    """Claim 4, from this page's runs and the recorded ones; `L2` is the published attack.

    Of several attacks the one that one wrong label harms least stands for any method. Only the
    label of an absent class counts: all recorded networks ran with it.
    """
    here = frame.assign(images=size, fresh=True)
    recorded = stored[stored.wrong.isin(experiment.JUDGED)].assign(kind="distinct", fresh=False)
    if dataset == RECORDED:  # where the page searched longer, its runs count
        cases = ["network", "attack", "images"]
        keys = [pd.MultiIndex.from_frame(rows[cases]) for rows in (recorded, here)]
        rows = pd.concat([recorded[~keys[0].isin(keys[1])], here])
        verdict([4], case_rows(rows, dataset, "recorded runs and the chapter's own"))
    else:
        found = case_rows(recorded, RECORDED, "recorded runs")
        verdict([4], [*found, *case_rows(here, dataset, OWN)])


def verdict_on_more(frame: pd.DataFrame, dataset: str, size: int, larger_size: int) -> None:
    """Claim 4 for the runs of the appendix."""
    images = frame.kind.map({"larger": larger_size}).fillna(size).astype(int)
    here = frame.assign(images=images, fresh=True)
    verdict([4], case_rows(here[here.attack != "joint labels"], dataset, OWN))
