import pytest
import torch
from torch.nn import functional as F

import gleak
from gleak.update import WeightsUpdate


@pytest.fixture
def model(batch):
    return gleak.build_model("lenet", batch, activation="relu", seed=1)


def test_one_full_step_is_fedsgd(model, batch):
    one_step = gleak.fedavg(model, batch, lr=0.5)
    gradient = gleak.fedsgd(model, batch).gradient
    assert one_step.local_steps == 1
    for name, value in one_step.equivalent_gradient().items():
        torch.testing.assert_close(value, gradient[name], atol=1e-6, rtol=1e-4)
    for method in gleak.list_label_methods():
        assert torch.equal(
            gleak.restore_labels(one_step, method),
            gleak.restore_labels(gleak.fedsgd(model, batch), method),
        )


def test_two_steps_by_hand(two_layers, tiny):
    update = gleak.fedavg(two_layers, tiny, epochs=2, lr=0.1, shuffle_seed=None)
    weights = {n: p.detach().clone().requires_grad_() for n, p in two_layers.named_parameters()}
    for _ in range(2):
        logits = torch.func.functional_call(two_layers, weights, (tiny.images,))
        gradient = torch.autograd.grad(F.cross_entropy(logits, tiny.labels), list(weights.values()))
        weights = {
            name: (weight - 0.1 * g).detach().requires_grad_()
            for (name, weight), g in zip(weights.items(), gradient, strict=True)
        }
    for name, value in weights.items():
        torch.testing.assert_close(update.weights_after[name], value)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"epochs": 3}, 3),
        ({"epochs": 3, "batch_size": 2}, 6),
        ({"epochs": 2, "batch_size": 3}, 4),  # 4 samples: 3 and 1
        ({"epochs": 2, "batch_size": 3, "drop_last": True}, 2),
        ({"epochs": 2, "batch_size": 100}, 2),
    ],
)
def test_steps_are_counted_right(model, batch, settings, steps):
    facts = ("lr", "epochs", "batch_size", "drop_last")
    update = gleak.fedavg(model, batch, lr=1e-3, reveal=facts, **settings)
    assert update.local_steps == steps
    # with so small a step every local gradient is about the first one
    if not settings.get("drop_last"):
        gradient = gleak.fedsgd(model, batch).gradient["1.7.bias"]
        similar = F.cosine_similarity(update.equivalent_gradient()["1.7.bias"], gradient, dim=0)
        assert similar > 0.9  # the mean of unequal batches is not the mean of all samples


def test_momentum_is_undone_by_its_weights(model, batch):
    told = ("lr", "epochs", "batch_size", "momentum")
    update = gleak.fedavg(model, batch, epochs=3, lr=1e-5, momentum=0.9, reveal=told)
    gradient = gleak.fedsgd(model, batch).gradient
    for name, value in update.equivalent_gradient().items():
        assert (value - gradient[name]).norm() < 0.02 * gradient[name].norm()


def test_the_shuffle_is_fixed_by_its_seed(model, batch):
    weights = [
        gleak.fedavg(model, batch, batch_size=1, lr=0.1, shuffle_seed=seed).weights_after[
            "1.7.bias"
        ]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_server_is_told_what_the_client_reveals_and_no_more(model, batch):
    update = gleak.fedavg(model, batch, lr=0.1, reveal=("lr",))
    assert update.facts == {"lr": 0.1}
    with pytest.raises(gleak.MissingKnowledge, match="needs epochs, batch_size, which the client"):
        gleak.restore_labels(update, "zlg")
    silent = gleak.fedavg(model, batch, reveal=())
    with pytest.raises(gleak.MissingKnowledge, match="needs lr"):
        gleak.invert(silent, batch.label_counts)
    assert "nothing else" in str(silent)
    assert "FedAvg" in str(silent)


def test_saved_and_loaded(tmp_path, model, batch):
    update = gleak.fedavg(model, batch, epochs=2)
    update.save(tmp_path / "u")
    loaded = gleak.Update.load(tmp_path / "u", model)
    assert isinstance(loaded, WeightsUpdate)
    assert loaded.precision == 2**-24
    assert loaded.facts == update.facts
    for name, value in update.equivalent_gradient().items():
        assert torch.equal(value, loaded.equivalent_gradient()[name])


def test_batch_norm_buffers_stay(batch):
    model = gleak.build_model("resnet18", batch)
    update = gleak.fedavg(model, batch, epochs=2, lr=1e-3)
    assert torch.equal(update.model[1].bn1.running_mean, torch.zeros(64))
    assert set(update.weights_after) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs >= 1"),
        ({"lr": 0.0}, "lr > 0"),
        ({"momentum": 1.0}, "0 <= momentum < 1"),
        ({"batch_size": -1}, "batch_size >= 1"),
        ({"batch_size": 9, "drop_last": True}, "drop_last leaves no step"),
        ({"reveal": ("lr", "labels")}, "cannot reveal labels; known: lr, epochs"),
        ({"lr": 1e30, "epochs": 3}, "diverged with lr=1e\\+30"),
    ],
)
def test_refusals(model, batch, settings, message):
    with pytest.raises(ValueError, match=message):
        gleak.fedavg(model, batch, **settings)
