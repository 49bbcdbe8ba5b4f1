"""Photographs with a thousand possible classes: tables, numbers, claims and verdicts."""

import math
from collections.abc import Iterator, Mapping

import pandas as pd
from matplotlib.figure import Figure

from gleak import figures
from gleak.data import Batch
from gleak.inversion import Inversion
from gleak.study import criterion
from gleak.study.book import Row, verdict
from gleak.study.verdicts import COLUMNS as VERDICT_COLUMNS
from gleak.study.verdicts import setting
from gleak.study.words import name, on

COLUMNS = {"PSNR": "psnr", "SSIM": "ssim", "flat colour": "mean_colour", "8×8": "thumb8"}
NAN = float("nan")
Runs = Mapping[str, tuple[Inversion, pd.DataFrame]]  # name -> what a search found, its scores


def reached(scores: pd.DataFrame) -> dict[str, float]:
    """Means over the images of a batch."""
    return {name: float(scores[column].mean()) for name, column in COLUMNS.items()}


def table(results: Runs) -> pd.DataFrame:
    """The means of several searches, a row each."""
    return pd.DataFrame({key: reached(scores) for key, (_, scores) in results.items()}).T


def pictures(batch: Batch, results: Runs) -> tuple[Figure, str]:
    """The photographs and what each attack restored of them."""
    return figures.comparison(batch, {name(key, "attack"): it for key, it in results.items()})


def plain_numbers(plain: pd.DataFrame) -> dict[str, float]:
    """Of the plain network, attack by attack."""
    numbers = {f"psnr_{attack}": mean for attack, mean in plain["PSNR"].items()}
    return numbers | {"thumb8": plain["8×8"]["gleak"]}


def plain_claims(plain: pd.DataFrame, exact: bool) -> dict[str, bool]:
    """exact: whether all labels were restored."""
    psnr = plain["PSNR"]
    beats = psnr["gleak"] > plain["8×8"]["gleak"] + 2
    return {
        "labels restored exactly": exact,
        "the study's attack beats the 8x8 thumbnails by 2 dB": beats,
        "it is ahead of both others by 3 dB": psnr["gleak"] > psnr.drop("gleak").max() + 3,
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


def labels(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `labels_read`, by network and method."""
    columns = ["instance", "chance", "exact"]
    return frame.set_index(["model", "method"])[columns].rename_axis([None, None])


def label_numbers(read: pd.DataFrame, trained: str) -> dict[str, float]:
    """trained: the name of the trained network."""
    rules = ("zlg", "idlg", "gleak")
    shares = {rule: read["instance"].get((trained, rule), NAN) for rule in rules}
    return {f"{method}_trained": share for method, share in shares.items()}


def label_claims(read: pd.DataFrame) -> dict[str, bool]:
    """Whether one of the methods reads nearly all labels, for each network."""
    best = read["instance"].groupby(level=0, sort=False).max()
    words = "the best method names 90 % of the labels"
    return {f"{model}: {words}": bool(share >= 0.9) for model, share in best.items()}


def card(stored: pd.DataFrame) -> pd.DataFrame:
    """The runs on the graphics card with photographs, by case and attack."""
    runs = stored.set_index(["case", "attack"])
    return runs[runs.index.get_level_values("case").str.contains("resnet")].sort_index()


def card_numbers(runs: pd.DataFrame) -> dict[str, float]:
    """The best of the searches on the card, and the effort that it stands for."""
    return {
        "card_best": runs["psnr"].max(),
        "card_thumbs": runs["thumb8"].min(),
        "card_most": int(runs["iterations"].max()),
        "card_minutes": math.ceil(runs["seconds"].max() / 60),
    }


def card_claims(runs: pd.DataFrame) -> dict[str, bool]:
    """Whether any search on the card comes up to the thumbnails."""
    below = runs["psnr"].max() < runs["thumb8"].min()
    return {"every search at 224 pixels stays below the thumbnails": below}


# Verdicts

LARGE = 224  # pixels, of the photographs on the card


def verdict_on_labels(read: pd.DataFrame, trained: str, size: int, pixels: int) -> None:
    """Claim 1, and on the trained network claim 6; read: the rows of `labels_read`."""
    for model, runs in read.groupby("model", sort=False):
        known = model == trained
        network = name(str(model), "network")
        words = f"{size} photographs, {network}, {'trained on ImageNet' if known else 'untrained'}"
        where = setting(
            words, what="labels", images=size, pixels=pixels, trained=known, more=on(str(model))
        )
        verdict([1, 6] if known else [1], [(where, criterion.label_columns(runs, ["seed"]))])


def photo_columns(runs: Runs) -> dict[str, criterion.Finding]:
    """Both columns of one batch of photographs; runs: attack -> what it found."""
    frame = pd.concat([scores.assign(attack=attack) for attack, (_, scores) in runs.items()])
    return criterion.image_columns(frame, [])


def of_card(runs: pd.DataFrame) -> Iterator[tuple[str, int, str, pd.DataFrame]]:
    """Words, images, network and rows of each case on the card; runs: as `card` has them."""
    for case, rows in runs.reset_index().groupby("case", sort=False):
        network, mode, size = str(case).rsplit("-", 2)
        about = f"{size} photographs of {LARGE} pixels, {name(network, 'network')}"
        words = f"{about} in {mode} mode, on a graphics card"
        yield words, int(size), network, rows


def verdict_on_images(
    plain: Runs,
    deep: Runs,
    trained: str | None,
    on_card: pd.DataFrame,
    *,
    model: str,
    sides: tuple[int, int],
) -> None:
    """Claim 2, and on the trained network claim 6.

    plain: attack -> what it found; deep: the same of `gleak` by the mode of batch norm. trained:
    the name of a trained network, on which no search was long enough to be judged. sides: pixels in
    the plain and in the deep network.
    """
    size = len(next(iter(plain.values()))[1])
    words = f"{size} photographs of {sides[0]} pixels, {model}, equal time"
    rows: list[Row] = [
        (setting(words, images=size, pixels=sides[0], more=on(str(model))), photo_columns(plain))
    ]
    for mode, found in deep.items():
        words = f"{size} photographs of {sides[1]} pixels, ResNet-18 in {mode}"
        where = setting(words, images=size, pixels=sides[1], more=on("resnet18"))
        rows.append((where, photo_columns({"gleak": found})))
    for words, images, network, runs in of_card(on_card):
        where = setting(words, images=images, pixels=LARGE, more=on(network))
        rows.append((where, criterion.image_columns(runs, ["seed"])))
    verdict([2], rows)
    if trained:
        words = f"photographs, {name(trained, 'network')}, trained on ImageNet"
        where = setting(words, images=1, pixels=sides[0], trained=True, more=on(trained))
        verdict([2, 6], [(where, dict.fromkeys(VERDICT_COLUMNS, criterion.untested("any")))])


def verdict_on_rivals(on_card: pd.DataFrame) -> None:
    """Claim 7, from the runs with GradInversion in them."""
    rows: list[Row] = []
    for words, images, network, runs in of_card(on_card):
        if "gradinversion" in set(runs.attack):
            where = setting(words, images=images, pixels=LARGE, more=on(network))
            rows.append((where, criterion.rival_columns(runs, ["seed"], "general")))
    verdict([7], rows)
