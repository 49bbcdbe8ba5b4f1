"""Files that are either whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` once the block has ended well.

    A full disk, a kill or an error leaves the old file as it was, and nothing half-written.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # runs may be side by side
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
