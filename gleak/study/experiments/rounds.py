"""Chapter 11c: a network trained under differential privacy, attacked late and again and again."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch
from torch import nn

import gleak
from gleak.client import private_fedsgd
from gleak.labels import LastLayer, largest_remainder, posterior, rules
from gleak.study.experiments.common import model_options
from gleak.study.experiments.defences import MAX_NORM, knowing, precision_of, undone
from gleak.training import accuracy
from gleak.update import Contradiction, Update

LR = 0.005  # of Adam, as in chapter 11
RULES = {"zlg-bias": rules.zlg_bias, "gleak": posterior.gleak}


def course(
    data: gleak.Batch, model: str, z: float, seed: int, steps: int, expected: int
) -> Iterator[nn.Module]:
    """The network before each of so many steps of DP-SGD, and after the last.

    It is one object, changed in place: take what is needed before going on. Each step has a Poisson
    sample of `expected` records on average, clips each gradient to MAX_NORM and adds noise of z
    times that to the sum (Abadi et al., 2016).
    """
    net = gleak.build_model(model, data, seed=seed, **model_options(model))
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    draws = torch.Generator().manual_seed(seed)
    for step in range(steps):
        yield net
        chosen = torch.rand(len(data), generator=draws) < expected / len(data)
        sample = gleak.Batch(data.images[chosen], data.labels[chosen], data.class_names)
        update = sent(net, sample, z, seed * steps + step, expected)
        for name, parameter in net.named_parameters():
            parameter.grad = update.gradient[name].clone()
        optimizer.step()
    yield net


def sent(
    net: nn.Module, batch: gleak.Batch, z: float, seed: int, expected: int | None = None
) -> gleak.GradientUpdate:
    """What a client with record privacy sends."""
    return private_fedsgd(
        net, batch, max_norm=MAX_NORM, noise_multiplier=z, expected_size=expected, seed=seed
    )


def estimate(update: Update, rule: str, seed: int, undo: bool = True) -> torch.Tensor:
    """(N,) real-valued label counts by one of RULES, before they are rounded.

    undo: the clip, as far as noise leaves something to tell its factor by: one that makes of the
    update what no client sends is wrong.
    """
    found = []

    def kept(layer: LastLayer) -> torch.Tensor:
        found.append(RULES[rule](layer))
        return found[-1]

    try:
        gleak.restore_labels(undone(update, "private", seed) if undo else update, kept, seed=seed)
    except Contradiction:
        gleak.restore_labels(update, kept, seed=seed)
    return found[-1]


def share_right(counts: torch.Tensor, batch: gleak.Batch) -> float:
    """The share of the labels that real-valued counts name, once rounded."""
    named = largest_remainder(counts, len(batch))
    return float(gleak.score_labels(named, batch.label_counts)["instance"])


def stages(
    z: float,
    seed: int,
    *,
    pool: str,
    model: str,
    steps: list[int],
    expected: int,
    size: int,
    batches: int,
    iterations: int,
) -> list[dict[str, Any]]:
    """Of private updates along a private training: accuracy, labels that leak, and one image.

    A row for each of `steps`. `labels`: the share of labels right on average over so many batches
    of `size`, by the best of the rules with the clip undone or not; `guess`: that of a guess that
    takes all classes for equally frequent. `psnr` (dB): what an attacker who knows the defence
    finds of an update of one image.
    """
    data, clients = gleak.load_pool(pool, "server"), gleak.load_pool(pool, "client")
    drawn = [gleak.draw_batch(clients, size, seed=100 * seed + n) for n in range(batches)]
    single = gleak.draw_batch(clients, 1, seed=100 * seed)
    rows = []
    for step, net in enumerate(course(data, model, z, seed, max(steps), expected)):
        if step not in steps:
            continue
        updates = [sent(net, batch, z, seed + n) for n, batch in enumerate(drawn)]
        right = pd.DataFrame(
            {
                (rule, undo): share_right(estimate(update, rule, seed, undo), batch)
                for rule in RULES
                for undo in (True, False)
            }
            for batch, update in zip(drawn, updates, strict=True)
        )
        even = torch.full((clients.num_classes,), size / clients.num_classes)
        update = sent(net, single, z, seed)
        found = knowing(
            undone(update, "private", seed),
            single.label_counts,
            "private",
            z,
            precision=precision_of(update, "private", z),
            iterations=iterations,
            seed=seed,
        )
        scores = gleak.score(found.images, single.images).iloc[0]
        rows.append(
            {
                "step": step,
                "accuracy": accuracy(net, clients),
                "labels": right.mean().max(),
                "guess": sum(share_right(even, batch) for batch in drawn) / batches,
                "psnr": scores["psnr"],
                "thumb8": scores["thumb8"],
                "mean_colour": scores["mean_colour"],
            }
        )
    return rows


def repeated(
    z: float,
    seed: int,
    *,
    pool: str,
    model: str,
    rounds: list[int],
    expected: int,
    size: int,
) -> list[dict[str, Any]]:
    """Of a client that sends the same batch in every round of a private training.

    A row for each number of `rounds`: the share of labels right by the mean of the rounds' counts,
    by each rule.

    Raises ValueError for fewer than one round.
    """
    if not rounds or min(rounds) < 1:
        raise ValueError(f"rounds are numbers of at least 1; got {rounds}")
    data, clients = gleak.load_pool(pool, "server"), gleak.load_pool(pool, "client")
    batch = gleak.draw_batch(clients, size, seed=100 * seed)
    counts: dict[str, list[torch.Tensor]] = {rule: [] for rule in RULES}
    for step, net in enumerate(course(data, model, z, seed, max(rounds) - 1, expected)):
        update = sent(net, batch, z, 1000 * (seed + 1) + step)
        for rule, found in counts.items():
            found.append(estimate(update, rule, seed))
    return [
        {
            "rounds": number,
            **{
                f"labels by {rule}": share_right(torch.stack(found[:number]).mean(0), batch)
                for rule, found in counts.items()
            },
        }
        for number in rounds
    ]
