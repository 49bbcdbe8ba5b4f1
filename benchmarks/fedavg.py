"""Images from FedAvg weights over many ways of local training: the recorded table of chapter 06.

    python benchmarks/fedavg.py book/results/06_images_fedavg.csv [--sweeps way rate ...]

Each row is one attack on one client: the images' mean PSNR and SSIM after matching, what leaks
without any attack, how far the client went, and the CPU seconds it took. A run that is in the file
already is left out, so an interrupted one goes on where it stopped.
"""

import argparse
import datetime
import platform
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch

import gleak
from gleak.inversion import path
from gleak.study.runner import product

DISTINCT = [0, 1, 3, 4, 6, 11, 12, 13]  # of the CIFAR-10 samples: eight classes
SIXTEEN = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 17]  # of CIFAR-100's, sixteen classes
EPOCHS, RATES = [1, 2, 5, 10, 16], [1e-4, 1e-3, 1e-2, 1e-1]
CROPS, TRAINED = "imagenet-crops", 40  # pool and steps of the trained networks
SCAN = [0.25, 0.5, 1, 2, 4]  # times the true rate
MATCHING, OWN = 200, 600  # iterations of matching, and of gleak

# B = 0: all in one batch; labels: the attacker's
BASE = {"network": "convnet", "steps": 0, "K": 4, "E": 5, "B": 0, "lr": 1e-3, "labels": "given"}
COMPARED = ["equivalent", "middle", "gleak"]
# sweep: what varies from the base, and the attacks
SWEEPS = {
    "way": ({"E": EPOCHS, "lr": RATES}, COMPARED),
    "size": ({"K": [4, 8, 16], "lr": [1e-3, 1e-2]}, COMPARED),
    "batches of 8": ({"K": [8], "B": [4, 1], "lr": [1e-3, 1e-2]}, COMPARED),
    "batches of 16": ({"K": [16], "B": [8, 4, 1], "lr": [1e-3, 1e-2]}, COMPARED),
    "restored": ({"labels": ["restored"], "lr": [1e-3, 1e-2]}, COMPARED),
    # no features fit wrong counts: what gleak falls back on is the dear matching of `unrolled`
    "wrong": ({"labels": ["wrong"], "lr": [1e-3, 1e-2]}, ["equivalent", "middle"]),
    "models": ({"E": [5, 10], "lr": [1e-2, 3e-2]}, [*COMPARED, "path", "sme", "nl-sme"]),
    "rate": ({"lr": [1e-3, 1e-2]}, ["sme, no lr", "gleak, lr scanned"]),
    "trained": ({"steps": [TRAINED], "E": [1, 5], "lr": [1e-4, 1e-3, 1e-2]}, COMPARED),
    "unrolled": ({"E": [5, 10], "lr": [1e-2, 3e-2]}, ["unrolled"]),
    # as Dimitrov et al. and Zhu et al. measured: 50 images, 10 epochs of 10 batches of 5
    "fifty": (
        {"K": [50], "E": [10], "B": [5], "lr": [1e-3, 1e-2]},
        ["equivalent", "middle", "sme"],
    ),
    "lenet": ({"network": ["lenet"], "E": [1, 5, 10], "lr": RATES}, COMPARED),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--sweeps", nargs="+", default=list(SWEEPS), choices=list(SWEEPS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    done = set()
    if options.file.exists():
        table = pd.read_csv(options.file, comment="#")
        done = {tuple(row) for row in table[[*BASE, "attack", "seed"]].itertuples(index=False)}
    else:
        options.file.parent.mkdir(parents=True, exist_ok=True)
        options.file.write_text(heading(options))
    for seed in options.seeds:
        for sweep in options.sweeps:
            varied, attacks = SWEEPS[sweep]
            for setting in product(**varied):
                for attack in attacks:
                    client = BASE | setting
                    if (*client.values(), attack, seed) in done:
                        continue
                    done.add((*client.values(), attack, seed))
                    row = run(client, attack, seed)
                    with options.file.open("a") as file:
                        pd.DataFrame([row]).to_csv(file, header=False, index=False)
                    print(row, flush=True)


def heading(options) -> str:
    """Provenance as comments, and the names of the columns."""
    return "".join(
        [
            f"# python benchmarks/fedavg.py, {datetime.date.today()}, torch {torch.__version__}, "
            f"{platform.machine()} CPU, {options.threads} thread, other work beside it\n",
            f"# matching by cosine with {MATCHING} iterations, gleak with {OWN}\n",
            ",".join([*BASE, "attack", "seed", *MEASURED]) + "\n",
        ]
    )


MEASURED = [
    *["moved", "cosine", "psnr", "lowest", "above_20", "ssim", "thumb8", "mean_colour"],
    "cpu_seconds",
]


def run(client: dict, attack: str, seed: int) -> dict:
    """One attack on one client; the seed draws the weights, the client's order and the start."""
    batch, network = prepared(client, seed)
    update = gleak.fedavg(
        network,
        batch,
        epochs=client["E"],
        batch_size=client["B"] or None,
        lr=client["lr"],
        shuffle_seed=seed,
    )
    counts = known_counts(update, batch, client["labels"])
    began = time.process_time()
    images = attacked(update, counts, attack, seed)
    seconds = time.process_time() - began
    scores = gleak.score(images, batch.images)
    means = scores[["psnr", "ssim", "thumb8", "mean_colour"]].mean().to_dict()
    measured = gleak.score_drift(update, batch) | means
    measured |= {"lowest": scores.psnr.min(), "above_20": (scores.psnr > 20).mean()}
    measured = {name: float(f"{measured[name]:.4g}") for name in MEASURED[:-1]}
    return client | {"attack": attack, "seed": seed} | measured | {"cpu_seconds": round(seconds, 1)}


def prepared(client: dict, seed: int):
    """The client's batch and the network that it is sent."""
    size = client["K"]
    pool = gleak.load_pool(CROPS)
    if size > len(SIXTEEN):
        batch = gleak.draw_batch(pool, size, seed=seed)
        return batch, gleak.build_model(client["network"], batch, seed=seed)
    if client["steps"]:
        some = torch.cat([(pool.labels == label).nonzero()[0] for label in range(size)])
        batch = gleak.Batch(pool.images[some], pool.labels[some], pool.class_names, pool.dataset)
        trained = gleak.trained_model(client["network"], CROPS, steps=client["steps"], seed=seed)
        return batch, trained
    data, indices = ("cifar10", DISTINCT) if size <= 8 else ("cifar100", SIXTEEN)
    batch = gleak.load_batch(f"{data}-samples", indices=indices[:size])
    return batch, gleak.build_model(client["network"], batch, seed=seed)


def known_counts(update, batch, labels: str) -> torch.Tensor:
    """The true label counts, those restored from the weights, or true ones but for one label."""
    if labels == "restored":
        return gleak.restore_labels(update, "gleak")
    counts = batch.label_counts.clone()
    if labels == "wrong":
        counts[batch.labels[0]] -= 1
        counts[(batch.label_counts == 0).nonzero()[0]] += 1
    return counts


def attacked(update, counts, attack: str, seed: int) -> torch.Tensor:
    """The restored images."""
    common = {"seed": seed, "progress": False}
    own = {"attack": "gleak", "update_model": "unrolled", "iterations": OWN}
    if attack == "gleak":
        return gleak.invert(update, counts, **own, **common).images
    if attack == "gleak, lr scanned":  # the rate whose images lead to the client's weights
        best, nearest = None, torch.inf
        for factor in SCAN:
            guess = replace(update, facts=update.facts | {"lr": factor * update.facts["lr"]})
            found = gleak.invert(guess, counts, **own, **common)
            distance = found.history.get("distance_of_weights", pd.Series([torch.inf])).min()
            if distance < nearest or best is None:
                best, nearest = found.images, distance
        return best
    if attack == "sme, no lr":
        update = replace(update, facts={})
    models = {"middle": partial(path, points=1), "sme, no lr": "sme"}
    model = models.get(attack, attack)
    return gleak.invert(update, counts, update_model=model, iterations=MATCHING, **common).images


if __name__ == "__main__":
    main()
