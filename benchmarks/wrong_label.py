"""Wrong labels on every network, by every attack: the recorded table of chapter 07.

    python benchmarks/wrong_label.py book/results/07_wrong_label.csv

A row for each image of each run. Runs are stored as they end, so an interrupted command goes on
where it stopped; the file is written when all are done.
"""

import argparse
import datetime
from pathlib import Path

import torch

from gleak.study import recorded
from gleak.study.experiments import wrong_label as experiment
from gleak.study.runner import run_grid

DATASET, MODEL, WIDTH, SIZES = "cifar10-samples", "convnet", 32, (4, 8)


def main() -> None:
    """Read the options, run everything, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=60, help="of matching")
    parser.add_argument("--features", type=int, default=300, help="iterations of the closed form")
    options = parser.parse_args()
    torch.set_num_threads(1)
    common = {"dataset": DATASET, "width": WIDTH, "iterations": options.iterations, "fresh": False}
    sizes = {"size": SIZES[0], "larger_size": SIZES[1], "feature_iterations": options.features}
    every = run_grid(
        experiment.attacked,
        experiment.recorded_settings(options.seeds),
        common=common | sizes,
        label="attacks",
    )
    in_steps = run_grid(
        experiment.in_steps,
        experiment.step_settings(SIZES, options.seeds),
        common=common | {"model": MODEL},
        label="local steps",
    )
    recorded.write(
        options.file,
        experiment.recorded_table(every, in_steps, MODEL, *SIZES),
        [
            f"python benchmarks/wrong_label.py, {datetime.date.today()}, "
            f"torch {torch.__version__}, one thread of a shared CPU",
            f"{DATASET}; matching with {options.iterations} iterations, on lenet "
            f"{10 * options.iterations}, features with {options.features}",
        ],
    )


if __name__ == "__main__":
    main()
