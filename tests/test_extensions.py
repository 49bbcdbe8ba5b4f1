"""The book's own extensions, where a built page does not show what they do."""

import sys
from types import SimpleNamespace

import pytest
from sphinx.ext.napoleon import NumpyDocstring

from gleak.study import chapters

sys.path.insert(0, str(chapters.root() / "book" / "_ext"))
import accessible
import api
import architecture
import repository


@pytest.fixture
def app(tmp_path):
    (tmp_path / "CITATION.cff").write_text("title: a study\n")
    config = SimpleNamespace(html_theme_options={"repository_url": ""})
    return SimpleNamespace(srcdir=tmp_path, config=config)


def test_no_address_no_buttons(app, monkeypatch):
    monkeypatch.delenv("GLEAK_REPOSITORY", raising=False)
    repository.configure(app, app.config)
    assert app.config.html_theme_options == {"repository_url": ""}


def test_buttons_follow_the_address(app, monkeypatch):
    monkeypatch.setenv("GLEAK_REPOSITORY", "https://example.org/someone/gleak.git")
    repository.configure(app, app.config)
    options = app.config.html_theme_options
    assert options["repository_url"] == "https://example.org/someone/gleak"
    assert options["launch_buttons"]["binderhub_url"]
    monkeypatch.delenv("GLEAK_REPOSITORY")
    (app.srcdir / "CITATION.cff").write_text("repository-code: https://example.org/a/b\n")
    assert repository.address(app.srcdir) == "https://example.org/a/b"


def test_edit_button_points_at_the_source():
    edit = {"label": "source-edit-button", "url": "x/edit/main/notebooks/01_first_leak.ipynb"}
    other = {"label": "launch", "url": "x/notebooks/01_first_leak.ipynb"}
    context = {"header_buttons": [{"buttons": [edit]}, other]}
    repository.point_at_sources(None, "p", "t", context, None)
    assert edit["url"].endswith("notebooks/01_first_leak.md")
    assert other["url"].endswith(".ipynb")


def test_stars_and_bars_in_docstrings_stand_for_themselves():
    lines = ["Do it.", "", "|x| * 2, see `|y|`", "", ">>> 2 * 2", "... * 3"]
    api.escape(None, "function", "f", None, None, lines)
    assert lines == ["Do it.", "", r"\|x\| \* 2, see `|y|`", "", ">>> 2 * 2", "... * 3"]


def test_a_colon_in_a_property_makes_no_type():
    lines = ["Steps: one."]
    api.escape(None, "property", "p", None, None, lines)
    assert str(NumpyDocstring(lines, what="property")).split("\n")[2] == "Steps: one."


def test_signatures_are_no_lists_of_definitions():
    context = {"body": "<dt>f(<dl>\n<dd>x,</dd>\n<dd>y,</dd>\n</dl>)</dt><dl><dt>a</dt></dl>"}
    accessible.repair(None, "p", "t", context, None)
    assert context["body"].count("<dl>") == 1
    assert context["body"].count('<span class="sig-line">') == 2


def test_architecture_knows_the_imports():
    graph = architecture.imports()
    assert {"data", "update"} <= graph["client"]
    assert "client" not in graph["update"]
    picture = architecture.draw({"a": set(), "b": {"a"}, "c": {"a", "b"}})
    assert picture.count("marker-end") == 2  # c to a follows from the other two
    assert picture.count("<text") == 3
