"""What a class gets: slides from the chapters' cells, and exercises whose solutions run."""

import re

import nbformat
import pytest

from gleak.study import chapters, slides

ROOT = chapters.root()
HOUR = slides.stops(ROOT / "book" / "hour.yml")
SOURCES = {
    file.stem: file.read_text("utf-8")
    for file in (*sorted((ROOT / "notebooks").glob("*.md")), ROOT / "book" / "exercises.md")
}
SOLUTION = re.compile(r"^(`{3,})\{solution\} (\S+)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SOLVED = {
    label: "\n".join(CODE.findall(text))
    for source in SOURCES.values()
    for _, label, text in SOLUTION.findall(source)
    if CODE.search(text)
}


def test_the_hour_is_an_hour_of_what_the_chapters_have():
    assert sum(stop.minutes for stop in HOUR) == 60
    for stop in HOUR:
        assert (ROOT / f"{stop.about}.md").exists(), stop.about
        assert not stop.figure or f"name: {stop.figure}" in "".join(SOURCES.values()), stop.figure
        assert stop.code in SOURCES.get(stop.chapter, ""), stop.title


def cells():
    about = {"mystnb": {"figure": {"name": "fig-one", "caption": "One & two."}}}
    output = nbformat.v4.new_output(
        "display_data", {"image/png": "AAAA"}, metadata={"image/png": {"alt": "A <picture>."}}
    )
    return [nbformat.v4.new_code_cell("a = 1 < 2", metadata=about, outputs=[output])]


def test_a_slide_has_words_numbers_code_and_figure():
    stop = slides.Stop("One", "notebooks/01_one", 3, ("It is {x:.1f} dB.",), "fig-one", "a = 1")
    page = slides.slide(stop, cells(), {"x": 2.25})
    assert "It is 2.2 dB." in page
    assert "a = 1 &lt; 2" in page
    assert 'alt="A &lt;picture&gt;."' in page
    assert "One &amp; two." in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"say": ("{y}",)}, "no number 'y'"),
        ({"figure": "fig-two"}, "fig-two"),
        ({"code": "b"}, "no cell of code has 'b'"),
    ],
)
def test_what_no_chapter_has_is_named(change, message):
    plain = {"title": "One", "about": "notebooks/01_one", "minutes": 1, "say": ()}
    stop = slides.Stop(**plain | change)
    with pytest.raises(LookupError, match=message):
        slides.slide(stop, cells(), {})


def test_every_exercise_has_a_solution():
    for name, source in SOURCES.items():
        asked = re.findall(r"\{exercise\}[^\n]*\n:label: (\S+)", source)
        assert sorted(asked) == sorted(label for _, label, _ in SOLUTION.findall(source)), name


def test_main_chapters_have_exercises_of_both_levels():
    for name in (chapter for chapter in SOURCES if re.match(r"\d+_", chapter)):
        _, exercises = SOURCES[name].split("\n## Exercises\n")
        first, second = exercises.split("**Second level: research.**")
        assert "**First level: warm-up.**" in first, name
        assert "{exercise}" in first, name
        assert "{exercise}" in second, name


@pytest.mark.parametrize("label", SOLVED)
def test_the_code_of_a_solution_runs(label):
    exec(compile(SOLVED[label], label, "exec"), {"__name__": label})  # noqa: S102, the book's own
    assert "assert " in SOLVED[label], "a solution has to say what comes out"


def test_symbols_are_met_where_the_page_says():
    page = (ROOT / "book" / "notation.md").read_text("utf-8")
    rows = re.findall(r"^\| \$(.+?)\$ \|.*`\.\./notebooks/(\w+)` \|$", page, re.MULTILINE)
    assert len(rows) > 20
    formulas = {
        chapter: " ".join(re.findall(r"\$[^$]+\$|```\{math\}.*?```", source, re.DOTALL))
        for chapter, source in SOURCES.items()
    }
    for symbol, chapter in rows:
        letter = symbol.split("_")[0]
        assert letter in formulas[chapter], (symbol, chapter)
