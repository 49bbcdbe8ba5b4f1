"""Verdicts as records: `book.verdict` writes them into notebooks, chapter 12 sums them up.

A verdict is on claims, in several settings, for two columns: the paper's method as published, and
the best that any method of this study does. `criterion` grades each, `summary` several at once.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIME = "application/vnd.gleak.verdict+json"
FOLDER = "GLEAK_NOTEBOOKS"  # where a chapter that sums up finds the notebooks of its profile

COLUMNS = {"paper": "the paper's method as published", "any": "any method of this study"}
OWN = "the chapter's own runs"  # as opposed to recorded ones; read on other pages, too
FEW = 8  # images: few up to here, then many
SMALL = 64  # pixels a side: small up to here (mostly 32), then large (112 to 224)

# Conditions of the summary, and what they are called where a claim holds under one.
CONDITIONS: dict[str, dict[str, str]] = {
    "what": {"labels": "for labels", "images": "for images"},
    "stage": {"untrained": "on untrained networks", "trained": "on trained networks"},
    "update": {"FedSGD": "from gradients", "FedAvg": "from weights after local training"},
    "batch": {"few": f"for up to {FEW} images", "many": f"for more than {FEW} images"},
    "pixels": {
        "small": f"with pictures of up to {SMALL} pixels",
        "large": f"with pictures of more than {SMALL} pixels",
    },
}
KEYS = [*CONDITIONS, "more"]


@dataclass(frozen=True)
class Setting:
    """Where a verdict was measured: in words, and on which side of each condition.

    what: labels or images, whichever were to be restored. more: what else tells it from other
    settings, as `with sigmoids`; empty for nothing.
    """

    words: str
    what: str
    stage: str
    update: str
    batch: str
    pixels: str
    more: str = ""


def setting(
    words: str,
    *,
    what: str = "images",
    images: float,
    pixels: int = 32,
    trained: bool = False,
    weights: bool = False,
    more: str = "",
) -> Setting:
    """A setting by the images in a batch, their side in pixels, and what was sent.

    what: labels or images, whichever were to be restored.
    trained: at the server, before the update. weights: after local training, not a gradient.

    >>> setting("four photographs", images=4, pixels=224).pixels
    'large'
    """
    return Setting(
        words,
        what,
        "trained" if trained else "untrained",
        "FedAvg" if weights else "FedSGD",
        "few" if images <= FEW else "many",
        "small" if pixels <= SMALL else "large",
        more,
    )


def flat(stored: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A stored verdict as one row for each claim, setting and column.

    Each has claim, setting, column, the conditions, and what a Finding has.
    """
    return [
        {
            "claim": claim,
            "setting": row["setting"]["words"],
            "column": column,
            **{key: row["setting"][key] for key in KEYS},
            **row[column],
        }
        for row in stored["rows"]
        for claim in stored["claims"]
        for column in COLUMNS
    ]


def stored_verdicts(notebooks: Iterable[Path]) -> list[dict[str, Any]]:
    """The rows of all verdicts in executed notebooks, with the chapter of each and a link to it."""
    import nbformat  # half a second

    records = []
    for file in notebooks:
        about = {"chapter": file.stem, "link": f"{file.stem}.html#verdict"}
        for cell in nbformat.read(file, as_version=4).cells:
            for output in cell.get("outputs", []):
                stored = output.get("data", {}).get(MIME)
                if stored is not None:
                    records += [{**about, **row} for row in flat(stored)]
    return records


def notebook_folder() -> Path:
    """The executed notebooks beside the one that asks: its profile's folder, else where it runs."""
    return Path(os.environ.get(FOLDER, "."))
