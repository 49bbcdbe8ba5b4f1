"""Verdicts: recorded in a notebook, read for the chapter that sums up."""

import nbformat
import pytest
from conftest import SOURCE

from gleak.study import book, chapters
from gleak.study.verdicts import stored_verdicts

CLAIM = """
```{code-cell} ipython3
from gleak.study.book import verdict
measured = f"{1 / 3:.2f} of them"
verdict(claim=1, setting="four", measured=measured, verdict="holds partly", why="So it is.")
```
"""
SUM_UP = (
    SOURCE
    + """
```{code-cell} ipython3
from gleak.study.book import verdicts
for row in verdicts().itertuples():
    print(row.claim, row.verdict, row.measured, row.chapter)
```
"""
)


def test_a_verdict_is_recorded_and_summed_up_and_makes_the_sum_stale(project):
    folder = project / "notebooks"
    (folder / "01_small.md").write_text(SOURCE + CLAIM)
    (folder / "02_sum.md").write_text(SUM_UP)
    first, last = (chapters.profile_run(name, "smoke") for name in ("01_small", "02_sum"))
    chapters.execute(first)
    (record,) = stored_verdicts([first.output])
    assert record["measured"] == "0.33 of them"
    assert chapters.reads_verdicts("02_sum")
    assert not chapters.reads_verdicts("01_small")
    chapters.execute(last)
    cells = nbformat.read(last.output, as_version=4).cells
    assert cells[-1].outputs[0].text == "1 holds partly 0.33 of them 01_small\n"
    assert chapters.is_fresh(last)
    (folder / "01_small.md").write_text(SOURCE + CLAIM.replace("holds partly", "holds"))
    chapters.execute(first)
    assert not chapters.is_fresh(last)


@pytest.mark.parametrize(
    "wrong",
    [{"claim": 8}, {"verdict": "true"}, {"measured": " "}, {"measured": "nan dB"}],
)
def test_a_verdict_without_substance_is_refused(wrong):
    right = {"claim": 1, "setting": "a", "measured": "b", "verdict": "holds", "why": "c"}
    with pytest.raises(ValueError, match="verdict"):
        book.verdict(**{**right, **wrong})
