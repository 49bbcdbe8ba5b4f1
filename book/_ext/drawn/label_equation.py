"""The label equation: from a batch to the bias gradient, and back to the counts of its labels.

Every number is computed: the untrained network of chapter 01, its batch, the server's guess.
"""

import torch

import gleak
from drawn.ink import batch, box, drawing, group, lines, panel, path, picture, text
from gleak.labels import LastLayer, rules

NETWORK, SEED = "convnet", 101  # as in chapter 01
LEFT, CELL, ROW = 94, 26, 24  # where the columns of classes begin, their width, a row's height
SHORT = {"automobile": "car"}
STEPS = (
    (
        "The batch",
        "Four images. The network has not learned anything yet, so it gives each class "
        "about a tenth.",
    ),
    (
        "Softmax minus label",
        "The gradient of the loss by the last bias is, for one image, its softmax minus its"
        " label: a small plus everywhere, and one large minus.",
    ),
    (
        "The gradient",
        "The client sends the mean of these rows. Each image has pulled its own class down "
        "by 1/K, repeated labels twice.",
    ),
    (
        "The counts",
        "The server puts in the softmax of random images. How far a bar lies below it, "
        "times K, is how often the class occurs.",
    ),
)


def draw() -> str:
    """What the client computes, and what the server makes of the mean."""
    network = gleak.build_model(NETWORK, batch(), seed=SEED)
    with torch.no_grad():
        softmax = network(batch().images).softmax(1)
    update = gleak.fedsgd(network, batch())
    layer = LastLayer.of(update, inputs=200)
    guess, counts = layer.statistics[0].mean(0), rules.zlg_bias(layer)
    parts = [of_client(softmax), of_server(layer.bias_gradient, guess, counts)]
    return drawing("label-equation", parts, STEPS)


def of_client(softmax: torch.Tensor) -> str:
    """Rows of softmax p_k, of labels y_k, and of their difference."""
    labels = batch().labels.tolist()
    one_hot = torch.nn.functional.one_hot(batch().labels, softmax.shape[1])
    parts = [text(0, 14, "At the client", "big"), *heads(88)]
    parts += [*matrix(96, softmax, "p_{k}", "softmax", labels, "quiet")]
    parts += [
        group("from-2", *matrix(214, one_hot, "− y_{k}", "label", labels, "ink")),
        group("from-2", *matrix(332, softmax - one_hot, "= p_{k}−y_{k}", "", labels, "sign")),
    ]
    return panel(
        "labels-client",
        450,
        "What the client computes",
        "Three tables, a row for each of four images, a column for each of ten classes. The "
        "softmax is about a tenth everywhere. The label is one in the column of the image's class."
        " Their difference is a tenth everywhere, and nine tenths below zero at the image's class.",
        *parts,
    )


def heads(y: float) -> list[str]:
    """Names of classes, upright above their columns."""
    return [
        f'<g transform="translate({LEFT + CELL * n + 17} {y}) rotate(-90)">'
        f"{text(0, 0, SHORT.get(name, name), 'little')}</g>"
        for n, name in enumerate(batch().class_names)
    ]


def matrix(
    y: float, values: torch.Tensor, symbol: str, name: str, labels: list[int], look: str
) -> list[str]:
    """A table of numbers with the image in front of each row."""
    parts = [text(0, y + 16, symbol, "math"), text(0, y + 34, name, "little quiet")]
    for row, numbers in enumerate(values.tolist()):
        top = y + ROW * row
        parts.append(picture(row, LEFT - 26, top + 1, ROW - 2))
        for column, value in enumerate(numbers):
            own = column == labels[row]
            left = LEFT + CELL * column
            shade = {"quiet": "shade", "ink": "shade strong" if own else "shade none"}
            kind = ("shade minus" if value < 0 else "shade plus") if look == "sign" else shade[look]
            words = str(int(value)) if look == "ink" else short(value)
            weight = "little bold" if look == "ink" and own else "little"
            parts.append(box(left + 1, top + 1, CELL - 2, ROW - 2, kind, 2))
            parts.append(text(left + CELL / 2, top + 16, words, weight, "middle"))
    return parts


def short(value: float) -> str:
    """Two digits behind the point, none in front of it."""
    return f"{value:.2f}".replace("0.", ".").replace("-", "−")


def of_server(gradient: torch.Tensor, guess: torch.Tensor, counts: torch.Tensor) -> str:
    """The bias gradient as bars below the mean softmax, and what K times the gap is."""
    zero, unit = 170.0, 320.0  # where 0 is, and the height of 1
    found = [round(value) for value in counts.tolist()]
    scale = [path([(LEFT - 4, zero), (LEFT + 10 * CELL, zero)], "quiet thin")]
    scale += [text(LEFT - 8, zero + 4, "0", "little quiet", "end")]
    bars, gaps, tiles = [], [], []
    for n, value in enumerate(gradient.tolist()):
        left, low = LEFT + CELL * n, zero - unit * value
        top, height = min(low, zero), abs(low - zero)
        kind = "shade bar minus" if value < 0 else "shade bar plus"
        bars.append(box(left + 4, top, CELL - 8, height, kind, 1))
        below = low + 13 if value < 0 else low - 5
        bars.append(text(left + CELL / 2, below, short(value), "little", "middle"))
        level = zero - unit * guess[n].item()
        gaps.append(path([(left + 1, level), (left + CELL - 1, level)], "blue thick"))
        if found[n]:
            gaps.append(path([(left + CELL / 2, level), (left + CELL / 2, low)], "blue thin"))
            gaps.append(path([(left + 9, low), (left + 17, low)], "blue"))
        own = [k for k, label in enumerate(batch().labels.tolist()) if label == n]
        tiles += [picture(k, left + 1, 384 + 26 * row, CELL - 2) for row, k in enumerate(own)]
        kind = "bold blue" if found[n] else "quiet"
        tiles.append(text(left + CELL / 2, 376, str(found[n]), kind, "middle"))
    sent = [
        lines(0, 120, ["∇b"], "math"),
        lines(0, 138, ["what is sent"], "little quiet"),
    ]
    read = [
        text(0, 336, "λ_{n} = K ( p̄_{n} − ∇b_{n} )", "math blue"),
        text(150, 336, "K times the blue gap", "little quiet"),
        text(0, 376, "how often", "bold blue"),
        text(0, 400, "and in truth", "little quiet"),
        *[path([(0, 350), (354, 350)], "quiet thin")],
    ]
    return panel(
        "labels-server",
        450,
        "What the server reads",
        "Bars of the bias gradient, one for each class. Most stand at about a tenth above zero. "
        "Airplane and cat hang below zero, ship more than twice as far. A line at a tenth marks "
        "the softmax of random images. The gap between line and bar, times four, is one for "
        "airplane, one for cat and two for ship: the counts of the batch.",
        text(0, 14, "At the server", "big"),
        group("from-3", *heads(88), *scale, *sent, *bars),
        group("from-4", *gaps, *read, *tiles),
    )
