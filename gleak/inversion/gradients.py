"""What a client with these images and labels would send: gradients that can be differentiated."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

Tensors = Sequence[torch.Tensor]
Weights = dict[str, torch.Tensor]
# (weights, names, images, labels) -> the loss's gradient by the weights of these names
GradientOf = Callable[[Weights, Sequence[str], torch.Tensor, torch.Tensor], Tensors]


class Formulas(TorchFunctionMode):
    """Hard sigmoids and hard swishes by formulas, as torch has no second derivative of its own.

    seen: whether there were any.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function not in HARD:
            return function(*args, **(kwargs or {}))
        self.seen = True
        gate = F.relu6(args[0] + 3) / 6
        return gate if function in HARD_SIGMOID else args[0] * gate


HARD_SIGMOID = {F.hardsigmoid, torch._C._nn.hardsigmoid, torch._C._nn.hardsigmoid_}
HARD = HARD_SIGMOID | {F.hardswish, torch._C._nn.hardswish, torch._C._nn.hardswish_}


@contextmanager
def twice_differentiable(model: nn.Module, images: torch.Tensor) -> Iterator[None]:
    """Within it the model's gradient can be differentiated where torch has other kernels for that:
    attention is computed by its formula, not fused, and see `Formulas`.

    images: any (K, C, H, W) that the model takes, to see what it is made of.
    """
    formulas = Formulas()
    with torch.no_grad(), formulas:
        model(images)
    with sdpa_kernel(SDPBackend.MATH), formulas if formulas.seen else nullcontext():
        yield


def local_gradient(
    model: nn.Module,
    weights: Weights,
    names: Sequence[str],
    images: torch.Tensor,
    labels: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """The gradient, by the weights of these names, of the mean cross-entropy at these weights.

    images: (K, C, H, W); labels: classes (K,), or (K, N) of soft ones. Through autograd, and
    differentiable again.

    >>> model = nn.Linear(2, 2, bias=False)
    >>> weights = {"weight": torch.zeros(2, 2)}
    >>> images, labels = torch.tensor([[1.0, 2.0]]), torch.tensor([1])
    >>> local_gradient(model, weights, ["weight"], images, labels)[0].tolist()
    [[0.5, 1.0], [-0.5, -1.0]]
    """
    wanted = [weights[name] for name in names]
    wanted = [w if w.requires_grad else w.detach().requires_grad_() for w in wanted]
    weights = weights | dict(zip(names, wanted, strict=True))
    loss = F.cross_entropy(functional_call(model, weights, (images,)), labels)
    return torch.autograd.grad(loss, wanted, create_graph=True, materialize_grads=True)


def functional_gradient(
    model: nn.Module,
    weights: Weights,
    names: Sequence[str],
    images: torch.Tensor,
    labels: torch.Tensor,
) -> list[torch.Tensor]:
    """The same through torch.func, which torch.compile can follow."""

    def loss_of(wanted: Weights) -> torch.Tensor:
        return F.cross_entropy(functional_call(model, weights | wanted, (images,)), labels)

    return list(torch.func.grad(loss_of)({name: weights[name] for name in names}).values())


def simulate(
    model: nn.Module, parameters: Tensors, images: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The gradient that a client with these images and labels would send, differentiable.

    >>> model = nn.Linear(2, 2)
    >>> images, labels = torch.ones(1, 2, requires_grad=True), torch.tensor([0])
    >>> weight, bias = simulate(model, list(model.parameters()), images, labels)
    >>> torch.allclose(weight, bias[:, None] * images)
    True
    """
    loss = F.cross_entropy(model(images), labels)
    return torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)


def checkpointed(
    gradient: GradientOf, weights: Weights, images: torch.Tensor, labels: torch.Tensor
) -> list[torch.Tensor]:
    """gradient(weights, all names, images, labels), without keeping what led to it in memory."""
    names = list(weights)
    return list(Recomputed.apply(gradient, names, images, labels, *weights.values()))


class Recomputed(torch.autograd.Function):
    """A gradient whose own derivative is found by computing it once more, when it is asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        gradient: GradientOf,
        names: Sequence[str],
        images: torch.Tensor,
        labels: torch.Tensor,
        *weights: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        ctx.gradient, ctx.names = gradient, names
        ctx.save_for_backward(images, labels, *weights)
        with torch.enable_grad():
            leaves = {
                name: weight.detach().requires_grad_()
                for name, weight in zip(names, weights, strict=True)
            }
            found = gradient(leaves, names, images.detach(), labels.detach())
        return tuple(tensor.detach() for tensor in found)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        inputs = [
            tensor.detach().requires_grad_(need)
            for tensor, need in zip(ctx.saved_tensors, needed, strict=True)
        ]
        images, labels, *weights = inputs
        with torch.enable_grad():
            leaves = {
                name: weight if weight.requires_grad else weight.requires_grad_()
                for name, weight in zip(ctx.names, weights, strict=True)
            }
            found = ctx.gradient(leaves, ctx.names, images, labels)
            inner = sum((f * slope).sum() for f, slope in zip(found, slopes, strict=True))
        asked = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
        given = iter(torch.autograd.grad(inner, asked, materialize_grads=True))
        return None, None, *(next(given) if need else None for need in needed)
