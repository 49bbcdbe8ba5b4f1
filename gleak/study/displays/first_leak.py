"""Chapter 01, how it is shown: tables, checks and verdicts of the first leak."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch

from gleak.data import Batch
from gleak.study.book import glue, verdict
from gleak.study.experiments import first_leak as experiment


def glue_batch(batch: Batch) -> None:
    """Keep what the prose says of the client's batch."""
    repeated = [batch.class_names[n] for n in (batch.label_counts > 1).nonzero().flatten().tolist()]
    glue("size", len(batch))
    glue("classes", batch.num_classes)
    glue("repeated", ", ".join(repeated) if repeated else "none of them")


def labels(batch: Batch, restored: Mapping[str, torch.Tensor]) -> pd.DataFrame:
    """The counts of each method beside the client's, for classes that anyone says are there."""
    columns = {"client (hidden)": batch.label_counts, **restored}
    seen = (torch.stack(list(columns.values())).sum(0) > 0).tolist()
    return pd.DataFrame(
        {
            name: [n for n, s in zip(counts.tolist(), seen, strict=True) if s]
            for name, counts in columns.items()
        },
        index=[name for name, s in zip(batch.class_names, seen, strict=True) if s],
    ).T


def check_labels(batch: Batch, restored: Mapping[str, torch.Tensor]) -> None:
    """Print which of the zero-shot rules are exact."""
    for method in ("zlg", "zlg-bias"):
        print(f"{method} restores the labels exactly: {is_exact(batch, restored[method])}")


def is_exact(batch: Batch, counts: torch.Tensor) -> bool:
    """Whether the counts are the client's."""
    return torch.equal(counts, batch.label_counts)


def decibels(values: pd.Series) -> str:
    """The mean in words, or that there is none."""
    return f"{values.mean():.1f} dB" if len(values) else "(none here)"


def starts(batch: Batch, runs: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """PSNR image by image over several starts, with what the prose says of it."""
    table, means = experiment.starts(batch, runs), [run["psnr"].mean() for run in runs]
    alone = table["alone in its class"]
    glue("psnr", table["PSNR (mean)"].mean())
    glue("spread", max(means) - min(means))
    glue("flat", table["flat colour"].mean())
    glue("thumb8", table["8×8"].mean())
    glue("psnr_alone", decibels(table["PSNR (mean)"][alone]))
    glue("psnr_shared", decibels(table["PSNR (mean)"][~alone]))
    return table.round(1)


def check_starts(batch: Batch, runs: Sequence[pd.DataFrame]) -> None:
    """Print whether every start beats pictures that leak nothing."""
    alone = experiment.starts(batch, runs)["alone in its class"]
    better = min(run["psnr"].mean() for run in runs) > runs[0]["mean_colour"].mean() + 2
    print(f"from each start the mean beats a flat colour by 2 dB: {better}")
    for start, run in enumerate(runs):
        better = (run["psnr"] > run["thumb4"] + 1)[alone].all()
        print(f"start {start}, alone in a class: 1 dB above a 4x4 thumbnail: {better}")


def glue_best(batch: Batch, best: pd.DataFrame) -> None:
    """Keep what the prose says of the gradient read better; best: its scores."""
    glue("psnr_best", best["psnr"].mean())
    shared = (batch.label_counts[batch.labels] > 1).numpy()
    glue("psnr_best_shared", decibels(best["psnr"][shared]))


def check_best(runs: Sequence[pd.DataFrame], best: pd.DataFrame) -> None:
    """Print whether reading the gradient better beats the search and a thumbnail."""
    better = best["psnr"].mean() > max(run["psnr"].mean() for run in runs) + 1
    print(f"gleak beats the best start of the search above by 1 dB: {better}")
    better = best["psnr"].mean() > best["thumb8"].mean() + 1
    print(f"gleak beats an 8x8 thumbnail by 1 dB: {better}")


def verdict_labels(batch: Batch, counts: torch.Tensor) -> None:
    """Claim 1; counts: by the rule of the claim."""
    exact = is_exact(batch, counts)
    verdict(
        claim=1,
        setting=f"one gradient on {len(batch)} images, an untrained network",
        measured=f"counts of all {batch.num_classes} classes "
        + ("exact" if exact else "not all right"),
        verdict="holds" if exact else "does not hold",
        why="Random images pass an untrained network much as the client's do."
        if exact
        else "The mean softmax of random images is not near enough to that of the client's.",
    )


def verdict_images(best: pd.DataFrame) -> None:
    """Claim 2; best: the scores of the strongest attack."""
    reached, thumbnail = best["psnr"].mean(), best["thumb8"].mean()
    verdict(
        claim=2,
        setting=f"one gradient on {len(best)} images, an untrained network",
        measured=f"{reached:.1f} dB on average, an 8×8 thumbnail has {thumbnail:.1f} dB",
        verdict="holds" if reached > thumbnail else "does not hold",
        why="The gradient holds the activations of each single image, and images follow from those."
        if reached > thumbnail
        else "In this budget the search found no images that fit what the gradient holds.",
    )
