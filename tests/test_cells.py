"""The cells of the chapters: a few lines each, so that what they run can be imported and tested."""

import ast

import pytest

from gleak.study import chapters

MOST = 25  # lines that are not empty


@pytest.mark.parametrize("chapter", chapters.chapters())
def test_no_long_cell(chapter):
    cells = [cell for cell in chapters.read_source(chapter).cells if cell.cell_type == "code"]
    lengths = {
        cell.source.splitlines()[0]: len(
            [line for line in cell.source.splitlines() if line.strip()]
        )
        for cell in cells
    }
    long = {first: length for first, length in lengths.items() if length > MOST}
    assert not long, "move what it runs to gleak/study/experiments, what it shows to displays"


@pytest.mark.parametrize("chapter", chapters.chapters())
def test_grids_run_what_can_be_imported(chapter):
    """Rows of a function that a notebook defines are neither stored nor tested."""
    cells = [cell for cell in chapters.read_source(chapter).cells if cell.cell_type == "code"]
    trees = [ast.parse(cell.source) for cell in cells]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    grids = [c.args[0] for c in calls if isinstance(c.func, ast.Name) and c.func.id == "run_grid"]
    assert not {ast.unparse(function) for function in grids} & defined
