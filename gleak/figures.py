"""Figures of the study. Each comes with the words that a screen reader says in its place."""

import base64
import html
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from gleak.data import Batch
from gleak.extras import extra
from gleak.inversion import Inversion
from gleak.metrics import psnr
from gleak.themed import AS_IT_IS, themed

with extra("figures"):
    import matplotlib.pyplot as plt
    from matplotlib import rc_params_from_file
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

PAGE = 5.25  # inches: so wide a figure fits a phone, with its 10 points at 9 pixels
STYLE = rc_params_from_file(
    Path(__file__).with_name("figures.mplstyle"), use_default_template=False
)


def across(pictures: int) -> float:
    """Inches for pictures side by side: up to five fit a phone, more of them scroll there."""
    return min(1.35 * max(pictures, 3) + 0.45, PAGE) if pictures <= 5 else 1.05 * pictures


def short(name: str) -> str:
    """A name in lines that fit over a picture."""
    return textwrap.fill(name, 12)


def legend(figure: Figure, axis: Axes) -> None:
    """The names of an axis above the whole figure, in as many columns as fit."""
    handles, labels = axis.get_legend_handles_labels()
    for columns in range(min(3, len(labels)), 0, -1):
        box = figure.legend(handles, labels, loc="outside upper center", ncols=columns)
        if columns == 1 or box.get_window_extent().width <= figure.bbox.width:
            return
        box.remove()


def plain_ticks(*sides: Axis) -> None:
    """Numbers as people write them on logarithmic axes: an exponent is too small for a phone."""
    for side in sides:
        low, high = side.get_view_interval()
        side.set_major_locator(LogLocator(subs=(1.0,) if high > 100 * low else (1.0, 3.0)))
        side.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
        side.set_minor_formatter(NullFormatter())


def gallery(batch: Batch, result: Inversion, scores: pd.DataFrame) -> tuple[Figure, str]:
    """Originals above their restorations, with labels and PSNR; the figure and its alt text."""
    restored = result.images[scores["match"].tolist()]
    labels = result.labels[scores["match"].tolist()].tolist()
    count = len(batch)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            2, count, figsize=(across(count), 3.4), squeeze=False, layout="constrained"
        )
        for column in range(count):
            guess = short(batch.class_names[labels[column]])
            show_image(axes[0, column], batch.images[column], short(batch.names[column]))
            show_image(
                axes[1, column], restored[column], f"{guess}\n{scores['psnr'][column]:.1f} dB"
            )
        for axis, text in zip(axes[:, 0], ("original", "restored"), strict=True):
            axis.set_ylabel(text)
    low, high = scores["psnr"].min(), scores["psnr"].max()
    alt = (
        f"Two rows of {count} pictures. Above, the client's images: {', '.join(batch.names)}. "
        f"Below, what the server restored of them, at {low:.0f} to {high:.0f} dB."
    )
    return figure, alt


def convergence(result: Inversion) -> tuple[Figure, str]:
    """The matching distance over the iterations; the figure and its alt text.

    Of gradients, or of activations where the attack does not match gradients.
    """
    matched = "gradient" if result.attack is None or result.attack.match else "features"
    distance = result.history["distance" if matched == "gradient" else "features"]
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(PAGE, 2.6), layout="constrained")
        axis.semilogy(distance.index, distance)
        plain_ticks(axis.yaxis)
        axis.set_xlabel("iteration")
        axis.set_ylabel(f"{matched} distance")
    alt = (
        f"A falling line: the distance between the restored and the observed {matched}, from "
        f"{distance.iloc[0]:.2g} down to {distance.min():.2g} in {len(distance)} iterations."
    )
    return figure, alt


def comparison(
    batch: Batch, results: dict[str, tuple[Inversion, pd.DataFrame]]
) -> tuple[Figure, str]:
    """Originals above what each attack restored of them; the figure and its alt text."""
    count = len(batch)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1 + len(results),
            count,
            figsize=(across(count), 1.45 * (1 + len(results)) + 0.1),
            squeeze=False,
            layout="constrained",
        )
        for column in range(count):
            show_image(axes[0, column], batch.images[column], short(batch.names[column]))
            for row, (result, scores) in enumerate(results.values(), start=1):
                image = result.images[scores["match"][column]]
                show_image(axes[row, column], image, f"{scores['psnr'][column]:.1f} dB")
        for axis, text in zip(axes[:, 0], ("original", *results), strict=True):
            axis.set_ylabel(textwrap.fill(text, 14))  # as high as a picture
    means = [f"{name} at {scores['psnr'].mean():.0f} dB" for name, (_, scores) in results.items()]
    names = ", ".join(batch.names)
    alt = (
        f"Rows of {count} pictures. The client's images on top: {names}. Below, "
        f"what each attack restored of them: {', '.join(means)} on average."
    )
    return figure, alt


def curves(table: pd.DataFrame, horizontal: str, vertical: str, summary: str) -> tuple[Figure, str]:
    """The columns of a table over its index, both axes logarithmic; the figure and its alt text."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(PAGE, 3.2), layout="constrained")
        for name, marker in zip(table.columns, "osd^v", strict=False):
            axis.loglog(table.index, table[name], marker=marker, markersize=4, label=name)
        plain_ticks(axis.xaxis, axis.yaxis)
        axis.set_xlabel(horizontal)
        axis.set_ylabel(vertical)
        legend(figure, axis)
    return figure, f"Lines for {', '.join(table.columns)}: {vertical} over {horizontal}. {summary}"


def heatmaps(tables: Mapping[str, pd.DataFrame], value: str, summary: str) -> tuple[Figure, str]:
    """A panel of numbered fields for each table, in one scale of colours, and the alt text.

    The names of a table's index and columns name the axes; value: what the fields show.
    """
    lowest = min(table.min(axis=None) for table in tables.values())
    highest = max(table.max(axis=None) for table in tables.values())
    rows, columns = next(iter(tables.values())).shape
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1,
            len(tables),
            figsize=(0.55 * columns * len(tables) + 1.2, 0.32 * rows + 1),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axis, (name, table) in zip(axes[0], tables.items(), strict=True):
            shown = axis.imshow(table, vmin=lowest, vmax=highest, aspect="auto")
            for (row, column), number in np.ndenumerate(table.to_numpy()):
                dark = number < (lowest + highest) / 2
                look = {"color": "white" if dark else "black", "gid": AS_IT_IS}
                axis.text(column, row, f"{number:.1f}", ha="center", va="center", **look)
            axis.set_xticks(range(columns), table.columns.map("{:g}".format))
            axis.set_yticks(range(rows), table.index)
            axis.set(title=name, xlabel=table.columns.name)
            axis.spines[:].set_visible(False)
        axes[0, 0].set_ylabel(next(iter(tables.values())).index.name)
        figure.colorbar(shown, ax=axes, label=value)
    return figure, f"Fields of numbers for {', '.join(tables)}: {value}. {summary}"


def spread(values: pd.Series) -> tuple[float, float]:
    """The smallest and the largest value."""
    return values.min(), values.max()


def dots(
    frame: pd.DataFrame,
    summary: str,
    *,
    row: str,
    value: str,
    series: str,
    order: Sequence[str] | None = None,
    lines: Mapping[str, float] | None = None,
    ends: Callable[[pd.Series], tuple[float, float]] = spread,
) -> tuple[Figure, str]:
    """Means over repeats as dots with a line, by default over their range, and the alt text.

    frame: a row for each repeat. row: the column that names the line of the figure, in the order in
    which they come; series: the one that gives the colour; value: the number. order: of the series,
    and so of their colours; else as they come. lines: words -> where to draw a line across. ends:
    of the line through a dot, from its repeats.
    """
    rows, found_kinds = list(frame[row].unique()), list(frame[series].unique())
    kinds = [kind for kind in order or found_kinds if kind in found_kinds]
    shared = int(frame.groupby(row)[series].nunique().max())  # marks in a line of the figure
    with plt.rc_context(STYLE):
        size = PAGE, (0.13 + 0.07 * shared) * len(rows) + 1.2
        figure, axis = plt.subplots(figsize=size, layout="constrained")
        for index, kind in enumerate(kinds):
            found = frame[frame[series] == kind].groupby(row, sort=False)[value]
            aside = (index - (len(kinds) - 1) / 2) * 0.8 / len(kinds) if shared > 1 else 0
            heights = [rows.index(label) + aside for label in found.mean().index]
            color = f"C{index % 5}"
            low, high = zip(*(ends(repeats) for _, repeats in found), strict=True)
            axis.hlines(heights, low, high, color=color, linewidth=1.5)
            marker = "osd^vPX<>"[index % 9]
            axis.plot(found.mean(), heights, marker, color=color, markersize=5, label=kind)
        for words, position in (lines or {}).items():
            axis.axvline(position, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
            axis.annotate(
                words,
                (position, 1),
                xycoords=("data", "axes fraction"),
                rotation=90,
                ha="right",
                va="top",
                color="0.35",
            )
        axis.set_xlabel(value)
        axis.grid(axis="y", color="0.92", linewidth=0.8)
        axis.set_yticks(range(len(rows)), rows)
        axis.invert_yaxis()
        legend(figure, axis)
    alt = (
        f"Dots with ranges for {', '.join(map(str, rows))}, by {', '.join(map(str, kinds))}: "
        f"{value}. {summary}"
    )
    return figure, alt


def show_image(axis: Axes, image: torch.Tensor, title: str) -> None:
    """One image (C, H, W) in [0, 1] on an axis without ticks."""
    pixels = image.permute(1, 2, 0).cpu().numpy()
    axis.imshow(pixels if len(image) == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
    axis.set_title(title)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def slider(
    batch: Batch, snapshots: Mapping[int, torch.Tensor], match: Sequence[int]
) -> tuple[str, str]:
    """A search to be watched: the images of each snapshot behind a slider; HTML and its alt text.

    snapshots: iteration -> images (K, C, H, W) in [0, 1]; match: which of them belongs to each of
    the batch's images, as in the scores.
    """
    names = ", ".join(batch.names)
    frames, last = [], max(snapshots)
    for step, images in snapshots.items():
        restored = images[list(match)]
        reached = psnr(restored, batch.images).mean()
        words = f"What the search holds after {step} of {last} iterations, at {reached:.1f} dB."
        title = f"{step} iterations, {reached:.1f} dB"
        frames.append(picture(restored, words, f'data-frame="{title}"{" hidden" * (step < last)}'))
    original = picture(batch.images, f"The images that the client holds: {names}.")
    page = (
        '<div class="gleak-slider"><p class="row-title">original</p>'
        f'{original}<p class="row-title">restored</p>{"".join(frames)}'
        '<div class="control" hidden><label>iteration '
        f'<input type="range" min="0" max="{len(frames) - 1}" value="{len(frames) - 1}"></label>'
        "<output></output></div></div>"
    )
    alt = f"A slider over {len(frames)} pictures of the search, up to iteration {last}, at the end."
    return page, alt


def wipe(batch: Batch, result: Inversion, scores: pd.DataFrame) -> tuple[str, str]:
    """Each original under its restoration, with a slider that uncovers it; HTML and alt text."""
    pairs = []
    for index, match in enumerate(scores["match"]):
        name, reached = batch.names[index], scores["psnr"][index]
        before = picture(batch.images[index, None], f"The client's image number {index}: {name}.")
        words = f"The same image ({name}) as the server restored it, at {reached:.1f} dB."
        after = picture(result.images[match, None], words)
        pairs.append(
            f'<figure><div class="pair">{before}{after}</div>'
            f"<figcaption>{html.escape(name)}, {reached:.1f} dB</figcaption></figure>"
        )
    page = (
        f'<div class="gleak-compare"><div class="pairs">{"".join(pairs)}</div>'
        '<div class="control" hidden><span>restored</span>'
        '<input type="range" min="0" max="100" value="50" aria-label="how much of the original to '
        'show"><span>original</span></div></div>'
    )
    alt = (
        f"{len(pairs)} images, each as the client has it on the left and as restored on the right."
    )
    return page, alt


def picture(images: torch.Tensor, words: str, attributes: str = "") -> str:
    """Images (K, C, H, W) in [0, 1] side by side, as an HTML element that holds its own pixels."""
    opaque = torch.cat([images, torch.ones_like(images[:, :1])], dim=1)
    gap = opaque.new_zeros(*opaque.shape[1:3], 2)  # the page's ground
    strip = torch.cat([part for image in opaque for part in (image, gap)][:-1], dim=2)
    pixels = (strip.cpu() * 255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    width = max(560 // strip.shape[2], 1) * strip.shape[2]  # whole pixels where there is room
    return (
        f'<img src="data:image/png;base64,{data}" width="{width}" alt="{html.escape(words)}" '
        f"{attributes}>"
    )


def show(figure_and_alt: tuple[Figure | str, str]) -> None:
    """Display a figure, or one in HTML, in a notebook; its alt text goes along into the page."""
    with extra("study"):
        from IPython.display import display

    figure, alt = figure_and_alt
    if isinstance(figure, str):
        display({"text/html": figure, "text/plain": alt}, raw=True)
        return
    buffer = io.BytesIO()
    with plt.rc_context(STYLE):
        figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
        drawn = themed(figure, alt)
    plt.close(figure)
    png = base64.b64encode(buffer.getvalue()).decode()
    data = {"image/svg+xml": drawn, "image/png": png, "text/plain": alt}
    display(data, raw=True, metadata={"image/png": {"alt": alt}})
