"""Images from one gradient of trained networks with batch norm and max-pooling.

    python benchmarks/trained.py book/results/09_trained.csv [--seeds 5]

Each row is one image: PSNR of what an attack finds, beside its 8x8 thumbnail and a flat colour.
Cells are stored as they end, so an interrupted command goes on where it stopped; the file is
written when all that were asked for are done. With `gleak` about six minutes of CPU time for each
network.
The paper's attack, by `--attacks general --iterations 1000`, goes to a file of its own.
"""

import argparse
import datetime
import platform
from pathlib import Path

import torch

from gleak.study import recorded
from gleak.study.experiments import trained as experiment
from gleak.study.runner import run_grid

# K, mode of batch norm, format in which the client computes: the short cells first
CELLS = [
    (4, "eval", "float32"),
    (1, "eval", "float32"),
    (4, "train", "float32"),
    (8, "eval", "float32"),
    (1, "eval", "float64"),
    (4, "eval", "float64"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--cells", nargs="+", type=int, default=range(len(CELLS)))
    parser.add_argument("--attacks", nargs="+", default=["gleak"])
    parser.add_argument("--seeds", type=int, default=5, help="networks")
    parser.add_argument("--steps", type=int, default=220, help="of training")
    parser.add_argument("--images", type=int, default=4, help="of each cell, at least")
    parser.add_argument("--iterations", type=int, help="of the search, by default its own")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = [
        {"seed": seed, "K": size, "mode": mode, "format": form, "attack": attack}
        for attack in options.attacks
        for size, mode, form in (CELLS[cell] for cell in options.cells)
        for seed in range(options.seeds)
    ]
    common = {name: getattr(options, name) for name in ("steps", "images", "iterations")}
    frame = run_grid(experiment.restored, settings, common=common, label="networks and cells")
    made = (
        f"python benchmarks/trained.py, {datetime.date.today()}, torch {torch.__version__}, "
        f"{platform.machine()} CPU, {options.threads} thread"
    )
    asked = f"{options.steps} steps of training, {options.images} images or more of each cell"
    recorded.write(options.file, frame.round(4), [made, asked])
    columns = ["psnr", "thumb8", "mean_colour", "accuracy"]
    by = ["attack", "mode", "format", "K"]
    print(frame.groupby([*by, "seed"], sort=False)[columns].mean().round(2).to_string())
    print(frame.groupby(by, sort=False)["psnr"].describe().round(1).to_string())


if __name__ == "__main__":
    main()
