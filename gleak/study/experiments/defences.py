"""Chapter 11: clients that defend themselves, and an attacker who knows how they do it.

A defence is a name and a strength, as in DEFENCES: the clip's norm, bits, the share that is pruned
or dropped, the noise's standard deviation or multiplier, local steps.
"""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, cast

import pandas as pd
import torch
from torch import nn

import gleak
from gleak import defences
from gleak.client import private_fedsgd
from gleak.data import draw
from gleak.inversion import Inversion
from gleak.labels.features import image_features
from gleak.labels.tolerance import FLOAT32
from gleak.study.experiments.common import FIRST_SEED, fresh_seeds, model_options
from gleak.training import accuracy
from gleak.update import Update

DEFENCES = {  # a defence and its strength -> its name in the tables
    ("none", 0): "nothing",
    ("clip", 0.2): "clip to norm 0.2",
    ("bits", 8): "8 bits",
    ("sign", 0): "sign",
    ("prune", 0.9): "prune 90 %",
    ("prune", 0.99): "prune 99 %",
    ("noise", 0.003): "noise 0.003",
    ("noise", 0.03): "noise 0.03",
    ("private", 0.1): "record privacy, z = 0.1",
    ("dropout", 0.5): "dropout 0.5",
    ("local steps", 8): "8 local steps",
    ("sum", 0): "secure sum of 4 clients",
    ("private sum", 1): "private secure sum, z = 1",
}

# What is done to the update of a client that trained as usual: (update, strength, seed) -> update.
CHANGES: dict[str, Callable[[Update, float, int], Update]] = {
    "none": lambda update, strength, seed: update,
    "sum": lambda update, strength, seed: update,  # of one client that has the images of all
    "clip": lambda update, strength, seed: defences.clip(update, strength),
    "bits": lambda update, strength, seed: defences.quantise(update, int(strength)),
    "sign": lambda update, strength, seed: defences.sign(update),
    "prune": lambda update, strength, seed: defences.prune(update, strength),
    "noise": lambda update, strength, seed: defences.add_noise(update, strength, seed=seed),
}

MAX_NORM = 1.0  # of a sample's gradient, where those are clipped
MORE = 16  # behind a private sum, clients take this many times more records
SEARCH: dict[str, Any] = {
    "schedule": "cosine",
    "lr": 0.2,
}  # gets further in few steps than the default
MEASURED = 4  # images, where updates of unequal size are compared


def settings(seeds: int) -> list[dict]:
    """Every defence with every seed."""
    return [
        {"defence": defence, "strength": strength, "seed": seed}
        for defence, strength in DEFENCES
        for seed in fresh_seeds(seeds)
    ]


def accounts(pool: str, size: int, clients: int) -> list[dict]:
    """Noise multipliers and sample rates for the accountant of privacy, and what they protect."""
    records = len(gleak.load_pool(pool, "server")) // clients
    names = ("protects a", "how", "z", "sample rate")
    rows = [
        ("record", "each client, z = 0.1", 0.1, size / records),
        ("record", "secure sum, z = 1", 1.0, min(MORE * size / records, 1.0)),
        ("client", "clip to 1, noise 0.03", 0.03, 1.0),
        ("client", "clip to 1, noise 4", 4.0, 1.0),
    ]
    return [dict(zip(names, row, strict=True)) for row in rows]


def summed(defence: str) -> bool:
    """Whether the server sees only the sum over the clients."""
    return defence.endswith("sum")


# The client


def drawn(dataset: str, size: int, seed: int, distinct: bool = False) -> gleak.Batch:
    """So many images of a data set, or of the clients' half of a pool; distinct: all labels."""
    if dataset not in gleak.list_pools():
        return gleak.load_batch(dataset, size=size, seed=seed, distinct_labels=distinct)
    pool = gleak.load_pool(dataset)
    chosen = draw(pool.labels, size, seed, distinct)
    return gleak.Batch(pool.images[chosen], pool.labels[chosen], pool.class_names, pool.dataset)


def network(
    batch: gleak.Batch, seed: int, defence: str = "none", strength: float = 0, *, model: str
) -> nn.Module:
    """An untrained network, with dropout in front of the classifier if that is the defence."""
    net = gleak.build_model(model, batch, seed=seed, **model_options(model))
    if defence == "dropout":
        layers = cast(nn.Sequential, net.get_submodule("1"))  # behind the normalisation
        layers.insert(len(layers) - 1, nn.Dropout(strength))
    return net


def send(
    net: nn.Module,
    batch: gleak.Batch,
    defence: str,
    strength: float,
    seed: int,
    expected: int | None = None,
) -> Update:
    """What one client sends; expected: the size that it expects of a Poisson sample.

    Raises ValueError for an unknown defence.
    """
    if defence.startswith("private"):
        return private_fedsgd(
            net,
            batch,
            max_norm=MAX_NORM,
            noise_multiplier=strength,
            expected_size=expected,
            seed=seed,
        )
    if defence == "local steps":
        return gleak.fedavg(net, batch, epochs=int(strength), lr=0.05, shuffle_seed=seed)
    if defence == "dropout":
        return gleak.fedsgd(net, batch, dropout_seed=seed)
    if defence not in CHANGES:
        known = dict.fromkeys(name for name, _ in DEFENCES)
        raise ValueError(f"unknown defence {defence!r}; known: {', '.join(known)}")
    return CHANGES[defence](gleak.fedsgd(net, batch), strength, seed)


def send_of_shard(
    net: nn.Module,
    data: gleak.Batch,
    shard: torch.Tensor,
    defence: str,
    strength: float,
    size: int,
    draws: torch.Generator,
    seed: int,
) -> Update:
    """What a client sends in a round of training, from `size` of its records on average.

    shard: indices of its records in data; draws: chooses among them, seed: makes the noise.
    """
    if defence.startswith("private"):  # a Poisson sample, as the accountant asks for
        chosen = shard[torch.rand(len(shard), generator=draws) < size / len(shard)]
    else:
        chosen = shard[torch.randint(len(shard), (size,), generator=draws)]
    empty = not len(chosen)
    chosen = shard[:1] if empty else chosen
    part = gleak.Batch(data.images[chosen], data.labels[chosen], data.class_names)
    update = send(net, part, defence, strength, seed, size)
    if not empty:
        return update
    nothing = {name: torch.zeros_like(sent) for name, sent in update.message().items()}
    update = defences.replaced(update, nothing)  # an empty sample sends the noise alone
    return defences.add_noise(update, strength * MAX_NORM / size, seed=seed)


def trained(
    defence: str,
    strength: float,
    seed: int,
    *,
    pool: str,
    model: str,
    size: int,
    clients: int,
    rounds: int,
) -> dict[str, float]:
    """The accuracy after federated training, one update of each client in each round.

    The server takes an Adam step along the mean of the updates.
    """
    data = gleak.load_pool(pool, "server")
    net = network(data, seed, defence, strength, model=model)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.005)
    draws = torch.Generator().manual_seed(seed)
    shards = torch.randperm(len(data), generator=draws).chunk(clients)
    # in a private sum the clients share the noise, and are free to take more records
    private = defence == "private sum"
    each, z = (MORE * size, strength / clients**0.5) if private else (size, strength)
    for step in range(rounds):
        sent = []
        for client, shard in enumerate(shards):
            key = (seed * rounds + step) * clients + client
            update = send_of_shard(net, data, shard, defence, z, each, draws, key)
            sent.append(update.equivalent_gradient())
        for name, parameter in net.named_parameters():
            parameter.grad = torch.stack([gradient[name] for gradient in sent]).mean(0)
        optimizer.step()
    return {"accuracy": accuracy(net, gleak.load_pool(pool, "client"))}


# The attacker who knows


def unclipped(update: Update, seed: int) -> Update:
    """The update with the factor undone that clipping has hidden.

    A class with a positive entry of the bias gradient is absent, so that the entry is the mean
    softmax times the factor. The softmax is taken from 500 random images, drawn by the seed.

    Raises MissingKnowledge for a classifier without a bias.
    """
    draws = torch.Generator().manual_seed(seed)
    inputs = 0.5 + 0.25 * torch.randn(500, *update.input_shape, generator=draws)
    softmax = update.forward(inputs)[1].softmax(1).mean(0)
    bias = update.classifier_gradient()[1]
    if bias is None:
        raise gleak.MissingKnowledge("a clip is found by the bias gradient; this model has none")
    absent = bias > 0
    factor = (bias / softmax)[absent].median() if absent.any() else torch.tensor(1.0)
    sent = {name: tensor / factor for name, tensor in update.message().items()}
    return defences.replaced(update, sent)


def undone(update: Update, defence: str, seed: int) -> Update:
    """The update as it was before a clip, where there was one; else as it is."""
    return unclipped(update, seed) if defence in ("clip", "private") else update


def precision_of(update: Update, defence: str, strength: float) -> float:
    """The relative error of what was sent, as far as the attacker can know it; 1: all of it."""
    values = sum(tensor.numel() for tensor in update.message().values())
    size = update.norm() / values**0.5
    if defence == "noise":
        return min(strength / size, 1.0)
    if defence.startswith("private"):
        return min(strength * MAX_NORM / update.num_samples / size, 1.0)
    known = {"none": 0.0, "clip": 0.05, "bits": 2.0 ** (4 - strength)}
    return known.get(defence, 1.0)


class Kept(nn.Module):
    """In place of dropout: each image's own units, as far as they were kept.

    features: (K, M) of the images, zero where a unit was dropped; share: of units that are dropped.
    """

    factors: torch.Tensor

    def __init__(self, features: torch.Tensor, share: float):
        super().__init__()
        kept = features.abs() > 1e-4 * features.abs().max()
        self.register_buffer("factors", kept.float() / (1 - share))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The features (K, M) without the dropped units; another number of images as it is."""
        return features * self.factors if len(features) == len(self.factors) else features


def knowing(
    update: Update,
    counts: torch.Tensor,
    defence: str = "none",
    strength: float = 0,
    *,
    precision: float = 0.0,
    iterations: int,
    seed: int,
) -> Inversion:
    """The images that an attacker restores who knows the defence, and so how exact the update is.

    precision: the relative error of what was sent, see `precision_of`. Local steps are modelled,
    pruned values left out of the comparison, dropped units put into the network; with an update
    that is exact enough the closed forms lead, else the prior weighs more.
    """
    common: dict[str, Any] = {"iterations": iterations, "seed": seed, "progress": False, **SEARCH}
    if defence == "local steps":
        return gleak.invert(update, counts, tv=0.15, update_model="sme", **common)
    if defence == "prune":
        return gleak.invert(update, counts, tv=0.15, distance="sent-cosine", **common)
    if defence == "dropout":
        net = copy.deepcopy(update.model)
        layers = cast(nn.Sequential, net.get_submodule("1"))  # behind the normalisation
        layers[-2] = Kept(image_features(update, counts)[0], strength)
        update = dataclasses.replace(update, model=net)
        return gleak.invert(update, counts, tv=0.15, **common)
    if precision < 0.5:
        try:
            told = dataclasses.replace(update, precision=max(precision / 2, FLOAT32))
            return gleak.invert(told, counts, tv=0.5, features=1, **common)
        except gleak.MissingKnowledge:
            pass  # no closed form holds: the search alone
    return gleak.invert(update, counts, tv=0.5, **common)


# What leaks


def attacked(
    defence: str,
    strength: float,
    seed: int,
    steps: int = 0,
    *,
    dataset: str,
    pool: str,
    model: str,
    size: int,
    label_size: int,
    clients: int,
    iterations: int,
) -> dict[str, float]:
    """What two attackers restore of one client's update after some steps of training.

    `usual` (before any step) and `knowing`: mean PSNR of the images in dB, beside that of one flat
    colour and of thumbnails; `labels_usual` and `labels_knowing`: share of labels that are right,
    of a batch of its own unless clients are summed.
    """
    count = clients * size if summed(defence) else size
    batch = drawn(dataset, count, seed, distinct=not summed(defence))
    # the noise of a private sum is that of many more images, see `trained`: attack a few of them
    z = strength / MORE if defence == "private sum" else strength

    def sent(part: gleak.Batch) -> Update:
        if steps:
            net = gleak.trained_model(model, pool, steps=steps, seed=seed, **model_options(model))
        else:
            net = network(part, seed, defence, strength, model=model)
        return send(net, part, defence, z, seed)

    update, counts = sent(batch), batch.label_counts
    row: dict[str, float] = {}
    if not steps:  # of later updates the attacker who knows is asked alone
        usual = gleak.invert(
            update, counts, tv=0.15, iterations=iterations, seed=seed, progress=False, **SEARCH
        )
        row["usual"] = gleak.score(usual.images, batch.images)["psnr"].mean()
    best = knowing(
        undone(update, defence, seed),
        counts,
        defence,
        z,
        precision=precision_of(update, defence, z),
        iterations=iterations,
        seed=seed,
    )
    scores = gleak.score(best.images, batch.images)

    if not summed(defence):
        batch = drawn(dataset, label_size, seed + 100)
        update = sent(batch)
    named = [
        gleak.restore_labels(read, "zlg-bias", seed=seed)
        for read in (update, undone(update, defence, seed))
    ]
    right = [gleak.score_labels(found, batch.label_counts)["instance"] for found in named]
    return row | {
        "knowing": scores["psnr"].mean(),
        "flat": scores["mean_colour"].mean(),
        "thumb8": scores["thumb8"].mean(),
        "labels_usual": right[0],
        "labels_knowing": right[1],
    }


def batched(
    each: int,
    seed: int,
    *,
    dataset: str,
    model: str,
    number: int,
    iterations: int,
) -> dict[str, float]:
    """What leaks of the same `number` images in updates of `each` of them, without a defence.

    The closed form where there is one, else the search of the knowing attacker. PSNR in dB on the
    first MEASURED images, and the share of labels that are right on all.
    """
    whole = drawn(dataset, number, seed)
    net = network(whole, seed, model=model)
    labels, scores = 0.0, []
    for first in range(0, len(whole), each):
        chosen = slice(first, first + each)
        part = gleak.Batch(whole.images[chosen], whole.labels[chosen], whole.class_names)
        update, counts = gleak.fedsgd(net, part), part.label_counts
        named = gleak.restore_labels(update, "zlg-bias", seed=seed)
        labels += gleak.score_labels(named, counts)["instance"] * len(part) / len(whole)
        if first >= MEASURED:
            continue
        try:
            found = gleak.invert(update, counts, "exact")
        except gleak.MissingKnowledge:
            found = knowing(update, counts, iterations=iterations, seed=seed)
        scores.append(gleak.score(found.images, part.images).iloc[: MEASURED - first])
    means = pd.concat(scores)[["psnr", "mean_colour", "thumb8"]].mean()
    return {**means.to_dict(), "labels": labels}


def norms(steps: int, seed: int, *, pool: str, model: str, size: int) -> dict[str, float]:
    """The norm of one client's update after some steps of training: ten batches of `size`."""
    net = gleak.trained_model(model, pool, steps=steps, seed=seed, **model_options(model))
    data = gleak.load_pool(pool, "client")
    drawn = [gleak.draw_batch(data, size, seed=100 * seed + n) for n in range(10)]
    found = [gleak.fedsgd(net, part).norm() for part in drawn]
    return {"mean": sum(found) / len(found), "largest": max(found)}


def later_settings(seeds: int, steps: int, dataset: str, pool: str) -> list[dict]:
    """No defence and noise 0.03 after some steps; empty where the pool is of another shape."""
    if gleak.load_pool(pool).images.shape[1:] != drawn(dataset, 1, FIRST_SEED).images.shape[1:]:
        return []
    return [
        {**setting, "steps": steps}
        for setting in settings(seeds)
        if DEFENCES[setting["defence"], setting["strength"]] in ("nothing", "noise 0.03")
    ]
