"""Chapter 11, how it is shown: what leaks under each defence, and what the defence costs."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from gleak import figures
from gleak.study.book import glue
from gleak.study.experiments.defences import DEFENCES


def glue_privacy(privacy: pd.DataFrame) -> None:
    """Keep the epsilons that the prose names."""
    glue("epsilon_sum", privacy["epsilon"][1])
    glue("epsilon_alone", privacy["epsilon"][0])
    glue("epsilon_noise", privacy["epsilon"][2])


def named(leaks: pd.DataFrame, kept: pd.DataFrame) -> pd.DataFrame:
    """What leaks and what the model keeps, one row for each defence and seed, with its name."""
    # a secure sum hides the terms and leaves the sum, so the model is that of no defence
    kept = pd.concat([kept, kept[kept["defence"] == "none"].assign(defence="sum")])
    results = leaks.merge(kept)
    keys = zip(results["defence"], results["strength"], strict=True)
    return results.assign(name=[DEFENCES[key] for key in keys])


def means(results: pd.DataFrame) -> pd.DataFrame:
    """The means over the seeds, by the name of the defence."""
    table = results.groupby("name", sort=False).mean(numeric_only=True)
    return table.drop(columns=["strength", "seed"])


def overview(results: pd.DataFrame) -> pd.DataFrame:
    """What a reader needs of the means: PSNR and labels of both attackers, accuracy."""
    columns = ["usual", "knowing", "labels_usual", "labels_knowing", "accuracy"]
    return means(results)[columns].rename_axis("defence")


def leaks(results: pd.DataFrame) -> tuple[Figure, str]:
    """The images under each defence, for both attackers; the figure and its alt text."""
    attackers = {"usual": "attacker as usual", "knowing": "attacker who knows the defence"}
    axis = "PSNR of the images (dB)"
    parts = [
        results.assign(attacker=attacker, **{axis: results[column]})
        for column, attacker in attackers.items()
    ]
    lines = {"flat colour": results["flat"].mean(), "8x8 thumbnail": results["thumb8"].mean()}
    summary = (
        "Rounding and clipping leave the leak as it was; noise, pruning to one in a hundred and "
        "secure sums take the images away."
    )
    return figures.dots(
        pd.concat(parts), summary, row="name", value=axis, series="attacker", lines=lines
    )


def glue_results(results: pd.DataFrame) -> None:
    """Keep what the prose says of each defence."""
    table = means(results)
    for (defence, strength), name in DEFENCES.items():
        key = f"{defence}_{strength:g}".replace(" ", "_").replace(".", "_").removesuffix("_0")
        glue(f"usual_{key}", table["usual"][name])
        glue(f"knowing_{key}", table["knowing"][name])
        glue(f"labels_{key}", 100 * table["labels_knowing"][name])
        glue(f"kept_{key}", 100 * table["accuracy"][name])
    glue("flat", results["flat"].mean())
    glue("thumb8", results["thumb8"].mean())
    glue("clip_labels_usual", 100 * table["labels_usual"]["clip to norm 0.2"])


def result_claims(results: pd.DataFrame) -> dict[str, bool]:
    """Whether the claims on defences hold."""
    table, thumb8 = means(results), results["thumb8"].mean()
    best, usual, accuracy = table["knowing"], table["usual"], table["accuracy"]
    leaking = (best[["clip to norm 0.2", "8 bits", "noise 0.003"]] > thumb8 + 1).all()
    gain = best["8 local steps"] - usual["8 local steps"]
    unproven = table["labels_knowing"].drop(["private secure sum, z = 1"])
    return {
        "clipping, 8 bits and weak noise leave more than a thumbnail": bool(leaking),
        "noise of 0.03 leaves less than a thumbnail": bool(best["noise 0.03"] < thumb8),
        "noise of 0.03 costs less than 5 % accuracy": bool(
            accuracy["nothing"] - accuracy["noise 0.03"] < 0.05
        ),
        "a secure sum leaves less than a thumbnail": bool(best["secure sum of 4 clients"] < thumb8),
        "knowing about local steps is worth 2 dB": bool(gain > 2),
        "first updates: labels outlive every defence without a proof": bool((unproven > 0.7).all()),
    }


def by_size(frame: pd.DataFrame) -> pd.DataFrame:
    """The means over the seeds, by the number of images in an update."""
    table = frame.groupby("each").mean(numeric_only=True).drop(columns="seed")
    table.index.name = "images in an update"
    return table


def batches(frame: pd.DataFrame, sizes: Sequence[int]) -> pd.DataFrame:
    """What leaks by the size of the update, with what the prose says; sizes: one to all."""
    table = by_size(frame)
    glue("batch_number", sizes[-1])
    for each, name in zip(sizes, ("one", "two", "four", "all"), strict=True):
        glue(f"batch_{name}", table["psnr"][each])
    glue("batch_flat", table["mean_colour"].mean())
    glue("batch_thumb8", table["thumb8"].mean())
    glue("batch_labels", 100 * table["labels"].min())
    return table.round(2)


def batch_claims(frame: pd.DataFrame) -> dict[str, bool]:
    """Whether the claims on larger batches hold."""
    table = by_size(frame)
    psnr = table["psnr"]
    return {
        "an image alone is restored exactly": bool(psnr[1] > 50),
        "each larger batch costs the attacker 1 dB or more": bool(
            (psnr.diff().iloc[1:] < -1).all()
        ),
        "all images in one update, 5 dB less than in pairs": bool(psnr.iloc[-1] < psnr[2] - 5),
        "nine labels of ten in every size": bool(table["labels"].min() > 0.9),
    }


def grown(frame: pd.DataFrame) -> pd.DataFrame:
    """The norms of updates by the steps of training, means over the seeds."""
    return frame.groupby("steps")[["mean", "largest"]].mean()


def norms(frame: pd.DataFrame) -> pd.DataFrame:
    """The norms by the steps of training, with what the prose says of them."""
    table = grown(frame)
    glue("norm_start", table["mean"][0])
    glue("norm_largest", table["largest"].max())
    glue("noise_there", 0.03 * table["mean"][0] / table["mean"].max())
    return table.round(2)


def peak(frame: pd.DataFrame) -> int:
    """The steps of training after which updates are largest on average."""
    return int(grown(frame)["mean"].idxmax())


def with_first(leaks: pd.DataFrame, later: pd.DataFrame) -> pd.DataFrame:
    """What leaks of the first update and of a later one, by defence and steps."""
    kinds = later[["defence", "strength", "seed"]]
    both = pd.concat([leaks.merge(kinds).assign(steps=0), later])
    return both.groupby(["defence", "steps"])[["knowing", "labels_knowing"]].mean()


def alone(later: pd.DataFrame) -> pd.Series:
    """The PSNR in dB that comes back of later updates without a defence."""
    return later[later["defence"] == "none"]["knowing"]


def later_update(leaks: pd.DataFrame, later: pd.DataFrame, steps: int) -> pd.DataFrame | None:
    """What leaks at the largest updates, with what the prose says; None where nothing was run."""
    if not len(later):
        for name in ("none", "first", "noise", "labels", "lowest", "highest"):
            glue(f"later_{name}", float("nan"))
        return None
    table = with_first(leaks, later)
    glue("later_lowest", alone(later).min())
    glue("later_highest", alone(later).max())
    glue("later_none", table["knowing"]["none", steps])
    glue("later_first", table["knowing"]["none", 0])
    glue("later_noise", table["knowing"]["noise", steps])
    glue("later_labels", 100 * table["labels_knowing"]["none", steps])
    return table.round(2)


def norm_claims(frame: pd.DataFrame) -> dict[str, bool]:
    """Whether updates grow."""
    table = grown(frame)
    larger = bool(table["largest"].max() > 2 * table["mean"][0])
    return {"updates become more than twice as large during training": larger}


def later_claims(results: pd.DataFrame, later: pd.DataFrame) -> dict[str, bool]:
    """Whether the claims on later updates hold."""
    thumb8 = results["thumb8"].mean()
    hidden = later[later["defence"] == "noise"]["knowing"].mean() < thumb8
    return {
        "without a defence some of the largest updates leak more than a thumbnail": bool(
            alone(later).max() > thumb8 + 1
        ),
        "through the noise they do not": bool(hidden),
    }
