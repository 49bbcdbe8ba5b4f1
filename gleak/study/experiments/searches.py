"""What several chapters on images share: batches of samples, and a search with its scores."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

import gleak
from gleak.data import Batch, draw
from gleak.inversion import Attack, Inversion
from gleak.update import GradientUpdate, Update

# Of the shipped samples: images of eight classes of CIFAR-10, eight more that no setting was chosen
# on, and images of sixteen classes of CIFAR-100.
DISTINCT = [0, 1, 3, 4, 6, 11, 12, 13]
FRESH = [5, 8, 9, 10, 14, 15, 16, 17]
SIXTEEN = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 17]
# Images on which weights, steps or sizes of the searches were chosen: data set -> their numbers.
CHOSEN_ON = {
    "cifar10-samples": {0, 1, 2, 3, *DISTINCT},
    "cifar100-samples": set(SIXTEEN),
    "imagenet-samples": {0, 1},
}


def searched(
    update: Update, counts: torch.Tensor, batch: Batch, attack: str | Attack, **settings: Any
) -> tuple[Inversion, pd.DataFrame]:
    """What an attack finds in an update, and its scores against the client's batch.

    settings: as for `gleak.invert`.
    """
    found = gleak.invert(update, counts, attack, progress=False, **settings)
    return found, gleak.score(found.images, batch.images)


def sent(
    model: str, batch: Batch, seed: int, training: bool = True, device: str = "cpu"
) -> GradientUpdate:
    """The gradient of a network as drawn by the seed, batch norm in train or in eval mode."""
    network = gleak.build_model(model, batch, seed=seed).to(device)
    return gleak.fedsgd(network, batch, training=training)


def samples(data: str, which: int | Sequence[int], image_size: int | None = None) -> Batch:
    """Images of the shipped samples of a data set by their numbers, or so many drawn of a pool."""
    if isinstance(which, int):
        return gleak.draw_batch(gleak.load_pool(data), which)
    return gleak.load_batch(f"{data}-samples", indices=which, image_size=image_size)


def unchosen(dataset: str, size: int, seed: int) -> Batch:
    """So many images of different classes, drawn among those on which no setting was chosen."""
    if dataset not in CHOSEN_ON:
        return gleak.load_batch(dataset, size=size, seed=seed, distinct_labels=True)
    others = [number for number in range(20) if number not in CHOSEN_ON[dataset]]
    labels = gleak.load_batch(dataset, indices=others).labels
    drawn = draw(labels, size, seed, distinct_labels=True)
    return gleak.load_batch(dataset, indices=[others[n] for n in drawn])


def one_of_each_class(pool: str, classes: int) -> Batch:
    """The first image of each of the first classes of a pool."""
    images = gleak.load_pool(pool)
    first = torch.cat([(images.labels == label).nonzero()[0] for label in range(classes)])
    return Batch(images.images[first], images.labels[first], images.class_names, images.dataset)


def one_wrong(batch: Batch) -> torch.Tensor:
    """(N,) the label counts of a batch, the first image taken for one of the first absent class."""
    counts = batch.label_counts.clone()
    counts[batch.labels[0]] -= 1
    counts[(batch.label_counts == 0).nonzero()[0]] += 1
    return counts
