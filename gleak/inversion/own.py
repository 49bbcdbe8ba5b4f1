"""The study's own attack: what the update gives away in closed form, and a search for the rest.

A vision transformer with learnt positions gives a batch of one away at once, see `embedding`.

One gradient: as many layers as there are closed forms for are peeled off, then images are searched
for that have these activations, from a linear guess where those are many. Where a max-pooling ended
the peeling, they tell its places, more layers follow, and a second search. Where nothing can be
peeled, gradients are matched.

Weights: the drift of local training is undone in rounds, see `drift`; each round reads a gradient.
Where drift or the batch leaves no closed form, gradients are matched through an update model.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch

from gleak.inversion.attack import DEFAULT, Attack, GradientMatching, Options, found_at_once
from gleak.inversion.closed import Patches, Peeled, embedded_image, peel
from gleak.inversion.closed.embedding import missed_by
from gleak.inversion.closed.peel import TOLERANCE, hidden_by_maxima, peel_behind
from gleak.inversion.drift import classifier_drift, undrifted
from gleak.inversion.linear import linear_guess
from gleak.inversion.presets import (
    GLEAK_COARSE,
    GLEAK_DIGITS,
    GLEAK_FEATURES,
    GLEAK_FIRST_GUESS,
    GLEAK_GRADIENT,
    GLEAK_MANY,
    GLEAK_SMOOTH,
)
from gleak.inversion.search import Inversion, joined
from gleak.inversion.update_models import (
    UPDATE_MODELS,
    UpdateModel,
    equivalent,
    known_model,
    name_of,
    path,
    unrolled,
)
from gleak.labels.features import image_features
from gleak.labels.last_layer import LastLayer
from gleak.labels.tolerance import FLOAT32
from gleak.update import GradientUpdate, MissingKnowledge, Update, WeightsUpdate

ROUNDS = 4  # of undoing the drift; all but the last are short
LOOSE = 0.05  # how badly the features may fit the classifier's gradient while drift is left
STRAIGHT = 0.02  # drift of the classifier's gradient below which undoing it brings in more error
FEW_STEPS = 8  # local steps up to which each is matched for itself, where there is no closed form
STARTS = 3  # of a search that gets stuck, at most
STUCK = 1e-4  # error of activations above which it is: 1e-3 to 1e-2, and 1e-6 where it is not
# Activations that are not zero, for each number of an image, from which little is open. A ResNet-18
# has 5, or 3.2; a convnet behind two poolings up to 2.7, and loses by the guess (see image notes).
MANY = 3.0
STATISTICS = 0.1  # weight of batch norm statistics that the client sent, as in GradInversion
LOST = 1e-2  # error of activations above which a search that should find them all did not
# Update models, the strongest first; the facts that each needs decide.
STRONGEST = ("unrolled", "path", "sme")


@dataclass(frozen=True)
class Gleak(Attack):
    """Chooses by what the update offers; the result says which way it went.

    settings: single settings that replace those of the searches it chooses from. peeled: what the
    gradient was peeled to before, where it was; else the attack does it.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    peeled: Peeled | None = field(default=None, repr=False)

    def override(self, **settings: Any) -> "Gleak":
        """With these settings besides; ValueError for those that no search has.

        >>> Gleak().override(tv=0.1).settings
        {'tv': 0.1}
        """
        settings = {**self.settings, **settings}
        GLEAK_GRADIENT.override(**settings)
        return Gleak(settings, self.peeled)

    def run(self, update: Update, labels: torch.Tensor, options: Options = DEFAULT) -> Inversion:
        """Images for labels (K,), by the strongest way that there is: patches, or the layers."""
        reason: tuple[str, ...] = ()
        try:
            patches = embedded_image(update)
            if patches is not None:
                return of_patches(update, labels, patches)
        except MissingKnowledge as error:
            reason = (f"patch embedding: {error}",)
        found = self.by_layers(update, labels, options)
        return replace(found, fell_back=(*reason, *found.fell_back))

    def by_layers(self, update: Update, labels: torch.Tensor, options: Options) -> Inversion:
        """Images by peeling layers, or by matching.

        An update model of the options decides for weights: "equivalent" reads them as one gradient
        in the middle of the client's way, any other serves to undo the drift.
        """
        if not isinstance(update, WeightsUpdate):
            return self.of_gradient(update, labels, options)
        if options.update_model is equivalent:
            return in_the_middle(self.of_gradient(update.as_gradient(), labels, options))
        return self.of_weights(update, labels, options)

    def of_gradient(self, update: Update, labels: torch.Tensor, options: Options) -> Inversion:
        """Images from one gradient: in closed form, by what was peeled, or by matching it."""
        options = replace(options, update_model=options.update_model or equivalent)
        matching = GLEAK_GRADIENT.override(**self.settings)
        fell_back: tuple[str, ...] = ()
        peeled = self.peeled
        try:
            peeled = peeled or peel(update, counts_of(update, labels))
        except MissingKnowledge as error:
            if matching.features:
                raise
            fell_back = (f"closed form: {error}",)
        if peeled and (peeled.is_image or not peeled.is_features):
            matching = preset_for(peeled, update).override(**self.settings)
            if hidden_by_maxima(peeled) and update.precision <= FLOAT32:
                return self.with_maxima(matching, update, labels, options, peeled)
            found = of_many(self.settings, update, labels, options, peeled)
            if found:
                return found
            found = of_peeled(matching, update, labels, options, peeled)
            if peeled.sharp:
                found = with_more_starts(matching, update, labels, options, peeled, found)
            return found
        if peeled:
            fell_back = (f"closed form: it ends at {peeled}; {peeled.ended}",)
        found = with_statistics(matching, update).search(update, labels, options, peeled)
        return replace(found, way=way_of(found, update), fell_back=fell_back)

    def with_maxima(
        self,
        matching: GradientMatching,
        update: Update,
        labels: torch.Tensor,
        options: Options,
        peeled: Peeled,
    ) -> Inversion:
        """Images in searches by turns: those of one tell the places of maxima, these the layers
        before, whose activations are the next one's.

        Each but the last has two thirds of the steps that are left. Where images do not tell the
        places, another search goes on for what was known. Each image is that of the search that
        comes nearer to what was known before.
        """
        left = sum(stage.iterations for stage in matching.stages)
        first = matching.override(iterations=max(2 * left // 3, 1))
        found = turn = first.search(update, labels, options, peeled)
        while turn.finished:
            options, left = after(options, turn), max(left - len(turn.history), 1)
            try:
                further = peel_behind(peeled, turn.images)
            except MissingKnowledge as error:
                options = replace(options, start=turn.images)
                more = matching.override(iterations=left).search(update, labels, options, peeled)
                found = nearer(found, more, peeled)
                return replace(found, fell_back=(f"closed form: {error}",))
            matching = preset_for(further, update).override(**self.settings)
            if "iterations" in self.settings:
                matching = matching.override(iterations=left)
            left = sum(stage.iterations for stage in matching.stages)
            again = hidden_by_maxima(further)
            search = matching.override(iterations=max(2 * left // 3, 1)) if again else matching
            turn = of_peeled(search, update, labels, options, further)
            if not further.is_image and not again:
                turn = with_more_starts(search, update, labels, options, further, turn)
            found, peeled = nearer(found, turn, peeled), further
            if not again:
                break
        return found

    def of_weights(
        self, update: WeightsUpdate, labels: torch.Tensor, options: Options
    ) -> Inversion:
        """Images from weights: by undoing the drift, or by matching through the update model."""
        free = options.update_model is None
        model = options.update_model or strongest_model(update)
        options = replace(options, update_model=model)
        try:
            return self.in_rounds(update, labels, options, model)
        except MissingKnowledge as error:
            reason = f"undoing the drift: {error}"
        if free and model is unrolled and update.local_steps > FEW_STEPS:
            options = replace(options, update_model=equivalent)
            found = in_the_middle(self.of_gradient(update.as_gradient(), labels, options))
        else:
            matching = with_statistics(GLEAK_GRADIENT.override(**self.settings), update)
            found = matching.run(update, labels, options)
            found = replace(found, way=way_of(found, update))
        return replace(found, fell_back=(reason, *found.fell_back))

    def in_rounds(
        self, update: WeightsUpdate, labels: torch.Tensor, options: Options, model: UpdateModel
    ) -> Inversion:
        """Images from the weights of a FedAvg client, in rounds: see `drift`.

        The first images are those that fit the update as one gradient. Where the drift is too large
        for a closed form, they come from matching gradients along the line from W0 to WT. Where it
        is next to nothing, as noise or the images of a round tell, one search from the update as it
        was is the last. The images whose simulated weights come nearest to the client's are kept.

        Raises MissingKnowledge where no round has a closed form.
        """
        counts, seed = counts_of(update, labels), options.seed
        precision = max(LOOSE / 2, update.precision)
        middle = flat = update.as_gradient()
        rounds: list[pd.DataFrame] = []
        snapshots: dict[int, torch.Tensor] = {}
        best, nearest = None, torch.inf
        total = left = 0
        last, closed = False, False
        settled = changes_little(update, middle, labels, model, seed)
        while not last:
            final = len(rounds) >= ROUNDS - 1 or settled
            done = sum(map(len, rounds))
            now = replace(options, snapshots=[step - done for step in options.snapshots])
            peeled = None
            try:  # the layers before the last are worth their time in the end only
                allowed = TOLERANCE if final else 0.0
                peeled = peel(replace(flat, precision=precision), counts, misfit_allowed=allowed)
            except MissingKnowledge:
                if best:
                    break
                # raises where there never are any
                image_features(LastLayer.of(flat, precision=torch.inf), counts)
            if peeled:
                search = preset_for(peeled, update).override(**self.settings)
                if not closed:
                    total = left = sum(stage.iterations for stage in search.stages)
                closed, last = True, final
                share = left if last else total // (2 * (ROUNDS - 1))
                left -= share
                search = search.override(iterations=max(share, 1))
                now = replace(now, update_model=equivalent)
                found = of_peeled(search, flat, labels, now, peeled)
            else:
                found = GLEAK_FIRST_GUESS.search(update, labels, replace(now, update_model=path))
            flat, distance = undrifted(update, found.images, labels, model, seed)
            rounds.append(found.history.assign(distance_of_weights=distance))
            snapshots |= {done + step: images for step, images in found.snapshots.items()}
            settled = bool(best) and distance > 0.9 * nearest
            if peeled and classifier_drift(middle, flat) < STRAIGHT:
                flat, settled = middle, True
            if best is None or distance < nearest:
                best, nearest = found, distance
            options = replace(options, start=found.images)
            # images that explain less of the update than none would tell nothing of the drift
            last = last or not found.finished or (not peeled and distance > 1)
        if not closed and found.finished:
            raise MissingKnowledge("it hides the features of single images")
        assert best is not None
        return replace(
            best,
            history=joined(rounds),
            snapshots=snapshots,
            finished=found.finished,
            way=f"drift undone in {len(rounds)} rounds by {name_of(model)}; {best.way}",
        )

    def __str__(self) -> str:
        return "gleak: what there is a closed form for, then a search for what is left"


def of_patches(update: Update, labels: torch.Tensor, patches: Patches) -> Inversion:
    """The image of the patch embedding; of a gradient, checked against all that was sent."""
    found = found_at_once(patches.image, labels, f"closed form: {patches}")
    if isinstance(update, WeightsUpdate):
        return found
    missed = missed_by(update, patches, labels)
    if missed < LOOSE or not patches.restored.all():
        return replace(found, way=f"{found.way}; its own gradient misses it by {missed:.0e}")
    reason = f"its own gradient, with this label, misses what was sent by {missed:.0%}"
    return replace(found, fell_back=(f"check: {reason}",))


def of_many(
    settings: Mapping[str, Any],
    update: Update,
    labels: torch.Tensor,
    options: Options,
    peeled: Peeled,
) -> Inversion | None:
    """Images from activations that are many times as many: from a linear guess, to all digits.

    None where they are not that many, the way to them is smooth, or a start was given.
    """
    many = not peeled.is_image and peeled.rough and options.start is None
    share = (peeled.activations != 0).sum().item() / (len(labels) * math.prod(update.input_shape))
    start = (
        linear_guess(peeled, update.input_shape, options.seed) if many and share > MANY else None
    )
    if start is None:
        return None
    search = GLEAK_MANY.override(**settings)
    found = search.search(update, labels, replace(options, start=start), peeled)
    found = replace(found, way=f"from a linear guess, {found.way}")
    if not found.finished or misfits(found.images, peeled).max() < LOST:
        return found
    other = preset_for(peeled, update).override(**settings)
    return nearer(found, other.search(update, labels, after(options, found), peeled), peeled)


def with_more_starts(
    matching: GradientMatching,
    update: Update,
    labels: torch.Tensor,
    options: Options,
    peeled: Peeled,
    found: Inversion,
) -> Inversion:
    """What was found, with images that got stuck replaced by those of other starts.

    Activations known to many digits tell a right image from a stuck one, each for itself.
    """
    for more in range(1, STARTS):
        left = misfits(found.images, peeled)
        if not found.finished or options.start is not None or left.max() < STUCK:
            break
        other = replace(options, seed=options.seed + more, snapshots=())
        again = matching.search(update, labels, other, peeled)
        better = (misfits(again.images, peeled) < left).view(-1, 1, 1, 1)
        found = replace(
            found,
            images=torch.where(better, again.images, found.images),
            history=joined([found.history, again.history]),
            finished=again.finished,
        )
    return found


def with_statistics(matching: GradientMatching, update: Update) -> GradientMatching:
    """The search, which also matches the batch norm statistics that a client sent."""
    if not update.statistics or matching.batch_norm:
        return matching
    return matching.override(batch_norm=STATISTICS)


def way_of(found: Inversion, update: Update) -> str:
    """The way of gradient matching, with a word on statistics that it matched besides."""
    return f"{found.way}, and the batch norm statistics sent" if update.statistics else found.way


def after(options: Options, found: Inversion) -> Options:
    """Options for a search of its own that comes after what was found."""
    done = len(found.history)
    return replace(options, start=None, snapshots=[step - done for step in options.snapshots])


def nearer(found: Inversion, more: Inversion, peeled: Peeled) -> Inversion:
    """Of two searches, one after the other, the images that come nearer to what was peeled."""
    done = len(found.history)
    worse = misfits(more.images, peeled) > misfits(found.images, peeled)
    return replace(
        more,
        images=torch.where(worse.view(-1, 1, 1, 1), found.images, more.images),
        history=joined([found.history, more.history]),
        snapshots={**found.snapshots, **{done + s: x for s, x in more.snapshots.items()}},
    )


@torch.no_grad()
def misfits(images: torch.Tensor, peeled: Peeled) -> torch.Tensor:
    """Mean squared error of each image's activations over their variance, (K,)."""
    known = peeled.activations.flatten(1)
    made = peeled.trunk(images.to(peeled.activations)).flatten(1)
    return ((made - known).square().mean(1) / known.var(1).clamp_min(1e-30)).cpu()


def counts_of(update: Update, labels: torch.Tensor) -> torch.Tensor:
    """How often each class occurs, (N,), in labels (K,)."""
    return torch.bincount(labels, minlength=update.num_classes)


def of_peeled(
    search: GradientMatching,
    update: Update,
    labels: torch.Tensor,
    options: Options,
    peeled: Peeled,
) -> Inversion:
    """Images from what was peeled: those themselves, or the search's."""
    if peeled.is_image:
        return found_at_once(peeled.activations, labels, "closed form")
    return search.search(update, labels, options, peeled)


def changes_little(
    update: WeightsUpdate,
    middle: GradientUpdate,
    labels: torch.Tensor,
    model: UpdateModel,
    seed: int,
) -> bool:
    """Whether there is next to nothing to undo: noise drifts about as far as images do."""
    draws = torch.Generator().manual_seed(seed)
    noise = torch.rand(len(labels), *update.input_shape, generator=draws)
    guessed, _ = undrifted(update, noise, labels, model, seed)
    return classifier_drift(middle, guessed) < STRAIGHT


def strongest_model(update: Update) -> UpdateModel:
    """The update model that needs most of what the client told.

    Those whose facts were not told are left out; `sme` needs none.
    """
    for name in STRONGEST:
        if all(fact in update.facts for fact in UPDATE_MODELS[name][1]):
            return known_model(update, name)
    raise AssertionError("sme needs no facts")


def in_the_middle(found: Inversion) -> Inversion:
    """What was found from weights that were read as one gradient."""
    return replace(found, way=f"read as one gradient in the middle of the way; {found.way}")


def preset_for(peeled: Peeled, update: Update) -> GradientMatching:
    """The search that fits what was peeled."""
    if peeled.sharp and not peeled.is_features:
        return GLEAK_DIGITS
    if peeled.deep or (peeled.rough and min(update.input_shape[1:]) >= 64):
        return GLEAK_COARSE
    return GLEAK_FEATURES if peeled.rough else GLEAK_SMOOTH
