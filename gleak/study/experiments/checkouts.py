"""Modules of other people's programs, from a checkout of theirs beside ours."""

import importlib
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType


@lru_cache
def load(folder: Path, name: str) -> ModuleType:
    """A module of a checkout, whose own modules are then forgotten: several are called `utils`."""
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
        inside = [n for n, m in sys.modules.items() if str(folder) in repr(vars(m).get("__spec__"))]
        for module in inside:
            del sys.modules[module]
