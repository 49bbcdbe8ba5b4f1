"""Every chapter with an attack, at its smallest, on a folder of gray images.

12_verdicts is left out: it runs no attack and reads what the others recorded.
Slow, so not with plain pytest: make test runs them, or pytest -m slow.
"""

import os

import nbformat
import numpy as np
import pytest
from PIL import Image, ImageDraw

from gleak.study import chapters
from gleak.study.changes import said
from gleak.study.verdicts import stored_verdicts

CHAPTERS = [name for name in chapters.chapters() if not chapters.reads_verdicts(name)]

SIDES = {"04b_deep": 16}  # pixels; peeling its ResNet-18 takes most of the time
# Few images for that ResNet-18; photographs that are small, but not for the stem of ImageNet's.
SMALL = {"04b_deep": {"indices": [0, 3]}, "05_imagenet": {"image_size": 32, "deep_size": 72}}


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """Ten classes of drawn figures, two gray images of each, no two of one size."""
    folder = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    for label in range(10):
        (folder / f"class{label}").mkdir()
        for n in range(2):
            shades = rng.integers(0, 256, 2).tolist()
            image = Image.new("L", (64 + 4 * label, 72 + 8 * n), shades[0])
            left, top = rng.integers(4, 24, 2).tolist()
            box = (left, top, left + 20 + 2 * label, top + 40 - 2 * label)
            pen = ImageDraw.Draw(image)
            (pen.ellipse if label % 2 else pen.rectangle)(box, fill=shades[1])
            image.save(folder / f"class{label}" / f"{n}.png")
    return f"folder:{folder}"


@pytest.mark.slow
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_runs_on_other_data(chapter, shapes, tmp_path):
    smoke = chapters.profile_run(chapter, "smoke").parameters
    shapes = f"{shapes}@{SIDES.get(chapter, 32)}"
    chosen = {"dataset": shapes, "pool": shapes, "pools": [shapes], "more_datasets": []}
    known = chapters.known_parameters(chapter)
    assert "dataset" in known
    chosen = {name: value for name, value in chosen.items() if name in known}
    run = chapters.own_run(chapter, smoke | SMALL.get(chapter, {}) | chosen, tmp_path)
    chapters.execute(run)
    cells = nbformat.read(run.output, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [o["text"] for o in outputs if o.get("name") == "stderr"]
    claims = [cell for cell in cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    claims = "\n".join(said(output) for cell in claims for output in cell.outputs)
    # claims about the chapter's own data are not made of others
    assert not [line for line in claims.splitlines() if line.endswith("False")]
    assert [o for o in outputs if "image/png" in o.get("data", {})]


SIGNED = """
from torch import nn

def signed(channels, num_classes, size):
    side = (size + 3) // 4
    layers = [nn.Conv2d(channels, 8, 5, padding=2, stride=4), nn.Tanh(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8 * side * side, num_classes))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "chosen"),
    [
        ("02", {"model": "module:own_signed:signed"}),  # features that many label rules refuse
        ("03", {"model": "module:own_signed:signed", "steps": [0], "epochs": [2]}),
        ("03", {"steps": [15], "epochs": [2, 3]}),
        ("10", {"model": "lenet"}),
    ],
)
def test_a_chapter_runs_on_other_networks_and_stages(number, chosen, tmp_path, monkeypatch):
    (tmp_path / "own_signed.py").write_text(SIGNED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # put back what a run adds
    chapter = chapters.resolve(number)
    smoke = chapters.profile_run(chapter, "smoke").parameters
    run = chapters.own_run(chapter, smoke | chosen, tmp_path / "out")
    chapters.execute(run)
    verdicts = stored_verdicts([run.output])
    assert verdicts
    assert not [record for record in verdicts if "nan" in record["numbers"]]
