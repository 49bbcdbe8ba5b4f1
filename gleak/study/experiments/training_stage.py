"""Images and labels restored over the course of training, for several networks at each stage.

Networks are trained on the server's half of a pool; the batches are of the clients' half. The unit
is the network: `training` is the seed of its weights and of what it is trained on. PSNR is in dB; a
gain is PSNR above that of a flat colour, the image's own mean.
"""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import nn

import gleak
from gleak.labels.features import image_features
from gleak.study.experiments.common import counted, fresh_seeds
from gleak.study.experiments.networks import batch_seed, trained_network
from gleak.study.runner import product
from gleak.training import accuracy
from gleak.update import GradientUpdate

RULES = ["zlg", "zlg-bias", "gleak"]
ATTACKS = ("general", "gleak")
LOCAL: dict[str, Any] = {"epochs": 2, "batch_size": 16, "lr": 0.01}  # of a client that trains


def printed(pools: Sequence[str]) -> dict[str, str]:
    """Pool -> its name as it is printed: of a folder, not the whole path."""
    return {name: gleak.load_pool(name).dataset if ":" in name else name for name in pools}


# -- images ---------------------------------------------------------------------------------------


def drawn(
    clients: gleak.Batch, network: nn.Module, kind: str, size: int, seed: int
) -> gleak.Batch | None:
    """Random images with some contrast; of all, or such as the network gets wrong, or right.

    kind: all, wrong or right. None where there are no such images.
    """
    chosen = clients.images.flatten(1).std(1) > 0.1  # of a patch of sky there is nothing to restore
    if kind != "all":
        with torch.no_grad():
            named = torch.cat([network(part).argmax(1) for part in clients.images.split(250)])
        chosen &= (named == clients.labels) == (kind == "right")
    chosen = chosen.nonzero().flatten()
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))
    chosen = chosen[order[:size]]
    if len(chosen) == 0:
        return None
    return gleak.Batch(
        clients.images[chosen], clients.labels[chosen], clients.class_names, clients.dataset
    )


def attacked(
    pool: str,
    training: int,
    step: int,
    kind: str,
    *,
    model: str,
    width: int,
    size: int,
    iterations: int,
    own_iterations: int,
) -> list[dict]:
    """A row for each image of a network's batch and each attack: what came back, and from what.

    kind: as for `drawn`; only of all images also the paper's attack, and the network's accuracy.
    iterations: of the paper's attack; own_iterations: of the study's. The attacker is given the
    labels. No row where there are no images of the kind.
    """
    clients, rows = gleak.load_pool(pool), []
    network = trained_network(model, pool, step, training, width)
    batch = drawn(clients, network, kind, size, batch_seed(training, 0))
    if batch is None:
        return []
    update = gleak.fedsgd(network, batch)
    about = {"gradient": norm(update), "closed form": has_closed_form(update, batch)}
    about["accuracy"] = accuracy(network, clients) if kind == "all" else math.nan
    sure, shares = certainty(network, batch), gradient_shares(network, batch)
    effort = {"general": iterations, "gleak": own_iterations}
    for attack in ATTACKS if kind == "all" else ATTACKS[1:]:
        found = gleak.invert(
            update,
            batch.label_counts,
            attack,
            iterations=effort[attack],
            seed=training,
            progress=False,
        )
        for k, score in gleak.score(found.images, batch.images).iterrows():
            psnr, flat = score["psnr"], score["mean_colour"]
            told = {name: score[name] for name in ("ssim", "thumb8", "mean_colour")}
            row = {"attack": attack, "image": k, "psnr": psnr, "gain": psnr - flat, **told}
            rows.append({**row, **sure[k], "share": shares[k], **about})
    return rows


def certainty(network: nn.Module, batch: gleak.Batch) -> list[dict]:
    """For each image the softmax of its own class, the entropy of all, and the loss."""
    with torch.no_grad():
        softmax = network(batch.images).softmax(1)
    own, entropy = softmax[range(len(batch)), batch.labels], torch.special.entr(softmax).sum(1)
    return [
        {"own softmax": own[k], "entropy": entropy[k], "loss": -own[k].log()}
        for k in range(len(batch))
    ]


def gradient_shares(network: nn.Module, batch: gleak.Batch) -> list[float]:
    """The length of each image's own gradient over the sum of all of these."""
    alone = [
        norm(gleak.fedsgd(network, gleak.Batch(image[None], label[None], batch.class_names)))
        for image, label in zip(batch.images, batch.labels, strict=True)
    ]
    return [length / sum(alone) for length in alone]


def norm(update: GradientUpdate) -> float:
    """The length of the whole gradient, in float32."""
    squares = (g.square().sum() for g in update.gradient.values())
    return sum(squares, torch.tensor(0.0)).sqrt().item()


def has_closed_form(update: gleak.Update, batch: gleak.Batch) -> bool:
    """Whether the classifier's equations give the features, in four attempts."""
    try:
        image_features(update, batch.label_counts, attempts=4)
    except gleak.MissingKnowledge:
        return False
    return True


def settings(pools: Sequence[str], trainings: int, steps: Sequence[int]) -> list[dict]:
    """What the chapter runs `attacked` with: all stages, and at the last one what is known or not.

    pools: names of pools. trainings: networks at each stage. steps: of training.
    """
    shared = {"pool": pools, "training": fresh_seeds(trainings)}
    return [
        *product(**shared, step=steps, kind=["all"]),
        *product(**shared, step=steps[-1:], kind=["right", "wrong"]),
    ]


def budgets(
    pool: str, training: int, step: int, iterations: int, *, model: str, width: int, size: int
) -> dict[str, float]:
    """What the study's attack reaches with a budget, and how it got to the features.

    apart: how far features of different images lie apart, error: those found from the true ones;
    both as a share of the length of the true features.
    """
    clients = gleak.load_pool(pool)
    network = trained_network(model, pool, step, training, width)
    batch = drawn(clients, network, "all", size, batch_seed(training, 0))
    if batch is None:
        raise ValueError(f"{pool} has no image with any contrast")
    update = gleak.fedsgd(network, batch)
    found = gleak.invert(
        update, batch.label_counts, "gleak", iterations=iterations, seed=training, progress=False
    )
    scores = gleak.score(found.images, batch.images)
    true = features(network, batch.images)
    reached = features(network, found.images[scores["match"].tolist()])
    length = true.norm(dim=1).mean()
    spread = (true - true.mean(0)).norm(dim=1).mean() * 2**0.5  # of two draws, not from the mean
    return {
        "psnr": scores["psnr"].mean(),
        "mean_colour": scores["mean_colour"].mean(),
        "apart": (spread / length).item(),
        "error": ((reached - true).norm(dim=1).mean() / length).item(),
    }


def features(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What enters the last linear layer: (K, features)."""
    seen: list[torch.Tensor] = []
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    handle = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(1)))
    with torch.no_grad():
        network(images)
    handle.remove()
    return seen[0]


# -- labels ---------------------------------------------------------------------------------------


def labelled(
    pool: str, training: int, step: int, *, model: str, width: int, size: int, inputs: int
) -> list[dict]:
    """The share of labels that three rules and a guess name: of a gradient, and of weights.

    size: of a batch, with labels from Dirichlet(0.3). inputs: random ones of the paper's rule.
    """
    clients, rows = gleak.load_pool(pool), []
    network = trained_network(model, pool, step, training, width)
    batch = gleak.draw_batch(clients, size, alpha=0.3, seed=batch_seed(training, 1))
    sent: dict[str, gleak.Update] = {
        "gradient": gleak.fedsgd(network, batch),
        "weights": gleak.fedavg(network, batch, shuffle_seed=training, **LOCAL),
    }
    for what, update in sent.items():
        found = counted(update, RULES, inputs=inputs)
        scores = {rule: gleak.score_labels(c, batch.label_counts) for rule, c in found.items()}
        even = scores["gleak"]["even"]
        shares = {rule: score["instance"] for rule, score in scores.items()} | {"even": even}
        rows += [
            {"sent": what, "method": rule, "instance": share, "even": even}
            for rule, share in shares.items()
        ]
    return rows


def stage_means(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over networks and images at each stage: PSNR of each attack, and what to beat."""
    whole = frame[frame.kind == "all"]
    reached = whole.pivot_table("psnr", "step", "attack")[list(ATTACKS)]
    return reached.join(whole.groupby("step")[["thumb8", "mean_colour", "accuracy"]].mean())


def late_means(frame: pd.DataFrame) -> pd.DataFrame:
    """Means at the last stage for images that the network names right, and wrong."""
    late = frame[(frame.step == frame.step.max()) & (frame.kind != "all")]
    reached = late.pivot_table("psnr", "kind", "attack")
    others = late.groupby("kind")[["thumb8", "mean_colour", "own softmax", "closed form"]].mean()
    return reached.join(others).rename_axis("images that the network names")
