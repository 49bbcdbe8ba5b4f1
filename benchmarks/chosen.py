"""Which images and seeds settings were chosen on, and which of them the chapters report.

    python benchmarks/chosen.py

One row a chapter: the images and seeds that its parameters and its code name, and how many of them
had a part in choosing settings; then one for each recorded table, with the seeds that stand in it.
Chosen on is what the notes of this study name (`book/*-notes.md`), and whatever batch they may have
meant: in doubt, an image or a seed counts as chosen on. Chapters that ask for a number of seeds get
those of `fresh_seeds`. Where a seed draws images from a pool, a fresh seed draws a fresh batch of
the clients' half; no network was trained on an image of a client (see `gleak.load_pool`).
"""

import re
from collections.abc import Callable, Mapping

import pandas as pd
import torch

import gleak
from gleak.study import chapters, recorded
from gleak.study.experiments import same_label, wrong_label
from gleak.study.experiments.common import fresh_seeds
from gleak.study.experiments.searches import CHOSEN_ON, unchosen

# Weights, steps and sizes of the image searches: data set -> numbers of the images.
IMAGES = {**CHOSEN_ON, "mnist-samples": set(range(20))}
SHOWN = "cifar10-samples"  # whose images stand in code that has no data set as a parameter
# Searches ran on 0 to 3, label rules on 0 to 9, 11 and 300 to 309.
SEEDS = {*range(12), *range(300, 310)}
# Recorded tables without an image on which settings were chosen.
FRESH_TABLES = {"04_fresh_images"}

# Chapters that report on something that was chosen on, and why they have to.
EXCEPTIONS = {
    "02_labels_fedsgd": "crops of all shipped images; counts follow from network and draw",
    "08_same_label": "four images of one class: no class of the twenty has four unused ones",
    "08a_against_fusion": "the images of chapter 08",
}


def drawn_cells(parameters: Mapping) -> gleak.Batch:
    """Images of chapter 10: one for each seed."""
    seeds = fresh_seeds(parameters["seeds"])
    drawn = [unchosen(parameters["dataset"], parameters["size"], seed) for seed in seeds]
    names = drawn[0].class_names
    images = torch.cat([batch.images for batch in drawn])
    return gleak.Batch(images, torch.cat([batch.labels for batch in drawn]), names)


def one_of_each(parameters: Mapping) -> gleak.Batch:
    """Images of chapters 07 and 07a."""
    return wrong_label.drawn(
        parameters["dataset"], parameters.get("larger_size", parameters["size"])
    )


def one_class(parameters: Mapping) -> gleak.Batch:
    """Images of chapters 08 and 08a."""
    return same_label.of_one_class(parameters["dataset"], parameters["size"])


# Chapters that draw from the twenty samples of a data set, and how.
DRAWN: dict[str, Callable[[Mapping], gleak.Batch]] = {
    "02_labels_fedsgd": lambda parameters: gleak.load_batch(parameters["dataset"], range(20)),
    "07_wrong_label": one_of_each,
    "07a_more_wrong_labels": one_of_each,
    "08_same_label": one_class,
    "08a_against_fusion": one_class,
    "10_ingredients": drawn_cells,
}


def numbers(batch: gleak.Batch, dataset: str) -> list[int]:
    """Which of the samples of a data set are in a batch."""
    samples = gleak.load_batch(dataset, range(20)).images
    return sorted({next(n for n in range(20) if samples[n].equal(one)) for one in batch.images})


def named(chapter: str) -> tuple[list[int], list[int]]:
    """Images and seeds that stand in a chapter's code, beside its parameters.

    Solutions of exercises are no code of the chapter: they report nothing.
    """
    cells = [cell for cell in chapters.read_source(chapter).cells if cell.cell_type == "code"]
    code = "\n".join(cell.source for cell in cells)
    lists = re.findall(r"indices\"?[=:] ?\[([\d, ]+)\]", code)
    images = [number for found in lists for number in listed(found)]
    seeds = re.findall(r"\b(?:seed|training)=(\d+)", code)
    return images, [int(seed) for seed in seeds]


def listed(text: str) -> list[int]:
    """The numbers of a list as it stands in code.

    >>> listed("5, 8")
    [5, 8]
    """
    return [int(number) for number in text.split(",")]


def part(reported: list[int], chosen: set[int]) -> str:
    """How many of the reported were chosen on.

    >>> part([0, 1, 9], {0, 1})
    '2 of 3'
    """
    return f"{len(set(reported) & chosen)} of {len(reported)}"


def row(chapter: str) -> dict[str, object]:
    """What a chapter reports on, and how much of it settings were chosen on."""
    parameters = chapters.known_parameters(chapter)
    data = parameters.get("dataset", "")
    seeds = [
        seed
        for name, value in parameters.items()
        if name in ("seed", "seeds") or name.endswith("_seeds")
        for seed in (list(fresh_seeds(value)) if name != "seed" else [value])
    ]
    images, more = named(chapter)
    images += [n for name in ("indices", "more_indices") for n in parameters.get(name) or []]
    if chapter in DRAWN:
        images += numbers(DRAWN[chapter](parameters), data)
    images, seeds = sorted(set(images)), sorted({*seeds, *more})
    return {
        "chapter": chapter,
        "data": data,
        "images": ", ".join(map(str, images)) or "drawn",
        "seeds": ", ".join(map(str, seeds)),
        "images chosen on": part(images, IMAGES.get(data, IMAGES[SHOWN])),
        "seeds chosen on": part(seeds, SEEDS),
    }


def rows() -> list[dict[str, object]]:
    """A row for each chapter that has data."""
    return [
        row(chapter)
        for chapter in chapters.chapters()
        if {"dataset", "seed", "seeds"} & set(chapters.known_parameters(chapter))
    ]


def tables() -> list[dict[str, object]]:
    """A row for each recorded table with the seeds in it, or those that its first lines name."""
    found = []
    for file in sorted((chapters.root() / "book" / "results").glob("*.csv")):
        frame = recorded.read(file)
        seeds = sorted(frame["seed"].unique().tolist()) if "seed" in frame else [1]
        found.append(
            {
                "table": file.name,
                "images": "none chosen on" if file.stem in FRESH_TABLES else "some chosen on",
                "seeds": ", ".join(map(str, seeds)),
                "seeds chosen on": part(seeds, SEEDS),
            }
        )
    return found


def main() -> None:
    """Print both tables, and why some rows have to be what they are."""
    print(pd.DataFrame(rows()).to_string(index=False))
    for chapter, why in EXCEPTIONS.items():
        print(f"{chapter}: {why}")
    print()
    print(pd.DataFrame(tables()).to_string(index=False))


if __name__ == "__main__":
    main()
