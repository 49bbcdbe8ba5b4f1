import copy
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from filelock import FileLock
from kernels import Kernels
from slices import slices

import gleak
from gleak.study import chapters

# torch is imported where it is used: xdist's first process needs none, and it takes long


def pytest_configure(config):
    """Where chapters are executed, start their kernels' server; once, and not in each worker."""
    if config.getoption("nbval_lax", False) and not hasattr(config, "workerinput"):
        folder = tempfile.mkdtemp()
        kernels = Kernels(Path(folder))
        config.add_cleanup(kernels.stop)
        config.add_cleanup(lambda: shutil.rmtree(folder))


def pytest_collection_modifyitems(config, items):
    """Of the chapters what their checked cells need; and what takes long starts first."""
    kept, left = [], []
    for file, of_file in itertools.groupby(items, lambda item: item.path):
        of_file = list(of_file)
        if file.suffix != ".ipynb":
            kept += of_file
            continue
        for item, source in zip(of_file, slices([i.cell for i in of_file]), strict=True):
            item.cell.source = source
            (kept if source else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = sorted(kept, key=lambda item: -seconds(item))


@cache
def chapter_seconds():
    """Chapter -> how long its committed notebook took."""
    records = chapters.runtimes("reference").glob("*.json")
    return {file.stem: json.loads(file.read_text())["seconds"] for file in records}


def seconds(item):
    """How long a chapter takes, whatever is marked as slow more than that, and 0 for the rest.

    The first file that reads the built book counts as slow: the next one, in another process, would
    have to wait until it is built.
    """
    if item.get_closest_marker("slow") or item.path.name == "test_book.py":
        return math.inf
    return chapter_seconds().get(item.path.stem, 0)


@pytest.fixture
def batch():
    """Four CIFAR-10 test images: cat, ship, airplane, frog."""
    return gleak.load_batch("cifar10-samples", indices=[0, 1, 3, 4])


@pytest.fixture
def tiny():
    """Three random 1x4x4 images of three classes, one of them repeated."""
    import torch

    images = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return gleak.Batch(images, torch.tensor([2, 0, 2]), ["a", "b", "c"])


@pytest.fixture
def two_layers():
    """A network made by hand: flatten, linear 16 -> 5, ReLU, linear 5 -> 3."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(3)
        return torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(16, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)
        )


@pytest.fixture(scope="session")
def sent_in():
    """Makes the update of a client that sends in some format, as (dtype, model, batch) -> Update.

    It computes in float32; for float64, in float64.
    """
    import torch

    def make(dtype, model, batch):
        if dtype == torch.float64:
            model = copy.deepcopy(model).double()
            batch = gleak.Batch(batch.images.double(), batch.labels, batch.class_names)
        update = gleak.fedsgd(model, batch)
        gradient = {name: value.to(dtype) for name, value in update.gradient.items()}
        return gleak.Update(update.model, len(batch), update.input_shape, gradient=gradient)

    return make


@pytest.fixture(scope="session")
def html(tmp_path_factory):
    """The folder of the book's pages, built once for all tests from the committed notebooks."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    target = shared / "the book"  # a space in the path should not matter
    pages = target / "_build" / "html"
    with FileLock(shared / "book.lock"):
        if not target.exists():
            jupyter_book = Path(sys.executable).with_name("jupyter-book")
            source = chapters.stage("reference")
            command = [jupyter_book, "build", source, "--path-output", target, "--all", "-W", "-n"]
            built = subprocess.run(
                [*command, "--keep-going", "--quiet"], capture_output=True, text=True, check=False
            )
            assert built.returncode == 0, built.stderr
    assert (pages / "index.html").exists(), "the book was not built: see the first failure"
    return pages


HEADER = """---
kernelspec:
  name: python3
  display_name: Python 3
  language: python
---

# A chapter

"""
SOURCE = (
    HEADER
    + """```{code-cell} ipython3
:tags: [parameters]

size = 3
rate = 0.5
names = ["a"]
```

```{code-cell} ipython3
print([name * size for name in names])
assert size < 10, "too large"
```
"""
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder (with a space in its name) that holds one chapter and what the key looks at."""
    folder = tmp_path / "a project"
    (folder / "notebooks").mkdir(parents=True)
    (folder / "notebooks" / "01_small.md").write_text(SOURCE)
    (folder / "notebooks" / "profiles.yml").write_text("smoke:\n  01_small: {size: 1}\n")
    for name in ("_config.yml", "pyproject.toml", "requirements.lock"):
        shutil.copy(chapters.root() / name, folder)
    chapters.direct_pins.cache_clear()
    monkeypatch.setattr(chapters, "root", lambda: folder)
    yield folder
    chapters.direct_pins.cache_clear()
