"""An attack on an update without the truth: labels, images, and what says that they are right.

The labels are written before the search for images begins, so that what ends the search takes
nothing with it; the same attack into the same folder then goes on where the search was. What is
written is in `gleak.study.attack_report`.
"""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gleak import __version__
from gleak.inversion import Inversion, InversionFailed, invert, local_gradient
from gleak.inversion.distances import l2
from gleak.inversion.drift import undrifted
from gleak.inversion.journal import begun, forget, keeping
from gleak.inversion.own import strongest_model
from gleak.labels import label_posterior, restore_labels, single_images
from gleak.provenance import digest_of, package_digest
from gleak.risk import is_zero
from gleak.study.attack_report import Report, image_line, label_line, remove_images, write
from gleak.study.served import Served
from gleak.update import MissingKnowledge, Update, WeightsUpdate

Say = Callable[[str], None]

EFFORTS = {"quick": 100, "usual": None, "long": 10_000}  # iterations; None: the attack's own
# Images are taken for the client's where they leave less of the update unexplained (the relative
# error of the gradient that they would make) than this, and half of what gray ones leave. On
# networks of one to four images of CIFAR-10, images that score above their 4x4 thumbnails left 0.03
# to 0.09, and others 0.14 to 1; with batch norm, right images may leave everything.
EXPLAINED = 0.1
ZERO = "the update is all zeros, as for any batch that moves nothing"


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
        Where index.html, report.json and the images go; files of an earlier report are replaced. A
        search for images that was cut short, by a kill or Ctrl-C, goes on from its folder `search`.
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
    remove_images(folder)
    report = Report(served, about(served, iterations, seed))
    say(f"labels of {served.update.num_samples} samples, {served.update.num_classes} classes")
    counts = find_labels(report, seed)
    write(report, folder)
    say(label_line(report))
    if labels_only:
        report.facts["images"]["not_attacked"] = "not asked for"
    else:
        kept = folder / "search"
        key = key_of(served.update, counts, iterations, seed)
        if begun(kept, key):
            say("the search for images goes on where it was interrupted")
        with keeping(kept, key):
            find_images(report, counts, iterations, seed, progress)
        if report.facts["images"]["finished"]:
            forget(kept)
    write(report, folder)
    say(image_line(report))
    return report


def key_of(update: Update, counts: torch.Tensor, iterations: int | None, seed: int) -> str:
    """A digest of all that decides a search for images."""
    tensors = {**update.model.state_dict(), **update.sent}
    tensors |= {
        f"{name} {kind}": t for name, p in update.statistics.items() for kind, t in enumerate(p)
    }
    named = hashlib.sha256()
    for name, tensor in tensors.items():
        named.update(
            name.encode() + tensor.detach().cpu().contiguous().view(-1).double().numpy().tobytes()
        )
    told = [dict(update.facts), update.num_samples, update.input_shape, counts.tolist()]
    made = [str(update.model), update.model.training, package_digest(), torch.__version__]
    return digest_of([named.hexdigest(), told, made, iterations, seed])


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
        | {"certain": None, "single_images": None, "verdict": "not found"},
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
            "verdict": "not found",
            "evidence": None,
        },
        "statistics": len(update.statistics),
        "seed": seed,
        "effort": iterations,
    }


def find_labels(report: Report, seed: int) -> torch.Tensor:
    """Restore label counts (N,) into the report; as even as can be where nothing restores them."""
    update, began = report.served.update, time.monotonic()
    facts = report.facts["labels"]
    counts = even_counts(update.num_samples, update.num_classes, seed)
    if is_zero(update):
        facts |= {"not_attacked": ZERO, "verdict": "cannot leak"}
        return counts
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
        facts |= {"method": "gleak, with 90 % intervals", "certain": int(found.low.sum())}
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
    if facts["certain"]:
        facts["verdict"] = "leaks"
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
        if is_zero(update):
            facts |= {"not_attacked": ZERO, "verdict": "cannot leak"}
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
