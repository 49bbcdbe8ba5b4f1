"""Chapter 02, how it is shown: tables, figures, checks and verdicts of the label counts."""

from collections.abc import Iterator, Sequence

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from gleak import figures
from gleak.study import criterion
from gleak.study.book import Row, glue, verdict
from gleak.study.experiments.labels_fedsgd import RIVALS, WITH_DATA
from gleak.study.verdicts import FEW, setting

NAMED = {
    "lenet": "LeNet with ReLU",
    "lenet, ReLU": "LeNet with ReLU",
    "lenet, sigmoid": "LeNet with sigmoids",
    "lenet, tanh": "LeNet with tanh",
}
CELL = ["network", "N", "K"]  # of the recorded table
STAGE = ["network", "pool", "steps"]


def by_method(frame: pd.DataFrame) -> pd.Series:
    """Method -> mean share of labels that are right."""
    return frame.groupby("method").instance.mean()


def dashed(table: pd.DataFrame) -> pd.DataFrame:
    """The table in two digits, a dash where nothing was run."""
    return table.map(lambda value: "–" if pd.isna(value) else f"{value:.2f}")


# Untrained networks


def untrained(frame: pd.DataFrame) -> pd.DataFrame:
    """The share of labels, by number of classes, network and batch size."""
    shown = ["even", "idlg", "llg", "ilrg", "zlg", "zlg-bias", "gleak"]
    view = frame[frame.method.isin(shown)]
    return dashed(view.pivot_table("instance", ["N", "network", "K"], "method")[shown])


def exact(frame: pd.DataFrame) -> pd.DataFrame:
    """The share of batches of 2 to 64 images whose counts are all right."""
    view = frame[frame.K.between(2, 64)].pivot_table("exact", ["N", "network"], "method")
    return dashed(view[["ilrg", "zlg", "zlg-bias", "gleak"]])


def by_size(frame: pd.DataFrame, dataset: str, sizes: Sequence[int]) -> tuple[Figure, str]:
    """The share of labels over the batch size, untrained ReLU networks; figure and alt text."""
    few = frame[(frame.dataset == dataset) & frame.network.isin(["lenet", "convnet"])]
    lines = few.pivot_table("instance", "K", "method", aggfunc=["mean", "std"]).fillna(0)
    styles = {
        "even": "k:",
        "idlg": "C4-",
        "llg": "C3-",
        "ilrg": "C2-",
        "zlg": "C1-",
        "zlg-bias": "C0--",
        "gleak": "C0-",
    }
    with plt.rc_context(figures.STYLE):
        figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
        for method, style in styles.items():
            middle, spread = lines["mean"][method], lines["std"][method]
            axis.plot(lines.index, middle, style, marker=".", label=method)
            colour = axis.lines[-1].get_color()
            low, high = middle - spread, (middle + spread).clip(upper=1)
            axis.fill_between(lines.index, low, high, alpha=0.1, color=colour)
        axis.set(xscale="log", xlabel="images in the batch, K", ylabel="instance accuracy")
        axis.set_xticks(sizes, labels=map(str, sizes))
        axis.minorticks_off()
        axis.legend(ncols=2)
    return figure, (
        "Lines of instance accuracy over batch sizes. The lines of gleak and zlg-bias lie at the "
        "top; idlg and llg fall below them as soon as labels repeat; guessing rises with K."
    )


def relu(frame: pd.DataFrame) -> pd.Series:
    """Method -> share of labels on the untrained networks with ReLU."""
    return by_method(frame[frame.network.isin(["lenet", "convnet", "resnet18"])])


def check_untrained(frame: pd.DataFrame) -> None:
    """Print whether the claims on untrained networks hold."""
    for method in ("zlg-bias", "gleak"):
        reached = relu(frame)[method] >= 0.99
        print(f"untrained ReLU networks: {method} restores 99 %: {reached}")
    small = frame[frame.network.isin(["lenet", "convnet"]) & (frame.K <= 64)]
    share = small[small.method == "gleak"].exact.mean()
    print(f"gleak: 9 of 10 batches exact up to 64: {share >= 0.9}")
    ten = by_method(frame[(frame.network == "lenet, sigmoid") & (frame.N == 10)])
    print(f"sigmoid, ten classes: no rule restores 99 %: {ten.max() < 0.99}")


def digits(frame: pd.DataFrame) -> pd.DataFrame:
    """The share of labels on gray digits, by network."""
    table = frame.pivot_table("instance", "network", "method")
    return table[["even", "zlg", "zlg-bias", "ilrg", "gleak"]]


# The recorded grid


def recorded(frame: pd.DataFrame) -> Styler:
    """Each cell of the recorded grid: the share of labels, and of batches that are all exact."""
    exact_of = frame.pivot_table("exact", CELL, "method")
    guesses = frame.groupby(CELL)[["chance", "even"]].mean()
    grid = guesses.assign(seeds=frame.groupby(CELL).seed.nunique())
    rules = ["idlg", "gradinversion", "llg", "llbg", "ilrg", "zlg", "zlg-bias", "gleak"]
    shares = frame.pivot_table("instance", CELL, "method")
    grid = grid[["seeds", "chance", "even"]].join(shares[rules])
    for method in ("zlg-bias", "gleak"):
        grid[f"{method}, exact"] = exact_of[method]
    glue("recorded_largest", frame.K.max())
    return grid.style.format(precision=3)


def reached(frame: pd.DataFrame) -> dict[str, list[str]]:
    """Method -> networks on which 0.99 of the labels and 0.9 of the small batches are right."""
    shares = frame.pivot_table("instance", CELL, "method")
    exact_of = frame.pivot_table("exact", CELL, "method")
    exact_of = exact_of[exact_of.index.get_level_values("K") <= 64]
    found = {}
    for method in ("zlg-bias", "gleak"):
        right = (shares[method] >= 0.99).groupby("network").all()
        right &= (exact_of[method] >= 0.9).groupby("network").all()
        found[method] = sorted(right.index[right])
    return found


def behind(frame: pd.DataFrame) -> list[str]:
    """Cells in which `gleak` is below the best other rule or the guess by more than its spread."""
    shares = frame.pivot_table("instance", CELL, "method")
    spread = frame.pivot_table("instance", CELL, "method", aggfunc="std")["gleak"]
    guess = frame.groupby(CELL)["even"].mean()
    best_other = pd.concat([shares.drop(columns="gleak").max(axis=1), guess], axis=1).max(axis=1)
    below = (best_other - shares["gleak"]).sub(spread)
    return sorted(f"{network}, N = {n}, K = {k}" for network, n, k in below.index[below > 0])


def glue_recorded(frame: pd.DataFrame) -> None:
    """Keep what the prose says of the recorded grid."""
    for method, networks in reached(frame).items():
        glue(f"reached_{method.replace('-', '_')}", "; ".join(networks) or "none")
    glue("behind", "; ".join(behind(frame)) or "none")
    shares = frame.pivot_table("instance", CELL, "method")
    hard = shares.groupby("network").mean()[["gleak", "zlg-bias"]].min(axis=1).idxmin()
    glue("hard", hard)
    for method in ("gleak", "zlg-bias"):
        glue(f"hard_{method.replace('-', '_')}", float(shares.loc[hard, method].mean()))


# Trained networks


def trained(frame: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """The share of labels beside the test accuracy, for each network, pool and stage."""
    shown = ["even", "zlg", "zlg-bias", "ilrg", "idlg", "llg", "ebi", "llbg", "gleak"]
    shown += ["posterior", "rlu", "confusion", "oracle"]
    view = frame.pivot_table("instance", STAGE, "method")
    view = view[[method for method in shown if method in view]]
    view.insert(0, "test accuracy", known.set_index(STAGE)["test accuracy"])
    return view


def by_steps(frame: pd.DataFrame) -> tuple[Figure, str]:
    """The share of labels over the steps of training; the figure and its alt text."""
    lines = frame.pivot_table("instance", "steps", "method")
    colours = {
        "even": "k",
        "confusion": "0.6",
        "zlg": "C1",
        "ilrg": "C2",
        "llg": "C3",
        "idlg": "C4",
        "gleak": "C0",
    }
    with plt.rc_context(figures.STYLE):
        figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
        for method in [name for name in colours if name in lines]:
            axis.plot(
                range(len(lines)),
                lines[method],
                color=colours[method],
                label=method,
                linestyle=":" if method == "even" else "-",
                linewidth=2.5 if method == "gleak" else 1.3,
            )
        axis.set_xticks(range(len(lines)), labels=lines.index)
        axis.set(xlabel="training steps", ylabel="instance accuracy")
        axis.legend(ncols=2)
    return figure, (
        "Falling lines of instance accuracy over training steps. gleak lies above all zero-shot "
        "methods; zlg and ilrg fall to the guess on trained networks."
    )


def overall(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over all trained networks, with what the prose says of them."""
    mean = by_method(frame)
    best = mean[RIVALS].idxmax()
    glue("gleak", float(mean["gleak"]))
    glue("best", best)
    glue("best_score", float(mean[best]))
    glue("zlg", float(mean["zlg"]))
    glue("even", float(mean["even"]))
    informed = mean.reindex(WITH_DATA)
    glue("aux_best", "none was run" if informed.isna().all() else informed.idxmax())
    glue("aux", float(informed.max()))
    spread = frame.pivot_table("instance", "method", aggfunc=["mean", "std", "sem"])
    spread.columns = ["mean", "spread over batches", "standard error"]
    return spread.sort_values("mean", ascending=False)


def latest(frame: pd.DataFrame) -> pd.Series:
    """Method -> share of labels after the most steps."""
    return by_method(frame[frame.steps == frame.steps.max()])


def check_trained(frame: pd.DataFrame) -> None:
    """Print whether the claims on trained networks hold."""
    mean, late = by_method(frame), latest(frame)
    ahead = mean["gleak"] > mean[RIVALS].max() + 0.1
    print(f"gleak is ahead of every zero-shot rule by 0.10: {ahead}")
    ahead = mean["gleak"] > mean.reindex(WITH_DATA).max()
    print(f"gleak is ahead of every rule with auxiliary data: {ahead}")
    near = late["zlg"] < late["even"] + 0.1
    print(f"after the most steps zlg is within 0.1 of guessing: {near}")
    print(f"the oracle is exact: {mean['oracle'] > 0.999}")


# Fewer images than classes


def few_rivals(frame: pd.DataFrame) -> list[str]:
    """The other rules that were run on small batches."""
    return [method for method in ("llg", "ilrg", "zlg", "zlg-bias") if method in frame]


def small_batches(frame: pd.DataFrame) -> pd.DataFrame:
    """The share of labels of small batches by pool, stage and size, with what the prose says."""
    rivals, mean = few_rivals(frame), frame.mean(numeric_only=True)
    glue("few_gleak", mean["gleak"])
    glue("few_exact", mean["gleak exact"])
    glue("few_rival", mean[rivals].idxmax())
    glue("few_rival_score", mean[rivals].max())
    glue("few_even", mean["even"])
    shown = ["even", *rivals, "gleak", "gleak exact", "all certain", "wrongly proven"]
    return frame.groupby(["pool", "steps", "K"])[shown].mean()


def check_small_batches(frame: pd.DataFrame) -> None:
    """Print whether the claims on small batches hold."""
    mean = frame.mean(numeric_only=True)
    ahead = mean["gleak"] > mean[few_rivals(frame)].max() + 0.1
    print(f"small batches: gleak is ahead of every other rule by 0.10: {ahead}")
    proven = mean["wrongly proven"] < 0.05
    print(f"what it calls proven is there, in 95 % of the batches: {proven}")


# Intervals, distributions, classes


def calibration(frame: pd.DataFrame) -> pd.DataFrame:
    """How often the intervals of `gleak` hold the truth, by stage and pool."""
    own = frame[frame.method == "gleak"]
    glue("held", float(own.held.mean()))
    glue("held_late", float(own[own.steps > 15].held.mean()))
    return own.groupby(["steps", "pool"])[["held", "open", "held, open", "width"]].mean()


def check_calibration(trained: pd.DataFrame, untrained: pd.DataFrame) -> None:
    """Print whether the intervals hold what they promise, and are narrow where they can be."""
    held = trained[trained.method == "gleak"].held.mean()
    print(f"90 % intervals hold the truth in 85 to 97 % of cases: {0.85 < held < 0.97}")
    sure = untrained[(untrained.method == "gleak") & (untrained.network == "lenet")]
    print(f"untrained: intervals narrower than one sample: {sure.width.mean() < 1}")


def distributions(frame: pd.DataFrame) -> pd.DataFrame:
    """The share of labels by stage and distribution, and how far `gleak` is ahead of the others."""
    shown = ["even", "zlg", "zlg-bias", "ilrg", "idlg", "llg", "llbg", "gleak", "confusion"]
    means = frame.pivot_table("instance", ["steps", "labels"], "method")
    view = means[[method for method in shown if method in means]].copy()
    zero_shot = [method for method in ("even", *RIVALS) if method in means]
    view["ahead"] = means["gleak"] - means[zero_shot].max(axis=1)
    return view


def check_distributions(frame: pd.DataFrame) -> None:
    """Print whether `gleak` is near the best rule for every distribution."""
    near = distributions(frame)["ahead"].min() > -0.03
    print(f"never behind the best rival of its row by more than 0.03: {near}")


def other_scores(frame: pd.DataFrame) -> pd.DataFrame:
    """All scores by method, without the guess."""
    names = ["instance", "corrected", "exact", "LeAcc", "LnAcc"]
    table = frame[frame.method != "even"].pivot_table(names, "method")[names]
    return table.sort_values("instance")


def classes(frame: pd.DataFrame) -> pd.DataFrame:
    """The share of labels by number of classes and stage."""
    shown = ["even", "zlg-bias", "ilrg", "idlg", "llg", "llbg", "gleak", "confusion"]
    view = frame.pivot_table(["instance"], ["N", "steps"], "method", sort=False)
    return dashed(view["instance"][shown])


def trained_crops(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the crops on trained networks."""
    return frame[(frame.N == 20) & (frame.steps != 0)]


def say_held(frame: pd.DataFrame) -> None:
    """Print how often the intervals hold the counts of crops."""
    crops = trained_crops(frame)
    held = crops[crops.method == "gleak"].held.mean()
    print(f"on trained crops the intervals hold {held:.2f} of the counts")


def check_classes(frame: pd.DataFrame) -> None:
    """Print whether `gleak` is near the best rule on crops."""
    crops = by_method(trained_crops(frame))
    lead = crops["gleak"] - crops[[method for method in RIVALS if method in crops]].max()
    print(f"twenty classes, trained: gleak within 0.03 of the best or above: {lead > -0.03}")


# Verdicts


def sized(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows with few images and those with many, with their sizes in words."""
    for few in (True, False):
        rows = frame[(frame.K <= FEW) == few]
        if len(rows):
            yield f"{listed(rows.K)} images", rows


def listed(values: pd.Series) -> str:
    """The different values of a column, in their order."""
    return ", ".join(map(str, sorted(values.unique())))


def untrained_rows(frame: pd.DataFrame, made: str) -> Iterator[Row]:
    """A row for each network and size; made: where the runs are from."""
    for network, runs in frame.groupby("network", sort=False):
        name = NAMED.get(str(network), str(network))
        for sizes, rows in sized(runs):
            words = f"{made}: {name}, {sizes}, {listed(rows.N)} classes, untrained"
            yield (
                setting(words, what="labels", images=rows.K.min(), more=f"on {name}"),
                criterion.label_columns(rows, ["seed"]),
            )


def verdict_untrained(frame: pd.DataFrame, grid: pd.DataFrame) -> None:
    """Claim 1 on untrained networks, of this page and recorded."""
    verdict([1], [*untrained_rows(grid, "recorded"), *untrained_rows(frame, "this page")])


def verdict_trained(frame: pd.DataFrame, handful: pd.DataFrame, size: int) -> None:
    """Claims 1 and 6 on trained networks, stage by stage; handful: fewer images than classes."""
    rows: list[Row] = []
    for steps, runs in frame.groupby("steps"):
        words = f"{size} images, {listed(runs.network)} on {listed(runs.pool)} after {steps} steps"
        found = criterion.label_columns(own(runs), criterion.TRAINED)
        rows.append((setting(words, what="labels", images=size, trained=bool(steps)), found))
    few = few_images(handful)
    for steps, runs in few.groupby("steps"):
        words = f"{listed(runs.K)} images, {listed(runs.pool)} after {steps} steps"
        found = criterion.label_columns(runs, criterion.TRAINED)
        rows.append((setting(words, what="labels", images=few.K.max(), trained=bool(steps)), found))
    verdict([1, 6], rows)


def own(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of rules that need no data of the client's kind, which the claims are about."""
    return frame[~frame.method.isin([*WITH_DATA, "oracle"])]


def few_images(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of small batches with a row for each rule."""
    about = [name for name in ("pool", "steps", "K", "seed", "training", "even") if name in frame]
    rules = [*few_rivals(frame), "gleak"]
    return frame.melt(about, rules, var_name="method", value_name="instance").dropna()


def verdict_distributions(
    grid: pd.DataFrame, skewed: pd.DataFrame, frame: pd.DataFrame, size: int
) -> None:
    """Claim 7 on labels: the published rule against GradInversion's.

    grid: recorded, untrained networks; skewed: trained ones; frame: the distributions.
    """
    rows: list[Row] = []
    for sizes, runs in sized(grid):
        found = criterion.rival_columns(runs, ["seed"], "zlg", of="labels")
        words = f"recorded: labels as they come, {sizes}, {listed(runs.network)}, untrained"
        rows.append((setting(words, what="labels", images=runs.K.min()), found))
    for steps, runs in skewed.groupby("steps"):
        found = criterion.rival_columns(own(runs), criterion.TRAINED, "zlg", of="labels")
        words = f"skewed labels, {size} images, {listed(runs.network)} after {steps} steps"
        rows.append((setting(words, what="labels", images=size, trained=bool(steps)), found))
    for steps, runs in frame.groupby("steps"):
        found = criterion.rival_columns(own(runs), criterion.TRAINED, "zlg", of="labels")
        words = f"labels from uniform to a single class, after {steps} steps"
        rows.append((setting(words, what="labels", images=size, trained=bool(steps)), found))
    verdict([7], rows)
