"""Images and labels restored from one network at several stages of its training.

The network is trained on the server's half of a pool; the batches are of the clients' half. PSNR is
in dB; a gain is PSNR above that of a flat colour, the image's own mean.
"""

import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import nn

import gleak
from gleak.labels.features import image_features
from gleak.study.experiments.ablation import SEARCH, family
from gleak.study.runner import product
from gleak.training import accuracy
from gleak.update import GradientUpdate

RULES = ["zlg", "zlg-bias", "gleak"]


def trained(model: str, pool: str, steps: int, width: int) -> nn.Module:
    """The network after so many steps of training; the lenet has ReLU, the convnet this width."""
    name, options = family("lenet-relu" if model == "lenet" else model, width)
    return gleak.trained_model(name, pool, steps=steps, seed=3, **options)


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
    step: int,
    kind: str,
    *,
    model: str,
    width: int,
    size: int,
    seeds: int,
    iterations: int,
    feature_iterations: int,
) -> list[dict]:
    """A row for each image of some batches: what came back, and what the network made of it.

    kind: as for `drawn`. `gleak` is tried on the first two batches, where it has a closed form.
    """
    clients, rows = gleak.load_pool(pool), []
    network = trained(model, pool, step, width)
    known = accuracy(network, clients)
    for seed in range(seeds):
        batch = drawn(clients, network, kind, size, seed)
        if batch is None:
            continue
        update = gleak.fedsgd(network, batch)
        found = gleak.invert(
            update,
            batch.label_counts,
            "inverting-gradients",
            iterations=iterations,
            seed=seed,
            progress=False,
            **SEARCH,
        )
        solved = has_closed_form(update, batch)
        closed = [math.nan] * len(batch)
        if solved and seed < 2:
            closed = by_closed_form(update, batch, feature_iterations, seed)
        about = {
            "gradient": norm(update),
            "distance": found.history["distance"].min(),
            "closed form": solved,
            "accuracy": known,
        }
        sure, shares = certainty(network, batch), gradient_shares(network, batch)
        for k, score in gleak.score(found.images, batch.images).iterrows():
            flat = score["mean_colour"]
            rows.append(
                {
                    "gleak": closed[k],
                    "gleak gain": closed[k] - flat,
                    "seed": seed,
                    "psnr": score["psnr"],
                    "ssim": score["ssim"],
                    "flat": flat,
                    "thumb8": score["thumb8"],
                    "gain": score["psnr"] - flat,
                    **sure[k],
                    "share": shares[k],
                    **about,
                }
            )
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


def by_closed_form(
    update: gleak.Update, batch: gleak.Batch, iterations: int, seed: int
) -> list[float]:
    """PSNR of each image by the attack gleak."""
    found = gleak.invert(
        update, batch.label_counts, "gleak", iterations=iterations, seed=seed, progress=False
    )
    return gleak.score(found.images, batch.images)["psnr"].tolist()


def settings(pools: Sequence[str], steps: Sequence[int]) -> list[dict]:
    """What the chapter runs `attacked` with: all stages, and at the last one what is known or not.

    pools: names of pools. steps: of training.
    """
    return [
        *product(pool=pools, step=steps, kind=["all"]),
        *product(pool=pools, step=steps[-1:], kind=["right", "wrong"]),
    ]


def stage_means(stages: pd.DataFrame) -> pd.DataFrame:
    """Means over the images at each pool's stages; of the length of the gradient the median."""
    by_stage = stages.groupby(["pool", "step"], sort=False)
    columns = ["accuracy", "entropy", "loss", "psnr", "flat", "gain", "ssim", "distance"]
    table = by_stage[[*columns, "closed form", "gleak gain"]].mean()
    return table.assign(gradient=by_stage.gradient.median())


def late_means(frame: pd.DataFrame, last: int) -> pd.DataFrame:
    """Means at the last stage for each pool and kind of images."""
    columns = ["own softmax", "entropy", "gradient", "flat", "gain", "distance"]
    by_kind = frame[frame.step == last].groupby(["pool", "kind"])
    return by_kind[[*columns, "closed form", "gleak gain"]].mean()


def gain_by_kind(late: pd.DataFrame) -> pd.DataFrame:
    """The gain at the last stage: a row for each pool, a column for each kind of images."""
    return late.pivot_table("gain", "pool", "kind").reindex(columns=["all", "right", "wrong"])


# -- labels ---------------------------------------------------------------------------------------


def labelled(
    pool: str, step: int, *, model: str, width: int, size: int, seeds: int, inputs: int
) -> list[dict]:
    """The share of labels that three rules name, and an even guess, on several batches.

    size: of a batch, with labels from Dirichlet(0.3). inputs: random ones of the rule zlg.
    """
    clients, rows = gleak.load_pool(pool), []
    network = trained(model, pool, step, width)
    for seed in range(seeds):
        batch = gleak.draw_batch(clients, size, alpha=0.3, seed=seed)
        update = gleak.fedsgd(network, batch)
        found = gleak.compare_labels(update, RULES, inputs=inputs)
        scores = {rule: gleak.score_labels(c, batch.label_counts) for rule, c in found.items()}
        row = {"seed": seed, "even": scores["zlg"]["even"]}
        rows.append(row | {rule: score["instance"] for rule, score in scores.items()})
    return rows


def named(labels: pd.DataFrame) -> pd.DataFrame:
    """The mean share of labels at each stage, over pools and batches."""
    return labels.groupby("step")[["even", *RULES]].mean()


def label_means(labels: pd.DataFrame) -> pd.DataFrame:
    """The same for each pool, and the deviation over batches of two of the rules (±)."""
    by_stage = labels.groupby(["pool", "step"], sort=False)[["even", *RULES]]
    spread = by_stage.std().add_suffix(" ±")
    return by_stage.mean().join(spread[["zlg ±", "gleak ±"]])
