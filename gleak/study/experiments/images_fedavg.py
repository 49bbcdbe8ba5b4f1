"""Images from FedAvg weights: the drift, attacks that undo it, and many ways of training."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import nn

import gleak
from gleak.data import Batch
from gleak.inversion import Inversion, equivalent, path, sme, unrolled
from gleak.inversion.distances import l2
from gleak.inversion.gradients import local_gradient
from gleak.study.experiments.common import FIRST_SEED
from gleak.study.experiments.searches import (
    DISTINCT,
    SIXTEEN,
    one_of_each_class,
    one_wrong,
    samples,
    searched,
    sent,
)
from gleak.update import Update, WeightsUpdate

MIDDLE = partial(path, points=1)  # one gradient in the middle of the way
MATCHING = "inverting-gradients"  # what matches through the update models
CROPS = "imagenet-crops"  # the pool of the trained networks

Way = Sequence[float]  # epochs, batch size (0: all in one), learning rate


def trained_by(
    network: nn.Module, batch: Batch, way: Way, shuffle_seed: int = FIRST_SEED
) -> WeightsUpdate:
    """The update of a client that trained in such a way."""
    epochs, size, lr = way
    return gleak.fedavg(
        network,
        batch,
        epochs=int(epochs),
        batch_size=int(size) or None,
        lr=lr,
        shuffle_seed=shuffle_seed,
    )


def mismatch(
    update: WeightsUpdate, update_model: Any, batch: Batch, *learnt: torch.Tensor
) -> float:
    """The relative distance of the update that the client's images would have made."""
    simulation = update_model(update, list(update.weights_after), 0)
    gradient = partial(local_gradient, update.model)
    found = simulation.run(gradient, batch.images, batch.labels, *learnt)
    return l2(found, list(update.equivalent_gradient().values())).sqrt().item()


def fit(
    dataset: str, indices: Sequence[int], model: str, lr: float, local_epochs: int
) -> dict[str, float]:
    """The drift of a client, and how far each update model is off, given its true images."""
    batch = gleak.load_batch(dataset, indices=indices)
    network = gleak.build_model(model, batch, seed=FIRST_SEED)
    update = trained_by(network, batch, (local_epochs, 0, lr))
    middle = torch.tensor(0.5, requires_grad=True)
    return {
        **gleak.score_drift(update, batch),
        "equivalent": mismatch(update, equivalent, batch),
        "middle": mismatch(update, MIDDLE, batch),
        "path": mismatch(update, path, batch),
        "sme": mismatch(update, sme, batch, middle),
        "unrolled": mismatch(update, unrolled, batch),
    }


def settings(ways: Sequence[Way], matching: int, own: int) -> list[dict[str, Any]]:
    """Matching at the start and in the middle, and `gleak`, on all ways.

    matching, own: iterations of both.
    """
    attacks = [(MATCHING, "equivalent", matching), (MATCHING, "middle", matching)]
    attacks += [("gleak", "unrolled", own)]
    names = ("attack", "update_model", "iterations")
    return [
        {"way": way, **dict(zip(names, attack, strict=True)), "seed": FIRST_SEED}
        for way in ways
        for attack in attacks
    ]


def attacked(
    model: str,
    batch: Batch,
    way: Way,
    attack: str,
    update_model: str,
    iterations: int,
    seed: int,
) -> tuple[dict[str, float], tuple[Inversion, pd.DataFrame]]:
    """One attack on one client: a row, and the images with their scores.

    The seed draws the network, the order of the client's samples and the start.
    """
    update = trained_by(gleak.build_model(model, batch, seed=seed), batch, way, seed)
    began = time.process_time()
    through = MIDDLE if update_model == "middle" else update_model
    found, scores = searched(
        update,
        batch.label_counts,
        batch,
        attack,
        update_model=through,
        iterations=iterations,
        seed=seed,
    )
    seconds = time.process_time() - began
    means = scores[["psnr", "ssim", "mean_colour", "thumb8"]].mean().to_dict()
    measured = {**gleak.score_drift(update, batch), **means}
    good = (scores.psnr > 20).mean().item()
    return {**measured, "good": good, "seconds": round(seconds, 1)}, (found, scores)


def from_gradient(
    dataset: str, indices: Sequence[int], model: str, iterations: int, seed: int
) -> dict[str, float]:
    """What `gleak` finds in the gradient of the same client."""
    batch = gleak.load_batch(dataset, indices=indices)
    _, scores = searched(
        sent(model, batch, seed),
        batch.label_counts,
        batch,
        "gleak",
        iterations=iterations,
        seed=seed,
    )
    return {"psnr": scores.psnr.mean()}


def of_one_step(
    dataset: str, indices: Sequence[int], model: str, kind: str, attack: str, iterations: int
) -> dict[str, float]:
    """One step on all images, sent as a gradient (kind FedSGD) or as weights (FedAvg)."""
    batch = gleak.load_batch(dataset, indices=indices)
    network = gleak.build_model(model, batch, seed=FIRST_SEED)
    update = (
        gleak.fedsgd(network, batch) if kind == "FedSGD" else gleak.fedavg(network, batch, lr=0.001)
    )
    through = "unrolled" if (attack, kind) == ("gleak", "FedAvg") else "equivalent"
    _, scores = searched(
        update,
        batch.label_counts,
        batch,
        attack,
        update_model=through,
        iterations=iterations,
        seed=FIRST_SEED,
    )
    return {"psnr": scores.psnr.mean()}


def other_client(
    dataset: str, indices: Sequence[int], model: str, way: Way, steps: int
) -> tuple[WeightsUpdate, Batch]:
    """A client with the network as drawn; with `steps`, with a trained convnet, and crops."""
    if steps:
        batch = one_of_each_class(CROPS, len(indices))
        network = gleak.trained_model("convnet", CROPS, steps=steps, seed=FIRST_SEED)
    else:
        batch = gleak.load_batch(dataset, indices=indices)
        network = gleak.build_model(model, batch, seed=FIRST_SEED)
    return trained_by(network, batch, way), batch


def labels_right(**client: Any) -> bool:
    """Whether all labels of such a client are restored; client: as for `other_client`."""
    update, batch = other_client(**client)
    return bool((known_counts(update, batch, "restored") == batch.label_counts).all())


def other_case(labels: str, attack: str, iterations: int, **client: Any) -> dict[str, float]:
    """One attack where labels are not given, or the network is trained.

    labels: given, restored or wrong; client: as for `other_client`.
    """
    update, batch = other_client(**client)
    counts = known_counts(update, batch, labels)
    through = {"update_model": "unrolled"} if attack == "gleak" else {}
    _, scores = searched(
        update, counts, batch, attack, iterations=iterations, seed=FIRST_SEED, **through
    )
    return scores[["psnr", "thumb8"]].mean().to_dict()


def known_counts(update: Update, batch: Batch, labels: str) -> torch.Tensor:
    """(N,) the true counts, those restored from the weights, or true ones but for one label."""
    if labels == "restored":
        return gleak.restore_labels(update, "gleak")
    return one_wrong(batch) if labels == "wrong" else batch.label_counts


SCAN = [0.25, 0.5, 1, 2, 4]  # times the true rate, where it is not told


def recorded(
    network: str,
    steps: int,
    images: int,
    epochs: int,
    batch_size: int,
    lr: float,
    labels: str,
    attack: str,
    seed: int,
    matching: int,
    own: int,
) -> dict[str, float]:
    """A row of the recorded table; the seed draws weights, the client's order and the start.

    batch_size 0: all in one batch; labels: as for `other_case`; attack: an update model to match
    through, or `gleak`, or one of both that is not told the rate.
    matching, own: iterations of matching, and of `gleak`.
    """
    batch, drawn = recorded_client(network, steps, images, seed)
    update = trained_by(drawn, batch, (epochs, batch_size, lr), seed)
    counts = known_counts(update, batch, labels)
    began = time.process_time()
    found = recorded_attack(update, counts, attack, seed, matching, own)
    seconds = time.process_time() - began
    scores = gleak.score(found, batch.images)
    means = scores[["psnr", "ssim", "thumb8", "mean_colour"]].mean().to_dict()
    measured = gleak.score_drift(update, batch) | means
    measured |= {"lowest": scores.psnr.min(), "above_20": (scores.psnr > 20).mean()}
    order = ["moved", "cosine", "psnr", "lowest", "above_20", "ssim", "thumb8", "mean_colour"]
    row = {name: float(f"{measured[name]:.4g}") for name in order}
    return row | {"cpu_seconds": round(seconds, 1)}


def recorded_client(network: str, steps: int, images: int, seed: int) -> tuple[Batch, nn.Module]:
    """The client's batch and the network that it is sent."""
    if images > len(SIXTEEN):
        batch = gleak.draw_batch(gleak.load_pool(CROPS), images, seed=seed)
    elif steps:
        trained = gleak.trained_model(network, CROPS, steps=steps, seed=seed)
        return one_of_each_class(CROPS, images), trained
    else:
        data, which = ("cifar10", DISTINCT) if images <= 8 else ("cifar100", SIXTEEN)
        batch = samples(data, which[:images])
    return batch, gleak.build_model(network, batch, seed=seed)


def recorded_attack(
    update: Update, counts: torch.Tensor, attack: str, seed: int, matching: int, own: int
) -> torch.Tensor:
    """(K, C, H, W) the restored images."""
    common: dict[str, Any] = {"seed": seed, "progress": False}
    strongest: dict[str, Any] = {"attack": "gleak", "update_model": "unrolled", "iterations": own}
    if attack == "gleak":
        return gleak.invert(update, counts, **strongest, **common).images
    if attack == "gleak, lr scanned":  # the rate whose images lead to the client's weights
        tried = []
        for factor in SCAN:
            guess = replace(update, facts={**update.facts, "lr": factor * update.facts["lr"]})
            try:
                found = gleak.invert(guess, counts, **strongest, **common)
            except gleak.Contradiction:
                continue  # no gradient is as large as this rate would have it
            distance = found.history.get("distance_of_weights", pd.Series([torch.inf])).min()
            tried.append((distance, found.images))
        return min(tried, key=lambda one: one[0])[1]
    if attack == "sme, no lr":
        update = replace(update, facts={})
    through: Any = {"middle": MIDDLE, "sme, no lr": "sme"}.get(attack, attack)
    return gleak.invert(
        update,
        counts,
        MATCHING,
        update_model=through,
        iterations=matching,
        **common,
    ).images
