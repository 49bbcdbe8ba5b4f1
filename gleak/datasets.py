"""Where images come from: each data set as labels and a function that reads one image.

Opening a set lists its files; an image is read when it is asked for. The sets that torchvision has
in a few large files (all but ImageNet) are read by torchvision, and kept for the next call.
"""

import gzip
import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision import datasets
from torchvision.models import ResNet18_Weights
from torchvision.transforms import functional as transforms

from gleak.extras import extra
from gleak.folders import KINDS, Listing, MissingData, class_folders, flat_folder, folder_name

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
DIGITS = list("0123456789")
STL10 = "airplane bird car cat deer dog horse monkey ship truck".split()
IMAGENET = ResNet18_Weights.DEFAULT.meta["categories"]

# Name of a set -> (prefix of its files in foolbox's data folder, class names). Twenty images each.
SAMPLES = {
    "cifar10-samples": ("cifar10", CIFAR10),
    "cifar100-samples": ("cifar100", CIFAR100),
    "imagenet-samples": ("imagenet", IMAGENET),
    "mnist-samples": ("mnist", DIGITS),
    "fashion-mnist-samples": ("fashionMNIST", FASHION),
}

# Name -> (class in torchvision, class names).
TORCHVISION = {
    "cifar10": (datasets.CIFAR10, CIFAR10),
    "cifar100": (datasets.CIFAR100, CIFAR100),
    "mnist": (datasets.MNIST, DIGITS),
    "fashion-mnist": (datasets.FashionMNIST, FASHION),
    "svhn": (datasets.SVHN, DIGITS),
    "stl10": (datasets.STL10, STL10),
}
# Where Debian's package dataset-fashion-mnist puts the files of that set's authors.
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
IMAGENET_FOLDERS = {"train": "train", "test": "val"}  # its test labels are not public


@dataclass(frozen=True)
class Source:
    """A data set as labels and a way to its images.

    name: as it was asked for, but of a path only the last folder, as names are printed.
    labels: (n,) long; read: index -> image (C, H, W) float in [0, 1]; image_size: what images are
    cut to unless the caller says otherwise, None for the size they have.
    """

    name: str
    labels: torch.Tensor
    class_names: Sequence[str]
    read: Callable[[int], torch.Tensor]
    image_size: int | None = None


def open_source(name: str, root: str | Path | None = None, download: bool = False) -> Source:
    """The data set of this name; see `gleak.load_batch` for what names there are.

    Raises ValueError for an unknown name or a folder that cannot serve, MissingData for a set that
    is not here.
    """
    kind, colon, rest = name.partition(":")
    if name in SAMPLES:
        return samples(name)
    if colon and kind in KINDS:
        named = folder_name(name)
        if named is None:
            raise ValueError(f"{name!r} names no folder; write {kind}:PATH")
        found = class_folders(named.path) if kind == "folder" else flat_folder(named.path)
        shown = named._replace(path=Path(named.path.resolve().name))
        return of_files(f"{shown}", found, named.image_size)
    part = rest if colon else "test"
    if (kind in TORCHVISION or kind == "imagenet") and part in ("train", "test"):
        root = root or os.environ.get("GLEAK_DATA")
        if not root and kind == "fashion-mnist" and DEBIAN_FASHION.is_dir():
            return packed_fashion(part, DEBIAN_FASHION)
        if not root:
            raise MissingData(
                f"{kind} does not ship with gleak: say where torchvision's data lie, by root=... "
                "or by the environment variable GLEAK_DATA (download=True fetches them there)"
            )
        root = Path(root).expanduser()
        return imagenet(root, part) if kind == "imagenet" else stored(kind, part, root, download)
    raise ValueError(f"unknown data set {name!r}; known: {', '.join(known_names())}")


def known_names(shipped: bool = False) -> list[str]:
    """All names, those that take a path with PATH in its place; `shipped`: the samples alone."""
    return [*SAMPLES] + [*TORCHVISION, "imagenet", "folder:PATH", "images:PATH"] * (not shipped)


def samples(name: str) -> Source:
    """The twenty images of a set that ship with foolbox."""
    prefix, class_names = SAMPLES[name]
    files = sample_files(prefix)
    found = Listing(files, [int(file.stem.split("_")[-1]) for file in files], class_names)
    return of_files(name, found, 224 if prefix == "imagenet" else None)


def sample_files(prefix: str) -> list[Path]:
    """The image files, PREFIX_INDEX_LABEL.ext, in the order of their index."""
    return sorted(shipped("foolbox", "data").glob(f"{prefix}_*"))


def shipped(package: str, *parts: str) -> Path:
    """A path inside of a package of which only the files are read.

    It is not imported: its own imports are of no use here, and take seconds.
    """
    spec = importlib.util.find_spec(package)
    with extra("samples"):
        if spec is None or spec.submodule_search_locations is None:
            raise ModuleNotFoundError(name=package)
    (folder,) = spec.submodule_search_locations
    return Path(folder, *parts)


@lru_cache(maxsize=2)
def stored(name: str, part: str, root: Path, download: bool) -> Source:
    """A set in torchvision's own files under `root`, fetched there if asked to."""
    kind, class_names = TORCHVISION[name]
    by_split = kind in (datasets.SVHN, datasets.STL10)
    chosen = {"split": part} if by_split else {"train": part == "train"}
    try:
        data = kind(root, download=download, **chosen)
    except (RuntimeError, OSError) as error:
        if download:
            raise MissingData(f"{name} could not be fetched into {root}: {error}") from error
        raise MissingData(
            f"{name} is not in {root}, or its files are damaged: put there what torchvision's "
            f"{kind.__name__} expects, or let it be fetched with download=True"
        ) from error
    labels = torch.as_tensor(np.asarray(data.labels if by_split else data.targets)).long()
    full = name if part == "test" else f"{name}:{part}"
    return Source(full, labels, class_names, lambda index: transforms.to_tensor(data[index][0]))


@lru_cache(maxsize=2)
def packed_fashion(part: str, folder: Path) -> Source:
    """Fashion-MNIST in its authors' packed files: images of 28x28 bytes and labels of one byte."""
    prefix = folder / ("t10k" if part == "test" else "train")
    try:
        with gzip.open(f"{prefix}-images-idx3-ubyte.gz") as file:
            pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
        with gzip.open(f"{prefix}-labels-idx1-ubyte.gz") as file:
            labels = np.frombuffer(file.read(), np.uint8, offset=8)
    except (OSError, EOFError, ValueError) as error:
        raise MissingData(f"{folder} has no complete Fashion-MNIST: {error}") from error
    name = "fashion-mnist" if part == "test" else f"fashion-mnist:{part}"
    return Source(
        name,
        torch.tensor(labels).long(),
        FASHION,
        lambda index: torch.tensor(pixels[index]).float() / 255,
    )


def imagenet(root: Path, part: str) -> Source:
    """ImageNet as torchvision unpacks it: imagenet/val/n01440764/*.JPEG and so on, 1000 folders."""
    folder = root / "imagenet" / IMAGENET_FOLDERS[part]
    if not folder.is_dir():
        raise MissingData(
            f"ImageNet is not in {folder}: it cannot be fetched without an account. Put its "
            f"archives into {folder.parent} and let torchvision.datasets.ImageNet unpack them"
        )
    found = class_folders(folder)
    if len(found.class_names) != len(IMAGENET):
        raise ValueError(f"{folder} has {len(found.class_names)} folders of classes, not 1000")
    return of_files("imagenet", found._replace(class_names=IMAGENET), 224)


def of_files(name: str, found: Listing, image_size: int | None) -> Source:
    """A source of files that are read when they are asked for."""
    labels = torch.tensor(found.labels)
    return Source(
        name, labels, found.class_names, lambda index: read_image(found.files[index]), image_size
    )


# Pillow's names of what can be turned into RGB without a guess.
COLOURS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")


def read_image(file: Path) -> torch.Tensor:
    """An image file as (C, H, W) float in [0, 1]: one channel if it is gray, else three.

    Turned as its EXIF orientation says. Transparent pixels are put on white, palettes and CMYK
    become RGB, 16-bit gray keeps its depth, and 16-bit colour the upper 8 bits. Of several frames
    the first is read.

    Raises ValueError that names the file when it is broken, too large to be meant, of a colour
    space that says not what its numbers mean, or its values have no known range.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # of a path Pillow 13 maps uncompressed TIFFs, and those that are turned come out wrong
            with file.open("rb") as stream, Image.open(stream) as opened:
                opened.load()
                image = ImageOps.exif_transpose(opened)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Warning, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} is not a readable image: {error}") from error
    if image.mode not in COLOURS and not image.mode.startswith(("I", "F")):
        raise ValueError(f"{file} is in {image.mode}, which is not read here: save it as RGB")
    if image.mode.startswith(("I", "F")):  # gray of more than 8 bits; Pillow says not of how many
        pixels = torch.from_numpy(np.array(image, dtype=np.float64))
        clear = pixels == image.info.get("transparency", np.nan)
        if image.mode != "F":
            pixels = pixels / 65535
        pixels[clear] = 1
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(f"{file} has values outside 16-bit integers or floats in [0, 1]")
        return pixels.float()[None]
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        gray = image.mode == "LA"
        image = Image.alpha_composite(white, image.convert("RGBA"))
        return transforms.to_tensor(image.convert("L" if gray else "RGB"))
    return transforms.to_tensor(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def cut(image: torch.Tensor, size: int) -> torch.Tensor:
    """The shorter side resized to `size` pixels, and the centre square of that."""
    image = transforms.resize(image, [size], antialias=True).clamp(0, 1)
    return transforms.center_crop(image, [size])
