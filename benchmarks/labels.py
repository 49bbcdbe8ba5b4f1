"""Label counts from one gradient of untrained networks: the recorded table of chapter 02.

    python benchmarks/labels.py book/results/02_labels_untrained.csv [--networks resnet18 ...]

Each row is one method on one batch: the share of labels that are right and whether all counts are,
beside what the guess of K/N and random labels would score. A batch that is in the file already is
left out, so an interrupted run goes on where it stopped.
"""

import argparse
import datetime
import platform
from pathlib import Path

import pandas as pd
import torch
from torchvision.transforms import functional as transforms

import gleak

NETWORKS = {  # name in the table: model, options
    "lenet, sigmoid": ("lenet", {}),
    "lenet, ReLU": ("lenet", {"activation": "relu"}),
    "convnet": ("convnet", {}),
    "resnet18": ("resnet18", {}),
}
METHODS = ["gleak", "zlg", "zlg-bias", "ilrg", "llbg", "llg", "idlg", "gradinversion"]
POOLS = ["cifar10-samples", "cifar100-samples"]  # twenty images each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[8, 64, 512])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--inputs", type=int, default=1000, help="random images for the rules")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.file.exists():
        options.file.parent.mkdir(parents=True, exist_ok=True)
        options.file.write_text(heading(options))
    table = pd.read_csv(options.file, comment="#")
    done = set(zip(table["network"], table["N"], table["K"], table["seed"], strict=True))
    for network in options.networks:
        for size in options.sizes:
            for seed in range(options.seeds):
                for pool in POOLS:
                    batch = augmented(gleak.load_batch(pool, indices=range(20)), size, seed)
                    if (network, batch.num_classes, size, seed) in done:
                        continue
                    rows = pd.DataFrame(run(network, batch, seed, options.inputs))
                    with options.file.open("a") as file:
                        rows.to_csv(file, header=False, index=False)
                    found = rows.set_index("method").instance.to_dict()
                    print(network, batch.num_classes, size, seed, found, flush=True)


def heading(options) -> str:
    """Provenance as comments, and the names of the columns."""
    return "".join(
        [
            f"# python benchmarks/labels.py, {datetime.date.today()}, torch {torch.__version__}, "
            f"{platform.machine()} CPU, {options.threads} thread\n",
            "network,N,K,seed,inputs,method,instance,exact,even,chance\n",
        ]
    )


def augmented(samples: gleak.Batch, size: int, seed: int) -> gleak.Batch:
    """`size` images drawn from the samples, shifted by up to 4 pixels and flipped at random."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(samples), (size,), generator=generator)
    side = samples.images.shape[-1]
    images = transforms.pad(samples.images[chosen], 4, padding_mode="reflect")
    shifts = torch.randint(9, (size, 2), generator=generator).tolist()
    images = [i[:, y : y + side, x : x + side] for i, (y, x) in zip(images, shifts, strict=True)]
    flips = torch.rand(size, generator=generator) < 0.5
    images = [i.flip(2) if flip else i for i, flip in zip(images, flips, strict=True)]
    return gleak.Batch(
        torch.stack(images), samples.labels[chosen], samples.class_names, samples.dataset
    )


def run(network: str, batch: gleak.Batch, seed: int, inputs: int) -> list[dict]:
    """All methods on one batch; the seed draws the batch, the weights and the random images."""
    name, options = NETWORKS[network]
    update = gleak.fedsgd(gleak.build_model(name, batch, seed=seed, **options), batch)
    rows = []
    for method, counts in gleak.compare_labels(update, METHODS, seed=seed, inputs=inputs).items():
        scores = gleak.score_labels(counts, batch.label_counts)
        rows.append(
            {
                "network": network,
                "N": batch.num_classes,
                "K": len(batch),
                "seed": seed,
                "inputs": inputs,
                "method": method,
                "instance": round(scores["instance"], 4),
                "exact": int(scores["exact"]),
                "even": round(scores["even"], 4),
                "chance": round(scores["chance"], 4),
            }
        )
    return rows


if __name__ == "__main__":
    main()
