"""What each part of an attack, and of the client's network, is worth: one changed at a time."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import nn

import gleak
from gleak import defences
from gleak.data import Batch
from gleak.inversion import GradientMatching, Inversion
from gleak.inversion.presets import GLEAK_FEATURES, GLEAK_GRADIENT
from gleak.labels import tolerance
from gleak.models import Normalise
from gleak.study.criterion import Interval, interval
from gleak.study.experiments.common import fresh_seeds
from gleak.study.experiments.searches import unchosen
from gleak.update import Update


class Change(NamedTuple):
    """One change to the base, by its kind: what is other in the attack, and what at the client.

    attack: settings for `gleak.invert`. client: settings of `network`; `size`, of the batch;
    `dtype`, of the update; `precision`, what the attack is told of that. instead: another attack.
    effort: how many times the iterations of the base.
    """

    group: str
    attack: Mapping[str, Any] = {}
    client: Mapping[str, Any] = {}
    instead: GradientMatching | None = None
    effort: int = 1


BASE = Change("base")
LBFGS = {"optimizer": "lbfgs", "lr": 1, "schedule": "constant"}
CLIENT = {  # changes that both attacks meet
    "32 channels": Change("client", client={"width": 32}),
    "2 images": Change("client", client={"size": 2}),
    "update in bfloat16": Change("client", client={"dtype": "bfloat16"}),
}
CHANGES = {
    "general": {
        "base": BASE,
        "no total variation": Change("prior", {"tv": 0}),
        "total variation x 4": Change("prior", {"tv": 0.16}),
        "no clip": Change("prior", {"clip": 0}),
        "no scale": Change("prior", {"scale": 0}),
        "no prior at all": Change("prior", {"tv": 0, "clip": 0, "scale": 0}),
        "cosine": Change("distance", {"distance": "cosine"}),
        "cosine, mean over layers": Change("distance", {"distance": "layer-cosine"}),
        "steps without signs": Change("optimiser", {"optimizer": "adam"}),
        "L-BFGS": Change("optimiser", LBFGS),
        "step / 3": Change("optimiser", {"lr": 0.033}),
        "step x 3": Change("optimiser", {"lr": 0.3}),
        "constant step": Change("optimiser", {"schedule": "constant"}),
        "2 restarts, half as long": Change("effort", {"restarts": 2}),
        "twice as long": Change("effort", effort=2),
        "labels not known": Change("labels", {"joint_labels": True}),
        **CLIENT,
        "batch norm, train mode": Change("client", client={"norm": "train"}),
    },
    "gleak": {
        "base": BASE,
        "no total variation": Change("prior", {"tv": 0}),
        "no places of maxima": Change("closed form", instead=GLEAK_FEATURES),
        "no closed form at all": Change("closed form", instead=GLEAK_GRADIENT),
        "steps without signs": Change("optimiser", {"optimizer": "adam"}),
        **CLIENT,
        "bfloat16, and told so": Change("client", client={"dtype": "bfloat16", "precision": 0.01}),
    },
}


def settings(attack: str, model: str, seeds: int) -> list[dict[str, Any]]:
    """The changes to an attack that can be made to the client's network, seed by seed.

    A network other than `convnet` comes as it is: no changes to it.
    """
    own = {"width", "depth", "activation", "norm"}
    names = [
        name
        for name, change in CHANGES[attack].items()
        if model == "convnet" or not own.intersection(change.client)
    ]
    return [{"change": name, "seed": seed} for seed in fresh_seeds(seeds) for name in names]


def network(
    batch: Batch,
    seed: int,
    width: int = 64,
    depth: int = 3,
    activation: str = "relu",
    norm: str | None = None,
) -> nn.Module:
    """Three blocks of 3x3 convolutions with a max-pool after the first two, and a linear layer."""
    kinds = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "gelu": nn.GELU}
    channels, side = batch.images.shape[1:3]
    layers: list[nn.Module] = []
    before = channels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for block in range(3):
            after = width * 2**block
            for _ in range(depth // 3):
                layers.append(nn.Conv2d(before, after, 3, padding=1))
                if norm:
                    layers.append(nn.BatchNorm2d(after))
                layers.append(kinds[activation]())
                before = after
            if block < 2:
                layers.append(nn.MaxPool2d(2))
        layers += [nn.Flatten(), nn.Linear(before * (side // 4) ** 2, batch.num_classes)]
        net = nn.Sequential(*layers)
    return nn.Sequential(Normalise((0.5,) * channels, (0.25,) * channels), net)


def changed(
    attack: str, change: str, dataset: str, model: str, size: int, iterations: int, seed: int
) -> tuple[Batch, Inversion, pd.DataFrame]:
    """The batch, what an attack with one change finds of it, and the scores.

    model: `convnet` stands for `network`. The seed draws images, weights and start; restarts share
    the iterations.
    """
    _, overrides, client, instead, effort = CHANGES[attack][change]
    client = dict(client)
    dtype, told = client.pop("dtype", "float32"), client.pop("precision", 0.0)
    size = client.pop("size", size)
    batch = unchosen(dataset, size, seed)
    plain = model == "convnet"
    net = network(batch, seed, **client) if plain else gleak.build_model(model, batch, seed=seed)
    update: Update = gleak.fedsgd(net, batch, training=client.get("norm") != "eval")
    if dtype != "float32":
        update = defences.cast(update, getattr(torch, dtype))
    # untold, the attacker takes the digits for those of the model
    own = tolerance.of_dtype(update.classifier.weight.dtype)
    found = gleak.invert(
        replace(update, precision=max(told / 2, own)),
        batch.label_counts,
        instead or attack,
        iterations=effort * iterations // overrides.get("restarts", 1),
        seed=seed,
        progress=False,
        **overrides,
    )
    return batch, found, gleak.score(found.images, batch.images)


class Shown(NamedTuple):
    """A batch of all seeds' images; words -> what was found of them, and the scores."""

    batch: Batch
    results: dict[str, tuple[Inversion, pd.DataFrame]]


def side_by_side(changes: Mapping[str, tuple[str, str]], seeds: int, **about: Any) -> Shown:
    """One image of each seed, as several attacks restore it.

    changes: words -> attack and change, of which each seed's network is attacked once; about: as
    `changed`, but for the seed.
    """
    results, batches = {}, []
    for words, (attack, change) in changes.items():
        runs = [changed(attack, change, seed=seed, **about) for seed in fresh_seeds(seeds)]
        batches = [batch for batch, _, _ in runs]
        images = torch.stack([found.images[scores["match"][0]] for _, found, scores in runs])
        labels = torch.stack([found.labels[scores["match"][0]] for _, found, scores in runs])
        scores = pd.concat([scores.head(1) for _, _, scores in runs], ignore_index=True)
        found = replace(runs[0][1], images=images, labels=labels)
        results[words] = found, scores.assign(match=range(seeds))
    first = batches[0]
    batch = Batch(
        torch.cat([batch.images[:1] for batch in batches]),
        torch.cat([batch.labels[:1] for batch in batches]),
        first.class_names,
        first.dataset,
    )
    return Shown(batch, results)


def attacked(attack: str, change: str, **about: Any) -> dict[str, float]:
    """PSNR of one run with one change, and of what shows without a leak; about: as `changed`."""
    _, _, scores = changed(attack, change, **about)
    return scores[["psnr", "mean_colour", "thumb8"]].mean().to_dict()


def compared(runs: pd.DataFrame, attack: str) -> pd.DataFrame:
    """The runs, each with its group and the difference to its seed's base, in dB."""
    of_seed = runs[runs["change"] == "base"].set_index("seed")["psnr"]
    return runs.assign(
        attack=attack,
        group=[CHANGES[attack][name].group for name in runs["change"]],
        difference=runs["psnr"] - runs["seed"].map(of_seed),
    )


def worth(compared: pd.DataFrame) -> pd.DataFrame:
    """What each change is worth, in dB, with its interval, paired by network (a seed each)."""
    grouped = compared[compared["change"] != "base"].groupby(["group", "change"], sort=False)
    found = {name: interval(rows["difference"]) for name, rows in grouped}
    index = pd.MultiIndex.from_tuples(found, names=["group", "change"])
    return pd.DataFrame(found.values(), index=index, columns=Interval._fields)
