"""Images from FedAvg weights: tables, figures, numbers for the prose, claims and verdicts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from gleak import figures
from gleak.inversion import Inversion
from gleak.study import criterion
from gleak.study.book import Row, verdict
from gleak.study.verdicts import setting

PLAIN, UNDONE = ("inverting-gradients", "equivalent"), ("gleak", "unrolled")
ATTACKS = ["equivalent", "middle", "gleak"]  # of the recorded runs
ALL_MODELS = ["equivalent", "middle", "path", "sme", "nl-sme", "unrolled", "gleak"]
FALL = 2  # dB below the best way of the same seed: lost
GOOD = 20  # dB: a good image

Outcome = tuple[Inversion, pd.DataFrame]


def way_name(way: Sequence[float]) -> str:
    """Epochs, batch size and learning rate in one word."""
    return ", ".join(str(number or "all") for number in way)


# The update models on the client's own images.


def fits(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `fit`, to two digits."""
    shown = frame.assign(lr=frame.lr.map("{:g}".format))
    return shown.set_index(["lr", "local_epochs"]).map("{:.2g}".format)


def fit(frame: pd.DataFrame) -> tuple[Figure, str]:
    """The error of the update models over the way of the weights."""
    lines = several(frame).sort_values("moved").set_index("moved")
    lines = lines[["equivalent", "middle", "path", "unrolled"]]
    summary = "The equivalent gradient is worst, the simulation best by orders of magnitude."
    return figures.curves(lines, "|WT - W0| / |W0|", "relative error of the update", summary)


def several(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with more than one step; one has no drift."""
    return frame[frame.local_epochs > 1]


def fit_claims(frame: pd.DataFrame, reference: bool) -> dict[str, bool]:
    """Where each update model is right."""
    one = frame[(frame.local_epochs == 1) & (frame.lr >= 0.001)]
    far, more = frame.loc[frame.moved.idxmax()], several(frame)
    steady = more[(more.lr >= 0.001) & (more.cosine > 0.8)]  # ways that do not turn
    half = steady.middle.mean() < steady.equivalent.mean() / 2
    return {
        "one step: the equivalent gradient is exact to 1 %": one.equivalent.max() < 0.01,
        "farthest way: wrong by more than 20 %": not reference or far.equivalent > 0.2,
        "ways that hardly turn: half the error in the middle": not reference or half,
        "farthest way, simulated: right to 1 %": not reference or far.unrolled < 0.01,
    }


# The chapter's own attacks.


def runs(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Settings and rows of `attacked`, with the way in one word."""
    frame = pd.DataFrame(rows)
    return frame.assign(**{"E, B, lr": frame.way.map(way_name)})


def overview(table: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds."""
    return table.groupby(["E, B, lr", "attack", "update_model"], sort=False).agg(
        seeds=("seed", "count"),
        PSNR=("psnr", "mean"),
        lowest_seed=("psnr", "min"),
        SSIM=("ssim", "mean"),
        above_20_dB=("good", "mean"),
        thumbnail=("thumb8", "mean"),
        mean_colour=("mean_colour", "mean"),
        CPU_seconds=("seconds", "mean"),
    )


def pictures(table: pd.DataFrame, outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
    """The outcomes of the last way and the first seed, by update model."""
    last = table["E, B, lr"].iloc[-1]
    rows = zip(table.to_dict("records"), outcomes, strict=True)
    return {
        "drift undone" if row["attack"] == "gleak" else row["update_model"]: outcome
        for row, outcome in rows
        if row["E, B, lr"] == last and row["seed"] == 1
    }


def means(table: pd.DataFrame) -> pd.Series:
    """Mean PSNR by way, attack and update model."""
    return table.groupby(["E, B, lr", "attack", "update_model"]).psnr.mean()


def ends(table: pd.DataFrame) -> tuple[str, str]:
    """The first and the last way that were run."""
    return table["E, B, lr"].iloc[0], table["E, B, lr"].iloc[-1]


def near_and_far(table: pd.DataFrame) -> dict[str, float]:
    """What both attacks reach on the first and on the last way."""
    mean, (first, last) = means(table), ends(table)
    return {
        "near_plain": mean[(first, *PLAIN)],
        "near_undone": mean[(first, *UNDONE)],
        "far_plain": mean[(last, *PLAIN)],
        "far_undone": mean[(last, *UNDONE)],
    }


def numbers(table: pd.DataFrame) -> dict[str, object]:
    """For the prose below the table."""
    last = ends(table)[1]
    return {
        **near_and_far(table),
        "thumbnail": table.thumb8.mean(),
        "far_cosine": table[table["E, B, lr"] == last].cosine.mean(),
        "far_way": last,
    }


def claims(table: pd.DataFrame, reference: bool) -> dict[str, bool]:
    """Whether undoing the drift pays."""
    mean, (_, last), ends_at = means(table), ends(table), near_and_far(table)
    above = ends_at["near_undone"] - table.thumb8.mean()
    plain = ends_at["far_plain"]
    gain = ends_at["far_undone"] - plain
    line = mean[last].drop("equivalent", level="update_model")["inverting-gradients"].max()
    return {
        "near way: gleak 1 dB or more above the thumbnails": not reference or above > 1,
        "farthest way: undoing the drift gains 2 dB or more": not reference or gain > 2,
        "points of the line gain 2 dB or more": not reference or line > plain + 2,
    }


def gradient_numbers(table: pd.DataFrame, sgd: float) -> dict[str, Any]:
    """sgd: what `gleak` reaches from a gradient, in dB."""
    reached = near_and_far(table)
    return {
        "sgd": sgd,
        "near_way": ends(table)[0],
        "near_loss": sgd - reached["near_undone"],
        "far_loss": sgd - reached["far_undone"],
    }


def gradient_claims(table: pd.DataFrame, sgd: float, reference: bool) -> dict[str, bool]:
    """How much is lost against a client that sends its gradient."""
    lost = gradient_numbers(table, sgd)
    return {
        "near way: 1 dB below the gradient at most": not reference or lost["near_loss"] < 1,
        "farthest way: 6 dB at most": not reference or lost["far_loss"] < 6,
    }


def one_step_numbers(single: pd.Series) -> dict[str, float]:
    """single: PSNR by kind (FedSGD, FedAvg) and attack."""
    return {
        "one_gradient": single["FedSGD", "inverting-gradients"],
        "one_step": single["FedAvg", "inverting-gradients"],
        "one_gradient_gleak": single["FedSGD", "gleak"],
        "one_step_gleak": single["FedAvg", "gleak"],
    }


def one_step_claims(single: pd.Series, reference: bool) -> dict[str, bool]:
    """Whether one step is one gradient."""
    apart = single["FedSGD"] - single["FedAvg"]
    return {
        f"one step, {attack}: 0.5 dB below FedSGD at most": not reference or apart[attack] < 0.5
        for attack in ("inverting-gradients", "gleak")
    }


def local_batches(table: pd.DataFrame) -> pd.DataFrame:
    """The columns that matter for local batches."""
    columns = ["moved", "cosine", "psnr", "ssim", "mean_colour", "thumb8", "seconds"]
    return table[["E, B, lr", *columns]]


def other_cases(frame: pd.DataFrame, given: float, steps: int) -> pd.DataFrame:
    """The rows of `other_case` below the case that the first table has.

    given: its PSNR, also that of restored labels that are the true ones: equal labels, equal
    images. steps: of the trained network.
    """
    words = {"given": "true", "restored": "restored", "wrong": "one wrong"}
    table = pd.DataFrame(
        {
            "network": frame.steps.map({0: "untrained", steps: f"{steps} steps"}),
            "labels": frame.labels.map(words),
            "attack": frame.attack,
            "PSNR": frame.psnr,
            "thumbnail": frame.thumb8,
        }
    )
    thumbnail = table.thumbnail[frame.steps == 0].iloc[0]
    above = [
        ("untrained", labels, "gleak", given, thumbnail)
        for labels in ("true", "restored")
        if labels == "true" or "restored" not in set(frame.labels)
    ]
    return pd.concat([pd.DataFrame(above, columns=table.columns), table], ignore_index=True)


def other_claims(
    table: pd.DataFrame, cases: pd.DataFrame, right: bool, reference: bool
) -> dict[str, bool]:
    """right: whether all labels were restored from the weights."""
    wrong = cases.PSNR[cases.labels == "one wrong"].item()
    worse = near_and_far(table)["near_plain"] - wrong
    return {
        "labels restored exactly from the weights": not reference or right,
        "one wrong label costs matching 1 dB or more": not reference or worse > 1,
    }


# The recorded runs.


def whole_batches(stored: pd.DataFrame) -> pd.DataFrame:
    """The recorded table with B = K where all images are in one batch."""
    return stored.assign(B=stored.B.where(stored.B > 0, stored.K))


def base(stored: pd.DataFrame, only: str = "K == 4") -> pd.DataFrame:
    """The runs of the untrained convnet with labels given, and what else is asked of them."""
    ours = "network == 'convnet' and steps == 0 and labels == 'given'"
    return stored.query(f"{ours} and {only}")


def of_ways(stored: pd.DataFrame) -> pd.DataFrame:
    """The runs over epochs and learning rate."""
    return base(stored, "K == 4 and B == 4 and lr in [0.0001, 0.001, 0.01, 0.1]")


def ways(stored: pd.DataFrame) -> tuple[Figure, str]:
    """PSNR over epochs and learning rate, a field for each."""
    runs = of_ways(stored)
    named = {
        attack: runs[runs.attack == attack]
        .pivot_table("psnr", "E", "lr")
        .rename_axis(index="epochs", columns="learning rate")
        for attack in ATTACKS
    }
    summary = (
        "All three fall with epochs times rate, gleak from the highest values; at a rate of 0.1 "
        "and ten epochs or more nothing is restored by any."
    )
    return figures.heatmaps(named, "PSNR (dB)", summary)


def turned(stored: pd.DataFrame) -> pd.Series:
    """One less the cosine of the client's first and last gradient."""
    return (1 - stored.cosine).clip(lower=1e-4)


def lost_at(stored: pd.DataFrame) -> float:
    """The least turn at which matching the equivalent gradient has lost `FALL` dB."""
    four = base(stored)
    matched = four[four.attack == "equivalent"]
    fallen = matched.psnr < matched.groupby("seed").psnr.transform("max") - FALL
    return turned(four)[matched.index[fallen]].min()


def drift(stored: pd.DataFrame) -> tuple[Figure, str]:
    """PSNR against both measures of the drift."""
    four = base(stored)
    with plt.rc_context(figures.STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(7.5, 3), sharey=True, layout="constrained")
        for attack, marker in {"equivalent": "s", "middle": "^", "sme": "x", "gleak": "o"}.items():
            chosen = four.attack == attack
            for axis, drifted in zip(axes, (four.moved, turned(four)), strict=True):
                axis.plot(drifted[chosen], four.psnr[chosen], marker, label=attack, alpha=0.7)
        for axis in axes:
            axis.set_xscale("log")
            axis.axhline(four.thumb8.mean(), color="k", linestyle=":", linewidth=1)
            axis.axhline(four.mean_colour.mean(), color="k", linestyle="--", linewidth=1)
        axes[0].set(xlabel="|WT - W0| / |W0|", ylabel="PSNR (dB)")
        axes[1].set(xlabel="1 - cosine of first and last gradient")
        axes[1].legend(frameon=False, fontsize=7)
    alt = (
        "Two panels of marks, PSNR over drift. All attacks keep their level over several orders of "
        "magnitude, gleak the highest for some seeds; then matching the equivalent gradient falls "
        "first, and on the farthest ways all are below a flat colour."
    )
    return figure, alt


def tabled(rows: pd.DataFrame, by: list[str], attacks: list[str] = ATTACKS) -> pd.DataFrame:
    """Mean PSNR of the attacks, over the seeds that all of them ran with, and what leaks anyway."""
    each = rows[rows.attack.isin(attacks)].pivot_table("psnr", [*by, "seed"], "attack")
    each = each.reindex(columns=attacks)
    ran = each.notna().sum(axis=1)
    each = each[ran == ran.groupby(by).transform("max")]
    about = rows.groupby(by).agg(flat=("mean_colour", "mean"), thumbnail=("thumb8", "mean"))
    about.insert(0, "seeds", each.groupby(by).size())
    return about.join(each.groupby(by).mean())


def styled(table: pd.DataFrame) -> Styler:
    """One digit, and rates as people write them."""
    return table.style.format(precision=1, na_rep="–").format_index("{:g}", level="lr")


def by_way(stored: pd.DataFrame) -> pd.DataFrame:
    """The runs over epochs and rate as a table, with the cosine of first and last gradient."""
    runs = of_ways(stored)
    table = tabled(runs, ["E", "lr"])
    table["cosine"] = runs.groupby(["E", "lr"]).cosine.mean()
    return table


def way_numbers(stored: pd.DataFrame) -> dict[str, object]:
    """Who is ahead where, and how far the seeds are apart."""
    table = by_way(stored)
    straight = table[table.cosine > 0.99]
    overtaken = table[(table.middle > table.gleak + 0.5) & (table.middle > table.flat)]
    grouped = of_ways(stored).query("lr <= 0.01").groupby(["attack", "E", "lr"])
    apart = grouped.psnr.agg(["min", "max"])
    apart = (apart["max"] - apart["min"]).groupby("attack").mean()
    return {
        "fall": FALL,
        "turned_lost": lost_at(stored),
        "gain_straight": float((straight.gleak - straight.equivalent).mean()),
        "overtaken": "; ".join(f"E {e}, lr {lr:g}" for e, lr in overtaken.index) or "none",
        "apart_gleak": float(apart["gleak"]),
        "apart_matching": float(apart["equivalent"]),
    }


def sizes(stored: pd.DataFrame) -> Styler:
    """Over the numbers of images and their batches."""
    runs = base(stored, "E == 5 and K <= 16 and lr in [0.001, 0.01]")
    return styled(tabled(runs, ["K", "B", "lr"]))


def by_labels(stored: pd.DataFrame) -> Styler:
    """Over what the attacker knows of the labels."""
    named = stored.query("network == 'convnet' and steps == 0 and K == 4 and B == 4 and E == 5")
    return styled(tabled(named[named.lr.isin([0.001, 0.01])], ["labels", "lr"]))


def networks(stored: pd.DataFrame) -> Styler:
    """A trained convnet, and the LeNet."""
    runs = stored.query("steps > 0 or network == 'lenet'")
    return styled(tabled(runs, ["network", "steps", "E", "lr"]))


def of_models(stored: pd.DataFrame) -> pd.DataFrame:
    """The runs of all update models."""
    return base(stored, "K == 4 and E in [5, 10] and lr in [0.01, 0.03]")


def update_models(stored: pd.DataFrame) -> Styler:
    """All update models, over epochs and rate."""
    table = tabled(of_models(stored), ["E", "lr"], ALL_MODELS)
    return styled(table.drop(columns=["flat", "thumbnail"]))


def model_seconds(stored: pd.DataFrame) -> Styler:
    """What a search through each update model takes."""
    seconds = of_models(stored).groupby("attack").cpu_seconds.mean().reindex(ALL_MODELS)
    return seconds.to_frame("CPU seconds").T.style.format(precision=0)


def rate_hidden(stored: pd.DataFrame) -> pd.DataFrame:
    """Attacks that know the rate beside those that do not."""
    runs = base(stored, "K == 4 and B == 4 and E == 5 and lr in [0.001, 0.01]")
    return tabled(runs, ["lr"], ["middle", "sme, no lr", "gleak", "gleak, lr scanned"])


def fifty(stored: pd.DataFrame) -> pd.DataFrame:
    """Fifty images."""
    return tabled(stored[stored.K == 50], ["lr"], ["equivalent", "middle", "sme"])


def fifty_numbers(stored: pd.DataFrame) -> dict[str, float]:
    """The best of fifty images, the thumbnails, and one flat colour."""
    many = fifty(stored)
    return {
        "fifty_best": float(many[["equivalent", "middle", "sme"]].max(axis=None)),
        "fifty_thumbnail": many.thumbnail.mean(),
        "fifty_flat": many.flat.mean(),
        "fifty_good": 100 * stored[stored.K == 50].above_20.max(),
        "good": GOOD,
    }


def recorded_claims(stored: pd.DataFrame) -> dict[str, bool]:
    """What the recorded runs say."""
    table = by_way(stored)
    little = table[table.cosine > 0.99].query("lr >= 0.001")
    ahead = bool((little.gleak > little.equivalent + 1).all())
    lost = table[table.equivalent < table.equivalent.max() - FALL]
    gained = lost[["middle", "gleak"]].max(axis=1) - lost.equivalent
    same = stored[(stored.attack == "gleak") & stored.labels.isin(["given", "restored"])]
    same = same[same.seed.isin(same.seed[same.labels == "restored"])]
    same = same.pivot_table("psnr", ["network", "steps", "K", "B", "E", "lr"], "labels").dropna()
    hidden = rate_hidden(stored)
    dearer = (hidden["gleak"] - hidden["gleak, lr scanned"]).max()
    alike = bool((same.given - same.restored).abs().max() < 0.1)
    another = bool((gained > 1).all())
    return {
        "hardly any turn: gleak 1 dB ahead in each way": ahead,
        "where matching at the start has lost 2 dB, another gains 1 dB": another,
        "restored labels, the images of true ones": alike,
        "a scanned rate costs less than 0.5 dB": bool(dearer < 0.5),
    }


LITTLE = 0.9  # cosine of the client's first and last gradient: above it, there is little drift


def drifts(runs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows with little drift and those with much, in words."""
    for words, chosen in (
        ("little drift", runs.cosine > LITTLE),
        ("much drift", runs.cosine <= LITTLE),
    ):
        if chosen.any():
            yield words, runs[chosen]


def recorded_rows(stored: pd.DataFrame) -> list[tuple[bool, Row]]:
    """Whether trained, and a row, for each network, number of images and drift, labels given.

    Rates and epochs of a seed are averaged. The published way is the equivalent gradient; a cosine
    search through it stands for the attack on it.
    """
    rows: list[tuple[bool, Row]] = []
    given = stored[stored.labels == "given"]
    for (network, steps, size), runs in given.groupby(["network", "steps", "K"], sort=False):
        for drift, chosen in drifts(runs):
            state = f"trained for {steps} steps" if steps else "untrained"
            words = f"recorded: {size} images, {network}, {state}, {drift}"
            where = setting(
                words, images=size, trained=bool(steps), weights=True, more=f"with {drift}"
            )
            found = criterion.image_columns(chosen, ["seed"], "equivalent", match=["B", "E", "lr"])
            rows.append((bool(steps), (where, found)))
    return rows


def page_rows(table: pd.DataFrame, model: str, images: int) -> list[Row]:
    """A row for each way of training of the page; images: of the client."""
    rows: list[Row] = []
    named = table.assign(attack=table.attack.where(table.attack == "gleak", table.update_model))
    for way, runs in named.groupby("E, B, lr", sort=False):
        words = f"this page: {images} images, {model}, untrained, E, B, rate: {way}"
        drift = "little drift" if runs.cosine.mean() > LITTLE else "much drift"
        where = setting(words, images=images, weights=True, more=f"with {drift}")
        rows.append((where, criterion.image_columns(runs, ["seed"], "equivalent")))
    return rows


def verdict_on_weights(table: pd.DataFrame, stored: pd.DataFrame, model: str, images: int) -> None:
    """Claim 3, and of trained networks claim 6, from this page's runs and the recorded ones."""
    rows = recorded_rows(stored)
    untrained = [row for trained, row in rows if not trained]
    verdict([3], [*untrained, *page_rows(table, model, images)])
    trained = [row for trained, row in rows if trained]
    if trained:
        verdict([3, 6], trained)
