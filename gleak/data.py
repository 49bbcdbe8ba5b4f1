"""A client's images and labels, and the real sample images that ship with a dependency."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.models import ResNet18_Weights
from torchvision.transforms import functional as transforms

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
CIFAR100 = """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout
tulip turtle wardrobe whale willow_tree wolf woman worm""".split()
FASHION = "t-shirt trouser pullover dress coat sandal shirt sneaker bag ankle_boot".split()

# Name of a set -> (prefix of its files in foolbox's data folder, class names). Twenty images each.
SAMPLES = {
    "cifar10-samples": ("cifar10", CIFAR10),
    "cifar100-samples": ("cifar100", CIFAR100),
    "imagenet-samples": ("imagenet", ResNet18_Weights.DEFAULT.meta["categories"]),
    "mnist-samples": ("mnist", list("0123456789")),
    "fashion-mnist-samples": ("fashionMNIST", FASHION),
}


@dataclass(frozen=True, eq=False)
class Batch:
    """What a client holds and never sends.

    images: (K, C, H, W) float in [0, 1]; labels: (K,) long in [0, N); class_names: the N names.

    Raises ValueError when the batch is empty, a shape or a dtype is wrong, a pixel is not in
    [0, 1] (or not a number), or a label names no class.
    """

    images: torch.Tensor
    labels: torch.Tensor
    class_names: Sequence[str]
    dataset: str = "custom"

    def __post_init__(self):
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
        return len(self.class_names)

    @property
    def label_counts(self) -> torch.Tensor:
        """(N,) long: how often each class occurs, the lambda_n of the formulas."""
        return torch.bincount(self.labels, minlength=self.num_classes)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        channels, height, width = self.images.shape[1:]
        names = ", ".join(self.class_names[label] for label in self.labels[:8].tolist())
        return (
            f"Batch of {len(self)} from {self.dataset}, {channels}x{height}x{width}, "
            f"{self.num_classes} classes: {names}{', ...' if len(self) > 8 else ''}"
        )


def list_datasets() -> list[str]:
    """The names that `load_batch` takes."""
    return list(SAMPLES)


def load_batch(
    dataset: str,
    indices: Sequence[int] | None = None,
    *,
    size: int | None = None,
    seed: int = 0,
    distinct_labels: bool = False,
    image_size: int | None = None,
) -> Batch:
    """Real images by data set name, either those at `indices` or `size` of them drawn with `seed`.

    distinct_labels: draw at most one image of each class (with `size`).
    image_size: resize the shorter side to this and cut out the centre square, in pixels; by default
    images keep their size, except those of ImageNet (224).

    Raises ValueError for an unknown data set, indices out of range, or a size that cannot be met.

    >>> load_batch("cifar10-samples", indices=[0, 1])
    Batch of 2 from cifar10-samples, 3x32x32, 10 classes: cat, ship
    """
    if dataset not in SAMPLES:
        raise ValueError(f"unknown data set {dataset!r}; known: {', '.join(SAMPLES)}")
    prefix, class_names = SAMPLES[dataset]
    files = sample_files(prefix)
    labels = torch.tensor([int(file.stem.split("_")[-1]) for file in files])

    if (indices is None) == (size is None):
        raise ValueError("give either indices=[...] or size=K")
    if indices is None:
        indices = draw(labels, size, seed, distinct_labels)
    outside = [index for index in indices if not 0 <= index < len(files)]
    if outside:
        raise ValueError(f"{dataset} has images 0..{len(files) - 1}; there is no {outside}")
    if len(indices) == 0:
        raise ValueError("an empty batch: at least one index is needed")

    if prefix == "imagenet" and image_size is None:
        image_size = 224
    images = torch.stack([read_image(files[index], image_size) for index in indices])
    return Batch(images, labels[list(indices)], class_names, dataset)


def sample_files(prefix: str) -> list[Path]:
    """The image files, PREFIX_INDEX_LABEL.ext, in the order of their index."""
    # find_spec does not import foolbox, whose own imports are of no use here.
    (folder,) = importlib.util.find_spec("foolbox").submodule_search_locations
    return sorted(Path(folder, "data").glob(f"{prefix}_*"))


def read_image(file: Path, image_size: int | None) -> torch.Tensor:
    """(C, H, W) float in [0, 1]."""
    image = transforms.to_tensor(Image.open(file))
    if image_size is not None:
        image = transforms.resize(image, [image_size], antialias=True).clamp(0, 1)
        image = transforms.center_crop(image, [image_size])
    return image


def draw(labels: torch.Tensor, size: int, seed: int, distinct_labels: bool) -> list[int]:
    """Indices of `size` images in random order, without repetition."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    if distinct_labels:
        first_of_class = {}
        for index in order:
            first_of_class.setdefault(labels[index].item(), index)
        order = list(first_of_class.values())
    if not 1 <= size <= len(order):
        kind = "distinct labels" if distinct_labels else "images"
        raise ValueError(f"there are {len(order)} {kind}, so size is 1..{len(order)}; got {size}")
    return order[:size]


def draw_batch(pool: Batch, size: int, *, alpha: float | None = None, seed: int = 0) -> Batch:
    """A client's batch of `size` images from a pool, with labels drawn first.

    alpha: the class shares are drawn from Dirichlet(alpha); the smaller, the more skewed. None:
    all classes are equally likely. Images of a class are not repeated while they last.

    Raises ValueError for a size below 1, an alpha that is not positive, or a pool without a class.
    """
    if size < 1 or (alpha is not None and alpha <= 0):
        raise ValueError(f"size and alpha must be positive; got {size} and {alpha}")
    if (pool.label_counts == 0).any():
        raise ValueError("the pool has no image of some class")
    generator = torch.Generator().manual_seed(seed)
    shares = torch.ones(pool.num_classes)
    if alpha is not None:
        # the gamma sampler of numpy keeps its stream across versions
        gamma = np.random.default_rng(seed).gamma(alpha, size=pool.num_classes)
        shares = torch.from_numpy(gamma).float() + 1e-30
    labels = torch.multinomial(shares, size, replacement=True, generator=generator)
    chosen = []
    for label, count in zip(*labels.unique(return_counts=True), strict=True):
        of_class = (pool.labels == label).nonzero().flatten()
        order = torch.randperm(len(of_class), generator=generator)
        chosen.append(of_class[order[torch.arange(int(count)) % len(order)]])
    chosen = torch.cat(chosen)
    return Batch(pool.images[chosen], pool.labels[chosen], pool.class_names, pool.dataset)
