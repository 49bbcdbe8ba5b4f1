"""Images of one class, with the same label and with different ones: what is lost, and why.

Every image is the mean of the batch plus a difference. Fusion is when an attack restores the mean
and not the differences. The labels of the same images follow a pattern, as PATTERNS names it: how
many of them are equal. PSNR is in dB.
"""

from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

import gleak
from gleak.labels import tolerance
from gleak.labels.features import image_features
from gleak.metrics import psnr
from gleak.study.experiments.ablation import SEARCH, untrained
from gleak.study.experiments.common import fresh_seeds
from gleak.study.runner import product

PATTERNS = ("distinct", "2 + 1 + 1", "3 + 1", "2 + 2", "equal")
SENT = ("float64", "float32", "bfloat16", "bfloat16, told")
ROUNDED = 4 * 2**-9  # what the attacker takes for the error of bfloat16

CLOSED_FORM = "closed form (gleak)"
ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {  # of the cases that have one of their own
    "L2": ("general", SEARCH),
    "local steps": ("inverting-gradients", SEARCH | {"update_model": "unrolled"}),
    "group consistency": ("inverting-gradients", SEARCH | {"restarts": 2, "group": 1.0}),
    CLOSED_FORM: ("gleak", {}),
}


# -- clients --------------------------------------------------------------------------------------


def of_one_class(dataset: str, size: int) -> gleak.Batch:
    """Images of the most frequent class among twenty, `size` at most.

    Of several classes the last: on the first one, remedies of chapter 08a were tried out.
    """
    samples = gleak.load_batch(dataset, indices=range(20))
    most = (samples.label_counts == samples.label_counts.max()).nonzero()[-1]
    chosen = (samples.labels == most).nonzero().flatten()[:size]
    return gleak.Batch(
        samples.images[chosen], samples.labels[chosen], samples.class_names, samples.dataset
    )


def relabelled(equal: gleak.Batch, pattern: str) -> gleak.Batch:
    """The same images with labels in a pattern of PATTERNS; not all are their own."""
    size, major = len(equal), int(equal.labels[0])
    others = [label for label in range(size + 1) if label != major]
    labels = {
        "distinct": others[:size],
        "2 + 1 + 1": [major, major, *others[: size - 2]],
        "2 + 2": [major] * (size // 2) + [others[0]] * (size - size // 2),
        "3 + 1": [major] * (size - 1) + others[:1],
        "equal": [major] * size,
    }
    return gleak.Batch(
        equal.images, torch.tensor(labels[pattern]), equal.class_names, equal.dataset
    )


def with_batch_norm(convnet: nn.Module) -> nn.Sequential:
    """The convnet with batch norm behind every convolution."""
    normalise, own = convnet.children()
    layers: list[nn.Module] = []
    for layer in own.children():
        layers.append(layer)
        if isinstance(layer, nn.Conv2d):
            layers.append(nn.BatchNorm2d(layer.out_channels))
    return nn.Sequential(normalise, nn.Sequential(*layers))


# -- the sum comes back, the differences do not ---------------------------------------------------


def fused(
    case: str,
    labels: str,
    seed: int,
    *,
    dataset: str,
    model: str,
    size: int,
    width: int,
    iterations: int,
    feature_iterations: int,
) -> dict:
    """How much of the mean and of the differences an attack restores.

    case: matching, one of ATTACKS, or what else might break the fusion: classifier only, starts
    apart, or the convnet with batch norm in train or eval mode. labels: a pattern.
    """
    batch = relabelled(of_one_class(dataset, size), labels)
    network = untrained(model, batch, seed, width)
    if case.startswith("batch norm"):
        network = with_batch_norm(network)
    attack, settings = ATTACKS.get(case, ("inverting-gradients", SEARCH))
    if case == "starts apart":
        settings = settings | {"start": apart(batch.images, seed)}
    found = gleak.invert(
        sent(case, network, batch),
        batch.label_counts,
        attack,
        iterations=feature_iterations if case == CLOSED_FORM else iterations,
        seed=seed,
        progress=False,
        **settings,
    )
    return parts(found.images, batch.images)


def sent(case: str, network: nn.Module, batch: gleak.Batch) -> gleak.Update:
    """The client's update in this case."""
    if case == "local steps":  # two, on half of the batch each
        return gleak.fedavg(network, batch, batch_size=max(len(batch) // 2, 1), lr=0.1)
    update = gleak.fedsgd(network, batch, training=case != "batch norm, eval")
    if case == "classifier only":
        name = update.classifier.name
        kept = {key: value for key, value in update.gradient.items() if key.startswith(name)}
        return replace(update, gradient=kept)
    return update


def apart(images: torch.Tensor, seed: int) -> torch.Tensor:
    """Starts far from one another (K, C, H, W): coarse patches for each image."""
    draws = torch.Generator().manual_seed(seed)
    patches = torch.randn(len(images), images.shape[1], 4, 4, generator=draws)
    patches = F.interpolate(patches, images.shape[2:], mode="bilinear")
    return (0.5 + 0.25 * (patches - patches.mean(0))).clamp(0, 1)


def parts(restored: torch.Tensor, images: torch.Tensor) -> dict:
    """The restored mean and differences beside the true ones; images (K, C, H, W) in any order.

    psnr, ssim, flat (each image's mean colour) and mean image (their mean for each of them) are
    means over the images; mean restored is the PSNR of the mean; differences the correlation of the
    restored with the true ones; likeness that of the restored images with the true mean; spread the
    length of the restored differences over that of the true ones.
    """
    scores = gleak.score(restored, images)
    restored = restored[scores["match"].tolist()]
    mean, restored_mean = images.mean(0, keepdim=True), restored.mean(0, keepdim=True)
    return {
        "psnr": scores["psnr"].mean(),
        "ssim": scores["ssim"].mean(),
        "mean image": psnr(mean.expand_as(images), images).mean(),
        "flat": scores["mean_colour"].mean(),
        "mean restored": psnr(restored_mean, mean),
        "differences": correlation(restored - restored_mean, images - mean),
        "likeness": likeness(restored, mean[0]),
        "spread": (restored - restored_mean).norm() / (images - mean).norm(),
    }


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Pearson's, over all entries; 0 where one of the two is constant."""
    a, b = a.flatten() - a.mean(), b.flatten() - b.mean()
    return float(a @ b / (a.norm() * b.norm()).clamp_min(1e-12))


def likeness(images: torch.Tensor, mean: torch.Tensor) -> float:
    """The mean correlation of images (K, C, H, W) with one (C, H, W)."""
    return sum(correlation(image, mean) for image in images) / len(images)


def settings(model: str, seeds: int) -> list[dict]:
    """What the chapter runs `fused` with; the patterns between on fewer networks."""
    both, between = ["distinct", "equal"], PATTERNS[1:-1]
    return [
        *product(case=["matching", "L2", CLOSED_FORM], labels=both, seed=fresh_seeds(seeds)),
        *product(case=["matching"], labels=between, seed=fresh_seeds(min(seeds, 2))),
    ]


def remedy_settings(model: str, seeds: int, few_seeds: int) -> list[dict]:
    """What its appendix runs: what else might break the fusion; batch norm on the convnet alone.

    seeds: networks of those that a verdict judges; few_seeds: of the others.
    """
    both, some = ["distinct", "equal"], fresh_seeds(few_seeds)
    norm = ["batch norm, train", "batch norm, eval"] if model == "convnet" else []
    return [
        *product(case=["local steps", *norm], labels=both, seed=fresh_seeds(seeds)),
        *product(case=["matching", "classifier only"], labels=both, seed=some),
        *product(case=["group consistency", "starts apart"], labels=["equal"], seed=some),
    ]


def means(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds for each case and pattern, in the order in which they were run."""
    columns = ["psnr", "ssim", "mean image", "flat"]
    columns += ["mean restored", "differences", "likeness", "spread"]
    return frame.groupby(["case", "labels"], sort=False)[columns].mean()


# -- why: one slope for all -----------------------------------------------------------------------


def slopes(network: nn.Module, batch: gleak.Batch) -> list[float]:
    """The mean cosine between two images' slopes of the loss, at each layer's output."""
    kept: list[torch.Tensor] = []

    def keep(layer: nn.Module, inputs: tuple, out: torch.Tensor) -> None:
        kept.append(out)

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    loss = F.cross_entropy(network(batch.images), batch.labels)
    for hook in hooks:
        hook.remove()
    cosines = []
    for slope in torch.autograd.grad(loss, kept):
        flat = F.normalize(slope.flatten(1), dim=1)
        between = flat @ flat.T
        cosines.append(float((between.sum() - between.trace()) / (len(flat) * (len(flat) - 1))))
    return cosines


# -- in the fifth digit they are apart ------------------------------------------------------------


def separated(
    network: str, labels: str, sent: str, seed: int, *, dataset: str, size: int, width: int
) -> dict:
    """The relative errors of the features in closed form, in a gradient of this precision.

    sent: one of SENT; told: the attacker allows for the rounding. The errors are 1 where there is
    no answer. mean feature: the error of the mean of the true ones in place of each.
    """
    batch = relabelled(of_one_class(dataset, size), labels)
    kind = torch.float64 if sent == "float64" else torch.float32
    update = gleak.fedsgd(untrained(network, batch, seed, width).to(kind), batch)
    weight, _ = update.classifier_gradient()
    values = torch.linalg.svdvals(weight.double())
    if sent.startswith("bfloat16"):
        rounded = {name: value.bfloat16().float() for name, value in update.gradient.items()}
        update = replace(update, gradient=rounded)
    told = ROUNDED if sent.endswith("told") else 0.0
    # untold, the attacker takes the digits for those of float32
    update = replace(update, precision=max(told / 2, tolerance.of_dtype(kind)))
    truth = update.forward(batch.images.to(kind))[0].double()
    sizes = truth.norm(dim=1)
    try:
        found, _ = image_features(update, batch.label_counts, attempts=2)
        errors = (torch.cdist(found, truth) / sizes).amin(0).clamp_max(1)
    except gleak.MissingKnowledge:
        errors = torch.ones(len(batch))
    return {
        "worst": errors.max(),
        "best": errors.min(),
        "mean feature": ((truth - truth.mean(0)).norm(dim=1) / sizes).max(),
        "second singular value": values[1] / values[0],
    }


def digit_settings(seeds: int) -> list[dict]:
    """What the chapter runs `separated` with."""
    patterns = ["distinct", "2 + 1 + 1", "equal"]
    return product(
        network=["convnet", "lenet"], labels=patterns, sent=SENT, seed=fresh_seeds(seeds)
    )


def digit_errors(digits: pd.DataFrame, which: str) -> pd.DataFrame:
    """Median over the seeds of the worst or the best feature's error, a column for each of SENT."""
    by = ["network", "labels"]
    errors = digits.pivot_table(which, by, "sent", aggfunc="median")[list(SENT)]
    for column in ("mean feature", "second singular value"):
        errors[column] = digits[digits.sent == "float64"].groupby(by)[column].median()
    return errors
