"""breaching and SME beside gleak: same images, network, labels and CPU seconds.

    pip install breaching hydra-core
    python benchmarks/peers.py FILE [--models lenet convnet resnet18] [--sizes 4] [--iterations 400]

breaching (PyPI 0.1.2) runs with its own defaults for the given number of iterations. gleak's
inverting-gradients runs for as many, and gleak's own attack as long as breaching took, or less.
The networks are untrained, the labels known; batch norm is in eval mode, as breaching has it.

With --lr the client sends weights, after one local step of that rate for each image. breaching
simulates the steps, and its objective takes from the shared facts which label stood in which step,
with --labels hidden too: the restored labels go nowhere. gleak never sees that order; its labels
are then those that it restored from the weights. Runs are stored as they end.

    pip install einops
    python benchmarks/peers.py FILE --peers FOLDER --lr 0.004 --epochs 20 --iterations 1000

FOLDER holds a checkout of JunyiZhu-AI/surrogate_model_extension: SME's own code in breaching's
place, with its settings for CIFAR, and the study's version of SME beside it.
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
    parser.add_argument("--epochs", type=int, default=1, help="of a FedAvg client")
    parser.add_argument("--peers", type=Path, help="the folder of SME's checkout")
    parser.add_argument("--labels", choices=("given", "hidden"), default="given")
    options = parser.parse_args()
    common = {name: getattr(options, name) for name in ("iterations", "seed", "lr", "threads")}
    common |= {"given": options.labels == "given", "epochs": options.epochs}
    rivals, version = ["breaching", "inverting-gradients"], "breaching 0.1.2"
    if options.peers:
        common["folder"] = str(options.peers.resolve())
        rivals, version = (
            ["sme-authors", "sme-here"],
            "JunyiZhu-AI/surrogate_model_extension ae2a624",
        )
    frames = []
    for client in product(model=options.models, size=options.sizes):
        seconds = 0.0
        for attack in (*rivals, "gleak"):
            setting = {**client, "attack": attack, "seconds": seconds}
            frame = run_grid(peers.beside, [setting], common=common, label=attack)
            if attack == rivals[0]:
                seconds = float(frame["cpu_seconds"].item())
            frames.append(frame.drop(columns="seconds").rename(columns={"size": "batch"}))
    table = pd.concat(frames)
    table.insert(3, "labels", options.labels)
    recorded.write(
        options.file,
        table,
        [
            f"python benchmarks/peers.py, {datetime.date.today()}, {version}, "
            f"torch {torch.__version__}",
            f"{platform.machine()} CPU, {options.threads} thread; seed {options.seed}, "
            + ("FedSGD" if options.lr is None else f"one step for each image, lr {options.lr:g}")
            + (f", {options.epochs} epochs" if options.epochs > 1 else ""),
        ],
    )
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
