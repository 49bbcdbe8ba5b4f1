"""Large batches and full-size photographs: one search of an attack within a time."""

import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gleak
from gleak.data import Batch
from gleak.inversion import Inversion, InversionFailed
from gleak.study.experiments.budget import iterations_within
from gleak.study.experiments.searches import samples, sent
from gleak.update import Update

SMALL = (
    64  # pixels; convolutions of larger images are searched with TensorFloat-32, or take too long
)


def client_of(
    model: str,
    training: bool,
    data: str,
    which: int | Sequence[int],
    image_size: int | None,
    seed: int,
    device: str,
) -> tuple[Batch, Update]:
    """The batch and the update that its client sends, computed with all digits of float32."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    batch = samples(data, which, image_size)
    return batch, sent(model, batch, seed, training, device)


def searched_within(
    *,
    seconds: float,
    most: int,
    attack: str,
    settings: Mapping[str, Any],
    seed: int,
    pictures: str,
    **client: Any,
) -> dict[str, float]:
    """Mean scores and baselines of one search of so many seconds, or of `most` iterations.

    settings: of the attack; client: as for `client_of`; pictures: the file that keeps originals and
    restorations as bytes.
    """
    batch, update = client_of(seed=seed, **client)
    torch.backends.cudnn.allow_tf32 = batch.images.shape[-1] > SMALL

    def run(iterations: int) -> Inversion:
        asked: Any = {"iterations": iterations, "seed": seed, "progress": False, **settings}
        try:
            return gleak.invert(update, batch.label_counts, attack, **asked)
        except InversionFailed as error:
            return error.best

    iterations = iterations_within(seconds, run, time.perf_counter, (12, 36), most)
    began = time.perf_counter()
    result = run(iterations)
    taken = time.perf_counter() - began
    scores = gleak.score(result.images, batch.images)
    restored = result.images[scores["match"].tolist()]
    np.savez_compressed(pictures, originals=as_bytes(batch.images), restored=as_bytes(restored))
    means = scores[["psnr", "ssim", "thumb8", "mean_colour"]].mean().round(3)
    return {
        "images": len(batch),
        "iterations": len(result.history),
        "psnr": means["psnr"],
        "lowest": round(scores["psnr"].min(), 3),
        **means[["ssim", "thumb8", "mean_colour"]].to_dict(),
        "seconds": round(taken, 1),
    }


def as_bytes(images: torch.Tensor) -> np.ndarray:
    """(K, C, H, W) in [0, 1] as the first eight of them in bytes."""
    return (images[:8] * 255).round().to(torch.uint8).cpu().numpy()


def picture_rows(files: Sequence[Path]) -> torch.Tensor:
    """The first four originals, and below what each search made of them: a grid's images."""
    kept = [np.load(file) for file in files]
    rows = [kept[0]["originals"][:4], *(found["restored"][:4] for found in kept)]
    tiles = torch.from_numpy(np.concatenate(rows)).float().div(255)
    scale = max(1, 128 // tiles.shape[-1])  # pixels of small images stay squares
    return tiles.repeat_interleave(scale, 2).repeat_interleave(scale, 3)


def step_costs(attacks: Sequence[str], **client: Any) -> dict[str, float]:
    """Milliseconds of a step of each attack on a graphics card, and its waits for the card."""
    batch, update = client_of(**client)
    found: dict[str, float] = {}
    for attack in attacks:
        seconds, waits = {}, {}
        for iterations in (20, 12, 36):  # the first to warm up
            began = time.perf_counter()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                settings: Any = {"iterations": iterations, "progress": False}
                gleak.invert(update, batch.label_counts, attack, **settings)
                torch.cuda.set_sync_debug_mode("default")
            waits[iterations] = sum("synchroniz" in str(warning.message) for warning in caught)
            seconds[iterations] = time.perf_counter() - began
        found[f"{attack}_ms"] = round(1000 * (seconds[36] - seconds[12]) / 24, 1)
        found[f"{attack}_waits"] = (waits[36] - waits[12]) / 24
        found[f"{attack}_set_up"] = round(seconds[12] - found[f"{attack}_ms"] * 0.012, 1)
    found["peak_mb"] = torch.cuda.max_memory_allocated() >> 20
    return found
