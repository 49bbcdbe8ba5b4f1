"""Chapter 02: label counts from one gradient, by every rule, at every stage of training."""

# ruff: noqa: N803 (arguments are named as the columns of the tables)

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torchvision.transforms import functional as transforms

import gleak
from gleak.data import Batch
from gleak.study.experiments.common import clients_and_aux, counted, model_options
from gleak.study.runner import product
from gleak.training import accuracy

Row = dict[str, float | int | str | None]

ZERO_SHOT = gleak.list_label_methods()
RIVALS = [method for method in ZERO_SHOT if method != "gleak"]
WITH_DATA = [method for method in gleak.list_label_methods(aux=True) if method not in ZERO_SHOT]
DEEP_INPUTS = 32  # random images for networks on which each costs much

RECORDED: dict[
    str, tuple[str, dict[str, Any], int]
] = {  # networks of the recorded table: name -> model, options, random images for the rules
    "lenet, sigmoid": ("lenet", {}, 1000),
    "lenet, ReLU": ("lenet", model_options("lenet"), 1000),
    "convnet": ("convnet", {}, 64),
    "resnet18": ("resnet18", {}, DEEP_INPUTS),
}
RECORDED_METHODS = ["gleak", "zlg", "zlg-bias", "ilrg", "llbg", "llg", "idlg", "gradinversion"]

ALPHAS = {"uniform": None, "Dirichlet 1": 1.0, "Dirichlet 0.5": 0.5, "Dirichlet 0.1": 0.1}
SHARES = {"one dominant": 0.7, "one class": 1.0}  # of the images that are of one class
DISTRIBUTIONS = [*ALPHAS, *SHARES]


def network_of(name: str, batch: Batch, seed: int, width: int) -> nn.Module:
    """An untrained network by its name in the tables; `lenet` alone has ReLU."""
    if name == "lenet, sigmoid":
        return gleak.build_model("lenet", batch, seed=seed)
    if name == "lenet, tanh":
        net = gleak.build_model("lenet", batch, seed=seed, activation="relu")
        normalise, layers = cast(nn.Sequential, net)
        named = cast(nn.Sequential, layers)
        swapped = [nn.Tanh() if isinstance(m, nn.ReLU) else m for m in named]
        return nn.Sequential(normalise, *swapped)
    return gleak.build_model(name, batch, seed=seed, **model_options(name, width))


def scores(
    net: nn.Module,
    batch: Batch,
    *,
    inputs: int,
    methods: Sequence[str] = RIVALS,
    aux: Batch | None = None,
    training: bool = False,
    oracle: bool = False,
) -> list[Row]:
    """One row for each method, with the guess and, where asked for, the oracle.

    A row has what `gleak.score_labels` tells and, the same in all rows, how well the intervals of
    `gleak` hold the truth: `held`, the share of classes whose true count is in its interval;
    `open`, the share of intervals that are more than one number; `held, open`, the share held of
    those (None without any); `width`, the mean width in samples.
    inputs: random images for the zero-shot rules; aux: adds the rules that need data.
    """
    update = gleak.fedsgd(net, batch, training=training)
    found = gleak.label_posterior(update)
    counts = counted(update, methods, inputs=inputs)
    counts["gleak"] = found.counts
    if aux is not None:
        counts |= counted(update, WITH_DATA, aux=aux)
    if oracle:
        counts["oracle"] = gleak.restore_labels(update, "zlg-bias", aux=batch)
    truth = batch.label_counts
    rows: list[Row] = [{"method": m, **gleak.score_labels(c, truth)} for m, c in counts.items()]
    rows.append({"method": "even", **gleak.score_labels(truth, truth), "instance": rows[0]["even"]})
    held = (found.low <= truth) & (truth <= found.high)
    undecided = ~found.certain
    intervals: Row = {
        "held": held.double().mean().item(),
        "open": undecided.double().mean().item(),
        "held, open": held[undecided].double().mean().item() if undecided.any() else None,
        "width": (found.high - found.low).double().mean().item(),
    }
    return [row | intervals for row in rows]


def augmented(samples: Batch, size: int, seed: int) -> Batch:
    """`size` images drawn from the samples, shifted by up to 4 pixels and flipped at random."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(samples), (size,), generator=generator)
    side = samples.images.shape[-1]
    images = transforms.pad(samples.images[chosen], 4, padding_mode="reflect")
    shifts = torch.randint(9, (size, 2), generator=generator).tolist()
    images = [i[:, y : y + side, x : x + side] for i, (y, x) in zip(images, shifts, strict=True)]
    flips = torch.rand(size, generator=generator) < 0.5
    images = [i.flip(2) if flip else i for i, flip in zip(images, flips, strict=True)]
    return Batch(torch.stack(images), samples.labels[chosen], samples.class_names, samples.dataset)


def untrained_settings(
    datasets: Sequence[str],
    model: str,
    sizes: Sequence[int],
    deep_sizes: Sequence[int],
    seeds: int,
) -> list[dict]:
    """Data sets, networks, batch sizes and seeds; the deep network on the first data set alone."""
    settings = product(
        dataset=datasets, network=["lenet", "lenet, sigmoid"], K=sizes, seed=range(seeds)
    )
    listed = dict.fromkeys(["convnet", "lenet, tanh", model])
    settings += product(
        dataset=datasets,
        network=[name for name in listed if name not in ("lenet", "resnet18")],
        K=[size for size in sizes if 1 < size <= 64],
        seed=range(seeds),
    )
    return settings + product(
        dataset=datasets[:1], network=["resnet18"], K=deep_sizes, seed=range(2)
    )


def untrained(
    dataset: str,
    network: str,
    K: int,
    seed: int,
    *,
    inputs: int,
    width: int,
) -> list[Row]:
    """The rules on an untrained network: K augmented images of the data set's first twenty."""
    drawn = augmented(gleak.load_batch(dataset, indices=range(20)), K, seed)
    net = network_of(network, drawn, seed, width)
    options: dict[str, Any] = {"inputs": inputs}
    if network == "resnet18":
        options = {"inputs": DEEP_INPUTS, "methods": ["zlg-bias"]}
    if network == "lenet, tanh":  # the others refuse it
        options["methods"] = ["zlg", "zlg-bias", "ebi", "llbg", "ilrg"]
    return [{"N": drawn.num_classes, **row} for row in scores(net, drawn, training=True, **options)]


def recorded(network: str, dataset: str, K: int, seed: int) -> list[Row]:
    """The rows of the recorded table: its methods on one batch, rounded.

    The seed draws the batch, the weights and the random images.
    """
    model, options, inputs = RECORDED[network]
    drawn = augmented(gleak.load_batch(dataset, indices=range(20)), K, seed)
    update = gleak.fedsgd(gleak.build_model(model, drawn, seed=seed, **options), drawn)
    found = gleak.compare_labels(update, RECORDED_METHODS, seed=seed, inputs=inputs)
    scored = {m: gleak.score_labels(counts, drawn.label_counts) for m, counts in found.items()}
    return [
        {
            "N": drawn.num_classes,
            "inputs": inputs,
            "method": method,
            "instance": round(score["instance"], 4),
            "exact": int(score["exact"]),
            "even": round(score["even"], 4),
            "chance": round(score["chance"], 4),
        }
        for method, score in scored.items()
    ]


def refusals(dataset: str, seed: int, *, inputs: int, width: int) -> dict[str, str]:
    """Method -> its error, for those that refuse features that can be negative."""
    drawn = augmented(gleak.load_batch(dataset, indices=range(20)), 8, seed)
    update = gleak.fedsgd(network_of("lenet, tanh", drawn, seed, width), drawn)
    found = {}
    for method in ZERO_SHOT:
        try:
            gleak.restore_labels(update, method, inputs=inputs)
        except ValueError as refusal:
            found[method] = str(refusal)
    return found


def digits_settings(seeds: int, deep: bool) -> list[dict]:
    """LeNet, and a deep network with two seeds if asked for."""
    settings = product(network=["lenet"], seed=range(seeds))
    return settings + product(network=["resnet18"] if deep else [], seed=range(2))


def digits(network: str, seed: int, *, size: int, inputs: int, width: int) -> list[Row]:
    """The rules on an untrained network in eval mode: gray digits, labels uniform."""
    drawn = gleak.draw_batch(gleak.load_pool("digits"), size, seed=seed)
    options: dict[str, Any] = {"inputs": inputs}
    if network == "resnet18":
        options = {"inputs": DEEP_INPUTS, "methods": ["zlg", "zlg-bias", "ilrg"]}
    return scores(network_of(network, drawn, seed, width), drawn, **options)


def trained_network(model: str, pool: str, steps: int, width: int) -> nn.Module:
    """The network of the chapter's trained stages."""
    return gleak.trained_model(model, pool, steps=steps, seed=3, **model_options(model, width))


def known(network: str, pool: str, steps: int, *, width: int) -> Row:
    """How much of the clients' images a network at this stage names right."""
    clients, _ = clients_and_aux(gleak.load_pool(pool))
    return {"test accuracy": accuracy(trained_network(network, pool, steps, width), clients)}


def trained(
    network: str,
    pool: str,
    steps: int,
    seed: int,
    *,
    size: int,
    alpha: float,
    inputs: int,
    width: int,
) -> list[Row]:
    """The rules on a trained network, with skewed labels, and the oracle."""
    clients, aux = clients_and_aux(gleak.load_pool(pool))
    net = trained_network(network, pool, steps, width)
    drawn = gleak.draw_batch(clients, size, alpha=alpha, seed=seed)
    return scores(net, drawn, inputs=inputs, aux=aux, oracle=True)


def small_batches(
    pool: str,
    steps: int,
    K: int,
    seed: int,
    *,
    model: str,
    alpha: float,
    inputs: int,
    width: int,
) -> Row:
    """Fewer images than classes: the share of labels by each rule, and what `gleak` proves.

    `all certain`: every interval is one number; `wrongly proven`: something is called proven that
    is not there.
    """
    clients, _ = clients_and_aux(gleak.load_pool(pool))
    net = trained_network(model, pool, steps, width)
    drawn = gleak.draw_batch(clients, K, alpha=alpha, seed=seed)
    update = gleak.fedsgd(net, drawn)
    counts = counted(update, ["zlg", "zlg-bias", "ilrg", "llg"], inputs=inputs)
    found, truth = gleak.label_posterior(update), drawn.label_counts
    counts["gleak"] = found.counts
    scored = {method: gleak.score_labels(c, truth) for method, c in counts.items()}
    row: Row = {method: score["instance"] for method, score in scored.items()}
    return row | {
        "even": scored["gleak"]["even"],
        "gleak exact": scored["gleak"]["exact"],
        "all certain": float(found.certain.all()),
        "wrongly proven": float((found.at_least > truth).any()),
    }


def drawn_with(labels: str, clients: Batch, size: int, seed: int) -> Batch:
    """`size` images with labels of one of DISTRIBUTIONS; fewer if a single class has fewer."""
    if labels in ALPHAS:
        return gleak.draw_batch(clients, size, alpha=ALPHAS[labels], seed=seed)
    mixed = gleak.draw_batch(clients, size, seed=seed)
    present = clients.labels.unique()
    of_class = (clients.labels == present[seed % len(present)]).nonzero().flatten()
    major = of_class[: int(SHARES[labels] * size)]
    count = len(major) if labels == "one class" else max(len(major), size)
    images = torch.cat([clients.images[major], mixed.images])[:count]
    names = torch.cat([clients.labels[major], mixed.labels])[:count]
    return Batch(images, names, clients.class_names)


def distributions(
    pool: str, steps: int, labels: str, seed: int, *, model: str, size: int, inputs: int, width: int
) -> list[Row]:
    """The rules with labels of one of DISTRIBUTIONS."""
    clients, aux = clients_and_aux(gleak.load_pool(pool))
    net = trained_network(model, pool, steps, width)
    return scores(net, drawn_with(labels, clients, size, seed), inputs=inputs, aux=aux)


def classes_settings(seeds: int, photos: bool) -> list[dict]:
    """Two, twenty, and if asked for a thousand classes."""
    settings = product(N=[2], steps=[0], seed=range(seeds))
    settings += product(N=[20], steps=[0, 150, 400], seed=range(seeds))
    return settings + product(N=[1000] if photos else [], steps=["ImageNet"], seed=range(2))


def classes(
    N: int,
    steps: int | str,
    seed: int,
    *,
    size: int,
    alpha: float,
    inputs: int,
    photo_size: int,
) -> list[Row]:
    """The rules with N classes: two of the digits, crops of twenty photographs, or ImageNet's.

    photo_size: side of the photographs in pixels.
    """
    if N == 2:
        pool = gleak.load_pool("digits")
        two = (pool.labels < 2).nonzero().flatten()
        drawn = Batch(pool.images[two], pool.labels[two], ["0", "1"])
        drawn = gleak.draw_batch(drawn, size, alpha=1.0, seed=seed)
        net = gleak.build_model("lenet", drawn, seed=seed, **model_options("lenet"))
        return scores(net, drawn, inputs=inputs)
    if N == 20:
        clients, aux = clients_and_aux(gleak.load_pool("imagenet-crops"))
        net = gleak.trained_model(
            "lenet", "imagenet-crops", steps=int(steps), seed=3, **model_options("lenet")
        )
        drawn = gleak.draw_batch(clients, size, alpha=alpha, seed=seed)
        return scores(net, drawn, inputs=inputs, aux=aux)
    photos = gleak.load_batch("imagenet-samples", indices=range(20), image_size=photo_size)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))[:16]
    drawn = Batch(photos.images[order], photos.labels[order], photos.class_names, photos.dataset)
    methods = ["zlg-bias", "idlg", "llg", "llbg", "ebi", "ilrg"]
    net = gleak.build_model("efficientnet-lite0", drawn)
    return scores(net, drawn, inputs=DEEP_INPUTS, methods=methods)
