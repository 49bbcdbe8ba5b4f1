"""Update models: how a candidate batch is turned into what the server saw of the client.

equivalent  one gradient at W0, set against (W0 - WT) / (lr s), s local steps (Geng et al. 2021)
path        the mean of gradients at points on the straight line from W0 to WT
sme         one gradient at a learnt point of that line (Zhu et al. 2023)
nl-sme      one gradient at a learnt point of a learnt quadratic curve (Xia et al. 2025)
unrolled    all local steps, simulated one after the other (Dimitrov et al. 2022)

Each is a function that looks at an update once and gives a Simulation, which the search then calls
with its images. What the server was not told stays unknown here: which images shared a local step
is the attacker's own draw, and labels belong to slots of its own numbering.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gleak.client import local_batches
from gleak.inversion.gradients import GradientOf, Tensors, Weights, checkpointed
from gleak.inversion.terms import label
from gleak.update import MissingKnowledge, Update, WeightsUpdate, weight_of_steps


@dataclass(frozen=True, eq=False)
class Simulation:
    """A client as the attacker pictures it.

    Parameters
    ----------
    run
        `run(gradient, images, labels, *learnt)`: what this client would send, a tensor for each of
        the names asked for, in the scale of one gradient. images: (copies x K, C, H, W). gradient:
        as `local_gradient`, in the form that the search can differentiate.
    learnt
        The model's own unknowns at the start; the search optimises them along with the images, by
        Adam.
    rates
        Adam's step sizes for them.
    penalty
        `penalty(images, *learnt)` is added to the loss.
    copies
        How many sets of images the client is pictured with.
    compiles
        Whether torch.compile may be tried on it.
    """

    run: Callable[..., Tensors]
    learnt: tuple[Tensor, ...] = ()
    rates: tuple[float, ...] = ()
    penalty: Callable[..., Tensor] | None = None
    copies: int = 1
    compiles: bool = True


# What looks at an update once, for the parameters of these names, with this seed for its draws.
UpdateModel = Callable[..., Simulation]

# -- the models -----------------------------------------------------------------------------------


def equivalent(update: Update, names: Sequence[str], seed: int) -> Simulation:
    """One gradient at W0. Exact for one local step, and blind to how far the client went."""
    before = start_of(update)

    def run(gradient: GradientOf, images: Tensor, labels: Tensor) -> Tensors:
        return gradient(before, names, images, labels)

    return Simulation(run)


def path(update: WeightsUpdate, names: Sequence[str], seed: int, points: int = 3) -> Simulation:
    """The mean of the gradients at `points` points of the line from W0 to WT.

    Step j of s begins near W0 + j / s (WT - W0), j = 0 ... s - 1, if the client went straight: the
    points are the middles of `points` equal shares of these steps.
    """
    steps = update.local_steps
    points = min(points, steps)
    shares = [(steps - 1) / steps * (i + 0.5) / points for i in range(points)]
    if points == steps:
        shares = [i / steps for i in range(points)]
    before, after = ends_of(update)
    places = [between(before, after, share) for share in shares]

    def run(gradient: GradientOf, images: Tensor, labels: Tensor) -> Tensors:
        found = [gradient(place, names, images, labels) for place in places]
        return [torch.stack(tensors).mean(0) for tensors in zip(*found, strict=True)]

    return Simulation(run)


def sme(update: WeightsUpdate, names: Sequence[str], seed: int) -> Simulation:
    """Surrogate model extension: one gradient at (1 - a) W0 + a WT, with a in [0, 1] learnt."""
    before, after = ends_of(update)

    def run(gradient: GradientOf, images: Tensor, labels: Tensor, a: Tensor) -> Tensors:
        return gradient(between(before, after, a.clamp(0, 1)), names, images, labels)

    return Simulation(run, learnt=(a_number(update, 0.5),), rates=(1e-3,))


def nl_sme(
    update: WeightsUpdate, names: Sequence[str], seed: int, stiffness: float = 1.0
) -> Simulation:
    """Non-linear surrogate: one gradient at (1 - t)^2 W0 + 2 t (1 - t) P + t^2 WT.

    t and the control point P, as large as all weights, are learnt; `stiffness` weighs the squared
    distance of P to the middle of the line, relative to the line's length.
    """
    before, after = ends_of(update)
    middle = {name: (before[name] + after[name]) / 2 for name in before}
    length = total([(after[name] - before[name]).square().sum() for name in before])

    def run(
        gradient: GradientOf, images: Tensor, labels: Tensor, t: Tensor, *control: Tensor
    ) -> Tensors:
        t = t.clamp(0, 1)
        place = {
            name: (1 - t) ** 2 * before[name] + 2 * t * (1 - t) * p + t**2 * after[name]
            for name, p in zip(before, control, strict=True)
        }
        return gradient(place, names, images, labels)

    def penalty(images: Tensor, t: Tensor, *control: Tensor) -> Tensor:
        away = zip(control, middle.values(), strict=True)
        return stiffness * total([(p - m).square().sum() for p, m in away]) / length

    # steps of P in the scale of the way the weights went
    size = (length / sum(m.numel() for m in middle.values())).sqrt().item()
    return Simulation(
        run,
        learnt=(a_number(update, 0.5), *middle.values()),
        rates=(1e-2, *[0.01 * size] * len(middle)),
        penalty=penalty,
    )


def unrolled(
    update: Update,
    names: Sequence[str],
    seed: int,
    order: Sequence[Tensor] | None = None,
    invariance: float = 0.0,
) -> Simulation:
    """All local steps of SGD from W0, one after the other, differentiated through.

    order: which slots (indices of images) share each local step; the attacker's own draw by
    default, since the client's is not known.
    invariance: 0 for one set of images that all epochs share. Above 0, every epoch has images of
    its own, which the prior of this weight ties together whatever their order: the mean squared
    difference of their pixelwise means (Dimitrov et al. 2022); in the end they are matched and
    averaged.

    Memory holds the weights of all steps, but the activations of one step only.
    """
    (lr, epochs, batch_size), size = update.told("lr", "epochs", "batch_size"), update.num_samples
    momentum = update.facts.get("momentum", 0.0)
    if order is None:
        settings = (int(epochs), int(batch_size), bool(update.facts.get("drop_last", False)))
        order = list(local_batches(size, *settings, shuffle_seed=OWN_DRAWS + seed))
    steps_an_epoch = len(order) // int(epochs)
    before, scale = start_of(update), -1 / (lr * weight_of_steps(len(order), momentum))
    copies = int(epochs) if invariance else 1

    def run(gradient: GradientOf, images: Tensor, labels: Tensor) -> Tensors:
        weights: Weights = before
        velocity: Tensors | None = None
        for step, slots in enumerate(order):
            first = step // steps_an_epoch * size if invariance else 0
            found = checkpointed(gradient, weights, images[first + slots], labels[slots])
            velocity = (
                found
                if velocity is None
                else [momentum * v + g for v, g in zip(velocity, found, strict=True)]
            )
            weights = {n: w - lr * v for (n, w), v in zip(weights.items(), velocity, strict=True)}
        return [scale * (weights[name] - before[name]) for name in names]

    def penalty(images: Tensor) -> Tensor:
        means = images.unflatten(0, (copies, size)).mean(1)
        return invariance * (means - means.mean(0)).square().mean()

    return Simulation(run, penalty=penalty if invariance else None, copies=copies, compiles=False)


# Name -> the model, and the facts that the client must have told for it.
UPDATE_MODELS: dict[str, tuple[UpdateModel, tuple[str, ...]]] = {
    "equivalent": (equivalent, ("lr", "epochs", "batch_size")),
    "path": (path, ("epochs", "batch_size")),
    "sme": (sme, ()),
    "nl-sme": (nl_sme, ()),
    "unrolled": (unrolled, ("lr", "epochs", "batch_size")),
}
OWN_DRAWS = 2**32  # the attacker's seeds lie apart from those a client might use


def list_update_models() -> list[str]:
    """The names that `invert` takes as its update model.

    Examples
    --------
    >>> list_update_models()
    ['equivalent', 'path', 'sme', 'nl-sme', 'unrolled']
    """
    return list(UPDATE_MODELS)


def name_of(model: UpdateModel) -> str:
    """The name of an update model, also of one with settings of one's own.

    >>> name_of(partial(path, points=5))
    'path'
    """
    plain = model.func if isinstance(model, partial) else model
    named = {function: name for name, (function, _) in UPDATE_MODELS.items()}
    return named.get(plain) or label(plain)


def known_model(update: Update, model: str | UpdateModel) -> UpdateModel:
    """The update model by name; a function, also one with settings of one's own, stays as it is.

    Raises ValueError for an unknown name, MissingKnowledge where the update does not hold or the
    client did not tell what the model needs.
    """
    if isinstance(model, str):
        if model not in UPDATE_MODELS:
            raise ValueError(
                f"unknown update model {model!r}; known: {', '.join(list_update_models())}"
            )
        model = UPDATE_MODELS[model][0]
    plain = model.func if isinstance(model, partial) else model
    needs = dict(UPDATE_MODELS.values())
    if plain not in needs:
        return model
    if isinstance(update, WeightsUpdate):
        update.told(*needs[plain])
    elif plain is not equivalent:
        raise MissingKnowledge(
            f"the update model {name_of(model)!r} needs weights after local training; a FedSGD "
            "client sends one gradient, for which there is 'equivalent'"
        )
    return model


def observed(update: Update) -> tuple[Weights, bool]:
    """What the client sent in the sign of a gradient, and whether it is in its scale too.

    Without the facts that the scale takes, it is W0 - WT as it stands.
    """
    try:
        return update.equivalent_gradient(), True
    except MissingKnowledge:
        return {name: -change for name, change in update.message().items()}, False


# -- small parts ----------------------------------------------------------------------------------


def start_of(update: Update) -> Weights:
    """W0, cut off from autograd: all that the client trains."""
    return {name: p.detach() for name, p in update.model.named_parameters() if p.requires_grad}


def ends_of(update: WeightsUpdate) -> tuple[Weights, Weights]:
    """W0 and WT, cut off from autograd; what was not sent counts as unchanged."""
    before = start_of(update)
    return before, before | dict(update.weights_after)


def between(before: Weights, after: Weights, share: float | Tensor) -> Weights:
    """(1 - share) W0 + share WT.

    >>> between({"w": torch.tensor(0.0)}, {"w": torch.tensor(4.0)}, 0.25)["w"].item()
    1.0
    """
    return {name: before[name] + share * (after[name] - before[name]) for name in before}


def total(tensors: Tensors) -> Tensor:
    """Their sum, one after the other."""
    result = tensors[0]
    for tensor in tensors[1:]:
        result = result + tensor
    return result


def a_number(update: Update, value: float) -> Tensor:
    """A number as the search learns it, on the device of the model."""
    return torch.tensor(value).to(update.classifier.weight)


def merge_epochs(images: Tensor, copies: int, labels: Tensor) -> Tensor:
    """(copies x K, C, H, W) -> (K, C, H, W): each epoch matched to the first, then the mean."""
    first, *others = images.unflatten(0, (copies, len(labels)))
    merged = [first]
    for other in others:
        cost = torch.cdist(first.flatten(1), other.flatten(1))
        cost = cost + 1e6 * (labels[:, None] != labels[None])  # only images of the same label
        _, match = linear_sum_assignment(cost.cpu())
        merged.append(other[torch.as_tensor(match)])
    return torch.stack(merged).mean(0)
