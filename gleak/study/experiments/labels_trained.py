"""Label counts from one gradient of trained networks: chapter 02a and the appendices of chapter 02.

The unit is the network: `training` is the seed of its weights and of what it is trained on, and
each network has batches of its own.
"""

# ruff: noqa: N803 (arguments are named as the columns of the tables)

import torch

import gleak
from gleak.data import Batch
from gleak.study.experiments.common import clients_and_aux, counted, fresh_seeds, model_options
from gleak.study.experiments.labels_fedsgd import DEEP_INPUTS, Row, scores
from gleak.study.experiments.networks import batch_seed, trained_network
from gleak.study.runner import product
from gleak.training import accuracy

FEW_RULES = ["zlg", "zlg-bias", "ilrg", "llg"]  # beside `gleak`, on small batches

ALPHAS = {"uniform": None, "Dirichlet 1": 1.0, "Dirichlet 0.5": 0.5, "Dirichlet 0.1": 0.1}
SHARES = {"one dominant": 0.7, "one class": 1.0}  # of the images that are of one class
DISTRIBUTIONS = [*ALPHAS, *SHARES]


def trained(
    network: str,
    pool: str,
    training: int,
    steps: int,
    *,
    batches: int,
    size: int,
    alpha: float,
    inputs: int,
    width: int,
) -> list[Row]:
    """The rules on a trained network, with skewed labels, and the oracle: several batches.

    Each row also has the share of all clients' images that the network names right.
    """
    clients, aux = clients_and_aux(gleak.load_pool(pool))
    net = trained_network(network, pool, steps, training, width)
    known, rows = accuracy(net, clients), []
    for number in range(batches):
        drawn = gleak.draw_batch(clients, size, alpha=alpha, seed=batch_seed(training, number))
        found = scores(net, drawn, inputs=inputs, aux=aux, oracle=True)
        rows += [{"seed": number, "test accuracy": known, **row} for row in found]
    return rows


def small_batches(
    pool: str,
    training: int,
    steps: int,
    K: int,
    seed: int,
    *,
    model: str,
    alpha: float,
    inputs: int,
    width: int,
) -> Row:
    """Fewer images than classes: the share of labels by each rule, and what `gleak` proves.

    `all certain`: every interval is one number; `wrongly proven`: something is called proven that
    is not there.
    """
    clients, _ = clients_and_aux(gleak.load_pool(pool))
    net = trained_network(model, pool, steps, training, width)
    drawn = gleak.draw_batch(clients, K, alpha=alpha, seed=batch_seed(training, seed))
    update = gleak.fedsgd(net, drawn)
    counts = counted(update, FEW_RULES, inputs=inputs)
    found, truth = gleak.label_posterior(update), drawn.label_counts
    counts["gleak"] = found.counts
    scored = {method: gleak.score_labels(c, truth) for method, c in counts.items()}
    row: Row = {method: score["instance"] for method, score in scored.items()}
    return row | {
        "even": scored["gleak"]["even"],
        "gleak exact": scored["gleak"]["exact"],
        "all certain": float(found.certain.all()),
        "wrongly proven": float((found.at_least > truth).any()),
    }


def drawn_with(labels: str, clients: Batch, size: int, seed: int) -> Batch:
    """`size` images with labels of one of DISTRIBUTIONS; fewer if a single class has fewer."""
    if labels in ALPHAS:
        return gleak.draw_batch(clients, size, alpha=ALPHAS[labels], seed=seed)
    mixed = gleak.draw_batch(clients, size, seed=seed)
    present = clients.labels.unique()
    of_class = (clients.labels == present[seed % len(present)]).nonzero().flatten()
    major = of_class[: int(SHARES[labels] * size)]
    count = len(major) if labels == "one class" else max(len(major), size)
    images = torch.cat([clients.images[major], mixed.images])[:count]
    names = torch.cat([clients.labels[major], mixed.labels])[:count]
    return Batch(images, names, clients.class_names)


def distributions(
    pool: str,
    training: int,
    steps: int,
    labels: str,
    seed: int,
    *,
    model: str,
    size: int,
    inputs: int,
    width: int,
) -> list[Row]:
    """The rules with labels of one of DISTRIBUTIONS."""
    clients, aux = clients_and_aux(gleak.load_pool(pool))
    net = trained_network(model, pool, steps, training, width)
    drawn = drawn_with(labels, clients, size, batch_seed(training, seed))
    return scores(net, drawn, inputs=inputs, aux=aux)


def classes_settings(trainings: int, photos: bool) -> list[dict]:
    """Two, twenty, and if asked for a thousand classes."""
    settings = product(N=[2], steps=[0], training=fresh_seeds(trainings))
    settings += product(N=[20], training=fresh_seeds(trainings), steps=[0, 150])
    return settings + product(
        N=[1000] if photos else [], steps=["ImageNet"], training=fresh_seeds(2)
    )


def classes(
    N: int,
    steps: int | str,
    training: int,
    *,
    size: int,
    alpha: float,
    inputs: int,
    photo_size: int,
) -> list[Row]:
    """The rules with N classes: two of the digits, crops of twenty photographs, or ImageNet's.

    training: seed of the network and of its batch; of ImageNet's network, which is one, of the
    batch alone. photo_size: side of the photographs in pixels.
    """
    if N == 2:
        pool = gleak.load_pool("digits")
        two = (pool.labels < 2).nonzero().flatten()
        drawn = Batch(pool.images[two], pool.labels[two], ["0", "1"])
        drawn = gleak.draw_batch(drawn, size, alpha=1.0, seed=training)
        net = gleak.build_model("lenet", drawn, seed=training, **model_options("lenet"))
        return scores(net, drawn, inputs=inputs)
    if N == 20:
        clients, aux = clients_and_aux(gleak.load_pool("imagenet-crops"))
        net = trained_network("lenet", "imagenet-crops", int(steps), training)
        drawn = gleak.draw_batch(clients, size, alpha=alpha, seed=training)
        return scores(net, drawn, inputs=inputs, aux=aux)
    photos = gleak.load_batch("imagenet-samples", indices=range(20), image_size=photo_size)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(training))[:16]
    drawn = Batch(photos.images[order], photos.labels[order], photos.class_names, photos.dataset)
    methods = ["zlg-bias", "idlg", "llg", "llbg", "ebi", "ilrg"]
    net = gleak.build_model("efficientnet-lite0", drawn)
    return scores(net, drawn, inputs=DEEP_INPUTS, methods=methods)
