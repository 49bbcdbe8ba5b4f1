"""Closed forms on a trained network with batch norm, max-pooling and fully connected layers."""

import copy
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import gleak
from gleak.inversion.closed import peel
from gleak.inversion.closed.chain import trace
from gleak.inversion.closed.known import Sent
from gleak.inversion.closed.relu import put_on_bound
from gleak.inversion.closed.start import hidden_start
from gleak.inversion.objective import spread_of
from gleak.study.experiments.trained import digits, network
from gleak.training import accuracy, train


@pytest.fixture(scope="module")
def clients():
    return digits("client")


@pytest.fixture(scope="module")
def net(clients):
    """A narrow network, trained for some seconds."""
    net = network((16, 32, 32, 96, 32, 32), (64, 32))
    train(net, digits("server"), steps=150, lr=3e-3)
    assert accuracy(net, clients) > 0.9
    return net.eval()


def sent(net, clients, size, dtype, seed=1, training=False):
    batch = gleak.draw_batch(clients, size, seed=seed)
    net = copy.deepcopy(net).to(dtype)
    return batch, gleak.fedsgd(net, batch, training=training)


def errors(peeled, batch):
    """Relative error of each image's nearest activations, those of its own label."""
    order = batch.labels.argsort(stable=True)
    with torch.no_grad():
        truth = peeled.trunk(batch.images[order].to(peeled.activations)).flatten(1).double()
    apart = torch.cdist(peeled.activations.flatten(1).double(), truth)
    labels = batch.labels[order]
    apart[labels[:, None] != labels] = torch.inf
    return (apart / truth.norm(dim=1)).min(0).values


@pytest.mark.parametrize(
    ("size", "dtype", "allowed"),
    [(1, torch.float64, 1e-11), (4, torch.float64, 1e-9), (1, torch.float32, 1e-5)]
    + [(4, torch.float32, 1e-3)],
)
def test_peeled_to_the_output_of_the_second_pooling(net, clients, size, dtype, allowed):
    batch, update = sent(net, clients, size, dtype)
    peeled = peel(update, batch.label_counts)
    assert peeled.activations.shape == (size, 96, 5, 5)
    assert errors(peeled, batch).max() < allowed
    assert peeled.sharp and peeled.started == "Linear (layer 21 of 26)"
    assert "from Linear (layer 21 of 26)" in str(peeled)
    assert peeled.ended.startswith("MaxPool2d (layer 13 of 26)")


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-8), (torch.float32, 1e-2)])
def test_train_mode_of_few_values_is_peeled_as_far(net, clients, dtype, allowed):
    """Where the convolutions end a channel has four values, of which none may be zero."""
    batch, update = sent(net, clients, 4, dtype, training=True)
    peeled = peel(update, batch.label_counts)
    assert peeled.activations.shape == (4, 96, 5, 5)
    assert errors(peeled, batch).max() < allowed


def test_batch_norm_of_single_values_is_compared_with_as_many_gray_images():
    trunk = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 4), torch.nn.BatchNorm2d(3))
    peeled: Any = SimpleNamespace(trunk=trunk, activations=torch.full((2, 3, 1, 1), 2.0))
    update: Any = SimpleNamespace(input_shape=(1, 4, 4))
    spread = spread_of(peeled, update)
    torch.testing.assert_close(spread, torch.full((2, 1, 1, 1), 4.0), rtol=1e-3, atol=0)


def test_an_image_beats_its_thumbnail(net, clients):
    batch, update = sent(net, clients, 1, torch.float32)
    found = gleak.invert(update, batch.label_counts, "gleak", iterations=450, progress=False)
    scores = gleak.score(found.images, batch.images)
    assert "from Linear (layer 21 of 26)" in found.way and not found.fell_back
    assert scores["psnr"].mean() > scores["thumb8"].mean() + 3


def test_a_start_with_repeated_labels(net, clients):
    batch, update = sent(net, clients, 8, torch.float64)
    chain = trace(update.model, update.input_shape)
    depth, place, features = hidden_start(chain, Sent(update), batch.label_counts)
    assert (batch.label_counts > 1).any() and depth == 22
    order = batch.labels.argsort(stable=True)
    truth, _ = update.forward(batch.images[order].double())
    assert torch.cdist(features, truth).min(0).values.max() < 1e-6 * truth.norm(dim=1).min()
    assert (features.shape, place.slope.shape) == ((8, 32), (8, 64))


def test_wrong_counts_are_no_start(net, clients):
    batch, update = sent(net, clients, 4, torch.float64)
    wrong = batch.label_counts.roll(1)
    with pytest.raises(gleak.MissingKnowledge, match="no labels of these counts"):
        hidden_start(trace(update.model, update.input_shape), Sent(update), wrong)
    noisy = dataclasses.replace(update, precision=1e-3)
    with pytest.raises(gleak.MissingKnowledge, match="softmax"):  # the classifier's way alone
        peel(noisy, wrong)


def test_what_is_nearer_to_a_bound_than_its_error_lies_on_it():
    values = torch.tensor([[1.0, 2e-6, 0.1, -0.2], [1.0, 2e-3, 0.1, -1e-9]])
    deviation = torch.tensor([[1e-6, 1e-6, 0.1, 0.1], [1e-6] * 4])
    found = put_on_bound(values, deviation, 0.0, 2.0**-23)
    assert torch.equal(found, torch.tensor([[1.0, 0, 0, 0], [1.0, 2e-3, 0.1, 0]]))
