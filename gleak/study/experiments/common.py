"""What several chapters compute alike: their networks, their pools, the counts of many rules."""

from collections.abc import Sequence
from typing import Any

import torch

import gleak
from gleak.data import Batch
from gleak.update import Update

AUX_SIZE = 250  # images that no client has, where a pool can spare them
FIRST_SEED = 101  # of what the chapters report: nothing was chosen on it or those that follow


def fresh_seeds(count: int) -> range:
    """Seeds on which no setting was chosen (see `benchmarks/chosen.py`): so many from FIRST_SEED.

    >>> list(fresh_seeds(3))
    [101, 102, 103]
    """
    return range(FIRST_SEED, FIRST_SEED + count)


def model_options(model: str, width: int | None = None) -> dict[str, Any]:
    """How `build_model` makes a network of the study: LeNet with ReLU, a ConvNet of this width.

    ReLU features are never negative, so that no rule for labels has to refuse them. Other networks
    have no options.

    >>> model_options("lenet"), model_options("convnet", 8), model_options("resnet18")
    ({'activation': 'relu'}, {'width': 8}, {})
    """
    if model == "lenet":
        return {"activation": "relu"}
    return {"width": width} if model == "convnet" and width is not None else {}


def clients_and_aux(pool: Batch) -> tuple[Batch, Batch | None]:
    """Clients' images, and 250 that no client has; None in their place where a pool is too small.

    Images in [0, 1]; both parts keep all class names.
    """
    if len(pool) < 2 * AUX_SIZE:
        return pool, None
    clients, aux = (
        Batch(pool.images[part], pool.labels[part], pool.class_names)
        for part in (slice(0, -AUX_SIZE), slice(-AUX_SIZE, None))
    )
    return clients, aux


def counted(update: Update, methods: Sequence[str], **options: Any) -> dict[str, torch.Tensor]:
    """Method -> label counts (N,), for those methods that do not refuse the network.

    options: as for `gleak.compare_labels`.
    """
    try:
        return gleak.compare_labels(update, methods, **options)
    except ValueError:
        if len(methods) == 1:
            return {}
        each = [counted(update, [method], **options) for method in methods]
        return {method: counts for found in each for method, counts in found.items()}
