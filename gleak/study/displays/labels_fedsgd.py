"""Chapter 02, how it is shown: tables, figures, checks and verdicts of the label counts."""

from collections.abc import Iterator, Mapping

import pandas as pd
import torch
from matplotlib.figure import Figure

from gleak.study import criterion
from gleak.study.book import Row, glue, verdict
from gleak.study.displays import label_lines
from gleak.study.verdicts import FEW, OWN, setting
from gleak.study.words import name, series

CELL = ["network", "N", "K"]  # of the recorded table
SHOWN = ["even", "gradinversion", "idlg", "llg", "ilrg", "zlg", "zlg-bias", "gleak"]


def by_method(frame: pd.DataFrame) -> pd.Series:
    """Method -> mean share of labels that are right."""
    return frame.groupby("method").instance.mean()


def counts(
    truth: torch.Tensor, found: Mapping[str, torch.Tensor], names: list[str]
) -> pd.DataFrame:
    """The client's counts and those that some rules restored, a row for each class.

    How many labels each has right is kept for the prose.
    """
    restored = {name(rule, "rule"): values.tolist() for rule, values in found.items()}
    columns = {"client (hidden)": truth.tolist(), **restored}
    for rule, values in found.items():
        glue(f"right_{rule.replace('-', '_')}", torch.minimum(values, truth).sum())
    return pd.DataFrame(columns, index=pd.Index(names, name="class"))


def network_name(code: str) -> str:
    """A network's name in words: the LeNet of the chapters on labels has ReLU.

    >>> network_name("lenet")
    'LeNet with ReLU'
    """
    return name("lenet-relu" if code == "lenet" else code, "network")


# Untrained networks


def by_size(frame: pd.DataFrame) -> tuple[Figure, str]:
    """The share of labels over the batch size, a panel for each network; figure and alt text."""
    networks = dict.fromkeys(frame.network)
    panels = {network_name(code): frame[frame.network == code] for code in networks}
    rules = [rule for rule in SHOWN if rule != "llg"]
    figure, alt = label_lines.lines(panels, "K", "images in the batch", rules, ["seed"])
    return figure, alt


def claims_untrained(frame: pd.DataFrame) -> dict[str, bool]:
    """The claims on untrained networks, and whether they hold."""
    relu = by_method(frame[frame.network == "lenet"])
    sigmoid = frame[(frame.network == "lenet, sigmoid") & (frame.N == 10)]
    repeated = frame[(frame.network == "lenet") & (frame.K > frame.N)]
    signs = by_method(repeated)[["idlg", "llg", "gradinversion"]].max()
    return {
        "with ReLU both rules without random features restore 99 % of the labels": (
            relu[["zlg-bias", "gleak"]].min() >= 0.99
        ),
        "rules that read signs fall below 90 % where labels repeat": signs < 0.9,
        "with sigmoids and ten classes no rule restores 99 %": by_method(sigmoid).max() < 0.99,
    }


# The recorded grid


def recorded_figure(frame: pd.DataFrame) -> tuple[Figure, str]:
    """The recorded grid over the size of the batch, a panel for each network."""
    guess = frame[frame.method == "gleak"].assign(method="even", instance=frame.even)
    return by_size(pd.concat([frame, guess]))


def recorded_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Means of the recorded grid by network, and the share of small batches that are all exact."""
    rules = ["gradinversion", "ilrg", "zlg", "zlg-bias", "gleak"]
    table = frame.pivot_table("instance", "network", "method")[rules]
    table.insert(0, "even", frame.groupby("network").even.mean())
    return table


def whole_grid(frame: pd.DataFrame) -> pd.DataFrame:
    """Each cell of the recorded grid: the share of labels by each rule."""
    table = frame.pivot_table("instance", CELL, "method")
    table.insert(0, "even", frame.groupby(CELL).even.mean())
    return table[SHOWN]


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
    return sorted(
        f"{network_name(network)}, {n} classes, {k} images"
        for network, n, k in below.index[below > 0]
    )


def glue_recorded(frame: pd.DataFrame) -> None:
    """Keep what the prose says of the recorded grid."""
    glue("recorded_largest", frame.K.max())
    for method, networks in reached(frame).items():
        words = [network_name(network) for network in networks]
        glue(f"reached_{method.replace('-', '_')}", "; ".join(words) or "none")
    glue("behind", "; ".join(behind(frame)) or "none")
    shares = frame.pivot_table("instance", CELL, "method")
    hard = shares.groupby("network").mean()[["gleak", "zlg-bias"]].min(axis=1).idxmin()
    glue("hard", network_name(str(hard)))
    for method in ("gleak", "zlg-bias"):
        glue(f"hard_{method.replace('-', '_')}", float(shares.loc[hard, method].mean()))


# Verdicts


def sized(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows with few images and those with many, with their sizes in words."""
    for few in (True, False):
        rows = frame[(frame.K <= FEW) == few]
        if len(rows):
            yield f"batches of {listed(rows.K)} images", rows


def listed(values: pd.Series, kind: str | None = None) -> str:
    """The different values of a column, in their order; kind: what they are names of, if any."""
    found = sorted(values.unique())
    if kind == "network":
        return series(map(network_name, found))
    return series(name(value, kind) if kind else value for value in found)


def untrained_rows(frame: pd.DataFrame, made: str) -> Iterator[Row]:
    """A row for each network and size; made: where the runs are from."""
    for network, runs in frame.groupby("network", sort=False):
        called = network_name(str(network))
        for sizes, rows in sized(runs):
            words = f"{made}: {called}, {sizes}, {listed(rows.N)} classes, untrained"
            yield (
                setting(words, what="labels", images=rows.K.min(), more=f"on the {called}"),
                criterion.label_columns(rows, ["seed"]),
            )


def verdict_untrained(frame: pd.DataFrame, grid: pd.DataFrame) -> None:
    """Claim 1 on untrained networks, of this page and recorded."""
    verdict([1], [*untrained_rows(grid, "recorded runs"), *untrained_rows(frame, OWN)])


def verdict_on_rivals(grid: pd.DataFrame) -> None:
    """Claim 7 on labels: the published rule against GradInversion's, on untrained networks."""
    rows: list[Row] = []
    for sizes, runs in sized(grid):
        found = criterion.rival_columns(runs, ["seed"], "zlg", of="labels")
        networks = listed(runs.network, "network")
        words = f"recorded runs: labels as they come, {sizes}, {networks}, untrained"
        rows.append((setting(words, what="labels", images=runs.K.min()), found))
    verdict([7], rows)
