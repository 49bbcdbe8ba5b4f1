"""What the server sees of a client, as a type: there is no place in it for images or labels."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torchvision.ops import StochasticDepth

from gleak.storage import whole
from gleak.wire import read_tensors

# What a client may tell about its local training, each a plain number.
FACTS = ("lr", "epochs", "batch_size", "momentum", "drop_last")


class MissingKnowledge(ValueError):
    """A method needs something that the update does not offer; the message names it."""


@dataclass(frozen=True)
class Classifier:
    """The last linear layer, z = W o + b, with the features o in front of it."""

    name: str
    weight: torch.Tensor  # (N, M)
    bias: torch.Tensor | None  # (N,)


@dataclass(frozen=True, eq=False)
class Update:
    """One client's message, with what the server knew before it: the model that it sent out.

    model: the network as the server sent it, in the mode (train or eval) the client ran it in.
    num_samples: K, how many samples the client used.
    input_shape: (C, H, W) of one image; images are floats in [0, 1].
    gradient: FedSGD; parameter name -> gradient of the mean cross-entropy over the client's batch.
    weights_after: FedAvg; parameter name -> value after local training. Either of the two is given.
    facts: what the client told besides, each a plain number, named as in FACTS.

    Raises ValueError where the tensors do not fit the model or are not finite.
    """

    model: nn.Module
    num_samples: int
    input_shape: tuple[int, int, int]
    gradient: Mapping[str, torch.Tensor] | None = None
    weights_after: Mapping[str, torch.Tensor] | None = None
    facts: Mapping[str, float] = field(default_factory=dict)
    classifier: Classifier = field(init=False)

    def __post_init__(self):
        if (self.gradient is None) == (self.weights_after is None):
            raise ValueError("an update holds either a gradient or the weights after training")
        parameters = dict(self.model.named_parameters())
        for kind in ("gradient", "weights_after"):
            sent = getattr(self, kind)
            if sent is not None:
                check_fits(sent, parameters, what=f"the update's {kind}")
                in_order = {name: sent[name] for name in parameters if name in sent}
                object.__setattr__(self, kind, in_order)
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1; got {self.num_samples}")
        for name, value in self.facts.items():
            if name not in FACTS or not isinstance(value, (int, float)):
                raise ValueError(f"facts are plain numbers for {', '.join(FACTS)}; got {name!r}")
        object.__setattr__(self, "classifier", find_classifier(self.model, self.input_shape))

    @property
    def num_classes(self) -> int:
        return len(self.classifier.weight)

    @property
    def local_steps(self) -> int:
        """Steps of local SGD: 1 for FedSGD, E ceil(K / B) for FedAvg, floor with drop_last.

        Raises MissingKnowledge when the client told no epochs or batch size.
        """
        if self.gradient is not None:
            return 1
        epochs, batch_size = self.told("epochs", "batch_size")
        whole, rest = divmod(self.num_samples, int(batch_size))
        return int(epochs) * (whole + (rest > 0 and not self.facts.get("drop_last", False)))

    @property
    def weighs_alike(self) -> bool:
        """Whether each sample weighs the same in the update: one step, or full batches of SGD."""
        if self.local_steps == 1:
            return True
        (batch_size,) = self.told("batch_size")
        batches_are_full = self.num_samples % min(int(batch_size), self.num_samples) == 0
        return batches_are_full and not self.facts.get("momentum", 0.0)

    def told(self, *names: str) -> list[float]:
        """The facts of these names; MissingKnowledge names those that the client kept to itself."""
        missing = [name for name in names if name not in self.facts]
        if missing:
            raise MissingKnowledge(
                f"this needs {', '.join(missing)}, which the client did not tell"
            )
        return [self.facts[name] for name in names]

    def equivalent_gradient(self) -> dict[str, torch.Tensor]:
        """The update in the sign and scale of one gradient, parameter name -> tensor.

        FedSGD: the gradient itself. FedAvg: (W0 - WT) / (lr s) with s local steps, the mean of the
        local gradients if the client ran plain SGD (Geng et al. 2021). With momentum m, told or
        else taken as 0, the gradient of step t weighs 1 + m + ... + m^(s - t), t = 1 ... s, and
        the sum of these weights takes the place of s.

        Raises MissingKnowledge when the client told no lr, epochs or batch size.
        """
        if self.gradient is not None:
            return dict(self.gradient)
        (lr,) = self.told("lr")
        weight = weight_of_steps(self.local_steps, self.facts.get("momentum", 0.0))
        before = dict(self.model.named_parameters())
        return {
            name: (before[name].detach() - after) / (lr * weight)
            for name, after in self.weights_after.items()
        }

    def as_gradient(self, place: float | None = None) -> "Update":
        """The update read as one gradient, taken somewhere on the client's way: a FedSGD update
        whose model is W0 + place (WT - W0).

        place: by default where the local gradients were taken on average, (s - 1) / (2 s) for s
        steps of plain SGD. If the gradient changes evenly along the line from W0 to WT, their mean
        is the gradient there. So this reading is wrong only to second order in the length of the
        way; as the gradient at W0 the equivalent gradient is wrong to first order.

        A FedSGD update is returned as it is. Raises MissingKnowledge as `equivalent_gradient`.
        """
        if self.gradient is not None:
            return self
        gradient, model = self.equivalent_gradient(), copy.deepcopy(self.model)
        if place is None:
            place = mean_place(self.local_steps, self.facts.get("momentum", 0.0))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name in self.weights_after:
                    weight.lerp_(self.weights_after[name].to(weight), place)
        return replace(self, model=model, gradient=gradient, weights_after=None)

    def classifier_gradient(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The equivalent gradient of W (N, M) and of b (N,), None for a layer without bias.

        Raises MissingKnowledge when the client did not send the classifier's weights.
        """
        gradient, name = self.equivalent_gradient(), self.classifier.name
        if f"{name}.weight" not in gradient:
            raise MissingKnowledge(f"the update has no gradient of the classifier's {name}.weight")
        return gradient[f"{name}.weight"], gradient.get(f"{name}.bias")

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (K, M) in front of the classifier and logits (K, N) for images (K, C, H, W)."""
        features = []
        layer = self.model.get_submodule(self.classifier.name)
        hook = layer.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
        try:
            logits = self.model(images)
        finally:
            hook.remove()
        return features[-1], logits

    def message(self) -> dict[str, torch.Tensor]:
        """What was sent, parameter name -> tensor: the gradient, or the change WT - W0."""
        if self.gradient is not None:
            return dict(self.gradient)
        before = dict(self.model.named_parameters())
        return {name: after - before[name].detach() for name, after in self.weights_after.items()}

    def norm(self) -> float:
        """The L2 norm of the message, over all parameters."""
        return (
            sum(t.detach().double().square().sum() for t in self.message().values()).item() ** 0.5
        )

    def __str__(self) -> str:
        size = sum(parameter.numel() for parameter in self.model.parameters())
        kind, what = "FedAvg", "WT - W0   "
        if self.gradient is not None:
            kind, what = "FedSGD", "gradient  "
        shape = "x".join(map(str, self.input_shape))
        facts = ", ".join(f"{name} = {value:g}" for name, value in self.facts.items())
        layer = self.classifier
        bias = "no bias" if layer.bias is None else "bias"
        return "\n".join(
            [
                f"Update of a {kind} client, as an honest-but-curious server sees it",
                f"  model       {size:,} parameters",
                f"  classifier  {layer.name!r}: {layer.weight.shape[1]} features, "
                f"{self.num_classes} classes, {bias}",
                f"  batch norm  {batch_norm_mode(self.model)}",
                f"  {what}  {len(self.message())} tensors, norm {self.norm():.4g}",
                f"  samples     {self.num_samples} of shape {shape}",
                f"  told        {facts or 'nothing else'}",
                "  hidden      images, labels, their order",
            ]
        )

    def save(self, path: str | Path) -> None:
        """Write the model's weights and buffers, what was sent and the facts as safetensors."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for kind in ("gradient", "weights_after"):
            tensors |= {f"{kind}.{n}": value for n, value in (getattr(self, kind) or {}).items()}
        about = {
            "num_samples": self.num_samples,
            "input_shape": self.input_shape,
            "training": self.model.training,
            "facts": dict(self.facts),
        }
        tensors = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
        with whole(path) as partial:
            save_file(tensors, partial, metadata={"gleak": json.dumps(about)})

    @classmethod
    def from_weights(
        cls,
        before: "Weights | None",
        after: "Weights",
        model: nn.Module,
        *,
        num_samples: int,
        input_shape: tuple[int, int, int],
        training: bool = True,
        **facts: float,
    ) -> "Update":
        """A FedAvg update from the weights before and after, as any client or server stored them.

        before, after: a file (.safetensors, .npz, .pt, .pth), a mapping of name to tensor or array,
        or a sequence of arrays in the order of `model.state_dict()`, with or without its buffers,
        as Flower sends them. `before` has all parameters, or is None for the model as it stands;
        `after` may lack what was not sent. Buffers, such as the statistics of batch norm, are taken
        from `before`, else from the model.
        model: gives the architecture. training: the mode in which the client ran it.
        facts: what is known besides, of lr, epochs, batch_size, momentum and drop_last.

        Raises ValueError where names, shapes or values do not fit, or for a file that cannot be
        trusted; FileNotFoundError.
        """
        model = as_sent(model, training)
        own, parameters = model.state_dict(), dict(model.named_parameters())
        if before is not None:
            before = named_tensors(before, own, parameters, "before")
            check_fits(before, own, what="`before`")
            sent = {name: value for name, value in before.items() if name in parameters}
            check_fits(sent, parameters, what="`before`", complete=True)
            model.load_state_dict(before, strict=False)  # buffers may be missing
        after = named_tensors(after, own, parameters, "after")
        check_fits(after, own, what="`after`")
        trained = {name for name, p in parameters.items() if p.requires_grad}
        after = {n: value.to(own[n]) for n, value in after.items() if n in trained}
        if not after:
            raise ValueError("`after` holds no parameter of the model that is trained")
        return cls(
            model,
            num_samples,
            tuple(input_shape),
            weights_after=after,
            facts={name: value for name, value in facts.items() if value is not None},
        )

    @classmethod
    def load(cls, path: str | Path, model: nn.Module) -> "Update":
        """Read what `save` wrote; `model` gives the architecture, its weights come from the file.

        Raises FileNotFoundError, or ValueError when the file is not an update or is one of another
        architecture.
        """
        if not Path(path).exists():
            raise FileNotFoundError(f"no update at {path}")
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {}).get("gleak", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from None
        if about is None:
            raise ValueError(f"{path} is a safetensors file, but not one that Update.save wrote")
        part = {"model": {}, "gradient": {}, "weights_after": {}}
        for name, value in tensors.items():
            kind, _, name = name.partition(".")
            part[kind][name] = value
        model = as_sent(model, about["training"])
        check_fits(part["model"], model.state_dict(), what="the saved model", complete=True)
        model.load_state_dict(part["model"])
        return cls(
            model,
            about["num_samples"],
            tuple(about["input_shape"]),
            gradient=part["gradient"] or None,
            weights_after=part["weights_after"] or None,
            facts=about["facts"],
        )


Weights = str | Path | Mapping[str, torch.Tensor] | Sequence


def named_tensors(
    weights: Weights, own: Mapping, parameters: Mapping, what: str
) -> dict[str, torch.Tensor]:
    """Name -> tensor, from a file, a mapping, or a sequence in the order of a state dict."""
    if isinstance(weights, str | Path):
        weights = read_tensors(weights)
    if not isinstance(weights, Mapping):
        weights = list(weights)
        names = parameters if len(weights) == len(parameters) else own
        if len(weights) != len(names):
            raise ValueError(
                f"`{what}` has {len(weights)} arrays; the model has {len(parameters)} parameters, "
                f"{len(own)} with its buffers"
            )
        weights = dict(zip(names, weights, strict=True))
    try:
        return {name: torch.as_tensor(value) for name, value in weights.items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`{what}` is not made of numbers: {error}") from None


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
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and training:
            module.track_running_stats = False
    return model


def is_dropout(module: nn.Module) -> bool:
    """Whether the layer drops something at random while training."""
    return isinstance(module, (nn.modules.dropout._DropoutNd, StochasticDepth))


def weight_of_steps(steps: int, momentum: float) -> float:
    """How much the gradients of all local steps weigh in W0 - WT: their number, for plain SGD."""
    return sum(momentum**later * (steps - later) for later in range(steps))


def mean_place(steps: int, momentum: float) -> float:
    """Where the local gradients were taken on average, 0 at W0 and 1 at WT, each as it weighs in
    W0 - WT.
    """
    gone = [weight_of_steps(step, momentum) for step in range(steps + 1)]  # before each step
    weights = [later - sooner for sooner, later in pairwise(gone)][::-1]  # the first weighs most
    return sum(w * place for w, place in zip(weights, gone, strict=False)) / gone[-1] ** 2


def batch_norm_mode(model: nn.Module) -> str:
    """In words: which statistics the batch norm layers used, if there are any."""
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        return "none in this model"
    return "the batch's own statistics" if model.training else "the running statistics"


def find_classifier(model: nn.Module, input_shape: tuple[int, int, int]) -> Classifier:
    """The linear layer whose output is the model's output, found by a forward pass.

    Raises ValueError when the model cannot take the input, or does not end in a linear layer.
    """
    calls = []
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: calls.append((name, out)))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    parameter = next(model.parameters())
    try:
        with torch.no_grad():
            # two images, since batch norm over single values takes no batch of one
            output = model(torch.full((2, *input_shape), 0.5).to(parameter))
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
    layer = model.get_submodule(name)
    bias = None if layer.bias is None else layer.bias.detach()
    return Classifier(name, layer.weight.detach(), bias)


def check_fits(
    tensors: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    what: str = "the gradient",
    complete: bool = False,
) -> None:
    """Raise ValueError unless names and shapes agree and all values are finite."""
    if not tensors:
        raise ValueError(f"{what} is empty")
    unknown = sorted(set(tensors) - set(expected))
    if unknown:
        raise ValueError(f"{what} does not fit the model: it has no {', '.join(unknown[:5])}")
    missing = sorted(set(expected) - set(tensors))
    if complete and missing:
        raise ValueError(f"{what} does not fit the model: {', '.join(missing[:5])} is missing")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{what} does not fit the model: {name} has shape {tuple(tensor.shape)}, "
                f"the model's {tuple(expected[name].shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{what} is not finite in {name}")
