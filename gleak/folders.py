"""Names of data sets that hold a path: folder:PATH and images:PATH, with a size PATH@64."""

import os
from pathlib import Path
from typing import NamedTuple

from gleak.provenance import digest_of

KINDS = ("folder", "images")


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
