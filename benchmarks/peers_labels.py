"""The label rules by their authors' own code beside ours, on the same updates.

    python benchmarks/peers_labels.py book/results/02_peers_labels.csv --peers FOLDER

FOLDER holds checkouts of BUAA-CST/iLRG, tklab-tud/LLG, nadbag98/LLBG and (as RLU)
CityChan/Recovering-Label-from-Update. Their functions get the gradient that our rules get; what
else each needs, and what of theirs does not run, stands in gleak.study.experiments.peers_labels.
"""

import argparse
import datetime
import platform
from pathlib import Path

import torch

from gleak.study import recorded
from gleak.study.experiments import peers_labels
from gleak.study.runner import run_grid

COLUMNS = ["network", "stage", "dataset", "N", "update", "K", "labels", "seed", "rule"]
SCORES = ["authors", "ours", "agree", "mended", "returned"]


def main() -> None:
    """Read the options, run the grid, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--peers", type=Path, required=True, help="the folder of the checkouts")
    parser.add_argument("--networks", nargs="+", help="by default all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    asked = peers_labels.recorded_settings(options.seeds)
    frame = run_grid(
        peers_labels.compared,
        [one for one in asked if not options.networks or one["network"] in options.networks],
        common={"folder": str(options.peers.resolve())},
        label="updates",
    )
    made = (
        f"python benchmarks/peers_labels.py, {datetime.date.today()}, torch {torch.__version__}, "
        f"{platform.machine()} CPU, {options.threads} thread"
    )
    recorded.write(options.file, frame[COLUMNS + SCORES], [made, *peers_labels.VERSIONS])
    print(frame.groupby("rule")[SCORES].mean().round(3).to_string())


if __name__ == "__main__":
    main()
