"""Which images and seeds settings were chosen on, and which of them the chapters report.

    python benchmarks/chosen.py

One row a chapter: the images and seeds that its parameters name, and how many of them had a part in
choosing settings. Chosen on is what the notes of this study name (`book/*-notes.md`), and whatever
batch they may have meant: in doubt, an image counts as chosen on. Halves of pools are told apart by
their names; no network was trained on an image of a client (see `gleak.load_pool`).
"""

import pandas as pd

from gleak.study import chapters
from gleak.study.experiments.searches import DISTINCT, SIXTEEN

# Weights, steps and sizes of the image searches: data set -> numbers of the images.
IMAGES = {
    "cifar10-samples": {0, 1, 2, 3, *DISTINCT},
    "cifar100-samples": set(SIXTEEN),
    "imagenet-samples": {0, 1},
    "mnist-samples": set(range(20)),
}
SEEDS = {0, 1, 2, 3}
# Thresholds of the label rules: seeds of networks and batches, on these pools.
LABEL_SEEDS = {*range(10), *range(300, 310)}
LABEL_POOLS = {"digits", "mnist-5k", "imagenet-crops"}
LABEL_CHAPTERS = ("02", "03")


def part(reported: list[int], chosen: set[int]) -> str:
    """How many of the reported were chosen on.

    >>> part([0, 1, 9], {0, 1})
    '2 of 3'
    """
    return f"{len(set(reported) & chosen)} of {len(reported)}"


def row(chapter: str, parameters: dict) -> dict[str, object]:
    """What a chapter reports on, from its parameters, and how much of it is not new."""
    data = parameters.get("dataset", "")
    seeds = parameters.get("seeds", parameters.get("seed", []))
    seeds = list(range(seeds)) if "seeds" in parameters and isinstance(seeds, int) else seeds
    seeds = [seeds] if isinstance(seeds, int) else list(seeds)
    images = list(parameters.get("indices") or [])
    labels = chapter[:2] in LABEL_CHAPTERS
    pools = [name for name in [data, *parameters.get("pools", [])] if name in LABEL_POOLS]
    drawn = f"drawn from {', '.join(pools)}" if pools else "drawn"
    return {
        "chapter": chapter,
        "data": data,
        "images": ", ".join(map(str, images)) or drawn,
        "seeds": ", ".join(map(str, seeds)),
        "images chosen on": part(images, IMAGES.get(data, set())) if images else "maybe",
        "seeds chosen on": part(seeds, LABEL_SEEDS if labels else SEEDS),
    }


def main() -> None:
    """Print the table."""
    rows = []
    for chapter in chapters.chapters():
        parameters = chapters.known_parameters(chapter)
        if {"dataset", "seed", "seeds"} & set(parameters):
            rows.append(row(chapter, parameters))
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
