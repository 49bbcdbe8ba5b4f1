"""Drift and the place in the middle: local steps on a loss of two weights, all of it computed.

The loss is quadratic, so that one can see all of it; what is said of it holds where a client's way
is nearly straight.
"""

from typing import NamedTuple

import numpy as np

from drawn.ink import WIDTH, arrow, box, drawing, group, panel, path, tag, text

CURVATURE = (1.0, 4.0)  # of the loss, along its valley and across
TURN = np.deg2rad(24)
START = np.array([-2.05, 1.2])
RATE = 0.07
LOCAL = (1, 4, 16)  # local steps of the three drawings
CENTRE, UNIT = np.array([238.0, 196.0]), 86.0  # where the minimum lies, pixels for one unit
STEPS = (
    (
        "One step",
        "After one local step the update is the gradient at W⁰, and the middle is W⁰ itself.",
    ),
    (
        "A few steps",
        "The client's steps turn. Their mean is no longer the gradient at W⁰, but still "
        "nearly the one in the middle of the way. The server knows both ends, so it knows "
        "this place.",
    ),
    (
        "Many steps",
        "Where the way bends, the middle of the straight line lies off it, and is wrong as "
        "well. What is left of the drift has to be undone by simulating the client.",
    ),
)
ROTATE = np.array([[np.cos(TURN), -np.sin(TURN)], [np.sin(TURN), np.cos(TURN)]])
HESSIAN = ROTATE @ np.diag(CURVATURE) @ ROTATE.T


class Way(NamedTuple):
    """Places W0 to WT, the mean gradient that the server sees, and the middle."""

    places: np.ndarray  # (s + 1, 2)
    sent: np.ndarray
    middle: np.ndarray


def gradient(place: np.ndarray) -> np.ndarray:
    """That of the loss."""
    return HESSIAN @ place


def way(steps: int) -> Way:
    """So many steps of gradient descent."""
    places = [START]
    for _ in range(steps):
        places.append(places[-1] - RATE * gradient(places[-1]))
    first, last = places[0], places[-1]
    middle = first + (steps - 1) / (2 * steps) * (last - first)
    return Way(np.array(places), (first - last) / (RATE * steps), middle)


def off(place: np.ndarray, sent: np.ndarray) -> float:
    """How far the gradient at a place is from what was sent, relative."""
    return float(np.linalg.norm(gradient(place) - sent) / np.linalg.norm(sent))


def at(place: np.ndarray) -> tuple[float, float]:
    """Where a place of the weights lies on the panel; the second weight points up."""
    x, y = CENTRE + UNIT * place * (1, -1)
    return float(x), float(y)


def draw() -> str:
    """The map of weights, and the three gradients side by side."""
    ways = [way(steps) for steps in LOCAL]
    return drawing("drift", [landscape(ways), readings(ways)], STEPS, shown=2)


def landscape(ways: list[Way]) -> str:
    """Level lines of the loss with the client's way on it."""
    levels = [
        tag(
            "ellipse",
            cx=0,
            cy=0,
            rx=UNIT * radius / CURVATURE[0] ** 0.5,
            ry=UNIT * radius / CURVATURE[1] ** 0.5,
            kind="stroke quiet hair",
        )
        for radius in (0.35, 0.8, 1.3, 1.85, 2.45, 3.1, 3.8)
    ]
    turned = f"translate({CENTRE[0]} {CENTRE[1]}) rotate({-np.rad2deg(TURN):.1f})"
    field = tag("g", "".join(levels), transform=turned)
    clip = tag("clipPath", box(1, 24, WIDTH - 2, 300), id="drift-clip")
    parts = [
        clip,
        tag("g", field, clip_path="url(#drift-clip)"),
        box(1, 24, WIDTH - 2, 300, "hollow"),
    ]
    parts.append(tag("circle", cx=float(CENTRE[0]), cy=float(CENTRE[1]), r=2.5, kind="fill quiet"))
    parts.append(text(float(CENTRE[0]) + 8, float(CENTRE[1]) + 16, "least loss", "little quiet"))
    for step, one in enumerate(ways, start=1):
        parts.append(group(f"only-{step}", *on_map(one)))
    return panel(
        "drift-map",
        330,
        "Local steps on the loss",
        "Level lines of a loss of two weights, a long valley. From W0 on its slope the client "
        "takes steps: one, a few, or many. First they go across the valley, then they turn along "
        "it, to WT. A straight dashed line joins W0 and WT, and the middle is marked on it. With "
        "many steps the way bends away from that line.",
        text(0, 14, "The client's way through the weights", "big"),
        *parts,
    )


def on_map(one: Way) -> list[str]:
    """One way: its steps, the straight line from end to end, and the middle."""
    start, end, middle = at(one.places[0]), at(one.places[-1]), at(one.middle)
    head = 7 if len(one.places) < 8 else 5
    steps = [
        arrow(at(a), at(b), "ink", head) for a, b in zip(one.places, one.places[1:], strict=False)
    ]
    parts = [path([start, end], "green dashed"), *steps, dot(start, "red"), dot(end, "ink")]
    parts.append(text(start[0] + 9, start[1] - 7, "W^{0}", "math red"))
    parts.append(text(end[0] - 2, end[1] + 22, "W^{T}", "math"))
    if len(one.places) > 2:
        parts += [
            dot(middle, "green"),
            text(middle[0] + 10, middle[1] - 4, "the middle W̄", "green"),
        ]
    return parts


def dot(place: tuple[float, float], kind: str) -> str:
    """A place on the map."""
    return tag("circle", cx=place[0], cy=place[1], r=5, kind=f"fill {kind}")


def readings(ways: list[Way]) -> str:
    """What was sent beside the gradients at W0 and in the middle, and how far these are off."""
    parts, worst = [], max(off(one.places[0], one.sent) for one in ways)
    for step, one in enumerate(ways, start=1):
        parts.append(group(f"only-{step}", *compared(one, 220 / worst)))
    formula = [
        text(0, 290, "W̄ = W^{0} + ½ (1 − 1/s) (W^{T} − W^{0})", "math green"),
        text(0, 310, "the middle of the places where the s steps began", "little quiet"),
    ]
    told = "; ".join(
        f"after {steps} steps the gradient at W0 is off by {off(one.places[0], one.sent):.0%}, the"
        f" one in the middle by {off(one.middle, one.sent):.0%}"
        for steps, one in zip(LOCAL, ways, strict=True)
    )
    return panel(
        "drift-readings",
        330,
        "Three gradients",
        "The mean gradient that was sent, as an arrow, with the gradient at W0 and the one in the "
        f"middle from the same point. In this example, {told}.",
        text(0, 14, "What was sent, and two readings of it", "big"),
        *parts,
        *formula,
    )


def compared(one: Way, width: float) -> list[str]:
    """Three arrows from one point, the way that steps go; bars, so wide for an error of all."""
    scale = 118 / np.linalg.norm(gradient(START))
    origin = (36.0, 60.0)

    def down(vector: np.ndarray) -> tuple[float, float]:
        return origin[0] - scale * vector[0], origin[1] + scale * vector[1]

    count = len(one.places) - 1
    first, middle = one.places[0], one.middle
    parts = [
        arrow(origin, down(gradient(first)), "red thick", 10),
        arrow(origin, down(gradient(middle)), "green thick", 10),
        arrow(origin, down(one.sent), "ink dashed", 10),
        dot(origin, "ink"),
        text(176, 52, f"s = {count} step{'s' * (count > 1)}", "bold"),
        path([(176, 70), (204, 70)], "ink dashed"),
        text(212, 74, "sent: (W^{0} − W^{T}) / ηs", "little"),
        path([(176, 90), (204, 90)], "red thick"),
        text(212, 94, "gradient at W^{0}", "little red"),
        path([(176, 110), (204, 110)], "green thick"),
        text(212, 114, "gradient in the middle", "little green"),
        text(176, 138, "drawn downhill, as steps go", "little quiet"),
    ]
    parts.append(text(0, 212, "off by", "bold"))
    for row, (place, kind, name) in enumerate(
        [(first, "red", "at W^{0}"), (middle, "green", "middle")]
    ):
        wrong, y = off(place, one.sent), 222 + 24 * row
        parts.append(text(0, y + 12, name, f"little {kind}"))
        parts.append(box(56, y, max(width * wrong, 1.0), 15, f"fill {kind}", 1))
        parts.append(text(62 + max(width * wrong, 1.0), y + 12, f"{wrong:.0%}", "little"))
    return parts
