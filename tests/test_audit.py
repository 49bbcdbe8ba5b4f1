"""The audit of one's own training, from a folder of images to one page and a JSON file."""

import ast
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from bs4 import BeautifulSoup
from click.testing import CliRunner
from PIL import Image

from gleak.answers import Verdict
from gleak.study import audit, cli
from gleak.study.audit import YOURS, Plan

HOSTILE = ["<script>alert(1)</script>", "\"' onerror=x", "e" * 200]


def write_photos(folder, names, height, width):
    """Three random pictures for each class."""
    rng = np.random.default_rng(0)
    for name in names:
        place = folder / name.replace("/", "")
        place.mkdir(parents=True)
        for n in range(3):
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{n}.png")
    return f"folder:{folder}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures of 97x131 pixels in folders whose names would be tags."""
    return write_photos(tmp_path_factory.mktemp("data") / "my <b>photos", HOSTILE, 97, 131)


def command(dataset, out, *more):
    """The command at its smallest: one way of training, one search of each kind and one step."""
    arguments = ["audit", "--dataset", dataset, "--model", "lenet", "--size", 2, "--lr", 0.05]
    arguments += ["--batches", 1, "--iterations", 1, "--alone", "--out", out, *more]
    return [str(argument) for argument in arguments]


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory):
    """A report on them: the folder and what the command said."""
    out = tmp_path_factory.mktemp("made") / "report"
    return out, CliRunner().invoke(cli.main, command(photos, out))


def test_photographs_that_are_not_square_become_one_page(made, tmp_path):
    out, result = made
    assert result.exit_code == 0, result.exception or result.output
    assert sorted(file.name for file in out.iterdir()) == ["cases", "index.html", "report.json"]
    soup = BeautifulSoup((out / "index.html").read_text("utf-8"), "html.parser")
    assert soup.h1.text == "What your training would leak"
    assert "fewer equations than unknowns" in soup.select(".verdict.cannot > p")[0].text
    assert str(tmp_path.parent) not in str(soup)


def test_names_from_outside_are_text_on_the_page(made):
    html = (made[0] / "index.html").read_text("utf-8")
    soup = BeautifulSoup(html, "html.parser")
    assert not soup.find_all(["script", "b", "link", "iframe"])
    assert not [tag for tag in soup.find_all(True) if any(a.startswith("on") for a in tag.attrs)]
    assert "&lt;b&gt;photos" in html
    for tag in soup.find_all(True):
        for attribute in ("src", "href"):
            assert tag.get(attribute, "data:").startswith("data:")
    assert all(image["alt"] for image in soup.find_all("img"))


def test_the_json_says_the_same_and_a_leak_is_a_status(tmp_path):
    asked = command("cifar10-samples", tmp_path, "--fail-on", "labels", "--fail-on", "images")
    result = CliRunner().invoke(cli.main, asked)
    assert result.exit_code == 1, result.exception or result.output
    assert "Do the labels leak? Leaks: 2 of 2" in result.output
    assert "--fail-on: labels\n" in result.output
    found = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert found["schema"] == audit.SCHEMA
    assert found["asked"]["dataset"] == "cifar10-samples"
    (yours,) = found["settings"]
    assert (yours["name"], yours["kind"]) == (YOURS, "training")
    assert yours["labels"]["right"] == yours["labels"]["of"] == 2
    assert yours["labels"]["low"] < 1
    verdicts = {subject: answer["verdict"] for subject, answer in yours["answers"].items()}
    assert verdicts == {"labels": "leaks", "images": "not found", "pixels": "not found"}
    assert found["fails"] == {"labels": True, "images": False}
    assert [one["search"] for one in yours["tried"]] == [
        "the study's own",
        "the signs",
        "coarse to fine",
    ]


def test_what_is_finished_is_not_done_again(made, photos, monkeypatch):
    out, _ = made
    before = (out / "report.json").read_bytes()

    def refuses(*_, **__):
        raise AssertionError("a case that was finished ran again")

    monkeypatch.setattr(audit.risk, "assess", refuses)
    result = CliRunner().invoke(cli.main, command(photos, out))
    assert result.exit_code == 0, result.exception or result.output
    assert (out / "report.json").read_bytes() == before
    result = CliRunner().invoke(cli.main, command(photos, out, "--seed", 5))
    assert isinstance(result.exception, AssertionError)


def test_defences_are_attacked_and_promise_nothing(tmp_path):
    names = [
        "send 1 % of the values",
        "classifier stays at the client",
        "clip and noise for privacy",
    ]
    plan = Plan(
        "cifar10-samples", model="lenet", batches=1, iterations=1, settings=(), defences=names
    )
    report = audit.run(plan)
    verdicts = {
        name: {subject: answer.verdict for subject, answer in found.items()}
        for name, found in report.answers.items()
    }
    pruned, own, private = (verdicts[name] for name in names)
    assert pruned["pixels"] is Verdict.CANNOT  # fewer numbers than pixels
    assert own["labels"] is Verdict.CANNOT
    assert own["images"] is Verdict.NOT_FOUND  # in one step
    assert private["images"] is Verdict.CANNOT
    assert "epsilon = 0.79" in report.answers[names[2]]["images"].because
    text = audit.write(report, tmp_path).read_text("utf-8")
    assert "the attacks found nothing of the images in 4 images" in text
    assert "closes" not in text
    assert len(BeautifulSoup(text, "html.parser").find_all("table")) == 5


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    data = write_photos(tmp_path / "data", ["cat", "dog"], 12, 12)
    out = tmp_path / "report"
    asked = command(data, out, "--batches", 5)
    started = [sys.executable, "-m", "gleak", *asked]
    environment = {k: v for k, v in os.environ.items() if k != "GLEAK_GRID"}
    running = subprocess.Popen(started, env=environment, stderr=subprocess.DEVNULL)
    cases = out / "cases"
    for _ in range(30000):  # minutes, on a machine that is busy
        if running.poll() is not None or list(cases.glob("*.json")):
            break
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    kept = {file: file.stat().st_mtime_ns for file in cases.glob("*.json")}
    assert 1 <= len(kept) < 5
    assert not (out / "index.html").exists()
    result = CliRunner().invoke(cli.main, asked)
    assert result.exit_code == 0, result.exception or result.output
    assert (out / "index.html").exists()
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert len(list(cases.glob("*.json"))) == 5


def test_what_could_not_be_attacked_fails(monkeypatch):
    def refuses(*_, **__):
        raise ValueError("this needs the client's shoe size")

    monkeypatch.setattr(audit.risk, "invert", refuses)
    plan = Plan("cifar10-samples", model="lenet", size=2, batches=1, settings=(), defences=())
    report = audit.run(plan)
    answer = report.answers[YOURS]["images"]
    assert answer.verdict is Verdict.NOT_FOUND
    assert not answer.attacked
    assert "shoe size" in answer.because
    assert report.fails("images")
    assert audit.as_json(report)["settings"][0]["images"] is None


def test_batches_share_no_image_while_they_last():
    drawn, overlap = Plan("cifar10-samples", indices=[3, 1], batches=10).draws()
    assert drawn[0] == [3, 1]
    assert not overlap
    assert sorted(sum(drawn, [])) == list(range(20))
    drawn, overlap = Plan("cifar10-samples", size=8, batches=3).draws()
    assert overlap
    assert [len(set(indices)) for indices in drawn] == [8, 8, 8]
    assert not set(drawn[0]) & set(drawn[1])


def test_other_weights_in_a_file_are_another_case(tmp_path):
    file = tmp_path / "weights.pt"
    file.write_bytes(b"one")
    plan = Plan("cifar10-samples", weights=str(file))
    before = plan.options["stamp"]
    file.write_bytes(b"two")
    assert plan.options["stamp"] != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "two"], "'two' is not a valid integer"),
        (["--size", "0"], "0 is not in the range"),
        (["--lr", "-1"], "-1.0 is not in the range"),
        (["--modell", "x"], "No such option"),
        (["--effort", "some"], "'some' is not one of"),
        (["--fail-on", "pixels"], "'pixels' is not one of"),
        (["--model", "x"], "unknown model 'x'"),
        (["--size", "21"], "has 20 images; a batch needs 21"),
        (["--dataset", "folder:/nowhere"], "no folder"),
        (["--weights", "lost.pt"], "no file lost.pt"),
        (["--out", f"{Path(__file__)}/report"], "nothing can be written below"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(tmp_path, arguments, message):
    out = tmp_path / "report"
    asked = ["audit", "--dataset", "cifar10-samples", "--out", str(out), *arguments]
    result = CliRunner().invoke(cli.main, asked)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not out.exists()


def test_weights_that_hold_code_are_not_loaded(tmp_path):
    file = tmp_path / "weights.pt"

    class Bad:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").write_text, ("",))

    file.write_bytes(pickle.dumps(Bad(), protocol=2))
    asked = ["audit", "--dataset", "cifar10-samples", "--weights", str(file)]
    result = CliRunner().invoke(cli.main, [*asked, "--out", str(tmp_path / "report")])
    assert result.exit_code == 2
    assert not (tmp_path / "ran").exists()


def test_the_command_needs_no_notebook():
    """Nor a kernel, nor Sphinx: none of its modules imports what makes the book."""
    study = Path(audit.__file__).parent
    files = [study / f"{name}.py" for name in ("cli", "audit", "page", "runner", "chapters")]
    for file in (*files, study / "verdicts.py", study / "displays" / "your_data.py"):
        for node in ast.parse(file.read_text("utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {getattr(node, "module", None), *(alias.name for alias in node.names)}
                parts = {(name or "").partition(".")[0] for name in names}
                assert not parts & {"papermill", "jupytext", "nbformat", "sphinx", "IPython"}
