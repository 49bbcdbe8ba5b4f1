"""Searches that go on where they were interrupted, a kill or a power cut included.

An attack is a fixed sequence of searches: the same update, labels, settings and seed make the same
ones in the same order. Within `keeping(folder, key)` each of them writes down now and then how far
it is, and what it found once it has ended. Whoever runs the attack again with the same key gets
what has ended at once, and the search that was cut short goes on, to the same images as without the
cut. What is in between, closed forms above all, is done again.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gleak.storage import whole

SECONDS = 20.0  # between two states of a search: more is lost by a kill, less is time to write them

SHARE = 20  # times as long as writing took: L-BFGS remembers 200 batches of images


@dataclass
class Journal:
    """Where the searches of one attack are kept, and how many have begun."""

    folder: Path
    key: str
    begun: int = 0


_JOURNAL: ContextVar[Journal | None] = ContextVar("journal", default=None)


@contextmanager
def keeping(folder: Path, key: str) -> Iterator[None]:
    """Within it searches are kept in the folder, and go on there if they were begun with this key.

    key: tells one attack from another, of all that decides it; what was kept under another key is
    never read. `forget` removes it all.
    """
    token = _JOURNAL.set(Journal(folder, key))
    try:
        yield
    finally:
        _JOURNAL.reset(token)


def begun(folder: Path, key: str) -> bool:
    """Whether the folder has something of an attack of this key."""
    with keeping(folder, key):
        return bool(Page().read())


def forget(folder: Path) -> None:
    """Remove what was kept, and the folder unless something else lies in it."""
    if folder.is_dir():
        for file in folder.glob("search-[0-9]*.pt"):
            file.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()


class Page:
    """The state of one search on its way: `read` what was kept of it, `write` what it is at."""

    def __init__(self) -> None:
        journal = _JOURNAL.get()
        self.file: Path | None = None
        self.written, self.took = time.monotonic(), 0.0
        if journal is not None:
            self.file = journal.folder / f"search-{journal.begun}.pt"
            self.key, journal.begun = journal.key, journal.begun + 1

    def read(self) -> dict[str, Any]:
        """What was kept of this search; empty where nothing was, or it is damaged."""
        if self.file is None:
            return {}
        try:
            found = torch.load(self.file, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError):
            return {}
        return found["state"] if found.get("key") == self.key else {}

    def due(self) -> bool:
        """Whether it is time to write; asked at each step."""
        wait = max(SECONDS, SHARE * self.took)
        return self.file is not None and time.monotonic() - self.written >= wait

    def write(self, **state: Any) -> None:
        """Keep this state in place of the one before. Nothing is kept outside of `keeping`."""
        if self.file is None:
            return
        began = time.monotonic()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with whole(self.file) as partial:
            torch.save({"key": self.key, "state": state}, partial)
        self.written = time.monotonic()
        self.took = self.written - began
