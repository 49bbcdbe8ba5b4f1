"""Figures of the study. Each comes with the words that a screen reader says in its place."""

import base64
import io
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import display
from matplotlib import rc_params_from_file
from matplotlib.figure import Figure

from gleak.data import Batch
from gleak.inversion import Inversion

# Figures keep a white ground, a card on the book's dark pages: what lies on it are data.
STYLE = rc_params_from_file(
    Path(__file__).with_name("figures.mplstyle"), use_default_template=False
)


def gallery(batch: Batch, result: Inversion, scores: pd.DataFrame) -> tuple[Figure, str]:
    """Originals above their restorations, with labels and PSNR; the figure and its alt text."""
    restored = result.images[scores["match"].tolist()]
    labels = result.labels[scores["match"].tolist()]
    count = len(batch)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            2, count, figsize=(1.7 * max(count, 2) + 0.5, 4.0), squeeze=False, layout="constrained"
        )
        for column in range(count):
            truth = batch.class_names[batch.labels[column]]
            guess = batch.class_names[labels[column]]
            show_image(axes[0, column], batch.images[column], truth)
            show_image(
                axes[1, column], restored[column], f"{guess}\n{scores['psnr'][column]:.1f} dB"
            )
        for axis, text in zip(axes[:, 0], ("original", "restored"), strict=True):
            axis.set_ylabel(text)
    names = [batch.class_names[label] for label in batch.labels.tolist()]
    low, high = scores["psnr"].min(), scores["psnr"].max()
    alt = (
        f"Two rows of {count} pictures. Above, the client's images: {', '.join(names)}. "
        f"Below, what the server restored of them, at {low:.0f} to {high:.0f} dB."
    )
    return figure, alt


def convergence(result: Inversion) -> tuple[Figure, str]:
    """The matching distance over the iterations; the figure and its alt text."""
    distance = result.history["distance"]
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5.5, 2.6), layout="constrained")
        axis.semilogy(distance.index, distance)
        axis.set_xlabel("iteration")
        axis.set_ylabel("gradient distance")
    alt = (
        f"A falling line: the distance between the restored and the observed gradient, from "
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
            figsize=(1.3 * max(count, 3) + 0.6, 1.55 * (1 + len(results))),
            squeeze=False,
            layout="constrained",
        )
        for column in range(count):
            name = batch.class_names[batch.labels[column]]
            show_image(axes[0, column], batch.images[column], name)
            for row, (result, scores) in enumerate(results.values(), start=1):
                image = result.images[scores["match"][column]]
                show_image(axes[row, column], image, f"{scores['psnr'][column]:.1f} dB")
        for axis, text in zip(axes[:, 0], ("original", *results), strict=True):
            axis.set_ylabel(text)
    means = [f"{name} at {scores['psnr'].mean():.0f} dB" for name, (_, scores) in results.items()]
    names = ", ".join(batch.class_names[label] for label in batch.labels.tolist())
    alt = (
        f"Rows of {count} pictures. The client's images on top: {names}. Below, "
        f"what each attack restored of them: {', '.join(means)} on average."
    )
    return figure, alt


def curves(table: pd.DataFrame, horizontal: str, vertical: str, summary: str) -> tuple[Figure, str]:
    """The columns of a table over its index, both axes logarithmic; the figure and its alt text."""
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5.5, 2.8), layout="constrained")
        for name, marker in zip(table.columns, "osd^v", strict=False):
            axis.loglog(table.index, table[name], marker=marker, markersize=4, label=name)
        axis.set_xlabel(horizontal)
        axis.set_ylabel(vertical)
        axis.legend(frameon=False)
    return figure, f"Lines for {', '.join(table.columns)}: {vertical} over {horizontal}. {summary}"


def show_image(axis, image: torch.Tensor, title: str) -> None:
    """One image (C, H, W) in [0, 1] on an axis without ticks."""
    pixels = image.permute(1, 2, 0).cpu()
    axis.imshow(pixels if len(image) == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
    axis.set_title(title, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def show(figure_and_alt: tuple[Figure, str]) -> None:
    """Display a figure in a notebook; its alt text goes along with the picture into the page."""
    figure, alt = figure_and_alt
    buffer = io.BytesIO()
    with plt.rc_context(STYLE):
        figure.savefig(buffer, format="png", metadata={"Software": None})
    plt.close(figure)
    png = base64.b64encode(buffer.getvalue()).decode()
    display({"image/png": png, "text/plain": alt}, raw=True, metadata={"image/png": {"alt": alt}})
