"""Closed forms: the same network peels the same way however it is written, and exactly."""

import dataclasses

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

import gleak
from gleak.inversion.closed import exact_images, peel, spear
from gleak.inversion.closed.chain import (
    NormBehind,
    NormedConv,
    Pad,
    Reshape,
    ResidualBlock,
    Spread,
    trace,
)
from gleak.inversion.closed.layers import ROWS, Kept, find_row
from gleak.inversion.closed.solve import taps
from gleak.labels.tolerance import of_dtype, scaled
from gleak.models import Normalise


def error(found, truth):
    return ((found - truth).norm() / truth.norm()).item()


def truth_at(peeled, batch):
    """The true activations at the place that was peeled to, in the order of the labels."""
    with torch.no_grad():
        return peeled.trunk(batch.images[batch.labels.argsort(stable=True)])


def small(indices):
    batch = gleak.load_batch("cifar10-samples", indices=indices)
    return gleak.Batch(F.avg_pool2d(batch.images, 2), batch.labels, batch.class_names)


# -- one network, written in many ways -----------------------------------------------------------


class Plain(nn.Module):
    """A convnet with a forward of its own."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(32 * 4 * 4, 10)  # out of order: only the forward tells
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.relu, self.pool, self.drop = nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout()

    def forward(self, x):
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        return self.fc(torch.flatten(self.relu(self.conv3(x)), 1))


class Functional(Plain):
    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(torch.relu(self.conv2(x)), kernel_size=2)
        x = self.conv3(x).relu()
        return self.fc(F.dropout(x, training=self.training).flatten(1))


class Methods(Plain):
    def forward(self, x):
        assert x.dim() == 4
        size = x.size(0)
        x = self.pool(self.conv1(x).relu_())
        x = F.max_pool2d(self.conv2(x).clamp(min=0), (2, 2))
        return self.fc(self.drop(F.relu(self.conv3(x), inplace=True)).view(size, -1))


class Nested(nn.Module):
    def __init__(self, net):
        super().__init__()
        first = nn.Sequential(net.conv1, nn.ReLU(), nn.Identity(), nn.MaxPool2d(2))
        second = nn.ModuleList([net.conv2, nn.ReLU(), nn.MaxPool2d(2), net.conv3])
        self.first, self.second, self.fc = first, second, net.fc

    def forward(self, x):
        x = self.first(x)
        for layer in self.second:
            x = layer(x)
        return self.fc(F.relu(x).reshape(x.shape[0], 32 * 4 * 4))


def written(way):
    """The convnet with weights of its own seed, written in one of these ways."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = Plain()
    if way is Nested:
        return Nested(net)
    if way is nn.Sequential:
        convs = [
            layer
            for conv in (net.conv1, net.conv2, net.conv3)
            for layer in (conv, nn.ReLU(), nn.MaxPool2d(2))
        ]
        return nn.Sequential(*convs[:-1], nn.Flatten(), net.fc)
    other = way()
    other.load_state_dict(net.state_dict())
    return other


@pytest.mark.parametrize("way", [nn.Sequential, Functional, Methods, Nested])
def test_a_network_is_peeled_alike_however_it_is_written(way):
    batch = small([0, 1, 3])
    plain, other = (
        peel(gleak.fedsgd(written(kind), batch, training=False), batch.label_counts)
        for kind in (Plain, way)
    )
    assert torch.equal(plain.activations, other.activations)
    assert plain.activations.shape == (3, 32, 4, 4)  # in front of the last convolution
    assert torch.equal(truth_at(plain, batch), truth_at(other, batch))
    assert error(plain.activations, truth_at(plain, batch)) < 1e-4
    assert "Conv2d" in plain.place and "Conv2d" in other.place
    assert plain.rough and other.rough and not (plain.deep or other.deep)
    assert len(plain.parameters) == len(other.parameters) == 4
    assert "pool" in plain.ended.lower() and "pool" in other.ended.lower()


def test_the_images_found_are_the_same_however_the_network_is_written():
    batch = small([0])
    plain, other = (
        gleak.invert(
            gleak.fedsgd(written(kind), batch, training=False),
            batch.label_counts,
            "gleak",
            iterations=4,
            progress=False,
        )
        for kind in (nn.Sequential, Functional)
    )
    assert torch.equal(plain.images, other.images)


def test_kinds_of_layers_as_the_graph_tells_them():
    kinds = [step.kind for step in trace(written(Functional).eval(), (3, 16, 16)).steps]
    block = ["Conv2d", "ReLU", "MaxPool2d"]
    assert kinds == [*block, *block, "Conv2d", "ReLU", "Identity", "Flatten", "Linear"]


@pytest.mark.parametrize("seed", [1, None])
def test_what_dropout_kept_is_told_by_zeros(seed):
    """In front of the classifier, in eval mode, in train mode with and without dropout."""
    net, batch = nn.Sequential(*written(nn.Sequential)[:-1], nn.Dropout(0.3)), small([0, 1, 3])
    net.append(written(nn.Sequential)[-1])
    training = seed is not None
    update = gleak.fedsgd(net, batch, training=training, dropout_seed=seed)
    peeled = peel(update, batch.label_counts)
    assert not peeled.is_features, peeled.ended
    assert error(peeled.activations, truth_at(peeled, batch)) < 1e-4


# -- residual networks ---------------------------------------------------------------------------


class Late(ResNet):
    """Its parts stand in another order than they run in, and some do not run at all."""

    def __init__(self):
        super().__init__(BasicBlock, [1, 1, 1, 1], num_classes=10)
        self.fc = self.fc  # children() still has all layers, and max-pooling in the third place
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.fc = nn.Linear(256, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class Block(nn.Module):
    """A residual block as people write it for CIFAR-10."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride > 1:
            short = nn.Conv2d(before, after, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(short, nn.BatchNorm2d(after))

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.shortcut(x) + out)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        blocks = [Block(64, 64, 1), Block(64, 128, 2), Block(128, 256, 2)]
        self.blocks, self.linear = nn.Sequential(*blocks), nn.Linear(256, 10)

    def forward(self, x):
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        x = F.avg_pool2d(x, x.shape[-1])
        return self.linear(x.view(x.size(0), -1))


@pytest.mark.parametrize("training", [False, True])
def test_a_residual_network_is_read_in_the_order_of_its_forward(training):
    batch = small([0, 1, 3])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        late, own = Late(), Own()
    used = [v for k, v in late.state_dict().items() if not k.startswith("layer4")]
    own.load_state_dict(dict(zip(own.state_dict(), used, strict=True)))
    found = [
        peel(gleak.fedsgd(net, batch, training=training), batch.label_counts) for net in (late, own)
    ]
    assert error(found[0].activations, found[1].activations) < 1e-3  # the means are rounded apart
    assert found[0].activations.shape[1] <= 128  # the first two of three blocks, or one
    for peeled in found:
        assert peeled.deep
        assert error(peeled.activations, truth_at(peeled, batch)) < 5e-3
        assert "BasicBlock" in peeled.place


@pytest.mark.parametrize("training", [False, True])
def test_residual_networks_are_peeled_through_pooling_and_batch_norm(training):
    batch = small([0, 3])
    update = gleak.fedsgd(gleak.build_model("resnet18", batch, seed=1), batch, training=training)
    peeled = peel(update, batch.label_counts)
    assert peeled.activations.shape[1] <= 128  # four of the eight blocks and more
    assert error(peeled.activations, truth_at(peeled, batch)) < 5e-3


@pytest.mark.parametrize("indices", [[0], [0, 3]])
def test_bottlenecks_are_peeled_through_pooling(indices):
    batch = small(indices)
    double = gleak.Batch(batch.images.double(), batch.labels, batch.class_names)

    def block(before, middle, stride):
        short = nn.Conv2d(before, 4 * middle, 1, stride, bias=False)
        short = nn.Sequential(short, nn.BatchNorm2d(4 * middle))
        return Bottleneck(before, middle, stride, short if before < 4 * middle else None)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        stem = [nn.Conv2d(3, 64, 3, 2, 1), nn.ReLU()]
        blocks = [block(64, 32, 2), block(128, 32, 1), block(128, 64, 2), block(256, 64, 1)]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10)]
        net = nn.Sequential(*stem, *blocks, *head).double()
    peeled = peel(gleak.fedsgd(net, double, training=False), batch.label_counts)
    assert peeled.activations.shape[1:] == (128, 4, 4), peeled.ended  # 2x2 for the last two
    assert "Bottleneck" in peeled.place
    assert error(peeled.activations, truth_at(peeled, double)) < 1e-6


# -- what cannot be traced, and what ends the peeling --------------------------------------------


@pytest.mark.parametrize(
    ("name", "nodes", "ends"), [("alexnet", 24, "Linear"), ("vgg11", 32, "Linear")]
)
def test_torchvisions_networks_are_chains(name, nodes, ends):
    with torch.device("meta"):  # shapes are enough
        net = torchvision.models.get_model(name, num_classes=10).eval()
    chain = trace(net, (3, 64, 64))
    assert len(chain.graph.nodes) == nodes
    assert len(chain.steps) == nodes - 2  # less the images and the output
    assert [step.kind for step in chain.steps].count("MaxPool2d") == (3 if nodes == 24 else 5)
    assert chain.steps[-1].kind == ends


def test_alexnet_is_peeled_to_its_pooling_and_in_train_mode_not_before_its_dropout():
    batch = gleak.load_batch("cifar10-samples", indices=[0, 1], image_size=64)
    net = gleak.build_model("torchvision:alexnet", batch, seed=1)
    with torch.random.fork_rng():  # 4096 units each take ten times as long
        torch.manual_seed(1)
        net[-1].classifier[1], net[-1].classifier[4] = nn.Linear(9216, 512), nn.Linear(512, 512)
        net[-1].classifier[6] = nn.Linear(512, 10)
    found = peel(gleak.fedsgd(net, batch, training=False), batch.label_counts)
    assert found.ended.startswith("MaxPool2d")
    assert found.activations.shape == (2, 256, 1, 1)  # spread to 6x6 by the average pooling
    assert error(found.activations, truth_at(found, batch)) < 1e-3
    found = peel(gleak.fedsgd(net, batch, dropout_seed=1), batch.label_counts)
    assert found.is_features and found.ended.startswith("AdaptiveAvgPool2d")


class Undecided(nn.Module):
    """Layers behind a decision that looks at the values."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        if x.mean() > 5:
            x = x / 2
        return self.layers(x)


def test_a_network_that_cannot_be_traced_says_why(batch):
    layers = gleak.build_model("convnet", batch, width=8)[1]
    whole, inner = Undecided(*layers), nn.Sequential(Undecided(*layers[:2]), *layers[2:])
    for net in (whole, inner):
        with pytest.raises(gleak.MissingKnowledge, match=r"control flow.*if x.mean\(\) > 5"):
            peel(gleak.fedsgd(net, batch), batch.label_counts)
    leaf = nn.Sequential(Undecided(), *layers)
    with pytest.raises(gleak.MissingKnowledge, match="cannot trace 0, a Undecided"):
        peel(gleak.fedsgd(leaf, batch), batch.label_counts)


class Halved(nn.Module):
    """A layer that cannot be traced, without layers in it."""

    def forward(self, x):
        return x / 2 if x.mean() > 5 else x


def test_a_layer_that_cannot_be_traced_ends_the_peeling(batch):
    layers = gleak.build_model("convnet", batch, width=16, seed=1)[1]
    net = nn.Sequential(*layers[:11], Halved(), *layers[11:])
    peeled = peel(gleak.fedsgd(net, batch), batch.label_counts)
    assert peeled.ended.startswith("Halved (layer 11 of 17): it cannot be traced")
    assert not peeled.is_features


def test_what_branches_in_another_way_is_one_step_that_is_not_understood():
    with torch.device("meta"):
        net = torchvision.models.densenet121(num_classes=10).eval()
        resnet = torchvision.models.resnet50(num_classes=10).eval()
    steps = trace(net, (3, 64, 64)).steps
    unknown = [step for step in steps if step.unknown]
    assert {step.kind for step in unknown} == {"_DenseBlock"}
    assert {step.unknown for step in unknown} == {"it branches"}
    kinds = [step.kind for step in trace(resnet, (3, 64, 64)).steps]
    assert kinds.count("Bottleneck") == 16 and kinds[-1] == "Linear"


def test_a_layer_that_was_not_sent_ends_the_peeling(batch):
    net = gleak.build_model("convnet", batch, seed=1)
    net[1][12].requires_grad_(False)
    peeled = peel(gleak.fedsgd(net, batch), batch.label_counts)
    assert "did not send the gradient of 1.12.weight" in peeled.ended
    assert peeled.place == "what enters Flatten (layer 15 of 17)"


# -- rows of the table ---------------------------------------------------------------------------


def uneven(norm):
    """A batch norm with statistics and parameters that are not those of an untrained one."""
    draws = torch.Generator().manual_seed(3)
    for name, tensor in norm.state_dict().items():
        if tensor.ndim:
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=draws))
            if name in ("weight", "bias", "running_mean"):
                tensor[::2] *= -1
    return norm


KINKED = (nn.Hardtanh, nn.Hardsigmoid, nn.GELU, nn.SiLU, nn.Hardswish)
LAYERS = [
    nn.Conv2d(3, 5, 3, stride=2, padding=1),
    nn.Conv2d(3, 5, 3, padding="same"),
    nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"),
    nn.Conv2d(3, 5, 3, padding=2, padding_mode="circular", dilation=2),
    nn.Linear(6, 4),
    nn.ReLU(),
    nn.ReLU6(),
    nn.Hardtanh(-0.5, 0.7),
    nn.Hardsigmoid(),
    nn.GELU(),
    nn.SiLU(),
    nn.Hardswish(),
    Pad((1, 2, 0, 1)),
    Pad((1, 2, 0, 1), "replicate"),
    nn.LeakyReLU(0.1),
    nn.ELU(0.7),
    nn.Softplus(2.0),
    nn.Sigmoid(),
    nn.Tanh(),
    uneven(nn.BatchNorm2d(3)).eval(),
    nn.BatchNorm2d(3, affine=False).eval(),
    uneven(nn.BatchNorm1d(6)).eval(),
    nn.Flatten(),
    nn.Identity(),
    Normalise((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)),
    nn.AdaptiveAvgPool2d(1),
    nn.AdaptiveAvgPool2d((2, 4)),
    nn.AvgPool2d(2),
    Spread(7),
]


def test_each_row_is_tried():
    hidden = {nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d}
    tried = {kind for layer in LAYERS for kind in type(layer).__mro__}
    whole = {ResidualBlock, NormedConv, NormBehind}
    assert {*ROWS} - tried == {Reshape, nn.Dropout, nn.MaxPool2d, Kept} | hidden | whole


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_rows_against_the_truth_in_float64(layer):
    draws = torch.Generator().manual_seed(0)
    layer, row = layer.double(), find_row(layer)
    shape = (6,) if isinstance(layer, nn.Linear | nn.BatchNorm1d) else (3, 6, 6)
    inputs = torch.randn(2, *shape, generator=draws, dtype=torch.float64)
    inputs = (4 * inputs if isinstance(layer, KINKED) else inputs).requires_grad_()
    outputs = layer(inputs)
    assert torch.equal(row.forward(layer, inputs), outputs)
    above = torch.randn(outputs.shape, generator=draws, dtype=torch.float64)
    wanted = [inputs, *([layer.weight] if row.equations else [])]
    slope, *weight_gradient = torch.autograd.grad(outputs, wanted, above)
    inputs, outputs = inputs.detach(), outputs.detach()
    if row.inverse:
        found, known = row.inverse(layer, outputs, shape, torch.finfo(torch.float64).eps)
        known = torch.ones_like(inputs, dtype=torch.bool) if known is None else known
        assert torch.allclose(found[known], inputs[known], rtol=1e-12, atol=1e-12)
        passed = inputs > 0 if row.other else row.slope(layer, above, inputs, outputs) != 0
        assert known.all() or torch.equal(known, passed)
        if row.other:
            other = row.other(layer, outputs)
            assert torch.allclose(layer(other), outputs, atol=1e-12)
            first = (found - inputs).abs() <= (other - inputs).abs()
            wanted = torch.where(first, found, other)
            flat = outputs.abs() < 1e-6  # far below zero all inputs look the same
            found = torch.where(flat, inputs, wanted)
            assert torch.allclose(found, inputs, atol=1e-6) and not first.all()
    else:
        found = torch.zeros_like(inputs)
    assert torch.allclose(row.slope(layer, above, found, outputs), slope, rtol=1e-12, atol=1e-14)
    if row.equations:
        equations = row.equations(layer, above, shape)
        pixels = inputs.transpose(0, 1).reshape(shape[0], -1).T  # (K x pixels, channels)
        made = equations.gradient(pixels).view(len(layer.weight), -1, shape[0])
        made = made.transpose(1, 2).reshape(weight_gradient[0].shape)
        assert torch.allclose(made, weight_gradient[0], rtol=1e-10, atol=1e-12)


def test_taps_see_what_the_convolution_sees():
    draws = torch.Generator().manual_seed(0)
    inputs = torch.rand(2, 3, 7, 6, generator=draws)
    for padding, size, step in [("same", (3, 4), (1, 2)), ("valid", 3, 1), ((1, 2), (2, 3), 1)]:
        conv = nn.Conv2d(3, 5, size, padding=padding, dilation=step, bias=False)
        weight = conv.weight.detach().flatten(2)  # (out, channels, taps)
        made = torch.einsum("oct,ktcp->kop", weight, taps(conv, inputs))
        assert torch.allclose(made, conv(inputs).flatten(2), atol=1e-5)


# -- how exact -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_peeling_finds_the_activations_of_single_images(batch, seed):
    update = gleak.fedsgd(gleak.build_model("convnet", batch, seed=seed), batch)
    peeled = peel(update, batch.label_counts)
    assert error(peeled.activations, truth_at(peeled, batch)) < 1e-4
    assert "enters Conv2d" in str(peeled)
    assert "MaxPool2d" in peeled.ended


def test_a_float64_gradient_gives_more_digits(batch):
    net = gleak.build_model("convnet", batch, seed=1).double()
    double = gleak.Batch(batch.images.double(), batch.labels, batch.class_names)
    peeled = peel(gleak.fedsgd(net, double), batch.label_counts)
    assert peeled.activations.dtype == torch.float64
    assert error(peeled.activations, truth_at(peeled, double)) < 1e-8


def test_tolerances_for_rounding_are_those_of_the_arithmetic():
    float32, float64, bfloat16 = (
        of_dtype(dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)
    )
    assert scaled(1e-6, float32) == 1e-6
    assert scaled(1e-6, bfloat16) == 1e-6  # what is rounded in the end was computed before
    assert scaled(1e-6, 1e-12) == pytest.approx(1e-6 * 1e-12 / float32)
    assert 1e-13 < scaled(1e-6, float64) < 1e-12


def test_peeling_with_noise_goes_as_far_as_the_features(batch):
    update = gleak.fedsgd(gleak.build_model("convnet", batch, width=16), batch)
    draws = torch.Generator().manual_seed(0)
    noisy = {
        name: g * (1 + 1e-3 * torch.randn(g.shape, generator=draws))
        for name, g in update.gradient.items()
    }
    noisy = dataclasses.replace(update, gradient=noisy)
    with pytest.raises(gleak.MissingKnowledge, match="no softmax fits"):
        peel(noisy, batch.label_counts)
    peeled = peel(dataclasses.replace(noisy, precision=1.5e-3), batch.label_counts)
    assert "misses its gradient by" in peeled.ended or "does not lead to" in peeled.ended
    assert error(peeled.activations, truth_at(peeled, batch)) < 1e-2


# -- networks with these layers -------------------------------------------------------------------

ACTIVATIONS = {
    "leaky": lambda x: F.leaky_relu(x, 0.2),
    "elu": F.elu,
    "softplus": F.softplus,
    "tanh": torch.tanh,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
    "gelu": F.gelu,
    "silu": F.silu,
    "hardswish": F.hardswish,
}


class Smooth(nn.Module):
    """Three convolutions, the first two at a stride, with an activation that can be inverted."""

    def __init__(self, activation, norms):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        widths = [3, 16, 32, 32]
        pairs = zip(widths, widths[1:], strict=False)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, stride=2 if a < 32 else 1) for a, b in pairs
        )
        self.norms = nn.ModuleList(
            uneven(nn.BatchNorm2d(width)) if norms else nn.Identity() for width in widths[1:]
        )
        self.fc = nn.Linear(32 * 4 * 4, 10)

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.activation(norm(conv(x)))
        return self.fc(x.flatten(1))


SURELY = ["leaky", "elu", "softplus", "tanh", "hardsigmoid"]  # with batch norm, too


@pytest.mark.parametrize(
    ("activation", "norms"),
    [(name, False) for name in ACTIVATIONS] + [(name, True) for name in SURELY],
)
def test_images_through_activations_that_can_be_inverted(activation, norms):
    batch = small([0])
    double = gleak.Batch(batch.images.double(), batch.labels, batch.class_names)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = Smooth(activation, norms).double()
    peeled = peel(gleak.fedsgd(net, double, training=False), batch.label_counts)
    assert peeled.is_image, peeled.ended
    assert error(peeled.activations, double.images) < 1e-4


@pytest.mark.parametrize("activation", ["relu6", "hardtanh", "gelu", "silu", "hardswish"])
def test_layers_that_hide_some_inputs_behind_batch_norm(activation):
    """Units on both bounds, and negative outputs of either of two inputs."""
    batch = small([0])
    double = gleak.Batch(batch.images.double(), batch.labels, batch.class_names)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = Smooth(activation, norms=True).double()
    peeled = peel(gleak.fedsgd(net, double, training=False), batch.label_counts)
    assert len(peeled.parameters) <= 8, peeled.ended  # the last of three convolutions, at least
    assert error(peeled.activations, truth_at(peeled, double)) < 1e-8


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "pad"])
def test_images_through_other_paddings(mode):
    batch = small([0])
    double = gleak.Batch(batch.images.double(), batch.labels, batch.class_names)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = []
        for a, b, stride in [(3, 16, 2), (16, 32, 2), (32, 32, 1)]:
            if mode == "pad":
                layers += [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(a, b, 3, stride)]
            else:
                layers += [nn.Conv2d(a, b, 3, stride, padding=1, padding_mode=mode)]
            layers += [nn.Tanh()]
        net = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(10)).double()
        net(double.images)
    peeled = peel(gleak.fedsgd(net, double), batch.label_counts)
    assert peeled.is_image, peeled.ended
    assert error(peeled.activations, double.images) < 1e-8


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_images_through_convolutions_in_groups(activation):
    batch = small([0, 1])
    double = gleak.Batch(batch.images.double(), batch.labels, batch.class_names)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = [nn.Conv2d(3, 32, 3, 2, 1), activation(), nn.Conv2d(32, 64, 3, 2, 1, groups=2)]
        layers += [activation(), nn.Conv2d(64, 64, 3, padding=1, groups=4), nn.BatchNorm2d(64)]
        net = nn.Sequential(*layers, activation(), nn.Flatten(), nn.Linear(1024, 10)).double()
    peeled = peel(gleak.fedsgd(net, double, training=False), batch.label_counts)
    assert peeled.is_image, peeled.ended
    assert error(peeled.activations, truth_at(peeled, double)) < 1e-8
    net[4] = nn.Conv2d(64, 64, 3, padding=1, groups=64).double()  # nine equations each
    peeled = peel(gleak.fedsgd(net, double, training=False), batch.label_counts)
    assert peeled.is_image == (activation is nn.Tanh)
    assert peeled.is_image or "equations for 32 unknowns of each channel" in peeled.ended


def test_norms_of_each_image_end_the_peeling():
    batch = small([0])
    for norm in (nn.GroupNorm(4, 16), nn.LayerNorm((16, 8, 8)), nn.InstanceNorm2d(16)):
        net = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), norm, nn.Tanh(), nn.Flatten(), nn.Linear(1024, 10)
        )
        ended = peel(gleak.fedsgd(net, batch), batch.label_counts).ended
        assert "mean and variance of each image" in ended


@pytest.mark.parametrize("order", ["norm first", "ReLU first"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_batch_norm_in_train_mode_in_a_chain(order, dtype):
    batch = small([0, 1, 3, 4])
    batch = gleak.Batch(batch.images.to(dtype), batch.labels, batch.class_names)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = []
        for a, b, stride in [(3, 32, 2), (32, 128, 2), (128, 64, 1)]:
            pair = [nn.BatchNorm2d(b), nn.ReLU()]
            pair = pair if order == "norm first" else pair[::-1]
            layers += [nn.Conv2d(a, b, 3, stride, 1), *pair]
        net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 10)).to(dtype)
    peeled = peel(gleak.fedsgd(net, batch), batch.label_counts)
    assert peeled.activations.shape == (4, 32, 8, 8)  # behind the first convolution
    assert "288 equations for 1024 unknowns" in peeled.ended
    bar = 1e-12 if dtype == torch.float64 else 1e-5
    assert error(peeled.activations, truth_at(peeled, batch)) < bar


@pytest.mark.parametrize("before", [False, True])
def test_batch_norm_before_and_behind_the_activation(before):
    batch = small([0, 1, 3])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = []
        for a, b in [(3, 16), (16, 32), (32, 32)]:
            pair = [uneven(nn.BatchNorm2d(b)), nn.ReLU()]
            layers += [nn.Conv2d(a, b, 3, padding=1), *(pair if before else pair[::-1])]
            layers += [nn.AvgPool2d(2)] if a < 32 else []
        net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 4 * 4, 10))
    update = gleak.fedsgd(net, batch, training=False)
    peeled = peel(update, batch.label_counts)
    assert error(peeled.activations, truth_at(peeled, batch)) < 1e-4
    assert peeled.activations.shape == (3, 32, 4, 4)
    assert peeled.place.startswith("what enters Conv2d")
    assert "hidden behind a pooling" in peeled.ended
    train = peel(gleak.fedsgd(net, batch), batch.label_counts)
    assert ("hides the scale" if before else "hidden behind a pooling") in train.ended
    assert error(train.activations, truth_at(train, batch)) < 1e-4


def test_the_slope_goes_through_average_pooling_to_a_convolution():
    batch = small([0, 1])
    double = gleak.Batch(batch.images.double(), batch.labels, batch.class_names)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, stride=2),
            nn.Tanh(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.AvgPool2d(2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 10),
        ).double()
    peeled = peel(gleak.fedsgd(net, double), batch.label_counts)
    assert peeled.parameters == () or len(peeled.parameters) == 2
    assert error(peeled.activations, truth_at(peeled, double)) < 1e-6


# -- images --------------------------------------------------------------------------------------


def test_inputs_of_linear_networks_come_back_exactly(tiny):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear = [nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5)]
    distinct = gleak.Batch(tiny.images, torch.tensor([2, 0, 3]), list("abcde"))
    repeated = gleak.Batch(tiny.images, torch.tensor([2, 0, 2]), list("abcde"))  # needs SPEAR
    for first in ([nn.Flatten()], [Normalise((0.5,), (0.25,)), nn.Flatten()]):
        for secret in (distinct, repeated):
            update = gleak.fedsgd(nn.Sequential(*first, *linear), secret)
            images = exact_images(update, secret.label_counts)
            found = (images[:, None] - secret.images[None]).abs().amax((2, 3, 4))
            assert found.min(0).values.max() < 1e-3  # every image is there, in some order


def test_spear_separates_eight_inputs():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(8, 100, generator=generator, dtype=torch.float64)
    slopes = torch.randn(8, 200, generator=generator, dtype=torch.float64)
    slopes *= torch.rand(8, 200, generator=generator) > 0.5
    found = spear(slopes.T @ inputs, slopes.sum(0), 8)
    distance = (found[:, None] - inputs[None]).abs().amax(2)
    assert distance.min(0).values.max() < 1e-3
    with pytest.raises(gleak.MissingKnowledge, match="rank 9"):
        spear(slopes.T @ inputs, slopes.sum(0), 9)


@pytest.mark.parametrize(
    ("name", "indices", "message"),
    [
        ("convnet", [0, 1, 3, 4], "peeling ends at what enters Conv2d"),
        ("residual", [0, 1, 3], "first layer is not linear"),
        ("convnet", [0] * 10, "fewer images than classes"),
    ],
)
def test_no_images_where_there_is_no_closed_form(name, indices, message):
    batch = small(indices)
    net = Late() if name == "residual" else gleak.build_model(name, batch)
    update = gleak.fedsgd(net, batch)
    with pytest.raises(gleak.MissingKnowledge, match=message):
        exact_images(update, batch.label_counts)


def test_one_image_of_a_smooth_network_comes_back(batch):
    one = gleak.Batch(batch.images[:1], batch.labels[:1], batch.class_names)
    update = gleak.fedsgd(gleak.build_model("lenet", one, seed=1), one)
    peeled = peel(update, one.label_counts)
    assert peeled.is_image and not peeled.ended and not peeled.parameters
    assert (peeled.activations - one.images).abs().max() < 5e-3
    assert torch.equal(peeled.trunk(one.images), one.images)
