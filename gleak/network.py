"""The network that a server sends out: a copy that no pass changes, and where its classifier is."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth


@dataclass(frozen=True)
class Classifier:
    """The last linear layer, z = W o + b, with the features o in front of it."""

    name: str
    weight: torch.Tensor  # (N, M)
    bias: torch.Tensor | None  # (N,)


def as_sent(model: nn.Module, training: bool) -> nn.Module:
    """A copy of the model as it stands, in train or eval mode, that no forward pass changes.

    Dropout is off in both modes: the study asks what a client's data gives away, not its dice.
    In train mode batch norm uses the batch's statistics and leaves the running ones alone.
    """
    model = copy.deepcopy(model).train(training)
    model.zero_grad(set_to_none=True)
    for module in model.modules():
        if is_dropout(module):
            module.eval()
        if isinstance(module, _BatchNorm) and training:
            module.track_running_stats = False
    return model


def is_dropout(module: nn.Module) -> bool:
    """Whether the layer drops something at random while training."""
    return isinstance(module, (_DropoutNd, StochasticDepth))


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Name -> layer of batch norm."""
    return {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}


def mixes_samples(model: nn.Module) -> bool:
    """Whether an image's logits depend on the others in its batch: batch norm in train mode."""
    return model.training and bool(batch_norms(model))


def batch_norm_mode(model: nn.Module) -> str:
    """In words: which statistics the batch norm layers used, if there are any."""
    if not batch_norms(model):
        return "none in this model"
    return "the batch's own statistics" if model.training else "the running statistics"


def classifier_at(model: nn.Module, name: str) -> Classifier:
    """The classifier by the name of its layer; ValueError unless that is a linear layer."""
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        layer = None
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"the model has no linear layer {name!r} to classify with")
    bias = None if layer.bias is None else layer.bias.detach()
    return Classifier(name, layer.weight.detach(), bias)


def find_classifier(model: nn.Module, input_shape: tuple[int, int, int]) -> Classifier:
    """The linear layer whose output is the model's output, found by a forward pass.

    Raises ValueError when the model cannot take the input, or does not end in a linear layer.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    >>> find_classifier(net, (1, 2, 2)).name
    '3'
    """
    calls: list[tuple[str, Any]] = []
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: calls.append((name, out)))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            # two images, since batch norm over single values takes no batch of one
            output = model(torch.full((2, *input_shape), 0.5).to(next(model.parameters())))
    except (RuntimeError, ValueError, AssertionError) as error:
        shape = "x".join(map(str, input_shape))
        raise ValueError(f"the model does not take images of shape {shape}: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(output, torch.Tensor):
        raise ValueError(f"the model's output is a {type(output).__name__}, not a tensor of logits")
    if not calls:
        raise ValueError("the model has no Linear layer in its forward pass, so no classifier")
    name, logits = calls[-1]
    if logits is not output and not torch.equal(logits, output):
        raise ValueError(
            f"the model's output is not the output of its last Linear layer ({name}); "
            "label restoration needs logits that come straight from a linear classifier"
        )
    return classifier_at(model, name)
