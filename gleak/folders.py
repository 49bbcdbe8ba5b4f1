"""Folders of images: their names (folder:PATH, images:PATH, with a size PATH@64) and their files.

Nothing here waits for torch, so that the command line can look at a name without it.
"""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gleak.provenance import digest_of

KINDS = ("folder", "images")


class MissingData(FileNotFoundError):
    """A data set that is not on this machine; the message says what to do about it."""


class FolderName(NamedTuple):
    """What such a name says; image_size: what images are cut to, None for the size they have."""

    kind: str
    path: Path
    image_size: int | None

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}" + (f"@{self.image_size}" if self.image_size else "")


def folder_name(name: str, base: Path = Path()) -> FolderName | None:
    """The parts of a name that holds a path (relative to `base`), None for all other names.

    A path that is there with an @ and a number at its end is taken as it is.
    """
    kind, _, rest = name.partition(":")
    if kind not in KINDS or not rest:
        return None
    home = os.path.expanduser  # noqa: PTH111, as Path's own fails at ~@64
    whole = base / home(rest)
    before, _, size = rest.rpartition("@")
    if not (before and size.isdecimal() and int(size) > 0) or whole.exists():
        return FolderName(kind, whole, None)
    return FolderName(kind, base / home(before), int(size))


def folder_stamp(name: str) -> str:
    """What tells a data set of one's own (`folder:PATH`, `images:PATH`) from what it was before.

    A digest of the names, sizes and times of its files; empty for all other names, and for a folder
    that is not there.
    """
    named = folder_name(name)
    if named is None:
        return ""
    path = named.path
    path = path.parent if path.is_file() else path  # a table of labels lies beside its images
    files = sorted(file for file in path.rglob("*") if file.is_file())
    about = [(file, file.stat()) for file in files]
    content = [(f.relative_to(path), s.st_size, s.st_mtime_ns) for f, s in about]
    return digest_of(content) if content else ""


class Listing(NamedTuple):
    """The images that a folder holds. labels: for each file the index of its class in the names."""

    files: Sequence[Path]
    labels: Sequence[int]
    class_names: Sequence[str]


def class_folders(path: Path) -> Listing:
    """One folder for each class, named after it, images anywhere in it (as in ImageFolder).

    Raises MissingData where there is no folder, ValueError without images or with less than two
    classes.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    check_folder(path)
    names = sorted(f.name for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))
    if len(names) < 2:
        hint = ": for images without class folders write images:PATH" if not names else ""
        raise ValueError(f"{path} has {len(names)} class folders; two or more are needed{hint}")
    number = {name: n for n, name in enumerate(names)}
    listed = make_dataset(path, number, IMG_EXTENSIONS, allow_empty=True)
    check_images(listed, path, IMG_EXTENSIONS)
    return Listing([Path(file) for file, _ in listed], [n for _, n in listed], names)


def flat_folder(path: Path) -> Listing:
    """Images side by side; their classes from a table, or else from their names.

    The table is a CSV with the columns file and label: `path` itself, or `labels.csv` in it. Else
    the class is the file's name up to its last _ or -: cat_001.png is a cat.

    Raises MissingData where there is no folder; ValueError without images, for a file that is not
    there or has no class, and with less than two classes.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS

    table = path if path.suffix.lower() == ".csv" else path / "labels.csv"
    if table.is_file():
        with table.open(newline="", encoding="utf-8-sig") as lines:
            rows = csv.DictReader(lines)
            if not {"file", "label"} <= set(rows.fieldnames or ()):
                raise ValueError(f"{table} needs the columns file and label")
            named = [(table.parent / row["file"], (row["label"] or "").strip()) for row in rows]
        lost = [file for file, _ in named if not file.is_file()]
        if lost:
            raise ValueError(f"{table} names {len(lost)} files that are not there: {lost[0]}")
    else:
        check_folder(path)
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in IMG_EXTENSIONS)
        if not files and any(f.is_dir() and not f.name.startswith(".") for f in path.iterdir()):
            raise ValueError(f"no images in {path}: for a folder for each class write folder:PATH")
        named = [(file, file.stem.replace("-", "_").rpartition("_")[0]) for file in files]
    unnamed = [file for file, label in named if not label]
    if unnamed:
        raise ValueError(
            f"no class for {unnamed[0]}: name files CLASS_NUMBER.ext, or put a table with the "
            "columns file and label beside them as labels.csv"
        )
    names = sorted({label for _, label in named}, key=natural)
    if len(names) == 1:
        raise ValueError(f"{path} has one class only ({names[0]}); two or more are needed")
    check_images(named, path, IMG_EXTENSIONS)
    number = {name: n for n, name in enumerate(names)}
    return Listing([file for file, _ in named], [number[label] for _, label in named], names)


def natural(name: str) -> tuple[int, int, str]:
    """A key that puts numbers in their order, before all other names."""
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)


def check_folder(path: Path) -> None:
    """Raise MissingData unless this is a folder."""
    if not path.is_dir():
        raise MissingData(f"no folder {path}")


def check_images(found: Sequence[object], path: Path, endings: Sequence[str]) -> None:
    """Raise ValueError when nothing was found."""
    if not found:
        raise ValueError(f"no images in {path}; known endings: {' '.join(endings)}")
