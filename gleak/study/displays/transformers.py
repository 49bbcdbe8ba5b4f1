"""Figures, tables, claims and the verdict of the appendix on vision transformers."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure

from gleak import figures
from gleak.study import criterion
from gleak.study.book import verdict
from gleak.study.verdicts import setting

COLUMNS = {"psnr": "PSNR", "told": "patches told", "patches": "patches", "thumb8": "8×8 thumbnail"}


def pictures(
    original: torch.Tensor, restored: Mapping[str, tuple[torch.Tensor, float]]
) -> tuple[Figure, str]:
    """A photograph (C, H, W) beside what came back of it, each with its PSNR; and the alt text."""
    with plt.rc_context(figures.STYLE):
        count = 1 + len(restored)
        size = (min(2.3 * count, figures.PAGE), 2.4)
        figure, axes = plt.subplots(1, count, figsize=size, layout="constrained")
        figures.show_image(axes[0], original, "the photograph")
        for axis, (name, (image, psnr)) in zip(axes[1:], restored.items(), strict=True):
            figures.show_image(axis, image, f"{name}\n{psnr:.0f} dB")
    said = ", ".join(f"from {name} at {psnr:.0f} dB" for name, (_, psnr) in restored.items())
    return figure, f"A photograph of one client, and beside it what came back of it: {said}."


def table(runs: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """A row for each run; names: the columns that tell runs apart, as readers call them."""
    shown = runs[[*names, *COLUMNS]].rename(columns={**names, **COLUMNS})
    return shown.set_index(list(names.values()))


def ways(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs on one network, by what was sent; runs: with `sent`, `steps` and `trained`."""
    words = [
        f"weights after {row.steps} local step{'s'[: row.steps > 1]}"
        if row.sent == "weights"
        else f"gradient in {row.sent}" + (", trained network" if row.trained else "")
        for row in runs.itertuples()
    ]
    return table(runs.assign(words=words), {"words": "what was sent"})


def numbers(runs: pd.DataFrame, sent: pd.DataFrame, shapes: pd.DataFrame) -> dict[str, float]:
    """For the prose. runs: of several networks; sent, shapes: of one photograph each."""
    weights = sent[sent.sent == "weights"]
    narrow = shapes[shapes.patches > shapes.width - 1]
    return {
        "networks": len(runs),
        "least": runs.psnr.min(),
        "most": runs.psnr.max(),
        "thumb8": runs.thumb8.mean(),
        "flat": runs.mean_colour.mean(),
        "half": sent[sent.sent == "float16"].psnr.mean(),
        "brain": sent[sent.sent == "bfloat16"].psnr.mean(),
        "weights_least": weights.psnr.min(),
        "steps_most": int(weights.steps.max()),
        "trained": sent[sent.trained > 0].psnr.mean(),
        "narrow": narrow.psnr.mean(),
        "narrow_told": narrow.told.mean(),
        "narrow_patches": narrow.patches.mean(),
    }


def claims(
    runs: pd.DataFrame, sent: pd.DataFrame, shapes: pd.DataFrame, refused: str
) -> dict[str, bool]:
    """What the chapter says of its photographs. refused: what was said of two at once."""
    weights, narrow = sent[sent.sent == "weights"], shapes[shapes.patches > shapes.width - 1]
    return {
        "every photograph comes back at 50 dB or more": bool(runs.psnr.min() >= 50),
        "from weights after local steps better than its thumbnail": bool(
            (weights.psnr > weights.thumb8 + 3).all()
        ),
        "from a gradient in float16 better than its thumbnail": bool(
            (sent[sent.sent == "float16"].psnr > sent.thumb8.min() + 3).all()
        ),
        "with fewer numbers than patches better than its thumbnail": bool(
            (narrow.psnr > narrow.thumb8 + 3).all()
        ),
        "two photographs at once are refused": bool(refused),
    }


def verdict_on_images(runs: pd.DataFrame, pixels: int) -> None:
    """Claim 2, for one photograph; runs: a row for each network, with its `seed`."""
    where = setting(
        f"one photograph of {pixels} pixels, vision transformer",
        images=1,
        pixels=pixels,
        more="on a vision transformer",
    )
    verdict([2], [(where, criterion.image_columns(runs, ["seed"]))])
