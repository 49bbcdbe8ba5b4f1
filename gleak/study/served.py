"""An attack on what a server has: files, a network, what the client told, and no truth.

`read_update` makes an update of the files, or refuses them in a sentence that says what to do.
`attack` restores labels and images and writes a folder: index.html (one page that needs no other
file), report.json, and the images as PNG. The labels are written before the search for images
begins, so that what ends the search takes nothing with it.

report.json, whose keys stay as they are while `schema` is 1:

schema, gleak    1, and the package's version
about            what was attacked: kind, network, classes, samples, input_shape, values, facts,
                 precision, samples_known (how K is known)
assumed          what was not told and taken for granted, in sentences
doubts           what does not fit what was told, in sentences; empty where all does
labels           method, seconds, not_attacked (why, or null), certain (how many classes' counts
                 are, null where that cannot be said), single_images (how many were told apart in
                 the gradient, or null), and counts: for each class in the batch, or perhaps in it,
                 class, name, count, low, high, at_least; low and high are the ends of the interval
                 that holds the count with 90 %
images           finished (false while the search runs, and where it was cut short), seconds,
                 not_attacked (why, or null), way, fell_back, iterations, files, labels, unexplained
                 (how much of the update these images leave unexplained, 0 to about 1), gray (the
                 same of gray images with these labels), verdict ("leaks", "unknown" or "cannot"),
                 evidence ("closed form": the images were computed; "activations": what a layer
                 makes of each image was computed, and images searched for that fit; "gradient":
                 they explain the update; or null)
seed, effort     of all draws; iterations asked for, or null for the attack's own
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image
from torch import nn

from gleak import __version__
from gleak.data import Batch
from gleak.inversion import Inversion, InversionFailed, invert, local_gradient
from gleak.inversion.distances import l2
from gleak.inversion.drift import undrifted
from gleak.inversion.own import strongest_model
from gleak.kept import KeptRound, kept_round, samples_of
from gleak.labels import guess_samples, label_posterior, restore_labels, single_images
from gleak.models import (
    NORMALISATION,
    Normalise,
    build_model,
    from_module,
    named_for,
    normalises,
)
from gleak.network import as_sent, find_classifier, is_dropout
from gleak.storage import whole
from gleak.study import page
from gleak.update import MissingKnowledge, Update, WeightsUpdate
from gleak.wire import named_tensors, put_weights, read_parts, read_tensors

Shape = tuple[int, int, int]
Say = Callable[[str], None]

EFFORTS = {"quick": 100, "usual": None, "long": 10_000}  # iterations; None: the attack's own
# Images are taken for the client's where they leave less of the update unexplained (the relative
# error of the gradient that they would make) than this, and half of what gray ones leave. On
# networks of one to four images of CIFAR-10, images that score above their 4x4 thumbnails left 0.03
# to 0.09, and others 0.14 to 1; with batch norm, right images may leave everything.
EXPLAINED = 0.1

EVIDENCE = {
    "closed form": "The pictures below were computed from the update, not searched for.",
    "activations": "What a layer of the network makes of each image was computed from the update; "
    "the pictures below were searched for to fit that. More iterations make them sharper.",
    "gradient": "The pictures below would have made nearly the update that the client sent.",
}

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


@dataclass
class Report:
    """What was found so far. facts: what report.json holds. images: (K, C, H, W), if there are."""

    served: Served
    facts: dict[str, Any]
    images: torch.Tensor | None = field(default=None, repr=False)


# -- from files to an update ----------------------------------------------------------------------


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
        K; by default what the message says, else it is guessed from the update.
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
        start = None if before is None else message_of(before)[0]
        model = build(start or tensors)
        samples = samples or int(numbers.get("num-examples", 0))
        if start is None:
            assumed.append(f"weights before training were not given: they are drawn, seed {seed}")
        else:
            put_weights(model, named_for(model, start))
        shown: dict[str, Any] = {
            "num_samples": samples or int(facts.get("batch_size", 1)),  # until it is guessed
            "input_shape": input_shape,
            "training": training,
        }
        tensors = named_for(model, tensors)
        if after is None:
            update = Update.from_gradient(tensors, model, **shown)
        else:
            update = Update.from_weights(None, tensors, model, delta=delta, **shown)
    update = replace(update, facts=facts)
    how = "told"
    if not samples:
        guess = guess_samples(update, seed=seed)
        samples, how = guess.samples, str(guess)
    update = replace(update, num_samples=samples)
    if loss == "sum":
        update = update.of_summed_loss()
    update.refuse_contradictions()
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
    elif not tensors.keys() >= {"0.mean"} and not any(n.endswith(".0.mean") for n in tensors):
        entering = "as they are"
        if normalises(net):
            mean, std = ([round(v, 4) for v in net[0].get_buffer(n).flatten().tolist()]
                         for n in ("mean", "std"))  # fmt: skip
            entering = f"less {mean}, over {std}"
        assumed.append(
            f"pixels in [0, 1] enter the network {entering}; if the client normalises otherwise, "
            "say it by --normalise"
        )
    return net


def blank(input_shape: Shape, classes: int) -> Batch:
    """A batch that shows a network the shape of images and how many classes there are."""
    labels = torch.zeros(2, dtype=torch.long)
    return Batch(torch.full((2, *input_shape), 0.5), labels, [str(n) for n in range(classes)])


def classes_in(name: str, input_shape: Shape, tensors: Mapping[str, torch.Tensor]) -> int:
    """How many classes the tensors of a network have, by the shape of its classifier.

    Raises ValueError where they have no classifier.
    """
    kind, _, rest = name.partition(":")
    if kind == "module":
        side = input_shape[1] if input_shape[1] == input_shape[2] else input_shape[1:]
        net = from_module(rest, {"channels": input_shape[0], "num_classes": 2, "size": side}, {})
    else:
        net = build_model(name, blank(input_shape, 2))
    classifier = find_classifier(net.eval(), input_shape)
    parameters = dict(net.named_parameters())
    named = named_tensors(named_for(net, tensors), net.state_dict(), parameters, "the file")
    for kind in ("weight", "bias"):
        found = named.get(f"{classifier.name}.{kind}")
        if found is not None and found.ndim:
            return len(found)
    if kind == "module":
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


# -- the attack -----------------------------------------------------------------------------------


def attack(
    served: Served,
    folder: str | Path,
    *,
    iterations: int | None = None,
    labels_only: bool = False,
    seed: int = 0,
    progress: bool = True,
    say: Say = lambda line: None,
) -> Report:
    """Labels and images of an update, and a folder that tells of them.

    Parameters
    ----------
    served
        The update.
    folder
        Where index.html, report.json and the images go; files of an earlier report are replaced.
    iterations
        Of the search for images; None: the attack's own number.
    labels_only
        Whether images are left alone.
    seed
        Of all draws.
    progress
        Whether the search shows a bar.
    say
        Called with a line whenever there is something to say.

    Raises
    ------
    Contradiction
        Where the update cannot be what the client is said to have sent.
    """
    served.update.refuse_contradictions()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("image-[0-9]*-class-[0-9]*.png"):
        old.unlink()
    report = Report(served, about(served, iterations, seed))
    say(f"labels of {served.update.num_samples} samples, {served.update.num_classes} classes")
    counts = find_labels(report, seed)
    write(report, folder)
    say(label_line(report))
    if labels_only:
        report.facts["images"]["not_attacked"] = "not asked for"
    else:
        find_images(report, counts, iterations, seed, progress)
    write(report, folder)
    say(image_line(report))
    return report


def about(served: Served, iterations: int | None, seed: int) -> dict[str, Any]:
    """The report before anything was found."""
    update = served.update
    return {
        "schema": 1,
        "gleak": __version__,
        "about": {
            "kind": "weights" if isinstance(update, WeightsUpdate) else "gradient",
            "network": served.network,
            "classes": update.num_classes,
            "samples": update.num_samples,
            "samples_known": served.samples_known,
            "input_shape": list(update.input_shape),
            "values": sum(tensor.numel() for tensor in update.sent.values()),
            "facts": dict(update.facts),
            "precision": float(update.precision),
        },
        "assumed": list(served.assumed),
        "doubts": update.contradictions(),
        "labels": {"method": None, "seconds": 0.0, "not_attacked": None, "counts": []}
        | {"certain": None, "single_images": None},
        "images": {
            "finished": False,
            "seconds": 0.0,
            "not_attacked": "the search has not ended",
            "way": "",
            "fell_back": [],
            "iterations": 0,
            "files": [],
            "labels": [],
            "unexplained": None,
            "gray": None,
            "verdict": "unknown",
            "evidence": None,
        },
        "seed": seed,
        "effort": iterations,
    }


def find_labels(report: Report, seed: int) -> torch.Tensor:
    """Restore label counts (N,) into the report; as even as can be where nothing restores them."""
    update, began = report.served.update, time.monotonic()
    facts = report.facts["labels"]
    counts = even_counts(update.num_samples, update.num_classes, seed)
    try:
        found = label_posterior(update, seed=seed)
        counts = found.counts
        seen = ((counts > 0) | (found.high > 0)).nonzero().flatten().tolist()
        rows = {
            "count": counts,
            "low": found.low,
            "high": found.high,
            "at_least": found.at_least,
        }
        facts |= {"method": "gleak, with 90 % intervals", "certain": int(found.certain.sum())}
        facts["counts"] = [
            {"class": n, "name": report.served.class_names[n]}
            | {name: int(values[n]) for name, values in rows.items()}
            for n in seen
        ]
    except MissingKnowledge as error:
        try:
            counts = restore_labels(update, "gleak", seed=seed)
            facts["method"] = f"gleak, without certainty: {error}"
            facts["counts"] = [
                {"class": n, "name": report.served.class_names[n], "count": int(counts[n])}
                | {"low": None, "high": None, "at_least": None}
                for n in counts.nonzero().flatten().tolist()
            ]
        except ValueError as other:
            facts["not_attacked"] = str(other)
    except ValueError as error:
        facts["not_attacked"] = str(error)
    try:
        singles = single_images(update, seed=seed)
        facts["single_images"] = len(singles.labels)
    except ValueError:
        pass
    facts["seconds"] = round(time.monotonic() - began, 2)
    return counts


def even_counts(samples: int, classes: int, seed: int) -> torch.Tensor:
    """(N,) counts as even as they can be, the classes in a drawn order.

    >>> even_counts(5, 2, seed=0).sum().item()
    5
    """
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    repeated = order.repeat(-(-samples // classes))[:samples]
    return torch.bincount(repeated, minlength=classes)


def find_images(
    report: Report, counts: torch.Tensor, iterations: int | None, seed: int, progress: bool
) -> None:
    """Restore images into the report; Ctrl-C keeps those that were found."""
    update, began = report.served.update, time.monotonic()
    facts = report.facts["images"]
    result: Inversion | None = None
    try:
        result = invert(
            update, counts, "gleak", iterations=iterations, seed=seed, progress=progress
        )
        facts["not_attacked"] = None
    except InversionFailed as error:
        result = error.best
        facts |= {"not_attacked": None, "fell_back": [str(error)]}
    except KeyboardInterrupt:
        facts["not_attacked"] = "interrupted before there was a picture"
    except ValueError as error:
        facts["not_attacked"] = str(error)
        if not any(tensor.any() for tensor in update.message().values()):
            facts["verdict"] = "cannot"
    if result is not None:
        labels = result.labels.tolist()
        report.images = result.images.detach().float().cpu()
        guessed = report.facts["labels"]["not_attacked"]
        facts |= {
            "finished": result.finished,
            "way": result.way,
            "fell_back": [*facts["fell_back"], *result.fell_back]
            + ([f"labels are guessed: {guessed}"] if guessed else []),
            "iterations": len(result.history),
            "labels": labels,
            "files": [f"image-{n:03d}-class-{label}.png" for n, label in enumerate(labels)],
        }
        try:
            gray = torch.full_like(report.images, 0.5)
            facts["unexplained"] = unexplained(update, report.images, result.labels, seed)
            facts["gray"] = unexplained(update, gray, result.labels, seed)
        except (MissingKnowledge, KeyboardInterrupt):
            pass
        facts["evidence"] = evidence(result, facts["unexplained"], facts["gray"])
        if facts["evidence"]:
            facts["verdict"] = "leaks"
    facts["seconds"] = round(time.monotonic() - began, 2)


def evidence(result: Inversion, left: float | None, gray: float | None) -> str | None:
    """What says that images leak, without knowing them: see `report.json`; None where nothing does.

    left, gray: what the images leave unexplained of the update, and what gray ones do.
    """
    if result.attack is None:
        return "closed form"
    if any(stage.features for stage in result.attack.stages):
        return "activations"
    if left is not None and gray is not None and left < EXPLAINED and left < gray / 2:
        return "gradient"
    return None


def unexplained(update: Update, images: torch.Tensor, labels: torch.Tensor, seed: int) -> float:
    """The relative distance of what these images would have sent to what was sent; 0 for the same.

    images (K, C, H, W), labels (K,). Raises MissingKnowledge where the client told too little.
    """
    images = images.to(update.classifier.weight)
    labels = labels.to(images.device)
    if isinstance(update, WeightsUpdate):
        return undrifted(update, images, labels, strongest_model(update), seed)[1]
    sent = update.equivalent_gradient()
    weights = {name: p.detach() for name, p in update.model.named_parameters()}
    made = local_gradient(update.model, weights, list(sent), images, labels)
    return l2([m.detach() for m in made], list(sent.values())).sqrt().item()


# -- what is written ------------------------------------------------------------------------------


def write(report: Report, folder: Path) -> None:
    """The images, report.json and index.html, each whole or not at all."""
    if report.images is not None:
        for name, image in zip(report.facts["images"]["files"], report.images, strict=True):
            with whole(folder / name) as partial:
                picture(image).save(partial, format="png")
    with whole(folder / "report.json") as partial:
        text = json.dumps(finite(report.facts), indent=2, ensure_ascii=True, allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")
    write_page(report, folder)


def finite(value: Any) -> Any:
    """The value with null for numbers that JSON has not."""
    if isinstance(value, dict):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def picture(image: torch.Tensor) -> Image.Image:
    """(C, H, W) in [0, 1] as eight bits; more than three channels: their mean."""
    if len(image) not in (1, 3):
        image = image.mean(0, keepdim=True)
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).squeeze(2)
    return Image.fromarray(pixels.numpy())


def label_line(report: Report) -> str:
    """What became of the labels, in one line."""
    facts = report.facts["labels"]
    if facts["not_attacked"]:
        return f"labels were not attacked: {facts['not_attacked']}"
    counted = ", ".join(
        f"{row['count']} x {page.short(row['name'], 30)}" for row in facts["counts"] if row["count"]
    )
    known = "" if facts["certain"] is None else f" ({certainty(report)})"
    return f"labels: {counted}{known}"


def certainty(report: Report) -> str:
    """How many counts are certain, in words."""
    certain, classes = report.facts["labels"]["certain"], report.served.update.num_classes
    return f"the counts of {certain} of {classes} classes are certain, zeros included"


def image_line(report: Report) -> str:
    """What became of the images, in one line."""
    facts = report.facts["images"]
    if not facts["files"]:
        return f"images were not attacked: {facts['not_attacked']}"
    told = f"images: {len(facts['files'])} by {facts['way']}"
    if facts["unexplained"] is not None:
        told += (
            f"; they leave {facts['unexplained']:.2g} of the update unexplained "
            f"(gray ones {facts['gray']:.2g})"
        )
    return told if facts["finished"] else f"{told}; cut short"


def write_page(report: Report, folder: Path) -> None:
    """index.html: what the update gave away, for people."""
    facts = report.facts
    page.write(
        folder / "index.html",
        "What one update gave away",
        *answers(report),
        page.section("Labels", *labels_part(report)),
        page.section("Images", *images_part(report)),
        page.section("The update", *update_part(report)),
        footer=f"gleak {facts['gleak']}; seed {facts['seed']}. The same in report.json.",
    )


def answers(report: Report) -> list[page.Html]:
    """The two answers that come first: labels and images."""
    labels, images = report.facts["labels"], report.facts["images"]
    if labels["not_attacked"]:
        first = page.verdict(
            "unknown", "Labels: not attacked", page.paragraph(labels["not_attacked"])
        )
    elif labels["certain"]:
        first = page.verdict("leaks", "Labels: leak", page.paragraph(certainty(report), "."))
    else:
        first = page.verdict(
            "unknown",
            "Labels: restored, none of them for certain",
            page.paragraph("How many there are of each class is a guess."),
        )
    kind = images["verdict"]
    headings = {
        "leaks": "Images: leak",
        "cannot": "Images: cannot leak",
        "unknown": "Images: not found by this attack, with this effort",
    }
    if kind == "unknown" and not images["files"]:
        heading, words = "Images: not attacked", str(images["not_attacked"])
    elif kind == "leaks":
        heading, words = headings[kind], EVIDENCE[images["evidence"]]
        if images["unexplained"] is not None:
            words += (
                f" They leave {images['unexplained']:.2g} of the update unexplained, gray ones "
                f"{images['gray']:.2g}."
            )
    elif kind == "cannot":
        heading, words = headings[kind], str(images["not_attacked"])
    else:
        heading = headings[kind]
        missed = images["unexplained"]
        words = (
            "That is no proof that they do not leak: more iterations, another seed or a fact that "
            "was not told may find them. "
        )
        if missed is not None:
            words += (
                f"The pictures below leave {missed:.2g} of the update unexplained, gray ones "
                f"{images['gray']:.2g}; look at them all the same."
            )
    return [first, page.verdict(kind, heading, page.paragraph(words))]


def labels_part(report: Report) -> list[page.Html]:
    """The counts of all classes that are in the batch, or may be."""
    facts = report.facts["labels"]
    parts: list[page.Html] = []
    if facts["counts"]:
        frame = pd.DataFrame(
            {
                "class": [page.short(row["name"]) for row in facts["counts"]],
                "images": [row["count"] for row in facts["counts"]],
                "between": [
                    None if row["low"] is None else f"{row['low']} and {row['high']}"
                    for row in facts["counts"]
                ],
                "at least": [row["at_least"] for row in facts["counts"]],
            }
        ).set_index("class")
        parts.append(
            page.table(
                frame,
                "How many images of each class the client used; between which numbers that is with "
                "90 % probability; how many are proven. All other classes: none.",
            )
        )
    tried = [f"restored by {facts['method']}, in {facts['seconds']:.1f} s"]
    if facts["not_attacked"]:
        tried = [f"not attacked: {facts['not_attacked']}"]
    if facts["single_images"] is not None:
        tried.append(
            f"{facts['single_images']} of {report.served.update.num_samples} images were told "
            "apart in the last layer's gradient: for each of them, what the network makes of it"
        )
    parts.append(page.bullets(tried))
    return parts


def images_part(report: Report) -> list[page.Html]:
    """The pictures, and which way they were found."""
    facts, parts = report.facts["images"], []
    if report.images is not None:
        names = [page.short(report.served.class_names[label], 60) for label in facts["labels"]]
        parts.append(
            page.gallery(
                [image if len(image) in (1, 3) else image.mean(0, True) for image in report.images],
                [f"Restored image {n}, of class {name}" for n, name in enumerate(names)],
                [f"{file}: {name}" for file, name in zip(facts["files"], names, strict=True)],
            )
        )
    tried = [f"not attacked: {facts['not_attacked']}"]
    if facts["files"]:
        spent = f"{facts['iterations']} iterations, {facts['seconds']:.1f} s"
        tried = [f"tried: {facts['way']} ({spent})"]
        tried += [f"could not: {reason}" for reason in facts["fell_back"]]
        if not facts["finished"]:
            tried.append("cut short: these are the best pictures up to there")
    return [*parts, page.bullets(tried)]


def update_part(report: Report) -> list[page.Html]:
    """What was attacked, and what was taken for granted."""
    served, facts = report.served, report.facts
    rows = {
        "network": page.short(served.network),
        "samples": f"{facts['about']['samples']} ({facts['about']['samples_known']})",
        "the client told": ", ".join(f"{n} = {v:g}" for n, v in facts["about"]["facts"].items())
        or "nothing",
    }
    parts = [page.facts(rows, "What was attacked")]
    if facts["doubts"]:
        parts.append(page.paragraph(page.strong("What does not fit: "), "; ".join(facts["doubts"])))
    if facts["assumed"]:
        parts += [page.paragraph("Taken for granted:"), page.bullets(facts["assumed"])]
    return [*parts, page.folded("All that the server sees", page.preformatted(str(served.update)))]
