"""Images from one gradient of trained networks with batch norm and max-pooling.

    python benchmarks/trained.py book/results/09_trained.csv [--sizes 1 4 8 ...]

Each row is one image: PSNR of what `gleak` finds, beside its 8x8 thumbnail and a flat colour.
Settings are stored as they end, so an interrupted command goes on where it stopped; the file is
written when all that were asked for are done. Up to two minutes for each of them on one core.
"""

import argparse
import datetime
import platform
from pathlib import Path

import torch

from gleak.study import recorded
from gleak.study.experiments import trained as experiment
from gleak.study.runner import product, run_grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--formats", nargs="+", default=[*experiment.FORMATS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=190, help="of training")
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--iterations", type=int, help="of the search, by default its own")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    frame = run_grid(
        experiment.restored,
        product(seed=range(options.seeds), format=options.formats),
        common={
            "sizes": options.sizes,
            "steps": options.steps,
            "batches": options.batches,
            "iterations": options.iterations,
        },
        label="networks",
    )
    made = (
        f"python benchmarks/trained.py, {datetime.date.today()}, torch {torch.__version__}, "
        f"{platform.machine()} CPU, {options.threads} thread"
    )
    asked = f"{options.steps} steps of training, {options.batches} batches each"
    recorded.write(options.file, frame.round(4), [made, asked])
    columns = ["psnr", "thumb8", "mean_colour", "accuracy"]
    print(frame.groupby(["format", "K", "seed"])[columns].mean().round(2).to_string())
    print(frame.groupby(["format", "K"])["psnr"].describe().round(1).to_string())


if __name__ == "__main__":
    main()
