"""Inputs of a convolution from its weight gradient, as patches of one image overlap."""

import pytest
import torch
from torch import nn

from gleak.inversion.closed.patches import Overlap, unmix
from gleak.inversion.closed.solve import largest_vectors, row_space, taps

SIZE, SHAPE, EXACT = 2, (6, 4, 3), 2.0**-53


@pytest.fixture(params=[False, True], ids=["eval", "train"])
def case(request):
    """A convolution, its inputs behind ReLU, its gradient, and whether slopes sum to zero."""
    draws = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(SHAPE[0], 40, 3, padding=1, bias=False).double()
    inputs = torch.randn(SIZE, *SHAPE, generator=draws, dtype=torch.float64).relu()
    slopes = torch.randn(SIZE, 40, *SHAPE[1:], generator=draws, dtype=torch.float64)
    if request.param:
        slopes -= slopes.mean((0, 2, 3), keepdim=True)
    gradient = torch.nn.grad.conv2d_weight(inputs, conv.weight.shape, slopes, padding=1)
    return conv, inputs, gradient, request.param


def test_inputs_are_told_apart(case):
    conv, inputs, gradient, centred = case
    found = unmix(conv, gradient, SHAPE, SIZE, centred, EXACT).flatten(1)
    truth = inputs.flatten(1) / inputs.flatten(1).norm(dim=1, keepdim=True)
    assert (truth @ found.T).abs().max(1).values.min() > 1 - 1e-12


def test_products_find_what_the_dense_matrix_has(case):
    conv, _, gradient, centred = case
    overlap = Overlap(conv, gradient, SHAPE, SIZE, centred)
    places, rank, area = overlap.positions, overlap.rank, overlap.area
    # patches of each image with one pixel, and one common patch for each tap: (.., places x taps)
    unit = torch.eye(places, dtype=torch.float64).view(-1, 1, *SHAPE[1:])
    images = taps(conv, unit)[:, :, 0].transpose(1, 2).flatten(1)
    if centred:
        images = torch.cat([images, torch.eye(area, dtype=torch.float64).repeat(1, places)])
    onto = torch.linalg.pinv(images) @ images
    right = overlap.right.view(rank, area, SHAPE[0])
    each = torch.einsum("rtc,suc,ptqu->prqs", right, right, onto.view(places, area, places, area))
    apart = torch.eye(places, dtype=torch.float64) - centred / places
    dense = torch.einsum("xp,prqs,qy->xrys", apart, each, apart).reshape(places * rank, -1)
    values, vectors = torch.linalg.eigh(dense)
    assert values[-SIZE] > 1 - 1e-12 and values[-SIZE - 1] < 0.95

    draws = torch.Generator().manual_seed(1)
    start = torch.randn(SIZE, len(dense), generator=draws, dtype=torch.float64)
    assert torch.allclose(overlap.projected(start), start @ dense, atol=1e-12)
    found = largest_vectors(overlap.projected, start, EXACT)
    assert torch.linalg.svdvals(found @ vectors[:, -SIZE:]).min() > 1 - 1e-12


def test_as_many_patches_as_output_channels():
    conv = nn.Conv2d(6, 23, 3, padding=1).double()
    with pytest.raises(ArithmeticError, match="24 independent patches are too many"):
        unmix(conv, torch.randn(23, 6, 3, 3).double(), SHAPE, SIZE, False, EXACT)


def test_row_space_keeps_what_is_small():
    draws = torch.Generator().manual_seed(0)
    left = torch.randn(90, 5, generator=draws, dtype=torch.float64)
    rows = torch.randn(5, 120, generator=draws, dtype=torch.float64)
    found = row_space(left * torch.logspace(0, -7, 5, dtype=torch.float64) @ rows, 5)
    truth = torch.linalg.qr(rows.T).Q
    assert torch.linalg.svdvals(found @ truth).min() > 1 - 1e-12
