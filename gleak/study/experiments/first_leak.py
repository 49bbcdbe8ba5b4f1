"""Chapter 01: one search from several starts, image by image."""

from collections.abc import Iterable, Sequence

import pandas as pd
import torch

import gleak
from gleak.update import Update


def restarts(
    update: Update,
    counts: torch.Tensor,
    batch: gleak.Batch,
    seeds: Iterable[int],
    iterations: int,
) -> list[pd.DataFrame]:
    """The scores of the same search from another random start for each seed; see `gleak.score`."""
    found = (
        gleak.invert(update, counts, iterations=iterations, seed=seed, progress=False)
        for seed in seeds
    )
    return [gleak.score(result.images, batch.images) for result in found]


def starts(batch: gleak.Batch, runs: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One row for each image: its PSNR over the starts in dB, and that of pictures without a leak.

    runs: the scores of each start. `alone in its class`: no other image of the batch has its label.
    """
    psnr = pd.concat([run["psnr"] for run in runs], axis=1)
    return pd.DataFrame(
        {
            "class": [batch.class_names[label] for label in batch.labels.tolist()],
            "alone in its class": (batch.label_counts[batch.labels] == 1).numpy(),
            "PSNR (mean)": psnr.mean(axis=1),
            "lowest": psnr.min(axis=1),
            "highest": psnr.max(axis=1),
            "flat colour": runs[0]["mean_colour"],
            "4×4": runs[0]["thumb4"],
            "8×8": runs[0]["thumb8"],
        }
    )
