"""Table, numbers, claims and verdict of the recorded networks with batch norm and max-pooling."""

from typing import Any

import pandas as pd

from gleak.study import criterion
from gleak.study.book import Row, verdict
from gleak.study.verdicts import setting

CELL = ["mode", "format", "K"]
SCORES = ["psnr", "thumb8", "mean_colour"]
PAPER = "general"


def networks(stored: pd.DataFrame, attack: str = "gleak") -> pd.DataFrame:
    """Means of each network in each cell: batches and images are averaged first."""
    runs = stored[stored.attack == attack]
    return runs.groupby([*CELL, "seed"], sort=False)[[*SCORES, "accuracy"]].mean()


def cells(stored: pd.DataFrame) -> pd.DataFrame:
    """Means over networks in each cell, with the lowest of them, and of the paper's attack."""
    means = networks(stored).groupby(CELL, sort=False)
    table = means[SCORES].mean()
    table.insert(2, "lowest network (dB)", means.psnr.min())
    paper = networks(stored, PAPER).groupby(CELL).psnr.mean()
    table.insert(3, "the paper's attack (dB)", paper.reindex(table.index))
    return table


def cell_table(stored: pd.DataFrame) -> pd.DataFrame:
    """The cells with one name each, so that on a phone the result stands beside it."""
    table = cells(stored)
    several = len(stored.format.unique()) > 1
    table.index = pd.Index(
        [
            f"{mode}, {size} digit{'s'[: size > 1]}" + (f", {form}" if several else "")
            for mode, form, size in table.index
        ],
        name="batch norm",
    )
    return table


def numbers(stored: pd.DataFrame) -> dict[str, Any]:
    """What the text says: networks, their accuracy, and the means of each cell."""
    paper = networks(stored, PAPER)
    accuracy = stored.groupby("seed").accuracy.first()
    told: dict[str, Any] = {
        "deep_networks": len(accuracy),
        "deep_accuracy": accuracy.mean(),
        "deep_least_accuracy": accuracy.min(),
        "deep_paper_best": paper.groupby(CELL).psnr.mean().max(),
        "deep_flat": paper.mean_colour.mean(),
    }
    for (mode, form, size), row in cells(stored).iterrows():
        told |= {f"deep_{mode}_{form}_{size}": row.psnr, f"bar_{mode}_{form}_{size}": row.thumb8}
    return told


def claims(stored: pd.DataFrame) -> dict[str, bool]:
    """What is claimed of the recorded runs."""
    means, paper = networks(stored), networks(stored, PAPER)
    ahead = means.psnr - means.thumb8
    behind = paper.thumb8 - paper.psnr
    return {
        "every network names 95 % of the clients' digits": bool(means.accuracy.min() >= 0.95),
        "in both modes images beat their thumbnails on every network": bool(ahead.min() > 0),
        "the paper's attack stays below them on every network": bool(behind.min() > 0),
    }


def verdict_on_trained(stored: pd.DataFrame) -> None:
    """Claims 2 and 6 for each cell; in some of them the paper's attack was not run."""
    rows: list[Row] = []
    for (mode, form, size), runs in stored.groupby(CELL, sort=False):
        state = f"batch norm in {mode} mode"
        digits = f"{size} digit{'s'[: size > 1]}"
        words = f"recorded: {digits}, six convolutions, {state}, trained, {form}"
        where = setting(words, images=size, trained=True, more=f"with {state}")
        found = criterion.image_columns(runs, ["seed"])
        rows.append((where, found))
    verdict([2, 6], rows)
