"""The derivative of a gradient as a difference of two, against autograd."""

import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import gleak
from gleak.inversion import ATTACKS
from gleak.inversion import finite_difference as difference
from gleak.inversion.distances import cosine
from gleak.inversion.finite_difference import differenced_gradient, functional_slopes, slopes
from gleak.inversion.gradients import local_gradient
from gleak.inversion.objective import Objective
from gleak.inversion.update_models import start_of

BATCH = gleak.load_batch("cifar10-samples", indices=[0, 1, 3, 4])


def network(activation):
    """Convolutions, max-pooling, an activation."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), activation(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), activation(), nn.Flatten(), nn.Linear(32 * 16 * 16, 10),
    )  # fmt: skip


def seen(name, **settings):
    return gleak.fedsgd(gleak.build_model(name, BATCH, seed=1), BATCH, **settings)


def image_slopes(update, gradient, images):
    """The derivative of the cosine distance by the images."""
    images = images.clone().requires_grad_()
    labels = BATCH.labels.sort().values
    found = gradient(start_of(update), list(update.gradient), images, labels)
    return torch.autograd.grad(cosine(found, list(update.gradient.values())), images)[0]


def error(update, dtype=torch.float32, kind=slopes) -> float:
    """Of the difference, relative to the exact derivative."""
    images = torch.rand(BATCH.images.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = image_slopes(update, partial(local_gradient, update.model), images)
    passes = partial(kind, update.model)
    found = image_slopes(update, partial(differenced_gradient, passes), images)
    return ((found - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lenet", slopes),
        ("lenet", functional_slopes),
        ("convnet", slopes),
        ("convnet", functional_slopes),
        ("resnet18", slopes),
    ],
)
def test_the_difference_is_the_derivative(name, kind):
    assert error(seen(name), kind=kind) < 0.02


def test_what_it_keeps_is_let_go_with_the_gradient():
    """Also where weights are differentiated, as in simulated training: no cycle holds it."""
    update = seen("lenet")
    passes = partial(slopes, update.model)
    alive = weakref.ref(passes)
    weights = {name: w.requires_grad_() for name, w in start_of(update).items()}
    found = differenced_gradient(passes, weights, list(weights), BATCH.images, BATCH.labels)
    changes = torch.autograd.grad(sum(f.square().sum() for f in found), list(weights.values()))
    assert all(change.any() for change in changes)
    del found, passes
    assert alive() is None


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Tanh, nn.SiLU])
def test_its_error_vanishes_with_rounding(activation):
    double = gleak.Batch(BATCH.images.double(), BATCH.labels, BATCH.class_names)
    update = gleak.fedsgd(network(activation).double(), double)
    assert error(update, torch.float64) < 1e-6


def test_units_that_switch_would_drown_it(monkeypatch):
    monkeypatch.setattr(difference, "RELU", set())
    monkeypatch.setattr(difference, "MAX_POOL", set())
    assert error(seen("convnet")) > 1


@pytest.mark.parametrize(
    "activation, settings, differs",
    [
        (nn.ReLU, {}, True),
        (nn.PReLU, {}, False),  # kinks that nobody told `Pieces` of
        (nn.ReLU, {"derivative": "exact"}, False),
        (nn.ReLU, {"optimizer": "lbfgs"}, False),
    ],
)
def test_where_it_does_not_fit_the_derivative_is_exact(activation, settings, differs):
    update = gleak.fedsgd(network(activation), BATCH)
    attack = ATTACKS["inverting-gradients"].override(**settings)
    labels = BATCH.labels.sort().values
    gradient = Objective(update, labels, attack).gradient
    assert gradient.func is (differenced_gradient if differs else local_gradient)


def test_batch_norm_statistics_need_the_graph():
    update = seen("resnet18")
    labels = BATCH.labels.sort().values
    known = {"1.bn1": (torch.zeros(64), torch.ones(64))}
    update = replace(update, statistics=known)
    gradient = Objective(update, labels, ATTACKS["gradinversion"]).gradient
    assert gradient.func is local_gradient


def test_both_derivatives_lead_to_images_as_good():
    update = seen("convnet")
    quality = {}
    for derivative in ("difference", "exact"):
        settings = {"derivative": derivative, "iterations": 60, "progress": False}
        result = gleak.invert(update, BATCH.label_counts, **settings)
        quality[derivative] = gleak.score(result.images, BATCH.images)["psnr"].mean()
    assert quality["difference"] > quality["exact"] - 1
    assert min(quality.values()) > 14
