"""The last layer of a network, z = W o + b, and its gradient: what every label method works on."""

from functools import cached_property, partial

import numpy as np
import torch

from gleak.data import Batch
from gleak.labels import tolerance
from gleak.labels.statistics import Drawn, Given, SoftmaxAndFeatures, Statistics
from gleak.update import MissingKnowledge, Update, WeightsUpdate

# The places along a client's way where statistics may be taken, 0 at W0 and 1 at WT.
PATH = {"start": (0.0,), "end": (1.0,), "average": (0.0, 1.0)}


class LastLayer:
    """The last layer's weights, their gradient, and statistics that a method may lean on.

    All tensors are in float64, but for `sent_gradient` and `sent_weight`: those of the weight as
    they came, for what looks at a large classifier without a copy of it.

    Parameters
    ----------
    weight_gradient : (N, M)
        That of the mean cross-entropy over the client's batch, 1/K sum_k (p_k - y_k) o_k.
    bias_gradient : (N,) or None
        The same for the bias, 1/K sum_k (p_k - y_k).
    weight : (N, M)
        W.
    bias : (N,) or None
        b.
    num_samples
        K.
    precision
        Relative error of the gradients, from rounding or noise; what the coarser of their formats
        leaves, unless it is told to be worse. See `gleak.labels.tolerance`.
    statistics
        Softmax (S, N) and features (S, M) of any images as a tuple, or an object such as `Drawn`;
        without them, methods that need some raise MissingKnowledge.
    seed
        Of what methods draw besides.

    Raises
    ------
    ValueError
        Where shapes do not fit.

    Examples
    --------
    >>> from gleak.labels import rules
    >>> gradient, bias_gradient = torch.tensor([[-0.5] * 4, [0.5] * 4]), torch.tensor([-0.25, 0.25])
    >>> softmax, features = torch.tensor([[0.75, 0.25]]), torch.ones(1, 4)
    >>> layer = LastLayer(
    ...     gradient, bias_gradient, torch.zeros(2, 4), torch.zeros(2), num_samples=4,
    ...     statistics=(softmax, features),
    ... )
    >>> rules.zlg(layer).tolist(), rules.zlg_bias(layer).tolist()
    ([5.0, -1.0], [4.0, 0.0])
    >>> layer.precision == 2.0**-24
    True
    """

    def __init__(
        self,
        weight_gradient: torch.Tensor,
        bias_gradient: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        num_samples: int,
        *,
        precision: float | None = None,
        statistics: Statistics | tuple[torch.Tensor, torch.Tensor] | None = None,
        seed: int = 0,
    ):
        if weight_gradient.shape != weight.shape or weight.ndim != 2:
            shapes = tuple(weight_gradient.shape), tuple(weight.shape)
            raise ValueError("the gradient of W has shape {}, W {}".format(*shapes))
        for value in (bias_gradient, bias):
            if value is not None and value.shape != weight.shape[:1]:
                raise ValueError(f"b and its gradient have one number a class, {len(weight)}")
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1; got {num_samples}")
        sent = [t.dtype for t in (weight_gradient, bias_gradient) if t is not None]
        self.precision = max(precision or 0.0, tolerance.of_dtype(*sent))
        self.sent_gradient, self.sent_weight = weight_gradient.detach(), weight.detach()
        self._bias_gradient = None if bias_gradient is None else bias_gradient.double()
        self._bias = None if bias is None else bias.double()
        self.num_samples, self.seed = num_samples, seed
        self._statistics = Given(*statistics) if isinstance(statistics, tuple) else statistics
        self._update: Update | None = None  # where it was read from, by `of`
        self._settings: dict = {}

    @classmethod
    def of(
        cls,
        source: "Update | LastLayer",
        *,
        seed: int = 0,
        inputs: int = 1000,
        distribution: str = "gaussian",
        aux: Batch | None = None,
        along: str = "start",
        precision: float | None = None,
    ) -> "LastLayer":
        """The last layer of an update, with statistics of random inputs or of `aux`, see `Drawn`.

        along: for FedAvg, the weights at which statistics are taken: those that the server sent
        (start), those that came back (end), or both (average); W and b are theirs, too.
        precision: that of the update, unless given.
        A LastLayer is returned as it is.

        Raises MissingKnowledge for weights whose client did not tell how they were trained, and
        where the classifier was not sent.

        >>> import gleak
        >>> batch = gleak.load_batch("cifar10-samples", indices=[0, 1])
        >>> update = gleak.fedsgd(gleak.build_model("lenet", batch), batch)
        >>> LastLayer.of(update)
        LastLayer(10 classes, 768 features, bias, 2 samples, precision 6e-08)
        """
        if isinstance(source, LastLayer):
            return source
        places = [source]
        if isinstance(source, WeightsUpdate):
            places = [source.as_gradient(place) for place in PATH[along]]
        biases = [place.classifier.bias for place in places if place.classifier.bias is not None]
        weight_gradient, bias_gradient = source.classifier_gradient()
        layer = cls(
            weight_gradient,
            bias_gradient,
            mean([place.classifier.weight for place in places]),
            mean(biases) if biases else None,
            source.num_samples,
            precision=source.precision if precision is None else precision,
            statistics=Drawn(
                partial(forward_all, places), source.input_shape, seed, inputs, distribution, aux
            ),
            seed=seed,
        )
        layer._update = source
        layer._settings = {
            "seed": seed,
            "inputs": inputs,
            "distribution": distribution,
            "aux": aux,
            "along": along,
            "precision": precision,
        }
        return layer

    def __repr__(self) -> str:
        classes, features = self.sent_weight.shape
        bias = "no bias" if self._bias_gradient is None else "bias"
        return (
            f"LastLayer({classes} classes, {features} features, {bias}, {self.k} samples, "
            f"precision {self.precision:.0e})"
        )

    @cached_property
    def weight_gradient(self) -> torch.Tensor:
        """(N, M)."""
        return self.sent_gradient.double()

    @cached_property
    def weight(self) -> torch.Tensor:
        """W (N, M)."""
        return self.sent_weight.double()

    @property
    def k(self) -> int:
        return self.num_samples

    @property
    def n(self) -> int:
        return len(self.sent_weight)

    @property
    def bias_gradient(self) -> torch.Tensor:
        """(N,); MissingKnowledge where there is none."""
        if self._bias_gradient is None:
            raise MissingKnowledge(
                "this method needs the gradient of the classifier's bias, which this update does "
                "not hold; zlg works from the weight gradient"
            )
        return self._bias_gradient

    @property
    def bias(self) -> torch.Tensor:
        """b (N,); MissingKnowledge where there is none."""
        if self._bias is None:
            raise MissingKnowledge("this method needs a classifier with a bias")
        return self._bias

    @property
    def has_bias(self) -> bool:
        """Whether the layer has a bias and its gradient was sent."""
        return self._bias is not None and self._bias_gradient is not None

    @cached_property
    def sums(self) -> tuple[torch.Tensor, torch.Tensor]:
        """K grad W (N, M) and K grad b (N,): sums over the samples."""
        return self.k * self.weight_gradient, self.k * self.bias_gradient

    # What is known of the client's training, if the layer is that of an update.

    @property
    def of_weights(self) -> bool:
        """Whether the gradient was worked out of the weights after local training."""
        return isinstance(self._update, WeightsUpdate)

    @property
    def local_steps(self) -> int:
        return 1 if self._update is None else self._update.local_steps

    @property
    def weighs_alike(self) -> bool:
        """Whether each sample weighs the same in the gradient."""
        return self._update is None or self._update.weighs_alike

    @property
    def lr(self) -> float:
        """The client's learning rate; MissingKnowledge where it is not known."""
        if self._update is None:
            raise MissingKnowledge("this needs lr, which belongs to weights after local training")
        return self._update.told("lr")[0]

    def at(self, place: float | None) -> "LastLayer":
        """The same, with weights read as one gradient, taken at W0 + place (WT - W0).

        place: None for where the local gradients were taken on average.
        """
        if not isinstance(self._update, WeightsUpdate):
            return self
        return LastLayer.of(self._update.as_gradient(place), **self._settings)

    def rounding(self, kind: str) -> torch.Tensor:
        """How far rounding may have moved grad W (N, M) or grad b (N,), for `kind` weight or bias.

        Each local step rounds the weights by half a digit at most, which for the gradient is lr
        times less. An update that holds the gradient itself has none of this.
        """
        if not isinstance(self._update, WeightsUpdate):
            return torch.zeros_like(self.weight if kind == "weight" else self.bias)
        layer = self._update.classifier
        before = getattr(layer, kind)
        after = self._update.weights_after[f"{layer.name}.{kind}"].view_as(before)
        size = torch.maximum(before.abs(), after.abs()).double()
        return tolerance.of_dtype(after.dtype) * size / self.lr

    # What random inputs or data say.

    @property
    def source(self) -> Statistics:
        """Where statistics come from; MissingKnowledge where there are none."""
        if self._statistics is None:
            raise MissingKnowledge(
                "this method needs softmax and features of some images: give statistics=..."
            )
        return self._statistics

    @property
    def statistics(self) -> SoftmaxAndFeatures:
        """Softmax (S, N) and features (S, M) of the aux data, or else of random inputs."""
        return self.source.chosen

    @property
    def few_gaussian(self) -> SoftmaxAndFeatures:
        """Those of a few random inputs."""
        return self.source.few_gaussian

    @property
    def few_natural(self) -> SoftmaxAndFeatures:
        """Those of a few smooth random inputs."""
        return self.source.few_natural

    @property
    def labels(self) -> torch.Tensor | None:
        """Those of the aux data (S,), None without any."""
        return None if self._statistics is None else self._statistics.labels

    @cached_property
    def class_softmax(self) -> torch.Tensor:
        """Q (N, N): row n is the mean softmax of the aux data of class n."""
        return self.by_class(self.statistics[0])

    def by_class(self, values: torch.Tensor) -> torch.Tensor:
        """Mean of `values` (S, ...) over the aux data of each class: (N, ...)."""
        labels = self.labels
        if labels is None:
            raise MissingKnowledge(
                "this method needs auxiliary data with labels: give aux=Batch(...)"
            )
        absent = sorted(set(range(self.n)) - set(labels.tolist()))
        if absent:
            raise MissingKnowledge(f"aux needs samples of every class; none of {absent[:10]}")
        return torch.stack([values[labels == c].mean(0) for c in range(self.n)])

    # What the features' signs say.

    @cached_property
    def non_negative(self) -> bool:
        """Whether the features in front of the classifier stay at or above zero."""
        features = self.few_gaussian[1]
        return bool(features.min() >= -tolerance.zero(self.precision) * features.abs().max())

    @cached_property
    def unseen(self) -> np.ndarray:
        """Classes (N,) without a negative entry in their row of grad W: most likely absent.

        Where features can be negative no row tells, and all are False. Without images of its class
        a row is a sum of p_kn o_k, which rounding makes negative by a tiny part of itself at most.
        So even an image that the network is all but sure of may show.
        """
        if not self.non_negative:
            return np.zeros(self.n, dtype=bool)
        gradient = self.weight_gradient
        largest = gradient.abs().amax(1, keepdim=True)
        rounding = self.rounding("weight") + tolerance.zero(self.precision) * largest
        return (gradient >= -rounding).all(1).cpu().numpy()

    def need_non_negative(self) -> None:
        """Raise ValueError where the classifier's inputs can be negative."""
        if not self.non_negative:
            raise ValueError(
                "this method reads signs, so it needs features that are never negative (a ReLU or "
                "sigmoid in front of the classifier); those of this model are"
            )

    def clamp(self, features: torch.Tensor) -> torch.Tensor:
        """Features without what these cannot be: negative, behind a ReLU or sigmoid."""
        return features.clamp_min(0) if self.non_negative else features


def mean(values: list[torch.Tensor]) -> torch.Tensor:
    """In float64, but for a single one, which stays as it is."""
    return (
        values[0] if len(values) == 1 else torch.stack([value.double() for value in values]).mean(0)
    )


def forward_all(places: list[Update], images: torch.Tensor) -> SoftmaxAndFeatures:
    """Softmax and features of the images at each place, one after the other, in float64."""
    softmax, features = [], []
    for update in places:
        parameter = next(update.model.parameters())
        for part in images.split(125):  # in pieces, for the memory's sake
            out, logits = update.forward(part.to(parameter))
            features.append(out.double())
            softmax.append(logits.double().softmax(1))
    return torch.cat(softmax), torch.cat(features)
