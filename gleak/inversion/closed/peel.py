"""What a gradient gives away in closed form: activations of single images, layer by layer.

The last layer. Its gradient is sum_k (p_k - y_k) o_k^T / K. With the labels known, the features o_k
follow from the softmax p_k by least squares, and the softmax follows from the features. The two
equations together have one solution: the features of every single image.

The layers before. With o_k and p_k known, backpropagation from the loss down to a layer's output is
known too, as ReLU and sigmoid tell their slope by their value. The layer's weight gradient is then
linear in the layer's input, and least squares gives that, as long as the layer has more weights
than the batch has values there. ReLU's units near zero are told along with it, see `relu`.
This peels a network from its end, until a layer with too few weights stops it, or a max-pooling,
which images that a search found may open: see `pooling`.
A trained network may not let one find the softmax; a hidden linear layer is another start, see
`start`. For single images this is R-GAP (Zhu & Blaschko 2021). Residual networks have a module of
their own, `residual`. What is known of each kind of layer is in `layers`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from gleak.inversion.closed.branches import settle_branches
from gleak.inversion.closed.chain import (
    Chain,
    NormBehind,
    NormedConv,
    ResidualBlock,
    Step,
    trace,
)
from gleak.inversion.closed.groups import in_groups
from gleak.inversion.closed.held import held_through
from gleak.inversion.closed.known import Place, Sent
from gleak.inversion.closed.layers import Kept, find_row, row_of
from gleak.inversion.closed.pooling import LARGEST, SPARE, behind, bounds, find_places
from gleak.inversion.closed.relu import HOPELESS, put_on_bound, settle_units
from gleak.inversion.closed.solve import Solved, solve_input
from gleak.inversion.closed.start import hidden_start
from gleak.labels.features import image_features
from gleak.labels.low_rank import times_transposed
from gleak.labels.tolerance import FLOAT32
from gleak.update import MissingKnowledge, Update

TOLERANCE = 1e-2  # relative error of an equation, above which masks are wrong and not only digits


@dataclass(frozen=True, eq=False)
class Front:
    """Where a peeling stands: all that going on from there takes.

    start, depth: the steps in front of which it started, and all is known now. place: what is known
    there. features: (K, M), which whatever is found has to lead to. careful: as of `start_of`.
    tolerance: relative error of the features; allowed: of a layer's equations. images: (K, ...)
    that a search found, to which the rest is held; None before it.
    """

    chain: Chain
    sent: Sent
    start: int
    depth: int
    place: Place
    features: torch.Tensor
    careful: bool
    tolerance: float
    allowed: float
    images: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Peeled:
    """The activations of every image at the place nearest to the images that is known.

    trunk: the network from the images to that place.
    activations: (K, ...), in the order of the labels, as the model's numbers; images of one class
    are in no order, so that the truth is theirs up to a permutation.
    is_image: whether these are the images themselves. is_features: whether they are what enters the
    classifier, so that no layer was peeled but the last.
    parameters: the names of the model's parameters in front of the place.
    rough: whether there is a ReLU or a max-pooling in front of it, so that a search has many
    minima. deep: whether there is a residual block. sharp: whether the error of every value is
    known, as for trained networks.
    place: where that is, for people. ended: why it goes no further, for people; empty for images.
    ended_at: the index of the layer in front of which nothing was told; None for images.
    started: the layer that it started at, for people, if that is not the classifier.
    front: where it stands, to go on from: see `peel_behind`.
    """

    trunk: nn.Module
    activations: torch.Tensor
    is_image: bool
    is_features: bool
    parameters: tuple[str, ...]
    rough: bool
    deep: bool
    sharp: bool
    place: str
    ended: str
    ended_at: int | None
    started: str
    front: Front

    def __str__(self) -> str:
        shape = "x".join(map(str, self.activations.shape[1:]))
        start = f", from {self.started}" if self.started else ""
        return f"{self.place}, {shape} values each{start}"


def peel(update: Update, counts: torch.Tensor, *, misfit_allowed: float | None = None) -> Peeled:
    """Peel the network from its end, as far towards the image as the gradient allows.

    counts: (N,) how often each class occurs.
    misfit_allowed: relative error of a layer's equations, by default the precision of what was
    sent, 1 % at least. The layers before ask for more digits than the features do, so that noise or
    rounding ends the peeling early.

    Raises MissingKnowledge for networks that are no chain of layers and residual blocks, or cannot
    be traced, and where `image_features` does.

    >>> import gleak
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(32, 5))
    >>> batch = gleak.Batch(torch.rand(2, 1, 4, 4), torch.tensor([1, 3]), list("abcde"))
    >>> peeled = peel(gleak.fedsgd(net, batch), batch.label_counts)
    >>> print(peeled)
    what enters the network (layer 0 of 4), 1x4x4 values each
    >>> bool((peeled.activations - batch.images).abs().max() < 1e-3)
    True
    """
    chain, sent = trace(update.model, update.input_shape), Sent(update)
    depth, place, features, careful = start_of(chain, sent, update, counts)
    tolerance = max(TOLERANCE, sent.precision)
    allowed = tolerance if misfit_allowed is None else misfit_allowed
    front = Front(chain, sent, depth, depth, place, features, careful, tolerance, allowed)
    return descend(front)


def hidden_by_maxima(peeled: Peeled) -> bool:
    """Whether a max-pooling ended the peeling whose places may be found, as far as counting says.

    The gradient of the convolution in front of it must give `SPARE` times as many equations as
    there are unknowns: the places take some of them. More unknowns than `LARGEST` take too long.
    """
    try:
        index, at, _, _ = pooling_of(peeled.front)
    except ArithmeticError:
        return False
    conv, entering = peeled.front.chain.steps[at].layer, peeled.front.chain.steps[at].entering
    weight = conv.get_parameter("weight")
    unknown = len(peeled.activations) * entering[1] * entering[2]
    return unknown <= LARGEST and weight[:, 0].numel() >= SPARE * unknown


def pooling_of(front: Front) -> tuple[int, int, list[Step], torch.Tensor]:
    """The pooling right in front of what is known, and as `behind` what lies in front of that.

    Raises ArithmeticError where there is none.
    """
    steps, index = front.chain.steps, front.depth - 1
    while index > 0 and isinstance(steps[index].layer, nn.Identity):
        index -= 1
    if index < 1 or not isinstance(steps[index].layer, nn.MaxPool2d):
        raise ArithmeticError("the peeling did not end at a max-pooling")
    return index, *behind(steps, index)


def peel_behind(peeled: Peeled, images: torch.Tensor) -> Peeled:
    """Peel on where a max-pooling ended it, with images that a search found from there.

    images: (K, C, H, W), good enough to say which place of most windows is the largest.

    Raises MissingKnowledge where it was no pooling that ended it, or the places are not found.
    """
    front, images = peeled.front, images.to(peeled.activations)
    place, steps = front.place, front.chain.steps
    try:
        index, at, between, turns = pooling_of(front)
        for step in between:
            place = through(step, place, front.sent, front.allowed, front.careful)
        conv, pool = steps[at].layer, steps[index].layer
        assert isinstance(conv, nn.Conv2d) and isinstance(pool, nn.MaxPool2d)
        start, limits = front.chain.values(at, images), bounds(steps, at)
        place = find_places(conv, pool, place, front.sent, start, limits, turns, front.allowed)
        assert place.values is not None
        if not consistent(steps[at:-1], place.values, front.features, front.tolerance):
            raise ArithmeticError("what was found in front of it does not lead to the features")
    except (ArithmeticError, torch.linalg.LinAlgError) as error:
        reason = f"the places of its maxima were not found: {error}"
        raise MissingKnowledge(f"{peeled.ended.split(':')[0]}: {reason}") from error
    return descend(replace(front, depth=at, place=place, careful=True, images=images))


def descend(front: Front) -> Peeled:
    """Peel from where the front stands, as far as it goes."""
    chain, sent, place, tolerance = front.chain, front.sent, front.place, front.tolerance
    steps, ended, ended_at = chain.steps, "", None
    for index in range(front.depth - 1, -1, -1):
        step = steps[index]
        if isinstance(step.layer, nn.Identity):
            continue
        try:
            if front.images is not None and isinstance(step.layer, nn.Conv2d):
                guess = chain.values(index, front.images)
                place = held_through(step.layer, place, sent, guess)
            else:
                place = through(step, place, sent, front.allowed, front.careful)
            if place.as_run:
                steps = (*steps[:index], replace(step, layer=place.as_run), *steps[index + 1 :])
                front = replace(front, chain=replace(chain, steps=steps))
            beneath = find_row(steps[index - 1].layer) if index else None
            if beneath and beneath.told:
                place = beneath.told(steps[index - 1].layer, place, sent)
            if place.again:
                raise ArithmeticError("batch norm in train mode hides the scale of its input")
            if place.values is None or place.known is not None:
                continue
            agrees = row_of(step.layer).agrees or tolerance
            if not consistent(steps[index:-1], place.values, front.features, agrees):
                raise ArithmeticError("what was found in front of it does not lead to the features")
        except (ArithmeticError, torch.linalg.LinAlgError) as error:
            ended, ended_at = f"{step.kind} (layer {index} of {len(steps)}): {error}", index
            break  # what was found before stands
        if not chain.has_before(index, nn.Dropout):  # the trunk does not know what that kept
            front = replace(front, depth=index, place=place)
    return peeled_at(front, ended, ended_at)


def start_of(
    chain: Chain, sent: Sent, update: Update, counts: torch.Tensor
) -> tuple[int, Place, torch.Tensor, bool]:
    """The step in front of which the peeling starts, what is known there, and the features (K, M).

    Last, whether each value's error must be known. That is so behind batch norm and at a start
    without the classifier: there networks are trained, and images differ a thousandfold in their
    slopes. Batch norm has that start first: it is found sooner than the classifier's search fails.

    Raises MissingKnowledge as `image_features`.
    """
    norms = (nn.BatchNorm2d, NormedConv, NormBehind)
    normed = any(isinstance(step.layer, norms) for step in chain.steps)
    exact = update.precision <= FLOAT32  # SPEAR's zeros drown in noise
    if normed and exact:
        try:
            return *hidden_start(chain, sent, counts), True
        except MissingKnowledge:
            pass  # the classifier is left
    try:
        features, probabilities = image_features(update, counts)
    except MissingKnowledge:
        if not exact or normed:
            raise
        try:
            return *hidden_start(chain, sent, counts), True
        except MissingKnowledge:
            pass  # the classifier's reason says more
        raise
    labels = torch.repeat_interleave(torch.arange(len(counts)).to(counts), counts)
    wrong = (probabilities - F.one_hot(labels, len(counts)).to(probabilities)) / len(labels)
    slope = times_transposed(update.classifier.weight, wrong.T.cpu().numpy()).T
    place = Place(torch.from_numpy(slope).to(wrong), features)
    return len(chain.steps) - 1, place, features, normed


def peeled_at(front: Front, ended: str, ended_at: int | None) -> Peeled:
    """The result, with the activations that enter the step at the front."""
    chain, depth, start = front.chain, front.depth, front.start
    trunk, steps, values = chain.trunk(depth), chain.steps, front.place.values
    into = steps[depth].kind if depth else "the network"
    started = ""
    if start < len(steps) - 1:
        started = f"{steps[start - 1].kind} (layer {start - 1} of {len(steps)})"
    assert values is not None
    return Peeled(
        trunk,
        values.to(steps[-1].layer.get_parameter("weight")),
        is_image=depth == 0,
        is_features=depth == len(steps) - 1,
        parameters=tuple(name for name, _ in trunk.named_parameters()),
        rough=chain.has_before(depth, nn.ReLU, nn.Hardtanh, nn.MaxPool2d, NormedConv, NormBehind),
        deep=chain.has_before(depth, ResidualBlock),
        sharp=front.place.deviation is not None and depth < start,
        place=f"what enters {into} (layer {depth} of {len(steps)})",
        ended=ended,
        ended_at=ended_at,
        started=started,
        front=front,
    )


def through(
    step: Step, place: Place, sent: Sent, misfit_allowed: float, careful: bool = False
) -> Place:
    """What is known in front of a layer, from what is known behind it.

    careful: whether with an error for each value.

    Raises ArithmeticError where nothing is, with the reason.
    """
    if step.unknown:
        raise ArithmeticError(step.unknown)
    row = row_of(step.layer)
    if row.whole:
        return row.whole(step.layer, place, (step.entering, step.leaving), sent)
    if row.equations:
        return through_linear(step, place, sent, misfit_allowed, careful)
    if row.inverse is None:  # the input stays unknown, but not the slope there
        nothing = place.slope.new_zeros(len(place.slope), *step.entering)
        return Place(row.slope(step.layer, place.whole_slope, nothing, None), None)
    if place.values is None:
        raise ArithmeticError("its output is hidden behind a pooling")
    if place.deviation is not None and row.bounds:
        least, most = row.bounds(step.layer).outputs
        values = put_on_bound(place.values, place.deviation, least, sent.rounding)
        if math.isfinite(most):
            values = -put_on_bound(-values, place.deviation, -most, sent.rounding)
        place = replace(place, values=values)
    assert place.values is not None
    values, known = row.inverse(step.layer, place.values, step.entering, sent.rounding)
    deviation = place.deviation
    if deviation is not None and known is None:
        moved, _ = row.inverse(step.layer, place.values + deviation, step.entering, sent.rounding)
        deviation = (moved - values).abs()
    slope = row.slope(step.layer, place.whole_slope, values, place.values)
    unmasked: torch.Tensor | None = None
    onwards: tuple[nn.Module, ...] = ()
    as_run: nn.Module | None = None
    if row.bounds:
        bounds = row.bounds(step.layer)
        unmasked, onwards = place.whole_slope * bounds.gain, bounds.onwards()
    elif place.unmasked is not None and known is None and values.shape == place.values.shape:
        unmasked = row.slope(step.layer, place.unmasked, values, place.values)
        onwards = (step.layer, *place.onwards)
    other: tuple[torch.Tensor, torch.Tensor] | None = None
    if row.other:
        second = row.other(step.layer, place.values)
        other = second, row.slope(step.layer, place.whole_slope, second, place.values)
    elif place.other is not None and known is None:
        second, _ = row.inverse(step.layer, place.other[0], step.entering, sent.rounding)
        other = second, row.slope(step.layer, place.other[1], second, place.other[0])
    if isinstance(step.layer, nn.Dropout):
        assert known is not None
        as_run = Kept(known / (1 - step.layer.p))
    if place.known is not None:
        if place.known.numel() != values.numel():
            raise ArithmeticError("its output is not known at all places")
        before = place.known.reshape(values.shape)
        known = before if known is None else before & known
    return Place(
        slope,
        values,
        known,
        unmasked,
        onwards,
        deviation=deviation,
        other=other,
        as_run=as_run,
    )


def through_linear(
    step: Step, place: Place, sent: Sent, misfit_allowed: float, careful: bool = False
) -> Place:
    """`through` for a layer whose weight gradient is linear in its input.

    A convolution in groups is as many convolutions, each of its own channels.
    """
    layer, slope = step.layer, place.whole_slope
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    if slope.ndim != (2 if isinstance(layer, nn.Linear) else 4):
        raise ArithmeticError("it is applied at several places of its input")
    observed = sent.of(layer.weight)
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    shape = (step.entering[0] // groups, *step.entering[1:])
    solved = [
        solve_part(*part, shape, sent.rounding, misfit_allowed, careful)
        for part in in_groups(layer, place, observed)
    ]
    inputs = torch.cat([found.inputs for _, found in solved], dim=1)
    slope = torch.cat([slope for slope, _ in solved], dim=1)
    misfit = max(found.misfit for _, found in solved)
    if misfit > misfit_allowed:
        raise ArithmeticError(f"the input that was found misses its gradient by {misfit:.1%}")
    deviations = [found.deviation for _, found in solved if found.deviation is not None]
    deviation = torch.cat(deviations, dim=1) if careful and len(deviations) == groups else None
    slope = row_of(layer).slope(layer, slope, inputs, None)
    return Place(slope, inputs, deviation=deviation)


def solve_part(
    layer: nn.Conv2d | nn.Linear,
    place: Place,
    observed: torch.Tensor,
    shape: tuple[int, ...],
    rounding: float,
    misfit_allowed: float,
    careful: bool,
) -> tuple[torch.Tensor, Solved]:
    """The slope at a layer's output, with units settled that were not sure, and its input."""
    slope, known = place.whole_slope, place.known
    outputs = slope if place.values is None else place.values
    if known is None:
        known = torch.full_like(outputs, place.values is not None, dtype=torch.bool)
    if place.other is not None:
        return settle_branches(
            layer,
            (outputs, slope),
            place.other,
            known,
            observed,
            shape,
            rounding,
            careful,
        )
    solved = solve_input(layer, slope, observed, outputs, known, shape, rounding, careful)
    if place.unmasked is not None and solved.misfit <= HOPELESS * misfit_allowed:
        slope, solved = settle_units(
            layer,
            place.unmasked,
            known,
            observed,
            solved,
            rounding,
            place.onwards,
            careful,
        )
    return slope, solved


@torch.no_grad()
def consistent(
    steps: Sequence[Step], values: torch.Tensor, features: torch.Tensor, tolerance: float
) -> bool:
    """Whether activations (K, ...), sent forward through the steps, give the features (K, M)."""
    for step in steps:
        values = row_of(step.layer).forward(step.layer, values)
    return bool((values - features).norm() < tolerance * features.norm())
