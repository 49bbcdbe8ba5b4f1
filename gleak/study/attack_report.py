"""What an attack without the truth leaves: index.html, report.json, and the images as PNG files.

report.json, whose keys stay as they are while `schema` is 1:

schema, gleak    1, and the package's version
about            what was attacked: kind, network, classes, samples, input_shape, values, facts,
                 precision, samples_known (how K is known)
assumed          what was not told and taken for granted, in sentences
doubts           what does not fit what was told, in sentences; empty where all does
labels           method, seconds, not_attacked (why, or null), certain (how many images have a class
                 that is known with 95 %: the sum of low; null where that cannot be said),
                 single_images (how many were told apart in the gradient, or null), and counts: for
                 each class in the batch, or perhaps in it, class, name, count, low, high, at_least;
                 low and high are the ends of the interval that holds the count with 90 %; and
                 verdict: "leaks" where an image is certain, "cannot leak" for an update of zeros,
                 else "not found"
images           finished (false while the search runs, and where it was cut short), seconds,
                 not_attacked (why, or null), way, fell_back, iterations, files, labels, unexplained
                 (how much of the update these images leave unexplained, 0 to about 1), gray (the
                 same of gray images with these labels), verdict ("leaks", "not found" or "cannot
                 leak"), evidence ("closed form": the images were computed; "activations": what a
                 layer makes of each image was computed, and images searched for that fit;
                 "gradient": they explain the update; or null)
statistics       of how many batch norm layers the mean and variance of what entered them are known
                 exactly, from the running statistics that came back
seed, effort     of all draws; iterations asked for, or null for the attack's own
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image

from gleak.storage import whole
from gleak.study import page
from gleak.study.served import Served

EVIDENCE = {
    "closed form": "The pictures below were computed from the update, not searched for.",
    "activations": "What a layer of the network makes of each image was computed from the update; "
    "the pictures below were searched for to fit that. More iterations make them sharper.",
    "gradient": "The pictures below would have made nearly the update that the client sent.",
}

COLOURS = {"leaks": "leaks", "not found": "unknown", "cannot leak": "cannot"}  # on the page


@dataclass
class Report:
    """What was found so far. facts: what report.json holds. images: (K, C, H, W), if there are."""

    served: Served
    facts: dict[str, Any]
    images: torch.Tensor | None = field(default=None, repr=False)

    def fails(self, subject: str) -> bool:
        """Whether the labels or the images leak, or could not be attacked, as `--fail-on` asks."""
        facts = self.facts[subject]
        attacked = facts["not_attacked"] is None
        return facts["verdict"] == "leaks" or (not attacked and facts["verdict"] != "cannot leak")


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


def remove_images(folder: Path) -> None:
    """Remove the images of an earlier report."""
    for old in folder.glob("image-[0-9]*-class-[0-9]*.png"):
        old.unlink()


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
    """How many labels are certain, in words."""
    certain, samples = report.facts["labels"]["certain"], report.served.update.num_samples
    return f"the classes of {certain} of {samples} images are certain"


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
        page.paragraph(
            "A server has one update of a client, and none of its images or labels. This is what "
            "was read from the update alone."
        ),
        *answers(report),
        page.section("Labels", *labels_part(report)),
        page.section("Images", *images_part(report)),
        page.section("The update", *update_part(report)),
        footer=f"gleak {facts['gleak']}; seed {facts['seed']}. The same in report.json.",
    )


def answers(report: Report) -> list[page.Html]:
    """The answers that come first: labels, images, and what batch norm gives away besides."""
    facts = report.facts
    labels, images = facts["labels"], facts["images"]
    if labels["verdict"] == "cannot leak":
        words = str(labels["not_attacked"])
        first = page.verdict("cannot", "Labels: cannot leak", page.paragraph(words))
    elif labels["not_attacked"]:
        first = page.verdict(
            "unknown", "Labels: not attacked", page.paragraph(labels["not_attacked"])
        )
    elif labels["verdict"] == "leaks":
        words = f"{certainty(report).capitalize()}: with 95 % there are no fewer of them."
        first = page.verdict("leaks", "Labels: leak", page.paragraph(words))
    else:
        first = page.verdict(
            "unknown",
            "Labels: restored, none of them for certain",
            page.paragraph("How many there are of each class is a guess."),
        )
    kind = images["verdict"]
    headings = {
        "leaks": "Images: leak",
        "cannot leak": "Images: cannot leak",
        "not found": "Images: not found by this attack, with this effort",
    }
    if kind == "not found" and not images["files"]:
        heading, words = "Images: not attacked", str(images["not_attacked"])
    elif kind == "leaks":
        heading, words = headings[kind], EVIDENCE[images["evidence"]]
        if images["unexplained"] is not None:
            words += (
                f" They leave {images['unexplained']:.2g} of the update unexplained, gray ones "
                f"{images['gray']:.2g}; 0 is all of it explained."
            )
    elif kind == "cannot leak":
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
    found = [first, page.verdict(COLOURS[kind], heading, page.paragraph(words))]
    if facts["statistics"]:
        words = (
            f"Mean and variance of what entered {facts['statistics']} layers are known exactly: "
            "the running statistics that came back with the weights tell them after one step."
        )
        found.append(page.verdict("leaks", "Batch norm: leaks", page.paragraph(words)))
    return found


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
                    None if row["low"] is None else between(row["low"], row["high"])
                    for row in facts["counts"]
                ],
                "at least": [row["at_least"] for row in facts["counts"]],
            }
        ).set_index("class")
        parts.append(
            page.table(
                frame,
                "How many images of each class the client used; the numbers between which that is "
                "with 90 % probability; how many are proven. All other classes: none.",
            )
        )
    method = str(facts["method"]).replace("gleak", "the study's rule", 1)
    tried = [f"restored by {method}, in {facts['seconds']:.1f} s"]
    if facts["not_attacked"]:
        tried = [f"not attacked: {facts['not_attacked']}"]
    if facts["single_images"] is not None:
        tried.append(
            f"{facts['single_images']} of {report.served.update.num_samples} images were told "
            "apart in the last layer's gradient: for each of them, what the network makes of it"
        )
    parts.append(page.bullets(tried))
    return parts


def between(low: int, high: int) -> str:
    """An interval in words.

    >>> between(1, 1), between(0, 2)
    ('1', '0 to 2')
    """
    return f"{low}" if low == high else f"{low} to {high}"


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
            tried.append(
                "cut short: these are the best pictures up to there; the same command goes on"
            )
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
