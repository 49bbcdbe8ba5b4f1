"""The network that a server sends out: a copy that no pass changes, and where its classifier is."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth


@dataclass(frozen=True)
class Classifier:
    """The last linear layer, z = W o + b, with the features o in front of it.

    Parameters
    ----------
    name
        Of the layer in the model.
    weight : (N, M)
        W.
    bias : (N,) or None
        b, None for a layer without bias.
    """

    name: str
    weight: torch.Tensor  # (N, M)
    bias: torch.Tensor | None  # (N,)


def as_sent(model: nn.Module, training: bool) -> nn.Module:
    """A copy of the model as it stands, in train or eval mode, that no forward pass changes.

    Dropout is off in both modes: the study asks what a client's data gives away, not its dice.
    In train mode batch norm uses the batch's statistics and leaves the running ones alone.

    Parameters
    ----------
    model
        Any network.
    training
        Train mode, else eval mode.
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


def is_linear(module: nn.Module | None) -> bool:
    """Whether the layer may be a classifier: a Linear, or a 1x1 convolution that does as much at
    each position, so that the mean of its outputs is linear in the mean of its inputs.
    """
    if isinstance(module, nn.Conv2d):
        same = module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1
        return same and module.padding in (0, (0, 0), "same", "valid")
    return isinstance(module, nn.Linear)


def classifier_at(model: nn.Module, name: str) -> Classifier:
    """The classifier by the name of its layer.

    Parameters
    ----------
    model
        The network.
    name
        Of a linear layer, or of a 1x1 convolution (see `is_linear`).

    Raises
    ------
    ValueError
        Unless the layer is linear.
    """
    layer = dict(model.named_modules()).get(name)
    if not isinstance(layer, nn.Linear | nn.Conv2d) or not is_linear(layer):
        raise ValueError(f"the model has no linear layer {name!r} to classify with")
    bias = None if layer.bias is None else layer.bias.detach()
    return Classifier(name, layer.weight.detach().flatten(1), bias)


@dataclass(frozen=True)
class Taken:
    """A forward hook: of all tensors that a network returns, the one of this index alone."""

    index: int

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> torch.Tensor:
        return tensors_in(output)[self.index]


def tensors_in(output: Any) -> list[torch.Tensor]:
    """All tensors in a tensor, or in tuples, lists and mappings of any depth, in their order."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    if not isinstance(output, (tuple, list)):
        return []
    return [tensor for part in output for tensor in tensors_in(part)]


def find_classifier(model: nn.Module, input_shape: tuple[int, int, int]) -> Classifier:
    """The linear layer whose output is the model's output, found by a forward pass.

    The output may also be the log-softmax of the layer's, which has the same cross-entropy, or the
    mean over all positions of a 1x1 convolution. Of several outputs the first that is one of these
    is taken for the logits.

    Parameters
    ----------
    model
        The network.
    input_shape
        (C, H, W) of one image.

    Raises
    ------
    ValueError
        When the model cannot take the input, or does not end in a linear layer.

    Examples
    --------
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    >>> find_classifier(net, (1, 2, 2)).name
    '3'
    """
    return classifying(model, input_shape)[0]


def classifying(
    model: nn.Module, input_shape: tuple[int, int, int]
) -> tuple[Classifier, Taken | None]:
    """As `find_classifier`, with the hook that leaves a model of several outputs its logits alone.

    Parameters
    ----------
    model, input_shape
        As for `find_classifier`.

    Returns
    -------
    classifier : Classifier
        What `find_classifier` gives.
    hook : Taken or None
        With it a model of several outputs returns its logits alone; None for one that returns a
        tensor.

    Raises
    ------
    ValueError
        As `find_classifier`.
    """
    calls: list[tuple[str, torch.Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: calls.append((name, out)))
        for name, module in model.named_modules()
        if is_linear(module)
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
    for index, found in enumerate(tensors_in(output)):
        for name, made in reversed(calls):
            if gives_logits(made, found):
                alone = isinstance(output, torch.Tensor)
                return classifier_at(model, name), None if alone else Taken(index)
    linear = [name for name, made in calls if made.ndim == 2]
    if not linear:
        raise ValueError("the model has no Linear layer in its forward pass, so no classifier")
    if not isinstance(output, torch.Tensor):
        raise ValueError(
            f"the model's output is a {type(output).__name__}, not a tensor of logits, and no "
            "tensor (K, N) in it comes straight from a Linear layer"
        )
    raise ValueError(
        f"the model's output is not the output of its last Linear layer ({linear[-1]}); "
        "label restoration needs logits that come straight from a linear classifier"
    )


def gives_logits(made: torch.Tensor, found: torch.Tensor) -> bool:
    """Whether an output of the model is what a linear layer made, as far as cross-entropy sees."""
    if made is found:
        return found.ndim == 2
    if made.ndim == 4:
        made = made.mean((2, 3))
    if made.shape != found.shape or made.ndim != 2:
        return False
    same = (made, made.log_softmax(1))
    return any(torch.allclose(one, found, rtol=1e-4, atol=1e-6) for one in same)
