"""Peeling two networks from their ends: which layer's input is known, how well, and why.

Equations and unknowns are counted on the networks themselves.
"""

from typing import NamedTuple

import torch
from torch import nn

import gleak
from drawn.ink import arrow, batch, box, drawing, group, lines, panel, path, picture, tag, text

STEPS = (
    (
        "The classifier",
        "With the labels known, softmax and features of each image follow from the "
        "classifier's gradient, both at once.",
    ),
    (
        "Layer by layer",
        "The slope behind a layer is known, so its gradient is linear in what entered it. "
        "With more weights than values, least squares finds those values.",
    ),
    (
        "Where it ends",
        "Too few weights leave a subspace open. A pooling tells the largest value of each "
        "window, not its place.",
    ),
    (
        "The rest",
        "What is left is searched: images that lead to what is known. Before the pooling, "
        "one image alone would leave fewer unknowns than equations. Four do not.",
    ),
)
ROW = 38
MARKS = {  # state -> its colour and the step at which it is told
    "exact": ("green", 2),
    "on a subspace": ("blue", 3),
    "approximate": ("amber", 3),
    "searched": ("red", 4),
}


class Layer(NamedTuple):
    """A layer with weights, or a pooling (none): its name, weights, and values that enter it."""

    name: str
    weights: int
    values: int


def layers(network: nn.Module, images: torch.Tensor) -> list[Layer]:
    """The layers of a network in the order of its forward pass, counted on a batch."""
    found: list[Layer] = []

    def note(module: nn.Module, entered: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        if isinstance(module, nn.MaxPool2d):
            found.append(Layer("max-pooling", 0, entered[0].numel()))
            return
        weight = module.weight
        kind = "linear" if isinstance(module, nn.Linear) else "conv"
        name = f"{kind} {weight.shape[1]}→{weight.shape[0]}"
        found.append(Layer(name, weight.numel(), entered[0].numel()))

    hooks = [
        module.register_forward_hook(note)
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear | nn.MaxPool2d)
    ]
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()
    return found


def states(order: list[Layer]) -> list[str]:
    """How well the input of each layer is known, in the order of the forward pass."""
    known, closed = [], True
    for layer in reversed(order):
        if not closed:
            known.append("searched")
        elif not layer.weights:
            known.append("approximate")
        else:
            known.append("exact" if layer.weights > layer.values else "on a subspace")
        closed = closed and known[-1] == "exact"
    return known[::-1]


def draw() -> str:
    """The LeNet with sigmoids and the ConvNet with ReLU and pooling, on four images."""
    lenet, convnet = (
        layers(gleak.build_model(name, batch(), seed=1), batch().images)
        for name in ("lenet", "convnet")
    )
    first = stack("lenet", "LeNet with sigmoids, four images", lenet, 470, legend(268))
    second = stack("convnet", "ConvNet with ReLU, four images", convnet, 470)
    return drawing("peeling", [first, second], STEPS)


def stack(key: str, title: str, order: list[Layer], height: float, *more: str) -> str:
    """A network with its image on top and its classifier at the bottom."""
    marks = states(order)
    parts = [text(0, 14, title, "big")]
    parts += [picture(k, 46 + 24 * k, 30, 22) for k in range(len(batch()))]
    parts.append(text(150, 46, "the images", "little quiet"))
    for row, (layer, state) in enumerate(zip(order, marks, strict=True)):
        last = row == len(order) - 1
        parts.append(of_layer(60 + ROW * row, layer, state, 1 if last else MARKS[state][1]))
    end = 60 + ROW * len(order)
    parts.append(arrow((8, end - 6), (8, 62), "quiet", 9))
    parts.append(text(46, end + 12, "the loss; the peeling begins here", "little quiet"))
    told = "; ".join(f"{layer.name}: {state}" for layer, state in zip(order, marks, strict=True))
    return panel(
        f"peeling-{key}",
        height,
        f"Peeling a {title}",
        "A stack of layers with the images on top and the loss at the bottom. How well the input "
        f"of each is known, from the top: {told}. Two bars beside each layer compare its "
        "equations, one for each weight, with its unknowns, the values of four images.",
        *parts,
        *more,
    )


def of_layer(y: float, layer: Layer, state: str, step: int) -> str:
    """A row: the layer, its equations and unknowns, how well its input is known."""
    box_of = box(30, y, 96, ROW - 8, "hollow") + text(78, y + 19, layer.name, "little", "middle")
    bars = ""
    most = max(layer.weights, layer.values)
    if layer.weights:
        for row, (count, kind) in enumerate([(layer.weights, "blue"), (layer.values, "quiet")]):
            length = max(54 * count / most, 1)
            bars += box(134, y + 3 + 13 * row, length, 10, f"fill {kind}", 1)
            bars += text(192, y + 12 + 13 * row, thousands(count), "little quiet")
    else:
        bars = lines(134, y + 12, ["largest value known,", "its place is not"], "little quiet")
    color = MARKS[state][0]
    filled = box(30, y, 96, ROW - 8, f"wash {color}")
    words = text(271, y + 19, state, f"little bold {color}")
    return box_of + bars + group(f"from-{step}", filled, glyph(state, 259, y + 15), words)


def thousands(count: int) -> str:
    """A count with a thin gap before every three digits."""
    return f"{count:,}".replace(",", "\u202f")


def glyph(state: str, x: float, y: float) -> str:
    """A mark that tells the states apart without colour."""
    color = MARKS[state][0]
    ring = tag("circle", cx=x, cy=y, r=7, kind=f"stroke {color}")
    if state == "exact":
        return tag("circle", cx=x, cy=y, r=7, kind=f"fill {color}")
    if state == "on a subspace":
        half = f"M{x} {y - 7} A7 7 0 0 0 {x} {y + 7} Z"
        return ring + tag("path", d=half, kind=f"fill {color}")
    sign = {"approximate": "≈", "searched": "?"}[state]
    return ring + text(x, y + 4, sign, f"little bold {color}", "middle")


def legend(y: float) -> str:
    """What marks and bars mean."""
    words = {
        "exact": "exact: least squares settles it",
        "on a subspace": "on a subspace: some of it is left open",
        "approximate": "approximate: a search tells the places",
        "searched": "searched: nothing holds it but its effect",
    }
    parts = [
        path([(30, y), (354, y)], "quiet thin"),
        text(30, y + 22, "What enters a layer is", "bold"),
    ]
    for row, (state, meaning) in enumerate(words.items()):
        parts.append(glyph(state, 40, y + 42 + 24 * row))
        parts.append(text(56, y + 46 + 24 * row, meaning))
    parts.append(box(34, y + 142, 40, 10, "fill blue", 1))
    parts.append(text(82, y + 151, "equations: weights of the layer"))
    parts.append(box(34, y + 162, 40, 10, "fill quiet", 1))
    parts.append(text(82, y + 171, "unknowns: values of four images"))
    return "".join(parts)
