"""The contrast: a layer that a malicious server puts in front copies images."""

import pytest
import torch
from torch import nn

import gleak
from gleak.study.displays import malicious as display
from gleak.study.experiments import malicious
from gleak.study.runner import run_grid


def gray(brightness):
    draws = torch.Generator().manual_seed(0)
    pattern = torch.rand(len(brightness), 1, 4, 4, generator=draws) - 0.5
    pattern -= pattern.mean((1, 2, 3), keepdim=True)
    images = torch.tensor(brightness).view(-1, 1, 1, 1) + 0.5 * pattern
    return gleak.Batch(images, torch.tensor([0, 1, 2][: len(brightness)]), list("abc"))


def found_in(batch, bins):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
    changed = malicious.Imprinted(net, (1, 4, 4), bins).double()
    batch = gleak.Batch(batch.images.double(), batch.labels, batch.class_names)
    return malicious.sorted_out(gleak.fedsgd(changed, batch))


def test_images_alone_between_two_bounds_are_copied():
    batch = gray([0.3, 0.45, 0.6])
    found = found_in(batch, 20)
    psnr, which = malicious.best_psnr(found, batch.images)
    assert psnr.min() > 80
    assert sorted(which.tolist()) == [0, 1, 2]


def test_images_between_the_same_bounds_are_mixed():
    batch = gray([0.4501, 0.4502])
    assert malicious.best_psnr(found_in(batch, 20), batch.images)[0].min() < 40


def test_the_layer_shows():
    net = malicious.Imprinted(nn.Flatten(), (1, 4, 4), 20)
    assert malicious.alike(net.measure) == pytest.approx(0.95)
    assert malicious.alike(nn.Linear(16, 20)) == 0


def test_the_table_and_its_claims():
    runs = run_grid(
        malicious.copied,
        [{"size": size, "bins": bins} for size in (2, 6) for bins in (4, 64)],
        common={"pool": "digits", "model": "lenet", "seed": 0},
        label="batches",
    )
    assert list(display.table(runs)) == ["4 rows", "64 rows"]
    claims = display.claims(runs, alike=0.9, honest=0.0)
    assert not claims["the layer shows what it is"]
