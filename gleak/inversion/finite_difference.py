"""The derivative of a gradient by the images, from two first derivatives.

Matching gradients needs d<v, g(x, W)>/dx, where g = dL/dW and v is the slope of the distance. As
the order of derivatives does not matter, that is how dL/dx changes when the weights move along v:

    (dL/dx (x, W + e v) - dL/dx (x, W)) / e,    e small.

The first pass gives g as well. Together they cost 5 convolutions for each layer, in place of 7 for
differentiating the gradient, and no graph of a gradient is held in memory. The error is of the
order of e and of rounding / e. Units of ReLU and max-pooling that switch between W and W + e v
would add jumps divided by e, so the second pass keeps the pieces of the first, as autograd does.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gleak.inversion.gradients import Tensors, Weights, local_gradient
from gleak.inversion.update_models import start_of
from gleak.update import Update

Inputs = Sequence[Tensor]  # images, labels and weights
# (names of weights, inputs, indices of inputs, pieces) -> slopes by those inputs, and the pieces
Slopes = Callable[..., tuple[dict[int, Tensor], list]]

STEP = 0.1  # e |v| / |W| in square roots of the rounding error: 3e-5 in float32
WRONG = 0.05  # relative error of the difference at which the exact derivative is taken instead


def differenced_gradient(
    slopes: Slopes, weights: Weights, names: Sequence[str], images: Tensor, labels: Tensor
) -> tuple[Tensor, ...]:
    """`local_gradient` whose own derivative is a difference; it cannot be differentiated twice.

    slopes: `slopes` or `functional_slopes`, with their model.
    """
    return Differenced.apply(slopes, list(weights), names, images, labels, *weights.values())


class Differenced(torch.autograd.Function):
    """Images, labels and weights -> the gradient of the loss by the weights of these names."""

    @staticmethod
    def forward(
        ctx: Any, slopes: Slopes, known: Sequence[str], names: Sequence[str], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.slopes, ctx.known, ctx.names = slopes, known, names
        ctx.needed = [i for i, needed in enumerate(ctx.needs_input_grad[3:]) if needed]
        wanted = [2 + known.index(name) for name in names]
        found, ctx.pieces = slopes(known, inputs, sorted({*wanted, *ctx.needed}), [])
        # outputs among them: as attributes of ctx they would keep it alive for ever
        ctx.save_for_backward(*inputs, *(found[i] for i in ctx.needed))
        return tuple(found[i] for i in wanted)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *direction: Tensor) -> tuple[Tensor | None, ...]:
        given = 2 + len(ctx.known)
        images, labels, *weights = ctx.saved_tensors[:given]
        weights = dict(zip(ctx.known, weights, strict=True))
        moving = [weights[name] for name in ctx.names]
        step = STEP * torch.finfo(moving[0].dtype).eps ** 0.5
        size = step * norm(moving) / norm(direction).clamp_min(1e-30)
        moved = torch._foreach_add(moving, torch._foreach_mul(direction, size))
        inputs = (images, labels, *(weights | dict(zip(ctx.names, moved, strict=True))).values())
        there, _ = ctx.slopes(ctx.known, inputs, ctx.needed, ctx.pieces)
        changes: list[Tensor | None] = [None] * len(inputs)
        for i, here in zip(ctx.needed, ctx.saved_tensors[given:], strict=True):
            changes[i] = (there[i] - here) / size
        return None, None, None, *changes


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """Of all values of several tensors.

    >>> norm([torch.tensor([3.0]), torch.tensor([[4.0]])]).item()
    5.0
    """
    return torch.stack(torch._foreach_norm(list(tensors))).norm()


def slopes(
    model: nn.Module, known: Sequence[str], inputs: Inputs, which: Sequence[int], pieces: list
) -> tuple[dict[int, Tensor], list]:
    """Derivatives of the mean cross-entropy by some of the inputs, and the pieces of the units.

    known: names of the weights; inputs: images, labels and these weights; which: indices of inputs.
    pieces: those to be held on to; empty for the ones that these inputs lead to.
    """
    leaves = [tensor.detach() for tensor in inputs]
    for i in which:
        leaves[i].requires_grad_()
    with torch.enable_grad():
        loss, pieces = loss_and_pieces(model, known, leaves, pieces)
    found = torch.autograd.grad(loss, [leaves[i] for i in which], materialize_grads=True)
    return dict(zip(which, found, strict=True)), pieces


def functional_slopes(
    model: nn.Module, known: Sequence[str], inputs: Inputs, which: Sequence[int], pieces: list
) -> tuple[dict[int, Tensor], list]:
    """The same through torch.func, which torch.compile can follow."""

    def loss_of(moving: dict[int, Tensor]) -> tuple[Tensor, list]:
        return loss_and_pieces(model, known, [*(numbered | moving).values()], pieces)

    numbered = dict(enumerate(inputs))
    return torch.func.grad(loss_of, has_aux=True)({i: numbered[i] for i in which})


def loss_and_pieces(
    model: nn.Module, known: Sequence[str], inputs: Inputs, pieces: list
) -> tuple[Tensor, list]:
    """The mean cross-entropy, and the pieces that the units were on."""
    images, labels, *weights = inputs
    kept = Pieces(pieces)
    with kept:
        answers = functional_call(model, dict(zip(known, weights, strict=True)), (images,))
        loss = F.cross_entropy(answers, labels)
    return loss, kept.pieces


class Pieces(TorchFunctionMode):
    """Notes which piece of ReLU and max-pooling each unit is on, or holds it to those given."""

    def __init__(self, given: list):
        super().__init__()
        self.given = list(given)
        self.pieces: list = []

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in RELU:
            return self.relu(args[0])
        if function in CLIPPED:
            return self.clipped(function, *args, **kwargs)
        if function in MAX_POOL:
            return self.max_pool(*args, **{k: v for k, v in kwargs.items() if k in POOL_SETTINGS})
        return function(*args, **kwargs)

    def relu(self, inputs: Tensor) -> Tensor:
        if self.given:
            return inputs * self.given.pop(0)
        outputs = torch.relu(inputs)
        self.pieces.append((outputs > 0).to(outputs.dtype))
        return outputs

    def clipped(self, function: Callable, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What passes some inputs on and gives a constant for the others."""
        if self.given:
            passes, constant = self.given.pop(0)
            return inputs * passes + constant
        outputs = function(inputs.clone(), *args, **kwargs)  # which may work in place
        passes = (outputs == inputs).to(outputs.dtype)
        self.pieces.append((passes, outputs.detach() * (1 - passes)))
        return outputs

    def max_pool(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.given:
            where = self.given.pop(0)
            return inputs.flatten(2).gather(2, where.flatten(2)).view_as(where)
        outputs, where = F.max_pool2d(inputs, *args, **kwargs, return_indices=True)
        self.pieces.append(where)
        return outputs


RELU = {torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_, F.relu}
CLIPPED = {F.relu6, F.hardtanh, torch.clamp, torch.Tensor.clamp}
MAX_POOL = {torch.max_pool2d, F.max_pool2d}
POOL_SETTINGS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


def difference_fits(
    update: Update,
    observed: Weights,
    labels: Tensor,
    distance: Callable[[Tensors, Tensors], Tensor],
) -> bool:
    """Whether the difference comes near the exact derivative, for two images of noise.

    observed: name -> gradient, to which the distance is taken. It fails where a network has kinks
    that `Pieces` does not know, and where rounding drowns the difference.
    """
    weights, labels = start_of(update), labels[:2]
    draws = torch.Generator().manual_seed(0)
    noise = torch.rand(len(labels), *update.input_shape, generator=draws)
    ways = (
        partial(local_gradient, update.model),
        partial(differenced_gradient, partial(slopes, update.model)),
    )
    found = []
    for gradient in ways:
        images = noise.to(update.classifier.weight).requires_grad_()
        simulated = gradient(weights, list(observed), images, labels)
        away = distance(simulated, list(observed.values()))
        found.append(torch.autograd.grad(away, images)[0])
    exact, difference = found
    return bool((difference - exact).norm() <= WRONG * exact.norm())
