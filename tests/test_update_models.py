import weakref
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

import gleak
from gleak.client import local_batches
from gleak.inversion import (
    UPDATE_MODELS,
    equivalent,
    labels_of,
    path,
    sme,
    unrolled,
)
from gleak.inversion.distances import l2
from gleak.inversion.gradients import local_gradient
from gleak.inversion.objective import Objective
from gleak.inversion.update_models import merge_epochs

ATTACK = gleak.inversion.ATTACKS["inverting-gradients"]


@pytest.fixture
def model(batch):
    return gleak.build_model("convnet", batch, seed=1)


def distance(update, update_model, images, labels, *learnt) -> float:
    """Relative l2 distance between the simulated update and the observed one."""
    names = list(update.weights_after)
    simulation = update_model(update, names, 0)
    found = simulation.run(partial(local_gradient, update.model), images, labels, *learnt)
    return l2(found, list(update.equivalent_gradient().values())).sqrt().item()


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 5, "lr": 0.05},
        {"epochs": 2, "batch_size": 3, "lr": 0.05},  # 4 samples: 3 and 1
        {"epochs": 2, "batch_size": 3, "lr": 0.05, "drop_last": True},
        {"epochs": 3, "batch_size": 2, "lr": 0.02, "momentum": 0.9},
    ],
)
def test_the_true_images_unrolled_in_the_true_order_give_the_update(model, batch, settings):
    told = ("lr", "epochs", "batch_size", "momentum", "drop_last")
    double = gleak.Batch(batch.images.double(), batch.labels, batch.class_names)
    update = gleak.fedavg(model.double(), double, shuffle_seed=4, reveal=told, **settings)
    drop, size = settings.get("drop_last", False), settings.get("batch_size", 4)
    order = list(local_batches(4, settings["epochs"], size, drop, 4))
    assert distance(update, partial(unrolled, order=order), double.images, batch.labels) < 1e-9
    drawn = distance(update, unrolled, double.images, batch.labels)  # in an order of its own
    assert drawn < 1e-9 if size == 4 else drawn > 1e-3


def test_an_unrolled_update_in_float32_is_the_weights_themselves(model, batch):
    """W0 - WT has few digits left when it is small; the weights themselves agree to 1e-5."""
    update = gleak.fedavg(model, batch, epochs=3, batch_size=2, lr=0.05, shuffle_seed=4)
    order = list(local_batches(4, 3, 2, False, 4))
    names = list(update.weights_after)
    simulation = unrolled(update, names, 0, order=order)
    found = simulation.run(partial(local_gradient, update.model), batch.images, batch.labels)
    after = list(update.weights_after.values())
    before = [dict(update.model.named_parameters())[name] for name in names]
    moved = [b - 0.05 * 6 * g for b, g in zip(before, found, strict=True)]
    assert l2(moved, after).sqrt() < 1e-6
    assert l2(found, list(update.equivalent_gradient().values())).sqrt() < 1e-5


def test_the_equivalent_gradient_of_one_full_step_is_exact(model, batch):
    double = gleak.Batch(batch.images.double(), batch.labels, batch.class_names)
    update = gleak.fedavg(model.double(), double, lr=0.01)
    for update_model in (equivalent, path, unrolled):
        assert distance(update, update_model, double.images, batch.labels) < 1e-10
    assert (
        distance(update, sme, double.images, batch.labels, torch.zeros(()).requires_grad_()) < 1e-10
    )


def test_models_rank_by_what_they_know_of_the_way(model, batch):
    """With drift, the true images fit the better, the nearer the model is to what happened."""
    update = gleak.fedavg(model, batch, epochs=5, lr=0.01)
    errors = [distance(update, m, batch.images, batch.labels) for m in (equivalent, path, unrolled)]
    assert errors[0] > 2 * errors[1] > 20 * errors[2]


@pytest.mark.parametrize("name", UPDATE_MODELS)
def test_gradients_against_finite_differences(batch, name):
    """By the images and by what the model learns; float64, momentum, uneven batches."""
    double = gleak.Batch(batch.images.double(), batch.labels, batch.class_names)
    net = gleak.build_model("lenet", batch, seed=1).double()
    told = ("lr", "epochs", "batch_size", "momentum")
    settings = {"epochs": 2, "batch_size": 3, "momentum": 0.5, "lr": 0.2}
    update = gleak.fedavg(net, double, reveal=told, **settings)
    models = [UPDATE_MODELS[name][0]]
    if name == "unrolled":
        models.append(partial(unrolled, invariance=2.0))
    for update_model in models:
        labels = labels_of(batch.label_counts, update)
        objective = Objective(update, labels, ATTACK, update_model=update_model)
        draws = torch.Generator().manual_seed(0)
        shape = (objective.simulation.copies * 4, 3, 32, 32)
        inputs = [torch.rand(shape, generator=draws, dtype=torch.float64)]
        inputs += [tensor.clone() for tensor in objective.simulation.learnt]
        inputs = [tensor.requires_grad_() for tensor in inputs]
        fade = torch.ones((), dtype=torch.float64)
        _, _, slopes = objective.step(inputs, fade)
        for which, slope in enumerate(slopes):
            aside = torch.randn(slope.shape, generator=draws, dtype=torch.float64)
            ends = []
            for step in (1e-6, -1e-6):
                moved = [t + step * aside if t is inputs[which] else t for t in inputs]
                ends.append(objective.loss(moved, fade, partial(local_gradient, update.model))[0])
            expected = ((ends[0] - ends[1]) / 2e-6).item()
            assert (slope * aside).sum().item() == pytest.approx(expected, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("name", UPDATE_MODELS)
@pytest.mark.parametrize("optimizer", ["signed-adam", "lbfgs"])
def test_every_model_lowers_the_loss(batch, name, optimizer):
    net = gleak.build_model("lenet", batch, activation="relu", seed=1)
    update = gleak.fedavg(net, batch, epochs=2, batch_size=2, lr=0.05)
    settings = {"iterations": 8, "optimizer": optimizer, "progress": False}
    result = gleak.invert(update, batch.label_counts, update_model=name, restarts=2, **settings)
    enough = 0.95 if optimizer == "signed-adam" else 0.999  # the first steps of L-BFGS are short
    assert result.history["loss"].min() < enough * result.history["loss"].iloc[0]
    assert result.images.shape == batch.images.shape
    if name == "sme":
        assert 0 <= result.learnt[0] <= 1
        assert result.learnt[0] != 0.5
    own = partial(unrolled, invariance=1.0) if name == "unrolled" else UPDATE_MODELS[name][0]
    result = gleak.invert(
        update, batch.label_counts, update_model=own, joint_labels=True, **settings
    )
    assert result.images.shape == batch.images.shape


@pytest.mark.parametrize(("name", "needs"), [(n, facts) for n, (_, facts) in UPDATE_MODELS.items()])
def test_what_a_model_needs_is_refused_when_missing(batch, name, needs):
    net = gleak.build_model("lenet", batch, activation="relu", seed=1)
    settings = {"iterations": 1, "progress": False, "update_model": name}
    for fact in needs:
        told = [other for other in needs if other != fact]
        update = gleak.fedavg(net, batch, epochs=2, reveal=told)
        with pytest.raises(gleak.MissingKnowledge, match=f"needs {fact}, which the client"):
            gleak.invert(update, batch.label_counts, **settings)
    silent = gleak.fedavg(net, batch, epochs=2, reveal=needs)
    assert gleak.invert(silent, batch.label_counts, **settings).images.isfinite().all()
    if "lr" not in needs:
        with pytest.raises(gleak.MissingKnowledge, match="l2 needs the scale of a gradient"):
            gleak.invert(silent, batch.label_counts, distance="l2", **settings)
    if name != "equivalent":
        with pytest.raises(gleak.MissingKnowledge, match="weights after local training"):
            gleak.invert(gleak.fedsgd(net, batch), batch.label_counts, **settings)


def test_an_unknown_model_is_refused(model, batch):
    update = gleak.fedavg(model, batch)
    with pytest.raises(ValueError, match="unknown update model 'magic'; known: equivalent, path"):
        gleak.invert(update, batch.label_counts, update_model="magic")


@pytest.mark.parametrize("name", UPDATE_MODELS)
def test_the_order_of_the_clients_samples_does_not_reach_the_attack(batch, name):
    """A client whose samples stand in another order sends the same; so is what the attack finds."""
    net = gleak.build_model("lenet", batch, activation="relu", seed=1)
    found = []
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        secret = gleak.Batch(batch.images[order], batch.labels[order], batch.class_names)
        steps = [torch.tensor(order).argsort()[[0, 1]], torch.tensor(order).argsort()[[2, 3]]]
        assert torch.equal(secret.images[steps[0]], batch.images[:2])
        update = sent_in_order(net, secret, steps)
        settings = {"iterations": 3, "update_model": name, "progress": False}
        found.append(gleak.invert(update, batch.label_counts, **settings).images)
    assert torch.equal(*found)


def sent_in_order(net, batch, steps):
    """The update of a client whose local steps take these samples."""
    original = gleak.client.local_batches
    gleak.client.local_batches = lambda *_: iter(steps)
    try:
        return gleak.fedavg(net, batch, batch_size=2, lr=0.05)
    finally:
        gleak.client.local_batches = original


def test_epochs_are_merged_by_label_and_likeness():
    images = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 1])
    both = torch.cat([images, images[[1, 0, 2]] + 0.01])
    torch.testing.assert_close(merge_epochs(both, 2, labels), images + 0.005)
    swapped = torch.cat([images, images[[2, 1, 0]]])  # like each other, and not of one label
    assert not torch.allclose(merge_epochs(swapped, 2, labels), images)


def test_compiled_form_agrees(batch, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda step: step)  # the form, without the compiler
    net = gleak.build_model("lenet", batch, activation="relu", seed=1)
    update = gleak.fedavg(net, batch, epochs=2, lr=0.05)
    for name in UPDATE_MODELS:
        settings = {"iterations": 3, "update_model": name, "progress": False}
        losses = [
            gleak.invert(update, batch.label_counts, compile=compile, **settings).history["loss"]
            for compile in (False, True)
        ]
        assert losses[0].to_numpy() == pytest.approx(losses[1].to_numpy(), rel=1e-3)


@pytest.mark.parametrize("derivative", ["difference", "exact"])
def test_a_local_step_more_keeps_its_weights_and_images_only(batch, derivative):
    """Activations of all steps would be twice as much by differences, 6 times by autograd.

    So a hundred local steps fit in memory.
    """
    net = gleak.build_model("convnet", batch, width=4)
    attack = replace(ATTACK, derivative=derivative)
    most = []
    for steps in (4, 12):
        update = gleak.fedavg(net, batch, epochs=steps, lr=1e-3)
        labels = labels_of(batch.label_counts, update)
        objective = Objective(update, labels, attack, update_model=unrolled)
        images = batch.images.clone().requires_grad_()
        most.append(most_kept(lambda step=objective.step, i=images: step([i], torch.ones(()))))
    weights = sum(parameter.nbytes for parameter in net.parameters())
    assert (most[1] - most[0]) / 8 < 1.2 * (weights + batch.images.nbytes)


@dataclass(eq=False)
class Kept:
    tensor: torch.Tensor


def most_kept(work) -> int:
    """Bytes of the tensors that autograd keeps at once for a derivative to come, at most."""
    living, most = {}, 0  # address of memory -> bytes there, and how many keep it

    def keep(tensor):
        nonlocal most
        packed, memory = Kept(tensor.detach()), tensor.untyped_storage()
        size, keepers = living.get(memory.data_ptr(), (memory.nbytes(), 0))
        living[memory.data_ptr()] = size, keepers + 1
        weakref.finalize(packed, let_go, memory.data_ptr())
        most = max(most, sum(size for size, _ in living.values()))
        return packed

    def let_go(address):
        size, keepers = living.pop(address)
        if keepers > 1:
            living[address] = size, keepers - 1

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda packed: packed.tensor):
        work()
    return most
