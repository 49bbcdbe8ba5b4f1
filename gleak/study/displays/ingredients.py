"""What each ingredient is worth: figures, a table, numbers for the prose, claims, the verdict."""

import re

import pandas as pd
from matplotlib.figure import Figure

from gleak import figures
from gleak.study import criterion
from gleak.study.book import Row, verdict
from gleak.study.criterion import Interval
from gleak.study.displays.images_fedsgd import interval_ends
from gleak.study.experiments.ingredients import CHANGES, Shown, worth
from gleak.study.verdicts import setting
from gleak.study.words import name, series

NETWORK = "convnet of three layers and 64 channels"
RECORDED_ON = f"one CIFAR image, {NETWORK}"
ATTACKS = ("general", "gleak")
PRIORS = ["no total variation", "no clip", "no scale"]
NOT_RUN = "was not recorded"
BASELINES = {"8×8 thumbnail": "thumb8", "mean colour": "mean_colour"}
# the rows of the small table, in the order of the chapter's question
TABLED = {
    "general": [
        "base",
        "no total variation",
        "no clip",
        "no scale",
        "no prior at all",
        "steps without signs",
        "2 restarts, half as long",
    ],
    "gleak": ["base", "no total variation", "no places of maxima", "no closed form at all"],
}


def of_attack(stored: pd.DataFrame, attack: str) -> pd.DataFrame:
    """The recorded runs of one attack."""
    return stored[stored["attack"] == attack]


def pictures(shown: Shown) -> tuple[Figure, str]:
    """The images of the seeds, and what each attack with its change restored of them."""
    batch, results = shown
    return figures.comparison(batch, dict(results))


def differences(stored: pd.DataFrame, attack: str) -> tuple[Figure, str]:
    """What each change to an attack is worth: the mean over the networks with its interval."""
    runs = of_attack(stored, attack).query("change != 'base'")
    axis = "change of PSNR (dB)"
    mean = runs.groupby("change")["difference"].mean()
    summary = (
        f"Most is lost by {mean.idxmin()}, {mean.min():+.0f} dB; most is gained by "
        f"{mean.idxmax()}, {mean.max():+.0f} dB."
    )
    return figures.dots(
        runs.rename(columns={"difference": axis}),
        summary,
        row="change",
        value=axis,
        series="group",
        lines={"base": 0},
        ends=interval_ends,
    )


def summary(stored: pd.DataFrame) -> pd.DataFrame:
    """A few changes with their intervals, and what leaks nothing, by attack."""
    rows = {}
    for attack, changes in TABLED.items():
        runs, words = of_attack(stored, attack), name(attack, "attack")
        mean, found = runs.groupby("change")["psnr"].mean(), worth(runs).droplevel("group")
        for change in filter(mean.index.__contains__, changes):
            row = {"PSNR (dB)": mean[change]}
            if change != "base":
                low, high = found["low"][change], found["high"][change]
                row["change (dB)"] = f"{found['mean'][change]:+z.1f}"
                row["95 % interval"] = f"{low:+z.1f} to {high:+z.1f}"
            rows[words, "as it is" if change == "base" else change] = row
    base = of_attack(stored, "general").query("change == 'base'")
    for words, column in BASELINES.items():
        rows["no leak", words] = {"PSNR (dB)": base[column].mean()}
    table = pd.DataFrame.from_dict(rows, orient="index").fillna("")
    return table.rename_axis(["", " "])


def slug(attack: str, change: str) -> str:
    """What the prose calls a change.

    >>> slug("general", "step x 3")
    'general_step_x_3'
    """
    return f"{attack}_{re.sub(r'[^0-9a-z]+', '_', change.lower())}"


def said(found: Interval) -> str:
    """What a change does, in words that its interval supports.

    >>> said(Interval(-3.0, -4.0, -2.0, 5))
    'costs 3.0 dB (2.0 to 4.0)'
    >>> said(Interval(0.4, -0.5, 1.0, 5))
    'is not shown to matter (+0.4 dB, -0.5 to +1.0)'
    >>> said(Interval(2.0, 2.0, 2.0, 1))
    'was measured on 1 network only (+2.0 dB)'
    """
    if found.n < criterion.LEAST:
        networks = criterion.counted(int(found.n), "network")
        return f"was measured on {networks} only ({found.mean:+z.1f} dB)"
    if found.low <= 0 <= found.high:
        ends = f"{found.mean:+z.1f} dB, {found.low:+z.1f} to {found.high:+z.1f}"
        return f"is not shown to matter ({ends})"
    least, most = sorted((abs(found.low), abs(found.high)))
    verb = "gains" if found.mean > 0 else "costs"
    return f"{verb} {abs(found.mean):.1f} dB ({least:.1f} to {most:.1f})"


def intervals(stored: pd.DataFrame, attack: str) -> dict[str, Interval]:
    """What each change to an attack is worth."""
    found = worth(of_attack(stored, attack)).droplevel("group")
    return {change: Interval(*row) for change, row in found.iterrows()}


def numbers(stored: pd.DataFrame) -> dict[str, object]:
    """What the prose names of the recorded runs: bases, baselines, and what each change does."""
    told: dict[str, object] = {"networks": stored["seed"].nunique()}
    for attack in ATTACKS:
        runs = of_attack(stored, attack)
        base = runs[runs["change"] == "base"]
        told |= {attack: base["psnr"].mean(), "flat": base["mean_colour"].mean()}
        told["thumb8"] = base["thumb8"].mean()
        found = intervals(stored, attack)
        for change in CHANGES[attack]:
            told[slug(attack, change)] = said(found[change]) if change in found else NOT_RUN
        attacker = [c for c in found if CHANGES[attack][c].group not in ("client", "effort")]
        for verb in ("costs", "gains", "is not"):
            told[f"{attack}_{verb.split()[-1]}"] = series(
                [change for change in attacker if said(found[change]).startswith(verb)]
            )
    return told


def claims(stored: pd.DataFrame) -> dict[str, bool]:
    """What the recorded runs show."""
    bases = stored[stored["change"] == "base"]
    ahead = (bases["psnr"] - bases["thumb8"]).groupby(bases["attack"]).min()
    mean = stored.groupby(["attack", "change"])["psnr"].mean()
    closed = float(mean["gleak", "base"] - mean["gleak", "no closed form at all"])
    recorded = [change for change in PRIORS if ("general", change) in mean]
    priors = [mean["general", "base"] - mean["general", change] for change in recorded]
    return {
        "both attacks are above the thumbnails on every network": bool(ahead.min() > 0),
        "the study's attack is ahead of the paper's": bool(
            mean["gleak", "base"] > mean["general", "base"]
        ),
        "its closed form is worth 3 dB or more": closed > 3,
        "no prior of the paper's attack is worth as much": bool(max(priors, default=0) < closed),
    }


def shown_numbers(shown: Shown) -> dict[str, float]:
    """Mean PSNR on this page, in dB: of the first attack, of the last, and of the thumbnails."""
    reached = [scores["psnr"].mean() for _, scores in shown.results.values()]
    bar = next(iter(shown.results.values()))[1]["thumb8"].mean()
    return {"shown_paper": reached[0], "shown_study": reached[-1], "shown_thumbnail": bar}


def shown_claims(shown: Shown) -> dict[str, bool]:
    """What the pictures of this page show."""
    found = shown_numbers(shown)
    reached = min(found["shown_paper"], found["shown_study"])
    above = reached > found["shown_thumbnail"] + 3
    return {"the paper's attack and the study's are 3 dB above the thumbnails": bool(above)}


def bases(stored: pd.DataFrame) -> pd.DataFrame:
    """The runs without a change."""
    return stored[stored["change"] == "base"]


def verdict_on_images(stored: pd.DataFrame) -> None:
    """Claim 2: whether the attacks work whose ingredients are measured here."""
    columns = criterion.image_columns(bases(stored), ["seed"])
    where = setting(f"recorded runs: {RECORDED_ON}, untrained", images=1, more=f"on a {NETWORK}")
    rows: list[Row] = [(where, columns)]
    verdict([2], rows)
