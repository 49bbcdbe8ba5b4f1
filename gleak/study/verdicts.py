"""Verdicts as records in notebooks: `book.verdict` writes them, the last chapter reads them."""

import os
from collections.abc import Iterable
from pathlib import Path

MIME = "application/vnd.gleak.verdict+json"
FOLDER = "GLEAK_NOTEBOOKS"  # where a chapter that sums up finds the notebooks of its profile

VERDICTS = ("holds", "holds partly", "does not hold")


def stored_verdicts(notebooks: Iterable[Path]) -> list[dict]:
    """The records in executed notebooks, in their order, each with the name of its chapter."""
    import nbformat  # half a second

    records = []
    for file in notebooks:
        for cell in nbformat.read(file, as_version=4).cells:
            for output in cell.get("outputs", []):
                record = output.get("data", {}).get(MIME)
                if record is not None:
                    records.append({"chapter": file.stem, **record})
    return records


def notebook_folder() -> Path:
    """The executed notebooks beside the one that asks: its profile's folder, else where it runs."""
    return Path(os.environ.get(FOLDER, "."))
