"""Notebooks that were executed anew beside the committed ones."""

import subprocess

import nbformat
from nbformat.v4 import new_code_cell, new_notebook, new_output

from gleak.study.changes import changes
from gleak.study.verdicts import KEYS, MIME


def notebook(grade, claim):
    where = {**dict.fromkeys(KEYS, "x"), "words": "here"}
    found = {"grade": grade, "numbers": "1 dB", "reason": "so"}
    record = {"claims": [1], "rows": [{"setting": where, "paper": found, "any": found}]}
    shown = new_output("display_data", data={MIME: record, "text/plain": "a box"})
    badges = new_output("display_data", data={"text/plain": f"it leaks: {claim}"})
    printed = new_output("stream", text="it was slow: True\n")
    checked = {"tags": ["nbval-check-output"]}
    return new_notebook(
        cells=[
            new_code_cell("verdict()", outputs=[shown]),
            new_code_cell("claims()", outputs=[badges, printed], metadata=checked),
        ]
    )


def test_changes_name_what_is_new_and_what_is_gone(tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    file = tmp_path / "notebooks" / "01_small.ipynb"
    file.parent.mkdir()
    nbformat.write(notebook("holds", True), file)
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    assert changes(tmp_path) == []
    nbformat.write(notebook("not shown", False), file)
    assert changes(tmp_path) == [
        "01_small: no longer: claim 1 holds (paper; here)",
        "01_small: no longer: claim 1 holds (any; here)",
        "01_small: no longer: it leaks: True",
        "01_small: now: claim 1 not shown (paper; here)",
        "01_small: now: claim 1 not shown (any; here)",
        "01_small: now: it leaks: False",
    ]
    nbformat.write(notebook("holds", True), file.with_name("02_new.ipynb"))
    assert "02_new: not in HEAD" in changes(tmp_path)
