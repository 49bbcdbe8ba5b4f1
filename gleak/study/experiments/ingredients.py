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
from gleak.labels import tolerance
from gleak.models import Normalise
from gleak.update import Update


class Change(NamedTuple):
    """One change to the base, by its kind: what is other in the attack, and what at the client.

    attack: settings for `gleak.invert`. client: settings of `network`; `dtype`, of the update;
    `precision`, what the attack is told of that.
    """

    group: str
    attack: Mapping[str, Any] = {}
    client: Mapping[str, Any] = {}


BASE = Change("base")
NARROW, WIDE = Change("network", client={"width": 8}), Change("network", client={"width": 32})
BFLOAT16 = Change("precision", client={"dtype": "bfloat16"})
PLAIN_ADAM = Change("optimiser", {"optimizer": "adam"})
NO_VARIATION = Change("prior", {"tv": 0})
CHANGES = {
    "general": {
        "base": BASE,
        "no total variation": NO_VARIATION,
        "total variation / 4": Change("prior", {"tv": 0.01}),
        "total variation x 4": Change("prior", {"tv": 0.16}),
        "no clip prior": Change("prior", {"clip": 0}),
        "no scale prior": Change("prior", {"scale": 0}),
        "cut to [0, 1] instead of both": Change("prior", {"clip": 0, "scale": 0, "box": True}),
        "distance cosine": Change("distance", {"distance": "cosine"}),
        "distance l1": Change("distance", {"distance": "l1"}),
        "distance layer-l2": Change("distance", {"distance": "layer-l2"}),
        "distance layer-cosine": Change("distance", {"distance": "layer-cosine"}),
        "Adam without signs": PLAIN_ADAM,
        "L-BFGS": Change("optimiser", {"optimizer": "lbfgs", "lr": 1, "schedule": "constant"}),
        "step / 3": Change("optimiser", {"lr": 0.033}),
        "step x 3": Change("optimiser", {"lr": 0.3}),
        "constant step": Change("optimiser", {"schedule": "constant"}),
        "cosine schedule": Change("optimiser", {"schedule": "cosine"}),
        "derivative by autograd": Change("optimiser", {"derivative": "exact"}),
        "Langevin noise": Change("optimiser", {"noise": 0.2}),
        "gray start": Change("start", {"start": "gray"}),
        "uniform start": Change("start", {"start": "uniform"}),
        "patterned start": Change("start", {"start": "patterned"}),
        "2 restarts, half as long": Change("start", {"restarts": 2}),
        "2 restarts that agree": Change("start", {"restarts": 2, "group": 0.01}),
        "labels not known": Change("start", {"joint_labels": True}),
        "8 channels": NARROW,
        "32 channels": WIDE,
        "3 layers": Change("network", client={"depth": 3}),
        "9 layers": Change("network", client={"depth": 9}),
        "sigmoid": Change("network", client={"activation": "sigmoid"}),
        "tanh": Change("network", client={"activation": "tanh"}),
        "GELU": Change("network", client={"activation": "gelu"}),
        "batch norm, train mode": Change("network", client={"norm": "train"}),
        "batch norm, eval mode": Change("network", client={"norm": "eval"}),
        "update in float64": Change("precision", client={"dtype": "float64"}),
        "update in float16": Change("precision", client={"dtype": "float16"}),
        "update in bfloat16": BFLOAT16,
    },
    "gleak": {
        "base": BASE,
        "no total variation": NO_VARIATION,
        "total variation does not fade": Change("prior", {"tv_end": 1}),
        "Adam without signs": PLAIN_ADAM,
        "step / 3": Change("optimiser", {"lr": 0.1}),
        "8 channels": NARROW,
        "32 channels": WIDE,
        "update in bfloat16": BFLOAT16,
        "bfloat16, precision told": Change(
            "precision", client={"dtype": "bfloat16", "precision": 0.01}
        ),
    },
}
# Those of `general` that a short run has.
QUICK = [
    "base",
    "no total variation",
    "no clip prior",
    "no scale prior",
    "distance cosine",
    "distance layer-cosine",
    "Adam without signs",
    "L-BFGS",
    "2 restarts, half as long",
    "8 channels",
    "32 channels",
    "sigmoid",
    "tanh",
    "batch norm, train mode",
    "update in bfloat16",
]


def settings(attack: str, model: str, seeds: int, thorough: bool = True) -> list[dict[str, Any]]:
    """The changes to an attack that can be made to the client's network, seed by seed.

    A network other than `convnet` comes as it is: no changes to it. thorough: all changes.
    """
    changes = CHANGES[attack]
    names = [
        name
        for name in (changes if thorough or attack == "gleak" else QUICK)
        if model == "convnet" or changes[name].group != "network"
    ]
    return [{"change": name, "seed": seed} for name in names for seed in range(seeds)]


def network(
    batch: Batch,
    seed: int,
    width: int = 16,
    depth: int = 6,
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


def attacked(
    attack: str, change: str, dataset: str, model: str, size: int, iterations: int, seed: int
) -> dict[str, float]:
    """PSNR of one run with one change, and of what shows without a leak.

    model: `convnet` stands for `network`. The seed draws images, weights and start; restarts share
    the iterations.
    """
    _, overrides, client = CHANGES[attack][change]
    client = dict(client)
    dtype, told = client.pop("dtype", "float32"), client.pop("precision", 0.0)
    batch = gleak.load_batch(dataset, size=size, seed=seed, distinct_labels=True)
    plain = model == "convnet"
    net = network(batch, seed, **client) if plain else gleak.build_model(model, batch, seed=seed)
    update: Update = gleak.fedsgd(
        net.double() if dtype == "float64" else net, batch, training=client.get("norm") != "eval"
    )
    if dtype in ("float16", "bfloat16"):
        update = defences.cast(update, getattr(torch, dtype))
    # untold, the attacker takes the digits for those of the model
    own = tolerance.of_dtype(update.classifier.weight.dtype)
    found = gleak.invert(
        replace(update, precision=max(told / 2, own)),
        batch.label_counts,
        attack,
        iterations=iterations // overrides.get("restarts", 1),
        seed=seed,
        progress=False,
        **overrides,
    )
    scores = gleak.score(found.images, batch.images)
    return scores[["psnr", "mean_colour", "thumb8"]].mean().to_dict()


def compared(runs: pd.DataFrame, attack: str) -> pd.DataFrame:
    """The runs but for the base, each with its group and the difference to its seed's base."""
    of_seed = runs[runs["change"] == "base"].set_index("seed")["psnr"]
    runs = runs.assign(
        group=[CHANGES[attack][name].group for name in runs["change"]],
        difference=runs["psnr"] - runs["seed"].map(of_seed),
    )
    return runs[runs["change"] != "base"]


def base(runs: pd.DataFrame) -> float:
    """Mean PSNR of the runs without a change."""
    return runs[runs["change"] == "base"]["psnr"].mean()


def worth(compared: pd.DataFrame) -> pd.DataFrame:
    """Mean difference of each change and its range over the seeds, in dB."""
    grouped = compared.groupby(["group", "change"], sort=False)["difference"]
    return grouped.agg(worth="mean", lowest="min", highest="max")
