"""How much of the client's images came back, next to what anyone could have had without a leak."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom
from torch.nn import functional as F
from torchmetrics.functional.image import (
    learned_perceptual_image_patch_similarity,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from gleak.client import fedsgd
from gleak.data import Batch
from gleak.update import MissingKnowledge, Update, WeightsUpdate

CAP = 100.0  # dB; two equal images have no finite PSNR


ALEXNET = "alexnet-owt-7be5be79.pth"  # torchvision's name for the weights under LPIPS


def score(
    restored: torch.Tensor, originals: torch.Tensor, *, perceptual: bool = False
) -> pd.DataFrame:
    """One row for each original, with its restoration found by Hungarian matching on PSNR.

    Parameters
    ----------
    restored, originals : (K, C, H, W)
        Images in [0, 1].
    perceptual
        Whether to add a column `lpips` (see `gleak.metrics.lpips`).

    Returns
    -------
    DataFrame
        Columns: `match`, the index of the restoration; `psnr` (dB, at most 100) and `ssim`; and the
        PSNR of pictures that leak nothing of the detail: `mean_colour`, one flat colour, and the
        thumbnails `thumb4` and `thumb8` of 4x4 and 8x8 pixels.

    Raises
    ------
    ValueError
        When shapes differ or values are not in [0, 1].
    """
    if restored.shape != originals.shape or originals.ndim != 4:
        raise ValueError(
            "restored and originals must both be (K, C, H, W); "
            f"got {tuple(restored.shape)} and {tuple(originals.shape)}"
        )
    for name, images in (("restored", restored), ("originals", originals)):
        if not (images.min() >= 0 and images.max() <= 1):
            raise ValueError(f"{name} must lie in [0, 1]")
    restored = restored.to(originals)
    pairs = torch.stack([psnr(restored, original.expand_as(restored)) for original in originals])
    rows, match = linear_sum_assignment(pairs.cpu(), maximize=True)
    learned = {"lpips": lpips(restored[match], originals).tolist()} if perceptual else {}
    return pd.DataFrame(
        {
            "match": match,
            "psnr": pairs[rows, match].tolist(),
            "ssim": ssim(restored[match], originals).tolist(),
            **learned,
            "mean_colour": psnr(thumbnail(originals, 1), originals).tolist(),
            "thumb4": psnr(thumbnail(originals, 4), originals).tolist(),
            "thumb8": psnr(thumbnail(originals, 8), originals).tolist(),
        },
        index=pd.RangeIndex(len(originals), name="original"),
    )


def identified(
    restored: torch.Tensor,
    originals: torch.Tensor,
    others: torch.Tensor,
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Whether each restoration is nearer to its original than to any other image, (K,) bool.

    The mean is the identification rate: how often somebody who has all these images at hand, such
    as a register of patients, would name the right one. Guessing names one of K + M.

    Parameters
    ----------
    restored, originals : (K, C, H, W)
        Images in [0, 1]; restorations are matched to originals as `score` does.
    others : (M, C, H, W)
        Images with which the originals could be mixed up, none of them among these.
    distance
        Of two batches, to (K,), smaller for images more alike; by default the mean squared error.

    Raises
    ------
    ValueError
        When shapes differ, or an original is among the others.
    """
    if others.ndim != 4 or others.shape[1:] != originals.shape[1:]:
        raise ValueError(
            f"others must be (M, {', '.join(map(str, originals.shape[1:]))}); "
            f"got {tuple(others.shape)}"
        )
    others = others.to(originals)
    if any((others == original).flatten(1).all(1).any() for original in originals):
        raise ValueError("an original is among the others: no rate could tell the two apart")
    match = score(restored, originals)["match"].tolist()
    pool = torch.cat([originals, others])
    between = distance or (lambda images, targets: (images - targets).square().mean((1, 2, 3)))
    nearest = [
        between(image.expand_as(pool), pool).argmin().item()
        for image in restored.to(originals)[match]
    ]
    return torch.tensor(nearest) == torch.arange(len(originals))


def score_labels(counts: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """How near restored label counts are to the true ones.

    Parameters
    ----------
    counts, truth : (N,)
        Both sum to K.

    Returns
    -------
    dict
        `instance`: sum_n min(counts, truth) / K, the share of labels that are right; `chance`: what
        K labels drawn uniformly at random score of that on average; `corrected`: (instance -
        chance) / (1 - chance), 0 at guessing and 1 when exact; `even`: what K / N labels for each
        class score, a rest dealt out at random, on average; `exact`: 1 if all counts are right;
        `LeAcc`: the share of classes whose presence is right; `LnAcc`: the share of classes whose
        count is right.

    Raises
    ------
    ValueError
        When shapes or sums differ.
    """
    counts, truth = torch.as_tensor(counts), torch.as_tensor(truth)
    if counts.shape != truth.shape or counts.sum() != truth.sum():
        raise ValueError(
            f"counts of {tuple(counts.shape)} summing to {counts.sum()} against a truth of "
            f"{tuple(truth.shape)} summing to {truth.sum()}"
        )
    total, classes = int(truth.sum()), len(truth)
    instance = torch.minimum(counts, truth).sum().item() / total
    # E min(X, t) = sum over j = 1 ... t of P(X >= j), with X binomial
    at_least = binom.sf(np.arange(total), total, 1 / classes).cumsum()
    chance = sum(at_least[t - 1] for t in truth.tolist() if t > 0) / total
    floor, rest = divmod(total, classes)
    even = truth.clamp_max(floor).sum().item() + rest / classes * (truth > floor).sum().item()
    return {
        "instance": instance,
        "chance": float(chance),
        "corrected": float((instance - chance) / (1 - chance)),
        "even": even / total,
        "exact": float(torch.equal(counts, truth)),
        "LeAcc": ((counts > 0) == (truth > 0)).float().mean().item(),
        "LnAcc": (counts == truth).float().mean().item(),
    }


def score_drift(update: Update, batch: Batch) -> dict[str, float]:
    """How far a FedAvg client went, as its own images tell.

    Parameters
    ----------
    update
        Weights after local training.
    batch
        The images that the client trained on.

    Returns
    -------
    dict
        `moved`: `|WT - W0| / |W0|`; `cosine`: of the gradients of the whole batch at W0 and at WT.

    Raises
    ------
    MissingKnowledge
        For an update that holds a gradient.
    """
    if not isinstance(update, WeightsUpdate):
        raise MissingKnowledge("drift needs the weights after local training, not a gradient")
    size = torch.stack([update.model.get_parameter(n).norm() for n in update.weights_after]).norm()
    last = copy.deepcopy(update.model)
    last.load_state_dict(dict(update.weights_after), strict=False)
    start, end = (
        torch.cat([g.flatten() for g in fedsgd(m, batch, training=m.training).message().values()])
        for m in (update.model, last)
    )
    cosine = F.cosine_similarity(start, end, dim=0)
    return {"moved": update.norm() / size.item(), "cosine": cosine.item()}


def psnr(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio (K,) in dB for images in [0, 1], at most 100."""
    values = peak_signal_noise_ratio(
        images, targets, data_range=1.0, dim=(1, 2, 3), reduction="none"
    )
    return values.clamp_max(CAP)


def ssim(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Structural similarity (K,), at most 1, with the usual 11x11 Gaussian window."""
    values = structural_similarity_index_measure(images, targets, data_range=1.0, reduction="none")
    assert isinstance(values, torch.Tensor)  # a pair only where it is asked for
    return values.reshape(-1)


def lpips(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Learned perceptual distance (K,) on AlexNet, 0 for equal images (Zhang et al. 2018).

    Images below 64 pixels are enlarged to that. Nothing is downloaded: AlexNet's ImageNet weights
    must be where torch.hub keeps them. Without them a note says so, and all values are NaN.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    if not file.exists():
        print(f"no LPIPS: it needs AlexNet's weights, {ALEXNET}, in torch.hub's checkpoints")
        return torch.full((len(images),), torch.nan)
    side = max(64, *images.shape[-2:])
    distances = []
    for image, target in zip(images, targets, strict=True):
        pair = torch.stack([image, target]).expand(-1, 3, -1, -1)
        pair = F.interpolate(pair, size=(side, side), mode="bilinear", align_corners=False)
        first, second = pair.clamp(0, 1).split(1)
        distances.append(
            learned_perceptual_image_patch_similarity(first, second, "alex", normalize=True)
        )
    return torch.stack(distances)


def thumbnail(images: torch.Tensor, side: int) -> torch.Tensor:
    """The images as an attacker with a side x side thumbnail would show them: smoothly enlarged."""
    small = F.interpolate(images, size=(side, side), mode="area")
    return F.interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)
