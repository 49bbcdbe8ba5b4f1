"""Chapter 02a and the appendix of chapter 02, how they are shown: labels of trained networks."""

import pandas as pd
import torch
from matplotlib.figure import Figure

from gleak.labels.posterior import LabelPosterior
from gleak.study import criterion
from gleak.study.book import Row, glue, glue_all, verdict
from gleak.study.displays import label_lines
from gleak.study.displays.labels_fedsgd import by_method, listed
from gleak.study.experiments.labels_fedsgd import RIVALS, WITH_DATA
from gleak.study.experiments.labels_trained import FEW_RULES
from gleak.study.verdicts import setting
from gleak.study.words import name

LINES = ["even", "confusion", "idlg", "llg", "ilrg", "zlg-bias", "zlg", "gleak"]


def answer(found: LabelPosterior, truth: torch.Tensor) -> pd.DataFrame:
    """What the study's rule answers, class by class, beside the truth."""
    table = found.frame().drop(columns="mean").rename_axis("class")
    table.insert(0, "client (hidden)", truth.tolist())
    right = torch.minimum(found.counts, truth).sum().item()
    held = ((found.low <= truth) & (truth <= found.high)).double().mean().item()
    glue_all({"shown_right": right, "shown_all": truth.sum().item(), "shown_held": held})
    return table


# Over the course of training


def by_steps(frame: pd.DataFrame) -> tuple[Figure, str]:
    """The share of labels over the steps of training, a panel for each pool; figure, alt text."""
    panels = {name(str(pool), "data"): runs for pool, runs in frame.groupby("pool", sort=False)}
    rules = [rule for rule in LINES if rule in set(frame.method)]
    figure, alt = label_lines.lines(panels, "steps", "steps of training", rules, criterion.TRAINED)
    return figure, alt


def by_stage(frame: pd.DataFrame) -> pd.DataFrame:
    """Small: how many of the clients' images the network names right, and the share of labels."""
    shown = ["even", "zlg", "ilrg", "idlg", "llg", "gleak", "confusion"]
    table = frame.pivot_table("instance", "steps", "method")
    table = table[[method for method in shown if method in table]]
    table.insert(0, "clients' images named right", frame.groupby("steps")["test accuracy"].mean())
    return table


def glue_trained(frame: pd.DataFrame) -> None:
    """Keep what the prose says of the trained networks: after the first step, and at the end."""
    late = frame[frame.steps == frame.steps.max()]
    learned, mean = by_method(frame[frame.steps > 0]), by_method(late)
    best = learned.reindex(RIVALS).idxmax()
    informed = learned.reindex(WITH_DATA)
    glue_all(
        {
            "networks": late[list(criterion.TRAINED)].drop_duplicates().shape[0],
            "last": late.steps.max(),
            "accuracy": late["test accuracy"].mean(),
            "accuracy_least": late["test accuracy"].min(),
            "gleak": learned["gleak"],
            "zlg": learned["zlg"] if "zlg" in learned else float("nan"),
            "even": learned["even"],
            "best": name(best, "rule"),
            "best_score": learned[best],
            "aux_best": "none" if informed.isna().all() else name(informed.idxmax(), "rule"),
            "aux": informed.max(),
            "zlg_late": mean["zlg"] if "zlg" in mean else float("nan"),
            "gleak_late": mean["gleak"],
            "even_late": mean["even"],
        }
    )


def claims_trained(frame: pd.DataFrame) -> dict[str, bool]:
    """The claims on trained networks, and whether they hold."""
    learned = by_method(frame[frame.steps > 0])
    late = by_method(frame[frame.steps == frame.steps.max()])
    accuracy = frame[frame.steps == frame.steps.max()].groupby("pool")["test accuracy"].mean()
    return {
        "at the last stage networks name 90 % of the clients' images": accuracy.min() >= 0.9,
        "the study's rule is ahead of every other rule without data": (
            learned["gleak"] > learned[RIVALS].max()
        ),
        "at the last stage the paper's rule is within 0.1 of the guess": (
            late["zlg"] < late["even"] + 0.1
        ),
        "with the batch's own softmax the counts are exact": learned["oracle"] > 0.999,
    }


def calibration(frame: pd.DataFrame) -> pd.DataFrame:
    """How often the intervals of the study's rule hold the truth, by stage."""
    own = frame[frame.method == "gleak"]
    glue("held", float(own.held.mean()))
    table = own.groupby("steps")[["held", "open", "held, open", "width"]].mean()
    names = ["counts held", "intervals that are open", "open ones held", "width (images)"]
    return table.set_axis(names, axis=1)


def claims_calibration(frame: pd.DataFrame) -> dict[str, bool]:
    """Whether the intervals hold what they promise, or more."""
    held = frame[frame.method == "gleak"].held.mean()
    return {"intervals for nine in ten hold at least 85 % of the counts": held > 0.85}


# Fewer images than classes


def few_rivals(frame: pd.DataFrame) -> list[str]:
    """The other rules that were run on small batches."""
    return [method for method in FEW_RULES if method in frame]


def small_batches(frame: pd.DataFrame) -> pd.DataFrame:
    """The share of labels of small batches by stage and size, with what the prose says."""
    rivals, mean = few_rivals(frame), frame.mean(numeric_only=True)
    glue("few_gleak", mean["gleak"])
    glue("few_exact", mean["gleak exact"])
    glue("few_rival", name(mean[rivals].idxmax(), "rule"))
    glue("few_rival_score", mean[rivals].max())
    glue("few_even", mean["even"])
    shown = ["even", *rivals, "gleak"]
    table = frame.groupby(["steps", "K"])[[*shown, "gleak exact", "wrongly proven"]].mean()
    return table.rename(columns={rule: name(rule, "rule") for rule in shown}).rename(
        columns={"gleak exact": "batches all right"}
    )


def claims_small_batches(frame: pd.DataFrame) -> dict[str, bool]:
    """The claims on small batches, and whether they hold."""
    mean = frame.mean(numeric_only=True)
    return {
        "small batches: the study's rule is ahead of every other rule by 0.1": (
            mean["gleak"] > mean[few_rivals(frame)].max() + 0.1
        ),
        "what it calls proven is there in 95 % of the batches": mean["wrongly proven"] < 0.05,
    }


# Distributions, classes


def distributions(frame: pd.DataFrame) -> pd.DataFrame:
    """The share of labels by stage and distribution, and how far `gleak` is ahead of the others."""
    shown = ["even", "zlg", "zlg-bias", "ilrg", "idlg", "gleak"]
    means = frame.pivot_table("instance", ["steps", "labels"], "method", sort=False)
    view = means[[method for method in shown if method in means]].copy()
    zero_shot = [method for method in ("even", *RIVALS) if method in means]
    view["lead"] = means["gleak"] - means[zero_shot].max(axis=1)
    return view


def claims_distributions(frame: pd.DataFrame) -> dict[str, bool]:
    """Whether the study's rule is near the best rule for every distribution."""
    near = distributions(frame)["lead"].min() > -0.05
    return {"never behind the best other rule or the guess by more than 0.05": near}


def classes(frame: pd.DataFrame) -> pd.DataFrame:
    """The share of labels by number of classes and stage."""
    shown = ["even", "zlg-bias", "ilrg", "idlg", "llg", "gleak"]
    view = frame.pivot_table("instance", ["N", "steps"], "method", sort=False)
    return view[[method for method in shown if method in view]]


# Verdicts


def verdict_trained(frame: pd.DataFrame, size: int) -> None:
    """Claims 1 and 6 stage by stage; the unit is the network."""
    rows: list[Row] = []
    for steps, runs in frame.groupby("steps"):
        networks, pools = listed(runs.network, "network"), listed(runs.pool, "data")
        words = f"{size} images, {networks} on {pools} after {steps} steps of training"
        found = criterion.label_columns(own(runs), criterion.TRAINED)
        rows.append((setting(words, what="labels", images=size, trained=bool(steps)), found))
    verdict([1, 6], rows)


def verdict_on_rivals(frame: pd.DataFrame, size: int) -> None:
    """Claim 7 on labels of trained networks: the published rule against GradInversion's."""
    rows: list[Row] = []
    for steps, runs in frame.groupby("steps"):
        found = criterion.rival_columns(own(runs), criterion.TRAINED, "zlg", of="labels")
        networks = listed(runs.network, "network")
        words = f"skewed labels, {size} images, {networks} after {steps} steps of training"
        rows.append((setting(words, what="labels", images=size, trained=bool(steps)), found))
    verdict([7], rows)


def verdict_small_batches(frame: pd.DataFrame) -> None:
    """Claims 1 and 6 where a batch has fewer images than there are classes."""
    rows: list[Row] = []
    few = few_images(frame)
    for steps, runs in few.groupby("steps"):
        batches = f"batches of {listed(runs.K)} images, {listed(runs.pool, 'data')}"
        words = f"{batches} after {steps} steps of training"
        found = criterion.label_columns(runs, criterion.TRAINED)
        rows.append((setting(words, what="labels", images=few.K.max(), trained=bool(steps)), found))
    verdict([1, 6], rows)


def verdict_distributions(frame: pd.DataFrame, size: int) -> None:
    """Claims 1 and 7 with labels from uniform to a single class."""
    rows: dict[int, list[Row]] = {1: [], 7: []}
    for steps, runs in frame.groupby("steps"):
        words = (
            f"labels from uniform to a single class, {size} images, after {steps} steps of training"
        )
        where = setting(words, what="labels", images=size, trained=bool(steps))
        rows[1].append((where, criterion.label_columns(own(runs), criterion.TRAINED)))
        against = criterion.rival_columns(own(runs), criterion.TRAINED, "zlg", of="labels")
        rows[7].append((where, against))
    for claim, found in rows.items():
        verdict([claim], found)


def own(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of rules that need no data of the client's kind, which the claims are about."""
    return frame[~frame.method.isin([*WITH_DATA, "oracle"])]


def few_images(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of small batches with a row for each rule."""
    about = [name for name in ("pool", "steps", "K", "seed", "training", "even") if name in frame]
    rules = [*few_rivals(frame), "gleak"]
    return frame.melt(about, rules, var_name="method", value_name="instance").dropna()
