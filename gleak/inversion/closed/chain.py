"""A network as a chain of layers, in the order in which it runs.

torch.fx traces the network once. So it does not matter how it was written: as a Sequential, as a
class with a `forward`, with functions such as `F.relu` or methods such as `.flatten(1)`, or as a
subclass with a forward pass of its own. A layer of the chain lies between two places that all data
pass. Where a network branches, that is more than one layer of the network: a residual block is
recognised by its graph, and becomes one layer.
"""

import copy
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules import padding

from gleak.inversion.closed.graph import Traced, function_of, traced
from gleak.network import is_dropout
from gleak.update import MissingKnowledge

PADS = (
    padding._ConstantPadNd,
    padding._ReflectionPadNd,
    padding._ReplicationPadNd,
    padding._CircularPadNd,
)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
NORMED = [nn.Conv2d, nn.BatchNorm2d]
POINTWISE: dict[str, type[nn.Module]] = {  # functions by name, with the arguments of their layers
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": nn.Hardtanh,
    "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


Normed = tuple[nn.Conv2d, nn.BatchNorm2d]  # a convolution and the batch norm behind it


class Reshape(nn.Module):
    """The same values of each image in another shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Values (K, ...) as (K, *shape)."""
        return values.reshape(len(values), *self.shape)


class Pad(nn.Module):
    """A border around each image.

    sides: how many pixels in front of and behind each dimension, the last dimension first.
    mode: where the border's values come from, as of `F.pad`: "constant", "reflect", "replicate" or
    "circular". value: of a constant border.
    """

    def __init__(self, sides: Sequence[int], mode: str = "constant", value: float = 0.0) -> None:
        super().__init__()
        self.sides, self.mode, self.value = tuple(sides), mode, value

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(K, C, H, W) with the border."""
        value = self.value if self.mode == "constant" else None
        return F.pad(values, self.sides, self.mode, value)


class Spread(nn.AdaptiveAvgPool2d):
    """An average pooling to as many places as there were, or more, as VGG has it for small images.

    Each output is the mean of a few neighbours; together they tell the input.
    """


class ResidualBlock(nn.Module):
    """A residual block as He et al. (2016) have it, however it was written.

    Convolutions, each with batch norm behind it and ReLU between them; the sum with what entered,
    or with a convolution and batch norm of that; and a ReLU. Two convolutions make the block of
    ResNet-18 and ResNet-34, three the bottleneck of ResNet-50 and larger ones.
    """

    def __init__(self, branch: Sequence[Normed], short: Normed | None = None) -> None:
        super().__init__()
        self.branch, self.short = tuple(branch), short
        every = [*branch, *([short] if short else [])]
        self.held = nn.ModuleList([layer for pair in every for layer in pair])

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(K, C, H, W) to (K, C', H', W')."""
        branch = values
        for i, (conv, norm) in enumerate(self.branch):
            branch = norm(conv(branch.relu() if i else branch))
        if self.short:
            conv, norm = self.short
            values = norm(conv(values))
        return (branch + values).relu()


class NormedConv(nn.Module):
    """A convolution, batch norm in train mode and ReLU: they are solved as one."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(K, C, H, W) to (K, C', H', W')."""
        return self.norm(self.conv(values)).relu()


class NormBehind(nn.Module):
    """A convolution, ReLU and batch norm in train mode behind it: they are solved as one."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(K, C, H, W) to (K, C', H', W')."""
        return self.norm(self.conv(values).relu())


class Unknown(nn.Module):
    """Stands for a layer that is not understood."""


@dataclass(frozen=True, eq=False)
class Step:
    """One layer of a chain.

    layer: a module that does what the network does here, `Unknown` where that is not understood.
    kind: of the layer, for people.
    entering, leaving: shapes of one image's values.
    node: of the graph, whose value leaves the layer.
    unknown: why the layer is not understood, where more can be said than its kind.
    """

    layer: nn.Module
    kind: str
    entering: tuple[int, ...]
    leaving: tuple[int, ...]
    node: fx.Node
    unknown: str = ""


@dataclass(frozen=True, eq=False)
class Chain:
    """The steps of a model, the classifier last, and the graph that they were found in."""

    model: nn.Module
    graph: fx.Graph
    steps: tuple[Step, ...]

    def trunk(self, depth: int) -> fx.GraphModule:
        """The network up to what enters step `depth`, with the model's own layers and names."""
        end = self.steps[depth - 1].node if depth else next(iter(self.graph.nodes))
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        for node in self.graph.nodes:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            if node is end:
                break
        graph.output(copies[end])
        return fx.GraphModule(self.model, graph)

    @torch.no_grad()
    def values(self, depth: int, images: torch.Tensor) -> torch.Tensor:
        """What enters step `depth` for images (K, C, H, W), in float64."""
        return self.trunk(depth)(images).double()

    def has_before(self, depth: int, *kinds: type[nn.Module]) -> bool:
        """Whether a layer of these kinds lies in front of step `depth`."""
        return any(isinstance(step.layer, kinds) for step in self.steps[:depth])


def trace(model: nn.Module, input_shape: tuple[int, ...]) -> Chain:
    """The chain of a model that takes images of this shape (C, H, W).

    Raises MissingKnowledge for a network that cannot be traced, and for one that does not end in a
    linear layer. What branches otherwise than as a residual block is one step, not understood.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    >>> [step.kind for step in trace(net, (1, 4, 4)).steps]
    ['Conv2d', 'ReLU', 'Flatten', 'Linear']
    """
    net = traced(model, input_shape)
    steps, parts = [], net.parts()
    while parts:
        part = parts.pop(0)
        steps.append(single(net, *part) if len(part) == 2 else branched(net, part, parts))
    if not steps or not isinstance(steps[-1].layer, nn.Linear):
        raise MissingKnowledge(
            "peeling needs a network that ends in a linear layer; this one ends in "
            + (steps[-1].kind if steps else "nothing")
        )
    return Chain(net.model, net.graph, tuple(with_norms(steps)))


def with_norms(steps: list[Step]) -> list[Step]:
    """The steps, those with batch norm in train mode together with the layers that it needs."""
    found: list[Step] = []
    for step in steps:
        found.append(step)
        conv, *rest = [last.layer for last in found[-3:]]
        whole: nn.Module | None = None
        if len(rest) < 2 or not plain_conv(conv):
            continue
        if norm_of_batch(rest[0]) and isinstance(rest[1], nn.ReLU):
            whole = NormedConv(conv, rest[0])
        elif isinstance(rest[0], nn.ReLU) and norm_of_batch(rest[1]):
            whole = NormBehind(conv, rest[1])
        if whole:
            kind = ", ".join(last.kind for last in found[-3:])
            found[-3:] = [replace(step, layer=whole, kind=kind, entering=found[-3].entering)]
    return found


def norm_of_batch(layer: nn.Module | None) -> TypeGuard[nn.BatchNorm2d]:
    """Whether the layer is a batch norm in train mode, with parameters."""
    return isinstance(layer, nn.BatchNorm2d) and layer.training and has_all(layer)


def has_all(norm: nn.BatchNorm2d) -> bool:
    """Whether a batch norm has parameters and running statistics."""
    return norm.affine and norm.running_mean is not None


def plain_conv(layer: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Whether the layer is a convolution in one group, padded with zeros."""
    return isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"


def branched(net: Traced, part: list[fx.Node], rest: list[list[fx.Node]]) -> Step:
    """The step of a part that branches, together with the ReLU that follows in a residual block.

    Takes that ReLU off the `rest` of the parts.
    """
    entering, leaving = net.shapes[part[0]][1:], net.shapes[part[-1]][1:]
    block = residual_block(net, part)
    if block and rest and len(rest[0]) == 2:
        after = single(net, *rest[0])
        if isinstance(after.layer, nn.ReLU):
            rest.pop(0)
            kind = "BasicBlock" if len(block.branch) == 2 else "Bottleneck"
            return Step(block, kind, entering, leaving, after.node)
    module = net.innermost(part[1:])
    unknown = "it branches" if any(True for _ in module.children()) else ""
    return Step(Unknown(), type(module).__name__, entering, leaving, part[-1], unknown)


def residual_block(net: Traced, part: list[fx.Node]) -> ResidualBlock | None:
    """The residual block that is this part up to its sum, or None."""
    start, total = part[0], part[-1]
    if function_of(total) != "add" or len(total.args) != 2 or total.kwargs:
        return None
    branches: list[list[nn.Module]] = []
    for end in total.args:
        branches.append([])
        node = end if isinstance(end, fx.Node) else total
        while node is not start:
            sources = net.sources(node)
            if len(sources) != 1:  # as of the sum itself
                return None
            layer = single(net, sources[0], node).layer
            if not isinstance(layer, nn.Identity):
                branches[-1].insert(0, layer)
            node = sources[0]
    short, long = sorted(branches, key=len)
    number = (len(long) + 1) // 3
    if number < 2 or [type(layer) for layer in long] != [*NORMED, nn.ReLU] * (number - 1) + NORMED:
        return None
    if short and [type(layer) for layer in short] != NORMED:
        return None
    convs = [layer for layer in (*long, *short) if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in (*long, *short) if isinstance(layer, nn.BatchNorm2d)]
    if not all(map(plain_conv, convs)) or not all(map(has_all, norms)):
        return None
    pairs = list(zip(convs, norms, strict=True))
    return ResidualBlock(pairs[:number], *pairs[number:])


def single(net: Traced, before: fx.Node, node: fx.Node) -> Step:
    """The step of one node, with a layer of torch's where it is understood."""
    entering, leaving = net.shapes[before][1:], net.shapes[node][1:]
    same_images = net.shapes[before][:1] == net.shapes[node][:1]
    if node.op == "call_module":
        layer, kind, unknown = module_layer(net, str(node.target), entering, leaving)
    else:
        layer, unknown = function_layer(net, node, entering, leaving), ""
        kind = type(layer).__name__ if layer else function_of(node) or node.op
    if layer is None or not same_images:
        layer = Unknown()
    return Step(layer, kind, entering, leaving, node, unknown)


def module_layer(
    net: Traced, name: str, entering: tuple[int, ...], leaving: tuple[int, ...]
) -> tuple[nn.Module | None, str, str]:
    """The layer, its kind and what is unknown of it, for a module of the model by name."""
    module = net.model.get_submodule(name)
    kind, unknown = type(module).__name__, net.untraced.get(name, "")
    if unknown and any(True for _ in module.children()):
        raise MissingKnowledge(
            f"peeling needs a network that torch.fx can trace; it cannot trace {name}, a {kind}: "
            f"{unknown}"
        )
    if unknown:
        return None, kind, f"it cannot be traced: {unknown}"
    if is_dropout(module) and not (net.model.training or module.training):
        return nn.Identity(), kind, ""
    if is_dropout(module) and not isinstance(module, DROPOUTS):
        return None, kind, "what the client's dropout kept is not known"
    layer: nn.Module | None = module
    if is_dropout(module):
        layer = nn.Dropout(float(getattr(module, "p")))  # noqa: B009
    elif getattr(module, "inplace", False):
        layer = out_of_place(module)
    elif isinstance(module, nn.Flatten):
        layer = reshaped(entering, leaving)
    elif isinstance(module, PADS):
        layer = padded(module)
    elif isinstance(module, nn.AdaptiveAvgPool2d) and entering == leaving:
        layer = nn.Identity()
    elif isinstance(module, nn.AdaptiveAvgPool2d):
        layer = averaged(entering, leaving, entering[1:], 0) or adaptive(entering, leaving)
    elif isinstance(module, nn.AvgPool2d):
        layer = averaged(entering, leaving, module.kernel_size, module.padding) or module
    return layer, kind, ""


def function_layer(
    net: Traced, node: fx.Node, entering: tuple[int, ...], leaving: tuple[int, ...]
) -> nn.Module | None:
    """The layer that does what a function or a method does, or None."""
    name = function_of(node)
    args: list[Any] = list(fx.node.map_arg(node.args, lambda n: net.sizes.get(n, n)))
    kwargs: dict[str, Any] = dict(fx.node.map_arg(node.kwargs, lambda n: net.sizes.get(n, n)))
    arguments = args[1:]
    if name in POINTWISE:
        return out_of_place(POINTWISE[name](*arguments, **kwargs))
    if name in ("clamp", "clamp_min", "clip"):
        low = arguments[0] if arguments else kwargs.get("min")
        high = arguments[1] if len(arguments) > 1 else kwargs.get("max")
        if low == 0 and high is None:
            return nn.ReLU()
        return None if low is None or high is None else nn.Hardtanh(low, high)
    if name in ("flatten", "view", "reshape", "squeeze", "unsqueeze"):
        return reshaped(entering, leaving)
    if name == "contiguous":
        return nn.Identity()
    if name == "dropout":
        bound = inspect.signature(F.dropout).bind(*args, **kwargs)
        bound.apply_defaults()
        p = bound.arguments["p"]
        return nn.Dropout(p) if bound.arguments["training"] else nn.Identity()
    if name == "pad":
        return Pad(*arguments, **kwargs)
    if name == "adaptive_avg_pool2d":
        whole = averaged(entering, leaving, entering[1:], 0)
        return nn.Identity() if entering == leaving else whole or adaptive(entering, leaving)
    if name == "avg_pool2d":
        size = arguments[0] if arguments else kwargs["kernel_size"]
        padding = arguments[2] if len(arguments) > 2 else kwargs.get("padding", 0)
        return averaged(entering, leaving, size, padding) or nn.AvgPool2d(*arguments, **kwargs)
    if name == "max_pool2d":
        bound = inspect.signature(nn.MaxPool2d).bind(*arguments, **kwargs)
        return nn.MaxPool2d(*bound.args, **bound.kwargs)
    return None


def padded(module: nn.Module) -> Pad:
    """A module of torch's that pads, as `Pad`."""
    name = type(module).__name__
    modes = ("reflect", "replicate", "circular")
    mode = next((mode for mode in modes if name.lower().startswith(mode)), "constant")
    return Pad(getattr(module, "padding"), mode, getattr(module, "value", 0.0))  # noqa: B009


def out_of_place(layer: nn.Module) -> nn.Module:
    """A copy that leaves its input as it is: what is known must not change by being looked at."""
    layer = copy.copy(layer)
    vars(layer)["inplace"] = False
    return layer


def reshaped(entering: tuple[int, ...], leaving: tuple[int, ...]) -> nn.Module | None:
    """The layer that leaves each image's values as they are, in another shape, or None."""
    if math.prod(entering) != math.prod(leaving):
        return None
    return nn.Flatten() if len(leaving) == 1 else Reshape(*leaving)


def adaptive(entering: tuple[int, ...], leaving: tuple[int, ...]) -> nn.AdaptiveAvgPool2d:
    """The adaptive average pooling between these shapes."""
    fewer = leaving[1] < entering[1] or leaving[2] < entering[2]
    return nn.AdaptiveAvgPool2d(leaving[1:]) if fewer else Spread(leaving[1:])


def averaged(
    entering: tuple[int, ...], leaving: tuple[int, ...], size: Any, padding: Any
) -> nn.Module | None:
    """The mean over height and width, if that is what a pooling of this size does, or None."""
    sizes = (size, size) if isinstance(size, int) else tuple(size)
    whole = sizes == entering[1:] and padding in (0, (0, 0), [0, 0])
    return nn.AdaptiveAvgPool2d(1) if whole and leaving[1:] == (1, 1) else None
