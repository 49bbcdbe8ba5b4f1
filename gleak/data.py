"""A client's images and labels: a batch by the name of its data set, or from a pool of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gleak.datasets import cut, known_names, open_source


@dataclass(frozen=True, eq=False)
class Batch:
    """What a client holds and never sends.

    Parameters
    ----------
    images : (K, C, H, W) float
        Pixels in [0, 1].
    labels : (K,) long
        Classes in [0, N).
    class_names
        The N names.
    dataset
        The name of the data set that the images are from.

    Raises
    ------
    ValueError
        When the batch is empty, a shape or a dtype is wrong, a pixel is not in [0, 1] (or not a
        number), or a label names no class.
    """

    images: torch.Tensor
    labels: torch.Tensor
    class_names: Sequence[str]
    dataset: str = "custom"

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim != 4 or not images.is_floating_point():
            raise ValueError(
                "images must be a float tensor of shape (K, C, H, W); "
                f"got {images.dtype} of shape {tuple(images.shape)}"
            )
        if len(images) == 0:
            raise ValueError("an empty batch: at least one image is needed")
        if not (images.min() >= 0 and images.max() <= 1):  # also refuses NaN
            raise ValueError(
                "images must lie in [0, 1] (normalisation belongs to the model); "
                f"got values from {images.min():.3g} to {images.max():.3g}"
            )
        if labels.shape != (len(images),) or labels.dtype != torch.long:
            raise ValueError(
                f"labels must be a long tensor of shape ({len(images)},); "
                f"got {labels.dtype} of shape {tuple(labels.shape)}"
            )
        if labels.min() < 0 or labels.max() >= self.num_classes:
            raise ValueError(
                f"labels must lie in 0..{self.num_classes - 1}, one for each class name; "
                f"got {labels.tolist()}"
            )

    @property
    def num_classes(self) -> int:
        """N, the number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of each image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def label_counts(self) -> torch.Tensor:
        """(N,) long: how often each class occurs, the lambda_n of the formulas."""
        return torch.bincount(self.labels, minlength=self.num_classes)

    @property
    def names(self) -> list[str]:
        """The class name of each image."""
        return [self.class_names[label] for label in self.labels.tolist()]

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        names = ", ".join(self.names[:8])
        return (
            f"Batch of {len(self)} from {self.dataset}, {'x'.join(map(str, self.image_shape))}, "
            f"{self.num_classes} classes: {names}{', ...' if len(self) > 8 else ''}"
        )


def list_datasets(shipped: bool = True) -> list[str]:
    """The names that `load_batch` takes.

    Parameters
    ----------
    shipped
        Only those that the extra `samples` brings; else all of them.
    """
    return known_names(shipped)


def load_batch(
    dataset: str,
    indices: Sequence[int] | None = None,
    *,
    size: int | None = None,
    seed: int = 0,
    distinct_labels: bool = False,
    image_size: int | None = None,
    channels: int | None = None,
    root: str | Path | None = None,
    download: bool = False,
) -> Batch:
    """Real images by data set name, either those at `indices` or `size` of them drawn with `seed`.

    Parameters
    ----------
    dataset
        One of `list_datasets()`. The small ones come with the extra `samples`. Torchvision's, such
        as "cifar10" (the test images) or "cifar10:train", are looked for under `root`, else under
        the folder in GLEAK_DATA, and fetched only with `download`; without a folder,
        "fashion-mnist" is that of Debian's package, if installed. "folder:PATH" has a folder for
        each class; "images:PATH" is a flat folder of files named CLASS_NUMBER.ext, or one with a
        table labels.csv (columns file and label). "folder:PATH@64" and "images:PATH@64" also cut
        the images to squares of 64 pixels, as image_size does; a path that itself ends so is taken
        as it is.
    indices
        Numbers of the images, in their order.
    size
        How many images are drawn instead, in random order and none twice.
    seed
        Of that draw.
    distinct_labels
        Draw at most one image of each class (with `size`).
    image_size
        Resize the shorter side to this and cut out the centre square, in pixels; by default what
        the name says (`PATH@64`), else images keep their size, except those of ImageNet (224).
    channels
        1 makes all images gray, 3 gives gray ones three equal channels; by default images are as
        they are, and gray ones among coloured ones get three channels.
    root
        Where torchvision's data lie.
    download
        Whether torchvision may fetch them.

    Raises
    ------
    ValueError
        For an unknown data set, indices out of range, a size that cannot be met, images of unequal
        size, or a file that is no image.
    MissingData
        A FileNotFoundError, for data that are not there.
    ModuleNotFoundError
        For samples without their extra.

    Examples
    --------
    >>> load_batch("cifar10-samples", indices=[0, 1])
    Batch of 2 from cifar10-samples, 3x32x32, 10 classes: cat, ship
    """
    if (indices is None) == (size is None):
        raise ValueError("give either indices=[...] or size=K")
    if channels not in (None, 1, 3) or (image_size is not None and image_size < 1):
        raise ValueError(
            f"channels is 1 or 3 and image_size at least 1; got {channels}, {image_size}"
        )
    source = open_source(dataset, root, download)
    if indices is None:
        assert size is not None
        indices = draw(source.labels, size, seed, distinct_labels)
    count = len(source.labels)
    outside = [index for index in indices if not 0 <= index < count]
    if outside:
        raise ValueError(f"{dataset} has images 0..{count - 1}; there is no {outside}")
    if len(indices) == 0:
        raise ValueError("an empty batch: at least one index is needed")

    images = [source.read(index) for index in indices]
    side = image_size or source.image_size
    if side is not None:
        images = [cut(image, side) for image in images]
    shapes = sorted({tuple(image.shape[1:]) for image in images})
    if len(shapes) > 1:
        found = ", ".join(f"{height}x{width}" for height, width in shapes[:4])
        raise ValueError(
            f"images of unequal size ({found}): say to which square they are cut, in the name "
            f"({source.name}@64) or by image_size=64"
        )
    channels = channels or max(len(image) for image in images)
    stacked = torch.stack([with_channels(image, channels) for image in images])
    return Batch(stacked, source.labels[list(indices)], source.class_names, source.name)


def with_channels(image: torch.Tensor, channels: int) -> torch.Tensor:
    """(C, H, W) as gray (ITU-R 601 luma) or with three channels."""
    if channels == 3:
        return image.expand(3, -1, -1)
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    return image if len(image) == 1 else (image * luma).sum(0, keepdim=True).clamp_max(1)


def draw(labels: torch.Tensor, size: int, seed: int, distinct_labels: bool) -> list[int]:
    """Indices of `size` images in random order, without repetition."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    if distinct_labels:
        first_of_class: dict[float, int] = {}
        for index in order:
            first_of_class.setdefault(labels[index].item(), index)
        order = list(first_of_class.values())
    if not 1 <= size <= len(order):
        kind = "distinct labels" if distinct_labels else "images"
        raise ValueError(f"there are {len(order)} {kind}, so size is 1..{len(order)}; got {size}")
    return order[:size]


def draw_batch(pool: Batch, size: int, *, alpha: float | None = None, seed: int = 0) -> Batch:
    """A client's batch of `size` images from a pool, with labels drawn first.

    Classes that the pool has no image of are left out. Images of a class are not repeated while
    they last.

    Parameters
    ----------
    pool
        The images to draw from.
    size
        K, how many are drawn.
    alpha
        The class shares are drawn from Dirichlet(alpha); the smaller, the more skewed. None: all
        classes are equally likely.
    seed
        Of all draws.

    Raises
    ------
    ValueError
        For a size below 1 or an alpha that is not positive.
    """
    if size < 1 or (alpha is not None and alpha <= 0):
        raise ValueError(f"size and alpha must be positive; got {size} and {alpha}")
    generator = torch.Generator().manual_seed(seed)
    shares = torch.ones(pool.num_classes)
    if alpha is not None:
        # the gamma sampler of numpy keeps its stream across versions
        gamma = np.random.default_rng(seed).gamma(alpha, size=pool.num_classes)
        shares = torch.from_numpy(gamma).float() + 1e-30
    shares = shares * (pool.label_counts > 0)
    labels = torch.multinomial(shares, size, replacement=True, generator=generator)
    parts = []
    for label, count in zip(*labels.unique(return_counts=True), strict=True):
        of_class = (pool.labels == label).nonzero().flatten()
        order = torch.randperm(len(of_class), generator=generator)
        parts.append(of_class[order[torch.arange(int(count)) % len(order)]])
    chosen = torch.cat(parts)
    return Batch(pool.images[chosen], pool.labels[chosen], pool.class_names, pool.dataset)
