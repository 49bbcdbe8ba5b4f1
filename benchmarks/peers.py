"""breaching's "invertinggradients" beside gleak: same images, network, labels and CPU seconds.

    pip install breaching hydra-core
    python benchmarks/peers.py FILE [--models lenet convnet resnet18] [--sizes 4] [--iterations 400]

breaching (PyPI 0.1.2) runs with its own defaults for the given number of iterations. gleak's
inverting-gradients runs for as many, and gleak's own attack as long as breaching took, or less.
The networks are untrained, the labels known; batch norm is in eval mode, as breaching has it.

With --lr the client sends weights, after one local step of that rate for each image. breaching
simulates the steps, and its objective takes from the shared facts which label stood in which step,
with --labels hidden too: the restored labels go nowhere. gleak never sees that order; its labels
are then those that it restored from the weights. Runs are stored as they end.
"""

import argparse
import datetime
import platform
from pathlib import Path

import pandas as pd
import torch

from gleak.study import recorded
from gleak.study.experiments import peers
from gleak.study.runner import product, run_grid


def main() -> None:
    """Read the options, run what they ask for, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--models", nargs="+", default=["lenet", "convnet", "resnet18"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[4])
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lr", type=float, help="of a FedAvg client, such as 0.004")
    parser.add_argument("--labels", choices=("given", "hidden"), default="given")
    options = parser.parse_args()
    common = {name: getattr(options, name) for name in ("iterations", "seed", "lr", "threads")}
    common["given"] = options.labels == "given"
    frames = []
    for client in product(model=options.models, size=options.sizes):
        seconds = 0.0
        for attack in ("breaching", "inverting-gradients", "gleak"):
            setting = {**client, "attack": attack, "seconds": seconds}
            frame = run_grid(peers.beside, [setting], common=common, label=attack)
            if attack == "breaching":
                seconds = float(frame["cpu_seconds"].item())
            frames.append(frame.drop(columns="seconds").rename(columns={"size": "batch"}))
    table = pd.concat(frames)
    table.insert(3, "labels", options.labels)
    recorded.write(
        options.file,
        table,
        [
            f"python benchmarks/peers.py, {datetime.date.today()}, breaching 0.1.2, "
            f"torch {torch.__version__}",
            f"{platform.machine()} CPU, {options.threads} thread; seed {options.seed}, "
            + ("FedSGD" if options.lr is None else f"one step for each image, lr {options.lr:g}"),
        ],
    )
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
