"""A first guess of images by linear regression from what a closed form gave.

A search behind many ReLUs ends where it begins: in an image that is right in places, and in others
has the wrong sign. But activations of many channels are nearly a linear code of the image around
them. How to read it takes no data: smooth random images go through the known network, and least
squares tells a block of the image from the window of activations around its position.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from gleak.inversion.closed.chain import Reshape
from gleak.inversion.closed.peel import Peeled
from gleak.labels.statistics import random_inputs

WINDOWS = (3, 1)  # sides of the window of activations that tells a block, the better first
ROWS = (8, 2)  # equations for each unknown of the regression: wished for, and needed
IMAGES = 64  # drawn at most
RIDGE = 1e-5  # of the mean square of the activations


@torch.no_grad()
def linear_guess(peeled: Peeled, shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor | None:
    """Images (K, C, H, W) in [0, 1] that the activations make likely, as float32 on the CPU.

    shape: (C, H, W) of an image. seed: of the images that are drawn.

    None where the activations have no positions, or are too many channels for so few of these.
    """
    entered = positions_of(peeled)
    if entered is None or entered[1] > shape[1] or entered[2] > shape[2]:
        return None
    channels, height, width = entered
    window, count = None, 0
    for side in WINDOWS:
        unknowns = channels * side**2 + 1
        count = min(math.ceil(ROWS[0] * unknowns / (height * width)), IMAGES)
        if count * height * width >= ROWS[1] * unknowns:
            window = side
            break
    if window is None:
        return None
    known, size = peeled.activations, len(peeled.activations)
    block = (math.ceil(shape[1] / height), math.ceil(shape[2] / width))
    whole = (height * block[0], width * block[1])
    count = size * math.ceil(count / size)  # batch norm in train mode takes batches of the size
    square, side_of = known.new_zeros(()), known.new_zeros(())
    for images in random_inputs(count, shape, [seed], "natural").to(known).split(size):
        seen = windows(peeled.trunk(images).view(size, *entered), window)
        target = F.unfold(resized(images, whole), block, stride=block).transpose(1, 2).flatten(0, 1)
        square, side_of = square + seen.T @ seen, side_of + seen.T @ target
    square, side_of = square.double(), side_of.double()
    square.diagonal().add_(RIDGE * square.diagonal().mean())
    read = torch.linalg.solve(square, side_of).to(known)
    blocks = (windows(known.view(size, *entered), window) @ read).unflatten(0, (size, -1))
    images = F.fold(blocks.transpose(1, 2), whole, block, stride=block)
    return resized(images, shape[1:]).clamp(0, 1).float().cpu()


def positions_of(peeled: Peeled) -> tuple[int, int, int] | None:
    """The shape (C, h, w) of one image's activations, also where they were flattened since."""
    shape, steps = tuple(peeled.activations.shape[1:]), peeled.front.chain.steps
    for step in reversed(steps[: peeled.front.depth]):
        if len(shape) == 3 or not isinstance(step.layer, nn.Flatten | Reshape | nn.Identity):
            break
        shape = step.entering
    return shape if len(shape) == 3 else None


def windows(values: torch.Tensor, side: int) -> torch.Tensor:
    """The windows around each position of values (K, C, h, w), and a one: (K x h x w, ...)."""
    seen = F.unfold(values, side, padding=side // 2).transpose(1, 2).flatten(0, 1)
    return torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)


def resized(images: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Images (K, C, H, W) at another size, if it is another."""
    if images.shape[2:] == tuple(size):
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)
