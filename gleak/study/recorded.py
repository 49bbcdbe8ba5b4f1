"""Recorded tables: what takes too long for a chapter, as CSV with lines of provenance on top."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from gleak.storage import whole


def read(file: str | Path) -> pd.DataFrame:
    """The rows of a recorded table."""
    return pd.read_csv(file, comment="#")


def provenance(file: str | Path) -> str:
    """The lines that say how a recorded table was made, as they stand on top of it."""
    lines = Path(file).read_text().splitlines(keepends=True)
    return "".join(line for line in lines if line.startswith("#"))


def write(file: str | Path, frame: pd.DataFrame, provenance: Iterable[str]) -> None:
    """Write a table in one go, below its lines of provenance (given without the sign in front)."""
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    head = "".join(f"# {line}\n" for line in provenance)
    with whole(path) as partial:
        partial.write_text(head + frame.to_csv(index=False))
