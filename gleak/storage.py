"""Files that are either whole or not there, and where those lie that are kept for the next run."""

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


def cache_folder() -> Path:
    """Where checkpoints and finished settings are kept: GLEAK_CACHE, else ~/.cache/gleak."""
    return Path(os.environ.get("GLEAK_CACHE", Path.home() / ".cache" / "gleak"))
