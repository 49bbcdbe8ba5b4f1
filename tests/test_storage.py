"""What a full disk leaves behind: the old file, and nothing half-written."""

import resource
from contextlib import contextmanager

import pandas as pd
import pytest
from safetensors import SafetensorError

import gleak
from gleak.storage import whole
from gleak.study import chapters, sweep
from gleak.study.runner import run_grid


@contextmanager
def full_disk(room):
    """No file can grow beyond `room` bytes, as on a disk that fills up while it is written."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def files(folder):
    return sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())


def test_the_old_file_stays_and_no_half_one(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with full_disk(1000), pytest.raises(OSError, match="too large"), whole(path) as partial:
        partial.write_text("new" * 1000)
    assert path.read_text() == "old"
    assert files(tmp_path) == ["x.txt"]
    with whole(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"
    assert files(tmp_path) == ["x.txt"]


def test_an_update(tmp_path, batch):
    update = gleak.fedsgd(gleak.build_model("lenet", batch), batch)
    update.save(tmp_path / "x.safetensors")
    with full_disk(1000), pytest.raises((OSError, SafetensorError)):
        update.save(tmp_path / "x.safetensors")
    assert files(tmp_path) == ["x.safetensors"]
    assert str(gleak.Update.load(tmp_path / "x.safetensors", update.model)) == str(update)


@pytest.mark.parametrize("room", [100, 3500])  # before and after the first cells were written
def test_a_chapter(project, room):
    source = project / "notebooks" / "01_small.md"
    source.write_text(source.read_text().replace("size for name", "size * 999 for name"))
    before = files(project)
    run = chapters.own_run("01_small", {"size": 2}, project / "out")
    with full_disk(room), pytest.raises(chapters.ChapterError, match=r"cannot be written.*large"):
        chapters.execute(run)
    assert files(project) == before


def test_a_table_of_results(project):
    folder = project / "runs" / "s"
    sweep.plan([("01_small", {"size": n}) for n in range(5)], folder)
    sweep.gather(folder)
    tables = {name: (folder / name).read_bytes() for name in ("failures.csv", "results.csv")}
    with full_disk(100), pytest.raises(OSError, match="too large"):
        sweep.gather(folder)
    assert {name: (folder / name).read_bytes() for name in tables} == tables
    assert not list(folder.glob("*.partial"))
    assert len(pd.read_csv(folder / "failures.csv")) == 5


def measured(n):
    return {"text": "x" * 2000}


def test_what_is_kept_for_the_next_run(tmp_path, monkeypatch):
    monkeypatch.setenv("GLEAK_CACHE", str(tmp_path))
    with full_disk(1000):
        with pytest.raises(OSError, match="too large"):
            run_grid(measured, [{"n": 1}])
        with pytest.raises((OSError, SafetensorError)):
            gleak.trained_model("lenet", "fashion-mnist-samples", steps=1)
    assert not files(tmp_path)
