"""One experiment over many settings: a tidy frame, and nothing finished is lost or redone."""

import ast
import inspect
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from gleak.folders import folder_stamp
from gleak.inversion.search import interrupts_pass
from gleak.provenance import digest_of, package_digest, study_code, syntax
from gleak.storage import cache_folder, whole

PLAIN = (bool, int, float, str, type(None))


def product(**choices: Iterable) -> list[dict]:
    """All combinations of the choices, the last one running fastest.

    Parameters
    ----------
    choices
        Name to the values that it takes.

    Examples
    --------
    >>> product(lr=[0.1, 0.01], seed=range(2))[1]
    {'lr': 0.1, 'seed': 1}
    """
    names, values = list(choices), [list(choice) for choice in choices.values()]
    return [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*values)]


def run_grid(
    function: Callable,
    settings: Iterable[Mapping],
    *,
    common: Mapping | None = None,
    label: str = "settings",
    folder: Path | None = None,
) -> pd.DataFrame:
    """`function(**common, **setting)` for each setting: a frame with the settings and their rows.

    Each finished setting is stored under a digest of what decides it: the module of the function,
    the package's science, the arguments (of a folder of images: its files, too), the version of
    torch. An interrupted run stores nothing of the setting it was at, and goes on there. What a
    function of a notebook reads is not known, so its rows are not stored. With GLEAK_GRID=fresh in
    the environment everything is computed anew, unless a folder is named.

    Parameters
    ----------
    function
        Returns a dict of plain values (numbers, strings), or a list of them for several rows.
    settings
        The arguments of each run.
    common
        Arguments that all settings share; they are no columns of the frame.
    label
        Of the progress bar.
    folder
        Where finished settings are kept, by default with all others in the cache.

    Raises
    ------
    TypeError
        For values that are not plain. What the function raises passes through.
    """
    common = dict(common or {})
    fresh = folder is None and os.environ.get("GLEAK_GRID") == "fresh"
    folder, code = folder or cache_folder() / "grid", code_of(function)
    keep = code is not None
    rows = []
    for setting in tqdm(list(settings), desc=label, leave=False, disable=None):
        arguments = {**common, **setting}
        stamps = [folder_stamp(value) for value in arguments.values() if isinstance(value, str)]
        file = folder / f"{digest_of([code, arguments, stamps])[:32]}.json"
        found = stored(file) if keep and not fresh else None
        if found is None:
            with interrupts_pass():  # a search that was cut short is no result
                found = function(**arguments)
            made = [found] if isinstance(found, Mapping) else found
            found = [{name: plain(name, value) for name, value in row.items()} for row in made]
            if keep:
                folder.mkdir(parents=True, exist_ok=True)
                with whole(file) as partial:
                    partial.write_text(json.dumps(found))
        rows += [{**setting, **row} for row in found]
    return pd.DataFrame(rows)


def code_of(function: Callable) -> list | None:
    """What tells the code that a function runs from another; None for one of a notebook."""
    if function.__module__ == "__main__":
        return None
    source = inspect.getsource(sys.modules[function.__module__])
    own = digest_of(syntax(ast.parse(source)))
    where = [function.__module__, function.__qualname__, own]
    return [*where, study_code(source), package_digest(), torch.__version__]


def stored(file) -> list[dict] | None:
    """What a finished setting found, None if it has not been run (or its file is damaged)."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def plain(name: str, value):
    """The value as a plain one; TypeError if it is more than that."""
    if getattr(value, "size", None) == 1 or isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if not isinstance(value, PLAIN):
        raise TypeError(f"{name} must be a plain number or string; got {type(value).__name__}")
    return value
