"""How far a network can be peeled, by counting: equations against unknowns, without a gradient.

The weight gradient of a layer is linear in its input, once the slope behind it is known. A layer
with `out` outputs and t taps makes out x t equations for each channel of its input, whose unknowns
are the pixels there, times the images. Where they do not suffice, outputs that are known behind a
ReLU help; about half of them are active. Nothing else that the peeling uses tells more. So a layer
where both together are too few is out of reach of this way, however many digits were sent. Other
ways, which look at several layers at once, it does not bound.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from gleak.inversion.closed.chain import (
    Chain,
    NormBehind,
    NormedConv,
    ResidualBlock,
    Spread,
    trace,
)
from gleak.inversion.closed.layers import find_row
from gleak.inversion.closed.pooling import SPARE, conv_before
from gleak.network import as_sent

ACTIVE = 0.5  # of the outputs behind a ReLU, as of a distribution that is even about zero
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Counted:
    """What there is at one layer to find its input from, for each channel of that.

    index: of the layer in the chain. kind: of the layer, for people. shape: of one image's input.
    equations: of the weight gradient. outputs: what known outputs add to them, as expected.
    unknowns: in the whole batch. needed: so many times the unknowns must the equations be.
    """

    index: int
    kind: str
    shape: Shape
    equations: int
    outputs: float
    unknowns: int
    needed: float = 1.0

    @property
    def share(self) -> float:
        """Equations, known outputs with them, for each that is needed: 1 and more is enough."""
        return (self.equations + self.outputs) / (self.needed * self.unknowns)


def count_equations(
    model: nn.Module, input_shape: tuple[int, int, int], size: int, *, training: bool = True
) -> list[Counted]:
    """Equations and unknowns of a network's layers, in the order in which they are peeled.

    input_shape: (C, H, W) of the images. size: of the batch. training: the mode of the client.
    Only layers that need equations have a row, and those without a closed form, whose equations are
    none. Of a residual block each convolution has one.

    Raises MissingKnowledge as `trace`.

    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5))
    >>> for layer in count_equations(net, (1, 4, 4), 2):
    ...     print(layer.kind, layer.equations, layer.outputs, layer.unknowns)
    Linear 5 0.0 3
    Conv2d 72 32.0 32
    """
    chain = trace(as_sent(model, training).to("meta"), input_shape)  # shapes are enough
    return [row for at in reversed(range(len(chain.steps))) for row in at_step(chain, at, size)]


def ends_at(counted: list[Counted]) -> Counted | None:
    """Where the peeling ends by counting; None at the images.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5))
    >>> ends_at(count_equations(net, (1, 4, 4), 3)).kind
    'Conv2d'
    """
    return next((row for row in counted if row.share < 1), None)


def at_step(chain: Chain, index: int, size: int) -> Iterator[Counted]:
    """The rows of one layer of a chain, the last of its convolutions first."""
    step = chain.steps[index]
    layer, entering, leaving = step.layer, step.entering, step.leaving
    if isinstance(layer, nn.Linear) and index == len(chain.steps) - 1:
        # features and softmax are found together, as long as there are fewer images than classes
        yield Counted(index, step.kind, entering, len(layer.weight), 0.0, size + 1)
    elif isinstance(layer, nn.Conv2d | nn.Linear):
        share = ACTIVE if behind_bounds(chain, index) else 1.0
        yield Counted(index, step.kind, entering, *numbers(layer, entering, leaving, size, share))
    elif isinstance(layer, NormedConv | NormBehind):
        yield Counted(index, step.kind, entering, *numbers(layer.conv, entering, None, size))
    elif isinstance(layer, nn.MaxPool2d):
        yield at_pooling(chain, index, size)
    elif isinstance(layer, ResidualBlock):
        yield from at_block(chain, index, layer, size)
    elif find_row(layer) is None or hides(chain, index):
        yield Counted(index, step.kind, entering, 0, 0.0, size)


def behind_bounds(chain: Chain, index: int) -> bool:
    """Whether the outputs of a layer meet an activation that does not tell all of them."""
    for step in chain.steps[index + 1 :]:
        row = find_row(step.layer)
        if row is None or row.equations or row.whole:
            break
        if row.bounds or row.other:
            return True
    return False


def hides(chain: Chain, index: int) -> bool:
    """Whether a layer hides what entered it, and what is in front of it does not make up for it."""
    layer = chain.steps[index].layer
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        return layer.training or layer.running_mean is None
    if isinstance(layer, nn.AdaptiveAvgPool2d | nn.AvgPool2d) and not isinstance(layer, Spread):
        return not isinstance(chain.steps[index - 1].layer, ResidualBlock)
    return isinstance(layer, nn.GroupNorm | nn.LayerNorm | nn.InstanceNorm2d)


def numbers(
    layer: nn.Conv2d | nn.Linear,
    entering: Shape,
    leaving: Shape | None,
    size: int,
    share: float = ACTIVE,
) -> tuple[int, float, int]:
    """Equations, outputs and unknowns for each channel of a layer's input.

    leaving: shape of one image's output, None where outputs tell nothing. share: of them, known.
    """
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    channels, pixels = entering[0], torch.Size(entering[1:]).numel()
    equations = layer.get_parameter("weight")[:, 0].numel() // groups
    outputs = torch.Size(leaving or (0,)).numel() * size * share / channels
    if isinstance(layer, nn.Linear):
        outputs = 0.0
    return equations, outputs, size * pixels


def at_pooling(chain: Chain, index: int, size: int) -> Counted:
    """The row of a max-pooling: the convolution in front of it has to tell the places as well."""
    step = chain.steps[index]
    try:
        before = chain.steps[conv_before(chain.steps, index)]
    except ArithmeticError:
        return Counted(index, step.kind, step.entering, 0, 0.0, size)
    assert isinstance(before.layer, nn.Conv2d)
    equations, _, unknowns = numbers(before.layer, before.entering, None, size)
    return Counted(index, step.kind, before.entering, equations, 0.0, unknowns, SPARE)


def at_block(chain: Chain, index: int, block: ResidualBlock, size: int) -> Iterator[Counted]:
    """The rows of a residual block, the last convolution first; the first one and the shortcut's
    share their input, and so a row.

    Behind the last block a pooling hides its output. Its last convolution gives the patches of its
    input in their place, which must be independent: at most as many as there are outputs. With one
    tap they do not overlap, and batch norm in train mode then mixes them for good.
    """
    step = chain.steps[index]
    training = block.branch[0][1].training
    shapes = [step.entering]
    with torch.no_grad():
        for conv, _ in block.branch:
            shapes.append(tuple(conv(conv.weight.new_zeros(1, *shapes[-1])).shape[1:]))
    last = index + 1 < len(chain.steps) and isinstance(
        chain.steps[index + 1].layer, nn.AdaptiveAvgPool2d
    )
    for number in reversed(range(len(block.branch))):
        conv, (entering, leaving) = block.branch[number][0], shapes[number : number + 2]
        kind = f"{step.kind}, convolution {number + 1}"
        if last and number == len(block.branch) - 1:
            positions = size * leaving[1] * leaving[2] - training
            mixed = training and conv.kernel_size == (1, 1)
            each = 0 if mixed else leaving[0]
            yield Counted(index, f"{kind}, patches", entering, each, 0.0, positions)
        hidden = training or (last and number == len(block.branch) - 1)
        equations, outputs, unknowns = numbers(conv, entering, None if hidden else leaving, size)
        if number == 0 and block.short:
            more = numbers(block.short[0], entering, None if hidden or last else leaving, size)
            equations, outputs = equations + more[0], outputs + more[1]
        elif number == 0 and not hidden and not last:
            outputs += ACTIVE * unknowns  # less the branch, the output is the input
        yield Counted(index, kind, entering, equations, outputs, unknowns)
