"""Large batches and full-size photographs: what needs a graphics card.

    python benchmarks/gpu.py book/results/gpu.csv [--probe] [--minutes 9] [--workers 6]

One row a search: which case and attack, how many iterations it came to, PSNR and SSIM beside the
baselines, and the seconds on the card. Searches run side by side, in the order of CASES, until the
minutes are over; one that takes longer than its share is stopped and keeps its best images. What is
in the file already is left out. The first images of each case go to a folder beside the table.
--probe measures the cost of a step instead, and how often a step waits for the card.
"""

import argparse
import datetime
import json
import multiprocessing
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torchvision.utils import save_image

import gleak
from gleak.study.experiments.searches import DISTINCT, SIXTEEN, samples, sent

PHOTOS = [0, 1, 2, 3, 4, 5, 6, 8]  # of the ImageNet samples: eight classes
# case: model, train mode, data set, images (or how many of a pool), side, iterations of each attack
CASES = {
    "cifar10-8": ("convnet", True, "cifar10", DISTINCT, None, (24000, 24000, 24000)),
    "resnet18-eval-8": ("resnet18", False, "imagenet", PHOTOS, 224, (6000, 3000, 3000)),
    "crops-48": ("convnet", True, "imagenet-crops", 48, None, (8000, 8000, 8000)),
    "resnet18-train-8": ("resnet18", True, "imagenet", PHOTOS, 224, (6000, 2000, 2000)),
    "resnet50-eval-8": ("torchvision:resnet50", False, "imagenet", PHOTOS, 224, (1000, 1000, 0)),
    "cifar100-16": ("convnet", True, "cifar100", SIXTEEN, None, (8000, 8000, 8000)),
    "resnet18-eval-20": ("resnet18", False, "imagenet", list(range(20)), 224, (3000, 1000, 0)),
    "lite0-trained-1": ("efficientnet-lite0", False, "imagenet", PHOTOS[:1], 224, (500, 500, 0)),
}
ATTACKS = ("gleak", "general", "gradinversion")
COLUMNS = "case attack seed images iterations psnr lowest ssim thumb8 mean_colour seconds".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=ATTACKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=9, help="in all")
    parser.add_argument("--share", type=float, default=4, help="minutes of one search at most")
    parser.add_argument("--workers", type=int, default=6, help="searches side by side")
    parser.add_argument("--iterations", type=int, help="at most so many (a quick look)")
    parser.add_argument("--probe", action="store_true")
    options = parser.parse_args()
    if options.probe:
        for case in options.cases:
            print(json.dumps(probe(case, options.device)), flush=True)
        return
    deadline = time.time() + 60 * options.minutes
    folder = options.file.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    done = set()
    if options.file.exists():
        table = pd.read_csv(options.file, comment="#")
        done = set(zip(table["case"], table["attack"], table["seed"], strict=True))
    else:
        options.file.write_text(heading(options))
    jobs = [
        (case, attack, seed, options, deadline)
        for seed in options.seeds
        for case in options.cases
        for attack in options.attacks
        if iterations_of(case, attack) and (case, attack, seed) not in done
    ]
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        for row, images, originals in pool.imap_unordered(run, jobs):
            if row is None:
                continue
            with options.file.open("a") as file:
                file.write(",".join(str(row[name]) for name in COLUMNS) + "\n")
            print(row, flush=True)
            store(folder / f"{row['case']}.npz", originals, row, images)
    for path in folder.glob("*.npz"):
        grid(path)


def store(path: Path, originals, row: dict, images) -> None:
    """The first images of a case and what each attack made of them (first seed), as bytes."""
    kept = dict(np.load(path)) if path.exists() else {"originals": as_bytes(originals)}
    kept.setdefault(row["attack"], as_bytes(images))
    np.savez_compressed(path, **kept)


def grid(path: Path) -> None:
    """The first four originals above what the attacks made of them, in the order of ATTACKS."""
    kept = np.load(path)
    rows = [torch.from_numpy(kept[name][:4]) for name in ("originals", *ATTACKS) if name in kept]
    scale = max(1, 128 // rows[0].shape[-1])  # pixels of small images stay squares
    tiles = torch.cat(rows).float().div(255).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    save_image(tiles, path.with_suffix(".png"), nrow=len(rows[0]), padding=4, pad_value=1)


def as_bytes(images):
    """(K, C, H, W) in [0, 1] as the first eight of them in bytes."""
    return (images[:8] * 255).round().to(torch.uint8).numpy()


def heading(options) -> str:
    """Provenance as comments, and the names of the columns."""
    card = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    return "".join(
        [
            f"# python benchmarks/gpu.py, {datetime.date.today()}, torch {torch.__version__}\n",
            f"# {card}, {options.workers} searches side by side, "
            f"{options.minutes:g} minutes in all, {options.share:g} for one; "
            "photographs searched in TF32\n",
            ",".join(COLUMNS) + "\n",
        ]
    )


def client_of(case: str, seed: int, device: str):
    """The batch and the update that its client sends."""
    model, training, data, which, side = CASES[case][:5]
    batch = samples(data, which, side)
    return batch, sent(model, batch, seed, training, device)


def iterations_of(case: str, attack: str) -> int:
    """0: not run, for it takes too long."""
    return CASES[case][5][ATTACKS.index(attack)]


def prepare() -> None:
    """One CPU thread, and convolutions with all digits of float32."""
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    warnings.filterwarnings("ignore")


def run(job):
    """A row, the restored images beside their originals; the seed draws weights and start."""
    case, attack, seed, options, deadline = job
    left = int(min(60 * options.share, deadline - time.time()))
    if left < 10:
        return None, None, None
    prepare()
    batch, update = client_of(case, seed, options.device)
    iterations = min(iterations_of(case, attack), options.iterations or 10**9)
    # Photographs take too long otherwise; the client has computed with all digits.
    torch.backends.cudnn.allow_tf32 = batch.images.shape[-1] > 64
    starts = {"restarts": 2} if attack == "gradinversion" else {}
    iterations //= starts.get("restarts", 1)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(left)
    began = time.perf_counter()
    try:
        result = gleak.invert(
            update,
            batch.label_counts,
            attack,
            iterations=iterations,
            seed=seed,
            progress=False,
            **starts,
        )
    except gleak.inversion.InversionFailed as error:
        result = error.best
    except (KeyboardInterrupt, gleak.MissingKnowledge, RuntimeError) as error:
        print(case, attack, repr(error)[:300], flush=True)
        return None, None, None
    finally:
        signal.alarm(0)
    seconds = time.perf_counter() - began
    scores = gleak.score(result.images, batch.images)
    row = {"case": case, "attack": attack, "seed": seed, "images": len(batch)}
    row |= {"iterations": len(result.history), "lowest": round(scores["psnr"].min(), 3)}
    means = scores[["psnr", "ssim", "thumb8", "mean_colour"]].mean()
    row |= means.round(3).to_dict() | {"seconds": round(seconds, 1)}
    torch.cuda.empty_cache()
    return row, result.images[scores["match"].to_numpy()], batch.images


def probe(case: str, device: str) -> dict:
    """Milliseconds of a step of matching and of `gleak`, and whether steps wait for the card."""
    prepare()
    found = {"case": case}
    batch, update = client_of(case, 1, device)
    for attack in ATTACKS[:2]:
        seconds, waits = {}, {}
        for iterations in (20, 12, 36):  # the first to warm up
            began = time.perf_counter()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                gleak.invert(
                    update, batch.label_counts, attack, iterations=iterations, progress=False
                )
                torch.cuda.set_sync_debug_mode("default")
            waits[iterations] = sum("synchroniz" in str(warning.message) for warning in caught)
            seconds[iterations] = time.perf_counter() - began
        found[f"{attack}_ms"] = round(1000 * (seconds[36] - seconds[12]) / 24, 1)
        found[f"{attack}_waits"] = (waits[36] - waits[12]) / 24
        found[f"{attack}_set_up"] = round(seconds[12] - found[f"{attack}_ms"] * 0.012, 1)
    found["peak_mb"] = torch.cuda.max_memory_allocated() >> 20
    return found


if __name__ == "__main__":
    main()
