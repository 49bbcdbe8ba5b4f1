"""The authors' own code for the label rules, beside ours on the same update.

Their code comes from checkouts in one folder; nothing of it is part of this package. Shims: each
gets the gradient of the classifier and what else its own program would compute (its clients, data
loaders and networks stay out), on the processor. Every function here takes a `Case` and returns
counts (N,), which need not sum to K where theirs do not.
"""

# ruff: noqa: N803 (arguments are named as the columns of the tables)

import contextlib
import importlib
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

import gleak
from gleak.data import Batch
from gleak.study.experiments.common import clients_and_aux, counted, model_options
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


@dataclass(frozen=True, eq=False)
class Case:
    """One update, and what the authors' programs know besides. folder: with their checkouts."""

    folder: Path
    update: Update
    aux: Batch | None
    seed: int

    @property
    def K(self) -> int:  # noqa: N802
        return self.update.num_samples

    @property
    def N(self) -> int:  # noqa: N802
        return self.update.num_classes

    @property
    def steps(self) -> int:
        return self.update.local_steps

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


@lru_cache
def load(folder: Path, name: str) -> ModuleType:
    """A module of a checkout, whose own modules are then forgotten: several are called `utils`."""
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
        inside = [n for n, m in sys.modules.items() if str(folder) in repr(vars(m).get("__spec__"))]
        for module in inside:
            del sys.modules[module]


def tally(labels: Any, classes: int) -> torch.Tensor:
    """Counts (N,) of a list of labels."""
    return torch.bincount(torch.as_tensor(labels).long(), minlength=classes)


def ilrg(case: Case) -> torch.Tensor:
    """BUAA-CST/iLRG. The counts that it scores; those that it mends to sum to K go elsewhere."""
    methods, utils = (load(case.folder / "iLRG", name) for name in ("methods", "utils"))
    weight, bias = case.gradient
    head = SimpleNamespace(fc=classifier_of(case.update))
    embeddings = [methods.get_emb(w, b) for w, b in zip(weight, bias, strict=True)]
    softmax = [utils.post_process_emb(e, head, "cpu", alpha=1) for e in embeddings]
    scored, _ = methods.iLRG(softmax, bias.numpy(), case.N, case.K)
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
    loader.samples = [(aux.labels == n).nonzero().flatten().tolist() for n in range(aux.num_classes)]
    loader.currently_loaded, loader.num_classes = "aux", aux.num_classes
    return loader


def llg_plus(case: Case) -> torch.Tensor:
    return llg(case, "llg+")


def llg_star(case: Case) -> torch.Tensor:
    return llg(case, "llg*-random")


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


def rlu(case: Case) -> torch.Tensor:
    """CityChan/Recovering-Label-from-Update: the steps of its `Client.RLU` after training.

    gamma is the default of its options, which its published commands leave as it is.
    """
    assert case.aux is not None
    utils = load(case.folder / "RLU", "client.client_utils")
    places = [case.update.as_gradient(place) for place in (0.0, 1.0)]
    lr = case.update.told("lr")[0] if case.steps > 1 else 0.0
    args = SimpleNamespace(
        n_classes=case.N,
        local_epochs=case.steps,
        batch_size=case.K // case.steps,
        lr=lr,
        gamma=0.1,
    )
    aux = torch.utils.data.TensorDataset(case.aux.images, case.aux.labels)
    weight, bias = case.gradient
    with mock.patch.object(torch.Tensor, "cuda", lambda self, **_: self):
        start, end = (utils.estimate_static_RLU(args, Forward(at), aux)[0] for at in places)
    embedding = (weight / bias[:, None]).mean(0)
    left = args.local_epochs - np.arange(args.local_epochs)
    rho = ((1 - args.gamma**left) / (1 - args.gamma)).mean()

    def counts(confidence: np.ndarray) -> list[int]:
        return utils.estimated_entropy_from_grad(args, confidence * rho, bias.tolist(), case.K)

    first = counts(np.exp(end) / np.exp(end).sum())
    path = utils.estimate_static_RLU_with_posterior(args, first, start, end, embedding)
    return torch.tensor(counts(path)).long()


AUTHORS: dict[str, Callable[[Case], torch.Tensor]] = {
    "ilrg": ilrg,
    "llg": llg,
    "llg-star": llg_star,
    "llg-plus": llg_plus,
    "llbg": llbg,
    "ebi": ebi,
    "rlu": rlu,
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


def settings(seeds: int) -> list[dict[str, Any]]:
    """Untrained networks, trained ones, a thousand classes, and clients that send weights."""
    common = {"K": [8, 16, 64], "labels": ["even", "skewed"], "seed": range(seeds)}
    small = ["cifar100-samples", "mnist-5k"]
    networks = ["lenet", "convnet", "resnet18"]
    grid = product(network=networks, dataset=small, stage=["untrained"], update=["gradient"], **common)
    grid += product(
        network=networks[:2], dataset=small[1:], stage=["40 steps"], update=["gradient"], **common
    )
    grid += product(
        network=["efficientnet-lite0"],
        dataset=["imagenet-samples"],
        stage=["ImageNet"],
        update=["gradient"],
        **{**common, "K": [8, 16]},
    )
    return grid + product(
        network=["lenet"],
        dataset=small,
        stage=["untrained"],
        update=["weights"],
        **{**common, "K": [64]},
    )


def pool_of(dataset: str) -> tuple[Batch, Batch | None]:
    """The clients' images, and the server's own where there are enough."""
    if dataset == "mnist-5k":
        return clients_and_aux(gleak.load_pool(dataset))
    size = {"image_size": PHOTO_SIZE} if dataset == "imagenet-samples" else {}
    return gleak.load_batch(dataset, indices=range(20), **size), None


def drawn(pool: Batch, K: int, labels: str, seed: int) -> Batch:
    """K shifted images: labels even, all classes in turn; or skewed, by Dirichlet(0.3)."""
    generator = torch.Generator().manual_seed(seed)
    if labels == "skewed":
        return shifted(gleak.draw_batch(pool, K, alpha=0.3, seed=seed), generator)
    present = pool.labels.unique()
    order = present[torch.randperm(len(present), generator=generator)]
    mixed = torch.randperm(len(pool), generator=generator)
    queues = {int(n): mixed[pool.labels[mixed] == n].tolist() for n in present}
    chosen = [queues[n][i // len(order) % len(queues[n])] for i in range(K) for n in [int(order[i % len(order)])]]
    return shifted(Batch(pool.images[chosen], pool.labels[chosen], pool.class_names), generator)


def compared(
    network: str,
    dataset: str,
    stage: str,
    update: str,
    K: int,
    labels: str,
    seed: int,
    *,
    folder: str,
) -> list[Row]:
    """One row for each rule on one update: the share of labels right by the authors and by us.

    `authors` and `ours`: sum of min(counts, truth) / K; `agree`: the same of their counts and ours;
    `returned`: labels that theirs hands back, over K. Rules of no other authors have ours alone.
    """
    pool, aux = pool_of(dataset)
    batch = drawn(pool, K, labels, seed)
    if stage == "40 steps":
        net = trained_network(network, dataset, 40, seed, WIDTH)
    else:
        net = gleak.build_model(network, batch, seed=seed, **model_options(network, WIDTH))
    local: dict[str, Any] = {"batch_size": LOCAL_BATCH, "lr": LOCAL_LR, "shuffle_seed": seed}
    sent = gleak.fedavg(net, batch, **local) if update == "weights" else gleak.fedsgd(net, batch)
    case = Case(Path(folder), sent, aux, seed)
    theirs = {rule: quietly(AUTHORS[rule], case) for rule in AUTHORS if runs(rule, case, network)}
    inputs = DEEP_INPUTS if network in DEEP else INPUTS
    free = ["zlg", "gleak", *(rule for rule in theirs if rule not in ("rlu", "llg-plus"))]
    ours = counted(sent, free, seed=seed, inputs=inputs)
    if aux is not None:
        ours |= counted(sent, [rule for rule in theirs if rule not in free], seed=seed, aux=aux)
    truth = batch.label_counts
    rows: list[Row] = []
    for rule, mine in ours.items():
        found = theirs.get(rule)
        row: Row = {"N": case.N, "rule": rule, "authors": None, "ours": overlap(mine, truth)}
        row |= {"agree": None, "returned": None}
        if found is not None:
            row |= {"authors": overlap(found, truth), "agree": overlap(found, mine)}
            row["returned"] = round(int(found.sum()) / K, 4)
        rows.append(row)
    return rows


def overlap(counts: torch.Tensor, truth: torch.Tensor) -> float:
    """The share of the truth's labels that counts have, whatever they sum to."""
    return round(torch.minimum(counts, truth).sum().item() / truth.sum().item(), 4)


def quietly(rule: Callable[[Case], torch.Tensor], case: Case) -> torch.Tensor:
    """Counts by the authors' code, its draws from the case's seed, what it prints thrown away."""
    state = np.random.get_state()
    with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
        torch.manual_seed(case.seed)
        np.random.seed(case.seed)
        try:
            return rule(case)
        finally:
            np.random.set_state(state)
