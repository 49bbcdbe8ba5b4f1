"""What each ingredient of two attacks is worth: the recorded table of chapter 10.

    python benchmarks/ingredients.py book/results/10_ingredients.csv [--attacks general gleak]

Each row is one run: PSNR of what the attack with one change finds of the images of a seed, which
draws images, network and start. Runs are stored as they end, so an interrupted command goes on
where it stopped; the file is written when all that were asked for are done. About 20 minutes of
one core.
"""

import argparse
import datetime
import platform
from pathlib import Path

import pandas as pd
import torch

from gleak.study import recorded
from gleak.study.experiments import ingredients as experiment
from gleak.study.runner import run_grid

COLUMNS = ["attack", "group", "change", "seed", "psnr", "difference", "mean_colour", "thumb8"]


def main() -> None:
    """Read the options, run what they ask for, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--attacks", nargs="+", default=list(experiment.CHANGES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--model", default="convnet", help="convnet: of three layers, 64 channels")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    client = {"dataset": "cifar10-samples", "model": options.model, "size": 1}
    frames = []
    for attack in options.attacks:
        runs = run_grid(
            experiment.attacked,
            experiment.settings(attack, options.model, options.seeds),
            common={"attack": attack, "iterations": options.iterations, **client},
            label=attack,
        )
        frames.append(experiment.compared(runs, attack))
    recorded.write(
        options.file,
        pd.concat(frames)[COLUMNS].round(3),
        [
            f"python benchmarks/ingredients.py, {datetime.date.today()}, torch {torch.__version__}",
            f"{platform.machine()} CPU, {options.threads} thread; {options.model}, one "
            f"image of cifar10-samples, {options.iterations} iterations",
        ],
    )
    for frame in frames:
        print(experiment.worth(frame).round(1).to_string())


if __name__ == "__main__":
    main()
