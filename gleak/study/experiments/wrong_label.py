"""Wrong labels: what one costs every image, how it shows in the update, how it is put right.

Labels are wrong in one of these ways (`wrong`): "absent", the second image is taken for one of a
class that is not in the batch; "count", for one of the class of another image, so that a class is
missing and another counted twice; "two", two images are taken for ones of absent classes; "right",
none is wrong. An image whose label was changed is touched. PSNR is in dB.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import nn

import gleak
from gleak.inversion import DISTANCES, Inversion, flatten, simulate, unrolled
from gleak.labels.repair import fits, least_counts, possible_classes, repair_counts
from gleak.study.experiments.ablation import SEARCH, family, untrained
from gleak.study.experiments.common import FIRST_SEED, fresh_seeds
from gleak.study.runner import product
from gleak.update import GradientUpdate

WRONG = ("right", "absent", "count", "two")
JUDGED = ("right", "absent")  # what the verdict compares
BESIDE = 3  # recorded networks of what it does not
ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "cosine": ("inverting-gradients", {}),
    "L2": ("general", {}),
    "joint labels": ("inverting-gradients", {"joint_labels": True}),
}
SMOOTH: dict[str, Any] = {
    "tv": 0.2,
    "optimizer": "adam",
}  # what the LeNet asks for, and ten times the steps
ABOUT = ["kind", "network", "attack", "wrong"]
NOISE = (0.01, 0.02, 0.05, 0.1, 0.2)  # on pixels in [0, 1]
RATES = (0.001, 0.01, 0.1)


# -- clients and their labels ---------------------------------------------------------------------


def drawn(dataset: str, size: int, repeated: bool = False, fresh: bool = True) -> gleak.Batch:
    """The last image of each class among twenty, `size` at most; or else two of one class first.

    fresh: False takes the first images in place of the last; settings were chosen on those, and
    the recorded runs are of them.

    Raises ValueError where all of the images are of different classes and two shall be of one.
    """
    samples = gleak.load_batch(dataset, indices=range(20))
    numbers = range(19, -1, -1) if fresh else range(20)
    labels = samples.labels[list(numbers)].tolist()
    chosen = sorted(labels.index(label) for label in set(labels))
    if repeated:
        twins = [index for index in range(len(labels)) if index not in chosen]
        if not twins:
            raise ValueError(f"no two of the first images of {dataset} are of one class")
        chosen = list(dict.fromkeys([labels.index(labels[twins[0]]), twins[0], *chosen]))
    return gleak.load_batch(dataset, indices=[numbers[n] for n in chosen[:size]])


def mislabelled(batch: gleak.Batch, wrong: str) -> torch.Tensor:
    """Labels (K,) that the attacker takes for right, wrong in one of the ways of WRONG."""
    labels = batch.labels.clone()
    absent = (batch.label_counts == 0).nonzero().flatten()
    if wrong in ("absent", "two"):
        labels[1] = absent[0]
    if wrong == "two":
        labels[2] = absent[-1]
    if wrong == "count":
        labels[1] = labels[2] if labels[1] != labels[2] else labels[3]
    return labels


def counted(labels: torch.Tensor, batch: gleak.Batch) -> torch.Tensor:
    """How often each class of the batch occurs among the labels: (N,) long."""
    return torch.bincount(labels, minlength=batch.num_classes)


# -- which images fail ----------------------------------------------------------------------------


def attacked(
    kind: str,
    network: str,
    attack: str,
    wrong: str,
    seed: int,
    *,
    dataset: str,
    size: int,
    larger_size: int,
    width: int,
    iterations: int,
    feature_iterations: int,
    fresh: bool = True,
) -> list[dict]:
    """A row for each image: what came back of it, and what the tests say of the labels.

    kind: distinct (`size` images of as many classes), larger (`larger_size` of them) or repeated
    (two of one class). network: as `ablation.family` names it. attack: gleak, or one of ATTACKS.
    Columns: image, touched, psnr, flat (of the image's own mean colour), and of the whole batch the
    lowest softmax, the distance reached, its floor, and whether the closed form fits the labels.
    """
    images = larger_size if kind == "larger" else size
    batch = drawn(dataset, images, kind == "repeated", fresh)
    update = gleak.fedsgd(untrained(network, batch, seed, width), batch)
    labels = mislabelled(batch, wrong)
    counts = counted(labels, batch)
    solved = fits(update, counts, attempts=2)
    lenet = family(network, width)[0] == "lenet"
    steps = 10 * iterations if lenet else iterations
    name, settings = ATTACKS.get(attack, (attack, {}))
    if attack != "gleak":
        settings = SEARCH | (SMOOTH if lenet else {}) | settings
    elif solved:  # without a solution it falls back on matching
        steps = feature_iterations
    found = gleak.invert(
        update, counts, name, iterations=steps, seed=seed, progress=False, **settings
    )
    about = {
        "lowest softmax": lowest_softmax(update, counts),
        "reached": found.history["distance"].min(),
        "floor": floor(update, counts, "l2" if name == "general" else "cosine"),
        "fits": solved,
    }
    return [row | about for row in image_rows(found, batch, labels != batch.labels)]


def image_rows(found: Inversion, batch: gleak.Batch, touched: torch.Tensor) -> list[dict]:
    """What an attack brought back of each image: image, touched, psnr, flat."""
    return [
        {
            "image": image,
            "touched": bool(touched[image]),
            "psnr": score["psnr"],
            "flat": score["mean_colour"],
        }
        for image, score in gleak.score(found.images, batch.images).iterrows()
    ]


def lowest_softmax(update: gleak.Update, counts: torch.Tensor) -> torch.Tensor:
    """The smallest entry of what would be the mean softmax if the counts were right."""
    _, bias = update.classifier_gradient()
    assert bias is not None  # the networks of this chapter have one
    return (bias + counts / update.num_samples).min()


def floor(update: GradientUpdate, counts: torch.Tensor, distance: str) -> torch.Tensor:
    """What no images with these counts can get the distance below (l2, or else cosine).

    With features that are nowhere negative, neither are the rows of an absent class; the negative
    part of those that were observed can be met by no images.
    """
    zero = torch.tensor(0.0)
    norm = sum((g.square().sum() for g in update.gradient.values()), zero)
    of_absent = [g[counts == 0] for g in update.classifier_gradient() if g is not None]
    unmet = sum((g.clamp_max(0).square().sum() for g in of_absent), zero) / norm
    return unmet if distance == "l2" else 1 - (1 - unmet).sqrt()


def settings(model: str, seeds: int, short: int, longer: int) -> list[dict]:
    """What the chapter runs `attacked` with: right labels and one wrong, on each network drawn.

    short, longer: iterations of the cosine, and of L2, the distance of the paper's attack, which
    the verdict rests on.
    """
    about = {"kind": ["distinct"], "network": [model], "wrong": JUDGED, "seed": fresh_seeds(seeds)}
    return [
        *product(**about, attack=["cosine"], iterations=[short]),
        *product(**about, attack=["L2"], iterations=[longer]),
    ]


def more_settings(model: str, seeds: int) -> list[dict]:
    """What its appendix runs: every way of being wrong, other batches, labels that are not told."""
    whole, network, distinct = fresh_seeds(seeds), [model], ["distinct"]
    cosine = {"network": network, "attack": ["cosine"], "seed": whole}
    return [
        *product(kind=distinct, wrong=WRONG, **cosine),
        *product(
            kind=distinct, network=network, attack=["joint labels"], wrong=["right"], seed=whole
        ),
        *product(kind=["larger"], wrong=JUDGED, **cosine),
        *product(kind=["repeated"], wrong=["right", "count"], **cosine),
        *product(kind=distinct, network=["lenet"], attack=["gleak"], wrong=JUDGED, seed=whole),
    ]


def compared(
    rows: pd.DataFrame, by: Sequence[str], wrong: str, touched: bool = False
) -> pd.DataFrame:
    """Mean PSNR of the images that wrong labels leave alone (or touch).

    Columns: with right labels, with wrong ones, and of a flat colour; a row for each of `by`.
    """
    keys = [*by, "seed", "image"]
    chosen = rows[(rows.wrong == wrong) & (rows.touched == touched)].set_index(keys)
    right = rows[rows.wrong == "right"].set_index(keys).psnr.reindex(chosen.index)
    both = pd.DataFrame({"right": right, "wrong": chosen.psnr, "flat": chosen.flat})
    return both.groupby(list(by)).mean()


def means(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean PSNR for each kind, network, attack and way of being wrong, and the range of seeds."""
    of_seeds = frame.groupby([*ABOUT, "seed"]).psnr.mean().groupby(ABOUT)
    return pd.DataFrame(
        {
            "untouched": frame[~frame.touched].groupby(ABOUT).psnr.mean(),
            "touched": frame[frame.touched].groupby(ABOUT).psnr.mean(),
            "flat colour": frame.groupby(ABOUT).flat.mean(),
            "lowest seed": of_seeds.min(),
            "highest seed": of_seeds.max(),
        }
    )


def pairs(frame: pd.DataFrame, model: str) -> dict[str, pd.Series]:
    """Of the images whose own label is right: PSNR with right labels, with wrong ones, and flat.

    A row for each of some cases, those that were run.
    """
    chosen = {
        "cosine": ("absent", ("distinct", model, "cosine")),
        "L2": ("absent", ("distinct", model, "L2")),
        "count": ("count", ("distinct", model, "cosine")),
        "two": ("two", ("distinct", model, "cosine")),
        "larger": ("absent", ("larger", model, "cosine")),
        "repeated": ("count", ("repeated", model, "cosine")),
        "gleak": ("absent", ("distinct", "lenet", "gleak")),
    }
    ran = dict(iter(frame.groupby(ABOUT[:3])))
    return {
        name: compared(ran[case], ABOUT[:3], wrong).loc[case]
        for name, (wrong, case) in chosen.items()
        if case in ran and (ran[case].wrong == wrong).any()
    }


# -- every network, every attack ------------------------------------------------------------------


def recorded_settings(seeds: int) -> list[dict]:
    """What the recorded table runs `attacked` with: every network under every attack.

    Networks beyond `BESIDE` run with what the verdict compares alone; the ResNet-18, ten times as
    slow, with two.
    """
    both = {"kind": ["distinct", "larger"], "network": ["convnet", "lenet"]}
    relu = {"kind": ["distinct", "larger"], "network": ["lenet-relu"]}
    alone, two = {"kind": ["distinct"], "network": ["resnet18"]}, range(min(seeds, 2))
    found = []
    for wrong in WRONG:
        drawn = range(seeds if wrong in JUDGED else min(seeds, BESIDE))
        about = {"wrong": [wrong], "seed": drawn}
        found += product(**both, attack=["cosine", "L2"], **about)
        found += product(**relu, attack=["cosine", "L2"], **about)
    joint, some = ["joint labels"], range(min(seeds, BESIDE))
    return [
        *found,
        *product(**both, attack=["gleak"], wrong=JUDGED, seed=range(seeds)),
        *product(**both, attack=joint, wrong=["right"], seed=some),
        *product(**alone, attack=["gleak"], wrong=WRONG, seed=two),
        *product(**alone, attack=["cosine"], wrong=JUDGED, seed=two),
    ]


def in_steps(
    images: int,
    lr: float,
    wrong: str,
    seed: int,
    *,
    dataset: str,
    model: str,
    width: int,
    iterations: int,
    fresh: bool = True,
) -> list[dict]:
    """The same of a FedAvg client with a step for each image, whose order the attacker knows.

    wrong: right, absent, or swapped: two images whose steps are taken for each other's.
    A row for each image: image, touched, psnr, flat.
    """
    batch = drawn(dataset, images, fresh=fresh)
    batch = reordered(batch, batch.labels.argsort())  # the client takes the images in this order
    update = gleak.fedavg(
        untrained(model, batch, seed, width), batch, batch_size=1, lr=lr, shuffle_seed=None
    )
    labels = mislabelled(batch, "absent" if wrong == "absent" else "right")
    slots = labels.argsort().argsort()  # the attack numbers images by their labels
    touched = labels != batch.labels
    if wrong == "swapped":
        slots[[0, 1]] = slots[[1, 0]]
        touched[:2] = True
    steps = partial(unrolled, order=list(slots[:, None]))
    found = gleak.invert(
        update,
        counted(labels, batch),
        iterations=iterations,
        seed=seed,
        progress=False,
        update_model=steps,
        **SEARCH,
    )
    return image_rows(found, batch, touched)


def step_settings(sizes: Sequence[int], seeds: int) -> list[dict]:
    """What the recorded table runs `in_steps` with; the smallest batch on more networks."""
    few, rates = range(min(seeds, BESIDE)), [0.01, 0.1]
    return [
        *product(images=sizes[:1], lr=rates, wrong=JUDGED, seed=range(seeds)),
        *product(images=sizes[1:], lr=rates, wrong=JUDGED, seed=few),
        *product(images=sizes, lr=rates, wrong=["swapped"], seed=few),
    ]


def reordered(
    batch: gleak.Batch, order: torch.Tensor | Sequence[int], labels: torch.Tensor | None = None
) -> gleak.Batch:
    """The batch's images in this order, with their labels or with others (K,) in their place."""
    labels = batch.labels if labels is None else labels
    return gleak.Batch(batch.images[order], labels[order], batch.class_names, batch.dataset)


def recorded_table(
    rows: pd.DataFrame, in_steps: pd.DataFrame, model: str, size: int, larger_size: int
) -> pd.DataFrame:
    """The rows of `attacked` and `in_steps` in one table, as it is recorded."""
    rows = rows.assign(images=rows.kind.map({"distinct": size, "larger": larger_size}))
    in_steps = in_steps.assign(network=model, attack="local steps")
    columns = ["network", "attack", "images", "lr", "wrong", "seed"]
    columns += ["image", "touched", "psnr", "flat"]
    return pd.concat([rows, in_steps])[columns].round(2)


def reading(row: Mapping[str, float]) -> str:
    """What one wrong label does, in words: from PSNR with right labels, wrong ones, and flat."""
    if pd.isna(row["wrong"]):
        return "is told none"
    if row["right"] < row["flat"] + 1:
        return "nothing to lose"
    if row["wrong"] < row["flat"] + 0.5:
        return "all are lost"
    return "all are worse" if row["wrong"] < row["right"] - 1 else "only the touched"


def one_wrong(recorded: pd.DataFrame) -> pd.DataFrame:
    """What one wrong label does in each recorded case: PSNR right, wrong, flat, and in words.

    recorded: the recorded rows but those of local steps; a row for each network, attack and size of
    batch. The images that are not touched, with a label of an absent class or in the counts; where
    no label was told, right is that of all images.
    """
    by = ["network", "attack", "images"]
    right = recorded[recorded.wrong == "right"].groupby(by).psnr.mean()
    either = [compared(recorded, by, wrong) for wrong in ("absent", "count")]
    found = pd.concat(either).groupby(by).mean().reindex(right.index)
    found["right"] = found["right"].fillna(right)
    return found.assign(words=found.apply(reading, axis=1))


def at_stake(words: pd.Series) -> pd.Series:
    """Those of the cases in which there are labels to be wrong and images to be lost."""
    return words[~words.isin(["nothing to lose", "is told none"])]


# -- why the others are pulled along --------------------------------------------------------------


def aside(images: torch.Tensor) -> torch.Tensor:
    """One direction to move the images in, at random and the same each time (K, C, H, W)."""
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


def pull(
    update: GradientUpdate,
    images: torch.Tensor,
    labels: torch.Tensor,
    distance: str = "l2",
    last: bool = False,
) -> torch.Tensor:
    """The size of the slope of the distance at each image (K,); `last`: of the last layer alone."""
    images = images.clone().requires_grad_()
    chosen = slice(-2, None) if last else slice(None)
    parameters, observed = list(update.model.parameters()), list(update.gradient.values())
    simulated = simulate(update.model, parameters[chosen], images, labels)
    value = DISTANCES[distance](simulated, observed[chosen])
    return torch.autograd.grad(value, images)[0].flatten(1).norm(dim=1)


def pulls(
    update: GradientUpdate, batch: gleak.Batch, labels: torch.Tensor, distance: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pull for each noise on the images: with right labels (noise,) and others (noise, K).

    With right labels it is the mean over the images.
    """
    noisy = [batch.images + size * aside(batch.images) for size in NOISE]
    right = torch.stack([pull(update, images, batch.labels, distance).mean() for images in noisy])
    return right, torch.stack([pull(update, images, labels, distance) for images in noisy])


def pull_on_lenet(batch: gleak.Batch, labels: torch.Tensor, activation: str) -> float:
    """The pull at the images whose label is right, in units of that at the touched ones."""
    network = gleak.build_model("lenet", batch, seed=FIRST_SEED, activation=activation)
    noisy = batch.images + 0.01 * aside(batch.images)
    size, others = pull(gleak.fedsgd(network, batch), noisy, labels), labels == batch.labels
    return float(size[others].mean() / size[~others].mean())


def from_the_goal(
    update: gleak.Update, batch: gleak.Batch, labels: torch.Tensor, iterations: int
) -> dict[str, float]:
    """Mean PSNR of the images whose label is right, when the search begins at them.

    Before it (start), after it with right labels, there of all images (right), and with these
    labels (wrong).
    """
    near = (batch.images + 0.05 * aside(batch.images)).clamp(0, 1)

    def kept(told: torch.Tensor) -> pd.Series:
        found = gleak.invert(
            update,
            counted(told, batch),
            "inverting-gradients",
            start=near[told.argsort()],
            tv=0.02,
            lr=0.03,
            schedule="cosine",
            iterations=iterations,
            progress=False,
        )
        return gleak.score(found.images, batch.images)["psnr"]

    return {
        "start": gleak.score(near, batch.images)["psnr"].mean(),
        "right": kept(batch.labels).mean(),
        "wrong": kept(labels)[(labels == batch.labels).numpy()].mean(),
    }


# -- where the order of labels matters ------------------------------------------------------------


def order_effect(network: nn.Module, batch: gleak.Batch, labels: torch.Tensor) -> pd.DataFrame:
    """How much of an update changes when a client with a step for each image exchanges two steps.

    Beside it the same for labels of which one is wrong. Relative, a row for each learning rate.
    """
    forward = list(range(len(batch)))
    exchanged = [1, 0, *forward[2:]]

    def sent(order: list[int], labels: torch.Tensor, lr: float) -> torch.Tensor:
        local = reordered(batch, order, labels)
        told = gleak.fedavg(network, local, batch_size=1, lr=lr, shuffle_seed=None)
        return flatten(list(told.equivalent_gradient().values()))

    rows = []
    for lr in RATES:
        truth = sent(forward, batch.labels, lr)
        swapped = (sent(exchanged, batch.labels, lr) - truth).norm() / truth.norm()
        wrong = (sent(forward, labels, lr) - truth).norm() / truth.norm()
        rows.append({"two steps exchanged": float(swapped), "one label wrong": float(wrong)})
    return pd.DataFrame(rows, index=pd.Index(RATES, name="learning rate"))


def exchange_costs(steps: pd.DataFrame) -> dict[bool, pd.Series]:
    """What it costs, in dB, to take two images' steps for each other's: the touched, the others.

    steps: rows of `in_steps`; a value for each size of batch and learning rate.
    """
    by = ["images", "lr"]
    return {
        touched: compared(steps, by, "swapped", touched).eval("right - wrong")
        for touched in (True, False)
    }


# -- three tests that need no images, and the repair ----------------------------------------------


def tested(frame: pd.DataFrame) -> pd.DataFrame:
    """Whether the labels of each run pass for right, in the columns softmax test and closed form.

    The distance that `gleak` reached is left out: it matches features, not gradients.
    """
    tests = frame.drop_duplicates([*ABOUT, "seed"]).copy()
    tests["softmax test"] = tests["lowest softmax"] > 0
    tests["closed form"] = tests["fits"].astype(bool)
    tests["reached"] = tests["reached"].where(tests.attack != "gleak")
    return tests


def repaired(pool: str, steps: int, *, size: int, batches: int) -> list[dict]:
    """A row for each of some small batches: does a rule name all labels, and does its repair?

    pool, steps: of a LeNet with ReLU trained that far. batches: how many.
    """
    clients, rows = gleak.load_pool(pool), []
    network = gleak.trained_model("lenet", pool, steps=steps, seed=FIRST_SEED, activation="relu")
    for seed in fresh_seeds(batches):
        batch = gleak.draw_batch(clients, size, seed=seed)
        update = gleak.fedsgd(network, batch)
        rule = gleak.restore_labels(update, "zlg", inputs=100)
        try:
            found = repair_counts(update, rule, most=5)
            outcome = "exact" if (found == batch.label_counts).all() else "wrong"
        except gleak.MissingKnowledge:
            outcome = "no answer"
        rows.append(
            {
                "zlg exact": bool((rule == batch.label_counts).all()),
                "labels left open": size - int(least_counts(update).sum()),
                "classes possible": int(possible_classes(update).sum()),
                "classes present": int((batch.label_counts > 0).sum()),
                "outcome": outcome,
            }
        )
    return rows


def repair_means(stages: pd.DataFrame) -> pd.DataFrame:
    """Means over the batches at each stage, with the share of each outcome."""
    outcome = pd.crosstab(stages.steps, stages.outcome, normalize="index")
    outcomes = ["exact", "wrong", "no answer"]
    told = ["zlg exact", "labels left open", "classes possible", "classes present"]
    shares = outcome.reindex(columns=outcomes, fill_value=0.0)
    return stages.groupby("steps")[told].mean().join(shares)
