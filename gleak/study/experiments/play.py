"""Chapter 11a: the same images by batch size, stage of training and defence, one attacker for all.

The attacker is that of chapter 11: told the defence, in closed form where it can, else by search.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import nn

import gleak
from gleak.data import Batch
from gleak.study.experiments.common import model_options
from gleak.study.experiments.defences import knowing, precision_of, send

CLIENTS = 4  # behind a secure sum
DEFENCES = {  # a defence and its strength, as in chapter 11 -> its name on the page
    ("none", 0.0): "none",
    ("noise", 0.003): "noise 0.003",
    ("noise", 0.03): "noise 0.03",
    ("prune", 0.9): "send 10 % of the values",
    ("sum", 0.0): f"secure sum of {CLIENTS} clients",
}


@dataclass(frozen=True)
class Cell:
    """What came back of a client's images in one setting.

    size: K of the client; steps: of training before; defence: a name of DEFENCES. images:
    (K, C, H, W) in [0, 1], in the order of the client's. scores: as `gleak.score` has them.
    """

    size: int
    steps: int
    defence: str
    images: torch.Tensor
    scores: pd.DataFrame

    @property
    def lead(self) -> float:
        """Mean PSNR above that of thumbnails of 8x8 pixels, dB."""
        return float(self.scores["psnr"].mean() - self.scores["thumb8"].mean())

    @property
    def leaks(self) -> bool:
        """Whether the attack gave more than a thumbnail."""
        return self.lead > 0


def client_images(dataset: str, size: int, most: int) -> Batch:
    """The first `most` images of a pool (all, where it has fewer), `size` of as many classes first.

    Where a pool has fewer classes than that, its first images fill up.
    """
    pool = gleak.load_pool(dataset)
    labels = pool.labels.tolist()
    first = [labels.index(label) for label in dict.fromkeys(labels)][:size]
    order = (first + [n for n in range(len(labels)) if n not in first])[:most]
    return Batch(pool.images[order], pool.labels[order], pool.class_names, pool.dataset)


def restored(
    network: nn.Module, batch: Batch, defence: str, strength: float, *, iterations: int, seed: int
) -> tuple[torch.Tensor, pd.DataFrame]:
    """What the attacker restores of one update, in the order of the client's images, and scores."""
    update, counts = send(network, batch, defence, strength, seed), batch.label_counts
    found = None
    if defence == "none":
        with suppress(gleak.MissingKnowledge):  # no closed form may reach the images
            found = gleak.invert(update, counts, "exact")
    if found is None:
        precision = precision_of(update, defence, strength)
        known: Any = {"precision": precision, "iterations": iterations, "seed": seed}
        found = knowing(update, counts, defence, strength, **known)
    scores = gleak.score(found.images, batch.images)
    return found.images[scores["match"].tolist()], scores


def cells(
    dataset: str,
    model: str,
    sizes: Sequence[int],
    steps: Sequence[int],
    *,
    iterations: int,
    seed: int,
) -> list[Cell]:
    """A cell for every defence, stage of training and size of a client's batch.

    A client has the first images of one list. A secure sum adds the next ones for the others; what
    the server sees of it is what one client with all of these would send, so it is that update.
    """
    whole = client_images(dataset, max(sizes), CLIENTS * max(sizes))
    made = []
    for stage in steps:
        network = gleak.trained_model(
            model, dataset, steps=stage, seed=seed, **model_options(model)
        )
        known: dict[tuple[int, str, float], tuple[torch.Tensor, pd.DataFrame]] = {}
        for (defence, strength), name in DEFENCES.items():
            summed = defence == "sum"
            for size in sizes:
                count = min(size * CLIENTS if summed else size, len(whole))
                key = (count, "none" if summed else defence, strength)
                if key not in known:
                    part = Batch(whole.images[:count], whole.labels[:count], whole.class_names)
                    how = {"iterations": iterations, "seed": seed}
                    known[key] = restored(network, part, key[1], strength, **how)
                images, scores = known[key]
                made.append(Cell(size, stage, name, images[:size], scores.iloc[:size]))
    return made
