"""Chapter 01, how it is shown: tables, checks and verdicts of the first leak."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch

from gleak.data import Batch
from gleak.metrics import score_labels
from gleak.study import criterion
from gleak.study.book import claims, glue, verdict
from gleak.study.experiments import first_leak as experiment
from gleak.study.verdicts import Setting, setting
from gleak.study.words import name, on


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
    """Show which of the rules that need no data are exact."""
    claims(
        {
            f"{name(rule, 'rule')} restores the labels exactly": is_exact(batch, restored[rule])
            for rule in ("zlg", "zlg-bias")
        }
    )


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
    """Show whether every start beats pictures that leak nothing."""
    alone = experiment.starts(batch, runs)["alone in its class"]
    better = min(run["psnr"].mean() for run in runs) > runs[0]["mean_colour"].mean() + 2
    found = {"from each start the mean beats a flat colour by 2 dB": better}
    for start, run in enumerate(runs, start=1):
        better = (run["psnr"] > run["thumb4"] + 1)[alone].all()
        found[f"start {start}, alone in a class: 1 dB above a 4×4 thumbnail"] = bool(better)
    claims(found)


def attacks(scores: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """PSNR of each attack, the mean over the images and the worst of them, beside thumbnails."""
    means = {
        attack: {
            "PSNR": run["psnr"].mean(),
            "lowest": run["psnr"].min(),
            "thumb8": run["thumb8"].mean(),
        }
        for attack, run in scores.items()
    }
    return pd.DataFrame(means).T.rename_axis("attack")


def glue_best(batch: Batch, best: pd.DataFrame, paper: pd.DataFrame) -> None:
    """Keep what the prose says of other attacks: scores of the study's and of the paper's."""
    glue("psnr_best", best["psnr"].mean())
    glue("psnr_paper", paper["psnr"].mean())
    shared = (batch.label_counts[batch.labels] > 1).numpy()
    glue("psnr_best_shared", decibels(best["psnr"][shared]))


def check_best(runs: Sequence[pd.DataFrame], best: pd.DataFrame) -> None:
    """Show whether reading the gradient better beats the search and a thumbnail."""
    reached, searched = best["psnr"].mean(), max(run["psnr"].mean() for run in runs)
    claims(
        {
            "the study's attack beats the best start of the search by 1 dB": reached > searched + 1,
            "the study's attack beats 8×8 thumbnails by 1 dB": reached > best["thumb8"].mean() + 1,
        }
    )


def where(batch: Batch, model: str, what: str) -> Setting:
    """The setting of the chapter; what: labels or images."""
    return setting(
        f"one gradient of an untrained {model}, {len(batch)} images",
        what=what,
        images=len(batch),
        pixels=batch.images.shape[-1],
        more=on(model),
    )


def verdict_on_labels(batch: Batch, restored: Mapping[str, torch.Tensor], model: str) -> None:
    """Claim 1; restored: counts by rule."""
    rows = [{"method": m, **score_labels(c, batch.label_counts)} for m, c in restored.items()]
    found = criterion.label_columns(pd.DataFrame(rows), [], name="gradient")
    verdict([1], [(where(batch, model, "labels"), found)])


def verdict_on_images(
    batch: Batch, runs: Sequence[pd.DataFrame], others: Mapping[str, pd.DataFrame], model: str
) -> None:
    """Claim 2; runs: scores of the starts of matching, others: of other attacks."""
    named = [run.assign(attack=attack) for attack, run in others.items()]
    scores = pd.concat([pd.concat(runs).assign(attack="inverting-gradients"), *named])
    found = criterion.image_columns(scores, [], name="gradient")
    verdict([2], [(where(batch, model, "images"), found)])
