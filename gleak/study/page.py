"""One HTML page that needs no other file: readable offline, on a phone, in the dark, by ear.

A page is built from parts. A part is `Html`, which only the functions here make; any other string
is text from outside, and is escaped where it is put in. There are no scripts, and the page's own
policy tells a browser to load nothing.

>>> print(paragraph("a < b, ", strong("really")))
<p>a &lt; b, <strong>really</strong></p>
"""

import base64
import html
import io
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image

from gleak.storage import whole

LONGEST = 200  # characters of a name from outside; what is longer ends in an ellipsis
PNG = "data:image/png;base64,"
WIDEST = 192  # pixels to which small images are enlarged, in whole steps

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --ground: #fff; --soft: #f3f4f6; --line: #cfd4da;
  --quiet: #4d5661; --leaks: #b3261e; --unknown: #7a4d00; --cannot: #12633a; --link: #0b57d0; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8eb; --ground: #16181c; --soft: #22262c;
  --line: #434a54; --quiet: #b0b8c2; --leaks: #ff8a80; --unknown: #f2c063; --cannot: #7fd6a3;
  --link: #8ab4f8; } }
* { box-sizing: border-box; }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; color: var(--text);
  background: var(--ground); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.25; } h2 { margin-top: 2.2rem; }
a { color: var(--link); }
img { max-width: 100%; height: auto; }
img.pixels { image-rendering: pixelated; }
figure { margin: 1.2rem 0; }
figure.chart img { background: #fff; border-radius: 0.3rem; }
figcaption, caption { color: var(--quiet); font-size: 0.92rem; text-align: left; }
caption { padding-bottom: 0.4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.94rem; overflow-wrap: break-word; }
th, td { padding: 0.35rem 0.7rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th[scope=row] { font-weight: 600; min-width: 7rem; }
th, td { max-width: 22rem; }
pre { background: var(--soft); padding: 0.8rem 1rem; overflow-x: auto; font-size: 0.85rem; }
.verdict { border-left: 0.35rem solid var(--quiet); background: var(--soft); margin: 1rem 0;
  padding: 0.5rem 1rem; }
.verdict > h3 { margin: 0.3rem 0; }
.leaks { border-color: var(--leaks); } .leaks > h3 { color: var(--leaks); }
.unknown { border-color: var(--unknown); } .unknown > h3 { color: var(--unknown); }
.cannot { border-color: var(--cannot); } .cannot > h3 { color: var(--cannot); }
ul.gallery { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 1rem; }
ul.gallery figure { margin: 0; max-width: 12rem; }
details { margin: 1rem 0; } summary { cursor: pointer; }
footer { margin-top: 3rem; color: var(--quiet); font-size: 0.9rem; }
@media print { body { max-width: none; } details > * { display: block; } }
"""


class Html(str):
    """Text that is HTML already, made by the functions of this module."""


Part = Html | str  # a plain string is text


def escaped(part: object) -> Html:
    """Text as HTML that shows just this text; `Html` as it is.

    Characters that show nothing or turn the text around (controls, overrides of the direction)
    become U+FFFD, so that a name cannot look like another one.

    >>> escaped("<img src=x onerror='a()'>")
    '&lt;img src=x onerror=&#x27;a()&#x27;&gt;'
    """
    if isinstance(part, Html):
        return part
    shown = (
        "\N{REPLACEMENT CHARACTER}"
        if unicodedata.category(c) in ("Cc", "Cf", "Cs") and c not in "\n\t"
        else c
        for c in str(part)
    )
    return Html(html.escape("".join(shown)))


def short(name: str, longest: int = LONGEST) -> str:
    """A name from outside, cut where it is too long to be read.

    >>> short("a photograph", 8)
    'a photo…'
    """
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def element(tag: str, *parts: Part, **attributes: str | int | None) -> Html:
    """An element with these parts inside; class_ is its attribute class, aria_label aria-label."""
    given = {
        name.rstrip("_").replace("_", "-"): value
        for name, value in attributes.items()
        if value is not None
    }
    inside = "".join(f' {name}="{escaped(str(value))}"' for name, value in given.items())
    return Html(f"<{tag}{inside}>{joined(parts)}</{tag}>")


def joined(parts: Iterable[Part]) -> Html:
    """Parts one after the other, text among them escaped."""
    return Html("".join(escaped(part) for part in parts))


def paragraph(*parts: Part) -> Html:
    """A paragraph."""
    return element("p", *parts)


def strong(*parts: Part) -> Html:
    """Words that matter most."""
    return element("strong", *parts)


def bullets(items: Iterable[Part]) -> Html:
    """A list; nothing where there are no items."""
    rows = [element("li", item) for item in items]
    return element("ul", *rows) if rows else Html()


def preformatted(text: Part) -> Html:
    """Text whose line breaks count, such as what an update prints of itself."""
    return element("pre", text, tabindex=0)


def section(heading: Part, *parts: Part, level: int = 2) -> Html:
    """A heading of this level and what stands below it."""
    return element("section", element(f"h{level}", heading), *parts)


def folded(summary: Part, *parts: Part) -> Html:
    """What only some readers want, behind a line that opens it."""
    return element("details", element("summary", summary), *parts)


def verdict(kind: str, heading: Part, *parts: Part) -> Html:
    """An answer that stands out; the heading says it in words, the colour only repeats it.

    kind: "leaks", "unknown" or "cannot".
    """
    return element("div", element("h3", heading), *parts, class_=f"verdict {kind}")


def table(frame: pd.DataFrame, caption: Part, *, digits: int = 2) -> Html:
    """A frame as a table whose rows and columns have headings; numbers that are unknown: a dash.

    Cells, the index and columns may hold `Html`, or anything that is text.
    """
    corner = heading(frame.index.name, "col") if frame.index.name else element("td")
    top = element("tr", corner, *(heading(name, "col") for name in frame.columns))
    rows = [
        element("tr", heading(name, "row"), *(cell(value, digits) for value in values))
        for name, values in zip(frame.index, frame.itertuples(index=False), strict=True)
    ]
    whole_table = element(
        "table", element("caption", caption), element("thead", top), element("tbody", *rows)
    )
    # a keyboard scrolls only what it can reach
    words = html.unescape(re.sub("<[^>]*>", "", escaped(caption)))
    return element("div", whole_table, class_="scroll", tabindex=0, role="region", aria_label=words)


def heading(name: object, scope: str) -> Html:
    """The heading of a row or a column; scope: "row" or "col"."""
    return element("th", escaped(name), scope=scope)


def cell(value: object, digits: int) -> Html:
    """One cell; numbers stand to the right, with at most so many digits after the point."""
    if isinstance(value, str):
        return element("td", value)
    if value is None or value is pd.NA or value != value:
        return element("td", "–", class_="number")
    if isinstance(value, bool):
        return element("td", "yes" if value else "no")
    if isinstance(value, float):
        text = f"{value:.{digits}f}"
        return element("td", text.rstrip("0").rstrip(".") if "." in text else text, class_="number")
    return element("td", str(value), class_="number")


def image(images: torch.Tensor, alt: str, caption: Part = "") -> Html:
    """One image (C, H, W) in [0, 1], or several (K, C, H, W) side by side, with its words."""
    data, width = png(images)
    picture = void("img", src=data, width=width, alt=alt, class_="pixels")
    return element("figure", picture, *([element("figcaption", caption)] if caption else []))


def gallery(images: Sequence[torch.Tensor], alts: Sequence[str], captions: Sequence[Part]) -> Html:
    """Images (C, H, W) in [0, 1], each with its words, in as many columns as there is room for.

    Raises ValueError unless there are as many of each.
    """
    each = zip(images, alts, captions, strict=True)
    items = [element("li", image(one, alt, caption)) for one, alt, caption in each]
    return element("ul", *items, class_="gallery")


def figure(drawn: Figure, alt: str, caption: Part = "") -> Html:
    """A figure of matplotlib, on the white ground that it was drawn for."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=120, facecolor="white", metadata={"Software": None})
    picture = void("img", src=data_uri(buffer.getvalue()), alt=alt)
    words = [element("figcaption", caption)] if caption else []
    return element("figure", picture, *words, class_="chart")


def void(tag: str, **attributes: str | int | None) -> Html:
    """An element that holds nothing."""
    return Html(element(tag, **attributes).removesuffix(f"</{tag}>"))


def png(images: torch.Tensor) -> tuple[str, int]:
    """Images in [0, 1] as the address of a PNG that holds them, and how wide to show it.

    images: (C, H, W), or (K, C, H, W) side by side; C is 1 or 3.
    """
    strip = images if images.ndim == 3 else torch.cat(list(images), dim=2)
    pixels = (strip.detach().float().cpu().clamp(0, 1) * 255).round().byte()
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy()).save(buffer, "png", optimize=True)
    each = strip.shape[2] if images.ndim == 3 else images.shape[3]
    return data_uri(buffer.getvalue()), strip.shape[2] * max(WIDEST // each, 1)


def pixels(address: str) -> torch.Tensor:
    """The image (C, H, W) in [0, 1] of an address that `png` made, C being 1 or 3."""
    data = base64.b64decode(address.removeprefix(PNG))
    with Image.open(io.BytesIO(data), formats=["PNG"]) as opened:
        values = torch.from_numpy(np.array(opened)).float() / 255
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1)


def data_uri(data: bytes) -> str:
    """A PNG as an address that holds it."""
    return PNG + base64.b64encode(data).decode()


def page(title: str, *parts: Part, footer: Part = "", lang: str = "en") -> str:
    """The whole page."""
    head = joined(
        [
            void("meta", charset="utf-8"),
            void("meta", name="viewport", content="width=device-width, initial-scale=1"),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
            void("meta", name="referrer", content="no-referrer"),
            element("title", title),
            Html(f"<style>{STYLE}</style>"),
        ]
    )
    end = [element("footer", footer)] if footer else []
    body = element("body", element("main", element("h1", title), *parts), *end)
    return f"<!DOCTYPE html>\n{element('html', element('head', head), body, lang=lang)}\n"


def write(path: Path, title: str, *parts: Part, footer: Part = "", lang: str = "en") -> Path:
    """Write the whole page to a file, in one go; the folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        partial.write_text(page(title, *parts, footer=footer, lang=lang), encoding="utf-8")
    return path


def facts(rows: Mapping[str, Part], caption: Part) -> Html:
    """Names and what they are, as a table of two columns."""
    frame = pd.DataFrame({"": list(rows.values())}, index=list(rows))
    return table(frame, caption)
