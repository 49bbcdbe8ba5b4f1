"""Grids of experiments: complete, resumed, and never a stale answer."""

import pytest
import torch

import gleak
from gleak.study.runner import product, run_grid

calls = []
FACTOR = 2
IMAGES = torch.ones(3)
FOLDER = ""
BATCH = gleak.Batch(torch.ones(1, 1, 2, 2), torch.tensor([0]), ["a"])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GLEAK_CACHE", str(tmp_path))
    monkeypatch.delenv("GLEAK_GRID", raising=False)
    note.done = []


def note(value):
    note.done.append(value)


def double(x):
    note(x)
    return {"twice": helper(x), "even": x % 2 == 0}


def helper(x):
    return FACTOR * x


def interrupted(x):
    if x == 2 and not note.done[-1:] == ["again"]:
        raise KeyboardInterrupt
    note(x)
    return [{"row": 0, "value": torch.tensor(0.5)}, {"row": 1, "value": 1.5}]


def uses_tensors():
    return {"sum": IMAGES.sum() + BATCH.images.sum()}


def returns_tensor():
    return {"image": torch.ones(2)}


def reads_an_object():
    return {"x": OBJECT is None}


def has_an_attribute_of_that_name():
    return {"x": hasattr(note, "OBJECT") or torch.ones(1).mean()}


OBJECT = mean = object()


def test_product():
    assert product(a=[1, 2], b="xy")[:3] == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
    ]


def test_settings_and_results_in_one_frame_computed_once():
    frame = run_grid(double, product(x=[1, 2, 3]))
    assert frame.to_dict("list") == {
        "x": [1, 2, 3],
        "twice": [2, 4, 6],
        "even": [False, True, False],
    }
    assert run_grid(double, product(x=[2, 3, 4]))["twice"].tolist() == [4, 6, 8]
    assert note.done == [1, 2, 3, 4]


def test_an_interrupted_run_goes_on_where_it_stopped():
    with pytest.raises(KeyboardInterrupt):
        run_grid(interrupted, product(x=[0, 1, 2, 3]))
    note("again")
    frame = run_grid(interrupted, product(x=[0, 1, 2, 3]))
    assert note.done == [0, 1, "again", 2, 3]
    assert frame["x"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert frame["value"].tolist() == [0.5, 1.5] * 4


def test_everything_that_a_function_uses_decides(monkeypatch):
    run_grid(double, [{"x": 1}])
    monkeypatch.setitem(globals(), "FACTOR", 3)
    assert run_grid(double, [{"x": 1}])["twice"].item() == 3
    assert run_grid(uses_tensors, [{}])["sum"].item() == 7
    monkeypatch.setitem(globals(), "IMAGES", torch.zeros(3))
    assert run_grid(uses_tensors, [{}])["sum"].item() == 4
    monkeypatch.setitem(
        globals(), "BATCH", gleak.Batch(torch.zeros(1, 1, 2, 2), torch.tensor([0]), ["a"])
    )
    assert run_grid(uses_tensors, [{}])["sum"].item() == 0


def test_fresh_computes_anew(monkeypatch):
    run_grid(double, [{"x": 1}])
    monkeypatch.setenv("GLEAK_GRID", "fresh")
    run_grid(double, [{"x": 1}])
    assert note.done == [1, 1]


def test_a_damaged_result_is_computed_anew(tmp_path):
    run_grid(double, [{"x": 1}])
    (file,) = tmp_path.rglob("*.json")
    file.write_text("[{")
    assert run_grid(double, [{"x": 1}])["twice"].item() == 2


def test_what_cannot_be_kept_or_told_apart_is_refused():
    with pytest.raises(TypeError, match="image must be a plain number or string; got Tensor"):
        run_grid(returns_tensor, [{}])
    with pytest.raises(TypeError, match="reads OBJECT, a object"):
        run_grid(reads_an_object, [{}])
    assert run_grid(has_an_attribute_of_that_name, [{}])["x"].item() == 1


def names_a_folder(name):
    note(name)
    return {"x": 1}


def reads_a_folder():
    note(FOLDER)
    return {"x": 1}


def test_a_folder_of_images_that_changed_is_another_setting(tmp_path, monkeypatch):
    file = tmp_path / "data" / "a.png"
    file.parent.mkdir()
    file.write_bytes(b"1")
    monkeypatch.setitem(globals(), "FOLDER", f"images:{file.parent}@8")
    for times in (1, 1, 2):
        if times == 2:
            file.write_bytes(b"12")
        run_grid(names_a_folder, product(name=[FOLDER]))
        run_grid(reads_a_folder, [{}])
        assert len(note.done) == 2 * times
