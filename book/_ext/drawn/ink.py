"""What the drawings are made of: SVG elements as text. Colours are classes of `drawings.css`.

Lengths are in units of a panel that is 360 wide, which is a telephone's width.
"""

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence
from functools import cache

from PIL import Image

import gleak

WIDTH = 360
INDICES = (8, 15, 18, 10)  # of the samples of CIFAR-10: cat, ship, ship, airplane, as in chapter 01
RAISED = re.compile(r"([\^_])\{([^}]*)\}")


@cache
def batch() -> gleak.Batch:
    """The four images that all drawings show."""
    return gleak.load_batch("cifar10-samples", indices=INDICES)


@cache
def pixels(index: int) -> str:
    """One image as an address that holds its own data."""
    values = (batch().images[index] * 255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def tag(element: str, content: str = "", /, **attributes: object) -> str:
    """An element; `kind` is its class, an underscore in a name stands for a hyphen."""
    if "kind" in attributes:
        attributes["class"] = attributes.pop("kind")
    written = "".join(
        f' {key.replace("_", "-")}="{number(value)}"'
        for key, value in attributes.items()
        if value not in ("", None)
    )
    return f"<{element}{written}>{content}</{element}>" if content else f"<{element}{written}/>"


def number(value: object) -> str:
    """A coordinate with one digit behind the point; anything else as it is, escaped."""
    if isinstance(value, float):
        return f"{value:.1f}".removesuffix(".0")
    return html.escape(str(value))


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "") -> str:
    """A line of words; `W^{0}` and `p_{k}` are raised and lowered."""
    written, level = "", 0
    for part in re.split(r"([\^_]\{[^}]*\})", words):
        found = RAISED.fullmatch(part)
        wanted = 0 if found is None else (-4 if found[1] == "^" else 3)
        inner = html.escape(part if found is None else found[2])
        shift = {"dy": wanted - level} if wanted != level else {}
        if inner:
            small = {"kind": "tiny"} if found else {}
            written += tag("tspan", inner, **shift, **small) if shift or small else inner
            level = wanted
    return tag("text", written, x=x, y=y, kind=kind, text_anchor=anchor)


def lines(x: float, y: float, words: Sequence[str], kind: str = "", anchor: str = "") -> str:
    """Lines of words, one below the other."""
    return "".join(text(x, y + 15 * row, line, kind, anchor) for row, line in enumerate(words))


def box(x: float, y: float, width: float, height: float, kind: str = "", rx: float = 6) -> str:
    """A rectangle with round corners."""
    return tag("rect", x=x, y=y, width=width, height=height, rx=rx, kind=kind)


def path(points: Iterable[tuple[float, float]], kind: str = "", **more: object) -> str:
    """A line through points (x, y)."""
    drawn = " ".join(f"{number(float(x))},{number(float(y))}" for x, y in points)
    return tag("polyline", points=drawn, kind=f"stroke {kind}".strip(), **more)


def arrow(
    start: tuple[float, float], end: tuple[float, float], kind: str = "", head: float = 7
) -> str:
    """A straight arrow, its head a triangle of the same colour."""
    (x, y), (to_x, to_y) = start, end
    length = ((to_x - x) ** 2 + (to_y - y) ** 2) ** 0.5
    if length < 1:
        return ""
    along = ((to_x - x) / length, (to_y - y) / length)
    head = min(head, length)
    foot = (to_x - head * along[0], to_y - head * along[1])
    across = (-along[1] * head * 0.5, along[0] * head * 0.5)
    corners = [end, (foot[0] + across[0], foot[1] + across[1])]
    corners.append((foot[0] - across[0], foot[1] - across[1]))
    drawn = " ".join(f"{number(float(a))},{number(float(b))}" for a, b in corners)
    return path([start, foot], kind) + tag("polygon", points=drawn, kind=f"fill {kind}".strip())


def picture(index: int, x: float, y: float, size: float, kind: str = "") -> str:
    """One image of the batch, its pixels as they are."""
    image = tag("image", href=pixels(index), x=x, y=y, width=size, height=size, kind="pixels")
    return tag("g", image + box(x, y, size, size, "frame", rx=2), kind=kind)


def group(kind: str, *parts: str) -> str:
    """Parts that come and go together."""
    return tag("g", "".join(parts), kind=kind)


def panel(name: str, height: float, title: str, words: str, *parts: str) -> str:
    """One picture of a drawing. title, words: what it is called and what it shows, read aloud."""
    spoken = tag("title", html.escape(title), id=f"{name}-title")
    spoken += tag("desc", html.escape(words), id=f"{name}-words")
    return tag(
        "svg",
        spoken + "".join(parts),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {number(float(height))}",
        role="img",
        aria_labelledby=f"{name}-title {name}-words",
    )


def drawing(
    name: str, panels: Sequence[str], steps: Sequence[tuple[str, str]] = (), shown: int = 0
) -> str:
    """A drawing: panels beside or below each other, and buttons for its steps, if it has any.

    steps: the button's label and the sentence that goes with it. Parts of the class `from-2` are
    seen from the second step on, `until-2` up to it, `only-2` at it. shown: the step to begin with,
    by default the last.
    """
    choices = ""
    for index, (label, _) in enumerate(steps, start=1):
        button = {"id": f"{name}-{index}", "name": f"{name}-step", "kind": f"step-{index}"}
        if index == (shown or len(steps)):
            button["checked"] = "checked"
        words = tag("label", label, **{"for": button["id"]})
        choices += tag("span", tag("input", type="radio", **button) + words)
    if choices:
        choices = tag("fieldset", tag("legend", "Step by step") + choices)
    said = [tag("p", words, kind=f"only-{n}") for n, (_, words) in enumerate(steps, start=1)]
    seen = tag("div", "".join(panels), kind="panels")
    return tag("div", "".join([choices, seen, *said]), kind=f"drawing drawing-{name}")
