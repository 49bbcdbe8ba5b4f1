"""All attacks on all networks, over several seeds: the table behind the chapter on images.

    python benchmarks/images.py book/results/04_images_fedsgd.csv [--cases convnet-4 lenet-1 ...]

Each row is one run: the images' mean PSNR and SSIM after matching, and the CPU seconds it took. A
case that is in the file already is left out, so an interrupted run goes on where it stopped.
"""

import argparse
import datetime
import platform
import sys
import time
from pathlib import Path

import pandas as pd
import torch

import gleak

DISTINCT = [0, 1, 3, 4, 6, 11, 12, 13]  # of the CIFAR-10 samples: eight classes
SIXTEEN = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 17]  # of CIFAR-100's, sixteen classes
MATCHING = {
    "dlg": {},
    "idlg": {},
    "inverting-gradients": {"tv": 0.02},  # its best weight here, see the notes
    "gradinversion": {},
    "general": {},
}
# case: model, train mode, data set, images (or how many of a pool), iterations for matching, for
# gleak (None: its own)
CASES = {
    "convnet-4": ("convnet", True, "cifar10", DISTINCT[:4], 600, None),
    "lenet-1": ("lenet", True, "cifar10", DISTINCT[:1], 1500, None),
    "lenet-4": ("lenet", True, "cifar10", DISTINCT[:4], 1500, None),
    "convnet-4-repeated": ("convnet", True, "cifar10", [0, 1, 2, 3], 600, None),
    "convnet-8": ("convnet", True, "cifar10", DISTINCT, 600, None),
    "convnet-1": ("convnet", True, "cifar10", DISTINCT[:1], 600, None),
    "convnet-2": ("convnet", True, "cifar10", DISTINCT[:2], 600, None),
    "resnet18-train-4": ("resnet18", True, "cifar10", DISTINCT[:4], 60, None),  # equal seconds
    "resnet18-eval-4": ("resnet18", False, "cifar10", DISTINCT[:4], 60, None),
    "resnet18-train-1": ("resnet18", True, "cifar10", DISTINCT[:1], 60, None),
    "resnet18-eval-1": ("resnet18", False, "cifar10", DISTINCT[:1], 60, None),
    "gradinversion-8": ("convnet", True, "cifar10", DISTINCT, 300, 1000),
    "gradinversion-8-repeated": ("convnet", True, "cifar10", list(range(8)), 300, 1000),
    "gradinversion-16": ("convnet", True, "cifar100", SIXTEEN, 200, 600),
    "gradinversion-16-repeated": ("convnet", True, "cifar10", list(range(16)), 200, 200),
    "crops-32": ("convnet", True, "imagenet-crops", 32, 600, 600),
    "crops-48": ("convnet", True, "imagenet-crops", 48, 600, 600),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--attacks", nargs="+", default=["gleak", *MATCHING])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    done = set()
    if options.file.exists():
        table = pd.read_csv(options.file, comment="#")
        done = set(zip(table["case"], table["attack"], table["seed"], strict=True))
    else:
        options.file.parent.mkdir(parents=True, exist_ok=True)
        options.file.write_text(heading(options))
    for case in options.cases:
        for seed in options.seeds:
            for attack in options.attacks:
                if (case, attack, seed) not in done:
                    row = run(case, attack, seed)
                    with options.file.open("a") as file:
                        file.write(",".join(map(str, row.values())) + "\n")
                    print(row, flush=True)


def heading(options) -> str:
    """Provenance as comments, and the names of the columns."""
    return "".join(
        [
            f"# python benchmarks/images.py, {datetime.date.today()}, torch {torch.__version__}\n",
            f"# {platform.machine()} CPU, {options.threads} thread, other work beside it\n",
            "case,attack,seed,iterations,psnr,lowest,ssim,thumb8,mean_colour,cpu_seconds\n",
        ]
    )


def run(case: str, attack: str, seed: int) -> dict:
    """One attack on one case; the seed draws the weights and the start."""
    model, training, data, indices, matching, own = CASES[case]
    if isinstance(indices, int):
        batch = gleak.draw_batch(gleak.load_pool(data), indices)
    else:
        batch = gleak.load_batch(f"{data}-samples", indices=indices)
    update = gleak.fedsgd(gleak.build_model(model, batch, seed=seed), batch, training=training)
    iterations = own if attack == "gleak" else matching
    if attack == "gradinversion":
        iterations //= 2  # it runs two restarts
    began = time.process_time()
    settings = MATCHING.get(attack, {})
    try:
        result = gleak.invert(
            update,
            batch.label_counts,
            attack,
            iterations=iterations,
            seed=seed,
            progress=False,
            **settings,
        )
    except gleak.inversion.InversionFailed as error:
        print(error, file=sys.stderr)
        result = error.best
    seconds = time.process_time() - began
    scores = gleak.score(result.images, batch.images)
    return {
        "case": case,
        "attack": attack,
        "seed": seed,
        "iterations": len(result.history),
        "psnr": round(scores["psnr"].mean(), 3),
        "lowest": round(scores["psnr"].min(), 3),
        "ssim": round(scores["ssim"].mean(), 4),
        "thumb8": round(scores["thumb8"].mean(), 3),
        "mean_colour": round(scores["mean_colour"].mean(), 3),
        "cpu_seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
