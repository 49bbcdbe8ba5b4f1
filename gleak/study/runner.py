"""One experiment over a grid of settings: a tidy frame, and nothing finished is lost or redone."""

import dis
import hashlib
import inspect
import itertools
import json
import os
import types
from collections.abc import Callable, Iterable, Mapping

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from gleak.data import Batch
from gleak.folders import folder_stamp
from gleak.provenance import digest_of, package_digest
from gleak.storage import whole
from gleak.training import cache_folder

PLAIN = (bool, int, float, str, type(None))


def product(**choices: Iterable) -> list[dict]:
    """All combinations of the choices, the last one running fastest.

    >>> product(lr=[0.1, 0.01], seed=range(2))[1]
    {'lr': 0.1, 'seed': 1}
    """
    names, values = list(choices), [list(choice) for choice in choices.values()]
    return [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*values)]


def run_grid(
    function: Callable, settings: Iterable[Mapping], *, label: str = "settings"
) -> pd.DataFrame:
    """`function(**setting)` for each setting: a frame with the settings and what was found.

    function returns a dict of plain values (numbers, strings), or a list of them for several rows.
    Each finished setting is stored under a digest of the function's code and what it uses of its
    notebook, the setting (of a folder of images: its files, too), and the package's code: an
    interrupted run goes on where it stopped.
    With GLEAK_GRID=fresh in the environment everything is computed anew.

    Raises TypeError for values that are not plain; what the function raises passes through.
    """
    folder = cache_folder() / "grid"
    fresh = os.environ.get("GLEAK_GRID") == "fresh"
    code = [source_of(function), package_digest(), torch.__version__]
    rows = []
    for setting in tqdm(list(settings), desc=label, leave=False, disable=None):
        stamps = [folder_stamp(value) for value in setting.values() if isinstance(value, str)]
        file = folder / f"{digest_of([code, setting, stamps])[:32]}.json"
        found = None if fresh else stored(file)
        if found is None:
            found = function(**setting)
            found = [found] if isinstance(found, Mapping) else list(found)
            found = [{name: plain(name, value) for name, value in row.items()} for row in found]
            folder.mkdir(parents=True, exist_ok=True)
            with whole(file) as partial:
                partial.write_text(json.dumps(found))
        rows += [{**setting, **row} for row in found]
    return pd.DataFrame(rows)


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


def source_of(function: Callable, seen: set | None = None) -> list:
    """A function's source, with that of the functions and the values of the variables it uses."""
    seen = set() if seen is None else seen
    if function in seen:
        return []
    seen.add(function)
    content = [inspect.getsource(function)]
    space = function.__globals__
    for name in sorted(names_in(function.__code__) & set(space)):
        value = space[name]
        if isinstance(value, types.FunctionType) and value.__globals__ is space:
            content.append(source_of(value, seen))
        elif not isinstance(value, types.ModuleType | type) and not callable(value):
            content.append([name, content_of(name, value)])
        elif isinstance(value, nn.Module):
            content.append([name, repr(value), content_of(name, value.state_dict())])
    return content


def content_of(name: str, value):
    """What decides a variable of the notebook; TypeError for kinds whose content is not known."""
    if isinstance(value, str):
        return [value, folder_stamp(value)]
    if isinstance(value, (*PLAIN, range)):
        return repr(value)
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().numpy()
        return [str(value.dtype), list(value.shape), hashlib.sha256(data.tobytes()).hexdigest()]
    if isinstance(value, Batch):
        return [content_of(name, part) for part in (value.images, value.labels, value.dataset)]
    if isinstance(value, Mapping):
        return [[str(key), content_of(name, entry)] for key, entry in value.items()]
    if isinstance(value, list | tuple):
        return [content_of(name, entry) for entry in value]
    raise TypeError(
        f"the function reads {name}, a {type(value).__name__}: make it inside the function, or "
        "hand its plain parts over as settings"
    )


def names_in(code: types.CodeType) -> set[str]:
    """The global names that a code object and those inside it read."""
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    read = {
        i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    return read.union(*(names_in(one) for one in inner))
