"""The report on one's own data: words, tables, and claims about its own example."""

from collections.abc import Mapping

import pandas as pd
import torch
from IPython.display import Markdown, display

from gleak import risk
from gleak.data import Batch
from gleak.risk import Leak

Leaks = Mapping[str, Leak]  # name of a setting or defence -> what leaked


def in_short(yours: Leak, defended: Mapping[str, tuple[float, Leak]]) -> None:
    """What leaks of the plain update and which defence closes it, in words.

    defended: name -> how much of the update is kept, and what leaks of that.
    """
    display(Markdown(risk.in_words(yours)))
    display(Markdown(risk.advice(yours, defended)))


def labels(batch: Batch, counts: torch.Tensor) -> pd.DataFrame:
    """True and read counts of the classes that occur in either. counts: (N,)."""
    present = [n for n in range(batch.num_classes) if batch.label_counts[n] or counts[n]]
    return pd.DataFrame(
        {
            "images of the class": batch.label_counts[present].tolist(),
            "read from the update": counts[present].tolist(),
        },
        index=[batch.class_names[n] for n in present],
    )


def overview(leaks: Leaks, kept: Mapping[str, float]) -> pd.DataFrame:
    """The table of the risk, with what is kept of the update by each defence."""
    table = risk.table(leaks)
    table.insert(0, "update kept", [f"{kept[n]:.2f}" if n in kept else "" for n in leaks])
    return table


def example_claims(leaks: Leaks) -> dict[str, object]:
    """Whether the report is right about the images that ship with the study."""
    yours, single = leaks["your training"], leaks["one step on all images"]
    noisy, grades = leaks["noise as large as the update"], yours.grades
    half = 2 * sum(grade >= 1 for grade in grades) >= len(grades)
    more = single.scores["psnr"].mean() > yours.scores["psnr"].mean()
    hidden = f"{noisy.labels_leak}, {not noisy.images_leak}"
    return {
        "all labels read from the update": yours.labels["instance"] == 1,
        "half of the images or more better than a 4x4 thumbnail": half,
        "a single step leaks more of the images": more,
        "noise as large as the update hides the images and not the labels": hidden,
    }
