"""Chapter 03: label counts from the weights of clients that train before they answer."""

# ruff: noqa: N803 (arguments are named as the columns of the tables)

import torch

import gleak
from gleak.study.experiments.common import clients_and_aux, counted
from gleak.study.experiments.networks import batch_seed, trained_network
from gleak.training import accuracy
from gleak.update import Update

Row = dict[str, float | int | str]

METHODS = ["zlg", "llg", "llbg", "idlg", "ebi", "ilrg", "gleak"]
DATA_METHODS = ["rlu", "confusion"]  # they need auxiliary data


def scores(
    update: Update, truth: torch.Tensor, *, inputs: int, aux: gleak.Batch | None = None
) -> list[Row]:
    """One row for each method, for the places along the path, and for the guess (`even`).

    truth: (N,) the client's counts; inputs: random images for the zero-shot rules; aux: adds the
    rules that need data. Methods that refuse the network are left out.
    """
    counts = counted(update, METHODS, inputs=inputs)
    for along in ("start", "average", "end"):
        found = gleak.restore_labels(update, "zlg-bias", inputs=inputs, along=along)
        counts[f"zlg-bias, {along}"] = found
    if aux is not None:
        counts |= gleak.compare_labels(update, DATA_METHODS, aux=aux)
    rows: list[Row] = [{"method": m, **gleak.score_labels(c, truth)} for m, c in counts.items()]
    return [*rows, {**rows[0], "method": "even", "instance": rows[0]["even"]}]


def local_training(
    training: int,
    steps: int,
    lr: float,
    E: int,
    B: int,
    seed: int,
    *,
    dataset: str,
    model: str,
    size: int,
    alpha: float,
    inputs: int,
) -> list[Row]:
    """The methods on a client of `size` images that trains E epochs with batches of B.

    steps: of training at the server before; training: seed of that network, whose batches, told
    apart by `seed`, no other one gets. s, in the rows: local steps of the client.
    """
    clients, aux = clients_and_aux(gleak.load_pool(dataset))
    net = trained_network(model, dataset, steps, training)
    chosen = batch_seed(training, seed)
    drawn = gleak.draw_batch(clients, size, alpha=alpha, seed=chosen)
    local = gleak.fedavg(net, drawn, epochs=E, batch_size=B, lr=lr, shuffle_seed=chosen)
    found = scores(local, drawn.label_counts, inputs=inputs, aux=aux)
    return [{"s": local.local_steps, **row} for row in found]


def held_out(training: int, steps: int, *, dataset: str, model: str) -> dict[str, float]:
    """The share of the clients' images that a network names right."""
    clients, _ = clients_and_aux(gleak.load_pool(dataset))
    return {"test accuracy": accuracy(trained_network(model, dataset, steps, training), clients)}


def deep(seed: int) -> list[Row]:
    """ResNet-18 in train mode, 16 images of CIFAR-10 in four local steps at lr 0.001."""
    samples = gleak.load_batch("cifar10-samples", indices=range(16))
    net = gleak.build_model("resnet18", samples, seed=seed)
    local = gleak.fedavg(net, samples, batch_size=4, lr=1e-3, shuffle_seed=seed)
    counts = gleak.compare_labels(local, ["zlg-bias", "gleak"], inputs=32)
    truth = samples.label_counts
    return [{"method": m, **gleak.score_labels(c, truth)} for m, c in counts.items()]
