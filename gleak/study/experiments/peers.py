"""Other programs beside the study's attacks: same images, network, labels and time.

breaching (PyPI, 0.1.2), and SME's authors' own code, from a checkout.
"""

import contextlib
import copy
import io
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gleak
from gleak.data import Batch
from gleak.study.experiments.budget import iterations_within
from gleak.study.experiments.checkouts import load
from gleak.study.experiments.searches import DISTINCT
from gleak.update import GradientUpdate, Update, WeightsUpdate

MOST = 3000  # iterations of the study's attack


def beside(**setting: Any) -> dict[str, Any]:
    """`one_run` in a process of its own, so that its peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(one_run, kwds=setting)


def one_run(
    *,
    attack: str,
    model: str,
    size: int,
    iterations: int,
    seconds: float,
    seed: int,
    lr: float | None,
    given: bool,
    threads: int,
    epochs: int = 1,
    folder: str | None = None,
) -> dict[str, Any]:
    """Scores, baselines, time and memory of one attack on one batch; batch norm in eval mode.

    attack: of the study's, "breaching", "sme-authors" (which takes labels as given), or "sme-here":
    Inverting Gradients with the study's version of SME; seconds: of the processor, for the study's
    own attack, which has no set number of iterations; lr: of a client that sends weights after one
    local step for each image in each of `epochs`, None for a gradient; given: whether the labels
    are, or the study's attacks work with those that they restore; folder: with SME's checkout.
    """
    torch.set_num_threads(threads)
    batch = gleak.load_batch("cifar10-samples", indices=DISTINCT[:size])
    network = gleak.build_model(model, batch, seed=seed)
    update: Update
    if lr is None:
        update = gleak.fedsgd(network, batch, training=False)
    else:
        local: dict[str, Any] = {"batch_size": 1, "lr": lr, "shuffle_seed": None, "epochs": epochs}
        update = gleak.fedavg(network, batch, training=False, **local)
    counts = batch.label_counts if given else gleak.restore_labels(update, "gleak")
    if attack == "breaching":
        run = breaching(update, batch, seed, lr, given)
    elif attack == "sme-authors":
        run = sme(update, batch, seed, Path(folder or "."))
    else:
        settings: dict[str, Any] = {"seed": seed, "progress": False, "update_model": "equivalent"}
        if lr is not None and attack == "gleak":  # many steps cost too much to simulate each
            settings["update_model"] = "unrolled" if epochs == 1 else None
        if attack == "sme-here":
            settings["update_model"] = "sme"
        named = "inverting-gradients" if attack == "sme-here" else attack

        def run(iterations: int) -> torch.Tensor:
            return gleak.invert(update, counts, named, iterations=iterations, **settings).images

        run(2)  # what is set up when it is first used
    base = resident_mb(forget=True)  # with all modules loaded
    if attack == "gleak":
        iterations = iterations_within(seconds, run, time.process_time, (100, 300), MOST)
    began = time.process_time()
    images = run(iterations)
    taken = time.process_time() - began
    scores = gleak.score(images, batch.images)
    return {
        "iterations": iterations,
        "psnr": round(scores["psnr"].mean(), 2),
        "ssim": round(scores["ssim"].mean(), 3),
        "flat": round(scores["mean_colour"].mean(), 2),
        "thumb8": round(scores["thumb8"].mean(), 2),
        "cpu_seconds": round(taken, 1),
        "peak_mb": round(resident_mb() - base),
    }


def resident_mb(forget: bool = False) -> float:
    """The largest memory held so far (Linux); or what is held now, and the peak is forgotten."""
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


def breaching(
    update: Update, batch: Batch, seed: int, lr: float | None, given: bool
) -> Callable[[int], torch.Tensor]:
    """breaching's "invertinggradients" with its own defaults, as a function of the iterations.

    Shims: its data sets cannot be handed in, so payload and shared data are written by hand; it
    normalises outside the network, so the network goes in without its first layer. From weights its
    objective takes which label stood in which step, with the labels hidden too.
    """
    warnings.simplefilter("ignore")
    import breaching as package  # no part of the lock

    normalise, network = update.model[0], update.model[1]  # type: ignore[index]
    setup = {"device": torch.device("cpu"), "dtype": torch.float}
    facts: dict[str, Any] | None = None
    if isinstance(update, WeightsUpdate):
        before = dict(update.model.named_parameters())
        sent = [before[name].detach() for name in update.weights_after]
        sent = [w - b for w, b in zip(update.weights_after.values(), sent, strict=True)]
        facts = {"lr": lr, "steps": len(batch), "data_per_step": 1}
        facts["labels"] = list(batch.labels[:, None])  # its objective cannot do without
    else:
        assert isinstance(update, GradientUpdate)
        sent = list(update.gradient.values())

    def attack(iterations: int) -> torch.Tensor:
        config = package.get_config(overrides=["attack=invertinggradients", "case/data=CIFAR10"])
        config.attack.optim.max_iterations = config.attack.optim.callback = iterations
        config.case.data.shape = list(update.input_shape)
        loss = nn.CrossEntropyLoss()
        attacker = package.attacks.prepare_attack(network, loss, config.attack, setup)
        payload = {
            "parameters": list(network.parameters()),
            "buffers": list(network.buffers()),
            "metadata": config.case.data,
        }
        shared = {
            "gradients": sent,
            "buffers": None,
            "metadata": {
                "num_data_points": len(batch),
                "labels": batch.labels.sort().values if given else None,
                "local_hyperparams": facts,
                "data_key": "inputs",
            },
        }
        torch.manual_seed(seed)
        found, _ = attacker.reconstruct([payload], [shared], {}, dryrun=False)
        return (found["data"].detach() * normalise.std + normalise.mean).clamp(0, 1)

    return attack


def sme(update: Update, batch: Batch, seed: int, folder: Path) -> Callable[[int], torch.Tensor]:
    """The authors' SME with their settings for CIFAR, as a function of the iterations.

    Shims: it gets both networks without their first layer, as it normalises outside of them; what
    it saves goes to a folder that is then removed. Its images start from the seed.
    """
    assert isinstance(update, WeightsUpdate)
    module = load(folder / "surrogate_model_extension", "sme.Adversary.adversary")
    after = copy.deepcopy(update.model)
    with torch.no_grad():
        for name, parameter in after.named_parameters():
            parameter.copy_(update.weights_after[name])
    normalise = update.model[0]  # type: ignore[index]
    mean, std = normalise.mean, normalise.std

    def attack(iterations: int) -> torch.Tensor:
        torch.manual_seed(seed)
        with tempfile.TemporaryDirectory() as results, contextlib.redirect_stdout(io.StringIO()):
            adversary = module.IWU(
                trainloader=[((batch.images - mean) / std, batch.labels)],
                setup={"device": torch.device("cpu"), "dtype": torch.float},
                alpha=0.5,
                test_steps=iterations,
                path_to_res=results,
                mean_std=(mean.flatten().tolist(), std.flatten().tolist()),
                lamb=0.01,
            )
            adversary.net0 = copy.deepcopy(update.model)[1]  # type: ignore[index]
            adversary.net1 = after[1]  # type: ignore[index]
            adversary.reconstruction(
                eta=1, beta=0.001, iters=iterations, lr_decay=True, save_figure=False
            )
        return (adversary.x.detach() * std + mean).clamp(0, 1)

    return attack
