"""Photographs with a thousand possible classes: tables, numbers, claims and verdicts."""

from collections.abc import Mapping

import pandas as pd

from gleak.inversion import Inversion
from gleak.study.book import verdict

COLUMNS = {"PSNR": "psnr", "SSIM": "ssim", "flat colour": "mean_colour", "8×8": "thumb8"}
NAN = float("nan")


def reached(scores: pd.DataFrame) -> dict[str, float]:
    """Means over the images of a batch."""
    return {name: float(scores[column].mean()) for name, column in COLUMNS.items()}


def table(results: Mapping[str, tuple[Inversion, pd.DataFrame]]) -> pd.DataFrame:
    """The means of several searches, a row each."""
    return pd.DataFrame({name: reached(scores) for name, (_, scores) in results.items()}).T


def plain_numbers(plain: pd.DataFrame) -> dict[str, float]:
    """Of the plain network, attack by attack."""
    numbers = {f"psnr_{attack}": mean for attack, mean in plain["PSNR"].items()}
    return numbers | {"thumb8": plain["8×8"]["gleak"]}


def plain_claims(plain: pd.DataFrame, exact: bool) -> dict[str, bool]:
    """exact: whether all labels were restored."""
    psnr = plain["PSNR"]
    return {
        "labels restored exactly": exact,
        "gleak beats the 8x8 thumbnails by 2 dB": psnr["gleak"] > plain["8×8"]["gleak"] + 2,
        "gleak is ahead of both others by 3 dB": psnr["gleak"] > psnr.drop("gleak").max() + 3,
    }


def deep_numbers(deep: pd.DataFrame) -> dict[str, float]:
    """Of the ResNet-18, in both modes of its batch norm."""
    return {
        "deep_eval": deep["PSNR"]["eval mode"],
        "deep_train": deep["PSNR"]["train mode"],
        "deep_flat": deep["flat colour"].max(),
        "deep_thumb8": deep["8×8"].max(),
    }


def deep_claims(deep: pd.DataFrame) -> dict[str, bool]:
    """Whether photographs come out of the ResNet-18."""
    psnr, flat = deep["PSNR"], deep["flat colour"]
    beats = psnr["eval mode"] > deep["8×8"]["eval mode"] + 2
    return {
        "resnet18 in eval mode beats the 8x8 thumbnails by 2 dB": beats,
        "in train mode it is above the flat colour": psnr["train mode"] > flat["train mode"] + 1,
    }


def trained_numbers(scores: pd.DataFrame | None) -> dict[str, float]:
    """scores: of the search on the trained network, None where it could not be attacked."""
    means = {} if scores is None else reached(scores)
    return {"trained_psnr": means.get("PSNR", NAN), "trained_thumb8": means.get("8×8", NAN)}


def labels(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `labels_read`, by network and method."""
    columns = ["instance", "chance", "exact"]
    return frame.set_index(["model", "method"])[columns].rename_axis([None, None])


def label_numbers(read: pd.DataFrame, trained: str) -> dict[str, float]:
    """trained: the name of the trained network."""
    shares = {name: read["instance"].get((trained, name), NAN) for name in ("zlg", "idlg", "gleak")}
    return {f"{method}_trained": share for method, share in shares.items()}


def label_claims(read: pd.DataFrame) -> dict[str, bool]:
    """Whether one of the methods reads nearly all labels, for each network."""
    best = read["instance"].groupby(level=0, sort=False).max()
    words = "the best method names 90 % of the labels"
    return {f"{name}: {words}": bool(share >= 0.9) for name, share in best.items()}


def card(stored: pd.DataFrame) -> pd.DataFrame:
    """The runs on the graphics card with photographs, by case and attack."""
    runs = stored.set_index(["case", "attack"])
    return runs[runs.index.get_level_values("case").str.contains("resnet")].sort_index()


def card_numbers(runs: pd.DataFrame) -> dict[str, float]:
    """The best of the searches on the card, and those in ResNet-18 in eval mode."""
    case, attacks = "resnet18-eval-8", ("gleak", "general", "gradinversion")
    psnr, ssim = (
        {attack: runs[name][case, attack] for attack in attacks} for name in ("psnr", "ssim")
    )
    return {
        "card_best": runs["psnr"].max(),
        "card_thumbs": runs["thumb8"].min(),
        "card_eval": psnr["gleak"],
        "card_eval_ssim": ssim["gleak"],
        "card_general": psnr["general"],
        "card_general_ssim": ssim["general"],
        "card_gradinversion": psnr["gradinversion"],
    }


def card_claims(runs: pd.DataFrame) -> dict[str, bool]:
    """Whether any search on the card comes up to the thumbnails."""
    below = runs["psnr"].max() < runs["thumb8"].min()
    return {"every search at 224 pixels stays below the thumbnails": below}


def verdict_on_labels(read: pd.DataFrame, trained: str, size: int, classes: int) -> None:
    """Claim 1. size, classes: of the batch whose labels were read."""
    untrained = read["instance"]["resnet18", "zlg"]
    of_trained = read["instance"].get((trained, "zlg"), untrained)
    verdict(
        claim=1,
        setting=f"{size} photographs, {classes} classes",
        measured=f"the paper's rule names {100 * untrained:.0f} % on an untrained ResNet-18 and "
        f"{100 * of_trained:.0f} % on the trained network",
        verdict="holds" if min(untrained, of_trained) > 0.95 else "holds partly",
        why="Random inputs stand in for the client's softmax, which a trained network does not "
        "give them.",
    )


def verdict_on_images(
    plain: pd.DataFrame, deep: pd.DataFrame, images: int, sides: tuple[int, int]
) -> None:
    """Claim 7. sides: pixels of the photographs in the plain and in the deep network."""
    psnr = deep["PSNR"]
    verdict(
        claim=7,
        setting=f"{images} photographs at {sides[0]} and {sides[1]} pixels, untrained networks",
        measured=f"the paper's attack {plain['PSNR']['general']:.1f} dB on the plain network at "
        f"equal time; with the closed form {plain['PSNR']['gleak']:.1f} dB, on ResNet-18 "
        f"{psnr['eval mode']:.1f} dB in eval and {psnr['train mode']:.1f} dB in train mode; "
        f"8×8 thumbnails {plain['8×8']['gleak']:.1f} dB",
        verdict="holds partly",
        why="Photographs do come back from ImageNet's classes, but at reduced size and in small "
        "batches; at 224 pixels, on a graphics card, neither it nor GradInversion came near the "
        "thumbnails.",
    )
