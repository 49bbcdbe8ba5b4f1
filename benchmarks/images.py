r"""All attacks on all networks, over several seeds: the recorded tables of chapter 04.

    python benchmarks/images.py book/results/04_images_fedsgd.csv [--cases convnet-4 lenet-1 ...]
    python benchmarks/images.py book/results/04_fresh_images.csv --fresh \
        --cases convnet-4 convnet-8 lenet-4 resnet18-eval-4 \
        --attacks gleak general inverting-gradients gradinversion --seeds 101 102 103 104 105

With --fresh the images are others, and no setting was chosen on them, nor on these seeds.

Each row is one run: the images' mean PSNR and SSIM after matching, and the CPU seconds it took.
Runs are stored as they end, so an interrupted command goes on where it stopped; the file is written
when all runs that were asked for are done.
"""

import argparse
import datetime
import platform
from pathlib import Path

import torch

from gleak.inversion import ATTACKS
from gleak.study import recorded
from gleak.study.experiments import images_fedsgd as experiment
from gleak.study.experiments.searches import DISTINCT, FRESH, SIXTEEN
from gleak.study.runner import product, run_grid

MATCHING = {
    "dlg": {},
    "idlg": {},
    "inverting-gradients": {"tv": 0.02},  # its best weight here, see the notes
    "gradinversion": {"restarts": 2},
    "general": {},
}
# case: model, train mode, data set, images (or how many of a pool), evaluations for matching,
# iterations for gleak (None: its own)
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
    """Read the options, run what they ask for, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--attacks", nargs="+", default=["gleak", *MATCHING])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--fresh", action="store_true", help="images nothing was chosen on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--iterations", type=int, help="other than the cases have (a quick look)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runs = product(case=options.cases, seed=options.seeds, attack=options.attacks)
    more = {"iterations": options.iterations, "fresh": options.fresh}
    settings = [setting(**run, **more) for run in runs]
    frame = run_grid(experiment.recorded, settings, label="runs")
    names = ["case", "attack", "seed"]
    measured = frame.columns[frame.columns.get_loc("iterations") :]
    frame = frame.assign(case=[run["case"] for run in runs])[[*names, *measured]]
    recorded.write(
        options.file,
        frame,
        [
            f"python benchmarks/images.py{' --fresh' * options.fresh}, {datetime.date.today()}, "
            f"torch {torch.__version__}",
            f"{platform.machine()} CPU, {options.threads} thread, other work beside it",
        ],
    )
    print(frame.to_string())


def setting(
    case: str, seed: int, attack: str, iterations: int | None = None, fresh: bool = False
) -> dict:
    """The arguments of one run; ValueError where a case has no images of another kind."""
    model, training, data, which, matching, own = CASES[case]
    if fresh:
        if not isinstance(which, list) or which != DISTINCT[: len(which)]:
            raise ValueError(f"{case}: there are no fresh images for it")
        which = FRESH[: len(which)]
    paper = model == "lenet" and attack in ("dlg", "idlg")  # where they work: at their own effort
    iterations = iterations or (own if attack == "gleak" else None if paper else matching)
    settings: dict = dict(MATCHING.get(attack, {}))
    if iterations:
        evaluations = getattr(ATTACKS[attack], "evaluations", 1) * settings.get("restarts", 1)
        settings["iterations"] = max(iterations // evaluations, 1)
    return {
        "model": model,
        "training": training,
        "data": data,
        "which": which,
        "attack": attack,
        "settings": settings,
        "seed": seed,
    }


if __name__ == "__main__":
    main()
