"""Who sees what: the client, the wire and the server, for FedSGD and for FedAvg."""

from drawn.ink import WIDTH, arrow, batch, box, drawing, lines, panel, path, picture, tag, text

EYE = ((0, 9), (9, 2), (20, 0), (31, 2), (40, 9), (31, 16), (20, 18), (9, 16), (0, 9))


def draw() -> str:
    """Two panels of the same build."""
    return drawing("who-sees-what", [fedsgd(), fedavg()])


def fedsgd() -> str:
    """One gradient."""
    return panel(
        "who-fedsgd",
        452,
        "FedSGD: who sees what",
        "At the top the server, which is also the attacker. It sends the weights W0 down to the "
        "client. The client computes the gradient of its mean loss on a batch of four images with "
        "their labels, cat, ship, ship and airplane, and sends only that gradient up. The server "
        "looks at it and asks how often each class occurs, and what the images are.",
        *server("FedSGD: one gradient"),
        *wire(["the gradient of", "the mean loss"], "∇L(W^{0})"),
        *client(),
        text(180, 413, "∇L(W^{0}) = (1/K) Σ_{k} ∇ℓ(x_{k}, y_{k})", "math", "middle"),
        text(
            180, 434, "the loss of each image, their mean, its gradient", "little quiet", "middle"
        ),
    )


def fedavg() -> str:
    """Weights after local training."""
    places = [(62, 413), (100, 403), (138, 411), (176, 402), (214, 409), (252, 404), (290, 407)]
    return panel(
        "who-fedavg",
        452,
        "FedAvg: who sees what",
        "The same, but the client trains for several local steps, from W0 to WT, and sends the "
        "weights WT. Learning rate, epochs and batch size go along if the client tells them. The "
        "gradients of the single steps stay at the client, as do images, labels and their order.",
        *server("FedAvg: weights after training"),
        *wire(["the weights; if told,", "also rate, epochs, B"], "W^{T}"),
        *client(),
        text(32, 413, "W^{0}", "math"),
        text(300, 413, "W^{T}", "math"),
        *[arrow(a, b, "blue", 7) for a, b in zip(places, places[1:], strict=False)],
        text(
            180, 434, "a few steps of training, each on B of the images", "little quiet", "middle"
        ),
    )


def server(title: str) -> list[str]:
    """The upper part: what the server has, and what it wants."""
    eye = path([(x + 306, y + 37) for x, y in EYE], "red")
    pupil = tag("circle", cx=326, cy=46, r=5, kind="fill red")
    wanted = [
        box(64 + 36 * n, 120, 28, 28, "stroke red dashed", 3)
        + text(78 + 36 * n, 139, "?", "bold red", "middle")
        for n in range(4)
    ]
    return [
        text(0, 14, title, "big"),
        box(1, 24, WIDTH - 2, 136, "plate"),
        text(14, 45, "The server is the attacker", "bold"),
        text(14, 61, "It keeps to the protocol, and looks.", "little quiet"),
        eye + pupil,
        text(14, 86, "knows", "bold"),
        text(64, 86, "the network, W^{0}, K, the size of an image"),
        text(14, 108, "wants", "bold red"),
        text(64, 108, "labels, how often each; then the images"),
        *wanted,
    ]


def wire(words: list[str], symbol: str) -> list[str]:
    """The middle: the weights go down, the update goes up."""
    return [
        arrow((64, 164), (64, 252), "quiet thick", 10),
        text(76, 189, "W^{0}", "math"),
        text(76, 206, "the model", "little quiet"),
        arrow((196, 252), (196, 164), "blue thick", 10),
        text(208, 183, symbol, "math blue"),
        lines(208, 200, words, "little quiet"),
        path([(1, 234), (WIDTH - 1, 234)], "quiet thin dashed"),
        text(WIDTH - 1, 248, "below this line: never sent", "little quiet", "end"),
    ]


def client() -> list[str]:
    """The lower part: the batch."""
    names = [batch().class_names[n] for n in batch().labels.tolist()]
    parts = [
        box(1, 256, WIDTH - 2, 190, "plate"),
        text(14, 277, "The client", "bold"),
        text(92, 277, f"a batch of K = {len(names)} images with labels"),
    ]
    for index, name in enumerate(names):
        parts += [
            picture(index, 20 + 84 * index, 290, 68),
            text(54 + 84 * index, 374, name, "little", "middle"),
        ]
    return parts
