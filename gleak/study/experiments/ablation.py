"""What the chapters that change one thing share: small networks, and a search of few steps."""

from typing import Any

from torch import nn

import gleak

# Half the resolution: fewer unknowns, so few steps suffice.
SEARCH: dict[str, Any] = {"tv": 0.02, "schedule": "cosine", "resolution": 0.5, "start": "gray"}


def family(name: str, width: int) -> tuple[str, dict[str, Any]]:
    """What `build_model` and `trained_model` take for a network: its name there, and its options.

    convnet has `width` channels, lenet-relu is the lenet with ReLU, all others are as they are.
    """
    known: dict[str, tuple[str, dict[str, Any]]] = {
        "convnet": ("convnet", {"width": width}),
        "lenet-relu": ("lenet", {"activation": "relu"}),
    }
    return known.get(name, (name, {}))


def untrained(name: str, batch: gleak.Batch, seed: int, width: int) -> nn.Module:
    """The network of that name for the batch, its weights drawn by the seed."""
    name, options = family(name, width)
    return gleak.build_model(name, batch, seed=seed, **options)
