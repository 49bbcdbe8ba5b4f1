"""Grids of experiments: complete, resumed, and never a stale answer."""

import pytest
import torch

from gleak.provenance import study_code
from gleak.study import runner
from gleak.study.runner import product, run_grid

calls = []


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
    return 2 * x


def scaled(x, factor):
    note(x)
    return {"y": factor * x}


def interrupted(x):
    if x == 2 and not note.done[-1:] == ["again"]:
        raise KeyboardInterrupt
    note(x)
    return [{"row": 0, "value": torch.tensor(0.5)}, {"row": 1, "value": 1.5}]


def returns_tensor():
    return {"image": torch.ones(2)}


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


def test_the_code_and_the_arguments_decide(monkeypatch):
    run_grid(scaled, [{"x": 1}], common={"factor": 2})
    frame = run_grid(scaled, [{"x": 1}, {"x": 2}], common={"factor": 2})
    assert frame.to_dict("list") == {"x": [1, 2], "y": [2, 4]}  # what is common is no column
    assert run_grid(scaled, [{"x": 1}], common={"factor": 3})["y"].item() == 3
    assert note.done == [1, 2, 1]
    monkeypatch.setattr(runner, "package_digest", lambda: "another package")
    run_grid(scaled, [{"x": 1}], common={"factor": 3})
    assert note.done == [1, 2, 1, 1]
    source = "from gleak.study.runner import product"
    assert set(study_code(source)) == {"gleak.study.runner"}


def test_rows_of_a_notebooks_function_are_not_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(double, "__module__", "__main__")
    for _ in range(2):
        assert run_grid(double, [{"x": 1}])["twice"].item() == 2
    assert note.done == [1, 1]
    assert not list(tmp_path.iterdir())


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


def test_what_cannot_be_kept_is_refused():
    with pytest.raises(TypeError, match="image must be a plain number or string; got Tensor"):
        run_grid(returns_tensor, [{}])


def names_a_folder(name):
    note(name)
    return {"x": 1}


def test_a_folder_of_images_that_changed_is_another_setting(tmp_path):
    file = tmp_path / "data" / "a.png"
    file.parent.mkdir()
    file.write_bytes(b"1")
    for times in (1, 1, 2):
        if times == 2:
            file.write_bytes(b"12")
        run_grid(names_a_folder, product(name=[f"images:{file.parent}@8"]))
        assert len(note.done) == times
