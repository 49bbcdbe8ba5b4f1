"""What nbval executes of a chapter."""

import jupytext
import pytest
from nbformat.v4 import new_code_cell
from slices import slices

from gleak.study import chapters


def cut(*sources):
    """The slices of cells of which the last is checked."""
    cells = [new_code_cell(source) for source in sources]
    cells[-1].metadata["tags"] = ["nbval-check-output"]
    return slices(cells)


def test_only_what_the_claim_reads_is_kept():
    kept = cut(
        "import plots\nimport numpy as np\nseed = 1",
        "images = np.ones(seed)\nplots.show(images)",
        "plots.show(images)",
        "other = images.sum()",
        "# a comment\nprint(images)",
    )
    assert kept == ["import numpy as np\nseed = 1", "images = np.ones(seed)"] + ["", ""] + [
        "# a comment\nprint(images)"
    ]


def test_what_is_bound_anew_is_not_needed_before():
    assert cut("x = 1\ny = 2", "x = 3", "print(x)") == ["", "x = 3", "print(x)"]
    assert cut("x = 1", "x = x + 1", "print(x)") == ["x = 1", "x = x + 1", "print(x)"]


@pytest.mark.parametrize(
    "change",
    ["x += 1", "x[0].y = 1", "x['a'] = 1", "x.a.append(1)", "if y: x = 1", "for x in y: pass"]
    + ["def f(): return x\nx = f()", "with y as x: pass", "try:\n    x = 1\nfinally:\n    pass"],
)
def test_what_may_change_a_name_is_kept_with_what_it_was(change):
    assert cut("x = 0\ny = 0\nz = 0", change, "print(x, y)")[:2] == ["x = 0\ny = 0", change]


def test_names_within_functions_and_comprehensions_are_their_own():
    assert cut("n = 1\nm = 2", "f = lambda n: n * m", "print(f(3))")[0] == "m = 2"
    assert cut("n = 1\nm = 2", "f = [n for n in range(m)]", "print(f)")[0] == "m = 2"


@pytest.mark.parametrize("chapter", chapters.chapters())
def test_every_chapter_has_cells_for_the_eye_alone(chapter):
    source = jupytext.read(chapters.root() / "notebooks" / f"{chapter}.md")
    kept = slices([cell for cell in source.cells if cell.cell_type == "code"])
    assert any(kept) and "" in kept
