"""What the server sees of a client, as a type: there is no place in it for images or labels."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self, final

import torch
from torch import nn

from gleak.buffers import have_moved, statistics_sent
from gleak.contradictions import (
    is_a_difference,
    sizes_alike,
    sums_to_zero,
    times_too_large,
)
from gleak.network import (
    Classifier,
    as_sent,
    batch_norm_mode,
    batch_norms,
    classifier_at,
    classifying,
)
from gleak.wire import (
    ROUNDING,
    Weights,
    check_fits,
    dense,
    named_tensors,
    precision_of,
    read_parts,
    trained_weights,
    without_prefix,
    write_parts,
)

Statistics = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
KINDS = ("mean", "variance")  # of these pairs

# Facts whose meaning is known: what holds for their values, and in words.
FACTS: dict[str, tuple[Callable[[float], bool], str]] = {
    "lr": (lambda value: value > 0, "above 0"),
    "epochs": (lambda value: value >= 1 and value == int(value), "a whole number from 1 on"),
    "batch_size": (lambda value: value >= 1 and value == int(value), "a whole number from 1 on"),
    "momentum": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "drop_last": (lambda value: value in (0, 1), "true or false"),
    "weight_decay": (lambda value: value >= 0, "at least 0"),
    # Known, and not followed here: what one may tell in their place.
    "nesterov": (
        lambda value: value == 0,
        "false: Nesterov's momentum is not followed; of a single step tell lr (1 + momentum) as lr "
        "and no momentum",
    ),
    "dampening": (
        lambda value: value == 0,
        "0: it is not followed; of a single step leave out momentum, too",
    ),
    "label_smoothing": (
        lambda value: value == 0,
        "0: rules and searches here are for labels that are not smoothed, and say nothing of "
        "others; see what the same client gives away without smoothing",
    ),
}


class MissingKnowledge(ValueError):
    """A method needs something that the update does not offer; the message names it."""


class Contradiction(ValueError):
    """What was sent cannot be what the client is said to have sent; the message says why."""


class Derived(float):
    """A precision read off what was sent, so that it is read anew when that is replaced."""


@dataclass(frozen=True, eq=False, repr=False)
class Update(ABC):
    """One client's message, with all that the server knows besides.

    There are two kinds, `GradientUpdate` and `WeightsUpdate`; `Update(..., gradient=...)` and
    `Update(..., weights_after=...)` make one of them. (A type checker knows the kinds alone.)

    The mappings are read-only; so `dataclasses.replace` makes a changed copy, without a forward
    pass.

    Parameters
    ----------
    model
        The network as the server sent it, in the mode (train or eval) the client ran it in. Of
        several outputs the first that comes from a linear layer is the logits; then a copy is kept
        that returns these alone.
    num_samples
        K, how many samples the client used.
    input_shape
        (C, H, W) of one image; images are floats in [0, 1].
    facts
        What the client told besides, plain numbers by any name. These have a meaning: lr (> 0; its
        mean, where a schedule changes it), epochs and batch_size (whole, >= 1), momentum (in
        [0, 1)), drop_last (true or false), weight_decay (>= 0, of SGD). nesterov, dampening and
        label_smoothing are refused unless they are 0. A method asks for what it needs by `told`.
    precision
        The largest relative error of a value that was sent, from rounding. Unless it is given, it
        is read off the digits (see `gleak.wire.precision_of`), again whenever others are put in
        place of what was sent. A given one stays, and may also speak of noise.
    statistics
        Name of a batch norm layer to mean and (biased) variance (channels,) of what entered it at
        the client.
    classifier_name
        The last linear layer, found by a forward pass unless it is given.

    Raises
    ------
    ValueError
        Where something does not fit the model, is not finite or out of range.

    Examples
    --------
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> sent = {"1.weight": torch.ones(3, 4), "1.bias": torch.tensor([0.5, -1.0, 0.5])}
    >>> update = Update(net, 2, (1, 2, 2), gradient=sent)
    >>> update
    GradientUpdate(2 samples of 1x2x2, 3 classes, 15 values sent)
    >>> print(update)
    Update of a FedSGD client, as an honest-but-curious server sees it
      model       15 parameters
      classifier  '1': 4 features, 3 classes, bias
      batch norm  none in this model
      gradient    2 tensors, norm 3.674
      samples     2 of shape 1x2x2
      told        nothing else
      hidden      images, labels, their order
    """

    model: nn.Module
    num_samples: int
    input_shape: tuple[int, int, int]
    _: KW_ONLY
    facts: Mapping[str, float] = field(default_factory=dict)
    precision: float = Derived("nan")
    statistics: Statistics = field(default_factory=dict)
    classifier_name: str = ""

    holds: ClassVar[str]  # the field with what was sent
    other_scales: ClassVar[str] = ""  # what else may make a gradient too large

    def __new__(cls, *_: Any, **settings: Any) -> "Update":
        """Of the abstract class: the kind that the settings name, as pathlib.Path does."""
        if cls is not Update:
            return super().__new__(cls)
        kinds = [k for k in (GradientUpdate, WeightsUpdate) if k.holds in settings]
        if len(kinds) != 1:
            raise ValueError("an update holds either a gradient or the weights after training")
        return super().__new__(kinds[0])

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        if self.num_samples < 1 or self.num_samples != int(self.num_samples):
            raise ValueError(f"num_samples must be at least 1, and whole; got {self.num_samples}")
        put("input_shape", tuple(self.input_shape))
        if self.classifier_name:
            classifier_at(self.model, self.classifier_name)
        else:
            classifier, taken = classifying(self.model, self.input_shape)
            put("classifier_name", classifier.name)
            if taken:
                put("model", copy.deepcopy(self.model))
                self.model.register_forward_hook(taken)
        put(self.holds, MappingProxyType(self.in_order(self.sent)))
        put("facts", MappingProxyType(checked_facts(self.facts)))
        put("statistics", MappingProxyType(checked_statistics(self.statistics, self.model)))
        if isinstance(self.precision, Derived):
            put("precision", Derived(precision_of(self.sent.values())))
        elif not 0 <= self.precision < math.inf:
            raise ValueError(f"precision is a relative error >= 0; got {self.precision}")

    def in_order(self, sent: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What was sent in the order of the model's parameters, checked."""
        parameters = dict(self.model.named_parameters())
        for name, tensor in sent.items():
            if not isinstance(tensor, torch.Tensor) or tensor.dtype not in ROUNDING:
                known = ", ".join(str(dtype).removeprefix("torch.") for dtype in ROUNDING)
                raise ValueError(f"the update's {self.holds} takes tensors of {known}: see {name}")
        sent = without_prefix({name: dense(value) for name, value in sent.items()}, parameters)
        check_fits(sent, parameters, what=f"the update's {self.holds}")
        return {name: sent[name] for name in parameters if name in sent}

    def __getstate__(self) -> dict[str, Any]:
        """The fields with dicts for the read-only views of them, which cannot be pickled."""
        views = MappingProxyType
        return {n: dict(v) if isinstance(v, views) else v for n, v in vars(self).items()}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            vars(self)[name] = MappingProxyType(value) if isinstance(value, dict) else value

    @property
    def sent(self) -> Mapping[str, torch.Tensor]:
        """Parameter name -> tensor as it came: of the gradient, or of the weights after."""
        return getattr(self, self.holds)

    def resent(self, sent: Mapping[str, torch.Tensor]) -> Self:
        """The update with other tensors in place of what was sent, of the same kind.

        Parameters
        ----------
        sent
            Parameter name to tensor, as in `sent`.
        """
        change: dict[str, Any] = {self.holds: sent}
        return replace(self, **change)

    @property
    def classifier(self) -> Classifier:
        """The model's last linear layer, with the weights that the server sent."""
        return classifier_at(self.model, self.classifier_name)

    @property
    def num_classes(self) -> int:
        return len(self.classifier.weight)

    @property
    @abstractmethod
    def local_steps(self) -> int:
        """Steps of local SGD: 1 for FedSGD, E ceil(K / B) for FedAvg, floor with drop_last.

        Raises MissingKnowledge when the client told no epochs or batch size.
        """

    @property
    def weighs_alike(self) -> bool:
        """Whether each sample weighs the same in the update: one step, or full batches of SGD."""
        if self.local_steps == 1:
            return True
        (batch_size,) = self.told("batch_size")
        batches_are_full = self.num_samples % min(int(batch_size), self.num_samples) == 0
        return batches_are_full and not self.facts.get("momentum", 0.0)

    def told(self, *names: str) -> list[float]:
        """The facts of these names.

        Parameters
        ----------
        names
            Of facts, such as "lr" or "epochs".

        Returns
        -------
        list of float
            Their values, in the order of the names.

        Raises
        ------
        MissingKnowledge
            Names those that the client kept to itself.
        """
        missing = [name for name in names if name not in self.facts]
        if missing:
            raise MissingKnowledge(
                f"this needs {', '.join(missing)}, which the client did not tell"
            )
        return [self.facts[name] for name in names]

    @abstractmethod
    def message(self) -> dict[str, torch.Tensor]:
        """What the client says: the gradient, or the change WT - W0.

        Returns
        -------
        dict
            Parameter name to tensor.
        """

    @abstractmethod
    def equivalent_gradient(self) -> dict[str, torch.Tensor]:
        """The update in the sign and scale of one gradient.

        FedSGD: the gradient itself. FedAvg: (W0 - WT) / (lr s) with s local steps, the mean of the
        local gradients if the client ran plain SGD. With momentum m, told or else taken as 0, the
        gradient of step t weighs 1 + m + ... + m^(s - t), t = 1 ... s, and the sum of these weights
        takes the place of s. With weight decay d, told or else taken as 0, what it added is taken
        off: d times the weights where the local gradients were taken on average, on the straight
        line from W0 to WT.

        Returns
        -------
        dict
            Parameter name to tensor.

        Raises
        ------
        MissingKnowledge
            When the client told no lr, epochs or batch size.

        References
        ----------
        Geng et al. 2021, arXiv 2110.09074.
        """

    @abstractmethod
    def as_gradient(self, place: float | None = None) -> "GradientUpdate":
        """The update read as one gradient, taken somewhere on the client's way.

        If the gradient changes evenly along the line from W0 to WT, the mean of the local gradients
        is the gradient where they were taken on average. So this reading is wrong only to second
        order in the length of the way; as the gradient at W0 the equivalent gradient is wrong to
        first order.

        Parameters
        ----------
        place
            Where on the way, 0 at W0 and 1 at WT. By default where the local gradients were taken
            on average, (s - 1) / (2 s) for s steps of plain SGD.

        Returns
        -------
        GradientUpdate
            A FedSGD update whose model is W0 + place (WT - W0). A FedSGD update is returned as it
            is. One of weights keeps their precision, which the gradient does not reach: see
            `WeightsUpdate`.

        Raises
        ------
        MissingKnowledge
            As `equivalent_gradient`.
        """

    def classifier_gradient(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The equivalent gradient of the classifier z = W o + b.

        Returns
        -------
        weight : (N, M)
            That of W.
        bias : (N,) or None
            That of b, None for a layer without bias.

        Raises
        ------
        MissingKnowledge
            When the client did not send the classifier's weights, and as `equivalent_gradient`.
        """
        gradient, name = self.equivalent_gradient(), self.classifier_name
        if f"{name}.weight" not in gradient:
            raise MissingKnowledge(f"the update has no gradient of the classifier's {name}.weight")
        return gradient[f"{name}.weight"].flatten(1), gradient.get(f"{name}.bias")

    @property
    def rounding(self) -> float:
        """How far rounding may have moved an entry of the classifier's bias gradient."""
        return 0.0

    @abstractmethod
    def of_summed_loss(self) -> Self:
        """The update of a client that sums its loss over the batch, in the scale of a mean.

        Steps of such a client are as long as those of a mean with lr times the samples of a step:
        a gradient is divided by K, of weights the lr is told as that. Exact where all steps have
        the same number of samples.

        Raises
        ------
        MissingKnowledge
            For weights, when the client told no lr, epochs or batch size.
        """

    def contradictions(self) -> list[str]:
        """What does not fit what is known of the client, in sentences; empty where all does.

        Where the client told too little for the scale of a gradient, only what needs none is seen.
        The bias gradient of a classifier that does not sum to zero may come from a defence, and is
        attacked all the same; the others are refused, see `refuse_contradictions`.

        Examples
        --------
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> update = Update(net, 2, (1, 2, 2), gradient={"1.bias": torch.tensor([-3.0, 2.0, 1.0])})
        >>> [sentence.partition(":")[0] for sentence in update.contradictions()]
        ['the bias gradient is at least 3 times as large as that of any mean cross-entropy']
        >>> update = Update(net, 4, (1, 2, 2), gradient=update.gradient).of_summed_loss()
        >>> update.contradictions(), update.gradient["1.bias"].tolist()
        ([], [-0.75, 0.5, 0.25])
        """
        return [*self.proven_contradictions(), *self.signs_of_change()]

    def refuse_contradictions(self) -> None:
        """Refuse an update that proves that what is known of the client is wrong.

        Raises
        ------
        Contradiction
            Says what is wrong.
        """
        proven = self.proven_contradictions()
        if proven:
            raise Contradiction("; ".join(proven))

    def bias_gradient(self) -> torch.Tensor | None:
        """Of the classifier, in the scale of one gradient.

        Returns
        -------
        Tensor (N,) or None
            None where that is not known.
        """
        try:
            return self.equivalent_gradient().get(f"{self.classifier_name}.bias")
        except MissingKnowledge:
            return None

    def signs_of_change(self) -> list[str]:
        """What is unlike the gradient of a mean cross-entropy, and may be so for good reasons."""
        bias = self.bias_gradient()
        if bias is None or sums_to_zero(bias, self.rounding):
            return []
        return [
            f"the bias gradient sums to {bias.sum():.2g}, not to zero: noise, a defence, weight "
            "decay, another loss than cross-entropy or another optimiser than SGD"
        ]

    def proven_contradictions(self) -> list[str]:
        """Those that no noise and no defence explains."""
        bias = self.bias_gradient()
        if bias is None or not sums_to_zero(bias, self.rounding):  # noise can do anything
            return []
        times = times_too_large(bias)
        if times == 1:
            return []
        return [
            f"the bias gradient is at least {times:.2g} times as large as that of any mean "
            "cross-entropy: if the client sums the loss over its batch, attack "
            f"update.of_summed_loss(){self.other_scales}"
        ]

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the model makes of images, at the classifier.

        Parameters
        ----------
        images : (K, C, H, W)
            In [0, 1].

        Returns
        -------
        features : (K, M)
            In front of the classifier.
        logits : (K, N)
            The output of the model.
        """
        features: list[torch.Tensor] = []
        layer = self.model.get_submodule(self.classifier_name)
        hook = layer.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
        try:
            logits = self.model(images)
        finally:
            hook.remove()
        pooled = features[-1].flatten(2).mean(2) if features[-1].ndim > 2 else features[-1]
        return pooled, logits

    def norm(self) -> float:
        """The L2 norm of the message, over all parameters."""
        squares = (tensor.detach().double().square().sum() for tensor in self.message().values())
        return sum(squares, torch.zeros((), dtype=torch.float64)).item() ** 0.5

    def __repr__(self) -> str:
        size = sum(tensor.numel() for tensor in self.sent.values())
        return (
            f"{type(self).__name__}({self.num_samples} samples of "
            f"{'x'.join(map(str, self.input_shape))}, {self.num_classes} classes, "
            f"{size:,} values sent)"
        )

    def __str__(self) -> str:
        size = sum(parameter.numel() for parameter in self.model.parameters())
        kind, what = ("FedSGD", "gradient") if self.holds == "gradient" else ("FedAvg", "WT - W0")
        shape = "x".join(map(str, self.input_shape))
        facts = ", ".join(f"{name} = {value:g}" for name, value in self.facts.items())
        layer = self.classifier
        bias = "no bias" if layer.bias is None else "bias"
        lines = [
            f"Update of a {kind} client, as an honest-but-curious server sees it",
            f"  model       {size:,} parameters",
            f"  classifier  {layer.name!r}: {layer.weight.shape[1]} features, "
            f"{self.num_classes} classes, {bias}",
            f"  batch norm  {batch_norm_mode(self.model)}",
            f"  {what:<10}  {len(self.sent)} tensors, norm {self.norm():.4g}",
        ]
        if self.precision > ROUNDING[torch.float32]:
            lines.append(f"  precision   {self.precision:.2g}, the relative error of a value")
        if self.statistics:
            lines.append(f"  statistics  of what entered {len(self.statistics)} batch norm layers")
        return "\n".join(
            [
                *lines,
                f"  samples     {self.num_samples} of shape {shape}",
                f"  told        {facts or 'nothing else'}",
                "  hidden      images, labels, their order",
                *(f"  but         {sentence}" for sentence in self.contradictions()),
            ]
        )

    def save(self, path: str | Path) -> None:
        """Write all that the update holds, with the model's weights, as one safetensors file.

        Parameters
        ----------
        path
            Of the file.

        Examples
        --------
        >>> import tempfile
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> sent = {"1.weight": torch.ones(3, 4)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Update(net, 2, (1, 2, 2), gradient=sent).save(f"{folder}/update")
        ...     update = Update.load(f"{folder}/update", net)
        >>> update
        GradientUpdate(2 samples of 1x2x2, 3 classes, 12 values sent)
        """
        statistics = {
            f"{layer}.{kind}": value
            for layer, pair in self.statistics.items()
            for kind, value in zip(KINDS, pair, strict=True)
        }
        about = {
            "num_samples": self.num_samples,
            "input_shape": self.input_shape,
            "training": self.model.training,
            "facts": dict(self.facts),
        }
        if not isinstance(self.precision, Derived):
            about["precision"] = self.precision
        parts = {"model": self.model.state_dict(), self.holds: self.sent, "statistics": statistics}
        write_parts(path, parts, about)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module) -> "Update":
        """Read what `save` wrote.

        Parameters
        ----------
        path
            Of the file.
        model
            Gives the architecture; its weights come from the file.

        Raises
        ------
        FileNotFoundError
            When there is no such file.
        ValueError
            When the file is not an update or is one of another architecture.
        """
        parts, about = read_parts(path, ("model", "gradient", "weights_after", "statistics"))
        weights, statistics = parts.pop("model"), parts.pop("statistics")
        try:
            model = as_sent(model, about["training"])
            weights = without_prefix(weights, model.state_dict())
            statistics = without_prefix(
                statistics, {f"{n}.{kind}": 0 for n in batch_norms(model) for kind in KINDS}
            )
            check_fits(weights, model.state_dict(), what="the saved model", complete=True)
            model.load_state_dict(weights)
            layers = {name.rpartition(".")[0] for name in statistics}
            known = {n: (statistics[f"{n}.mean"], statistics[f"{n}.variance"]) for n in layers}
            kind = GradientUpdate if parts["gradient"] else WeightsUpdate
            sent: dict[str, Any] = {kind.holds: parts[kind.holds]}
            return kind(
                model,
                about["num_samples"],
                about["input_shape"],
                facts=about["facts"],
                statistics=known,
                precision=about.get("precision", Derived("nan")),
                **sent,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a whole update: {error}") from error

    @classmethod
    def from_weights(
        cls,
        before: Weights | None,
        after: Weights,
        model: nn.Module,
        *,
        num_samples: int,
        input_shape: tuple[int, int, int],
        training: bool = True,
        delta: bool = False,
        statistics: Statistics | None = None,
        **facts: float | None,
    ) -> "WeightsUpdate":
        """A FedAvg update from the weights before and after, as any client or server stored them.

        Parameters
        ----------
        before, after
            A file (.safetensors, .npz, .pt, .pth), a mapping of name to tensor or array, or a
            sequence of arrays in the order of `model.state_dict()`, with or without its buffers, as
            Flower sends them. `before` has all parameters, or is None for the model as it stands;
            `after` may lack what was not sent. Buffers, such as the running statistics of batch
            norm, are taken from `before`, else from the model; those in `after` tell what entered
            the layers, see `statistics`. Names that all begin with "module.",
            "_orig_mod." or "_module.", as DataParallel, compile and Opacus have them, are taken
            without it; sparse tensors as what they stand for.
        model
            Gives the architecture.
        num_samples
            K, how many samples the client used.
        input_shape
            (C, H, W) of one image.
        training
            The mode in which the client ran the model.
        delta
            Whether `after` holds the difference WT - W0 in place of WT.
        statistics
            Of what entered batch norm layers at the client, where they are known. By default they
            are read off the buffers that came back, as far as those tell them: see `gleak.buffers`.
        facts
            What is known besides, such as lr, epochs, batch_size, momentum, drop_last and
            weight_decay; None is not told.

        Raises
        ------
        ValueError
            Where names, shapes or values do not fit, or for a file that cannot be trusted.
        Contradiction
            Where `after` is plainly a difference and delta is not set, or its buffers moved and
            training is not.
        FileNotFoundError
            When there is no such file.

        Examples
        --------
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> after = [weights.detach() - 0.1 for weights in net.parameters()]
        >>> known = {"num_samples": 2, "input_shape": (1, 2, 2)}
        >>> update = Update.from_weights(None, after, net, **known, lr=0.1)
        >>> update
        WeightsUpdate(2 samples of 1x2x2, 3 classes, 15 values sent)
        >>> update.told("lr")
        [0.1]
        """
        model = as_sent(model, training)
        if before is not None:
            before = named_tensors(
                before, model.state_dict(), dict(model.named_parameters()), "before"
            )
        end = named_tensors(after, model.state_dict(), dict(model.named_parameters()), "after")
        trained = trained_weights(before, end, model, delta)
        if statistics is None:
            start = model.state_dict() if before is None else before
            statistics, _ = statistics_from(
                model,
                start,
                end,
                num_samples=num_samples,
                input_shape=input_shape,
                facts=facts,
                delta=delta,
            )
        if not delta and is_a_difference(dict(model.named_parameters()), trained):
            raise Contradiction(
                "`after` is near zero and far from the weights before, as a difference WT - W0 is: "
                "with delta=True it is taken as one"
            )
        return WeightsUpdate(
            model,
            num_samples,
            input_shape,
            weights_after=trained,
            facts={name: value for name, value in facts.items() if value is not None},
            statistics=statistics or {},
        )

    @classmethod
    def from_gradient(
        cls,
        gradient: Weights,
        model: nn.Module,
        *,
        num_samples: int,
        input_shape: tuple[int, int, int],
        training: bool = True,
        statistics: Statistics | None = None,
        **facts: float | None,
    ) -> "GradientUpdate":
        """A FedSGD update from a gradient as any client or server stored it.

        Parameters
        ----------
        gradient
            As `after` of `from_weights`; a sequence is in the order of `model.parameters()`.
        model
            The network as the server sent it. It is copied, not changed.
        num_samples, input_shape, training, statistics, facts
            As for `from_weights`.

        Raises
        ------
        ValueError
            Where names, shapes or values do not fit, or for a file that cannot be trusted.
        FileNotFoundError
            When there is no such file.

        Examples
        --------
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> sent = [torch.ones(3, 4), torch.zeros(3)]
        >>> Update.from_gradient(sent, net, num_samples=2, input_shape=(1, 2, 2))
        GradientUpdate(2 samples of 1x2x2, 3 classes, 15 values sent)
        """
        parameters = dict(model.named_parameters())
        return GradientUpdate(
            as_sent(model, training),
            num_samples,
            input_shape,
            gradient=named_tensors(gradient, parameters, parameters, "gradient"),
            facts={name: value for name, value in facts.items() if value is not None},
            statistics=statistics or {},
        )


@final
@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class GradientUpdate(Update):
    """What a FedSGD client sends, with all that the server knows besides.

    All settings but `gradient` are those of `Update`.

    Parameters
    ----------
    gradient
        Parameter name to gradient of the mean cross-entropy over the batch.

    Examples
    --------
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> sent = {"1.weight": torch.ones(3, 4), "1.bias": torch.zeros(3)}
    >>> update = GradientUpdate(net, 2, (1, 2, 2), gradient=sent)
    >>> update.norm() == 12**0.5, update.classifier.name, update.local_steps
    (True, '1', 1)
    >>> update.told("lr")
    Traceback (most recent call last):
    gleak.update.MissingKnowledge: this needs lr, which the client did not tell
    """

    gradient: Mapping[str, torch.Tensor]
    holds: ClassVar[str] = "gradient"

    @property
    def local_steps(self) -> int:
        return 1

    def message(self) -> dict[str, torch.Tensor]:
        return dict(self.gradient)

    def equivalent_gradient(self) -> dict[str, torch.Tensor]:
        return dict(self.gradient)

    def as_gradient(self, place: float | None = None) -> "GradientUpdate":
        return self

    def of_summed_loss(self) -> Self:
        mean = {name: value / self.num_samples for name, value in self.gradient.items()}
        return replace(self, gradient=mean, precision=float(self.precision))


@final
@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class WeightsUpdate(Update):
    """What a FedAvg client sends, with all that the server knows besides.

    All settings but `weights_after` are those of `Update`.

    Its precision is that of the weights, before any difference is taken: a value w of WT is off by
    up to precision |w|, and so is that of WT - W0, which may be much smaller. The equivalent
    gradient is then off by up to precision |w| / (lr s) from rounding what was sent, and where the
    client also trained with these digits, so that each of its s steps rounded, by up to
    precision |w| / lr.

    Parameters
    ----------
    weights_after
        Parameter name to value after local training.

    Examples
    --------
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> after = {"1.bias": net[1].bias.detach() - 0.5}
    >>> facts = {"lr": 0.1, "epochs": 5, "batch_size": 2}
    >>> update = WeightsUpdate(net, 2, (1, 2, 2), weights_after=after, facts=facts)
    >>> update.local_steps  # each moved the bias by lr = 0.1 times the gradient
    5
    >>> update.equivalent_gradient()["1.bias"].round(decimals=4)
    tensor([1., 1., 1.])
    >>> update.as_gradient()
    GradientUpdate(2 samples of 1x2x2, 3 classes, 3 values sent)
    """

    weights_after: Mapping[str, torch.Tensor]
    holds: ClassVar[str] = "weights_after"
    other_scales: ClassVar[str] = (
        "; else its lr, epochs or batch_size are not as told, or it has a momentum that it did "
        "not tell"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if {"epochs", "batch_size"} <= self.facts.keys() and self.local_steps < 1:
            raise ValueError(
                f"drop_last leaves no step of {self.facts['batch_size']} from "
                f"{self.num_samples} samples"
            )

    @property
    def local_steps(self) -> int:
        epochs, batch_size = self.told("epochs", "batch_size")
        whole, rest = divmod(self.num_samples, int(batch_size))
        return int(epochs) * (whole + (rest > 0 and not self.facts.get("drop_last", False)))

    def message(self) -> dict[str, torch.Tensor]:
        before = dict(self.model.named_parameters())
        return {name: after - before[name].detach() for name, after in self.weights_after.items()}

    def equivalent_gradient(self) -> dict[str, torch.Tensor]:
        (lr,) = self.told("lr")
        momentum, decay = (self.facts.get(name, 0.0) for name in ("momentum", "weight_decay"))
        weight = weight_of_steps(self.local_steps, momentum)
        before = dict(self.model.named_parameters())
        gradient = {
            name: (before[name].detach() - after) / (lr * weight)
            for name, after in self.weights_after.items()
        }
        if decay:
            place = mean_place(self.local_steps, momentum)
            for name, after in self.weights_after.items():
                gradient[name] -= decay * before[name].detach().to(after).lerp(after, place)
        return gradient

    def as_gradient(self, place: float | None = None) -> GradientUpdate:
        gradient, model = self.equivalent_gradient(), copy.deepcopy(self.model)
        if place is None:
            place = mean_place(self.local_steps, self.facts.get("momentum", 0.0))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name in self.weights_after:
                    weight.lerp_(self.weights_after[name].to(weight), place)
        return GradientUpdate(
            model,
            self.num_samples,
            self.input_shape,
            gradient=gradient,
            facts=self.facts,
            precision=float(self.precision),  # the digits of a difference do not show it
            statistics=self.statistics,
            classifier_name=self.classifier_name,
        )

    @property
    def rounding(self) -> float:
        name = f"{self.classifier_name}.bias"
        if name not in self.weights_after or "lr" not in self.facts:
            return 0.0
        after = self.weights_after[name]
        before = self.model.get_parameter(name)
        exact = max(self.precision, torch.finfo(after.dtype).eps)
        return exact * max(before.abs().max().item(), after.abs().max().item()) / self.facts["lr"]

    def of_summed_loss(self) -> Self:
        lr, epochs = self.told("lr", "epochs")
        batch_size = min(self.told("batch_size")[0], self.num_samples)
        dropped = bool(self.facts.get("drop_last", False))
        samples = batch_size if dropped else epochs * self.num_samples / self.local_steps
        return replace(self, facts={**self.facts, "lr": lr * samples})

    def proven_contradictions(self) -> list[str]:
        before = dict(self.model.named_parameters())
        if is_a_difference(before, self.weights_after):
            return [
                "the weights after training are near zero and far from those before, as a "
                "difference WT - W0 is: Update.from_weights takes it with delta=True"
            ]
        if self.moved_alike():
            return [
                "most weights changed by nearly the same size, as by the steps of Adam, RMSprop, "
                "Adagrad or signs, which do not show the size of a gradient: what is done here "
                "needs a client of SGD"
            ]
        return super().proven_contradictions()

    def moved_alike(self) -> bool:
        """Whether the weights changed as by Adam: alike, by lr a step, unlike any SGD."""
        bias = self.bias_gradient()
        if bias is None or sums_to_zero(bias, self.rounding):
            return False
        gradient = self.equivalent_gradient()
        far = max(value.abs().max().item() for value in gradient.values()) > 0.5
        return far and sizes_alike(gradient)


def statistics_from(
    model: nn.Module,
    before: Mapping[str, torch.Tensor],
    after: Mapping[str, torch.Tensor],
    *,
    num_samples: int,
    input_shape: tuple[int, int, int],
    facts: Mapping[str, float | None],
    delta: bool = False,
) -> tuple[Statistics, str]:
    """What the buffers of a client tell of what entered its batch norm, else why they do not.

    model: as it was sent, with all that stands in `before`. delta: `after` holds differences.

    Raises Contradiction where running statistics moved in a network that is in eval mode.
    """
    own = model.state_dict()
    sent = {name: value for name, value in after.items() if name in before and name in own}
    if delta:
        sent = {name: own[name] + value.to(own[name]) for name, value in sent.items()}
    if not model.training:
        if have_moved(model, sent):
            raise Contradiction(
                "the running statistics of batch norm came back changed, so the client trained "
                "in train mode: say training=True"
            )
        return {}, "the client ran batch norm in eval mode"
    epochs, size = facts.get("epochs"), facts.get("batch_size")
    steps = None if epochs is None or size is None else int(epochs) * -(-num_samples // int(size))
    if facts.get("drop_last") and size and num_samples % min(int(size), num_samples):
        return {}, "the last, smaller step was left out, so they are of some of the images"
    return statistics_sent(model, sent, num_samples, input_shape, steps)


def checked_facts(facts: Mapping[str, float]) -> dict[str, float]:
    """Plain finite numbers, and those in FACTS in their range; else ValueError."""
    for name, value in facts.items():
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"facts are plain numbers; {name!r} is {value!r:.50}")
        if name in FACTS:
            holds, words = FACTS[name]
            if not holds(value):
                raise ValueError(f"the fact {name} must be {words}; got {value}")
    return dict(facts)


def checked_statistics(statistics: Statistics, model: nn.Module) -> dict[str, Any]:
    """Name of a batch norm layer -> mean and variance (channels,); else ValueError."""
    norms, checked = batch_norms(model), {}
    unknown = sorted(set(statistics) - set(norms))
    if unknown:
        raise ValueError(f"the model has no batch norm layer {', '.join(unknown)}")
    for name, pair in statistics.items():
        values, size = [torch.as_tensor(value) for value in pair], norms[name].num_features
        if len(values) != 2 or any(value.shape != (size,) for value in values):
            raise ValueError(f"the statistics of {name} are a mean and a variance of {size}")
        mean, variance = values
        if not (mean.isfinite().all() and variance.isfinite().all() and variance.min() >= 0):
            raise ValueError(f"the statistics of {name} must be finite, the variance >= 0")
        checked[name] = (mean, variance)
    return checked


def weight_of_steps(steps: int, momentum: float) -> float:
    """How much the gradients of all local steps weigh in W0 - WT: their number, for plain SGD.

    Examples
    --------
    >>> weight_of_steps(3, 0.0), weight_of_steps(2, 0.5)
    (3.0, 2.5)
    """
    return sum(momentum**later * (steps - later) for later in range(steps))


def mean_place(steps: int, momentum: float) -> float:
    """Where the local gradients were taken on average, 0 at W0 and 1 at WT, each as it weighs in
    W0 - WT.

    Examples
    --------
    >>> mean_place(1, 0.0), mean_place(4, 0.0)
    (0.0, 0.375)
    """
    gone = [weight_of_steps(step, momentum) for step in range(steps + 1)]  # before each step
    weights = [later - sooner for sooner, later in pairwise(gone)][::-1]  # the first weighs most
    return sum(w * place for w, place in zip(weights, gone, strict=False)) / gone[-1] ** 2
