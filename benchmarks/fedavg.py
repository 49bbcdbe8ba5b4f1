"""Images from FedAvg weights over many ways of local training: the recorded table of chapter 06.

    python benchmarks/fedavg.py book/results/06_images_fedavg.csv [--sweeps way rate ...]

Each row is one attack on one client: the images' mean PSNR and SSIM after matching, what leaks
without any attack, how far the client went, and the CPU seconds it took. Runs are stored as they
end, so an interrupted command goes on where it stopped; the file is written when all runs that were
asked for are done.
"""

import argparse
import datetime
import platform
from pathlib import Path

import torch

from gleak.study import recorded
from gleak.study.experiments import images_fedavg as experiment
from gleak.study.runner import product, run_grid

EPOCHS, RATES = [1, 2, 5, 10, 16], [1e-4, 1e-3, 1e-2, 1e-1]
TRAINED = 40  # steps of the trained networks

# batch_size 0: all in one batch; labels: the attacker's
BASE = {
    "network": "convnet",
    "steps": 0,
    "images": 4,
    "epochs": 5,
    "batch_size": 0,
    "lr": 1e-3,
    "labels": "given",
}
COMPARED = ["equivalent", "middle", "gleak"]
# sweep: what varies from the base, and the attacks
SWEEPS = {
    "way": ({"epochs": EPOCHS, "lr": RATES}, COMPARED),
    "size": ({"images": [4, 8, 16], "lr": [1e-3, 1e-2]}, COMPARED),
    "batches of 8": ({"images": [8], "batch_size": [4, 1], "lr": [1e-3, 1e-2]}, COMPARED),
    "batches of 16": ({"images": [16], "batch_size": [8, 4, 1], "lr": [1e-3, 1e-2]}, COMPARED),
    "restored": ({"labels": ["restored"], "lr": [1e-3, 1e-2]}, COMPARED),
    # no features fit wrong counts: what gleak falls back on is the dear matching of `unrolled`
    "wrong": ({"labels": ["wrong"], "lr": [1e-3, 1e-2]}, ["equivalent", "middle"]),
    "models": ({"epochs": [5, 10], "lr": [1e-2, 3e-2]}, [*COMPARED, "path", "sme", "nl-sme"]),
    "rate": ({"lr": [1e-3, 1e-2]}, ["sme, no lr", "gleak, lr scanned"]),
    "trained": ({"steps": [TRAINED], "epochs": [1, 5], "lr": [1e-4, 1e-3, 1e-2]}, COMPARED),
    "unrolled": ({"epochs": [5, 10], "lr": [1e-2, 3e-2]}, ["unrolled"]),
    # as Dimitrov et al. and Zhu et al. measured: 50 images, 10 epochs of 10 batches of 5
    "fifty": (
        {"images": [50], "epochs": [10], "batch_size": [5], "lr": [1e-3, 1e-2]},
        ["equivalent", "middle", "sme"],
    ),
    "lenet": ({"network": ["lenet"], "epochs": [1, 5, 10], "lr": RATES}, ["equivalent", "middle"]),
}


def main() -> None:
    """Read the options, run what they ask for, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--sweeps", nargs="+", default=list(SWEEPS), choices=list(SWEEPS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--matching", type=int, default=200, help="iterations of matching")
    parser.add_argument("--own", type=int, default=600, help="iterations of gleak")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    frame = run_grid(
        experiment.recorded,
        settings(options.sweeps, options.seeds),
        common={"matching": options.matching, "own": options.own},
        label="runs",
    )
    frame = frame.rename(columns={"images": "K", "epochs": "E", "batch_size": "B"})
    recorded.write(
        options.file,
        frame,
        [
            f"python benchmarks/fedavg.py, {datetime.date.today()}, torch {torch.__version__}, "
            f"{platform.machine()} CPU, {options.threads} thread, other work beside it",
            f"matching by cosine with {options.matching} iterations, gleak with {options.own}",
        ],
    )
    print(frame.to_string())


def settings(sweeps: list[str], seeds: list[int]) -> list[dict]:
    """The runs of some sweeps, each of them once."""
    found = [
        {**BASE, **varied, "attack": attack, "seed": seed}
        for seed in seeds
        for sweep in sweeps
        for varied in product(**SWEEPS[sweep][0])
        for attack in SWEEPS[sweep][1]
    ]
    return [run for index, run in enumerate(found) if run not in found[:index]]


if __name__ == "__main__":
    main()
