"""breaching's "invertinggradients" beside gleak: same images, network, labels and CPU seconds.

    pip install breaching hydra-core
    python benchmarks/peers.py [--models lenet convnet resnet18] [--sizes 4] [--iterations 400]

breaching (PyPI 0.1.2) runs with its own defaults for the given number of iterations. gleak's
inverting-gradients runs for as many, and gleak's own attack as long as breaching took, or less.
The networks are untrained, the labels known; batch norm is in eval mode, as breaching has it.

With --fedavg the client sends weights, after one local step for each image. breaching simulates the
steps, and its objective takes from the shared facts which label stood in which step, with
--labels hidden too: the restored labels go nowhere. gleak never sees that order; its labels are
then those that it restored from the weights.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path

import torch

import gleak

DISTINCT = [0, 1, 3, 4, 6, 11, 12, 13]  # of the CIFAR-10 samples: eight classes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["lenet", "convnet", "resnet18"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[4])
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fedavg", action="store_true", help="weights after local training")
    parser.add_argument("--lr", type=float, default=0.004, help="of the FedAvg client")
    parser.add_argument("--labels", choices=("given", "hidden"), default="given")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--one", nargs=4, metavar=("WHO", "MODEL", "SIZE", "SECONDS"), help="one run"
    )
    options = parser.parse_args()
    if options.one:
        who, model, size, seconds = options.one
        print(json.dumps(run(who, model, int(size), float(seconds), options)))
        return
    rows = []
    for model in options.models:
        for size in options.sizes:
            seconds = 0.0
            for who in ("breaching", "inverting-gradients", "gleak"):
                row = in_own_process(who, model, size, seconds, options)
                if who == "breaching":
                    seconds = row["cpu_seconds"]
                rows.append(row)
                if not options.json:
                    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    if options.json:
        json.dump(rows, sys.stdout, indent=1)
        print()


def in_own_process(who, model, size, seconds, options) -> dict:
    """Each run in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, __file__, "--one", who, model, str(size), str(seconds)]
    for name in ("iterations", "seed", "threads", "lr", "labels"):
        command += [f"--{name}", str(getattr(options, name))]
    command += ["--fedavg"] * options.fedavg
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def run(who: str, model: str, size: int, seconds: float, options) -> dict:
    """One attack on one batch."""
    torch.set_num_threads(options.threads)
    batch = gleak.load_batch("cifar10-samples", indices=DISTINCT[:size])
    network = gleak.build_model(model, batch, seed=options.seed)
    if options.fedavg:
        local = {"batch_size": 1, "lr": options.lr, "shuffle_seed": None}
        update = gleak.fedavg(network, batch, training=False, **local)
    else:
        update = gleak.fedsgd(network, batch, training=False)
    counts = batch.label_counts
    if options.labels == "hidden":
        counts = gleak.restore_labels(update, "gleak")
    if who == "breaching":
        attack = prepare_breaching(update, batch, options)
    else:
        import_module("gleak.inversion.invert")

        def attack(iterations=None):
            return gleak.invert(
                update,
                counts,
                who,
                iterations=iterations or options.iterations,
                update_model="unrolled" if options.fedavg and who == "gleak" else "equivalent",
                seed=options.seed,
                progress=False,
            ).images

    base = resident_mb(forget=True)  # with all modules loaded
    iterations = options.iterations
    if who != "breaching":
        attack(2)  # what is set up when it is first used
    if who == "gleak":  # as many iterations as fit into the peer's time
        taken = []
        for trial in (100, 300):  # the closed form comes on top of the steps
            began = time.process_time()
            attack(trial)
            taken.append(time.process_time() - began)
        each = max((taken[1] - taken[0]) / 200, 1e-4)
        iterations = min(max(int((seconds - taken[0]) / each) + 100, 100), 3000)
    began, wall = time.process_time(), time.perf_counter()
    images = attack(iterations) if who == "gleak" else attack()
    taken, wall = time.process_time() - began, time.perf_counter() - wall
    scores = gleak.score(images, batch.images)
    return {
        "attack": who,
        "model": model,
        "batch": size,
        "client": f"FedAvg, lr {options.lr:g}" if options.fedavg else "FedSGD",
        "labels": options.labels,
        "iterations": iterations,
        "psnr": round(scores["psnr"].mean(), 2),
        "ssim": round(scores["ssim"].mean(), 3),
        "flat": round(scores["mean_colour"].mean(), 2),
        "thumb8": round(scores["thumb8"].mean(), 2),
        "cpu_seconds": round(taken, 1),
        "wall_seconds": round(wall, 1),
        "peak_mb": round(resident_mb() - base),
    }


def resident_mb(forget: bool = False) -> float:
    """The largest memory held so far (Linux); or what is held now, and the peak is forgotten."""
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


def prepare_breaching(update, batch, options):
    """breaching's attack as a function without arguments.

    Shims: its data sets cannot be handed in, so payload and shared data are written by hand; it
    normalises outside the network, so the network goes in without its first layer.
    """
    warnings.simplefilter("ignore")
    import breaching

    normalise, network = update.model[0], update.model[1]
    config = breaching.get_config(overrides=["attack=invertinggradients", "case/data=CIFAR10"])
    config.attack.optim.max_iterations = options.iterations
    config.attack.optim.callback = options.iterations
    config.case.data.shape = list(update.input_shape)
    setup = {"device": torch.device("cpu"), "dtype": torch.float}
    attacker = breaching.attacks.prepare_attack(
        network, torch.nn.CrossEntropyLoss(), config.attack, setup
    )
    payload = {
        "parameters": list(network.parameters()),
        "buffers": list(network.buffers()),
        "metadata": config.case.data,
    }
    sent, facts = update.gradient, None
    if options.fedavg:
        before = dict(update.model.named_parameters())
        sent = {n: w - before[n].detach() for n, w in update.weights_after.items()}
        facts = {"lr": options.lr, "steps": len(batch), "data_per_step": 1}
        facts["labels"] = list(batch.labels[:, None])  # its objective cannot do without
    shared = {
        "gradients": list(sent.values()),
        "buffers": None,
        "metadata": {
            "num_data_points": len(batch),
            "labels": batch.labels.sort().values if options.labels == "given" else None,
            "local_hyperparams": facts,
            "data_key": "inputs",
        },
    }

    def attack():
        torch.manual_seed(options.seed)
        found, _ = attacker.reconstruct([payload], [shared], {}, dryrun=False)
        return normalise_back(found["data"].detach(), normalise).clamp(0, 1)

    return attack


def normalise_back(images, normalise):
    """From normalised to [0, 1]."""
    return images * normalise.std + normalise.mean


if __name__ == "__main__":
    main()
