"""Vision transformers: what their patch embedding tells, by network, precision and local steps."""

import torch
import torchvision
from torch import nn

import gleak
from gleak.data import Batch
from gleak.inversion.closed import Patches, embedded_image
from gleak.models import NORMALISATION, Normalise
from gleak.update import GradientUpdate, Update

FORMATS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def transformer(
    channels: int,
    num_classes: int,
    size: int,
    patch: int = 16,
    width: int = 768,
    depth: int = 12,
) -> nn.Module:
    """torchvision's vision transformer; as it is, that with 16 pixels a patch is ViT-B/16.

    Its classifier is drawn, not zero: after zeros nothing but the classifier has a gradient.
    """
    net = torchvision.models.VisionTransformer(
        size, patch, depth, width // 64, width, 4 * width, num_classes=num_classes
    )
    if channels != 3:
        net.conv_proj = nn.Conv2d(channels, width, patch, patch)
    head = net.heads.get_submodule("head")
    nn.init.trunc_normal_(head.get_parameter("weight"), std=0.02)
    mean, std = NORMALISATION["imagenet"] if channels == 3 else ((0.5,), (0.25,))
    return nn.Sequential(Normalise(mean, std), net)


def network(model: str, batch: Batch, seed: int, patch: int, width: int, depth: int) -> nn.Module:
    """A network of this shape with weights drawn by the seed; model: as of `build_model`."""
    return gleak.build_model(model, batch, seed=seed, patch=patch, width=width, depth=depth)


def coarser(update: GradientUpdate, name: str) -> GradientUpdate:
    """The gradient rounded to a format of `FORMATS`."""
    return update.resent({key: part.to(FORMATS[name]) for key, part in update.gradient.items()})


def sent_as(net: nn.Module, batch: Batch, sent: str, steps: int, lr: float) -> Update:
    """What the client sends: a gradient in a format, or weights after so many local steps."""
    if sent == "weights":
        return gleak.fedavg(net, batch, epochs=steps, lr=lr)
    update = gleak.fedsgd(net, batch)
    return update if sent == "float32" else coarser(update, sent)


def train(net: nn.Module, others: Batch, steps: int, lr: float) -> None:
    """Train the network in place on other photographs: steps with all of them."""
    after = gleak.fedavg(net, others, epochs=steps, lr=lr).weights_after
    net.load_state_dict(dict(after), strict=False)


def scored(found: Patches, batch: Batch) -> dict[str, float | int | str]:
    """Scores of the image, and how many of its patches were told."""
    scores = gleak.score(found.image.clamp(0, 1).float(), batch.images)
    columns = ("psnr", "ssim", "thumb8", "mean_colour")
    return {
        "attack": "gleak",
        **{name: float(scores[name].iloc[0]) for name in columns},
        "patches": len(found.told),
        "told": int(found.restored.sum()),
        "conditioning": found.conditioning,
    }


def photograph_of(
    dataset: str,
    index: int,
    image_size: int,
    model: str,
    seed: int,
    depth: int,
    patch: int = 16,
    width: int = 768,
    sent: str = "float32",
    steps: int = 1,
    lr: float = 1e-3,
    trained: int = 0,
) -> dict[str, float | int | str]:
    """How one photograph comes back from a network of one shape.

    sent: a format of the gradient, or "weights" after `steps` local steps. trained: steps of the
    server before that, on four other photographs.
    """
    batch = gleak.load_batch(dataset, indices=[index], image_size=image_size)
    net = network(model, batch, seed, patch, width, depth)
    if trained:
        others = [index + number for number in range(1, 5)]
        train(net, gleak.load_batch(dataset, indices=others, image_size=image_size), trained, 0.01)
    found = embedded_image(sent_as(net, batch, sent, steps, lr))
    assert found is not None
    return scored(found, batch)


def refusal(net: nn.Module, batch: Batch) -> str:
    """What the closed form says of a batch that it cannot tell apart; empty where it can."""
    try:
        embedded_image(gleak.fedsgd(net, batch))
    except gleak.MissingKnowledge as error:
        return str(error)
    return ""
