"""What executed notebooks say otherwise than the committed ones: verdicts, and checked claims."""

import subprocess
from pathlib import Path

import nbformat

from gleak.study.verdicts import MIME, flat


def changes(root: Path, revision: str = "HEAD") -> list[str]:
    """A line for each chapter whose verdicts or checked claims differ from a revision's."""
    lines = []
    for file in sorted((root / "notebooks").glob("[0-9]*.ipynb")):
        name = f"{revision}:notebooks/{file.name}"
        shown = subprocess.run(["git", "show", name], cwd=root, capture_output=True, check=False)
        if shown.returncode:
            lines.append(f"{file.stem}: not in {revision}")
            continue
        before = statements(nbformat.reads(shown.stdout.decode("utf-8"), as_version=4))
        after = statements(nbformat.read(file, as_version=4))
        lines += [f"{file.stem}: no longer: {line}" for line in before if line not in after]
        lines += [f"{file.stem}: now: {line}" for line in after if line not in before]
    return lines


def statements(notebook: nbformat.NotebookNode) -> list[str]:
    """The verdicts of a notebook, without their numbers, and what its checked cells print."""
    found = []
    for cell in notebook.cells:
        checked = "nbval-check-output" in cell.metadata.get("tags", [])
        for output in cell.get("outputs", []):
            record = output.get("data", {}).get(MIME)
            if record:
                found += [
                    f"claim {row['claim']} {row['grade']} ({row['column']}; {row['setting']})"
                    for row in flat(record)
                ]
            if checked:
                found += said(output).splitlines()
    return found


def said(output: nbformat.NotebookNode) -> str:
    """What an output says in plain text, printed or displayed."""
    text: str = output.get("text") or output.get("data", {}).get("text/plain", "")
    return text
