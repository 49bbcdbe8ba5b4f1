"""Images from FedSGD gradients: tables, figures, numbers for the prose, claims and verdicts."""

import re
from collections.abc import Iterator, Mapping

import pandas as pd
from matplotlib.figure import Figure

from gleak import figures
from gleak.data import Batch
from gleak.inversion import Inversion
from gleak.study import criterion
from gleak.study.book import Row, verdict
from gleak.study.verdicts import FEW, setting
from gleak.study.words import name, on, series

OURS = ["general", "gleak"]  # the paper's attack, the study's
EXACT = "lenet-1"  # the case that is solved
SHOWN = [*OURS, "inverting-gradients", "gradinversion"]  # in the figure

Results = Mapping[str, tuple[Inversion, pd.DataFrame]]  # attack -> what it found, its scores


def by_noise(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `gradient_moved` as a column for each model, over the noise."""
    return frame.pivot_table("change", "noise", "model")[frame["model"].unique()]


def roughness(frame: pd.DataFrame) -> tuple[Figure, str]:
    """How far the gradient moves over the noise, a line for each model."""
    summary = "The sigmoid network's line is straight and steep, the ReLU networks' lines are flat."
    return figures.curves(by_noise(frame), "noise on the pixels", "relative change", summary)


def roughness_numbers(frame: pd.DataFrame) -> dict[str, float]:
    """In percent, for noise of a thousandth of the range."""
    return {f"rough_{name}": 100 * rough[1e-3] for name, rough in by_noise(frame).items()}


def roughness_claims(frame: pd.DataFrame) -> dict[str, bool]:
    """Whether smooth networks are smooth and those with ReLU are not."""
    rough = by_noise(frame)
    growth = rough.loc[1e-2] / rough.loc[1e-3]
    smooth = "sigmoid: ten times the noise, at least eight times the change"
    less = "ten times the noise, less than six times the change"
    found = {f"{name}: {less}": growth[name] < 6 for name in ("convnet", "resnet18")}
    return {smooth: growth["lenet"] > 8} | found


def twin_claims(row: Mapping[str, float]) -> dict[str, bool]:
    """Whether two images of one class come apart, from the row of `twins`."""
    return {
        "two ships, softmax equal to three digits": row["likeness"] < 1e-3,
        "features of all four images to 1e-3, ships included": row["error"] < 1e-3,
    }


def pictures(batch: Batch, results: Results) -> tuple[Figure, str]:
    """The client's images and what each attack restored of them."""
    named = {name(attack, "attack"): found for attack, found in results.items()}
    return figures.comparison(batch, named)


def attacks(results: Results, operations: Mapping[str, float]) -> pd.DataFrame:
    """What each attack reached, and its floating point operations."""
    columns = {
        attack: {
            "PSNR": scores["psnr"].mean(),
            "lowest": scores["psnr"].min(),
            "SSIM": scores["ssim"].mean(),
            "iterations": len(result.history),
            "10¹² operations": operations[attack] / 1e12,
        }
        for attack, (result, scores) in results.items()
    }
    return pd.DataFrame(columns).T


def attack_numbers(table: pd.DataFrame, results: Results) -> dict[str, float]:
    """What `gleak` and the better of the others reach, and what leaks nothing."""
    baselines = results["gleak"][1][["mean_colour", "thumb8"]].mean()
    return {
        "gleak": table["PSNR"]["gleak"],
        "others": table["PSNR"].drop("gleak").max(),
        "flat": baselines["mean_colour"],
        "thumb8": baselines["thumb8"],
    }


def attack_claims(table: pd.DataFrame, thumbnail: float) -> dict[str, bool]:
    """Whether the attacks show more than thumbnails (dB), `gleak` as much, and at what cost."""
    reached, work = table["PSNR"], table["10¹² operations"]
    apart = abs(reached["gleak"] - reached.drop("gleak").max())
    return {
        "all three attacks: 1 dB or more above the thumbnails": reached.min() > thumbnail + 1,
        "the study's attack: within 1 dB of the better of the others": apart < 1,
        "it needs about as many operations": work["gleak"] < 1.2 * work.drop("gleak").min(),
    }


def longer(fresh: pd.DataFrame, seed: int) -> dict[str, float]:
    """What long searches find of eight images, on the network of the seed and on all, in dB.

    fresh: the recorded runs on images and networks that no setting was chosen on.
    """
    runs = fresh[(fresh["case"] == "convnet-8") & (fresh["attack"] == "gleak")].set_index("seed")
    return {
        "longer_same": float(runs["psnr"].get(seed, float("nan"))),
        "longer_mean": runs["psnr"].mean(),
        "longer_networks": len(runs),
        "longer_iterations": int(runs["iterations"].max()),
    }


def longer_claims(longer: Mapping[str, float], thumbnail: float) -> dict[str, bool]:
    """Whether eight images come back, given iterations enough; thumbnail: of these, in dB."""
    low = min(longer["longer_same"], longer["longer_mean"])
    return {"eight images, a longer search: 3 dB or more above the thumbnails": low > thumbnail + 3}


def behind_pooling(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `behind_pooling`, one for each image and its network."""
    words = {
        "index": "image",
        "seed": "network",
        "plain": "activations behind the pooling (dB)",
        "gleak": "and in front of it (dB)",
        "thumb8": "8×8 thumbnail (dB)",
        "found": "places found",
    }
    return frame.rename(columns=words).set_index(["image", "network"])[list(words.values())[2:]]


def behind_pooling_numbers(frame: pd.DataFrame) -> dict[str, float]:
    """How many images, for how many the places were found, and the best image before and after."""
    best = frame.loc[frame["gleak"].idxmax()]
    return {
        "turn_size": len(frame),
        "turn_found": int(frame["found"].sum()),
        "turn_plain": best["plain"],
        "turn_gleak": best["gleak"],
    }


def behind_pooling_claims(frame: pd.DataFrame) -> dict[str, bool]:
    """Whether the places of the maxima are found, and what they are worth."""
    gain = frame["gleak"] - frame["plain"]
    return {
        "a single image gains 10 dB or more where the places are found": bool(
            frame["found"].any() and gain[frame["found"]].max() > 10
        ),
        "none loses more than 3 dB": gain.min() > -3,
    }


def derivative(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `difference_error`, one for each model, in percent."""
    return 100 * frame.set_index("model").add_suffix(": error (%)")


def derivative_numbers(frame: pd.DataFrame, saved: float) -> dict[str, float]:
    """saved: the share of operations."""
    return {
        "held": 100 * frame["pieces held"].max(),
        "free": frame.set_index("model")["units free"]["convnet"],
        "saved": 100 * saved,
    }


def derivative_claims(frame: pd.DataFrame) -> dict[str, bool]:
    """Whether holding units to their pieces is what makes the difference a derivative."""
    free = frame.set_index("model")["units free"]["convnet"]
    return {
        "pieces held: the difference is the derivative to 3 %": frame["pieces held"].max() < 0.03,
        "units free, convnet: the error is larger than the derivative": free > 1,
    }


def smooth_claims(
    exact: float, counted: Mapping[str, int], reached: Mapping[str, float]
) -> dict[str, bool]:
    """exact, reached: PSNR of one image in closed form, and of four by each attack."""
    few = counted["equations"] < counted["unknowns"]
    return {
        "one image in closed form, 60 dB or more": exact > 60,
        "four images, fewer equations than unknowns": few,
        "four images by the study's attack, 5 dB or more above matching": (
            reached["gleak"] > reached["idlg"] + 5
        ),
    }


def deep_claims(error: float, scores: pd.DataFrame) -> dict[str, bool]:
    """What came of a ResNet-18 in train mode."""
    ahead = scores["psnr"].mean() > scores["thumb8"].mean() + 5
    return {
        "ResNet-18 in train mode: activations to 1e-2": error < 1e-2,
        "ahead of the thumbnails by 5 dB": ahead,
    }


def overview(stored: pd.DataFrame) -> pd.DataFrame:
    """The recorded runs, means over the seeds."""
    return stored.groupby(["case", "attack"], sort=False).agg(
        seeds=("seed", "count"),
        PSNR=("psnr", "mean"),
        lowest_seed=("psnr", "min"),
        SSIM=("ssim", "mean"),
        thumbnail=("thumb8", "mean"),
        CPU_seconds=("cpu_seconds", "mean"),
    )


def crops_numbers(table: pd.DataFrame) -> dict[str, object]:
    """Which batches of crops were run, and how far below the thumbnails the best of them stays."""
    crops = table[table.index.get_level_values("case").str.startswith("crops")]
    return {
        "crops": " and ".join(sorted({case.split("-")[1] for case, _ in crops.index})),
        "crops_below": (crops.thumbnail - crops.PSNR).min(),
    }


def shown_cases(stored: pd.DataFrame) -> pd.DataFrame:
    """The recorded runs with a setting in words, and how far each is from the thumbnails.

    In the order of networks and numbers of images. Where two cases have the same words, the first,
    with the longer searches, stands.
    """
    runs = cases(stored)
    crops = runs["kind"].str.startswith("crops").map({True: " crops", False: " images"})
    count = runs["images"].astype(str) + crops.mask(runs["images"] == 1, " image")
    again = runs["kind"].str.endswith("repeated labels").map({True: ", labels repeat", False: ""})
    runs = runs.assign(
        setting=runs["network"] + ", " + count + again,
        against=runs["psnr"] - runs["thumb8"],
        order=runs["attack"].map({attack: place for place, attack in enumerate(SHOWN)}),
        first=runs["network"].map({"convnet": 0}).fillna(1),
    )
    longest = runs.groupby("setting")["case"].transform("first")
    runs = runs[runs["case"] == longest]
    return runs.sort_values(["first", "network", "images", "setting", "order"], kind="stable")


def interval_ends(values: pd.Series) -> tuple[float, float]:
    """Both ends of the interval of a mean."""
    found = criterion.interval(values)
    return found.low, found.high


def landscape(stored: pd.DataFrame) -> tuple[Figure, str]:
    """Each attack against the thumbnails, setting by setting: dots with intervals.

    Without what is restored from linear equations, which would leave the others no room.
    """
    runs = shown_cases(stored)
    runs = runs[runs["attack"].isin(SHOWN) & (runs["case"] != EXACT)]
    above = runs.pivot_table("against", "setting", "attack") > 0
    parts = [f"{name(a, 'attack')} in {int(above[a].sum())}" for a in SHOWN if a in above]
    axis = "PSNR against the 8×8 thumbnails (dB)"
    return figures.dots(
        runs.assign(attack=[name(a, "attack") for a in runs["attack"]]).rename(
            columns={"against": axis}
        ),
        f"Above the thumbnails, of {len(above)} settings: {', '.join(parts)}.",
        row="setting",
        value=axis,
        series="attack",
        order=[name(a, "attack") for a in [*reversed(OURS), *SHOWN[len(OURS) :]]],  # as elsewhere
        lines={"": 0},
        ends=interval_ends,
    )


def small_table(stored: pd.DataFrame) -> pd.DataFrame:
    """A row for each setting: mean PSNR, and with its interval the distance to the thumbnails."""
    rows = {}
    for words, runs in shown_cases(stored).groupby("setting", sort=False):
        mean = runs.groupby("attack")["psnr"].mean()
        others = mean.drop(OURS, errors="ignore")
        row: dict[str, object] = {
            "the paper's attack (dB)": mean.get("general"),
            "the study's attack (dB)": mean.get("gleak"),
            "best of the others (dB)": others.max() if len(others) else None,
            "thumb8": runs["thumb8"].mean(),
        }
        for attack in OURS:
            found = runs.loc[runs["attack"] == attack, "against"]
            said = against(found) if len(found) else ""
            row[f"{name(attack, 'attack')} above the thumbnail"] = said
        rows[words] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("setting")


def against(values: pd.Series) -> str:
    """A mean with its interval over the networks, in dB; of a single one without."""
    found = criterion.interval(values)
    ends = f" ({found.low:+z.1f} to {found.high:+z.1f})" if found.n > 1 else ""
    return f"{found.mean:+z.1f}{ends}"


def recorded_numbers(stored: pd.DataFrame) -> dict[str, float]:
    """What the prose of the chapter names of the recorded runs."""
    mean = stored.groupby(["case", "attack"])["psnr"].mean()
    thumb = stored.groupby("case")["thumb8"].mean()
    runs = shown_cases(stored)
    per = runs.groupby(["setting", "attack"])["seed"].nunique()
    gap = runs.pivot_table("against", "setting", "attack")
    return {
        "networks_low": int(per.min()),
        "networks_high": int(per.max()),
        "residual": mean["resnet18-train-4", "gleak"],
        "residual_general": mean["resnet18-train-4", "general"],
        "residual_thumb8": thumb["resnet18-train-4"],
        "one_lenet": mean["lenet-1", "gleak"],
        "eight": mean["convnet-8", "gleak"],
        "eight_general": mean["convnet-8", "general"],
        "repeated": mean["convnet-4-repeated", "gleak"],
        "repeated_general": mean["convnet-4-repeated", "general"],
        "settings": len(gap),
        "settings_general": int(gap["general"].gt(0).sum()),
        "settings_gleak": int(gap["gleak"].gt(0).sum()),
    }


def lead(stored: pd.DataFrame) -> pd.Series:
    """How far the study's attack is ahead of the paper's (dB), by case and network."""
    reached = stored.pivot_table("psnr", ["case", "seed"], "attack", sort=False)
    return (reached["gleak"] - reached["general"]).dropna()


def fresh_table(stored: pd.DataFrame, fresh: pd.DataFrame) -> pd.DataFrame:
    """The lead on images and networks that settings were chosen on, and on those of `fresh`.

    A row for each case of `fresh`; with intervals over networks.
    """
    usual, new = lead(stored), lead(fresh)
    thumbs = fresh[fresh["attack"] == "gleak"].assign(against=lambda f: f["psnr"] - f["thumb8"])
    words = shown_cases(fresh).drop_duplicates("case").set_index("case")["setting"]
    rows = {
        words[case]: {
            "ahead of the paper's attack, usual images (dB)": against(usual[case]),
            "ahead, fresh images (dB)": against(new[case]),
            "above the thumbnails, fresh images (dB)": against(found["against"]),
        }
        for case, found in thumbs.groupby("case", sort=False)
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("setting")


def fresh_numbers(stored: pd.DataFrame, fresh: pd.DataFrame) -> dict[str, float]:
    """The convnet's lead on four usual and four fresh images, and how many networks there are."""
    return {
        "lead_usual": lead(stored)["convnet-4"].mean(),
        "lead_fresh": lead(fresh)["convnet-4"].mean(),
        "lead_fresh_lowest": lead(fresh)["convnet-4"].min(),
        "lead_fresh_highest": lead(fresh)["convnet-4"].max(),
        "fresh_networks": fresh["seed"].nunique(),
    }


def fresh_claims(fresh: pd.DataFrame) -> dict[str, bool]:
    """Whether the study's attack is ahead on what it was not made on as well."""
    low = {case: criterion.interval(gap).low for case, gap in lead(fresh).groupby("case")}
    return {
        "fresh images and networks: the study's attack is ahead in each setting": all(
            ahead > 0 for ahead in low.values()
        )
    }


def recorded_claims(stored: pd.DataFrame) -> dict[str, bool]:
    """What the chapter says of the recorded runs."""
    told = recorded_numbers(stored)
    return {
        "ResNet-18 in train mode: the study's attack is 10 dB above the thumbnails": bool(
            told["residual"] > told["residual_thumb8"] + 10
        ),
        "and the paper's attack below them": bool(
            told["residual_general"] < told["residual_thumb8"]
        ),
        **repeated_claims(overview(stored)),
    }


def rankings(stored: pd.DataFrame) -> dict[str, object]:
    """Of the settings with GradInversion: how many rank attacks that stay below the thumbnails."""
    runs = stored[stored["case"].isin(stored["case"][stored["attack"] == "gradinversion"])]
    pair = runs[runs["attack"].isin(["general", "gradinversion"])]
    mean = pair.pivot_table("psnr", "case", "attack")
    below = mean.max(axis=1) < pair.groupby("case")["thumb8"].mean()
    ahead = mean["general"] > mean["gradinversion"]
    return {
        "ranked": len(mean),
        "ranked_below": int(below.sum()),
        "ranked_ahead": int((ahead & below).sum()),
    }


def best_attacks(table: pd.DataFrame) -> dict[str, str]:
    """For each case: the attack with the highest mean, and on which side of the thumbnails."""
    best = table["PSNR"].groupby("case", sort=False).idxmax()
    side = {case: table["PSNR"][key] > table["thumbnail"][key] for case, key in best.items()}
    return {
        f"{case}: best is": f"{name(key[1], 'attack')}, {'above' if side[case] else 'below'} "
        "the thumbnails"
        for case, key in best.items()
    }


def repeated_claims(table: pd.DataFrame) -> dict[str, bool]:
    """Whether equal labels leave `gleak` ahead."""
    reached = table["PSNR"]["convnet-4-repeated"]
    ahead = reached["gleak"] > reached.drop("gleak").max() + 3
    return {"two images of one class: the study's attack is ahead by 3 dB or more": ahead}


def contest(stored: pd.DataFrame) -> pd.DataFrame:
    """Mean and deviation of the recorded runs against GradInversion."""
    rivals = stored[stored["case"].str.startswith("gradinversion")]
    return rivals.pivot_table("psnr", index="case", columns="attack", aggfunc=["mean", "std"])


def contest_table(table: pd.DataFrame) -> pd.DataFrame:
    """The contest for readers: cases in words, each with a mean and a deviation (dB)."""
    words = {"gradinversion-": "", "-repeated": ", labels repeat"}
    index = [
        re.sub("gradinversion-|-repeated", lambda it: words[it[0]], case) for case in table.index
    ]
    shown = table.rename(columns={"mean": "mean (dB)", "std": "standard deviation (dB)"})
    return shown.set_axis(pd.Index(index, name="images"))


def gaps(table: pd.DataFrame) -> pd.Series:
    """How far the paper's attack is ahead of GradInversion in each case, from the contest."""
    return table["mean"]["general"] - table["mean"]["gradinversion"]


def contest_numbers(stored: pd.DataFrame) -> dict[str, float]:
    """Leads over GradInversion, and the seeds they come from."""
    table, rivals = contest(stored), stored[stored["case"].str.startswith("gradinversion")]
    mean, gap = table["mean"], gaps(table)
    lead = mean["gleak"] - mean[["general", "gradinversion"]].max(axis=1)
    return {
        "contest_seeds": int(rivals.groupby(["case", "attack"]).size().min()),
        "gap_low": gap.min(),
        "gap_high": gap.max(),
        "lead_low": lead.min(),
        "lead_high": lead.max(),
    }


def card(stored: pd.DataFrame) -> pd.DataFrame:
    """The runs on the graphics card with small images, by case and attack."""
    runs = stored.set_index(["case", "attack"])
    return runs[~runs.index.get_level_values("case").str.contains("resnet")].sort_index()


def card_numbers(runs: pd.DataFrame, table: pd.DataFrame) -> dict[str, float]:
    """runs: those on the card; table: the overview of those on a CPU."""
    crops = runs["psnr"]["crops-48"].max()
    return {
        "gpu_longest": int(runs["iterations"].max()),
        "gpu_eight": runs["psnr"]["cifar10-8", "gleak"],
        "cpu_eight": table["PSNR"]["convnet-8", "gleak"],
        "cpu_eight_seconds": table["CPU_seconds"]["convnet-8", "gleak"],
        "gpu_many": crops,
        "gpu_many_gain": crops - table["PSNR"]["crops-48"].max(),
        "gpu_many_thumbs": runs["thumb8"]["crops-48"].max(),
    }


def card_best(runs: pd.DataFrame) -> dict[str, str]:
    """For each case: the best attack, and on which side of the thumbnails it is."""
    lines = {}
    for case, reached in runs["psnr"].groupby(level="case"):
        side = "above" if reached.max() > runs["thumb8"][case].max() else "below"
        best = name(reached.idxmax()[1], "attack")
        lines[f"{case}: best is"] = f"{best}, {side} the thumbnails"
    return lines


NETWORKS = {  # of the cases of the recorded table
    "lenet": "LeNet with sigmoids",
    "resnet18-train": "ResNet-18 in train mode",
    "resnet18-eval": "ResNet-18 in eval mode",
}


def cases(stored: pd.DataFrame) -> pd.DataFrame:
    """The recorded runs with their network, the number of images, and what images these are."""
    head = stored.case.str.extract(r"^(.+?)-(\d+)(-repeated)?$")
    crops = head[0].eq("crops").map({True: "crops of photographs", False: "CIFAR images"})
    network = head[0].map(NETWORKS).fillna("convnet")
    kind = crops + head[2].notna().map({True: " with repeated labels", False: ""})
    return stored.assign(network=network, images=head[1].astype(int), kind=kind)


def apart(runs: pd.DataFrame) -> str:
    """What else tells a setting from others: its network, and repeated labels."""
    repeated = runs.kind.iloc[0].endswith("repeated labels")
    return f"on the {runs.network.iloc[0]}" + " with repeated labels" * repeated


def sized(runs: pd.DataFrame) -> Iterator[tuple[str, int, pd.DataFrame]]:
    """Network and images in words, the least number of images, and the rows, few and many apart."""
    groups = runs.groupby(["network", "kind", runs.images <= FEW], sort=False)
    for (network, kind, _), rows in groups:
        sizes = series(sorted(rows.images.unique()))
        yield f"{network}, batches of {sizes} {kind}", int(rows.images.min()), rows


def example(results: Results) -> pd.DataFrame:
    """The scores of one gradient, a row for each image and attack."""
    return pd.concat([scores.assign(attack=name) for name, (_, scores) in results.items()])


def verdict_on_images(
    stored: pd.DataFrame, fresh: pd.DataFrame, model: str, results: Results
) -> None:
    """Claim 2, from the recorded runs, usual and fresh, and from the gradient of this page."""
    rows: list[Row] = []
    for made, table in {"recorded runs": stored, "fresh images": fresh}.items():
        for words, size, runs in sized(cases(table)):
            where = setting(f"{made}: {words}", images=size, more=apart(runs))
            rows.append((where, criterion.image_columns(runs, ["seed"], match=["case"])))
    images = example(results)
    size = len(results["gleak"][1])
    where = setting(
        f"one gradient of the chapter's own: {model}, {size} images", images=size, more=on(model)
    )
    rows.append((where, criterion.image_columns(images, [], name="gradient")))
    verdict([2], rows)


def verdict_on_rivals(stored: pd.DataFrame, on_card: pd.DataFrame) -> None:
    """Claim 7 on images: recorded runs with GradInversion, on a CPU and on the graphics card."""
    rows: list[Row] = []
    equal = stored.case.str.startswith("gradinversion")
    small = ~on_card.case.str.contains("resnet")  # photographs are another chapter's
    for made, runs in {
        "recorded runs of equal length": stored[equal],
        "recorded runs, each attack with its own settings": stored[~equal],
        "longer runs on a graphics card": on_card[small],
    }.items():
        chosen = runs[runs.case.isin(runs.case[runs.attack == "gradinversion"])]
        for words, size, found in sized(cases(chosen)):
            where = setting(f"{made}: {words}", images=size, more=apart(found))
            compared = criterion.rival_columns(found, ["seed"], "general", match=["case"])
            rows.append((where, compared))
    verdict([7], rows)
