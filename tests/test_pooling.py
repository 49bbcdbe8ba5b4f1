"""Which places of a max-pooling held the maxima, and what lies in front of it."""

import dataclasses

import pytest
import torch
from torch import nn

import gleak
from gleak.inversion.closed import peel
from gleak.inversion.closed.chain import trace
from gleak.inversion.closed.peel import hidden_by_maxima, peel_behind
from gleak.inversion.closed.pooling import Windows, behind, bounds


def network(pool=None, *between, width=48):
    """Two convolutions, a max-pooling, another convolution; in float64."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, width, 3, padding=1),
        *(between or [nn.ReLU()]),
        pool or nn.MaxPool2d(2),
        nn.Conv2d(width, 48, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
    )
    size = net(torch.zeros(1, 3, 8, 8)).shape[1]
    return net.append(nn.Linear(size, 10)).double().eval()


def sent(net, size=1):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(size, 3, 8, 8, generator=generator).double()
    batch = gleak.Batch(images, torch.arange(size), list("abcdefghij"))
    return batch, gleak.fedsgd(net, batch, training=False)


def near(images, error=0.1):
    """Images with noise, as a search from behind the pooling leaves them."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    return (images + error * noise.to(images)).clamp(0, 1)


def norm_with_signs(channels):
    """A batch norm in eval mode that turns the order in some channels."""
    norm = nn.BatchNorm2d(channels)
    norm.weight.data = torch.linspace(-1, 1, channels).sign() * torch.linspace(0.5, 1.5, channels)
    norm.bias.data = torch.linspace(-0.1, 0.1, channels)
    norm.running_mean.copy_(torch.linspace(-0.05, 0.05, channels))
    norm.running_var.copy_(torch.linspace(0.5, 2, channels))
    return norm


@pytest.mark.parametrize(
    ("pool", "between"),
    [
        (nn.MaxPool2d(2), ()),
        (nn.MaxPool2d(3, stride=2, padding=1), ()),  # windows overlap and cross the border
        (nn.MaxPool2d(2), (nn.ReLU(), norm_with_signs(48))),
        (nn.MaxPool2d(2), (nn.LeakyReLU(),)),
    ],
    ids=["plain", "overlapping", "norm", "leaky"],
)
def test_images_with_noise_tell_the_places(pool, between):
    batch, update = sent(network(pool, *between))
    peeled = peel(update, batch.label_counts)
    assert "MaxPool2d" in peeled.ended and hidden_by_maxima(peeled)
    further = peel_behind(peeled, near(batch.images))
    with torch.no_grad():
        truth = further.trunk(batch.images)
    assert further.front.depth <= 2  # in front of the second convolution
    assert (further.activations - truth).norm() < 1e-8 * truth.norm()


def test_a_gradient_of_other_images_finds_no_places():
    batch, update = sent(network())
    other = update.gradient["2.weight"].flip(0)
    update = dataclasses.replace(update, gradient={**update.gradient, "2.weight": other})
    peeled = peel(update, batch.label_counts)
    with pytest.raises(gleak.MissingKnowledge, match="places of its maxima were not found"):
        peel_behind(peeled, near(batch.images))


def test_places_need_more_equations_than_unknowns():
    batch, update = sent(network(width=8))  # 8 x 9 equations, 64 unknowns
    peeled = peel(update, batch.label_counts)
    assert "MaxPool2d" in peeled.ended and not hidden_by_maxima(peeled)


def test_windows_forth_and_back():
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    wins = Windows(pool, (2, 5, 7), torch.device("cpu"))
    draws = torch.Generator().manual_seed(0)
    values = torch.rand(3, 2, 5, 7, generator=draws)
    seen = wins.of(values).masked_fill(~wins.inside, -torch.inf)
    assert torch.equal(seen.amax(3).view(3, 2, 3, 4), pool(values))
    other = torch.rand(seen.shape, generator=draws)
    inside = torch.where(wins.inside, wins.of(values) * other, 0.0)
    assert (wins.back(other) * values).sum() == pytest.approx(inside.sum().item(), rel=1e-5)


def test_bounds_follow_the_layers():
    norm = norm_with_signs(8)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), norm, nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    )
    steps = trace(net.eval(), (3, 8, 8)).steps
    low, high = bounds(steps, 3)
    at_zero = norm(torch.zeros(1, 8, 1, 1))[0].double()
    rising = norm.weight[:, None, None] > 0
    assert torch.allclose(torch.where(rising, low, high), at_zero, atol=1e-6)
    assert torch.where(rising, high, -low).isinf().all()
    assert [end.unique().tolist() for end in bounds(steps, 0)] == [[0.0], [1.0]]


def test_only_layers_that_rise_are_passed():
    steps = trace(network(None, nn.ReLU(), nn.AvgPool2d(1)), (3, 8, 8)).steps
    at = next(i for i, step in enumerate(steps) if isinstance(step.layer, nn.MaxPool2d))
    with pytest.raises(ArithmeticError, match="layers that rise"):
        behind(steps, at)


def test_one_image_of_a_plain_network():
    batch = gleak.load_batch("cifar10-samples", indices=[0])
    update = gleak.fedsgd(gleak.build_model("convnet", batch, seed=1), batch)
    found = gleak.invert(update, batch.label_counts, "gleak", iterations=1500, progress=False)
    assert "32x16x16" in found.way and not found.fell_back
    assert gleak.score(found.images, batch.images)["psnr"].item() > 40
    assert 1490 < len(found.history) <= 1500  # the thirds of a search are whole
