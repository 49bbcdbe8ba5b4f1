"""Images from FedSGD gradients: the landscape, the closed form, and what a search finds."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import gleak
from gleak.data import Batch
from gleak.inversion import simulate
from gleak.inversion.closed.peel import Peeled
from gleak.inversion.distances import cosine
from gleak.inversion.finite_difference import norm, slopes
from gleak.inversion.presets import GLEAK_FEATURES
from gleak.labels.features import image_features
from gleak.study.experiments.searches import samples, sent
from gleak.update import Update


def gradient_moved(
    dataset: str, indices: Sequence[int], model: str, noise: float, seed: int
) -> dict[str, float]:
    """How far the gradient goes, relative to itself, when noise is added to the client's images.

    noise: standard deviation, in units of the pixels' range.
    """
    batch = gleak.load_batch(dataset, indices=indices)
    aside = torch.randn(batch.images.shape, generator=torch.Generator().manual_seed(seed))
    update = sent(model, batch, seed)
    parameters, observed = list(update.model.parameters()), list(update.gradient.values())
    found = simulate(update.model, parameters, batch.images + noise * aside, batch.labels)
    zero = torch.tensor(0.0)
    change = sum(((a - b).square().sum() for a, b in zip(found, observed, strict=True)), zero)
    return {"change": (change / sum((b.square().sum() for b in observed), zero)).sqrt().item()}


def peeled_error(peeled: Peeled | None, batch: Batch) -> float:
    """Relative error of peeled activations; nan where nothing was peeled."""
    if peeled is None:
        return float("nan")
    with torch.no_grad():
        truth = peeled.trunk(batch.images[batch.labels.argsort(stable=True)])
    return ((peeled.activations - truth).norm() / truth.norm()).item()


def behind_pooling(
    dataset: str, index: int, model: str, seed: int, *, iterations: int
) -> dict[str, float | bool]:
    """One image, searched for with the activations behind a max-pooling, and as `gleak` does.

    found: whether the places of the maxima were; plain, gleak: PSNR in dB, by as many iterations.
    """
    batch = gleak.load_batch(dataset, indices=[index])
    update = sent(model, batch, seed)
    settings: Any = {"iterations": iterations, "seed": seed, "progress": False}
    plain = gleak.invert(update, batch.label_counts, GLEAK_FEATURES, **settings)
    found = gleak.invert(update, batch.label_counts, "gleak", **settings)
    scores = gleak.score(found.images, batch.images)
    return {
        "found": not found.fell_back,
        "plain": gleak.score(plain.images, batch.images)["psnr"].item(),
        "gleak": scores["psnr"].item(),
        "thumb8": scores["thumb8"].item(),
    }


def twins(dataset: str, indices: Sequence[int], model: str, seed: int) -> dict[str, float]:
    """Features of single images in closed form where the last two labels are equal.

    indices: in the order of the labels, but for the two that are equal. likeness: the largest
    difference of the softmax of those two; error: of the features of all, the worst relative one.
    """
    batch = gleak.load_batch(dataset, indices=indices)
    update = sent(model, batch, seed)
    found, probabilities = image_features(update, batch.label_counts)
    features = update.forward(batch.images)[0].double()
    apart = torch.cdist(found, features) / features.norm(dim=1)
    return {
        "likeness": (probabilities[-2] - probabilities[-1]).abs().max().item(),
        "error": apart.min(0).values.max().item(),
    }


class Counter(TorchDispatchMode):
    """Adds up the operations of convolutions and matrix products."""

    total: float = 0

    def __torch_dispatch__(
        self,
        function: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        if count:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def operations(
    update: Update, counts: torch.Tensor, attack: str, iterations: int, **settings: Any
) -> float:
    """Floating point operations of a whole run, from a shorter and a longer one."""
    totals = []
    for few in (8, 16):
        with Counter() as counter:
            gleak.invert(update, counts, attack, iterations=few, progress=False, **settings)
        totals.append(counter.total)
    return totals[0] + (totals[1] - totals[0]) / 8 * (iterations - 8)


def saved_operations(update: Update, counts: torch.Tensor) -> float:
    """Share of the operations of matching that the finite difference saves."""
    exact, difference = (
        operations(update, counts, "inverting-gradients", 16, derivative=kind)
        for kind in ("exact", "difference")
    )
    return 1 - difference / exact


def difference_error(
    dataset: str, indices: Sequence[int], model: str, seed: int
) -> dict[str, float]:
    """Relative error of the difference by the images: pieces held, and units left free."""
    batch = gleak.load_batch(dataset, indices=indices)
    start = torch.rand(batch.images.shape, generator=torch.Generator().manual_seed(seed))
    labels = batch.labels.sort().values
    update = sent(model, batch, seed)
    weights = {key: weight.detach() for key, weight in update.model.named_parameters()}
    images = start.clone().requires_grad_()
    gradient = simulate(update.model, list(update.model.parameters()), images, labels)
    distance = cosine(gradient, list(update.gradient.values()))
    exact, *v = torch.autograd.grad(distance, [images, *gradient])
    small = 3e-5 * norm([*weights.values()]) / norm(v)
    moved = [weight + small * along for weight, along in zip(weights.values(), v, strict=True)]
    here, pieces = slopes(update.model, list(weights), [start, labels, *weights.values()], [0], [])
    row = {}
    for kind, held in (("pieces held", pieces), ("units free", [])):
        there, _ = slopes(update.model, list(weights), [start, labels, *moved], [0], held)
        change = (there[0] - here[0]) / small
        row[kind] = ((change - exact).norm() / exact.norm()).item()
    return row


def lenet_equations(update: Update) -> dict[str, int]:
    """What the gradient of the LeNet with sigmoids says of its images, by counting.

    Once the activations behind its two first convolutions are known, the layers behind them say no
    more.
    """
    sizes = [parameter.numel() for parameter in update.model.parameters()]
    channels, height, width = update.input_shape
    side = (width + 3) // 4
    return {
        "equations": sum(sizes[:4]) + update.num_samples * 12 * side * side,
        "unknowns": update.num_samples * channels * height * width,
        "parameters": sum(sizes),
    }


def recorded(
    model: str,
    training: bool,
    data: str,
    which: int | Sequence[int],
    attack: str,
    settings: Mapping[str, Any],
    seed: int,
) -> dict[str, float]:
    """A row of the recorded table: one attack, whose start and the weights the seed draws.

    data, which: as for `samples`; settings: of the attack. A search whose loss stops being finite
    counts with the best images that it had.
    """
    batch = samples(data, which)
    update = sent(model, batch, seed, training)
    began = time.process_time()
    try:
        result = gleak.invert(
            update, batch.label_counts, attack, seed=seed, progress=False, **settings
        )
    except gleak.inversion.InversionFailed as error:
        print(error, file=sys.stderr)
        result = error.best
    seconds = time.process_time() - began
    scores = gleak.score(result.images, batch.images)
    return {
        "iterations": len(result.history),
        "psnr": round(scores["psnr"].mean(), 3),
        "lowest": round(scores["psnr"].min(), 3),
        "ssim": round(scores["ssim"].mean(), 4),
        "thumb8": round(scores["thumb8"].mean(), 3),
        "mean_colour": round(scores["mean_colour"].mean(), 3),
        "cpu_seconds": round(seconds, 1),
    }
