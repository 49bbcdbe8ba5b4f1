"""A figure of matplotlib as SVG that takes its colours from the page around it.

Grays mix the page's ink with its ground, and colours of the cycle have a name each, so that a page
can make them lighter where it is dark. Alone, as a file, it is what matplotlib would have drawn.
"""

import hashlib
import io
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as ET

from gleak.extras import extra

with extra("figures"):
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

SVG, LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
AS_IT_IS = "as-it-is"  # an artist with this gid keeps its colours: what lies on data, not the page
FONTS = "DejaVu Sans, Verdana, sans-serif"
DRAWN: Any = {"svg.fonttype": "none", "svg.hashsalt": "gleak", "image.interpolation": "none"}
POINT = 1.6  # CSS pixels on a wide page; 10 points are a page's text there


def themed(figure: Figure, alt: str) -> str:
    """The figure as an SVG element, the same from the same numbers.

    Parameters
    ----------
    figure
        Its ground is the page's.
    alt
        The words that a screen reader says in its place.
    """
    buffer = io.BytesIO()
    with plt.rc_context(DRAWN):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        cycle = [color.lower() for color in plt.rcParams["axes.prop_cycle"].by_key()["color"]]
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", LINK)
    root = ET.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element, kept in with_fate(root):
        style = element.get("style")
        if element.get("id", "").startswith(AS_IT_IS):
            element.set("fill", "#000")  # what matplotlib leaves out
        if style is not None:
            style = re.sub(r"font-family: [^;]*;? ?", "", style)
            element.set("style", style if kept else in_theme(style, cycle))
    width, height = (float(size) for size in root.attrib["viewBox"].split()[2:])
    ground = ET.Element(f"{{{SVG}}}rect", {"class": "ground", "fill": "#fff"})
    ground.attrib |= {"width": f"{width:g}", "height": f"{height:g}"}
    root.insert(0, ground)
    root.attrib |= {
        "role": "img",
        "aria-label": alt,
        "width": f"{POINT * width:.0f}",
        "height": f"{POINT * height:.0f}",
        "style": f"--width: {width:g}; font-family: {FONTS}; fill: var(--ink, #000); "
        "stroke-linejoin: round",
    }
    number_ids(root, "")
    # a page may hold several figures, and no id twice
    number_ids(root, f"f{hashlib.sha256(ET.tostring(root)).hexdigest()[:8]}-")
    text = ET.tostring(root, encoding="unicode")
    return re.sub(r">\s+<", "><", re.sub(r"\s+", " ", text)).replace("base64, ", "base64,")


def number_ids(root: ET.Element, start: str) -> None:
    """Count the ids that something refers to, and drop the others."""
    named = r"(?<=#)[\w-]+"
    places = [(e, name) for e in root.iter() for name in ("clip-path", f"{{{LINK}}}href")]
    used = [old for e, name in places for old in re.findall(named, e.get(name, ""))]
    names = {old: f"{start}{n}" for n, old in enumerate(dict.fromkeys(used))}
    for element, name in places:
        if name in element.attrib:
            new = re.sub(named, lambda match: names[match[0]], element.attrib[name])
            element.set(name, new)
    for element in root.iter():
        old = element.attrib.pop("id", None)
        if old in names:
            element.set("id", names[old])


def with_fate(element: ET.Element, kept: bool = False) -> Iterator[tuple[ET.Element, bool]]:
    """Each element below one, and whether its colours stay as they are."""
    kept = kept or element.get("id", "").startswith(AS_IT_IS)
    yield element, kept
    for child in element:
        yield from with_fate(child, kept)


def in_theme(style: str, cycle: list[str]) -> str:
    """A style whose grays and colours of the cycle come from the page.

    >>> in_theme("fill: #ffffff; stroke: #0072b2", ["#0072b2"])
    'fill: var(--ground, #fff); stroke: var(--mark-0, #0072b2)'
    """

    def color(match: re.Match[str]) -> str:
        code = match[0]
        red, green, blue = (int(code[n : n + 2], 16) for n in (1, 3, 5))
        if red == green == blue:
            ink = round(100 * (1 - red / 255))
            if ink in (0, 100):
                return "var(--ink, #000)" if ink else "var(--ground, #fff)"
            return f"color-mix(in srgb, var(--ink, #000) {ink}%, var(--ground, #fff))"
        return f"var(--mark-{cycle.index(code)}, {code})" if code in cycle else code

    return re.sub(r"#[0-9a-f]{6}", color, style)
