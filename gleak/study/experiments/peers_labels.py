"""The authors' own code for the label rules, beside ours on the same update.

Their code comes from checkouts in one folder; nothing of it is part of this package. Shims: each
gets the gradient of the classifier and what else its own program would compute (its clients, data
loaders and networks stay out), on the processor. Every function here takes a `Case` and returns
counts (N,), which need not sum to K where theirs do not.
"""

# ruff: noqa: N803 (arguments are named as the columns of the tables)

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy.special import softmax
from torch import nn

import gleak
from gleak.data import Batch
from gleak.labels import METHODS, LastLayer, largest_remainder
from gleak.labels.rules import ilrg_solution
from gleak.study.experiments.checkouts import load
from gleak.study.experiments.common import clients_and_aux, model_options
from gleak.study.experiments.labels_fedsgd import DEEP_INPUTS, shifted
from gleak.study.experiments.networks import trained_network
from gleak.study.runner import product
from gleak.update import Update

Row = dict[str, float | int | str | None]

WIDTH = 8  # of the ConvNet
INPUTS = 100  # random images for our zero-shot rules
LOCAL_BATCH, LOCAL_LR = 8, 0.01  # of the clients that send weights
PHOTO_SIZE = 112
DEEP = ("resnet18", "efficientnet-lite0")
VERSIONS = [
    "authors' code: BUAA-CST/iLRG 17e10f8 (2023), tklab-tud/LLG 58f3aa2 (2022), nadbag98/LLBG",
    "5cb5f97 (2024), CityChan/Recovering-Label-from-Update 54cc792 (2024)",
]


@dataclass(frozen=True, eq=False)
class Case:
    """One update, and what the authors' programs know besides.

    folder: with their checkouts; as_one_step: whether weights pass for the mean gradient.
    """

    folder: Path
    update: Update
    aux: Batch | None
    seed: int
    as_one_step: bool = False

    @property
    def K(self) -> int:  # noqa: N802
        return self.update.num_samples

    @property
    def N(self) -> int:  # noqa: N802
        return self.update.num_classes

    @property
    def steps(self) -> int:
        return 1 if self.as_one_step else self.update.local_steps

    @property
    def gradient(self) -> tuple[torch.Tensor, torch.Tensor]:
        """That of W (N, M) and b (N,), the mean over the local steps, in float32."""
        weight, bias = self.update.classifier_gradient()
        assert bias is not None
        return weight.float(), bias.float()

    @property
    def sums(self) -> list[torch.Tensor]:
        """The same, summed over the local steps."""
        return [part * self.steps for part in self.gradient]

    @property
    def rlu(self) -> tuple[ModuleType, SimpleNamespace]:
        """RLU's functions and their options; gamma is the default, which its commands leave."""
        lr = self.update.told("lr")[0] if self.steps > 1 else 0.0
        size = self.K // self.steps
        options = {"n_classes": self.N, "local_epochs": self.steps, "batch_size": size, "lr": lr}
        utils = load(self.folder / "RLU", "client.client_utils")
        return utils, SimpleNamespace(gamma=0.1, **options)

    @cached_property
    def wrong_classes(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """By RLU: mean logits and softmax (N,) of other classes' images, at W0 and at WT."""
        assert self.aux is not None
        utils, args = self.rlu
        aux = torch.utils.data.TensorDataset(self.aux.images, self.aux.labels)
        places = [0.0, 1.0] if self.steps > 1 else [0.0]
        networks = [Forward(self.update.as_gradient(place)) for place in places]
        with torch.no_grad(), mock.patch.object(torch.Tensor, "cuda", lambda self, **_: self):
            found = [utils.estimate_static_RLU(args, network, aux) for network in networks]
        return [found[0], found[-1]]


def tally(labels: Any, classes: int) -> torch.Tensor:
    """Counts (N,) of a list of labels."""
    return torch.bincount(torch.as_tensor(labels).long(), minlength=classes)


def ilrg(case: Case) -> torch.Tensor:
    """BUAA-CST/iLRG. The counts that it scores; those that it mends to sum to K go elsewhere."""
    methods, utils = (load(case.folder / "iLRG", name) for name in ("methods", "utils"))
    weight, bias = case.gradient
    head = SimpleNamespace(fc=classifier_of(case.update))
    embeddings = [methods.get_emb(w, b) for w, b in zip(weight, bias, strict=True)]
    probabilities = [utils.post_process_emb(e, head, "cpu", alpha=1) for e in embeddings]
    scored, _ = methods.iLRG(probabilities, bias.numpy(), case.N, case.K)
    return torch.from_numpy(scored)


def classifier_of(update: Update) -> Callable[[torch.Tensor], torch.Tensor]:
    """Features to logits, by the classifier that the server sent."""
    layer = update.classifier
    return lambda features: nn.functional.linear(features, layer.weight, layer.bias).detach()


class Setting:
    """What LLG's Predictor asks of its Setting: a gradient, and gradients of batches it draws."""

    def __init__(self, case: Case, loader: Any, **parameter: Any):
        self.case, self.loader, self.parameter = case, loader, parameter
        self.device, self.model, self.dlg = torch.device("cpu"), None, self
        self.gradient = case.sums

    def copy(self) -> "Setting":
        return Setting(self.case, self.loader, **self.parameter)

    def configure(self, **chosen: Any) -> None:
        self.parameter |= chosen

    def victim_side(self) -> None:
        """The gradient of the last layer for a batch with the labels that were configured."""
        one = self.parameter
        images, labels = self.loader.get_batch(one["dataset"], one["targets"], one["batch_size"])
        with torch.no_grad():
            features, logits = self.case.update.forward(images)
        errors = (logits.softmax(1) - nn.functional.one_hot(labels, self.case.N)) / len(labels)
        self.gradient = [errors.T @ features, errors.sum(0)]


def llg(case: Case, version: str = "llg") -> torch.Tensor:
    """tklab-tud/LLG. version: "llg", or "llg+" and "llg*-random", which draw batches."""
    code = case.folder / "LLG" / "Code"
    setting = Setting(
        case,
        loader_of(code, case.aux) if case.aux is not None else None,
        version=version,
        dataset="aux",
        targets=[],
        num_classes=case.N,
        batch_size=case.K // case.steps,
        local_iterations=case.steps,
    )
    predictor = load(code, "Predictor").Predictor(setting)
    rule = {"llg": "LLG_prediction", "llg+": "LLGp_prediction", "llg*-random": "LLGs_prediction"}
    getattr(predictor, rule[version])()
    return tally(predictor.prediction, case.N)


def loader_of(code: Path, aux: Batch) -> Any:
    """LLG's own Dataloader, with our images in it."""
    loader = load(code, "Dataloader").Dataloader()
    loader.train_dataset = list(zip(aux.images, aux.labels.tolist(), strict=True))
    loader.samples = [
        (aux.labels == n).nonzero().flatten().tolist() for n in range(aux.num_classes)
    ]
    loader.currently_loaded, loader.num_classes = "aux", aux.num_classes
    return loader


def llg_plus(case: Case) -> torch.Tensor:
    return llg(case, "llg+")


def llg_plus_mended(case: Case) -> torch.Tensor:
    """Weights as the gradient of one step.

    Theirs takes the offset of one step off the sum of all, and divides an image's part by their
    number.
    """
    return llg(replace(case, as_one_step=True), "llg+")


def llg_star(case: Case) -> torch.Tensor:
    return llg(case, "llg*-random")


def llg_star_mended(case: Case) -> torch.Tensor:
    """Random images in [0, 1]: theirs have whole numbers up to 2^24."""
    with mock.patch.object(torch.Tensor, "random_", torch.Tensor.uniform_):
        return llg(replace(case, as_one_step=True), "llg*-random")


def llbg(case: Case, strategy: str = "llbg") -> torch.Tensor:
    """nadbag98/LLBG, for 100 or 1000 classes: these two numbers are written into it.

    Its data module is not in the repository, so the package does not import; its attacks do. The
    confidence is its default of 0.
    """
    attacks = load(case.folder / "LLBG" / "src", "attacks.base_attack")
    known = {"label_strategy": strategy, "use_aux_data": False, "approx_avg_conf": 0.0}
    config = SimpleNamespace(impl=SimpleNamespace(mixed_precision=False, dtype="float"), **known)
    data = {100: "CIFAR100", 1000: "ImageNet"}.get(case.N, "neither")
    attacker = attacks._BaseAttacker(
        nn.Identity(), None, config, {"device": torch.device("cpu")}, "model", data
    )
    steps = {"steps": case.steps, "data_per_step": case.K // case.steps}
    facts = {"num_data_points": case.K, "local_hyperparams": steps if case.steps > 1 else None}
    shared = [{"gradients": case.sums, "metadata": facts}]
    return tally(attacker._recover_label_information(shared, None, None), case.N)


def ebi(case: Case) -> torch.Tensor:
    """EBI as LLBG's authors compare with it; it needs no number of classes."""
    return llbg(case, "ebi")


class Forward(nn.Module):
    """The network of an update, in the mode of that, as RLU's programs call it."""

    def __init__(self, update: Update):
        super().__init__()
        self.forward_update = update.forward

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.forward_update(images)[1], None


def rlu(case: Case, mended: bool = False) -> torch.Tensor:
    """CityChan/Recovering-Label-from-Update: the steps of its `Client.RLU` after training.

    mended: the mean of the softmax at the start, where theirs takes the softmax of the mean logits.
    """
    utils, args = case.rlu
    (start, confidence), (end, _) = case.wrong_classes
    weight, bias = case.gradient
    embedding = (weight / bias[:, None]).mean(0).tolist()
    left = args.local_epochs - np.arange(args.local_epochs)
    rho = ((1 - args.gamma**left) / (1 - args.gamma)).mean()

    def counts(confidence: np.ndarray) -> list[int]:
        return utils.estimated_entropy_from_grad(args, confidence * rho, bias.tolist(), case.K)

    if mended:
        return torch.tensor(counts(confidence)).long()
    first = counts(softmax(end))
    path = utils.estimate_static_RLU_with_posterior(args, first, start, end, embedding)
    return torch.tensor(counts(path)).long()


def rlu_mended(case: Case) -> torch.Tensor:
    return rlu(case, mended=True)


AUTHORS: dict[str, Callable[[Case], torch.Tensor]] = {
    "ilrg": ilrg,
    "llg": llg,
    "llg-star": llg_star,
    "llg-plus": llg_plus,
    "llbg": llbg,
    "ebi": ebi,
    "rlu": rlu,
}
# The same with one thing changed that explains why theirs and ours differ.
MENDED: dict[str, Callable[[Case], torch.Tensor]] = {
    "llg-star": llg_star_mended,
    "llg-plus": llg_plus_mended,
    "rlu": rlu_mended,
}


def runs(rule: str, case: Case, network: str) -> bool:
    """Whether the authors' code runs on this, in a time that the benchmark has.

    LLG+ and LLG* take ten batches of each class, each with a pass of its own.
    """
    if rule == "llbg":
        return case.N in (100, 1000)
    if rule in ("llg-plus", "llg-star"):
        return case.aux is not None and network == "lenet"
    return rule != "rlu" or case.aux is not None


def recorded_settings(seeds: int) -> list[dict[str, Any]]:
    """Untrained networks, trained ones, a thousand classes, and clients that send weights."""
    often: dict[str, Any] = {"labels": ["even", "skewed"], "seed": range(seeds)}
    sizes, small, light = [8, 16, 64], ["cifar100-samples", "mnist-5k"], ["lenet", "convnet"]
    photos = ["imagenet-samples"]

    def cells(networks: list[str], datasets: list[str], K: list[int], stage: str, update: str):
        choices = {"network": networks, "dataset": datasets, "K": K, **often}
        return [{**one, "stage": stage, "update": update} for one in product(**choices)]

    return [
        *cells(light, small, sizes, "untrained", "gradient"),
        *cells(light, small[1:], sizes, "trained", "gradient"),
        *cells(["lenet"], small, [64], "untrained", "weights"),
        *cells(["resnet18"], small, [16], "untrained", "gradient"),
        *cells(["efficientnet-lite0"], photos, [16], "trained", "gradient"),
    ]


def pool_of(dataset: str) -> tuple[Batch, Batch | None]:
    """The clients' images, and the server's own where there are enough."""
    if dataset == "mnist-5k":
        return clients_and_aux(gleak.load_pool(dataset))
    size = PHOTO_SIZE if dataset == "imagenet-samples" else None
    return gleak.load_batch(dataset, indices=range(20), image_size=size), None


def drawn(pool: Batch, K: int, labels: str, seed: int) -> Batch:
    """K shifted images: labels even, all classes in turn; or skewed, by Dirichlet(0.3)."""
    generator = torch.Generator().manual_seed(seed)
    if labels == "skewed":
        return shifted(gleak.draw_batch(pool, K, alpha=0.3, seed=seed), generator)
    present = pool.labels.unique()
    order = present[torch.randperm(len(present), generator=generator)]
    mixed = torch.randperm(len(pool), generator=generator)
    queues = {int(n): mixed[pool.labels[mixed] == n].tolist() for n in present}
    dealt = [(int(order[i % len(order)]), i // len(order)) for i in range(K)]
    chosen = [queues[n][turn % len(queues[n])] for n, turn in dealt]
    return shifted(Batch(pool.images[chosen], pool.labels[chosen], pool.class_names), generator)


def compared(
    network: str,
    dataset: str,
    K: int,
    labels: str,
    seed: int,
    stage: str,
    update: str,
    *,
    folder: str,
) -> list[Row]:
    """One row for each rule on one update: what the authors' code and ours make of it.

    `authors` and `ours`: the share of labels that are right; `agree`: how alike their counts and
    ours are, rounded the same way; `mended`: the same of theirs with one thing changed, see MENDED;
    `returned`: labels that theirs hands back, over K. Rules of no other authors have `ours` alone.
    The small networks are trained for 40 steps, EfficientNet-Lite0 on ImageNet.
    """
    pool, aux = pool_of(dataset)
    batch = drawn(pool, K, labels, seed)
    if stage == "trained" and network != "efficientnet-lite0":
        net = trained_network(network, dataset, 40, seed, WIDTH)
    else:
        net = gleak.build_model(network, batch, seed=seed, **model_options(network, WIDTH))
    local: dict[str, Any] = {"batch_size": LOCAL_BATCH, "lr": LOCAL_LR, "shuffle_seed": seed}
    sent = gleak.fedavg(net, batch, **local) if update == "weights" else gleak.fedsgd(net, batch)
    case = Case(Path(folder), sent, aux, seed)
    inputs = DEEP_INPUTS if network in DEEP else INPUTS
    layer = LastLayer.of(sent, seed=seed, inputs=inputs)
    informed = LastLayer.of(sent, seed=seed, aux=aux)
    rows: list[Row] = []
    for rule in ("zlg", "gleak", *AUTHORS):
        if rule in AUTHORS and not runs(rule, case, network):
            continue
        real = METHODS[rule].rule(informed if rule in ("rlu", "llg-plus") else layer)
        mine = largest_remainder(real, K)
        row: Row = dict.fromkeys(("authors", "ours", "agree", "mended", "returned"))
        row |= {"N": case.N, "rule": rule, "ours": alike(mine, batch.label_counts)}
        if rule in AUTHORS:
            theirs = quietly(AUTHORS[rule], case)
            row |= {
                "authors": alike(theirs, batch.label_counts),
                "returned": round(int(theirs.sum()) / K, 4),
            }
            same = rounded_alike(rule, layer, real) if rule in ("ilrg", "rlu") else mine
            row["agree"] = alike(theirs, same)
            if rule in MENDED:
                row["mended"] = alike(quietly(MENDED[rule], case), same)
        rows.append(row)
    return rows


def rounded_alike(rule: str, layer: LastLayer, real: torch.Tensor) -> torch.Tensor:
    """Our counts as theirs are rounded: each class apart, and for iLRG with none above K."""
    if rule == "rlu":
        return real.round()
    whole = ilrg_solution(layer).clamp_min(0).round()
    return torch.where(whole > layer.k, 0.0, whole)


def alike(counts: torch.Tensor, others: torch.Tensor) -> float:
    """Labels that both have, over those of the larger; 1 where neither has any.

    >>> alike(torch.tensor([3, 1]), torch.tensor([2, 0]))
    0.5
    """
    most = max(counts.sum().item(), others.sum().item())
    return round(torch.minimum(counts, others).sum().item() / most, 4) if most else 1.0


def quietly(rule: Callable[[Case], torch.Tensor], case: Case) -> torch.Tensor:
    """Counts by the authors' code, its draws from the case's seed, what it prints thrown away."""
    state = np.random.get_state()  # noqa: NPY002 (theirs draws from numpy's global generator)
    with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
        torch.manual_seed(case.seed)
        np.random.seed(case.seed)  # noqa: NPY002
        try:
            return rule(case)
        finally:
            np.random.set_state(state)  # noqa: NPY002
