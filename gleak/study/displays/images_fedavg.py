"""Images from FedAvg weights: tables, figures, numbers for the prose, claims and verdicts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from gleak import figures
from gleak.inversion import Inversion
from gleak.study import criterion, words
from gleak.study.book import Row, verdict
from gleak.study.verdicts import setting

PLAIN, UNDONE = ("inverting-gradients", "equivalent"), ("gleak", "unrolled")
ATTACKS = ["equivalent", "middle", "gleak"]  # of the recorded runs
WORDS = {name: words.name(name, "procedure") for name in ATTACKS}
ALL_MODELS = ["equivalent", "middle", "path", "sme", "nl-sme", "unrolled", "gleak"]
FALL = 2  # dB below the best way of the same seed: lost
GOOD = 20  # dB: a good image

Outcome = tuple[Inversion, pd.DataFrame]


def way_name(way: Sequence[float]) -> str:
    """Epochs, batch size and learning rate in one word."""
    return ", ".join(str(number or "all") for number in way)


# The update models on the client's own images.


def fit(frame: pd.DataFrame) -> tuple[Figure, str]:
    """The error of the update models over the way of the weights."""
    lines = several(frame).sort_values("moved").set_index("moved")
    models = ["equivalent", "middle", "path", "unrolled"]
    lines = lines[models].rename(columns=lambda code: words.name(code, "procedure"))
    summary = "The equivalent gradient is worst, the simulation best by orders of magnitude."
    return figures.curves(
        lines, "change of the weights, relative", "error of the update, relative", summary
    )


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
    """What each attack reaches on each way, in dB, and what leaks without any."""
    named = table.assign(procedure=procedures(table))
    reached = named.pivot_table("psnr", "E, B, lr", "procedure", sort=False)[ATTACKS]
    plain = named.groupby("E, B, lr", sort=False)[["mean_colour", "thumb8"]].mean()
    shown = reached.join(plain).rename_axis(index="E, B, rate", columns=None)
    return shown.rename(columns=in_decibel(WORDS))


def procedures(table: pd.DataFrame) -> pd.Series:
    """The code name of each run's procedure."""
    return table.attack.where(table.attack == "gleak", table.update_model)


def in_decibel(names: Mapping[str, str]) -> dict[str, str]:
    """Readers' words with their unit."""
    return {code: f"{name} (dB)" for code, name in names.items()}


def pictures(table: pd.DataFrame, outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
    """The outcomes of the last way, by procedure."""
    last = (table["E, B, lr"] == table["E, B, lr"].iloc[-1]).tolist()
    named = zip(last, procedures(table), outcomes, strict=True)
    return {WORDS[procedure]: outcome for here, procedure, outcome in named if here}


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


def numbers(table: pd.DataFrame) -> dict[str, Any]:
    """For the prose below the table."""
    (first, last), mean = ends(table), means(table)
    return {
        **near_and_far(table),
        "near_way": first,
        "far_way": last,
        "far_middle": mean[(last, PLAIN[0], "middle")],
        "thumbnail": table.thumb8.mean(),
        "colour": table.mean_colour.mean(),
        "far_cosine": table[table["E, B, lr"] == last].cosine.mean(),
    }


def claims(table: pd.DataFrame, reference: bool) -> dict[str, bool]:
    """Whether undoing the drift pays on the ways of the page."""
    if not reference:
        return {}
    found = numbers(table)
    far = found["far_plain"]
    return {"far way: the middle gains 2 dB or more": found["far_middle"] > far + 2}


def longer_numbers(fresh: pd.DataFrame, seed: int) -> dict[str, float]:
    """What a longer search reaches from the gradient of the page's network, and of others.

    fresh: the recorded runs of chapter 04 on these images; in dB.
    """
    runs = fresh[(fresh.case == "convnet-4") & (fresh.attack == "gleak")].set_index("seed")
    others = runs.psnr.drop(seed, errors="ignore")
    return {
        "longer": float(runs.psnr.get(seed, math.nan)),
        "longer_iterations": int(runs.iterations.max()),
        "longer_low": others.min(),
        "longer_high": others.max(),
        "longer_others": len(others),
    }


def longer_claims(longer: Mapping[str, float], table: pd.DataFrame) -> dict[str, bool]:
    """Whether the gradient holds what the short search of the page does not find."""
    bar = numbers(table)["thumbnail"] + 2
    reached = min(longer["longer"], longer["longer_low"])
    return {"a longer search of the gradient: 2 dB or more above the thumbnails": reached > bar}


def gradient_numbers(table: pd.DataFrame, sgd: float) -> dict[str, Any]:
    """sgd: what `gleak` reaches from a gradient, in dB."""
    reached = near_and_far(table)
    return {
        "sgd": sgd,
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
    columns = ["mean_colour", "thumb8", "psnr"]
    return table.set_index("E, B, lr")[columns].rename_axis("E, B, rate")


def recorded_local_batches(stored: pd.DataFrame) -> dict[str, float]:
    """PSNR of the study's procedure on eight images in local batches of four, and thumbnails."""
    runs = base(stored, "K == 8 and B == 4 and lr == 0.001 and attack == 'gleak'")
    return {"more_recorded": runs.psnr.mean(), "more_bar": runs.thumb8.mean()}


def other_cases(frame: pd.DataFrame, steps: int) -> pd.DataFrame:
    """The rows of `other_case` in words; steps: of the trained network."""
    known = {"given": "true", "restored": "restored", "wrong": "one wrong"}
    return pd.DataFrame(
        {
            "network": frame.steps.map({0: "untrained", steps: f"trained for {steps} steps"}),
            "labels": frame.labels.map(known),
            "search": frame.attack.map({"gleak": WORDS["gleak"]}).fillna(WORDS["equivalent"]),
            "8×8 thumbnail (dB)": frame.thumb8,
            "PSNR (dB)": frame.psnr,
        }
    ).set_index(["network", "labels", "search"])


def other_claims(frame: pd.DataFrame, right: bool, reference: bool) -> dict[str, bool]:
    """right: whether all labels were restored from the weights."""
    if not reference:
        return {}
    untrained = frame[(frame.steps == 0) & (frame.attack != "gleak")].set_index("labels").psnr
    return {
        "labels restored exactly from the weights": right,
        "one wrong label costs matching 1 dB or more": untrained["given"] > untrained["wrong"] + 1,
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
        WORDS[attack]: runs[runs.attack == attack]
        .pivot_table("psnr", "E", "lr")
        .rename_axis(index="epochs", columns="learning rate")
        for attack in ATTACKS
    }
    summary = (
        "All three fall with epochs times rate, the study's from the highest values; at a rate of "
        "0.1 and ten epochs or more nothing is restored by any."
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
    """PSNR against how far the client's gradient turned, a panel for each procedure.

    A dot for each network, a line through the medians of bins of the turn.
    """
    four = base(stored)
    turn = turned(four)
    edges = [0, 1e-3, 1e-2, 1e-1, 0.5, 2.1]
    places = [3e-4, 3e-3, 3e-2, 0.22, 0.9]
    with plt.rc_context(figures.STYLE):
        figure, axes = plt.subplots(
            len(ATTACKS), 1, figsize=(4.8, 6), sharex=True, sharey=True, layout="constrained"
        )
        for number, (axis, attack) in enumerate(zip(axes, ATTACKS, strict=True)):
            rows = four.attack == attack
            axis.plot(turn[rows], four.psnr[rows], "o", ms=3, alpha=0.5, color=f"C{number}")
            middle = four.psnr[rows].groupby(pd.cut(turn[rows], edges, labels=False)).median()
            axis.plot([places[i] for i in middle.index], middle, "-", color=f"C{number}")
            axis.axhline(four.thumb8.mean(), color="0.5", linestyle=":", label="8×8 thumbnails")
            axis.axhline(four.mean_colour.mean(), color="0.5", linestyle="--", label="mean colour")
            axis.set(title=WORDS[attack], xscale="log", ylabel="PSNR (dB)")
            figures.plain_ticks(axis.xaxis)
        axes[-1].set_xlabel("turn: 1 - cosine of first and last gradient")
        figures.legend(figure, axes[0])
    alt = (
        "Three panels, PSNR over the turn of the gradient. The paper's procedure falls first; "
        "matching in the middle keeps its level longer; the study's procedure starts highest. "
        "Where the gradient has turned by a right angle, all lie below the mean colour."
    )
    return figure, alt


def tabled(rows: pd.DataFrame, by: list[str], attacks: list[str] = ATTACKS) -> pd.DataFrame:
    """Mean PSNR of the attacks, over the seeds that all of them ran with, and what leaks anyway."""
    each = rows[rows.attack.isin(attacks)].pivot_table("psnr", [*by, "seed"], "attack")
    each = each.reindex(columns=attacks)
    ran = each.notna().sum(axis=1)
    each = each[ran == ran.groupby(by).transform("max")]
    about = rows.groupby(by).agg(flat=("mean_colour", "mean"), thumb8=("thumb8", "mean"))
    about.insert(0, "seeds", each.groupby(by).size())
    return about.join(each.groupby(by).mean())


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
        "little": LITTLE,
        "turned_lost": lost_at(stored),
        "gain_straight": float((straight.gleak - straight.equivalent).mean()),
        "overtaken": "; ".join(f"E {e}, lr {lr:g}" for e, lr in overtaken.index) or "none",
        "apart_gleak": float(apart["gleak"]),
        "apart_matching": float(apart["equivalent"]),
    }


def sizes(stored: pd.DataFrame) -> pd.DataFrame:
    """Over the numbers of images and their batches."""
    return tabled(base(stored, "E == 5 and K <= 16 and lr in [0.001, 0.01]"), ["K", "B", "lr"])


def by_labels(stored: pd.DataFrame) -> pd.DataFrame:
    """Over what the attacker knows of the labels."""
    named = stored.query("network == 'convnet' and steps == 0 and K == 4 and B == 4 and E == 5")
    return tabled(named[named.lr.isin([0.001, 0.01])], ["labels", "lr"])


def networks(stored: pd.DataFrame) -> pd.DataFrame:
    """A trained convnet, and the LeNet."""
    return tabled(stored.query("steps > 0 or network == 'lenet'"), ["network", "steps", "E", "lr"])


def of_models(stored: pd.DataFrame) -> pd.DataFrame:
    """The runs of all update models."""
    return base(stored, "K == 4 and E in [5, 10] and lr in [0.01, 0.03]")


def update_models(stored: pd.DataFrame) -> pd.DataFrame:
    """All update models over epochs and rate, and what a search through each takes."""
    runs = of_models(stored)
    table = tabled(runs, ["E", "lr"], ALL_MODELS).drop(columns=["flat", "thumb8", "seeds"]).T
    table.columns = [f"E {epochs}, rate {lr:g} (dB)" for epochs, lr in table.columns]
    seconds = runs.groupby("attack").cpu_seconds.mean()
    return table.assign(cpu_seconds=seconds).rename_axis("procedure")


def rate_hidden(stored: pd.DataFrame) -> pd.DataFrame:
    """Attacks that know the rate beside those that do not."""
    runs = base(stored, "K == 4 and B == 4 and E == 5 and lr in [0.001, 0.01]")
    return tabled(runs, ["lr"], ["middle", "sme, no lr", "gleak", "gleak, lr scanned"])


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """A table with rates as people write them, and dB in the heads."""
    if "lr" in table.index.names:
        levels = [f"{lr:g}" for lr in table.index.get_level_values("lr")]
        others = [name for name in table.index.names if name != "lr"]
        flat = table.reset_index().assign(lr=levels)
        table = flat.set_index([*others, "lr"]).reindex(columns=table.columns)
    named = {code: words.name(code, "procedure") for code in table if code in KNOWN}
    return table.rename(columns=in_decibel(named))


KNOWN = (*ALL_MODELS, "sme, no lr", "gleak, lr scanned")


def fifty(stored: pd.DataFrame) -> pd.DataFrame:
    """Fifty images."""
    return tabled(stored[stored.K == 50], ["lr"], ["equivalent", "middle"])


def fifty_numbers(stored: pd.DataFrame) -> dict[str, float]:
    """The best mean of fifty images, the thumbnails, and one flat colour."""
    many = summary(stored).loc[50]
    return {
        "fifty_best": float(many[list(in_decibel(WORDS).values())].max(axis=None)),
        "fifty_thumbnail": many.thumb8.mean(),
        "fifty_flat": many.mean_colour.mean(),
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
    limits = summary(stored).reset_index()
    fifty_rows = limits[limits.images == 50]
    trained = limits[limits.network.str.contains("steps")]
    matched = [f"{WORDS[name]} (dB)" for name in ("equivalent", "middle")]
    lost = bool((fifty_rows[matched].max(axis=1) < fifty_rows.mean_colour).all())
    below = bool((trained[matched].max(axis=1) < trained.mean_colour).all())
    thumbnails = bool((trained[f"{WORDS['gleak']} (dB)"] < trained.thumb8).all())
    return {
        "hardly any turn: the study's procedure 1 dB ahead in each way": ahead,
        "where matching at the start has lost 2 dB, another gains 1 dB": another,
        "restored labels, the images of true ones": alike,
        "a scanned rate costs less than 0.5 dB": bool(dearer < 0.5),
        "fifty images: all below the mean colour": lost,
        "trained network: matching below the mean colour": below,
        "trained network: the study's procedure below the thumbnails": thumbnails,
    }


LITTLE = 0.9  # cosine of the client's first and last gradient: above it, there is little drift


def drifts(runs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows with little drift and those with much, in words."""
    for named, chosen in (
        ("little drift", runs.cosine > LITTLE),
        ("much drift", runs.cosine <= LITTLE),
    ):
        if chosen.any():
            yield named, runs[chosen]


PAPER = "equivalent"  # the published procedure
WAY = ["B", "E", "lr"]
AHEAD = 1  # dB


def of_most_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of those attacks, on those ways of training, that have the most networks.

    Means over ways would else be of other ways for other networks. An attack with fewer is left
    out only if it was not ahead of the others where all ran; else those runs alone count, so that
    no attack looks weaker for the lack of it.
    """
    seeds = runs.groupby([*WAY, "attack"]).seed.transform("nunique")
    most = runs[seeds == seeds.max()]
    kept = most[most.groupby(WAY).attack.transform("nunique") == most.attack.nunique()]
    shared = runs.pivot_table("psnr", [*WAY, "seed"], "attack").dropna()
    counted = shared.columns.isin(kept.attack)
    if len(shared) and not counted.all():
        lead = shared.loc[:, ~counted].mean().max() - shared.loc[:, counted].mean().max()
        if lead > AHEAD:
            return runs[pd.MultiIndex.from_frame(runs[[*WAY, "seed"]]).isin(shared.index)]
    return kept


Case = tuple[str, int, int, str]  # network, steps of training, images, drift


def judged(stored: pd.DataFrame) -> dict[Case, pd.DataFrame]:
    """The runs with labels given, by network, images and drift."""
    given = stored[stored.labels == "given"]
    found: dict[Case, pd.DataFrame] = {}
    for (network, steps, size), runs in given.groupby(["network", "steps", "K"], sort=False):
        for drift, chosen in drifts(runs):
            found[network, steps, size, drift] = chosen
    return found


def summary(stored: pd.DataFrame) -> pd.DataFrame:
    """What the procedures reach in each setting of the verdict, beside what leaks without any."""
    rows = []
    for (network, steps, size, drift), every in judged(stored).items():
        runs = of_most_seeds(every)
        means = criterion.by_unit(runs, ["seed"])
        state = f", {steps} steps" if steps else ""
        reached = runs.groupby(["attack", "seed"]).psnr.mean().groupby("attack").mean()
        rows.append(
            {
                "images": size,
                "network": f"{words.name(network, 'network')}{state}",
                "drift": drift.split()[0],
                "networks": len(means),
                **{name: reached.get(name) for name in ATTACKS},
                "thumb8": means.thumb8.mean(),
                "mean_colour": means.mean_colour.mean(),
            }
        )
    table = pd.DataFrame(rows).set_index(["images", "network", "drift"])
    return table.sort_index().rename(columns=in_decibel(WORDS))


def recorded_rows(stored: pd.DataFrame) -> list[tuple[bool, Row]]:
    """Whether trained, and a row, for each network, number of images and drift, labels given.

    Rates and epochs of a seed are averaged. The published way is the equivalent gradient; a cosine
    search through it stands for the attack on it.
    """
    rows: list[tuple[bool, Row]] = []
    for (network, steps, size, drift), runs in judged(stored).items():
        state = f"trained for {steps} steps" if steps else "untrained"
        told = f"recorded runs: {size} images, {words.name(network, 'network')}, {state}, {drift}"
        where = setting(told, images=size, trained=bool(steps), weights=True, more=f"with {drift}")
        found = criterion.image_columns(of_most_seeds(runs), ["seed"], PAPER, match=WAY)
        alone = of_most_seeds(runs[runs.attack == PAPER])
        found |= {"paper": criterion.image_columns(alone, ["seed"], PAPER)["paper"]}
        rows.append((bool(steps), (where, found)))
    return rows


def verdict_on_weights(stored: pd.DataFrame) -> None:
    """Claim 3, and of trained networks claim 6, from the recorded runs."""
    rows = recorded_rows(stored)
    verdict([3], [row for trained, row in rows if not trained])
    trained = [row for trained, row in rows if trained]
    if trained:
        verdict([3, 6], trained)
