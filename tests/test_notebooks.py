"""The committed notebooks: pairs in step, executed in order, fresh, and readable by all."""

import re

import jupytext
import nbformat
import pytest

from gleak.study import chapters
from gleak.study.changes import said

CHAPTERS = chapters.chapters()


@pytest.fixture(params=CHAPTERS)
def chapter(request):
    return request.param


@pytest.fixture
def notebook(chapter):
    return nbformat.read(chapters.root() / "notebooks" / f"{chapter}.ipynb", as_version=4)


def essence(notebook):
    return [
        (c.cell_type, c.source, c.metadata.get("tags", []), c.metadata.get("mystnb", {}))
        for c in notebook.cells
    ]


def test_there_are_chapters_and_all_are_in_the_table_of_contents():
    assert CHAPTERS
    toc = (chapters.root() / "_toc.yml").read_text()
    assert re.findall(r"notebooks/(\w+)", toc) == CHAPTERS


def test_pairs_are_equal(chapter, notebook):
    source = jupytext.read(chapters.root() / "notebooks" / f"{chapter}.md")
    assert essence(notebook) == essence(source), f"run: gleak execute {chapter}"


def test_executed_in_order_without_errors(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_fresh(chapter):
    run = chapters.profile_run(chapter, "reference")
    assert chapters.is_fresh(run), f"run: gleak execute {chapter}"


def test_parameters_that_every_chapter_has(chapter):
    known = chapters.known_parameters(chapter)  # fails unless there is one cell of them
    if chapters.reads_verdicts(chapter):
        return  # a table of what the others recorded, with nothing to run anew
    assert {"dataset", "model"} <= set(known)
    searches = any("iterations=" in cell.source for cell in chapters.read_source(chapter).cells)
    assert "iterations" in known or not searches
    assert {"indices", "size", "sizes"} & set(known)
    assert len({"seed", "seeds"} & set(known)) == 1


def test_small(chapter):
    file = chapters.root() / "notebooks" / f"{chapter}.ipynb"
    assert file.stat().st_size < 1_000_000


def test_every_picture_has_a_caption_and_words_for_those_who_cannot_see_it(notebook):
    pictures = 0
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" not in output.get("data", {}):
                continue
            pictures += 1
            alt = output.metadata["image/png"]["alt"]
            assert alt[0].isupper()
            assert alt.endswith(".")
            assert len(alt.split()) > 8
            figure = cell.metadata["mystnb"]["figure"]
            assert figure["caption"]
            assert figure["name"].startswith("fig-")
    assert pictures


def test_checked_cells_print_claims_and_all_of_them_hold(notebook):
    checked = [c for c in notebook.cells if "nbval-check-output" in c.metadata.get("tags", [])]
    assert checked
    text = "\n".join(said(output) for cell in checked for output in cell.outputs)
    assert "True" in text
    assert not re.search(r"\d\.\d{3,}", text), "a checked cell prints a raw number"


def test_no_path_of_a_machine(chapter):
    text = (chapters.root() / "notebooks" / f"{chapter}.ipynb").read_text()
    assert str(chapters.root()) not in text
    assert not re.search(r"/(home|root|Users|tmp)/", text)


def test_numbers_in_the_prose_are_glued(chapter):
    """A result with a unit or a percentage in the prose would be one that somebody typed in."""
    source = chapters.read_source(chapter)
    prose = " ".join(cell.source for cell in source.cells if cell.cell_type == "markdown")
    prose = re.sub(r"{glue:text}`[^`]*`", "", prose)  # their formats may end in %
    assert not re.findall(r"\d+(?:\.\d+)? ?(?:dB|%|percent)", prose)
