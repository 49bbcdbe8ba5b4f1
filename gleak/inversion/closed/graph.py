"""The graph of a network's forward pass, traced by torch.fx, and where it branches."""

import copy
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from gleak.models import Normalise
from gleak.network import Taken, is_dropout
from gleak.update import MissingKnowledge

Shapes = dict[fx.Node, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Traced:
    """A traced network.

    shapes: of the value of each node that depends on the values of the images, with a batch of two
    in front; empty for several tensors at once.
    sizes: the value of each node that is no tensor, for such a batch.
    untraced: name of a module that was left whole, as it cannot be traced -> why.
    """

    model: nn.Module
    graph: fx.Graph
    shapes: Shapes
    sizes: dict[fx.Node, Any]
    untraced: dict[str, str]

    def parts(self) -> list[list[fx.Node]]:
        """The graph cut at all nodes that all data pass: each part from one such node to the next.

        Where the network is a chain, a part is two nodes; the first is the last of the part before.
        """
        output = next(node for node in reversed(self.graph.nodes) if node.op == "output")
        used, data = {output}, list[fx.Node]()
        for node in reversed(self.graph.nodes):
            if node in self.shapes and any(user in used for user in node.users):
                used.add(node)
                data.insert(0, node)
        index = {node: i for i, node in enumerate(data)}
        parts, part, open_until = [], data[:1], 0
        for i, node in enumerate(data):
            if i:
                part.append(node)
            if i and open_until <= i:
                parts.append(part)
                part = [node]
            open_until = max([open_until, *(index[user] for user in node.users if user in index)])
        return parts

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that the node's value comes from, as far as they depend on the images."""
        return [source for source in node.all_input_nodes if source in self.shapes]

    def innermost(self, nodes: Sequence[fx.Node]) -> nn.Module:
        """The smallest module to whose forward pass all the nodes belong."""
        stacks = [node.meta.get("nn_module_stack") or {} for node in nodes]
        paths = [[path for path, _ in stack.values()] for stack in stacks]
        common = [level[0] for level in zip(*paths, strict=False) if len(set(level)) == 1]
        return self.model.get_submodule(common[-1] if common else "")


def traced(model: nn.Module, input_shape: tuple[int, ...]) -> Traced:
    """Trace a model that takes images of this shape (C, H, W).

    Raises MissingKnowledge where that is not possible, with the reason.
    """
    model = copy.copy(model)  # tracing leaves constants behind, as attributes
    like = next(model.parameters())
    probe = torch.full((2, *input_shape), 0.5).to(like)  # two, as batch norm may refuse one
    tracer = LayerTracer((probe, torch.full((3, *input_shape), 0.5).to(like)))
    try:
        graph = tracer.trace(model)
    except Exception as error:  # a forward pass is anyone's code
        raise MissingKnowledge(
            f"peeling needs a network that torch.fx can trace: {reason_of(error)}"
        ) from error
    end_at_logits(model, graph)
    shapes, sizes = sizes_of(model, graph, probe)
    if split_means(graph, shapes):
        shapes, sizes = sizes_of(model, graph, probe)
    return Traced(model, graph, shapes, sizes, tracer.untraced)


def end_at_logits(model: nn.Module, graph: fx.Graph) -> None:
    """Let the graph return logits alone: the output that the model's hook takes, and no softmax.

    A log-softmax behind the classifier changes nothing for the cross-entropy.
    """
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    ends: list[fx.Node] = []

    def note(node: fx.Node) -> fx.Node:
        ends.append(node)
        return node

    fx.node.map_arg(output.args, note)  # not `all_input_nodes`, which has each of them once
    taken = [hook for hook in model._forward_hooks.values() if isinstance(hook, Taken)]
    end = ends[taken[0].index if taken else 0]
    module = model.get_submodule(str(end.target)) if end.op == "call_module" else None
    if isinstance(module, nn.LogSoftmax) or function_of(end) == "log_softmax":
        end = end.all_input_nodes[0]
    if taken or end is not ends[0]:
        output.args = (end,)


# What a tensor tells of itself without its values.
SIZES = {"size", "shape", "dim", "ndim", "ndimension", "numel", "len", "dtype", "device"}


class LayerTracer(fx.Tracer):
    """Traces into all modules but torch's own layers, and those that cannot be traced.

    probes: images in batches of different sizes. A decision that looks at shapes is taken as they
    take it, if they agree; one that looks at values cannot be traced.
    untraced: why, for each module left whole by its name in the model.
    """

    def __init__(self, probes: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.probes, self.running = probes, False
        self.untraced: dict[str, str] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module stays whole: also subclasses of torch's layers without own forward."""
        written_by = next(kind for kind in type(m).__mro__ if "forward" in vars(kind))
        torchs = written_by.__module__.startswith("torch.nn") and written_by is not nn.Sequential
        return torchs or isinstance(m, Normalise) or is_dropout(m)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Trace a module, or keep it whole where that fails."""
        if self.running:
            return forward(*args, **kwargs)
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

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A module's attribute, as itself while the probes run."""
        return attr_val if self.running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Which way to go at a decision, where shapes alone tell."""
        self.running = True
        try:
            answers = {self.answer(obj.node, probe) for probe in self.probes}
        finally:
            self.running = False
        if answers == {True} or answers == {False}:
            return True in answers
        return super().to_bool(obj)

    def answer(self, asked: fx.Node, images: torch.Tensor) -> bool | None:
        """The truth of a node's value for these images, None where it depends on their values."""
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        for node in self.graph.nodes:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(copies[asked])
        looked = False

        class Run(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                nonlocal looked
                value = super().run_node(n)
                read = [self.env[source] for source in n.all_input_nodes if source in self.env]
                if not isinstance(value, torch.Tensor) and n.op != "output":
                    tensors = any(isinstance(v, torch.Tensor) for v in read)
                    looked |= tensors and not SIZES & {function_of(n), *map(str, n.args[1:2])}
                return value

        with torch.no_grad():
            value = Run(self.root, graph=graph, garbage_collect_values=False).run(images)
        return None if looked or isinstance(value, torch.Tensor) else bool(value)


def reason_of(error: Exception) -> str:
    """Why a network could not be traced, with the line of its own code."""
    said = (str(error).splitlines() or [type(error).__name__])[0]
    torchs = Path(torch.__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if torchs not in Path(frame.filename).parents and frame.filename != __file__:
            return f"{said}, in {Path(frame.filename).name}, line {frame.lineno}: {frame.line}"
    return said


def sizes_of(
    model: nn.Module, graph: fx.Graph, images: torch.Tensor
) -> tuple[Shapes, dict[fx.Node, Any]]:
    """The shapes and sizes that `Traced` holds, found by running the graph."""
    shapes: Shapes = {}
    sizes: dict[fx.Node, Any] = {}

    class Run(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            parts = value if isinstance(value, tuple | list) else [value]
            tensors = any(isinstance(part, torch.Tensor) for part in parts)
            first = n.op == "placeholder"
            if tensors and (first or any(source in shapes for source in n.all_input_nodes)):
                shapes[n] = tuple(getattr(value, "shape", ()))
            elif not tensors:
                sizes[n] = value
            return value

    with torch.no_grad():
        Run(model, graph=graph).run(images)
    return shapes, sizes


def split_means(graph: fx.Graph, shapes: Shapes) -> bool:
    """Write means over height and width as a pooling, same to the bit; whether there are any."""
    found = False
    for node in list(graph.nodes):
        if function_of(node) != "mean" or node not in shapes:
            continue
        values, *rest = node.args
        dim = rest[0] if rest else node.kwargs.get("dim")
        keep = rest[1] if len(rest) > 1 else node.kwargs.get("keepdim", False)
        whole_numbers = isinstance(dim, Sequence) and all(isinstance(d, int) for d in dim)
        if not whole_numbers or len(shapes.get(values, ())) != 4:
            continue
        if sorted(d % 4 for d in dim) == [2, 3]:
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


def function_of(node: fx.Node) -> str:
    """The name of the function or method that the node calls, in place or not, or nothing."""
    if node.op == "call_method":
        return str(node.target).removesuffix("_")
    if node.op != "call_function":
        return ""
    return getattr(node.target, "__name__", str(node.target)).removesuffix("_")
