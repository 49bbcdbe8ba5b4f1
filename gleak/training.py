"""Small networks trained here, on the server's half of a pool, to a named stage.

Attacks on trained networks need trained networks; see `gleak.pools` for the images.
"""

import hashlib
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from gleak.data import Batch
from gleak.models import build_model
from gleak.pools import load_pool
from gleak.storage import cache_folder, whole


def train(model: nn.Module, pool: Batch, *, steps: int, seed: int = 0, lr: float = 1e-3) -> None:
    """Train the model in place: Adam on random batches of 64, mean cross-entropy, `steps` steps."""
    for _ in islice(training_of(model, pool, seed=seed, lr=lr), steps):
        pass


def training_of(
    model: nn.Module, pool: Batch, *, seed: int = 0, lr: float = 1e-3
) -> Iterator[nn.Module]:
    """The model, trained in place as by `train`, after each step; without end."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    model.train()
    while True:
        chosen = torch.randint(len(pool), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(pool.images[chosen]), pool.labels[chosen]).backward()
        optimizer.step()
        yield model


def trained_model(name: str, pool: str, *, steps: int, seed: int = 0, **options: Any) -> nn.Module:
    """A network after some steps of training on the server's half of a pool.

    Trained once and kept as a checkpoint in the cache folder (GLEAK_CACHE, else ~/.cache/gleak)
    under a digest of all that decides it, the images among it; one that is damaged is trained anew.

    Parameters
    ----------
    name
        Of the network, see `build_model`.
    pool
        Of the images, see `load_pool`.
    steps
        Of Adam on batches of 64; 0 leaves the network as drawn.
    seed
        Draws the weights and the batches.
    options
        As for `build_model`.

    Raises
    ------
    ValueError
        For an unknown network or pool, or negative steps.
    """
    if steps < 0:
        raise ValueError(f"steps must be at least 0; got {steps}")
    data = load_pool(pool, "server")
    model = build_model(name, data, seed=seed, **options)
    if steps == 0:
        return model
    start = torch.cat([value.flatten().double() for value in model.state_dict().values()])
    with torch.no_grad():  # one's own network may be the same but for what it computes
        logits = model.eval()(data.images[:8])
    model.train()
    recipe = f"{model} {steps} {seed} {sorted(options.items())} {torch.__version__}".encode()
    for decides in (start, logits, data.images, data.labels):
        recipe += hashlib.sha256(decides.numpy().tobytes()).digest()
    digest = hashlib.sha256(recipe).hexdigest()[:16]
    named = re.sub(r"[^\w.-]+", "-", f"{name}-{data.dataset}-{steps}-{digest}")
    file = cache_folder() / f"{named}.safetensors"
    checksum = file.with_suffix(".sha256")
    if file.exists() and checksum.exists() and checksum.read_text() == sha256(file):
        model.load_state_dict(load_file(file))
        return model
    train(model, data, steps=steps, seed=seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file) as partial:
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, partial)
    checksum.write_text(sha256(file))
    return model


@torch.no_grad()
def accuracy(model: nn.Module, pool: Batch) -> float:
    """The share of images that the model, in eval mode, names right; the mode is put back."""
    mode = model.training
    model.eval()
    right = [
        (model(images).argmax(1) == labels).sum().item()
        for images, labels in zip(pool.images.split(250), pool.labels.split(250), strict=True)
    ]
    model.train(mode)
    return sum(right) / len(pool)


def sha256(file: Path) -> str:
    """The checksum of a file, in hex."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
