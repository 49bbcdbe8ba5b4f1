"""The cells of the chapters: a few lines each, so that what they run can be imported and tested."""

import ast

import pytest

from gleak.study import chapters

MOST = 25  # lines that are not empty


@pytest.fixture(params=chapters.chapters())
def cells(request):
    """The sources of a chapter's cells of code."""
    notebook = chapters.read_source(request.param)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_no_long_cell(cells):
    lines = {source: sum(map(bool, map(str.strip, source.splitlines()))) for source in cells}
    long = [f"{source.splitlines()[0]} ... ({n} lines)" for source, n in lines.items() if n > MOST]
    assert not long, "what they run belongs to gleak/study/experiments, what they show to displays"


def test_grids_run_what_can_be_imported(cells):
    """Rows of a function that a notebook defines are neither stored nor tested."""
    nodes = [node for source in cells for node in ast.walk(ast.parse(source))]
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    run = [ast.unparse(call.args[0]) for call in calls if ast.unparse(call.func) == "run_grid"]
    assert not defined.intersection(run)
