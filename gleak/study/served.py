"""What a server has, as an update: files, a network, what the client told, and no truth.

What cannot be read, does not fit or is not followed here is refused in a sentence that says what to
do; what was not told and is taken for granted is kept as a sentence, too.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gleak.buffers import buffers_in, steps_counted
from gleak.data import Batch
from gleak.kept import KeptRound, kept_round, samples_of
from gleak.labels import guess_samples
from gleak.labels.samples import unlike_single_images
from gleak.models import NORMALISATION, Normalise, build_model, from_module, named_for, normalises
from gleak.network import as_sent, find_classifier, is_dropout
from gleak.risk import is_zero
from gleak.update import (
    Contradiction,
    MissingKnowledge,
    Update,
    WeightsUpdate,
    statistics_from,
)
from gleak.wire import named_tensors, put_weights, read_parts, read_tensors

Shape = tuple[int, int, int]

# What clients do that is not followed here, and what to do about it.
LOSSES = {
    "label-smoothing": "rules and searches here are for labels that are not smoothed, and say "
    "nothing of others: see what the same client gives away without smoothing",
    "class-weights": "an update of a weighted loss shows the weight of each class in the batch in "
    "place of its count: see what the same client gives away with equal weights",
    "other": "rules and searches here are for the cross-entropy of one label an image",
}
OPTIMISERS = {
    "adam": "its steps do not show the size of a gradient",
    "adamw": "its steps do not show the size of a gradient",
    "rmsprop": "its steps do not show the size of a gradient",
    "adagrad": "its steps do not show the size of a gradient",
    "other": "how its steps follow from gradients is not known here",
}


@dataclass(frozen=True)
class Served:
    """An update as a server has it, and what was taken for granted about it.

    network: its name, for the report. class_names: of all classes. assumed: sentences.
    samples_known: how K is known, in words.
    """

    update: Update
    network: str
    class_names: Sequence[str]
    samples_known: str = "told"
    assumed: Sequence[str] = ()


def read_update(
    network: str,
    input_shape: Shape,
    *,
    before: str | Path | None = None,
    after: str | Path | None = None,
    gradient: str | Path | None = None,
    saved: str | Path | None = None,
    kept: str | Path | None = None,
    server_round: int = 1,
    client: str | None = None,
    samples: int | None = None,
    classes: int | None = None,
    class_names: Sequence[str] = (),
    normalise: str | None = None,
    training: bool = True,
    delta: bool = False,
    loss: str = "mean",
    optimiser: str = "sgd",
    seed: int = 0,
    **told: float | None,
) -> Served:
    """The update in a server's files.

    Parameters
    ----------
    network
        As `gleak.build_model` takes it.
    input_shape
        (C, H, W) of one image.
    before, after
        Files of weights (.safetensors, .npz, .pt, .pth); `after` may be a message of Flower (.pb).
    gradient
        A file of a gradient, with `before` the weights that it was taken at.
    saved
        What `Update.save` wrote, in place of all of these.
    kept
        A folder that `gleak.flower.KeepUpdates` wrote; server_round and client choose from it.
    samples
        K; by default what the message says, else it is read off the update where that shows it.
    classes, class_names
        How many classes there are, and their names; by default as many as the file shows.
    normalise
        What enters the network: "none", a data set of NORMALISATION, or MEAN,.../DEVIATION,...; by
        default as in the file, else as `build_model` has it.
    training, delta
        As for `Update.from_weights`.
    loss
        "mean" or "sum" over the batch; those of LOSSES are refused.
    optimiser
        "sgd"; those of OPTIMISERS are refused.
    seed
        Of random draws, and of the network's weights where no file has them.
    told
        Facts: lr, epochs, batch_size and so on. None is not told.

    Raises
    ------
    ValueError
        For what cannot be read, does not fit, or is not followed here; MissingKnowledge where K was
        not told and cannot be guessed, Contradiction where the update is not what was told.
    FileNotFoundError
        For files that are not there.
    """
    refuse_unfollowed(loss, optimiser)
    sources = {"after": after, "gradient": gradient, "saved": saved, "kept": kept}
    given = [name for name, value in sources.items() if value is not None]
    if len(given) != 1:
        raise ValueError(
            "name one of weights after training (--after), a gradient (--gradient), an update that "
            f"gleak saved (--update) and a folder of Flower's rounds (--flower); got {len(given)}"
        )
    if class_names and classes not in (None, len(class_names)):
        raise ValueError(f"there are {len(class_names)} names for {classes} classes")
    classes = len(class_names) or classes
    facts: dict[str, float] = {}
    if kept is not None:
        found, client = chosen_client(kept, server_round, client)
        before, after, facts = found.sent, found.replies[client], dict(found.told)
        samples = samples or samples_of(client)
    facts |= {name: float(value) for name, value in told.items() if value is not None}
    assumed: list[str] = []

    def build(tensors: Mapping[str, torch.Tensor]) -> nn.Module:
        return network_of(network, input_shape, classes, tensors, normalise, seed, assumed)

    update: Update
    if saved is not None:
        model = build(saved_tensors(saved))
        update = Update.load(saved, model)
        if tuple(update.input_shape) != tuple(input_shape):
            raise ValueError(f"{saved} is of images {update.input_shape}, not {input_shape}")
        facts, samples = {**update.facts, **facts}, samples or update.num_samples
    else:
        tensors, numbers = message_of(gradient if after is None else after)
        if after is not None and before is None:
            raise ValueError(
                "weights after training say nothing without those before: name the file of what "
                "the server sent (--before)"
            )
        start = None if before is None else message_of(before)[0]
        model = build(start or tensors)
        samples = samples or int(numbers.get("num-examples", 0))
        if start is None:
            assumed.append(f"weights before training were not given: they are drawn, seed {seed}")
        else:
            put_weights(model, named_for(model, start))
        about: dict[str, Any] = {
            "num_samples": samples or int(facts.get("batch_size", 1)),  # until it is guessed
            "input_shape": input_shape,
            "training": training,
        }
        tensors = named_for(model, tensors)
        buffers = (start or model.state_dict(), tensors)
        if after is None:
            update = Update.from_gradient(tensors, model, **about)
        else:
            about["statistics"] = {}  # until K is known
            update = Update.from_weights(None, tensors, model, delta=delta, **about)
    update = replace(update, facts=facts)
    how = "told"
    shown = samples_shown(update, loss == "sum", seed, needed=not samples)
    if not samples:
        samples = shown
        how = "read off the update, whose gradient is the sum of so many single images"
    elif shown not in (0, samples):
        raise Contradiction(
            f"the last layer's gradient is the sum of {shown} single images, and those told are "
            f"{samples}: leave --samples out, or say {shown}"
        )
    update = replace(update, num_samples=samples)
    if after is not None:
        update = with_statistics(update, *buffers, delta, assumed)
    if loss == "sum":
        update = update.of_summed_loss()
    update.refuse_contradictions()
    assumed += doubts_of(update, seed)
    if gives_several(model, input_shape):
        assumed.append(
            "of the several outputs of the network, that of its layer "
            f"{update.classifier_name!r} is taken for the logits, as the first one that comes from "
            "a linear layer; where another one is, let the network return that first"
        )
    if any(is_dropout(m) and m.p for m in update.model.modules()):
        assumed.append("the client's dropout is not known, and taken as off")
    names = list(class_names) or [str(n) for n in range(update.num_classes)]
    if len(names) != update.num_classes:
        raise ValueError(f"the network has {update.num_classes} classes; there are {len(names)}")
    return Served(update, network, names, how, assumed)


def samples_shown(update: Update, summed: bool, seed: int, needed: bool) -> int:
    """K, as the update shows it; where it does not, 0, or MissingKnowledge if it is needed."""
    if isinstance(update, WeightsUpdate) and is_zero(update):
        raise Contradiction(
            "the weights after training are those before: see whether the right files were named, "
            "and whether the client trained"
        )
    try:
        return guess_samples(update, summed=summed, seed=seed)
    except MissingKnowledge as error:
        if isinstance(update, WeightsUpdate) and fits_backwards(update, summed, seed):
            raise Contradiction(
                "before and after fit each other the other way round: swap --before and --after"
            ) from None
        if needed:
            raise MissingKnowledge(f"{error} (--samples)") from None
        return 0


def fits_backwards(update: WeightsUpdate, summed: bool, seed: int) -> bool:
    """Whether the step from the weights after to those before is that of single images."""
    model = copy.deepcopy(update.model)
    model.load_state_dict(dict(update.weights_after), strict=False)
    start = dict(update.model.named_parameters())
    back = {name: start[name].detach() for name in update.weights_after}
    try:
        turned = replace(update, model=model, weights_after=back)
        guess_samples(turned, summed=summed, seed=seed)
    except MissingKnowledge:
        return False
    return True


def doubts_of(update: Update, seed: int) -> list[str]:
    """What does not fit the loss or the facts, in sentences; see `unlike_single_images`."""
    found: list[str] = []
    if isinstance(update, WeightsUpdate) and not {"lr", "epochs", "batch_size"} <= set(
        update.facts
    ):
        found.append(
            "the client's lr, epochs or batch_size are not known, and what needs them is not "
            "attacked: servers usually set them, so say --lr, --epochs and --batch-size"
        )
    doubt = unlike_single_images(update, seed)
    return found + [doubt] * bool(doubt)


def with_statistics(
    update: Update,
    before: Mapping[str, torch.Tensor],
    after: Mapping[str, torch.Tensor],
    delta: bool,
    assumed: list[str],
) -> Update:
    """The update with what its buffers tell of batch norm; why they do not is added to `assumed`.

    Raises Contradiction where they counted other steps than were told.
    """
    if not buffers_in(after, update.model):
        return update
    own = update.model.state_dict()
    before, after = (
        named_tensors(tensors, own, dict(update.model.named_parameters()), "the file")
        for tensors in (before, after)
    )
    found, reason = statistics_from(
        update.model,
        before,
        after,
        num_samples=update.num_samples,
        input_shape=update.input_shape,
        facts=update.facts,
        delta=delta,
    )
    counted = steps_counted(update.model, after) if not delta else None
    told = update.local_steps if {"epochs", "batch_size"} <= update.facts.keys() else None
    if counted and told and counted != told:
        raise Contradiction(
            f"the layers of batch norm counted {counted} local steps, and those told are {told}: "
            "epochs, batch size or the number of samples is not as told"
        )
    if reason:
        assumed.append(f"batch norm's running statistics are not used: {reason}")
    return replace(update, statistics=found)


def refuse_unfollowed(loss: str, optimiser: str) -> None:
    """Raise ValueError for a loss or an optimiser that is not followed here."""
    for what, value, fine, refused in (
        ("loss", loss, ("mean", "sum"), LOSSES),
        ("optimiser", optimiser, ("sgd",), OPTIMISERS),
    ):
        if value in refused:
            raise ValueError(f"a client of the {what} {value} is not attacked: {refused[value]}")
        if value not in fine:
            raise ValueError(f"unknown {what} {value!r}; known: {', '.join((*fine, *refused))}")


def message_of(file: str | Path | None) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Name -> tensor of a file of weights or a message of Flower, and the numbers beside them."""
    assert file is not None
    if Path(file).suffix == ".pb":
        from gleak.flower import read_message

        return read_message(file)
    return read_tensors(file), {}


def saved_tensors(file: str | Path) -> dict[str, torch.Tensor]:
    """The model's tensors in what `Update.save` wrote."""
    return read_parts(file, ("model", "gradient", "weights_after", "statistics"))[0]["model"]


def chosen_client(
    folder: str | Path, server_round: int, client: str | None
) -> tuple[KeptRound, str]:
    """A round of Flower that was kept, and the name of one of its clients."""
    found = kept_round(folder, server_round)
    if client is None and len(found.replies) != 1:
        raise ValueError(
            f"round {server_round} has {len(found.replies)} clients, choose one by --client: "
            f"{', '.join(found.replies)}"
        )
    client = client or next(iter(found.replies))
    if client not in found.replies:
        raise ValueError(f"no client {client!r}; known: {', '.join(found.replies)}")
    return found, client


def network_of(
    name: str,
    input_shape: Shape,
    classes: int | None,
    tensors: Mapping[str, torch.Tensor],
    normalise: str | None,
    seed: int,
    assumed: list[str],
) -> nn.Module:
    """The network by its name, with as many classes as the tensors show unless they are told.

    What is taken for granted about what enters it is added to `assumed`.
    """
    classes = classes or classes_in(name, input_shape, tensors)
    net = build_model(name, blank(input_shape, classes), seed=seed)
    if normalise is not None:
        mean, std = normalisation(normalise, input_shape[0])
        inner = net.get_submodule("1") if normalises(net) else net
        net = nn.Sequential(Normalise(mean, std), inner)
        if "0.mean" in tensors:
            raise ValueError("the file has a normalisation of its own: leave --normalise out")
    elif not any(name.endswith("0.mean") for name in tensors):
        first = next(net.children(), None)
        entering = "as they are"
        if normalises(net) and isinstance(first, Normalise):
            entering = f"less {numbers_of(first.mean)}, over {numbers_of(first.std)}"
        assumed.append(
            f"pixels in [0, 1] enter the network {entering}; if the client normalises otherwise, "
            "say it by --normalise"
        )
    return net


def numbers_of(buffer: torch.Tensor) -> str:
    """The numbers of channels, in words; one where they are the same."""
    values = [f"{value:.4g}" for value in buffer.flatten().tolist()]
    return values[0] if len(set(values)) == 1 else ", ".join(values)


def blank(input_shape: Shape, classes: int) -> Batch:
    """A batch that shows a network the shape of images and how many classes there are."""
    labels = torch.zeros(2, dtype=torch.long)
    return Batch(torch.full((2, *input_shape), 0.5), labels, [str(n) for n in range(classes)])


def classes_in(name: str, input_shape: Shape, tensors: Mapping[str, torch.Tensor]) -> int:
    """How many classes the tensors of a network have, by the shape of its classifier.

    Raises ValueError where they have no classifier.
    """
    module = name.startswith("module:")
    if module:
        side = input_shape[1] if input_shape[1] == input_shape[2] else input_shape[1:]
        net = from_module(
            name.partition(":")[2], {"channels": input_shape[0], "num_classes": 2, "size": side}, {}
        )
    else:
        net = build_model(name, blank(input_shape, 2))
    classifier = find_classifier(net.eval(), input_shape)
    parameters = dict(net.named_parameters())
    named = named_tensors(named_for(net, tensors), net.state_dict(), parameters, "the file")
    unknown = sorted(named.keys() - net.state_dict().keys())
    if unknown:
        raise ValueError(f"the file does not fit {name}, which has no {', '.join(unknown[:5])}")
    for kind in ("weight", "bias"):
        found = named.get(f"{classifier.name}.{kind}")
        if found is not None and found.ndim:
            return len(found)
    if module:
        return len(classifier.weight)
    raise ValueError(f"the file has no {classifier.name}.weight to count classes by: say --classes")


def normalisation(words: str, channels: int) -> tuple[list[float], list[float]]:
    """Mean and deviation for each channel, from what `read_update` takes as normalise.

    >>> normalisation("0.5/0.25", 3)
    ([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])
    """
    if words == "none":
        return [0.0] * channels, [1.0] * channels
    try:
        parts = NORMALISATION.get(words) or [
            [float(number) for number in part.split(",")] for part in words.split("/")
        ]
        mean, std = (list(part) * (channels if len(part) == 1 else 1) for part in parts)
    except ValueError:
        mean = std = []
    if len(mean) != channels or len(std) != channels or not all(0 < s < math.inf for s in std):
        raise ValueError(
            f"normalisation is none, one of {', '.join(NORMALISATION)}, or means/deviations for "
            f"{channels} channels, such as 0.5/0.25; got {words!r:.60}"
        )
    return mean, std


def gives_several(model: nn.Module, input_shape: Shape) -> bool:
    """Whether the network returns more than logits."""
    images = torch.full((2, *input_shape), 0.5)
    with torch.no_grad():
        return not isinstance(as_sent(model, False)(images), torch.Tensor)
