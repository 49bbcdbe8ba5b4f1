"""Training under privacy, attacked late and again: tables, a figure, numbers and claims."""

import pandas as pd
from matplotlib.figure import Figure

from gleak import figures
from gleak.study import criterion
from gleak.study.words import name

RULES = {"zlg-bias": "labels by zlg-bias", "gleak": "labels by gleak"}  # rule -> its column


def stages_table(frame: pd.DataFrame, epsilons: dict[float, float]) -> pd.DataFrame:
    """Means over the networks, a row for each noise and stage; epsilons: of the whole training."""
    columns = ["accuracy", "labels", "guess", "psnr", "mean_colour", "thumb8"]
    means = frame.groupby(["z", "step"])[columns].mean()
    last = frame["step"].max()
    spent = [f"{epsilons[z]:,.1f}" if step == last else "" for z, step in means.index]
    means.insert(0, "ε spent", spent)
    return means.rename(columns={"labels": "labels right", "guess": "by chance"})


def stages_numbers(frame: pd.DataFrame) -> dict[str, float]:
    """Labels right and accuracy with the noise in the middle, first and last, in percent."""
    noise = sorted(frame["z"].unique())
    middle = frame[frame["z"] == noise[len(noise) // 2]]
    means = middle.groupby("step")[["labels", "guess", "accuracy", "psnr"]].mean()
    first, last = means.iloc[0], means.iloc[-1]
    return {
        "stage_z": middle["z"].iloc[0],
        "stage_steps": int(frame["step"].max()),
        "stage_networks": frame["seed"].nunique(),
        "stage_first": 100 * first["labels"],
        "stage_last": 100 * last["labels"],
        "stage_guess": 100 * last["guess"],
        "stage_accuracy": 100 * last["accuracy"],
    }


def stages_claims(frame: pd.DataFrame) -> dict[str, bool]:
    """What the least noise lets through at the start, and the others at the end."""
    means = frame.groupby(["z", "step"])[["labels", "guess", "psnr", "mean_colour"]].mean()
    above = means["labels"] - means["guess"]
    least, last = frame["z"].min(), frame["step"].max()
    late = means[means.index.get_level_values("step") == last]
    return {
        "first update, least noise: labels 20 points above chance": above[least, 0] > 0.2,
        "last update: labels no more than 20 points above chance, whatever the noise": bool(
            above[late.index].max() < 0.2
        ),
        "last update: no image above its mean colour by 3 dB": bool(
            (late["psnr"] - late["mean_colour"]).max() < 3
        ),
    }


def by_rounds(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each network, rule, and noise with a number of rounds: the labels right."""
    long = frame.melt(["z", "seed", "rounds"], list(RULES.values()), "rule", "labels right")
    names = {column: name(rule, "rule") for rule, column in RULES.items()}
    return long.assign(
        rule=long["rule"].map(names),
        row=[
            f"z = {z:g}, {n} round{'s' * (n > 1)}"
            for z, n in zip(long["z"], long["rounds"], strict=True)
        ],
    )


def rounds_dots(frame: pd.DataFrame) -> tuple[Figure, str]:
    """The share of labels right over the number of rounds, by rule and noise."""
    long = by_rounds(frame)
    gain = gains(frame)
    summary = f"From one round to the best number of them {100 * gain.max():.0f} points at most."
    return figures.dots(
        long,
        summary,
        row="row",
        value="labels right",
        series="rule",
        ends=interval,
    )


def interval(values: pd.Series) -> tuple[float, float]:
    """Both ends of the interval of a mean."""
    found = criterion.interval(values)
    return found.low, found.high


def gains(frame: pd.DataFrame) -> pd.Series:
    """By noise and rule, what the best number of rounds adds to the labels of a single one."""
    means = frame.groupby(["z", "rounds"])[list(RULES.values())].mean()
    best = means.groupby("z").max() - means.xs(1, level="rounds")
    return best.melt(ignore_index=False).set_index("variable", append=True)["value"]


def rounds_numbers(frame: pd.DataFrame) -> dict[str, float]:
    """The study's rule with the most noise: one round and the best number, in percent."""
    z = frame["z"].max()
    means = frame[frame["z"] == z].groupby("rounds")[RULES["gleak"]].mean()
    return {
        "again_z": z,
        "again_networks": frame["seed"].nunique(),
        "again_one": 100 * means.iloc[0],
        "again_best": 100 * means.max(),
        "again_rounds": int(means.idxmax()),
    }


def rounds_claims(frame: pd.DataFrame) -> dict[str, bool]:
    """Whether a second look tells more than the first."""
    best = gains(frame).groupby("z").max()
    return {
        f"z = {z:g}: several rounds name more labels than one, by 5 points or more": gain > 0.05
        for z, gain in best.items()
    }
