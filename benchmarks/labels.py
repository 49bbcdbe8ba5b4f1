"""Label counts from one gradient of untrained networks: the recorded table of chapter 02.

    python benchmarks/labels.py book/results/02_labels_untrained.csv [--networks resnet18 ...]

Each row is one method on one batch: the share of labels that are right and whether all counts are,
beside what the guess of K/N and random labels would score. Batches are stored as they end, so an
interrupted command goes on where it stopped; the file is written when all that were asked for are
done.
"""

import argparse
import datetime
import platform
from pathlib import Path

import torch

from gleak.study import recorded
from gleak.study.experiments import labels_fedsgd as experiment
from gleak.study.runner import product, run_grid

COLUMNS = ["network", "N", "K", "seed", "inputs", "method", "instance", "exact", "even", "chance"]


def main() -> None:
    known = list(experiment.RECORDED)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--networks", nargs="+", default=known, choices=known)
    parser.add_argument("--sizes", nargs="+", type=int, default=[8, 64, 512])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    frame = run_grid(
        experiment.recorded,
        product(
            network=options.networks,
            K=options.sizes,
            seed=range(options.seeds),
            dataset=["cifar10-samples", "cifar100-samples"],  # twenty images each
        ),
        label="batches",
    )
    made = (
        f"python benchmarks/labels.py, {datetime.date.today()}, torch {torch.__version__}, "
        f"{platform.machine()} CPU, {options.threads} thread"
    )
    recorded.write(options.file, frame[COLUMNS], [made])
    print(frame.pivot_table("instance", ["network", "N", "K"], "method").round(3).to_string())


if __name__ == "__main__":
    main()
