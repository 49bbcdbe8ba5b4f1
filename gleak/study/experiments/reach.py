"""How far the closed forms reach on networks that people use: counted, peeled and searched."""

# ruff: noqa: N803 (arguments are named as the columns of the tables)

import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pandas as pd
import torch
from torch import nn

import gleak
from gleak.data import Batch
from gleak.inversion import Gleak, peel
from gleak.inversion.closed import Counted, Peeled, count_equations, ends_at
from gleak.study.experiments.images_fedsgd import peeled_error
from gleak.study.experiments.searches import DISTINCT, sent
from gleak.update import GradientUpdate

PHOTOS = [0, 1, 2, 3, 4, 5, 6, 8]  # of the samples of ImageNet: eight classes
SMALL = 32  # pixels, of CIFAR-10; larger images are photographs of ImageNet
DIGITS = 1e-5  # singular values below this share of the largest are lost in float32


def images_of(pixels: int, K: int) -> Batch:
    """The first K images: CIFAR-10's of 32 pixels, beyond eight with repeated labels, or photos."""
    if pixels == SMALL:
        chosen: Sequence[int] = DISTINCT[:K] if K <= 8 else range(K)
        return gleak.load_batch("cifar10-samples", indices=chosen)
    return gleak.load_batch("imagenet-samples", indices=PHOTOS[:K], image_size=pixels)


def counted(network: str, pixels: int, sizes: Sequence[int], mode: str) -> list[dict[str, Any]]:
    """For each batch size K, where the peeling ends by counting, and what there is there."""
    model, shape = drawn(network, pixels)
    counts = {K: count_equations(model, shape, K, training=mode == "train") for K in sizes}
    return [
        {"K": K, "layers": rows[0].index + 1, **at_end(rows, ends_at(rows))}
        for K, rows in counts.items()
    ]


@lru_cache(maxsize=1)
def drawn(network: str, pixels: int) -> tuple[nn.Module, tuple[int, int, int]]:
    """The network for images of so many pixels, and their shape."""
    batch = images_of(pixels, 1)
    return gleak.build_model(network, batch), batch.image_shape


def at_end(rows: Sequence[Counted], end: Counted | None) -> dict[str, Any]:
    """The layer where the peeling ends, and the next one towards the images.

    limit: why by counting: nothing ("image"), the classifier has too few classes ("start"), the
    places of a max-pooling ("places"), or too few equations ("equations"); "digits" where the
    counting finds enough.
    """
    if end is None:
        return {"limit": "image", "layer": "", "index": 0}
    after = rows[rows.index(end) + 1 :]
    found = {"limit": limit_of(rows, end), "layer": end.kind, "index": end.index}
    found |= numbers_of("", end)
    return found | (numbers_of("next_", after[0]) | {"next_layer": after[0].kind} if after else {})


def limit_of(rows: Sequence[Counted], end: Counted) -> str:
    """Why the peeling ends at a layer, by counting, see `at_end`."""
    if end.kind == "MaxPool2d":
        return "places"
    if end.share >= 1:
        return "digits"
    return "start" if end is rows[0] or end.kind.endswith("patches") else "equations"


def numbers_of(prefix: str, row: Counted) -> dict[str, Any]:
    """Equations, outputs told and unknowns of a layer, for each channel of its input."""
    return {
        f"{prefix}equations": row.equations,
        f"{prefix}outputs": round(row.outputs),
        f"{prefix}unknowns": row.unknowns,
        f"{prefix}share": round(row.share, 3),
    }


def peeled_to(
    network: str, pixels: int, K: int, mode: str, form: str, seed: int
) -> tuple[Batch, GradientUpdate, Peeled | None, dict[str, Any]]:
    """A batch, what its client sends, what that is peeled to, and where that ends.

    form: in which the client computes, "float32" or "float64".
    """
    batch = images_of(pixels, K)
    if form == "float64":
        model = gleak.build_model(network, batch, seed=seed).double()
        update = gleak.fedsgd(model, batch, training=mode == "train")
    else:
        update = sent(network, batch, seed, mode == "train")
    rows = count_equations(update.model, batch.image_shape, K, training=mode == "train")
    about: dict[str, Any] = {"layers": rows[0].index + 1}
    try:
        peeled = peel(update, batch.label_counts)
    except gleak.MissingKnowledge:
        start = next((row for row in rows if row.share < 1), rows[0])
        about |= at_end(rows, start) | {"limit": "start"} | patches_rank(update)
        return batch, update, None, about
    if peeled.ended_at is None:
        about |= at_end(rows, None)
    else:
        here = [row for row in rows if row.index == peeled.ended_at]
        # a layer that counting does not bound at all, ends for its digits
        end = min(here, key=lambda row: row.share)
        about |= at_end(rows, end)
        solved = any(peeled.front.depth <= row.index < rows[0].index for row in rows)
        if not solved and about["limit"] == "digits":
            about["limit"] = "start"  # equations enough, but the last block is not told apart
    values = peeled.activations
    about |= {
        "known": "x".join(map(str, values.shape[1:])),
        "known_at": peeled.front.depth,
        "active": round((values != 0).sum().item() / batch.images.numel(), 3),
        "error": float(f"{peeled_error(peeled, batch):.1e}"),
    }
    return batch, update, peeled, about


def patches_rank(update: GradientUpdate) -> dict[str, int]:
    """How many directions the gradient of the last convolution has: it tells as many patches.

    Those below `DIGITS` of the largest are rounding.
    """
    convs = [layer for layer in update.model.modules() if isinstance(layer, nn.Conv2d)]
    names = {id(weight): name for name, weight in update.model.named_parameters()}
    gradient = update.equivalent_gradient()[names[id(convs[-1].weight)]].double().flatten(1)
    values = torch.linalg.svdvals(gradient)
    return {"rank": int((values > DIGITS * values[0]).sum())}


def reached(
    network: str,
    pixels: int,
    K: int,
    mode: str,
    form: str,
    seed: int,
    *,
    search: bool,
    iterations: int | None,
) -> dict[str, Any]:
    """Where the peeling ends on one network and batch, and PSNR in dB of what `gleak` finds.

    search: whether images are searched for; iterations: of that, by default the attack's own.
    """
    began = time.process_time()
    batch, update, peeled, about = peeled_to(network, pixels, K, mode, form, seed)
    about["peel_seconds"] = round(time.process_time() - began, 1)
    if not search:
        return about
    began = time.process_time()
    attack = Gleak(peeled=peeled)
    settings: dict[str, Any] = {"iterations": iterations, "seed": seed, "progress": False}
    found = gleak.invert(update, batch.label_counts, attack, **settings)
    scores: pd.DataFrame = gleak.score(found.images, batch.images)
    return about | {
        "psnr": round(scores["psnr"].mean(), 2),
        "lowest": round(scores["psnr"].min(), 2),
        "thumb8": round(scores["thumb8"].mean(), 2),
        "mean_colour": round(scores["mean_colour"].mean(), 2),
        "iterations": len(found.history),
        "way": found.way,
        "search_seconds": round(time.process_time() - began, 1),
    }
