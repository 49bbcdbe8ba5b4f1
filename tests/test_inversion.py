import copy

import pytest
import torch
from torch import nn

import gleak
from gleak import inversion
from gleak.inversion import (
    InversionFailed,
    cosine_distance,
    flatten,
    labels_of,
    simulate,
    total_variation,
)

NETWORKS = ["lenet", "convnet", "resnet18"]


@pytest.fixture
def update(batch):
    return gleak.fedsgd(gleak.build_model("convnet", batch, seed=1), batch)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_of_the_images_against_finite_differences(batch, name):
    """Twice differentiated networks are where errors would hide; float64, sigmoid and ReLU."""
    model = gleak.build_model(name, batch, seed=1).double()
    double = gleak.Batch(batch.images.double(), batch.labels, batch.class_names)
    update = gleak.fedsgd(model, double)
    parameters = list(update.model.parameters())
    observed = flatten(update.gradient.values())
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 32, 32, generator=generator, dtype=torch.float64)
    direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)

    def loss(x):
        simulated = simulate(update.model, parameters, x, batch.labels)
        return cosine_distance(simulated, observed) + 0.04 * total_variation(x)

    variable = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(variable), variable)
    step = 1e-9  # small enough to cross no kink of a ReLU
    up, down = loss(images + step * direction), loss(images - step * direction)
    assert (gradient * direction).sum().item() == pytest.approx(
        ((up - down) / (2 * step)).item(), rel=2e-3
    )


def test_the_truth_has_distance_zero(update, batch):
    simulated = simulate(update.model, list(update.model.parameters()), batch.images, batch.labels)
    assert cosine_distance(simulated, flatten(update.gradient.values())) < 1e-5


def test_distances_and_priors_worked_by_hand():
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])
    assert cosine_distance(a, b).item() == pytest.approx(1 - 24 / 25)
    assert cosine_distance(a, -a).item() == pytest.approx(2)
    image = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]])
    # down: |0.5| and |-0.5|, mean 0.5; across: 1 and 0, mean 0.5
    assert total_variation(image).item() == pytest.approx(1.0)


def test_an_image_comes_back(batch):
    one = gleak.Batch(batch.images[:1], batch.labels[:1], batch.class_names)
    update = gleak.fedsgd(gleak.build_model("convnet", one, seed=1), one)
    result = gleak.invert(update, one.label_counts, iterations=250, progress=False)
    scores = gleak.score(result.images, one.images)
    assert scores["psnr"][0] > scores["thumb8"][0]
    assert result.history["distance"].iloc[-1] < 0.1 * result.history["distance"].iloc[0]
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    assert result.labels.tolist() == [3]


def test_a_seed_fixes_the_result(update, batch):
    first, again, other = (
        gleak.invert(update, batch.label_counts, iterations=5, seed=seed, progress=False)
        for seed in (1, 1, 2)
    )
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


def test_the_best_iterate_is_kept(update, batch):
    result = gleak.invert(update, batch.label_counts, iterations=8, lr=2.0, tv=0.0, progress=False)
    simulated = simulate(
        update.model, list(update.model.parameters()), result.images, result.labels
    )
    distance = cosine_distance(simulated, flatten(update.gradient.values())).item()
    assert distance == pytest.approx(result.history["loss"].min(), rel=1e-3)
    assert result.history["loss"].iloc[-1] > result.history["loss"].min()


def test_the_update_is_left_as_it_was(batch):
    update = gleak.fedsgd(gleak.build_model("resnet18", batch), batch)
    before = copy.deepcopy(update.model.state_dict())
    gleak.invert(update, batch.label_counts, iterations=2, progress=False)
    for name, value in update.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in update.model.parameters())


def test_ctrl_c_returns_the_best_so_far(update, batch, monkeypatch, capsys):
    calls = iter(range(100))

    def interrupted(images):
        if next(calls) == 7:
            raise KeyboardInterrupt
        return total_variation(images)

    monkeypatch.setattr(inversion, "total_variation", interrupted)
    result = gleak.invert(update, batch.label_counts, iterations=50, progress=False)
    assert len(result.history) == 7
    assert torch.isfinite(result.images).all()
    assert "stopped after 7 of 50" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_keeps_the_last_good_images(update, batch, monkeypatch):
    calls = iter(range(100))
    monkeypatch.setattr(
        inversion,
        "total_variation",
        lambda images: total_variation(images) * (torch.nan if next(calls) >= 30 else 1),
    )
    with pytest.raises(InversionFailed, match="not finite at iteration 50") as caught:
        gleak.invert(update, batch.label_counts, iterations=100, progress=False)
    best = caught.value.best
    assert torch.isfinite(best.images).all()
    assert best.images.std() > 0.05
    assert best.history["loss"].notna().sum() == 30


def test_labels_are_in_ascending_order(update):
    assert labels_of([1, 0, 0, 2, 0, 0, 0, 0, 1, 0], update).tolist() == [0, 3, 3, 8]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attack": "magic"}, "unknown attack 'magic'; known: inverting-gradients"),
        ({"strength": 3}, "has no strength; known: tv, lr"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"counts": [4]}, "counts must be 10 whole numbers"),
        ({"counts": torch.full((10,), 0.4)}, "counts must be 10 whole numbers"),
        ({"counts": [5, -1, 0, 0, 0, 0, 0, 0, 0, 0]}, "counts must be 10 whole numbers"),
        ({"counts": [5, 0, 0, 0, 0, 0, 0, 0, 0, 0]}, "sum to 5, but the update has 4 samples"),
    ],
)
def test_refusals(update, batch, arguments, message):
    with pytest.raises(ValueError, match=message):
        gleak.invert(update, **({"counts": batch.label_counts} | arguments))


def test_a_dead_network_fails_with_an_error_not_with_nan(tiny):
    dead = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3))
    dead[1].bias.data.fill_(-100.0)
    dead[3].requires_grad_(False)  # all that is sent is zero
    update = gleak.fedsgd(dead, tiny)
    with pytest.raises(ValueError, match="gradient is zero"):
        gleak.invert(update, tiny.label_counts, progress=False)
