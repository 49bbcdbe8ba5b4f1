"""Chapter 02: label counts from one gradient of an untrained network, by every rule."""

# ruff: noqa: N803 (arguments are named as the columns of the tables)

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torchvision.transforms import functional as transforms

import gleak
from gleak.data import Batch
from gleak.study.experiments.common import counted, fresh_seeds, model_options
from gleak.study.runner import product

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
    picked = Batch(
        samples.images[chosen], samples.labels[chosen], samples.class_names, samples.dataset
    )
    return shifted(picked, generator)


def shifted(batch: Batch, generator: torch.Generator) -> Batch:
    """The same images, each shifted by up to 4 pixels and flipped at random."""
    size, side = len(batch), batch.images.shape[-1]
    images = transforms.pad(batch.images, 4, padding_mode="reflect")
    shifts = torch.randint(9, (size, 2), generator=generator).tolist()
    images = [i[:, y : y + side, x : x + side] for i, (y, x) in zip(images, shifts, strict=True)]
    flips = torch.rand(size, generator=generator) < 0.5
    images = [i.flip(2) if flip else i for i, flip in zip(images, flips, strict=True)]
    return Batch(torch.stack(images), batch.labels, batch.class_names, batch.dataset)


def untrained_settings(
    datasets: Sequence[str], networks: Sequence[str], sizes: Sequence[int], seeds: int
) -> list[dict]:
    """Data sets, networks, batch sizes and seeds; the deep network on the first data set alone."""
    quick = [network for network in networks if network != "resnet18"]
    settings = product(dataset=datasets, network=quick, K=sizes, seed=fresh_seeds(seeds))
    deep = [network for network in networks if network not in quick]
    few = [size for size in sizes if size <= DEEP_INPUTS]
    return settings + product(dataset=datasets[:1], network=deep, K=few, seed=fresh_seeds(2))


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
    settings = product(network=["lenet"], seed=fresh_seeds(seeds))
    return settings + product(network=["resnet18"] if deep else [], seed=fresh_seeds(2))


def digits(network: str, seed: int, *, size: int, inputs: int, width: int) -> list[Row]:
    """The rules on an untrained network in eval mode: gray digits, labels uniform."""
    drawn = gleak.draw_batch(gleak.load_pool("digits"), size, seed=seed)
    options: dict[str, Any] = {"inputs": inputs}
    if network == "resnet18":
        options = {"inputs": DEEP_INPUTS, "methods": ["zlg", "zlg-bias", "ilrg"]}
    return scores(network_of(network, drawn, seed, width), drawn, **options)
