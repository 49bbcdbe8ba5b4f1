"""The report on one's own data, from a folder of images to one file."""

import re

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from gleak.study import chapters, cli
from gleak.study.audit import options_of, self_contained


@pytest.fixture
def photos(tmp_path):
    """Three classes of random pictures in sizes of their own."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "elk"):
        folder = tmp_path / "my photos" / name
        folder.mkdir(parents=True)
        for n in range(2):
            pixels = rng.integers(0, 256, (20 + n, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{n}.png")
    return tmp_path / "my photos"


def test_a_folder_becomes_one_page_without_code(photos, tmp_path):
    out = tmp_path / "report"
    arguments = ["--dataset", f"folder:{photos}", "--image-size", 16, "--model", "lenet"]
    arguments += ["--size", 2, "--lr", 0.05, "--iterations", 1, "--out", out]
    result = CliRunner().invoke(cli.main, [str(a) for a in ("audit", *arguments)])
    assert result.exit_code == 0, result.exception or result.output
    page = (out / "index.html").read_text()
    assert "What your data would leak" in page
    assert "folder:my photos, 3x16x16, 3 classes" in page
    assert str(tmp_path) not in page
    assert "gleak.fedavg(" not in page  # code
    assert "Exercise" not in page
    assert page.count("data:image/png;base64,") == 2
    assert page.count('alt="') == 2
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "<script" not in page
    assert not list(out.glob("*.partial"))


def test_options_of_the_command_line():
    found = options_of({"dataset": "cifar10", "size": 8, "lr": None, "weights": "DEFAULT"})
    assert found == {
        "dataset": "cifar10",
        "size": 8,
        "indices": [],
        "batch_size": 8,
        "weights": "DEFAULT",
    }
    chapters.check_parameters("13_your_data", found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "two"], "'two' is not a valid integer"),
        (["--size", "0"], "0 is not in the range"),
        (["--lr", "-1"], "-1.0 is not in the range"),
        (["--modell", "x"], "No such option"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(tmp_path, arguments, message):
    out = tmp_path / "report"
    command = ["audit", "--dataset", "cifar10-samples", "--out", str(out), *arguments]
    result = CliRunner().invoke(cli.main, command)
    assert result.exit_code == 2
    assert message in result.output
    assert not out.exists()


def test_a_page_holds_its_pictures(tmp_path):
    (tmp_path / "a.png").write_bytes(b"png")
    page = '<head><link rel="x" href="y.css"></head><script src="z.js"></script><img src="a.png">'
    whole = self_contained(page, tmp_path)
    assert 'src="data:image/png;base64,cG5n"' in whole
    assert "y.css" not in whole
    assert "z.js" not in whole
