"""Figures, tables and claims of the appendix on servers that change the network."""

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure

from gleak import figures

SHOWN = 8


def pictures(
    images: torch.Tensor, found: torch.Tensor, psnr: torch.Tensor, which: torch.Tensor
) -> tuple[Figure, str]:
    """The first of the images above what came back of each; the figure and its alt text."""
    count = min(SHOWN, len(images))
    with plt.rc_context(figures.STYLE):
        figure, axes = plt.subplots(
            2, count, figsize=(figures.across(count), 2.7), layout="constrained", squeeze=False
        )
        for column in range(count):
            figures.show_image(axes[0, column], images[column], "")
            restored = found[which[column]].clamp(0, 1)
            figures.show_image(axes[1, column], restored, f"{psnr[column]:.0f} dB")
        axes[0, 0].set_ylabel("original")
        axes[1, 0].set_ylabel("read off")
    middle = psnr[:count].median()
    return figure, (
        f"Two rows of {count} pictures: images of a large batch, and below what the rows of the "
        f"server's layer gave of each, at {middle:.0f} dB in the median."
    )


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """The share that is copied, images in the batch down, rows of the layer across."""
    means = runs.pivot_table("share", "size", "bins")
    means.index.name = "images in the batch"
    return means.rename(columns=lambda bins: f"{bins} rows")


def claims(runs: pd.DataFrame, alike: float, honest: float) -> dict[str, bool]:
    """alike: share of equal rows in the server's layer; honest: in that of an honest server."""
    widest = runs[runs.bins == runs.bins.max()]
    smallest = widest[widest["size"] == widest["size"].min()]
    return {
        "of the smallest batches four fifths of the images are copied": bool(
            smallest.share.mean() > 0.8
        ),
        "more rows copy more images": bool(
            widest.share.mean() > runs[runs.bins == runs.bins.min()].share.mean()
        ),
        "the layer shows what it is": alike > 0.9 > honest,
    }
