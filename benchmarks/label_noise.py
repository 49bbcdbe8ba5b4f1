"""Fit the noise of `gleak`'s shares on networks trained on the digits, test it on others.

    python benchmarks/label_noise.py

Prints the five constants of gleak.labels.posterior, then, for networks on MNIST, crops of
photographs and (of another seed) on the digits, how often the 90 % intervals hold the true count.
About three minutes on one core.
"""

import itertools

import numpy as np
import pandas as pd
from scipy.optimize import minimize

import gleak
from gleak.labels import LastLayer, posterior
from gleak.labels.shares import find_shares

NETWORKS = (("lenet", {"activation": "relu"}), ("convnet", {"width": 8}))


def updates(pool: str, seeds, steps, batches):
    """Updates of trained networks with the true counts: all batch sizes and skews."""
    clients = gleak.load_pool(pool)
    for (name, options), seed, step in itertools.product(NETWORKS, seeds, steps):
        net = gleak.trained_model(name, pool, steps=step, seed=seed, **options)
        for k, alpha, draw in itertools.product((16, 64, 256), (0.1, 0.3, 1.0, None), batches):
            batch = gleak.draw_batch(clients, k, alpha=alpha, seed=1000 * seed + draw)
            update = gleak.fedsgd(net, batch, training=False)
            yield {"pool": pool, "steps": step}, update, batch.label_counts


def fit() -> tuple[float, ...]:
    """LEAK, FLOOR, UNEVEN, MISSED and FADES of the highest likelihood, given the true counts."""
    share, count, k, n, unseen = [], [], [], [], []
    for _, update, truth in updates("digits", (7, 8), (40, 150, 400), range(2)):
        layer = LastLayer.of(update)
        share.append(find_shares(layer).share)
        count.append(truth.double().numpy())
        k.append(np.full(layer.n, layer.k))
        n.append(np.full(layer.n, layer.n))
        unseen.append(layer.unseen)
    share, count, k, n, unseen = map(np.concatenate, (share, count, k, n, unseen))

    def noise(logs):
        leak, floor, uneven = np.exp(logs)
        return -posterior.flow_log(share, count, k, n, min(leak, 0.9), floor, uneven).mean()

    there, missed = count[count > 0], unseen[count > 0]

    def signs(logs):
        log_chance = -np.exp(logs[0]) * there ** np.exp(logs[1])
        return -np.where(missed, log_chance, np.log(-np.expm1(log_chance))).mean()

    leak, floor, uneven = np.exp(minimize(noise, np.log([0.3, 0.5, 1.0]), method="Nelder-Mead").x)
    rate, fades = np.exp(minimize(signs, np.log([0.5, 1.0]), method="Nelder-Mead").x)
    return leak, floor, uneven, np.exp(-rate), fades


def test() -> pd.DataFrame:
    rows = []
    for pool in ("mnist-5k", "imagenet-crops", "digits"):
        for setting, update, truth in updates(pool, (3,), (15, 40, 150, 400), range(1)):
            found = gleak.label_posterior(update)
            held = (found.low <= truth) & (truth <= found.high)
            scores = gleak.score_labels(found.counts, truth)
            rows.append(
                {
                    **setting,
                    "held": held.double().mean().item(),
                    "width": (found.high - found.low).double().mean().item(),
                    "instance": scores["instance"],
                    "even": scores["even"],
                }
            )
    return pd.DataFrame(rows).groupby(["pool", "steps"]).mean()


if __name__ == "__main__":
    names = ("LEAK", "FLOOR", "UNEVEN", "MISSED", "FADES")
    for name, value in zip(names, fit(), strict=True):
        print(f"{name} = {value:.2f}   (in the package: {getattr(posterior, name)})")
    print(test().round(2).to_string())
