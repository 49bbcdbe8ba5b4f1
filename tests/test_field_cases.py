"""What people who do this job bring along: each is attacked as what it is, or refused in a sentence
that says what to do.
"""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gleak
from gleak import defences

SHAPE = (3, 32, 32)


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, 2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(1568, 10),
        )


@pytest.fixture
def trained(net, batch):
    """The network after local training, by an optimiser made from its parameters."""

    def train(make, steps=1, reduction="mean"):
        after = copy.deepcopy(net)
        optimiser = make(after.parameters())
        for _ in range(steps):
            optimiser.zero_grad()
            F.cross_entropy(after(batch.images), batch.labels, reduction=reduction).backward()
            optimiser.step()
        return after

    return train


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.01)


def sent(net, after, **facts):
    facts = {"lr": 0.01, "epochs": 1, "batch_size": 4} | facts
    return gleak.Update.from_weights(
        net.state_dict(), after, net, num_samples=4, input_shape=SHAPE, **facts
    )


def test_a_summed_loss_is_seen_and_can_be_told(net, batch):
    F.cross_entropy(net(batch.images), batch.labels, reduction="sum").backward()
    gradient = {name: p.grad.clone() for name, p in net.named_parameters()}
    update = gleak.Update(net, 4, SHAPE, gradient=gradient)
    assert "but         the bias gradient is at least 2.4 times as large" in str(update)
    for refused in (
        lambda: gleak.restore_labels(update, "gleak"),
        lambda: gleak.label_posterior(update),
        lambda: gleak.single_images(update),
        lambda: gleak.invert(update, batch.label_counts, "gleak", progress=False),
    ):
        with pytest.raises(gleak.Contradiction, match=r"sums the loss.*update.of_summed_loss\(\)"):
            refused()
    mean = update.of_summed_loss()
    assert mean.contradictions() == []
    assert mean.precision == update.precision
    own = gleak.fedsgd(net, batch)
    for name, value in own.gradient.items():
        torch.testing.assert_close(mean.gradient[name], value)
    assert torch.equal(gleak.restore_labels(mean, "gleak"), batch.label_counts)


@pytest.mark.parametrize(
    ("batch_size", "drop_last", "samples"), [(4, 0, 4), (2, 0, 2), (3, 0, 2), (3, 1, 3), (9, 0, 4)]
)
def test_a_summed_loss_of_weights(net, trained, batch_size, drop_last, samples):
    after = trained(sgd, reduction="sum").state_dict()
    update = sent(net, after, batch_size=batch_size, drop_last=drop_last)
    told = update.of_summed_loss().facts
    assert told == update.facts | {"lr": 0.01 * samples}


def test_a_summed_loss_of_weights_is_seen(net, trained, batch):
    update = sent(net, trained(sgd, 3, "sum").state_dict(), epochs=3)
    with pytest.raises(gleak.Contradiction, match="lr, epochs or batch_size are not as told"):
        gleak.restore_labels(update, "gleak")
    assert torch.equal(gleak.restore_labels(update.of_summed_loss(), "gleak"), batch.label_counts)


@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("optimiser", [torch.optim.Adam, torch.optim.AdamW])
def test_a_client_of_adam_is_seen(net, trained, optimiser, steps):
    after = trained(lambda p: optimiser(p, 1e-3), steps).state_dict()
    update = sent(net, after, lr=1e-3, epochs=steps)
    with pytest.raises(gleak.Contradiction, match="steps of Adam.* needs a client of SGD"):
        gleak.restore_labels(update, "zlg")
    silent = sent(net, after, lr=None, epochs=steps)  # then no size is asked for
    assert silent.contradictions() == []


@pytest.mark.parametrize("steps", [1, 3])
def test_weights_after_that_are_a_difference(net, trained, batch, steps):
    after = trained(sgd, steps).state_dict()
    change = {name: value - net.state_dict()[name] for name, value in after.items()}
    with pytest.raises(gleak.Contradiction, match="`after` is near zero.*delta=True"):
        sent(net, change, epochs=steps)
    update = sent(net, change, epochs=steps, delta=True)
    for name, value in after.items():
        torch.testing.assert_close(update.weights_after[name], value)
    assert torch.equal(gleak.restore_labels(update, "gleak"), batch.label_counts)
    wrong = dataclasses.replace(update, weights_after=change)
    with pytest.raises(gleak.Contradiction, match="near zero and far from those before"):
        gleak.restore_labels(wrong, "gleak")


DEFENCES = {
    "none": lambda update: update,
    "clip": lambda update: defences.clip(update, 0.01),
    "noise": lambda update: defences.add_noise(update, 0.01, seed=0),
    "much noise": lambda update: defences.add_noise(update, 100.0, seed=0),
    "half": lambda update: defences.prune(update, 0.5),
    "few": lambda update: defences.prune(update, 0.99),
    "3 bits": lambda update: defences.quantise(update, bits=3),
    "2 bits": lambda update: defences.quantise(update, bits=2),
    "sign": defences.sign,
    "bfloat16": lambda update: defences.cast(update, torch.bfloat16),
    "pair": lambda update: defences.aggregate([update, update]),
}


@pytest.mark.parametrize("defence", DEFENCES)
@pytest.mark.parametrize("name", ["lenet", "convnet", "resnet18"])
@pytest.mark.parametrize("client", [gleak.fedsgd, gleak.fedavg], ids=["fedsgd", "fedavg"])
def test_honest_updates_are_not_refused(batch, name, client, defence):
    update = DEFENCES[defence](client(gleak.build_model(name, batch), batch))
    update.refuse_contradictions()
    if defence in ("none", "clip", "bfloat16", "pair"):
        assert update.contradictions() == []
        assert "but  " not in str(update)
    if defence in ("noise", "sign"):
        assert ["sums to" in sentence for sentence in update.contradictions()] == [True]


@pytest.mark.parametrize("lr", [1e-5, 1.0])
@pytest.mark.parametrize("name", ["lenet", "convnet"])
def test_neither_small_nor_large_steps_are_a_contradiction(batch, name, lr):
    update = gleak.fedavg(gleak.build_model(name, batch), batch, epochs=5, batch_size=2, lr=lr)
    assert update.contradictions() == []


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_module.", "module._orig_mod."])
def test_names_behind_the_prefix_of_a_wrapper(net, trained, batch, prefix):
    before, after = (
        {f"{prefix}{name}": value for name, value in weights.items()}
        for weights in (net.state_dict(), trained(sgd).state_dict())
    )
    facts = {"num_samples": 4, "input_shape": SHAPE, "lr": 0.01, "epochs": 1, "batch_size": 4}
    update = gleak.Update.from_weights(before, after, net, **facts)
    assert list(update.weights_after) == list(net.state_dict())
    assert torch.equal(gleak.restore_labels(update, "gleak"), batch.label_counts)
    gradient = {f"{prefix}{n}": g for n, g in gleak.fedsgd(net, batch).gradient.items()}
    assert list(gleak.Update(net, 4, SHAPE, gradient=gradient).gradient) == list(net.state_dict())
    other = {name.replace(prefix, "other."): value for name, value in gradient.items()}
    with pytest.raises(ValueError, match="it has no other.0.bias"):
        gleak.Update(net, 4, SHAPE, gradient=other)


def test_a_network_in_a_wrapper_takes_names_without_its_prefix(net, batch):
    gradient = dict(gleak.fedsgd(net, batch).gradient)
    update = gleak.Update(nn.DataParallel(net), 4, SHAPE, gradient=gradient)
    assert list(update.gradient) == [f"module.{name}" for name in gradient]
    assert update.classifier.name == "module.5"


def test_sparse_gradients_are_what_they_stand_for(net, batch):
    update = defences.prune(gleak.fedsgd(net, batch), 0.5)
    sparse = {name: value.to_sparse() for name, value in update.gradient.items()}
    taken = gleak.Update(net, 4, SHAPE, gradient=sparse)
    for name, value in update.gradient.items():
        assert torch.equal(taken.gradient[name], value)
    assert taken.precision == update.precision
    after = {name: value.detach().to_sparse() for name, value in net.state_dict().items()}
    assert sent(net, after).weights_after["5.bias"].layout == torch.strided
