"""Chapter 03, how it is shown: tables, a figure, checks and verdicts of counts from weights."""

import pandas as pd
from matplotlib.figure import Figure

from gleak.study import criterion
from gleak.study.book import Row, glue_all, verdict
from gleak.study.displays import label_lines
from gleak.study.displays.labels_fedsgd import network_name
from gleak.study.experiments.labels_fedavg import DATA_METHODS
from gleak.study.verdicts import setting
from gleak.study.words import name, series

LINES = ["even", "idlg", "ilrg", "zlg", "gleak"]


def by_method(frame: pd.DataFrame) -> pd.Series:
    """Method -> mean share of labels that are right."""
    return frame.groupby("method").instance.mean()


def zero_shot(scores: pd.Series, guess: bool = False) -> pd.Series:
    """The scores of the zero-shot rules other than gleak, with that of the guess if asked for."""
    left_out = ["gleak", *DATA_METHODS, *([] if guess else ["even"])]
    return scores.drop(left_out, errors="ignore")


def by_local_steps(frame: pd.DataFrame) -> tuple[Figure, str]:
    """The share of labels over local steps at the largest rate, a panel for each stage."""
    hard = frame[frame.lr == frame.lr.max()]
    panels = {
        f"{steps} steps at the server" if steps else "untrained": runs
        for steps, runs in hard.groupby("steps")
    }
    rules = [rule for rule in LINES if rule in set(frame.method)]
    return label_lines.lines(panels, "s", "local steps", rules, criterion.TRAINED)


def by_stage(frame: pd.DataFrame) -> pd.DataFrame:
    """Small: the share of labels by stage and local epochs, over all rates and batch sizes."""
    shown = ["even", "zlg", "ilrg", "idlg", "gleak", "rlu"]
    table = frame.pivot_table("instance", ["steps", "E"], "method")
    return table[[method for method in shown if method in table]]


def whole_grid(frame: pd.DataFrame) -> pd.DataFrame:
    """The share of labels by stage, learning rate, epochs and batch size."""
    shown = ["even", "zlg", "llg", "idlg", "ilrg", "gleak", "rlu"]
    named = frame.assign(lr=frame.lr.map("{:g}".format))
    named = named.pivot_table("instance", ["steps", "lr", "E", "B"], "method")
    return named[[method for method in shown if method in named]]


def places(frame: pd.DataFrame) -> pd.DataFrame:
    """The paper's rule on the bias with its softmax at three places of the path, by stage."""
    along = [f"zlg-bias, {place}" for place in ("start", "average", "end")]
    return frame.pivot_table("instance", "steps", "method")[along]


def most_epochs(frame: pd.DataFrame, known: pd.DataFrame) -> None:
    """Keep what the prose says: of the most epochs, and of how well the networks know digits."""
    long = by_method(longest(frame))
    rivals = zero_shot(long)
    late = known[known.steps == known.steps.max()]["test accuracy"]
    glue_all(
        {
            "long_gleak": long["gleak"],
            "long_rival": name(rivals.idxmax(), "rule"),
            "long_score": rivals.max(),
            "long_even": long["even"],
            "trainings": frame.training.nunique(),
            "last": frame.steps.max(),
            "accuracy": late.mean(),
            "accuracy_least": late.min(),
        }
    )


def longest(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with the most epochs."""
    return frame[frame["E"] == frame["E"].max()]


def claims_local_training(frame: pd.DataFrame, known: pd.DataFrame) -> dict[str, bool]:
    """The claims on local training, and whether they hold."""
    total = by_method(frame)
    end = by_method(frame[frame.steps == frame.steps.max()])
    first = by_method(frame[(frame.steps == 0) & (frame["E"] == frame["E"].min())])
    late = known[known.steps == known.steps.max()]["test accuracy"]
    return {
        "at the last stage networks name 90 % of the clients' images": late.mean() >= 0.9,
        "untrained, one epoch: the study's rule names 90 % of the labels": first["gleak"] >= 0.9,
        "the study's rule is ahead of every other rule without data and of the guess": (
            total["gleak"] > zero_shot(total, guess=True).max()
        ),
        "at the last stage the paper's rule is within 0.1 of the guess or below": (
            end["zlg"] < end["even"] + 0.1
        ),
    }


def deep(frame: pd.DataFrame) -> pd.DataFrame:
    """The scores of the deep network."""
    return frame.groupby("method")[["instance", "even", "exact"]].mean()


def claims_deep(frame: pd.DataFrame) -> dict[str, bool]:
    """Whether the study's rule counts on the deep network, where that was run."""
    if not len(frame):
        return {}
    return {"the study's rule restores 99 % of the labels": by_method(frame)["gleak"] >= 0.99}


# Verdicts


def stage_rows(frame: pd.DataFrame, model: str, dataset: str, size: int) -> list[tuple[int, Row]]:
    """A row for each stage and number of local epochs, over all rates and batch sizes."""
    rows: list[tuple[int, Row]] = []
    runs = frame[~frame.method.isin(DATA_METHODS)]
    where_run = f"{network_name(model)} on {name(dataset, 'data')}"
    for (steps, epochs), chosen in runs.groupby(["steps", "E"]):
        local = f"{epochs} local epoch{'s' if epochs > 1 else ''}"
        rates = series(f"{rate:g}" for rate in sorted(chosen.lr.unique()))
        server = f"trained for {steps} steps" if steps else "untrained"
        words = f"{size} images, {local} at rates of {rates}; {where_run}, {server}"
        found = criterion.label_columns(chosen, criterion.TRAINED)
        where = setting(
            words,
            what="labels",
            images=size,
            trained=bool(steps),
            weights=True,
            more=f"after {local}",
        )
        rows.append((steps, (where, found)))
    return rows


def verdict_on_counts(
    frame: pd.DataFrame, deep: pd.DataFrame, model: str, dataset: str, size: int
) -> None:
    """Claim 1, and on trained networks claim 6, too; deep: the rows of the deep network."""
    rows = stage_rows(frame, model, dataset, size)
    untrained = [row for steps, row in rows if not steps]
    if len(deep):
        words = "16 images, 4 local steps at a rate of 0.001; ResNet-18 in train mode, untrained"
        where = setting(words, what="labels", images=16, weights=True, more="on ResNet-18")
        untrained.append((where, criterion.label_columns(deep, ["seed"])))
    trained = [row for steps, row in rows if steps]
    for claims, chosen in (([1], untrained), ([1, 6], trained)):
        if chosen:
            verdict(claims, chosen)
