"""How often `gleak.guess_samples` says how many samples an update is of, and whether it is right.

    python benchmarks/samples.py

Networks at four stages of training on the digits, batches of one to eight, six kinds of updates.
Five to ten minutes on one core.
"""

import itertools
from dataclasses import replace

import pandas as pd
import torch

import gleak
from gleak import defences

NETWORKS = (("lenet", {"activation": "relu"}), ("convnet", {"width": 8}))
KINDS = {
    "gradient": gleak.fedsgd,
    "weights": lambda net, batch: gleak.fedavg(net, batch, lr=0.05, batch_size=2),
    "noisy": lambda *what: defences.add_noise(gleak.fedsgd(*what), 1e-4, seed=0),
    "pruned": lambda *what: defences.prune(gleak.fedsgd(*what), 0.9),
    "8 bits": lambda *what: defences.quantise(gleak.fedsgd(*what), bits=8),
    "bfloat16": lambda *what: defences.cast(gleak.fedsgd(*what), torch.bfloat16),
}


def rows():
    """One row for each update: what it is, and what became of the question."""
    pool = gleak.load_pool("digits", "client")
    for (name, options), steps in itertools.product(NETWORKS, (0, 50, 300, 1500)):
        net = gleak.trained_model(name, "digits", steps=steps, **options)
        for size, seed, kind in itertools.product((1, 2, 4, 6, 8), range(3), KINDS):
            update = KINDS[kind](net, gleak.draw_batch(pool, size, seed=seed))
            try:
                right = gleak.guess_samples(replace(update, num_samples=1)) == size
                answer = "right" if right else "wrong"
            except gleak.MissingKnowledge:
                answer = "asked"
            yield {"network": name, "steps": steps, "kind": kind, "answer": answer}


if __name__ == "__main__":
    found = pd.DataFrame(rows())
    for by in ("kind", "steps"):
        print(pd.crosstab(found[by], found["answer"], margins=True).to_string())
