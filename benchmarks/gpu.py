"""Large batches and full-size photographs: what needs a graphics card.

    python benchmarks/gpu.py book/results/gpu.csv [--probe] [--minutes 4] [--workers 6]

One row a search: which case and attack, how many iterations it came to, PSNR and SSIM beside the
baselines, and the seconds on the card. A search has as many iterations as fit into its minutes,
side by side with the others, and no more than CASES says. Searches are stored as they end: a
command that was interrupted goes on where it stopped, and the table has what is done. The first
images of each case go to a folder beside the table. --probe prints the cost of a step instead, and
how often a step waits for the card.
"""

import argparse
import datetime
import json
import multiprocessing
from pathlib import Path

import pandas as pd
import torch
from torchvision.utils import save_image

from gleak.study import recorded
from gleak.study.experiments import large
from gleak.study.experiments.searches import DISTINCT, SIXTEEN
from gleak.study.runner import product, run_grid

PHOTOS = [0, 1, 2, 3, 4, 5, 6, 8]  # of the ImageNet samples: eight classes
ATTACKS = ("gleak", "general", "gradinversion")
# case: model, train mode, data set, images (or how many of a pool), side, the most iterations
CASES = {
    "cifar10-8": ("convnet", True, "cifar10", DISTINCT, None, 24000),
    "resnet18-eval-8": ("resnet18", False, "imagenet", PHOTOS, 224, 6000),
    "crops-48": ("convnet", True, "imagenet-crops", 48, None, 8000),
    "resnet18-train-8": ("resnet18", True, "imagenet", PHOTOS, 224, 6000),
    "resnet50-eval-8": ("torchvision:resnet50", False, "imagenet", PHOTOS, 224, 1000),
    "cifar100-16": ("convnet", True, "cifar100", SIXTEEN, None, 8000),
    "resnet18-eval-20": ("resnet18", False, "imagenet", list(range(20)), 224, 3000),
    "lite0-trained-1": ("efficientnet-lite0", False, "imagenet", PHOTOS[:1], 224, 500),
}


def main() -> None:
    """Read the options, run what they ask for, write the table and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=ATTACKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=4, help="of one search")
    parser.add_argument("--workers", type=int, default=6, help="searches side by side")
    parser.add_argument("--iterations", type=int, help="at most so many (a quick look)")
    parser.add_argument("--probe", action="store_true")
    options = parser.parse_args()
    if options.probe:
        for case in options.cases:
            costs = large.step_costs(ATTACKS[:2], seed=1, **client(case, options.device))
            print(json.dumps({"case": case, **costs}), flush=True)
        return
    folder = options.file.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    runs = product(seed=options.seeds, case=options.cases, attack=options.attacks)
    jobs, frames = [(options, folder, each) for each in runs], []
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        for frame in pool.imap_unordered(run, jobs) if options.workers > 1 else map(run, jobs):
            frames.append(frame)
            table = pd.concat(frames).sort_values(["case", "attack", "seed"])
            recorded.write(options.file, table, provenance(options))
    print(table.to_string())
    for case in options.cases:
        files = [picture(folder, case, name, options.seeds[0]) for name in options.attacks]
        save_image(
            large.picture_rows(files), folder / f"{case}.png", nrow=4, padding=4, pad_value=1
        )


def run(job: tuple) -> pd.DataFrame:
    """The row of one search; the seed draws weights and start."""
    options, folder, chosen = job
    torch.set_num_threads(1)
    case, attack, seed = chosen["case"], chosen["attack"], chosen["seed"]
    most = min(CASES[case][-1], options.iterations or CASES[case][-1])
    restarts = 2 if attack == "gradinversion" else 1  # side by side: so many times the work
    setting = {
        "seconds": 60 * options.minutes,
        "most": most // restarts,
        "attack": attack,
        "settings": {"restarts": 2} if restarts > 1 else {},
        "seed": seed,
        "pictures": str(picture(folder, case, attack, seed)),
        **client(case, options.device),
    }
    measured = run_grid(large.searched_within, [setting], label=f"{case} {attack}")
    return measured.assign(case=case)[["case", "attack", "seed", *COLUMNS]]


COLUMNS = "images iterations psnr lowest ssim thumb8 mean_colour seconds".split()


def client(case: str, device: str) -> dict:
    """The arguments of `large.client_of` but for the seed."""
    names = ("model", "training", "data", "which", "image_size")
    return dict(zip(names, CASES[case], strict=False)) | {"device": device}


def picture(folder: Path, case: str, attack: str, seed: int) -> Path:
    """Where the images of a search are kept."""
    return folder / f"{case}-{attack}-{seed}.npz"


def provenance(options: argparse.Namespace) -> list[str]:
    """How the table was made."""
    card = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    return [
        f"python benchmarks/gpu.py, {datetime.date.today()}, torch {torch.__version__}",
        f"{card}, {options.workers} searches side by side, {options.minutes:g} minutes for one; "
        "photographs searched in TF32",
    ]


if __name__ == "__main__":
    main()
