"""Verdicts: recorded in a notebook, read for the chapter that sums up, told in sentences."""

import functools
import itertools
import re

import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from click.testing import CliRunner
from conftest import SOURCE

from gleak.study import book, chapters, cli, criterion, sweep
from gleak.study.criterion import CONDITION, FAILS, HOLDS, OPEN
from gleak.study.displays import verdicts as display
from gleak.study.verdicts import flat, setting, stored_verdicts

CLAIM = """
```{code-cell} ipython3
from gleak.study import criterion
from gleak.study.book import verdict
from gleak.study.verdicts import setting
found = criterion.labels("zlg", [SHARE] * 6, [0.4] * 6)
verdict([1, 6], [(setting("four", images=4), {"paper": found, "any": found})])
```
"""
SUM_UP = (
    SOURCE
    + """
```{code-cell} ipython3
from gleak.study.book import verdicts
for row in verdicts().itertuples():
    print(row.claim, row.column, row.grade, row.chapter, row.link)
```
"""
)


def labels(share, units=6):
    return criterion.labels("zlg", [share] * units, [0.4] * units)


def test_a_verdict_is_recorded_and_summed_up_and_makes_the_sum_stale(project, monkeypatch):
    folder = project / "notebooks"
    (folder / "01_small.md").write_text(SOURCE + CLAIM.replace("SHARE", "1"))
    (folder / "02_sum.md").write_text(SUM_UP)
    first, last = (chapters.profile_run(name, "smoke") for name in ("01_small", "02_sum"))
    chapters.execute(first)
    records = stored_verdicts([first.output])
    assert [(row["claim"], row["column"]) for row in records] == [
        (1, "paper"), (1, "any"), (6, "paper"), (6, "any"),
    ]  # fmt: skip
    assert records[0]["numbers"].startswith("100% of the labels right")
    assert sweep.results(first.output)["verdict.6.any"] == HOLDS
    assert chapters.reads_verdicts("02_sum")
    assert not chapters.reads_verdicts("01_small")
    chapters.execute(last)
    cells = nbformat.read(last.output, as_version=4).cells
    lines = cells[-1].outputs[0].text.splitlines()
    assert lines[0] == "1 paper holds 01_small 01_small.html#verdict"
    assert chapters.is_fresh(last)
    (folder / "01_small.md").write_text(SOURCE + CLAIM.replace("SHARE", "0.5"))
    executed = []

    def in_this_process(runs, jobs):
        executed.extend(run.chapter for run in runs)
        return all(chapters.execute(run) for run in runs)

    monkeypatch.setattr(cli, "execute_all", in_this_process)
    CliRunner().invoke(cli.main, ["execute", "--profile", "smoke"], catch_exceptions=False)
    assert executed == ["01_small", "02_sum"]  # the sum was fresh until the first had run
    assert chapters.is_fresh(last)


@pytest.mark.parametrize(
    ("claims", "words"), [([8], ["a"]), ([], ["a"]), ([1], []), ([1], [" "]), ([1], ["a", "a"])]
)
def test_a_verdict_without_substance_is_refused(claims, words):
    found = {"paper": labels(1.0), "any": labels(1.0)}
    with pytest.raises(ValueError, match="a verdict"):
        book.verdict(claims, [(setting(text, images=4), found) for text in words])


def shown(monkeypatch, claims, rows):
    """What `book.verdict` shows: the box, and its record."""
    outputs = []
    monkeypatch.setattr(book, "display", lambda data, raw: outputs.append(data))
    book.verdict(claims, rows)
    (data,) = outputs
    return BeautifulSoup(data["text/html"], "html.parser"), data[book.MIME]


def test_the_box_names_both_columns_and_the_condition(monkeypatch):
    rows = [
        (
            setting("easy & <b>", what="labels", images=4),
            {"paper": labels(0.99), "any": labels(1.0)},
        ),
        (
            setting("late", what="labels", images=4, trained=True),
            {"paper": labels(0.5), "any": labels(1.0)},
        ),
    ]
    box, stored = shown(monkeypatch, [1], rows)
    lines = [line.get_text() for line in box.select("p")]
    assert lines[1].startswith("The paper's method as published: holds under a condition")
    assert "it holds on untrained networks; it does not hold on trained networks" in lines[1]
    assert "easy & <b>, the paper's rule: 99% of the labels right" in lines[1]
    assert lines[2].startswith("Any method of this study: holds. ")
    assert [cell.get_text() for cell in box.select("tbody th")] == ["easy & <b>", "late"]
    assert len(box.select("tbody tr")) == 4 == len(flat(stored))


# -- the chapter of verdicts ----------------------------------------------------------------------


def records_of(*rows):
    """Rows as `book.verdicts` has them, from claim, setting, findings."""
    records = [
        {"chapter": "02_labels", "link": "02_labels.html#verdict", **row}
        for claim, where, paper, any_ in rows
        for row in flat(
            {
                "claims": [claim],
                "rows": [
                    {
                        "setting": vars(where),
                        "paper": vars(paper),
                        "any": vars(any_),
                    }
                ],
            }
        )
    ]
    return pd.DataFrame(records)


EASY = setting("easy", what="labels", images=4)
LATE = setting("late", what="labels", images=50, trained=True)


@pytest.fixture
def records():
    return records_of(
        (1, EASY, labels(0.99), labels(1.0)),
        (1, LATE, labels(0.5), labels(1.0)),
        (2, EASY, labels(0.5), labels(0.5)),
        (3, EASY, labels(1.0, 3), labels(1.0, 3)),
    )


def test_a_sentence_for_each_grade(records):
    words = display.sentence(records, 1, "paper")
    assert words == (
        "On untrained networks, the paper's method reads nearly all labels of a client's images. "
        "It does not on trained networks."
    )
    assert display.sentence(records, 1, "any").startswith("In each of 2 settings, the best method")
    assert display.sentence(records, 2, "paper").startswith("The paper's method restores no images")
    words = display.sentence(records, 3, "any")
    assert words.startswith("It is open whether the best method of this study restores images")
    assert "Only 3 networks were measured, and a verdict takes 5" in words
    assert words.endswith(" What was measured points to yes in the one setting tried.")
    assert display.sentence(records, 4, "paper").startswith("No chapter has measured")
    assert display.case(records, 1, "paper").startswith(
        "The hardest case in which it holds (chapter 2). Easy, the paper's rule: 99% of the labels"
    )
    assert display.case(records, 4, "paper") == ""


def test_one_sentence_says_what_both_methods_do(records):
    words = display.headline(records, 1)
    assert words.startswith("In each of 2 settings, the best method")
    assert "On untrained networks, the paper's method reads" in words
    assert display.headline(records, 2).endswith("The same goes for the paper's method.")
    assert display.headline(records, 4).startswith("No chapter")


# Distances to the bar that make a row hold, fail, or stay open, by too few networks or by chance.
OUTCOMES = {"holds": (0.3, 6), "fails": (-0.3, 6), "few": (0.3, 3), "close": (0.0, 6)}


@functools.cache
def outcome(claim, name):
    """A finding of the kind that a claim is judged by."""
    distance, units = OUTCOMES[name]
    spread = np.array([-0.02, 0.02] * 3)[:units]
    near = 20 + 10 * distance + spread
    level, flat = np.full(units, 20.0), np.full(units, 14.0)
    if claim in (1, 6):
        return criterion.labels("zlg", 0.94 + 0.2 * min(distance, 0.25) + spread, 0.4 + 0 * spread)
    if claim in (2, 3):
        return criterion.images("general", near, level, flat)
    if claim == 4:
        return criterion.spoilt("L2", level + 5, level - 10 * distance + spread, level)
    if claim == 5:
        return criterion.fused("L2", level / 20, 0.5 - distance + spread, flat + 6, flat)
    return criterion.ahead("general", near, level, level - 5)


def outcomes(claim):
    """Records of a claim for each pair of outcomes: of both methods, and in two settings."""
    for one, other in itertools.product(OUTCOMES, repeat=2):
        first, second = outcome(claim, one), outcome(claim, other)
        yield records_of((claim, EASY, first, second))
        yield records_of((claim, EASY, first, first), (claim, LATE, second, first))


@pytest.mark.parametrize("claim", display.CLAIMS)
def test_all_that_can_be_said_of_a_claim_reads_well(claim):
    """To read them: pytest -s -k reads_well."""
    said = set()
    for records in outcomes(claim):
        said.add(display.headline(records, claim))
        for column in ("paper", "any"):
            said |= {f(records, claim, column) for f in (display.sentence, display.case)}
    print(*sorted(said), sep="\n")
    assert len(said) > 20
    for words in said:
        assert words[0].isupper()
        assert words.endswith(".")
        assert not re.search(r"\.\.|  |,,| ,| \.|;\.|nan|None|[a-z]_[a-z]|:\.", words), words
        for one in re.split(r"(?<=[a-z)%])\. ", words):
            assert len(one.split()) < 40, one
        assert "1 networks" not in words


def test_every_claim_can_get_every_grade():
    for number in display.CLAIMS:
        for share, units, grade in ((1.0, 6, HOLDS), (0.5, 6, FAILS), (1.0, 3, OPEN)):
            rows = records_of((number, EASY, labels(share, units), labels(share, units)))
            for column in ("paper", "any"):
                assert display.combined(display.of(rows, number, column)).grade == grade
        rows = records_of(
            (number, EASY, labels(1.0), labels(1.0)), (number, LATE, labels(0.5), labels(0.5))
        )
        assert display.combined(display.of(rows, number, "any")).grade == CONDITION


def test_the_matrix_has_mark_number_and_link_in_each_cell(records):
    table = BeautifulSoup(display.matrix(records).data, "html.parser")
    rows = {row.th.get_text(): row.select("td") for row in table.select("tbody tr")}
    assert len(rows) == 7
    cells = {cell.small.get_text(): cell for cell in rows["1. labels"]}
    assert [*cells] == [cell.get_text() for cell in table.select("thead th")][1:]
    best, paper = cells["trained"].select("a")
    # The style sheet draws the mark of a badge's class; the hidden text names the grade.
    for found, grade in ((best, HOLDS), (paper, FAILS)):
        assert f"badge-{display.BADGES[grade]}" in found["class"]
        assert found.select_one(".gleak-unseen").get_text().strip() == f"{grade}:"
    assert "50/40" in paper.get_text()
    assert paper.get_text().startswith("paper")
    assert f"{CONDITION}:" in cells["FedSGD"].select_one("a.paper").get_text()
    assert "99/40 to 50/40" in cells["labels"].select_one("a.paper").get_text()
    assert "not measured" in cells["FedAvg"].get_text()
    assert best["href"] == "02_labels.html#verdict"
    assert table.select_one("div.gleak-scroll[tabindex]")


def test_what_the_chapter_glues_is_there_for_each_claim(records, monkeypatch):
    glued = {}
    monkeypatch.setattr(display, "glue", lambda name, value: glued.update({name: value}))
    page = BeautifulSoup(display.claims(records).data, "html.parser")
    assert len(page.select(".claim")) == 7
    assert {f"grade_{n}_{column}" for n in range(1, 8) for column in ("paper", "any")} <= set(glued)
    assert {f"headline_{n}" for n in range(1, 8)} <= set(glued)
    assert glued["grade_1_paper"] == CONDITION
    assert "easy" not in glued["headline_1"]  # the front page is short
    assert glued["settings"] == 2


def test_the_page_of_the_criterion_is_made_of_its_constants(monkeypatch):
    assert "90%" in display.criterion_table().data
    monkeypatch.setattr(criterion, "RESTORED", 0.8)
    assert "80%" in display.criterion_table().data


def test_no_number_is_printed_as_the_papers():
    for _, theirs, _ in display.PAPER_AND_HERE:
        assert not any(mark.isdigit() for mark in theirs.replace("CIFAR-10", "").replace("L2", ""))


def test_the_tables_of_the_chapter(records):
    for table in (display.all_verdicts(records), display.paper_says(records)):
        page = BeautifulSoup(table.data, "html.parser")
        assert page.select("tbody a[href='02_labels.html#verdict']")
    assert "<code>zlg</code>" in display.paper_and_here().data
    _, alt = display.marks(records)
    assert alt.endswith("2 rows not shown.")
    assert display.title("07_wrong_label") == "07 wrong label"


def test_grades_without_networks_are_seen(records, monkeypatch):
    checks = {}
    monkeypatch.setattr(book, "claims", checks.update)
    display.check(records, 1)
    assert all(checks.values())
    display.check(records.assign(n=1), 1)
    assert not checks["every grade has enough networks behind it"]
