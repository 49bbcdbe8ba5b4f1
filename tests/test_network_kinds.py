"""Nine kinds of networks that people bring along, from a server's files to a report.

Each is attacked, or refused in a sentence that says what to do.
"""

import json
from functools import partial

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from gleak.study.attack import attack
from gleak.study.served import read_update

SHAPE, CLASSES = (3, 32, 32), 5


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 5, stride=3), nn.Linear(800, CLASSES)

    def forward(self, images):
        return self.fc(torch.relu(self.conv(images)).flatten(1))


def sequential():
    layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(200, 16), nn.ReLU(), nn.Linear(16, CLASSES))


class OwnResNet(torchvision.models.ResNet):
    def __init__(self):
        super().__init__(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], CLASSES)

    def forward(self, images):
        return super().forward(2 * images - 1)


def vgg():
    layers = torchvision.models.vgg.make_layers([8, "M", 16, "M"])
    net = torchvision.models.VGG(layers, CLASSES, init_weights=False, dropout=0.5)
    net.classifier[0] = nn.Linear(16 * 49, 32)
    net.classifier[3], net.classifier[6] = nn.Linear(32, 32), nn.Linear(32, CLASSES)
    return net


def densenet():
    return torchvision.models.DenseNet(4, (2, 2), 8, num_classes=CLASSES)


def mobilenet():
    return torchvision.models.mobilenet_v3_small(width_mult=0.25, num_classes=CLASSES)


def transformer():
    return torchvision.models.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=CLASSES)


class TwoHeads(Plain):
    def __init__(self):
        super().__init__()
        self.turned = nn.Linear(800, 4)

    def forward(self, images):
        features = torch.tanh(self.conv(images)).flatten(1)
        return {"class": self.fc(features), "turned": self.turned(features)}


class ByConvolution(nn.Module):
    """No Linear, but the mean of a 1x1 convolution is one."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 16, 5, 3), nn.Conv2d(16, CLASSES, 1)

    def forward(self, images):
        return self.fc(torch.relu(self.conv(images))).mean((2, 3))


class WithoutLinear(ByConvolution):
    """The convolutions that end it have no classifier in them."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Conv2d(16, CLASSES, 3)


KINDS = {
    "plain": Plain,
    "sequential": sequential,
    "resnet": OwnResNet,
    "vgg": vgg,
    "densenet": densenet,
    "mobilenet": mobilenet,
    "transformer": transformer,
    "two_heads": TwoHeads,
    "by_convolution": ByConvolution,
    "without_linear": WithoutLinear,
}
REFUSED = {"without_linear": "no Linear layer in its forward pass, so no classifier"}


def network(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return KINDS[kind]()


# what module:test_network_kinds:make_NAME finds
globals().update({f"make_{kind}": partial(network, kind) for kind in KINDS})


@pytest.fixture
def images():
    return torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_is_attacked_or_refused(kind, images, tmp_path):
    net, labels = network(kind).eval(), torch.tensor([3, 1])
    made = net(images)
    F.cross_entropy(made["class"] if kind == "two_heads" else made, labels).backward()
    gradient = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    save_file(net.state_dict(), tmp_path / "before.safetensors")
    torch.save(gradient, tmp_path / "gradient.pt")

    def read():
        return read_update(
            f"module:test_network_kinds:make_{kind}",
            SHAPE,
            before=tmp_path / "before.safetensors",
            gradient=tmp_path / "gradient.pt",
            training=False,
            samples=2 if kind == "vgg" else None,  # its two images are nearly the same to it
        )

    if kind in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[kind]):
            read()
        return
    found = read()
    assert found.update.num_samples == 2 and (found.samples_known == "told") == (kind == "vgg")
    assert ("dropout" in str(found.assumed)) == (kind in ("vgg", "mobilenet"))
    assert ("several outputs" in str(found.assumed)) == (kind == "two_heads")
    report = attack(found, tmp_path / "out", iterations=4, progress=False)
    facts = json.loads((tmp_path / "out" / "report.json").read_text())
    counts = {row["class"]: row["count"] for row in facts["labels"]["counts"] if row["count"]}
    assert counts == {1: 1, 3: 1}, kind
    assert facts["images"]["labels"] == [1, 3]
    assert facts["images"]["way"] and facts["images"]["finished"]
    assert report.images.shape == images.shape and report.images.isfinite().all()
    assert (tmp_path / "out" / "index.html").read_text().count("<img ") == 2
