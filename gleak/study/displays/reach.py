"""How far the closed forms reach: picture, tables, numbers and claims of the recorded rows."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from gleak.figures import STYLE
from gleak.inversion.closed import Counted
from gleak.study.words import name, series
from gleak.themed import AS_IT_IS

CELL = ["network", "pixels", "K", "mode"]
RUN = [*CELL, "form"]
ENDS = {  # where the peeling ends -> its number in the picture, words, colour
    "start": (0, "does not start", "#d9d9d9"),
    "inside": (1, "at an inner layer", "#8fb8de"),
    "image": (2, "at the images", "#1f5f9e"),
}
WHY = {
    "image": "nothing",
    "start": "a start",
    "equations": "equations",
    "places": "places of maxima",
    "digits": "independent equations, or digits",
}
DIGITS = {"for each that is needed": 2, "equations": 0, "known outputs": 0, "unknowns": 0}
WIDE = 64  # pixels up to which it has the small one


def words(network: str, pixels: int | None = None) -> str:
    """The network's name, for ResNet-18 with its stem where the size of the images decides it."""
    short = network.removeprefix("torchvision:")
    known = {"vgg11": "VGG-11", "alexnet": "AlexNet", "convnet": "convnet"}
    stem = ""
    if short == "resnet18" and pixels:
        stem = ", 3×3 stem" if pixels <= WIDE else ", 7×7 stem"
    return known.get(short, name(short, "network")) + stem


def of_part(stored: pd.DataFrame, part: str) -> pd.DataFrame:
    """The rows that were counted, peeled or searched."""
    return stored[stored.part == part]


def layers(rows: Sequence[Counted]) -> pd.DataFrame:
    """What there is for each layer, as they are peeled, to the one behind that which ends it."""
    until = next((i for i, row in enumerate(rows) if row.share < 1), len(rows) - 1)
    return pd.DataFrame(
        {
            "layer": row.kind,
            "its input": "×".join(map(str, row.shape)),
            "equations": row.equations,
            "known outputs": round(row.outputs),
            "unknowns": round(row.needed * row.unknowns),
            "for each that is needed": row.share,
        }
        for row in rows[: until + 2]
    ).set_index("layer")


def ends(row: pd.Series) -> str:
    """The key of `ENDS` of a row."""
    return row.limit if row.limit in ENDS else "inside"


def picture(stored: pd.DataFrame) -> tuple[Figure, str]:
    """A panel for each network and mode: batch size over pixels, coloured by where peeling ends.

    The number in a field is how many layers are left in front of the last place that is known.
    """
    counted = of_part(stored, "count")
    counted = counted[counted.K <= 8]
    groups = list(counted.groupby(["mode", "network"], sort=False))
    colours = ListedColormap([colour for _, _, colour in ENDS.values()])
    columns = 4
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            -(-(len(groups) + 1) // columns), columns, figsize=(7.2, 3.6), layout="constrained"
        )
        for axis, ((mode, network), rows) in zip(axes.flat, groups, strict=False):
            left = rows.pivot_table(index="K", columns="pixels", values="index")
            where = rows.assign(where=[ENDS[ends(row)][0] for _, row in rows.iterrows()])
            shown = where.pivot_table(index="K", columns="pixels", values="where")
            axis.imshow(shown, cmap=colours, vmin=0, vmax=len(ENDS) - 1, aspect="auto")
            for (y, x), number in np.ndenumerate(left.to_numpy()):
                look = {"color": "white" if shown.iloc[y, x] == 2 else "black", "gid": AS_IT_IS}
                text = f"{int(number) + 1}" if shown.iloc[y, x] == 1 else ""
                axis.text(x, y, text, ha="center", va="center", **look)
            axis.set_xticks(range(shown.shape[1]), shown.columns)
            axis.set_yticks(range(shown.shape[0]), shown.index)
            axis.spines[:].set_visible(False)
            normed = words(network) + (f", {mode}" if "resnet" in network else "")
            axis.set_title(normed, fontsize="medium")
        for axis in axes.flat[len(groups) :]:
            axis.axis("off")
        marks = [Patch(color=colour, label=text) for _, text, colour in ENDS.values()]
        axes.flat[-1].legend(handles=marks, loc="center", frameon=False, title="peeling ends")
        figure.supxlabel("pixels a side")
        figure.supylabel("images, K")
    inside = [ends(row) for _, row in counted.iterrows()]
    alt = (
        f"Fields for {len(groups)} networks and modes, batch size over pixels a side. Of "
        f"{len(inside)} cases, peeling ends at the images in {inside.count('image')}, at an inner "
        f"layer in {inside.count('inside')}, and does not start in {inside.count('start')}."
    )
    return figure, alt


def count_table(stored: pd.DataFrame, cells: Sequence[tuple[str, int, int, str]]) -> pd.DataFrame:
    """Equations and unknowns where the counting ends, for some cells of `CELL`."""
    counted = of_part(stored, "count").set_index(CELL)
    rows = []
    for cell in cells:
        row = counted.loc[cell]
        network, pixels, size, mode = cell
        rows.append(
            {
                "network": words(network, pixels),
                "pixels": pixels,
                "images, K": size,
                "batch norm": mode if "resnet" in network else "–",
                "ends at": row.layer,
                "equations": row.equations,
                "known outputs": row.outputs,
                "unknowns": row.unknowns,
                "for each that is needed": row.share,
                "the next one": row.next_share,
            }
        )
    return pd.DataFrame(rows).set_index(["network", "pixels", "images, K", "batch norm"])


def measured(stored: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of what was peeled and searched, searched cells first."""
    runs = stored[stored.part != "count"]
    searched = of_part(stored, "search")
    rows = []
    for cell, those in runs.groupby(RUN, sort=False):
        network, pixels, size, mode, form = cell
        found = searched[(searched[RUN] == pd.Series(cell, index=RUN)).all(axis=1)]
        about = [words(str(network), int(pixels)), f"{pixels} pixels", f"K = {size}"]
        about += [str(mode)] * ("resnet" in str(network)) + [str(form)] * (form != "float32")
        rows.append(
            {
                "network and batch": ", ".join(about),
                "PSNR (dB)": found.psnr.mean(),
                "lowest image (dB)": found.lowest.min(),
                "8×8 thumbnail (dB)": found.thumb8.mean(),
                "networks": those.seed.nunique(),
                "known at once": those.known.dropna().iloc[0] if those.known.any() else "nothing",
                "relative error": f"{those.error.max():.0e}" if those.error.notna().any() else "–",
                "it lacks": series(dict.fromkeys(WHY[limit] for limit in those.limit)),
            }
        )
    rows.sort(key=lambda row: bool(pd.isna(row["PSNR (dB)"])))
    return pd.DataFrame(rows).set_index("network and batch")


def searched_cell(stored: pd.DataFrame, cell: tuple) -> pd.DataFrame:
    """The rows of one cell that were searched, a network each."""
    runs = of_part(stored, "search")
    return runs[(runs[CELL] == pd.Series(cell, index=CELL)).all(axis=1)]


def numbers(stored: pd.DataFrame) -> dict[str, Any]:
    """What the text says of the recorded rows."""
    counted = of_part(stored, "count")
    small = counted[counted.K <= 8]
    where = [ends(row) for _, row in small.iterrows()]
    found = of_part(stored, "search").groupby(CELL, sort=False)[["psnr", "thumb8"]].mean()
    peeled = stored[(stored.part != "count") & stored.error.notna()]
    sixteen = stored[(stored.K == 16) & (stored["mode"] == "eval") & stored["rank"].notna()].iloc[0]
    best = ("torchvision:vgg11", 64, 1, "eval")
    runs = searched_cell(stored, best)
    blocks = searched_cell(stored, ("resnet18", 64, 2, "eval")).psnr
    return {
        "sixteen_rank": int(sixteen["rank"]),
        "sixteen_patches": int(sixteen.next_unknowns),
        "best_most": runs.psnr.max(),
        "best_least": runs.psnr.min(),
        "best_networks": len(runs),
        "best_thumb": runs.thumb8.mean(),
        "best_network": words(best[0], best[1]),
        "blocks_most": blocks.max(),
        "blocks_least": blocks.min(),
        "blocks_networks": len(blocks),
        "best_pixels": best[1],
        "best_size": best[2],
        "cases": len(where),
        "cases_image": where.count("image"),
        "cases_inside": where.count("inside"),
        "cases_start": where.count("start"),
        "worst_error": peeled.error.max(),
        "searched": len(found),
        "ahead": int((found.psnr > found.thumb8).sum()),
        "seeds": int(of_part(stored, "search").groupby(CELL).seed.nunique().max()),
    }


def claims(stored: pd.DataFrame) -> dict[str, bool]:
    """What is claimed of the recorded rows."""
    counted = of_part(stored, "count")
    runs = stored[(stored.part != "count") & stored.known_at.notna()]
    both = runs.merge(counted, on=CELL, suffixes=("", "_counted"))
    opened = of_part(stored, "search").query("network == 'torchvision:vgg11' and pixels == 64")
    large = counted[(counted.pixels >= 112) & (counted.limit == "image")]
    return {
        "counted: no network is peeled to images of 112 pixels or more": large.empty,
        "no peeling went beyond the layer that counting names": bool(
            (both.known_at > both["index_counted"]).all()
        ),
        "what is known is right to a hundredth": bool(runs.error.max() < 1e-2),
        "VGG-11 at 64 pixels: one network opens, at 40 dB or more, and another one does not": bool(
            opened.psnr.max() >= 40 and (opened.psnr < opened.thumb8).any()
        ),
    }
