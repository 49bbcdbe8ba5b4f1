"""What each ingredient is worth: figures, numbers for the prose, claims, the verdict."""

import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from gleak import figures
from gleak.study import criterion
from gleak.study.book import Row, verdict
from gleak.study.experiments.ingredients import worth
from gleak.study.verdicts import setting

AXIS = "difference in PSNR (dB)"
GROUPS = ["prior", "distance", "optimiser", "start", "network", "precision"]
# name in the prose -> change, of the recorded runs
RECORDED = {
    "shallow": "3 layers",
    "deep": "9 layers",
    "gelu": "GELU",
    "norm_eval": "batch norm, eval mode",
    "longer_tanh": "tanh",
    "float64": "update in float64",
    "float16": "update in float16",
    "l1": "distance l1",
    "layer_l2": "distance layer-l2",
    "smaller_step": "step / 3",
    "larger_step": "step x 3",
    "constant": "constant step",
    "signs": "Adam without signs",
    "not_known": "labels not known",
    "weak_tv": "total variation / 4",
    "strong_tv": "total variation x 4",
    "longer_lbfgs": "L-BFGS",
    "agree": "2 restarts that agree",
}
RECORDED_ON = "2 images of cifar10-samples, convnet of 16 channels"
STARTS = ["gray start", "uniform start", "patterned start"]
IDLE = ["no clip prior", "no scale prior"]
STEADY = ["batch norm, eval mode", "update in float64", "update in float16"]


def network_words(model: str) -> str:
    """What the client trains."""
    if model == "convnet":
        return "a small convolutional network with ReLU, 16 channels wide and six layers deep"
    return model


def dots(compared: pd.DataFrame, summary: str, axis: str = AXIS) -> tuple[Figure, str]:
    """What each change is worth, a line for each."""
    return figures.dots(
        compared.rename(columns={"difference": axis}),
        summary,
        row="change",
        value=axis,
        series="group",
        lines={axis: {"base": 0}},
    )


def matching(compared: pd.DataFrame) -> tuple[Figure, str]:
    """The changes to gradient matching."""
    return dots(
        compared,
        "Total variation, distance, step and network matter by several dB; the priors on the range "
        "of pixels and the number format by next to nothing.",
    )


def searching(compared: pd.DataFrame) -> tuple[Figure, str]:
    """The changes to the feature search."""
    widths = "network" in set(compared["group"])
    more = " The width of the network and total variation matter most."
    return dots(compared, "Below zero, what costs; above, what gains." + more * widths)


def recorded(stored: pd.DataFrame) -> tuple[Figure, str]:
    """All changes to gradient matching, from the recorded runs."""
    return dots(
        stored.query("attack == 'general'"),
        "Most changes cost. A wider network and tanh gain most; batch norm in train mode, "
        "distances that average over layers and sigmoids cost most.",
        "general: difference in PSNR (dB)",
    )


def means(compared: pd.DataFrame) -> pd.Series:
    """Mean difference by change."""
    return worth(compared)["worth"].droplevel("group")


def decibels(values: pd.Series, name: str) -> str:
    """What a change is worth, in words."""
    return f"{values[name]:+.1f} dB" if name in values else "(not run)"


def matching_numbers(compared: pd.DataFrame) -> dict[str, object]:
    """What the prose names of gradient matching."""
    mean = means(compared)
    return {
        "no_tv": mean["no total variation"],
        "no_clip": mean["no clip prior"],
        "no_scale": mean["no scale prior"],
        "layers": mean["distance layer-cosine"],
        "lbfgs": mean["L-BFGS"],
        "narrow": decibels(mean, "8 channels"),
        "wide": decibels(mean, "32 channels"),
        "sigmoid": decibels(mean, "sigmoid"),
        "tanh": decibels(mean, "tanh"),
        "norm_train": decibels(mean, "batch norm, train mode"),
        "bfloat16": mean["update in bfloat16"],
        "restarts": mean["2 restarts, half as long"],
    }


def matching_claims(compared: pd.DataFrame) -> dict[str, bool]:
    """What matters, and what does not."""
    mean = means(compared)
    return {
        "total variation is worth 1 dB or more": mean["no total variation"] < -1,
        "clip and scale are worth less than 0.7 dB each": mean[IDLE].abs().max() < 0.7,
        "the mean over layers costs 2 dB or more": mean["distance layer-cosine"] < -2,
        "L-BFGS costs 1 dB or more": mean["L-BFGS"] < -1,
        "a wider network leaks 1 dB more or better": mean["32 channels"] > 1,
        "batch norm in train mode costs 3 dB or more": mean["batch norm, train mode"] < -3,
        "bfloat16 costs less than 1 dB": abs(mean["update in bfloat16"]) < 1,
    }


def search_numbers(compared: pd.DataFrame) -> dict[str, object]:
    """What the prose names of the feature search."""
    mean = means(compared)
    return {
        "search_no_tv": mean["no total variation"],
        "search_adam": mean["Adam without signs"],
        "search_step": mean["step / 3"],
        "search_narrow": decibels(mean, "8 channels"),
        "search_wide": decibels(mean, "32 channels"),
        "search_bfloat16": mean["update in bfloat16"],
        "search_told": mean["bfloat16, precision told"],
    }


def search_claims(compared: pd.DataFrame, base: float, of_matching: float) -> dict[str, bool]:
    """base, of_matching: PSNR of both bases."""
    return {
        "the feature search is ahead of the matching": base > of_matching,
        "a wider network leaks 1 dB more or better": means(compared)["32 channels"] > 1,
    }


def both(matched: pd.DataFrame, searched: pd.DataFrame) -> pd.DataFrame:
    """The rows of both attacks as they are recorded."""
    columns = ["attack", "group", "change", "seed", "psnr", "difference", "mean_colour", "thumb8"]
    rows = pd.concat([matched.assign(attack="general"), searched.assign(attack="gleak")])
    return rows[columns].round(3)


def beside_recorded(stored: pd.DataFrame, matched: pd.DataFrame, searched: pd.DataFrame) -> Styler:
    """The chapter's means beside the recorded ones."""
    columns = {}
    for attack, here in (("general", matched), ("gleak", searched)):
        of_attack = worth(stored[stored["attack"] == attack])
        columns[attack, "this page"] = worth(here)["worth"]
        columns[attack, "recorded"] = of_attack["worth"]
        columns[attack, "lowest"] = of_attack["lowest"]
        columns[attack, "highest"] = of_attack["highest"]
    every = pd.DataFrame(columns).reindex(worth(stored).index).loc[GROUPS]
    every.columns.names = ["attack", ""]
    return every.style.format("{:+.1f}", na_rep="–")


def longer(stored: pd.DataFrame) -> pd.Series:
    """Mean difference by change of the recorded runs of `general`."""
    return stored.query("attack == 'general'").groupby("change")["difference"].mean()


def recorded_numbers(stored: pd.DataFrame) -> dict[str, float]:
    """What the prose names of the recorded runs."""
    mean = longer(stored)
    numbers = {f"recorded_{name}": mean[change] for name, change in RECORDED.items()}
    return numbers | {"recorded_starts": mean[STARTS].abs().max()}


def recorded_claims(stored: pd.DataFrame) -> dict[str, object]:
    """What only the recorded runs tell."""
    mean = longer(stored)
    of_attack = mean.drop(mean.filter(regex="channels|layers|sigmoid|tanh|GELU|batch norm").index)
    steady = mean[[*STEADY, *STARTS]].abs().max() < 0.5
    return {
        "the worst change to the attack itself": of_attack.idxmin(),
        "nine layers cost 2 dB or more": mean["9 layers"] < -2,
        "batch norm in eval mode, starts, digits: less than 0.5 dB": steady,
        "clip and scale are worth less than 0.7 dB each": mean[IDLE].abs().max() < 0.7,
    }


def bases(runs: pd.DataFrame, attack: str) -> pd.DataFrame:
    """The runs of this page without a change."""
    return runs[runs["change"] == "base"].assign(attack=attack)


def recorded_bases(stored: pd.DataFrame) -> pd.DataFrame:
    """The same of the recorded runs, which have the difference to their seed's base."""
    base = stored.assign(psnr=stored["psnr"] - stored["difference"])
    scores = ["psnr", "mean_colour", "thumb8"]
    return base.groupby(["attack", "seed"], as_index=False)[scores].mean()


def verdict_on_images(
    runs: pd.DataFrame,
    search_runs: pd.DataFrame,
    stored: pd.DataFrame,
    *,
    dataset: str,
    model: str,
    size: int,
) -> None:
    """Claim 2: whether the attacks work whose ingredients are measured here.

    runs: of gradient matching, search_runs: of the feature search, stored: the recorded ones.
    """
    here = pd.concat([bases(runs, "general"), bases(search_runs, "gleak")])
    name = "convnet of 16 channels" if model == "convnet" else model
    batches = {
        f"this page: {size} images of {dataset}, {name}, untrained": (size, here),
        f"recorded: {RECORDED_ON}, untrained": (2, recorded_bases(stored)),
    }
    rows: list[Row] = [
        (
            setting(words, images=images, more=f"on {name}"),
            criterion.image_columns(found, ["seed"]),
        )
        for words, (images, found) in batches.items()
    ]
    verdict([2], rows)
