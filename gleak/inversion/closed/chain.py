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
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from gleak.models import Normalise
from gleak.update import MissingKnowledge, is_dropout

Shapes = dict[fx.Node, tuple[int, ...]]  # of the values that depend on the images


class Reshape(nn.Module):
    """The same values of each image in another shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Values (K, ...) as (K, *shape)."""
        return values.reshape(len(values), *self.shape)


class BasicBlock(nn.Module):
    """The residual block of ResNet-18 and ResNet-34 (He et al. 2016), however it was written.

    relu(norm2(conv2(relu(norm1(conv1(x))))) + x), or with short_norm(short(x)) in place of x.
    """

    def __init__(
        self,
        conv1: nn.Conv2d,
        norm1: nn.BatchNorm2d,
        conv2: nn.Conv2d,
        norm2: nn.BatchNorm2d,
        short: nn.Conv2d | None = None,
        short_norm: nn.BatchNorm2d | None = None,
    ) -> None:
        super().__init__()
        self.conv1, self.norm1, self.conv2, self.norm2 = conv1, norm1, conv2, norm2
        self.short, self.short_norm = short, short_norm

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """(K, C, H, W) to (K, C', H', W')."""
        branch = self.norm2(self.conv2(self.norm1(self.conv1(values)).relu()))
        if self.short is not None and self.short_norm is not None:
            values = self.short_norm(self.short(values))
        return (branch + values).relu()


@dataclass(frozen=True, eq=False)
class Step:
    """One layer of a chain.

    layer: a module that does what the network does here; None where that is not understood.
    kind: of the layer, for people.
    entering, leaving: shapes of one image's values.
    node: of the graph, whose value leaves the layer.
    unknown: why the layer is not understood, where more can be said than its kind.
    """

    layer: nn.Module | None
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
        graph, copies = fx.Graph(), {}
        for node in self.graph.nodes:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            if node is end:
                break
        graph.output(copies[end])
        return fx.GraphModule(self.model, graph)

    def has_before(self, depth: int, *kinds: type[nn.Module]) -> bool:
        """Whether a layer of these kinds lies in front of step `depth`."""
        return any(isinstance(step.layer, kinds) for step in self.steps[:depth])


def trace(model: nn.Module, input_shape: tuple[int, ...]) -> Chain:
    """The chain of a model that takes images of this shape (C, H, W).

    Raises MissingKnowledge for a network that cannot be traced, for one that does not end in a
    linear layer, and for one that branches into anything but residual blocks of two convolutions.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    >>> [step.kind for step in trace(net, (1, 4, 4)).steps]
    ['Conv2d', 'ReLU', 'Flatten', 'Linear']
    """
    model = copy.copy(model)  # tracing leaves constants behind, as attributes
    tracer = LayerTracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:  # a forward pass is anyone's code
        raise MissingKnowledge(
            f"peeling needs a network that torch.fx can trace: {reason_of(error)}"
        ) from error
    probe = torch.full((2, *input_shape), 0.5)  # two, as batch norm may refuse one
    probe = probe.to(next(model.parameters()))
    shapes = shapes_of(model, graph, probe)
    if split_means(graph, shapes):
        shapes = shapes_of(model, graph, probe)
    steps = steps_of(model, tracer, shapes)
    if not steps or not isinstance(steps[-1].layer, nn.Linear):
        raise MissingKnowledge(
            "peeling needs a network that ends in a linear layer; this one ends in "
            + (steps[-1].kind if steps else "nothing")
        )
    return Chain(model, graph, tuple(steps))


class LayerTracer(fx.Tracer):
    """Traces into all modules but torch's own layers, and those that cannot be traced.

    untraced: why, for each of the latter by its name in the model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.untraced: dict[str, str] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module stays whole: also subclasses of torch's layers without own forward."""
        written_by = next(kind for kind in type(m).__mro__ if "forward" in vars(kind))
        torchs = written_by.__module__.startswith("torch.nn") and written_by is not nn.Sequential
        return torchs or isinstance(m, Normalise) or is_dropout(m)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Trace a module, or keep it whole where that fails."""
        before, stack = set(self.graph.nodes), self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:  # a forward pass is anyone's code
            self.module_stack = stack
            for node in reversed(self.graph.nodes):
                if node not in before and node.op != "get_attr":  # those are kept to be used again
                    self.graph.erase_node(node)
            name = self.path_of_module(m)
            self.untraced[name] = reason_of(error)
            return self.create_proxy("call_module", name, args, kwargs)


def reason_of(error: Exception) -> str:
    """Why a network could not be traced, with the line of its own code."""
    said = (str(error).splitlines() or [type(error).__name__])[0]
    torchs = Path(torch.__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if torchs not in Path(frame.filename).parents and frame.filename != __file__:
            return f"{said}, in {Path(frame.filename).name}, line {frame.lineno}: {frame.line}"
    return said


def shapes_of(model: nn.Module, graph: fx.Graph, images: torch.Tensor) -> Shapes:
    """Node -> shape of its value, with the batch, for all nodes that depend on the images' values.

    A tuple of tensors counts as without shape. Sizes are no such values.
    """
    shapes: Shapes = {}

    class Run(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            parts = value if isinstance(value, tuple | list) else [value]
            tensors = any(isinstance(part, torch.Tensor) for part in parts)
            if tensors and (n.op == "placeholder" or any(node in shapes for node in inputs_of(n))):
                shapes[n] = tuple(getattr(value, "shape", ()))
            return value

    with torch.no_grad():
        Run(model, graph=graph).run(images)
    return shapes


def inputs_of(node: fx.Node) -> list[fx.Node]:
    return node.all_input_nodes


def split_means(graph: fx.Graph, shapes: Shapes) -> bool:
    """Write means over height and width as pooling, to the bit the same; whether there were any."""
    found = False
    for node in list(graph.nodes):
        if function_of(node) != "mean" or node not in shapes:
            continue
        values, *rest = node.args
        dim = rest[0] if rest else node.kwargs.get("dim")
        keep = rest[1] if len(rest) > 1 else node.kwargs.get("keepdim", False)
        shape = shapes.get(values, ()) if isinstance(values, fx.Node) else ()
        if len(shape) != 4 or not isinstance(dim, Sequence):
            continue
        if sorted(d % 4 for d in dim if isinstance(d, int)) == [2, 3]:
            found = True
            with graph.inserting_after(node):
                pooled = graph.call_function(F.adaptive_avg_pool2d, (values, 1))
            with graph.inserting_after(pooled):
                new = pooled if keep else graph.call_function(torch.flatten, (pooled, 1))
            for made in (pooled, new):
                made.meta = dict(node.meta)
            node.replace_all_uses_with(new)
            graph.erase_node(node)
    return found


def steps_of(model: nn.Module, tracer: LayerTracer, shapes: Shapes) -> list[Step]:
    """The steps from the images to the output.

    Raises MissingKnowledge where the network branches otherwise than in a residual block.
    """
    steps: list[Step] = []
    parts = parts_of(tracer.graph, shapes)
    while parts:
        part = parts.pop(0)
        if len(part) == 2:
            step = single(model, tracer, shapes, *part)
        else:
            step = residual(model, tracer, shapes, part, parts)
        steps.append(step)
    return steps


def parts_of(graph: fx.Graph, shapes: Shapes) -> list[list[fx.Node]]:
    """The graph cut at all nodes that all data pass: each part from one such node to the next."""
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    used, data = {output}, []
    for node in reversed(graph.nodes):
        if node in shapes and any(user in used for user in node.users):
            used.add(node)
            data.append(node)
    data.reverse()
    place = {node: i for i, node in enumerate(data)}
    parts, part, open_until = [], data[:1], 0
    for i, node in enumerate(data):
        if i:
            part.append(node)
            if open_until <= i:
                parts.append(part)
                part = [node]
        open_until = max([open_until, *(place[user] for user in node.users if user in place)])
    return parts


def residual(
    model: nn.Module, tracer: LayerTracer, shapes: Shapes, part: list[fx.Node], rest: list
) -> Step:
    """The step of a part that branches, together with the ReLU that follows in a residual block.

    Takes that ReLU off the `rest` of the parts. Raises MissingKnowledge for any other branching but
    within a module without layers, which is a layer itself, one that is not understood.
    """
    if rest and len(rest[0]) == 2:
        after = single(model, tracer, shapes, *rest[0])
        block = basic_block(model, tracer, shapes, part)
        if block and isinstance(after.layer, nn.ReLU):
            rest.pop(0)
            entering = shapes[part[0]][1:]
            return Step(block, "BasicBlock", entering, after.leaving, after.node)
    module = innermost(model, part[1:])
    kind = type(module).__name__
    if any(True for _ in module.children()):
        raise MissingKnowledge(
            "peeling needs a chain of layers and residual blocks of two convolutions; got a "
            f"{kind}, which branches"
        )
    return Step(None, kind, shapes[part[0]][1:], shapes[part[-1]][1:], part[-1])


def basic_block(
    model: nn.Module, tracer: LayerTracer, shapes: Shapes, part: list[fx.Node]
) -> BasicBlock | None:
    """The residual block that is this part up to its sum, or None."""
    start, total = part[0], part[-1]
    summands = [arg for arg in total.args if isinstance(arg, fx.Node)]
    if function_of(total) not in ("add", "iadd") or len(summands) != 2 or total.kwargs:
        return None
    branches = []
    for node in summands:
        steps: list[Step] = []
        while node is not start:
            above = [source for source in inputs_of(node) if source in shapes]
            if len(above) != 1:
                return None
            steps.insert(0, single(model, tracer, shapes, above[0], node))
            node = above[0]
        branches.append(steps)
    branches.sort(key=len)
    short, long = ([step.layer for step in branch] for branch in branches)
    if [type(layer) for layer in long] != [*NORMED, nn.ReLU, *NORMED]:
        return None
    if short and [type(layer) for layer in short] != NORMED:
        return None
    conv1, norm1, _, conv2, norm2 = long
    sizes = [(3, 3), (3, 3), (1, 1)]
    convs = [conv1, conv2, *short[:1]]
    norms = [norm1, norm2, *short[1:]]
    shape = branches[1][-2]
    if (
        all(conv.kernel_size == size for conv, size in zip(convs, sizes, strict=False))
        and all(conv.groups == 1 and conv.padding_mode == "zeros" for conv in convs)
        and all(norm.affine and norm.running_mean is not None for norm in norms)
        and shape.entering == shape.leaving
    ):
        return BasicBlock(conv1, norm1, conv2, norm2, *short)
    return None


NORMED = [nn.Conv2d, nn.BatchNorm2d]


def innermost(model: nn.Module, nodes: list[fx.Node]) -> nn.Module:
    """The smallest module whose forward pass all the nodes belong to."""
    stacks = [[path for path, _ in (n.meta.get("nn_module_stack") or {}).values()] for n in nodes]
    common = [paths[0] for paths in zip(*stacks, strict=False) if len(set(paths)) == 1]
    return model.get_submodule(common[-1] if common else "")


def single(
    model: nn.Module, tracer: LayerTracer, shapes: Shapes, before: fx.Node, node: fx.Node
) -> Step:
    """The step of one node, as a layer of torch's if it is understood."""
    entering, leaving = shapes[before][1:], shapes[node][1:]
    if node.op != "call_module":
        layer, kind, unknown = function_layer(node, entering, leaving), function_of(node), ""
        if layer is not None:
            kind = type(layer).__name__
        return Step(layer, kind, entering, leaving, node)
    name = str(node.target)
    found = model.get_submodule(name)
    kind, unknown = type(found).__name__, tracer.untraced.get(name, "")
    layer = None if unknown else found
    if layer is None and any(True for _ in found.children()):
        raise MissingKnowledge(
            f"peeling needs a network that torch.fx can trace; it cannot trace the {kind} in "
            f"{name}: {unknown}"
        )
    if is_dropout(found):
        if model.training or found.training:
            unknown = "what the client's dropout kept is not known"
        else:
            layer = nn.Identity()
    elif isinstance(found, nn.ReLU):
        layer = nn.ReLU()  # never in place
    elif isinstance(found, nn.Flatten):
        layer = reshaped(entering, leaving)
    elif isinstance(found, nn.AvgPool2d | nn.AdaptiveAvgPool2d):
        size = getattr(found, "kernel_size", entering[1:])
        layer = pooled(entering, leaving, size, getattr(found, "padding", 0)) or found
    return Step(layer, kind, entering, leaving, node, unknown)


def function_of(node: fx.Node) -> str:
    """The name of the function or method that the node calls, in place or not, or nothing."""
    if node.op == "call_method":
        return str(node.target).removesuffix("_")
    if node.op != "call_function":
        return ""
    return getattr(node.target, "__name__", str(node.target)).removesuffix("_")


def function_layer(node: fx.Node, entering: tuple, leaving: tuple) -> nn.Module | None:
    """The layer that does what a function or a method does, or None."""
    name, arguments = function_of(node), node.args[1:]
    if name == "relu":
        return nn.ReLU()
    if name == "sigmoid":
        return nn.Sigmoid()
    if name in ("flatten", "view", "reshape", "squeeze", "unsqueeze"):
        return reshaped(entering, leaving)
    if name == "contiguous":
        return nn.Identity()
    if name == "dropout":
        bound = inspect.signature(F.dropout).bind(*node.args, **node.kwargs)
        bound.apply_defaults()
        return None if bound.arguments["training"] else nn.Identity()
    if name == "adaptive_avg_pool2d":
        return pooled(entering, leaving, entering[1:], 0)
    if name == "avg_pool2d":
        size = arguments[0] if arguments else node.kwargs["kernel_size"]
        padding = arguments[2] if len(arguments) > 2 else node.kwargs.get("padding", 0)
        return pooled(entering, leaving, size, padding)
    if name == "max_pool2d":
        bound = inspect.signature(nn.MaxPool2d).bind(*arguments, **node.kwargs)
        return nn.MaxPool2d(*bound.args, **bound.kwargs)
    return None


def reshaped(entering: tuple[int, ...], leaving: tuple[int, ...]) -> nn.Module | None:
    """The layer that leaves each image's values as they are, in another shape."""
    if math.prod(entering) != math.prod(leaving):
        return None
    return nn.Flatten() if len(leaving) == 1 else Reshape(*leaving)


def pooled(entering: tuple, leaving: tuple, size: Any, padding: Any) -> nn.Module | None:
    """The layer that takes the mean over height and width, if that is what the pooling does."""
    sizes = size if isinstance(size, tuple | list) else (size, size)
    whole = tuple(sizes) == tuple(entering[1:]) and not any(torch.as_tensor(padding).view(-1))
    return nn.AdaptiveAvgPool2d(1) if whole and tuple(leaving[1:]) == (1, 1) else None
