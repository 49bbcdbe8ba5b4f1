"""`invert`: one door for all attacks, on gradients and on weights."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch

from gleak.inversion import attack as attacks
from gleak.inversion.attack import ATTACKS, Attack
from gleak.inversion.closed import exact_images, peel
from gleak.inversion.closed.peel import TOLERANCE
from gleak.inversion.drift import classifier_drift, undrifted
from gleak.inversion.objective import Objective
from gleak.inversion.search import Inversion, Search
from gleak.inversion.update_models import Simulation, equivalent, known_model, observed, path
from gleak.labels.features import image_features
from gleak.labels.last_layer import LastLayer
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
    if attack == "gleak" and update_model is not equivalent:
        if snapshots or statistics or precision:
            raise ValueError(
                "gleak on weights works in rounds of its own and takes no snapshots, statistics or "
                'precision; other attacks do, and so does update_model="equivalent"'
            )
        try:
            return undrift(update, labels, update_model, seed, progress, compile, start, overrides)
        except MissingKnowledge:
            pass  # no closed form for this network or batch: match through the update model
    elif settings.features or attack == "gleak":
        if attack == "gleak":
            update = update.as_gradient()  # weights are read in the middle of the way
        try:
            peeled = peel(dataclasses.replace(update, precision=precision / 2 or None), counts)
        except MissingKnowledge:
            if settings.features:
                raise
    if peeled and peeled.is_image:
        if attack != "gleak":
            raise ValueError(
                "the closed form ends at the images: there are no features left to search for; "
                'attack="gleak" returns these images'
            )
        return closed_form(peeled.activations, labels)
    if attack == "gleak" and peeled and not peeled.is_features:
        settings = replace_all(preset_for(peeled, update), overrides)

    def objective(stage):
        return Objective(update, labels, stage, peeled, statistics, compile, update_model, seed)

    return in_stages(objective, settings, seed, start, attack, progress, snapshots)[0]


def in_stages(
    objective, settings, seed, start, name, progress, snapshots=()
) -> tuple[Inversion, bool]:
    """The search of all stages, each from the images of the one before; False after Ctrl-C."""
    histories, kept, stage, best, finished = [], {}, settings, None, True
    while stage and finished:
        first, learnt = (start, ()) if best is None else (best.images, best.learnt)
        before = sum(map(len, histories))
        wanted = [step - before for step in snapshots]
        search = Search(objective(stage))
        best, finished = search.run(seed, first, learnt, name, progress, wanted)
        kept |= {before + step: images for step, images in best.snapshots.items()}
        histories.append(best.history)
        stage = stage.then
    history = pd.concat(histories, ignore_index=True)
    history.index.name = "iteration"
    result = dataclasses.replace(best, history=history, attack=settings, snapshots=kept)
    return result, finished


ROUNDS = 4  # of undoing the drift; all but the last are short
LOOSE = 0.05  # how badly the features may fit the classifier's gradient while drift is left
STRAIGHT = 0.02  # drift of the classifier's gradient below which undoing it brings in more error


def undrift(update, labels, update_model, seed, progress, compile, start, overrides) -> Inversion:
    """`gleak` on the weights of a FedAvg client, in rounds: see `drift`.

    The first images are those that fit the update as one gradient. Where the drift is too large for
    a closed form, they come from matching gradients along the line from W0 to WT. Where it is next
    to nothing, as noise or the images of a round tell, one search from the update as it was is the
    last. The images whose simulated weights come nearest to the client's are kept.

    Raises MissingKnowledge where there is no closed form at all.
    """
    counts = torch.bincount(labels, minlength=update.num_classes)
    middle = flat = update.as_gradient()
    best, nearest, histories, left = None, torch.inf, [], None
    # noise drifts about as far as images do: so it tells whether there is anything to undo
    draws = torch.Generator().manual_seed(seed)
    noise = torch.rand(len(labels), *update.input_shape, generator=draws)
    guessed, _ = undrifted(update, noise, labels, update_model, seed)
    last, settled = False, classifier_drift(middle, guessed) < STRAIGHT
    while not last:
        final = len(histories) >= ROUNDS - 1 or settled
        try:  # the layers before the last are worth their time in the end only
            allowed = TOLERANCE if final else 0.0
            peeled = peel(
                dataclasses.replace(flat, precision=LOOSE / 2), counts, misfit_allowed=allowed
            )
        except MissingKnowledge:
            if best:
                break
            image_features(
                LastLayer.of(flat, precision=torch.inf), counts
            )  # raises where there never are any
            peeled, model, seen = None, path, update
            settings = dataclasses.replace(ATTACKS["inverting-gradients"], iterations=100)
        else:
            model, seen = equivalent, flat
            settings = replace_all(preset_for(peeled, update), overrides)
            total = sum(stage.iterations for stage in stages_of(settings))
            left = total if left is None else left
            last = final
            share = left if last else total // (2 * (ROUNDS - 1))
            settings = replace_all(settings, {"iterations": max(share, 1)})
            left -= share

        def objective(stage, seen=seen, peeled=peeled, model=model):
            return Objective(seen, labels, stage, peeled, None, compile, model, seed)

        found, finished = in_stages(objective, settings, seed, start, "gleak", progress)
        flat, distance = undrifted(update, found.images, labels, update_model, seed)
        histories.append(found.history.assign(distance_of_weights=distance))
        settled = bool(best) and distance > 0.9 * nearest
        if peeled and classifier_drift(middle, flat) < STRAIGHT:
            flat, settled = middle, True
        if distance < nearest:
            best, nearest = found, distance
        start = found.images
        last = last or not finished
    history = pd.concat(histories, ignore_index=True)
    history.index.name = "iteration"
    return dataclasses.replace(best, history=history)


def preset_for(peeled, update) -> Attack:
    """The preset of `gleak` that fits what was peeled."""
    if peeled.deep or (peeled.rough and min(update.input_shape[1:]) >= 64):
        return attacks.GLEAK_COARSE
    return attacks.GLEAK_FEATURES if peeled.rough else attacks.GLEAK_SMOOTH


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
    stages, overrides = stages_of(attack), dict(overrides)
    if "iterations" in overrides:
        if overrides["iterations"] < 1:
            raise ValueError(f"iterations must be at least 1; got {overrides['iterations']}")
        overrides["iterations"] = max(overrides["iterations"] // len(stages), 1)
    result = None
    for stage in reversed(stages):
        result = dataclasses.replace(stage, then=result, **overrides)
    return result


def stages_of(attack: Attack) -> list[Attack]:
    """The attack and all that follows it."""
    return [attack, *stages_of(attack.then)] if attack.then else [attack]


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
