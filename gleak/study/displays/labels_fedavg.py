"""Chapter 03, how it is shown: tables, a figure, checks and verdicts of counts from weights."""

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from gleak import figures
from gleak.study import criterion
from gleak.study.book import Row, glue, verdict
from gleak.study.experiments.labels_fedavg import DATA_METHODS
from gleak.study.verdicts import setting


def by_method(frame: pd.DataFrame) -> pd.Series:
    """Method -> mean share of labels that are right."""
    return frame.groupby("method").instance.mean()


def zero_shot(scores: pd.Series, guess: bool = False) -> pd.Series:
    """The scores of the zero-shot rules other than gleak, with that of the guess if asked for."""
    left_out = ["gleak", *DATA_METHODS, *([] if guess else ["even"])]
    return scores.drop(left_out, errors="ignore")


def local_training(frame: pd.DataFrame) -> pd.DataFrame:
    """The share of labels by stage, learning rate, epochs and batch size."""
    shown = ["even", "zlg", "zlg-bias, start", "zlg-bias, average", "zlg-bias, end"]
    shown += ["llg", "idlg", "ilrg", "gleak", "rlu", "confusion"]
    named = frame.assign(lr=frame.lr.map("{:g}".format))
    named = named.pivot_table("instance", ["steps", "lr", "E", "B"], "method")
    return named[[method for method in shown if method in named]]


def by_local_steps(frame: pd.DataFrame, falls: bool) -> tuple[Figure, str]:
    """The share of labels over local steps at the smallest rate, a panel for each stage.

    falls: whether the alt text says that trained networks lie lower.
    """
    small, steps = frame[frame.lr == frame.lr.min()], frame.steps.unique()
    styles = {"even": "k:", "zlg": "C1-", "ilrg": "C2-", "idlg": "C4-", "gleak": "C0-"}
    with plt.rc_context(figures.STYLE):
        figure, axes = plt.subplots(
            1, len(steps), figsize=(8, 2.8), sharey=True, layout="constrained", squeeze=False
        )
        for axis, step in zip(axes[0], steps, strict=True):
            lines = small[small.steps == step].pivot_table("instance", "s", "method")
            for method in [name for name in styles if name in lines]:
                axis.plot(lines.index, lines[method], styles[method], marker=".", label=method)
            axis.set(title=f"{step} steps at the server", xlabel="local steps", xscale="log")
        axes[0, 0].set_ylabel("instance accuracy")
        axes[0, -1].legend(fontsize=7)
    alt = (
        "One panel for each stage of training, with a line for each method: instance accuracy over "
        "local steps."
    )
    low = " On the untrained network the methods stay near one; on trained networks they lie lower."
    return figure, alt + low * falls


def overall(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over the grid by method."""
    mean = frame.groupby("method").instance.agg(["mean", "std", "sem"])
    mean.columns = ["mean", "spread over batches", "standard error"]
    return mean.sort_values("mean", ascending=False)


def longest(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with the most epochs."""
    return frame[frame["E"] == frame["E"].max()]


def shortest(frame: pd.DataFrame) -> pd.Series:
    """Method -> share of labels at the first stage, fewest epochs and smallest learning rate."""
    first = (frame.steps == frame.steps.min()) & (frame["E"] == frame["E"].min())
    return by_method(frame[first & (frame.lr == frame.lr.min())])


def most_epochs(frame: pd.DataFrame) -> pd.DataFrame:
    """The share of labels with the most epochs by stage, with what the prose says of it."""
    long = longest(frame).pivot_table("instance", "method", "steps")
    long["all"] = by_method(longest(frame))
    rivals = zero_shot(long["all"])
    glue("long_gleak", long["all"]["gleak"])
    glue("long_rival", rivals.idxmax())
    glue("long_score", rivals.max())
    return long.sort_values("all")


def check_local_training(frame: pd.DataFrame) -> None:
    """Print whether the claims on local training hold."""
    total, long, first = by_method(frame), by_method(longest(frame)), shortest(frame)
    ahead = total["gleak"] > zero_shot(total, guess=True).max() + 0.03
    print(f"gleak is ahead of every zero-shot rule by 0.03: {ahead}")
    ahead = long["gleak"] > zero_shot(long).max() + 0.03
    print(f"with the most epochs too: {ahead}")
    print(f"untrained, one epoch: 97 % of the labels: {first['gleak'] >= 0.97}")
    print(f"ahead of guessing by 0.1: {total['gleak'] > total['even'] + 0.1}")


def deep(frame: pd.DataFrame) -> pd.DataFrame | None:
    """The scores of the deep network, None where it was not run."""
    return frame.groupby("method")[["instance", "even", "exact"]].mean() if len(frame) else None


def check_deep(frame: pd.DataFrame) -> None:
    """Print whether `gleak` counts on the deep network, where that was run."""
    if len(frame):
        print(f"gleak restores 99 % of the labels: {by_method(frame)['gleak'] >= 0.99}")


# Verdicts


def stage_rows(frame: pd.DataFrame, model: str, dataset: str, size: int) -> list[tuple[int, Row]]:
    """A row for each stage and number of local epochs, over all rates and batch sizes."""
    rows: list[tuple[int, Row]] = []
    runs = frame[~frame.method.isin(DATA_METHODS)]
    for (steps, epochs), chosen in runs.groupby(["steps", "E"]):
        local = f"{epochs} local epoch{'s' if epochs > 1 else ''}"
        rates = ", ".join(f"{rate:g}" for rate in sorted(chosen.lr.unique()))
        server = f"trained for {steps} steps" if steps else "untrained"
        words = f"{size} images, {local} at rates of {rates}; {model} on {dataset}, {server}"
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
