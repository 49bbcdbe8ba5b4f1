"""`invert`: one door for all attacks, on gradients and on weights."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from gleak.inversion import attack as attacks
from gleak.inversion.attack import ATTACKS, Attack
from gleak.inversion.exact import exact_images
from gleak.inversion.objective import Objective
from gleak.inversion.peel import peel
from gleak.inversion.search import Inversion, Search
from gleak.inversion.update_models import Simulation, equivalent, known_model, observed
from gleak.update import MissingKnowledge, Update


def list_attacks() -> list[str]:
    """The names that `invert` takes."""
    return [*ATTACKS, "exact"]


def invert(
    update: Update,
    counts: torch.Tensor | Sequence[int],
    attack: str = "inverting-gradients",
    *,
    iterations: int | None = None,
    seed: int = 0,
    progress: bool = True,
    start: torch.Tensor | str | None = None,
    statistics: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
    compile: bool = False,
    update_model: str | Callable[..., Simulation] = "equivalent",
    snapshots: Sequence[int] = (),
    precision: float = 0.0,
    **overrides: float | str,
) -> Inversion:
    """Images that, with labels as counted, make the client's update.

    counts: (N,) how often each class occurs, summing to K (see `restore_labels`).
    attack: a preset (see `list_attacks`); "gleak" picks by what the update gives away in closed
    form, "exact" is closed form alone.
    iterations: evaluations of the loss and its gradient; the attack's own number by default.
    start: images (K, C, H, W) to start from, in ascending order of their labels, or the name of a
    kind of start.
    statistics: name of a batch norm layer -> mean and variance of what entered it at the client,
    for attacks that use them; the model's running statistics by default.
    compile: run the step through torch.compile; without a compiler a note says so.
    update_model: how a candidate batch is turned into what a FedAvg client sends (see
    `list_update_models`): a name, or one of the functions of `gleak.inversion.update_models` with
    settings of its own, such as `partial(path, points=5)`. FedSGD knows "equivalent" alone.
    snapshots: iterations whose images are kept beside the result, 0 for the start.
    precision: the relative error of what was sent, where it was rounded or carries noise; closed
    forms otherwise take no gradient that has not all its digits.
    overrides: single settings of the attack, such as `tv=1e-3` or `optimizer="lbfgs"`.

    The images with the smallest loss are returned, also when Ctrl-C ends the search early.

    Raises ValueError for an unknown attack, update model or override, for counts that do not fit
    the update and for an update of zero; MissingKnowledge where "exact" has no closed form or the
    client told less than the update model needs; InversionFailed when the loss stops being finite.
    """
    labels = labels_of(counts, update)
    update_model = known_model(update, update_model)
    if not any(gradient.any() for gradient in observed(update)[0].values()):
        raise ValueError("the update's gradient is zero: there is nothing to match")
    labels = labels.to(update.classifier.weight.device)
    counts = torch.bincount(labels, minlength=update.num_classes)
    if attack == "exact":
        if overrides:
            raise ValueError("exact is a closed form; it has nothing to override")
        return closed_form(exact_images(update, counts), labels)
    if isinstance(start, str):
        overrides["start"], start = start, None
    if iterations is not None:
        overrides["iterations"] = iterations
    settings = settings_of(attack, overrides)
    peeled = None
    if settings.features or (attack == "gleak" and update_model is equivalent):
        try:
            peeled = peel(update, counts, precision)
        except MissingKnowledge:
            if settings.features:
                raise
    if attack == "gleak" and peeled and peeled.depth < len(peeled.layers) - 1:
        if peeled.depth == 0:
            return closed_form(peeled.activations, labels)
        pieces = peeled.layers[: peeled.depth]
        rough = any(isinstance(layer, nn.ReLU | nn.MaxPool2d) for layer in pieces)
        preset = attacks.GLEAK_FEATURES if rough else attacks.GLEAK_SMOOTH
        if any(isinstance(layer, BasicBlock) for layer in pieces):
            preset = attacks.GLEAK_RESIDUAL
        settings = replace_all(preset, overrides)

    histories, kept, stage, best = [], {}, settings, None
    while stage:
        first, learnt = (start, ()) if best is None else (best.images, best.learnt)
        objective = Objective(
            update, labels, stage, peeled, statistics, compile, update_model, seed
        )
        before = sum(map(len, histories))
        wanted = [step - before for step in snapshots]
        best, finished = Search(objective).run(seed, first, learnt, attack, progress, wanted)
        kept |= {before + step: images for step, images in best.snapshots.items()}
        histories.append(best.history)
        stage = stage.then if finished else None
    history = pd.concat(histories, ignore_index=True)
    history.index.name = "iteration"
    return dataclasses.replace(best, history=history, attack=settings, snapshots=kept)


def closed_form(images: torch.Tensor, labels: torch.Tensor) -> Inversion:
    """An Inversion that needed no search."""
    history = pd.DataFrame({"loss": pd.Series(dtype=float), "distance": pd.Series(dtype=float)})
    history.index.name = "iteration"
    return Inversion(images.clamp(0, 1).float().cpu(), labels.cpu(), history, None)


def settings_of(attack: str, overrides: Mapping[str, float | str]) -> Attack:
    """The attack by name, with single settings replaced."""
    attacks.check_known("attack", attack, list_attacks())
    known = [f.name for f in dataclasses.fields(Attack) if f.name not in ("reference", "then")]
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise ValueError(f"{attack} has no {', '.join(unknown)}; known: {', '.join(known)}")
    return replace_all(ATTACKS[attack], overrides)


def replace_all(attack: Attack, overrides: Mapping[str, float | str]) -> Attack:
    """The attack with settings replaced, in all its stages; iterations are shared out evenly."""
    stages = [attack]
    while stages[-1].then:
        stages.append(stages[-1].then)
    overrides = dict(overrides)
    if "iterations" in overrides:
        if overrides["iterations"] < 1:
            raise ValueError(f"iterations must be at least 1; got {overrides['iterations']}")
        overrides["iterations"] = max(overrides["iterations"] // len(stages), 1)
    result = None
    for stage in reversed(stages):
        result = dataclasses.replace(stage, then=result, **overrides)
    return result


def labels_of(counts: torch.Tensor | Sequence[int], update: Update) -> torch.Tensor:
    """Labels (K,) in ascending order from counts (N,); the order of a batch leaves no trace."""
    counts = torch.as_tensor(counts)
    if counts.shape != (update.num_classes,) or counts.is_floating_point() or counts.min() < 0:
        raise ValueError(
            f"counts must be {update.num_classes} whole numbers >= 0, one for each class; "
            f"got {counts.dtype} of shape {tuple(counts.shape)}"
        )
    if counts.sum() != update.num_samples:
        raise ValueError(
            f"counts sum to {counts.sum()}, but the update has {update.num_samples} samples"
        )
    return torch.repeat_interleave(torch.arange(len(counts)), counts.cpu())
