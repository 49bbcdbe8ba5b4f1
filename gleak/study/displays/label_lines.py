"""Shares of labels as lines over stages, steps or sizes, as several chapters show them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gleak import figures
from gleak.study import criterion
from gleak.study.words import name

BANDS = ("gleak", "zlg")  # rules whose interval is drawn
LOOKS: dict[str, dict[str, Any]] = {
    "even": {"color": "0.5", "linestyle": ":", "marker": ""},
    "confusion": {"color": "0.5", "marker": "x"},
    "idlg": {"color": "C4", "marker": "d"},
    "gradinversion": {"color": "C4", "marker": "X"},
    "llg": {"color": "C3", "marker": "v"},
    "ilrg": {"color": "C2", "marker": "^"},
    "zlg-bias": {"color": "C5", "marker": "D", "linestyle": "--"},
    "zlg": {"color": "C1", "marker": "s"},
    "gleak": {"color": "C0", "marker": "o", "linewidth": 2.4},
}


def shares(
    runs: pd.DataFrame, across: str, unit: Iterable[str], column: str = "instance"
) -> pd.DataFrame:
    """Mean and interval over units of each rule: `method`, `across`, `mean`, `low`, `high`."""
    rows = []
    for (method, place), part in runs.groupby(["method", across], sort=False):
        found = criterion.interval(criterion.by_unit(part, unit)[column])
        rows.append({"method": method, across: place, **found._asdict()})
    return pd.DataFrame(rows)


def lines(
    panels: Mapping[str, pd.DataFrame],
    across: str,
    words: str,
    rules: Sequence[str],
    unit: Sequence[str],
) -> tuple[Figure, str]:
    """A panel for each frame of runs, a line for each rule; the figure and how its alt text begins.

    across: the column along the horizontal axis, whose values stand at equal distances; words: what
    it is. A band is the interval over units.
    """
    across_page = min(len(panels), 2)
    down = math.ceil(len(panels) / across_page)
    size = (figures.PAGE, 2.6 * down + 0.6)
    with plt.rc_context(figures.STYLE):
        figure, axes = plt.subplots(
            down, across_page, figsize=size, sharey=True, squeeze=False, layout="constrained"
        )
        for axis, (title, runs) in zip(axes.flat, panels.items(), strict=False):
            one_panel(axis, shares(runs, across, unit), across, rules)
            axis.set(title=title, xlabel=words)
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        for axis in axes[:, 0]:
            axis.set(ylabel="share of labels right", ylim=(0, 1.04))
        figures.legend(figure, axes[0, 0])
    named = ", ".join(name(rule, "rule") for rule in rules)
    return figure, f"The share of labels over {words}, a line for each rule: {named}."


def one_panel(axis: Axes, found: pd.DataFrame, across: str, rules: Sequence[str]) -> None:
    """The lines of one panel; found: as `shares` returns it."""
    places = sorted(found[across].unique())
    for rule in rules:
        rows = found[found.method == rule].sort_values(across)
        spots = [places.index(place) for place in rows[across]]
        axis.plot(spots, rows["mean"], label=name(rule, "rule"), **LOOKS[rule])
        if rule in BANDS:
            colour = LOOKS[rule]["color"]
            axis.fill_between(spots, rows.low, rows.high, color=colour, alpha=0.15, linewidth=0)
    axis.set_xticks(range(len(places)), [str(place) for place in places])
