"""How far the closed forms reach on networks that people use, and what images come back.

    python benchmarks/reach.py book/results/04_reach.csv [--parts count peel search]

A row for each network, side of the images, batch size, mode of batch norm and seed. Counted: where
the peeling would end by equations and unknowns alone. Peeled: where it does end, and the error of
what is known there. Searched: PSNR of what `gleak` finds, beside its baselines. A row of a part has
what the parts before it have. The file is written after each row; rows that it has are not made
again. Counting takes two minutes on one core, peeling ten, searching an hour.
"""

import argparse
import datetime
import platform
from pathlib import Path

import pandas as pd
import torch

from gleak.study import recorded
from gleak.study.experiments import reach
from gleak.study.runner import product

KEYS = ["part", "network", "pixels", "K", "mode", "form", "seed"]
BOTH, EVAL = ("eval", "train"), ("eval",)
# network, pixels, modes: the small photographs with ResNet-18's 3x3 stem, the large with its 7x7
NETWORKS = [
    ("resnet18", (32, 64, 112, 224), BOTH),
    ("torchvision:resnet50", (64, 112, 224), BOTH),
    ("torchvision:vgg11", (64, 128, 224), EVAL),
    ("torchvision:alexnet", (64, 128, 224), EVAL),
    ("convnet", (32, 64, 128), EVAL),
]
SIZES = (1, 2, 4, 8)
SEEDS = "seeds draw the weights and the start of a search; images are the first of the samples"
MANY = ("resnet18", 32, 16)  # sixteen images of ten classes
# network, pixels, K, mode, format in which the client computes, seeds; what is searched is peeled
SEARCHED = [
    ("torchvision:alexnet", 64, 1, "eval", "float32", 3),
    ("torchvision:vgg11", 64, 1, "eval", "float32", 3),
    ("torchvision:resnet50", 64, 1, "eval", "float32", 3),
    ("resnet18", 64, 2, "eval", "float32", 3),
    ("resnet18", 224, 1, "eval", "float32", 3),
    ("resnet18", 112, 2, "eval", "float32", 3),
    ("torchvision:alexnet", 224, 1, "eval", "float32", 3),
    ("resnet18", 64, 4, "eval", "float32", 3),
    ("resnet18", 112, 4, "eval", "float32", 1),
    ("torchvision:alexnet", 64, 4, "eval", "float32", 1),
    ("torchvision:vgg11", 64, 4, "eval", "float32", 1),
    ("torchvision:resnet50", 64, 4, "eval", "float32", 1),
    ("torchvision:vgg11", 224, 1, "eval", "float32", 1),
    ("convnet", 128, 1, "eval", "float32", 1),
]
PEELED = [
    ("resnet18", 64, 2, "eval", "float64", 1),
    ("resnet18", 64, 4, "train", "float32", 1),
    ("resnet18", 224, 1, "train", "float32", 1),
    ("resnet18", 32, 16, "eval", "float32", 1),
    ("resnet18", 32, 16, "train", "float32", 1),
    ("torchvision:resnet50", 224, 1, "eval", "float32", 1),
    ("torchvision:resnet50", 64, 1, "train", "float32", 1),
    ("torchvision:alexnet", 224, 4, "eval", "float32", 1),
    ("convnet", 32, 2, "eval", "float32", 1),
    ("resnet18", 224, 8, "eval", "float32", 1),
]


def settings(parts: list[str]) -> list[dict]:
    """The keys of all rows of these parts but those that are counted, the first seeds first."""
    cells = [("peel", *cell) for cell in PEELED] + [("search", *cell) for cell in SEARCHED]
    return [
        dict(zip(KEYS, (*cell, seed), strict=True))
        for seed in (1, 2, 3)
        for *cell, seeds in cells
        if cell[0] in parts and seed <= seeds
    ]


def counted() -> pd.DataFrame:
    """All rows that are counted; weights do not matter, so they have no seed of their own."""
    cells = [
        (*keys.values(), SIZES)
        for network, sides, modes in NETWORKS
        for keys in product(network=[network], pixels=sides, mode=modes)
    ]
    cells += [(*MANY[:2], mode, MANY[2:]) for mode in BOTH]
    return pd.DataFrame(
        {
            "part": "count",
            "network": network,
            "pixels": pixels,
            "mode": mode,
            "form": "float32",
            "seed": 0,
            **row,
        }
        for network, pixels, mode, sizes in cells
        for row in reach.counted(network, pixels, sizes, mode)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--parts", nargs="+", default=["count", "peel", "search"])
    parser.add_argument("--iterations", type=int, help="of the searches, by default their own")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    made = (
        f"python benchmarks/reach.py, {datetime.date.today()}, torch {torch.__version__}, "
        f"{platform.machine()} CPU, {options.threads} thread"
    )
    frame = recorded.read(options.file) if options.file.exists() else pd.DataFrame(columns=KEYS)
    if "count" in options.parts:
        frame = pd.concat([counted(), frame[frame.part != "count"]], ignore_index=True)
        recorded.write(options.file, frame, [made, SEEDS])
    for keys in settings(options.parts):
        if (frame[KEYS] == pd.Series(keys)[KEYS]).all(axis=1).any():
            continue
        arguments = {name: keys[name] for name in KEYS[1:]}
        search = keys["part"] == "search"
        row = reach.reached(**arguments, search=search, iterations=options.iterations)
        frame = pd.concat([frame, pd.DataFrame([{**keys, **row}])], ignore_index=True)
        recorded.write(options.file, frame, [made, SEEDS])
        print({**keys, **row}, flush=True)


if __name__ == "__main__":
    main()
