"""The machinery that turns sources into notebooks, on a small project made for the test."""

import json
import shutil

import nbformat
import pytest
from click.testing import CliRunner
from conftest import SOURCE

from gleak.provenance import syntax
from gleak.study import chapters, cli


def gleak(*arguments):
    """The command line, in this process; execution itself goes through `chapters.execute`."""
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def outputs(path):
    notebook = nbformat.read(path, as_version=4)
    return "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))


def test_execute_writes_a_fresh_notebook_twice_the_same(project):
    run = chapters.profile_run("01_small", "reference")
    assert not chapters.is_fresh(run)
    chapters.execute(run)
    first = run.output.read_bytes()
    assert outputs(run.output) == "['aaa']\n"
    assert chapters.is_fresh(run)
    chapters.execute(run)
    assert run.output.read_bytes() == first
    assert not list(project.rglob("*.failed.ipynb"))
    assert not list(project.rglob("*.partial"))


def test_profiles_have_their_own_parameters_and_folder(project):
    run = chapters.profile_run("01_small", "smoke")
    chapters.execute(run)
    assert run.output == project / "runs" / "smoke" / "01_small.ipynb"
    assert outputs(run.output) == "['a']\n"
    with pytest.raises(chapters.ChapterError, match="unknown profile 'huge'"):
        chapters.profile_run("01_small", "huge")


def test_own_parameters_from_the_command_line(project):
    result = gleak("run", "01", "-p", "names", "[x, y]", "-p", "size", "2", "--out", project / "o")
    assert result.exit_code == 0, result.output
    assert outputs(project / "o" / "01_small.ipynb") == "['xx', 'yy']\n"
    about = json.loads((project / "o" / "parameters.json").read_text())
    assert about["parameters"] == {"names": ["x", "y"], "size": 2}
    assert not (project / "notebooks" / "01_small.ipynb").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sise", "2", "no parameter sise; known: size, rate, names"),
        ("size", "two", "size must be of type int"),
        ("size", "2.5", "size must be of type int"),
        ("names", "a", "names must be of type list"),
        ("rate", "[1]", "rate must be of type float"),
        ("size", "[1", "is not YAML"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(project, name, value, message):
    result = gleak("run", "01_small", "-p", name, value)
    assert result.exit_code != 0
    assert message in str(result.exception) + result.output
    assert not (project / "runs").exists()


def test_an_integer_serves_where_a_float_is_expected(project):
    chapters.check_parameters("01_small", {"rate": 1})


def test_a_failed_run_is_kept_aside_and_never_replaces_a_good_one(project):
    good = chapters.profile_run("01_small", "reference")
    chapters.execute(good)
    before = good.output.read_bytes()
    source = project / "notebooks" / "01_small.md"
    source.write_text(SOURCE.replace("size = 3", "size = 30"))
    with pytest.raises(chapters.ChapterError, match="AssertionError: too large") as caught:
        chapters.execute(good)
    assert good.output.read_bytes() == before
    failed = project / "runs" / "failed" / "01_small.failed.ipynb"
    assert str(failed) in str(caught.value)
    assert "aaa" in outputs(failed)  # what was computed before the failure


def test_freshness_follows_code_and_parameters_but_not_prose(project):
    run = chapters.profile_run("01_small", "reference")
    source = project / "notebooks" / "01_small.md"
    key = chapters.freshness_key(run)
    source.write_text(SOURCE.replace("# A chapter", "# Another title"))
    assert chapters.freshness_key(run) == key
    source.write_text(SOURCE.replace("size = 3", "size = 4"))
    assert chapters.freshness_key(run) != key
    source.write_text(SOURCE)
    assert chapters.freshness_key(chapters.own_run("01_small", {"size": 3})) != key


def test_prose_is_renewed_without_executing(project):
    run = chapters.profile_run("01_small", "reference")
    chapters.execute(run)
    before = run.output.read_bytes()
    assert not chapters.renew_prose(run)
    assert run.output.read_bytes() == before
    source = project / "notebooks" / "01_small.md"
    source.write_text(SOURCE.replace("# A chapter", "# A better title\n\n+++\n\nAnd more."))
    assert chapters.renew_prose(run)
    assert chapters.is_fresh(run)
    notebook = nbformat.read(run.output, as_version=4)
    assert [cell.source for cell in notebook.cells[:2]] == ["# A better title", "And more."]
    assert outputs(run.output) == "['aaa']\n"
    renewed = run.output.read_bytes()
    chapters.execute(run)
    assert run.output.read_bytes() == renewed


def test_freshness_follows_the_recorded_tables_that_a_chapter_reads(project):
    run = chapters.profile_run("01_small", "reference")
    reading = SOURCE.replace("size = 3", 'size = 3\nfile = "../book/results/some.csv"')
    (project / "notebooks" / "01_small.md").write_text(reading)
    (project / "book" / "results").mkdir(parents=True)
    for name, changes in (("some.csv", True), ("other.csv", False)):
        key = chapters.freshness_key(run)
        (project / "book" / "results" / name).write_text("a\n1\n")
        assert (chapters.freshness_key(run) != key) == changes


def test_freshness_follows_direct_dependencies_only(project):
    run = chapters.profile_run("01_small", "reference")
    key = chapters.freshness_key(run)
    lock = project / "requirements.lock"
    text = lock.read_text()
    for package, changes in (("certifi", False), ("torch", True)):
        lock.write_text(text.replace(f"\n{package}==", f"\n{package}==9"))
        chapters.direct_pins.cache_clear()
        assert (chapters.freshness_key(run) != key) == changes


def test_comments_and_docstrings_of_the_package_make_nothing_stale():
    import ast

    one = 'def f(x):\n    """Doc."""\n    return x  # why\n'
    assert syntax(ast.parse(one)) == syntax(ast.parse("def f(x):\n    return x\n"))
    assert syntax(ast.parse(one)) != syntax(ast.parse("def f(x):\n    return 1\n"))


def test_names_of_chapters(project):
    assert chapters.resolve("01") == "01_small"
    assert chapters.resolve("notebooks/01_small.ipynb") == "01_small"
    with pytest.raises(chapters.ChapterError, match="no chapter '02'; known: 01_small"):
        chapters.resolve("02")


def test_a_book_needs_executed_notebooks(project):
    shutil.copytree(chapters.root() / "notebooks", project / "book")
    (project / "_toc.yml").write_text("")
    with pytest.raises(chapters.ChapterError, match="01_small has not been executed"):
        chapters.stage("smoke")
