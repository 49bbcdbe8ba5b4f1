"""The equations of a layer's weight gradient, as products and written out."""

import pytest
import torch
from torch import nn

from gleak.inversion.closed.solve import Equations, rank_of, solve_input

EXACT = 2.0**-53
CONVS = [
    nn.Conv2d(4, 24, 3, padding=1),
    nn.Conv2d(4, 24, 3, stride=2, padding=1),
    nn.Conv2d(4, 40, (3, 4), padding="same", dilation=(1, 2)),
    nn.Conv2d(4, 24, 3, padding=2, padding_mode="reflect"),  # a tap takes some pixels twice
    nn.Conv2d(4, 24, 3, stride=2, padding=1, padding_mode="circular"),
]


def case(layer, images, shape):
    """Inputs, outputs, slopes where outputs are active, and the weight gradient; all random."""
    draws = torch.Generator().manual_seed(0)
    layer = layer.double()
    inputs = torch.randn(images, *shape, generator=draws, dtype=torch.float64)
    outputs = layer(inputs)
    slope = torch.randn(outputs.shape, generator=draws, dtype=torch.float64) * (outputs > 0)
    (gradient,) = torch.autograd.grad(outputs, layer.weight, slope)
    return inputs, outputs.detach(), slope, gradient


@pytest.mark.parametrize("layer", [*CONVS, nn.Linear(4, 9)], ids=str)
def test_products_are_those_with_the_dense_matrix(layer):
    shape = (4,) if isinstance(layer, nn.Linear) else (4, 6, 5)
    inputs, _, slope, gradient = case(layer, 2, shape)
    equations = Equations(layer, slope, shape)
    dense, sent = (
        equations.dense(),
        gradient.flatten(2) if gradient.ndim > 2 else gradient[..., None],
    )
    seen = inputs.view(2, 4, -1).transpose(1, 2).flatten(0, 1)
    by_tap = sent.transpose(1, 2).flatten(0, 1)
    assert torch.allclose(dense @ seen, by_tap)
    assert torch.allclose(equations.gradient(seen), by_tap)
    assert torch.allclose(equations.back(by_tap), dense.T @ by_tap)
    assert torch.allclose(equations.square(), dense.T @ dense)
    assert torch.equal(equations.as_inputs(seen), inputs)


@pytest.mark.parametrize("level", [False, True])
def test_inputs_from_the_gradient_alone(level):
    layer = nn.Conv2d(4, 24, 3, padding=1)
    inputs, outputs, slope, gradient = case(layer, 2, (4, 6, 5))
    slope[1] /= 100
    (gradient,) = torch.autograd.grad(layer(inputs), layer.weight, slope)
    unknown = torch.zeros_like(outputs, dtype=torch.bool)
    found = solve_input(layer, slope, gradient, outputs, unknown, (4, 6, 5), EXACT, level)
    assert (found.inputs - inputs).abs().max() < 1e-11
    assert found.misfit < 1e-14
    assert (found.deviation is not None) == level


def test_outputs_tell_what_gradients_leave_open():
    """Few output channels on many places: the gradient has 250 equations for 324 unknowns."""
    layer = nn.Conv2d(3, 10, 5, padding=2)
    inputs, outputs, slope, gradient = case(layer, 4, (3, 9, 9))
    assert rank_of(Equations(layer, slope, (3, 9, 9)).square()) == 250
    active = outputs > 0
    found = solve_input(layer, slope, gradient, outputs, active, (3, 9, 9), EXACT)
    assert (found.inputs - inputs).abs().max() < 1e-7
    active[:, :, 1:] = False  # 170 of these outputs or so, for 74 unknowns of each channel
    with pytest.raises(ArithmeticError, match="250 equations for 324 unknowns"):
        solve_input(layer, slope, gradient, outputs, active, (3, 9, 9), EXACT)


def test_an_image_with_faint_slopes_leaves_nothing_open():
    """Normal equations lose an image whose slopes are a hundred million times smaller."""
    layer = nn.Conv2d(4, 24, 3, padding=1)
    inputs, outputs, slope, _ = case(layer, 2, (4, 6, 5))
    slope[1] *= 1e-8
    (gradient,) = torch.autograd.grad(layer(inputs), layer.weight, slope)
    assert rank_of(Equations(layer, slope, (4, 6, 5)).square()) < 60
    found = solve_input(layer, slope, gradient, outputs, outputs > 0, (4, 6, 5), EXACT)
    assert (found.inputs - inputs).abs().max() < 1e-4


def test_outputs_that_tell_the_same_twice_leave_the_rest_open():
    """Ten outputs of each place tell its three values, and nothing tells those of two images."""
    layer = nn.Conv2d(3, 10, 1)
    _, outputs, slope, gradient = case(layer, 4, (3, 9, 9))
    known = torch.ones_like(outputs, dtype=torch.bool)
    known[2:] = False  # 1620 known outputs for 942 unknowns
    with pytest.raises(ArithmeticError, match="leave its input open"):
        solve_input(layer, slope, gradient, outputs, known, (3, 9, 9), EXACT)


def test_too_few_equations_are_refused_before_any_is_made():
    layer = nn.Conv2d(1, 2, 3, padding=1)
    nothing = torch.zeros(4, 2, 400, 400)
    with pytest.raises(ArithmeticError, match="18 equations for 640000 unknowns"):
        solve_input(layer, nothing, layer.weight, nothing, nothing > 0, (1, 400, 400), EXACT)
