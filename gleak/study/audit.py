"""The report on one's own data: chapter 13, run with one's own parameters, as one HTML file."""

import base64
import mimetypes
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import nbformat

from gleak.storage import whole
from gleak.study import chapters

CHAPTER = "13_your_data"
LEFT_OUT = "remove-from-report"  # the tag of cells that belong to the book alone

SPHINX = """
project = "gleak"
extensions = ["myst_nb"]
nb_execution_mode = "off"
nb_remove_code_source = True
nb_merge_streams = True
html_theme = "basic"
html_theme_options = {"nosidebar": True}
html_copy_source = False
html_use_index = False
html_show_sphinx = False
html_show_copyright = False
pygments_style = "default"
"""

STYLE = """
body { max-width: 56rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: white;
  font: 16px/1.55 system-ui, sans-serif; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.2rem; }
img { max-width: 100%; height: auto; } figure { margin: 1.5rem 0; }
figcaption, .caption { color: #555; font-size: 0.9rem; }
pre { background: #f5f6f7; padding: 0.8rem 1rem; overflow-x: auto; font-size: 0.85rem; }
table { border-collapse: collapse; font-size: 0.9rem; display: block; overflow-x: auto; }
th, td { padding: 0.3rem 0.7rem; text-align: right; border: 0; border-bottom: 1px solid #ddd; }
.headerlink { display: none; }
"""


def audit(parameters: Mapping, folder: Path) -> Path:
    """Run the report with these parameters; the page, beside the notebook that it was made from.

    Raises ChapterError as `chapters.execute` does, and when the page cannot be made.
    """
    run = chapters.own_run(CHAPTER, parameters, folder)
    chapters.execute(run)
    page = run.output.with_name("index.html")
    html = page_of(nbformat.read(run.output, as_version=4))
    with whole(page) as partial:
        partial.write_text(html, encoding="utf-8")
    return page


def page_of(notebook: nbformat.NotebookNode) -> str:
    """An executed notebook as one HTML page that needs no other file: no code, figures inside."""
    notebook.cells = [c for c in notebook.cells if LEFT_OUT not in c.metadata.get("tags", [])]
    with tempfile.TemporaryDirectory() as name:
        source, built = Path(name, "source"), Path(name, "built")
        source.mkdir()
        (source / "conf.py").write_text(SPHINX)
        nbformat.write(notebook, source / "index.ipynb")
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "sphinx",
            "-b",
            "html",
            "-q",
            source,
            built,
        ]
        # its warnings are about what the report leaves out: the book's citations and labels
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise chapters.ChapterError(f"the report was not made: {done.stderr.strip()[-500:]}")
        return self_contained((built / "index.html").read_text(encoding="utf-8"), built)


def self_contained(html: str, folder: Path) -> str:
    """The page with its pictures inside, the report's own style, and no scripts."""
    html = re.sub(r"<script\b.*?</script>", "", html, flags=re.DOTALL)
    html = re.sub(r"<link\b[^>]*>", "", html)
    html = re.sub(r'<div class="related".*?</div>', "", html, flags=re.DOTALL)  # other pages

    def inside(match):
        file = folder / match[1]
        kind = mimetypes.guess_type(file)[0]
        return f'src="data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"'

    html = re.sub(r'src="(?!data:)([^"]+)"', inside, html)
    # a picture's link leads to the file that is now inside
    html = re.sub(
        r'<a class="[^"]*image-reference[^"]*" href="[^"]*">(<img[^>]*>)</a>', r"\1", html
    )
    return html.replace("</head>", f"<style>{STYLE}</style>\n</head>")


def options_of(options: Mapping) -> dict:
    """The chapter's parameters from the options of the command line; images are drawn at random."""
    given = {name: value for name, value in options.items() if value is not None}
    given = {"size": 4, "indices": []} | given
    return {"batch_size": given["size"]} | given
