"""An hour on leakage as slides, made from the cells of the executed chapters.

`book/hour.yml` says what is shown in which minute; figures, listings and numbers are those that the
chapters stored. The deck is one HTML file that loads nothing from elsewhere.
"""

import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml

from gleak.study.sweep import results

STYLE = """
:root { color-scheme: light dark; }
html { scroll-snap-type: y mandatory; }
body { margin: 0; font: clamp(1rem, 2.2vw, 1.7rem)/1.45 system-ui, sans-serif;
  background: Canvas; color: CanvasText; }
section { min-height: 100vh; box-sizing: border-box; padding: 4vh 6vw; scroll-snap-align: start;
  display: flex; flex-direction: column; justify-content: center; break-after: page; }
h1, h2 { line-height: 1.2; margin: 0 0 0.5em; }
figure { margin: 0.5em 0; }
figure > img { max-width: 100%; max-height: 52vh; background: #fff; border-radius: 4px; }
figcaption, footer { font-size: 0.65em; }
pre { font-size: 0.6em; overflow-x: auto; }
@media print { html { scroll-snap-type: none; } }
"""
# Arrows, space and a presenter's remote go from slide to slide, unless a slider has the keys.
KEYS = """
const all = [...document.querySelectorAll("section")];
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input") || event.ctrlKey || event.metaKey || event.altKey) return;
  const forth = ["ArrowRight", "ArrowDown", "PageDown", " "].includes(event.key);
  const back = ["ArrowLeft", "ArrowUp", "PageUp"].includes(event.key);
  if (!forth && !back) return;
  event.preventDefault();
  const here = all.findIndex((one) => one.getBoundingClientRect().bottom > innerHeight / 2);
  all[Math.min(Math.max(here + (forth ? 1 : -1), 0), all.length - 1)].scrollIntoView();
});
"""


@dataclass(frozen=True)
class Stop:
    """A part of the hour.

    about: the page or chapter, as in the table of contents. figure: the name of one of a chapter's
    figures; code: a piece of the cell that is shown. say: what to say, with the names of numbers
    that the chapter glued in braces.
    """

    title: str
    about: str
    minutes: int
    say: tuple[str, ...]
    figure: str = ""
    code: str = ""

    @property
    def chapter(self) -> str:
        """The chapter's name; empty for another page."""
        return self.about.removeprefix("notebooks/") if "notebooks/" in self.about else ""


def stops(file: Path) -> list[Stop]:
    """The parts of the hour, as the file lists them."""
    listed = yaml.safe_load(file.read_text(encoding="utf-8"))
    return [Stop(**{**entry, "say": tuple(entry["say"])}) for entry in listed]


def deck(parts: Iterable[Stop], notebooks: Path, static: Path, title: str) -> str:
    """The page of all slides.

    Parameters
    ----------
    parts
        What is shown.
    notebooks
        The folder of the executed chapters.
    static
        The folder of the book's sheet and script, which figures that move need.
    title
        Of the first slide.

    Raises
    ------
    LookupError
        For a figure, a listing or a number that no chapter has.
    """
    parts, files = list(parts), sorted(notebooks.glob("[0-9]*.ipynb"))
    cells = [
        cell
        for file in files
        for cell in nbformat.read(file, as_version=4).cells
        if cell.cell_type == "code"
    ]
    chapters = {part.chapter for part in parts if part.chapter}
    numbers = {chapter: results(notebooks / f"{chapter}.ipynb") for chapter in chapters}
    minutes = sum(part.minutes for part in parts)
    first = f"<section><h1>{html.escape(title)}</h1><p>{minutes} minutes</p></section>"
    slides = [slide(part, cells, numbers.get(part.chapter, {})) for part in parts]
    sheet, script = ((static / file).read_text("utf-8") for file in ("book.css", "book.js"))
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{sheet}{STYLE}</style></head>"
        f"<body>{first}{''.join(slides)}<script>{script}{KEYS}</script></body></html>\n"
    )


def slide(part: Stop, cells: Iterable[Any], numbers: Mapping[str, Any]) -> str:
    """One slide as HTML; cells: those of all chapters, numbers: what this chapter glued."""
    cells = list(cells)
    try:
        said = [line.format_map(numbers) for line in part.say]
    except KeyError as error:
        raise LookupError(f"{part.title}: {part.chapter} has no number {error}") from None
    inside = "".join(f"<li>{html.escape(line)}</li>" for line in said)
    inside = f"<h2>{html.escape(part.title)}</h2><ul>{inside}</ul>"
    if part.code:
        inside += listing(part.code, cells)
    if part.figure:
        inside += picture(part.figure, cells)
    return f"<section>{inside}<footer>{part.minutes} minutes</footer></section>"


def listing(piece: str, cells: Iterable[Any]) -> str:
    """The code of the cell that has this piece."""
    found = next((cell.source for cell in cells if piece in cell.source), None)
    if found is None:
        raise LookupError(f"no cell of code has {piece!r}")
    return f'<pre tabindex="0">{html.escape(found)}</pre>'


def picture(name: str, cells: Iterable[Any]) -> str:
    """A figure with its caption, as a chapter stored it."""
    for cell in cells:
        about = cell.metadata.get("mystnb", {}).get("figure", {})
        for output in cell.outputs if about.get("name") == name else []:
            data = output.get("data", {})
            if "image/png" in data:
                alt = html.escape(output.metadata["image/png"]["alt"])
                inside = (
                    f'<img alt="{alt}" src="data:image/png;base64,{data["image/png"].strip()}">'
                )
            elif "text/html" in data:
                inside = data["text/html"]
            else:
                continue
            caption = html.escape(re.sub(r"\s+", " ", about["caption"]))
            return f"<figure>{inside}<figcaption>{caption}</figcaption></figure>"
    raise LookupError(f"no chapter has stored a figure {name}")
