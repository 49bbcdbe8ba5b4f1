"""What a label method works on: the update's last layer, and the statistics it may lean on."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from gleak.data import Batch
from gleak.update import MissingKnowledge, Update, WeightsUpdate

PATH = {"start": (0.0,), "end": (1.0,), "average": (0.0, 1.0)}
DISTRIBUTIONS = ("gaussian", "natural")
FEW = 32  # random inputs for what needs no precision


@dataclass(frozen=True, eq=False)
class Case:
    """One update, and how statistics are to be taken: random inputs, or `aux` data with labels.

    inputs, distribution: how many random inputs, and of which kind; see `random_inputs`.
    along: for FedAvg, the weights at which statistics are taken: those that the server sent
    (start), those that came back (end), or both (average).
    """

    update: Update
    seed: int = 0
    inputs: int = 1000
    distribution: str = "gaussian"
    aux: Batch | None = None
    along: str = "start"

    @property
    def k(self) -> int:
        return self.update.num_samples

    @property
    def n(self) -> int:
        return self.update.num_classes

    @cached_property
    def weight_gradient(self) -> torch.Tensor:
        """(N, M): 1/K sum_k (p_k - y_k) o_k, in float64."""
        return self.update.classifier_gradient()[0].double()

    @cached_property
    def bias_gradient(self) -> torch.Tensor:
        """(N,): 1/K sum_k (p_k - y_k), in float64."""
        gradient = self.update.classifier_gradient()[1]
        if gradient is None:
            raise MissingKnowledge(
                "this method needs the gradient of the classifier's bias, which this update does "
                "not hold; zlg works from the weight gradient"
            )
        return gradient.double()

    @cached_property
    def weight(self) -> torch.Tensor:
        """W (N, M), for FedAvg at the chosen place along the path."""
        return self.path_mean(lambda update: update.classifier.weight)

    @cached_property
    def bias(self) -> torch.Tensor:
        """The classifier's bias b (N,)."""
        return self.path_mean(lambda update: update.classifier.bias)

    @property
    def places(self) -> list[Update]:
        """The update with its model at each place along the path where statistics are taken."""
        if not isinstance(self.update, WeightsUpdate):
            return [self.update]
        return [self.update.as_gradient(place) for place in PATH[self.along]]

    def at(self, place: float) -> "Case":
        """The case with its update read as one gradient, taken at W0 + place (WT - W0)."""
        if not isinstance(self.update, WeightsUpdate):
            return self
        return replace(self, update=self.update.as_gradient(place))

    def path_mean(self, of) -> torch.Tensor:
        values = [of(update).double() for update in self.places]
        return sum(values) / len(values)

    @cached_property
    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Softmax (S, N) and features (S, M) of the aux data, or else of random inputs."""
        if self.aux is not None:
            return forward_all(self.places, self.aux.images)
        if self.inputs < FEW:
            return self.zero_shot(self.inputs, self.distribution)
        few = self.few_gaussian if self.distribution == "gaussian" else self.few_natural
        if self.inputs == FEW:
            return few
        more = self.zero_shot(self.inputs - FEW, self.distribution, first=FEW)
        return torch.cat([few[0], more[0]]), torch.cat([few[1], more[1]])

    def zero_shot(self, count: int, distribution: str, first: int = 0) -> tuple[torch.Tensor, ...]:
        """Softmax (S, N) and features (S, M) of random inputs, numbers `first` and following."""
        images = random_inputs(count, self.update.input_shape, [self.seed, first], distribution)
        return forward_all(self.places, images)

    @cached_property
    def few_gaussian(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.zero_shot(FEW, "gaussian")

    @cached_property
    def few_natural(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.zero_shot(FEW, "natural")

    @cached_property
    def class_softmax(self) -> torch.Tensor:
        """Q (N, N): row n is the mean softmax of the aux data of class n."""
        return self.by_class(self.statistics[0])

    def by_class(self, values: torch.Tensor) -> torch.Tensor:
        """Mean of `values` (S, ...) over the aux data of each class: (N, ...)."""
        if self.aux is None:
            raise MissingKnowledge(
                "this method needs auxiliary data with labels: give aux=Batch(...)"
            )
        labels = self.aux.labels.repeat(len(self.places))
        absent = sorted(set(range(self.n)) - set(labels.tolist()))
        if absent:
            raise MissingKnowledge(f"aux needs samples of every class; none of {absent[:10]}")
        return torch.stack([values[labels == c].mean(0) for c in range(self.n)])

    @cached_property
    def non_negative(self) -> bool:
        """Whether the features in front of the classifier stay at or above zero."""
        features = self.few_gaussian[1]
        return bool(features.min() >= -1e-6 * features.abs().max())

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
        rounding = self.rounding("weight") + 1e-6 * gradient.abs().amax(1, keepdim=True)
        return (gradient >= -rounding).all(1).cpu().numpy()

    def rounding(self, kind: str) -> torch.Tensor:
        """How far rounding may have moved grad W (N, M) or grad b (N,), for `kind` weight or bias.

        Each local step rounds the weights by half a digit at most, which for the gradient is lr
        times less. An update that holds the gradient itself has none of this.
        """
        before = getattr(self.update.classifier, kind)
        if not isinstance(self.update, WeightsUpdate):
            return torch.zeros_like(before, dtype=torch.float64)
        after = self.update.weights_after[f"{self.update.classifier.name}.{kind}"]
        size = torch.maximum(before.abs(), after.abs()).double()
        return torch.finfo(after.dtype).eps / 2 * size / self.update.told("lr")[0]

    def need_non_negative(self) -> None:
        """Raise ValueError where the classifier's inputs can be negative."""
        if not self.non_negative:
            raise ValueError(
                "this method reads signs, so it needs features that are never negative (a ReLU or "
                "sigmoid in front of the classifier); those of this model are"
            )


def random_inputs(count: int, shape, seed: list[int], distribution: str) -> torch.Tensor:
    """Images (S, C, H, W) drawn without any data.

    gaussian: each pixel with mean 1/2 and deviation 1/4: about N(0, 1) after the normalisation.
    natural: smooth, as photographs are: an amplitude of 1/f over the frequencies f, with random
    brightness and contrast, in [0, 1].
    """
    mixed = np.random.SeedSequence(seed).generate_state(1).item()
    generator = torch.Generator().manual_seed(mixed)
    noise = torch.randn(count, *shape, generator=generator)
    if distribution == "gaussian":
        return 0.5 + 0.25 * noise
    down, across = (torch.fft.fftfreq(side) for side in shape[1:])
    frequency = (down[:, None].square() + across.square()).sqrt()
    frequency[0, 0] = torch.inf  # the mean is drawn apart
    smooth = torch.fft.ifft2(torch.fft.fft2(noise) / frequency).real
    smooth = smooth / smooth.std((1, 2, 3), keepdim=True).clamp_min(1e-12)
    brightness, contrast = torch.rand(2, count, 1, 1, 1, generator=generator)
    return (0.2 + 0.6 * brightness + (0.05 + 0.3 * contrast) * smooth).clamp(0, 1)


def forward_all(places: list[Update], images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Softmax and features of the images at each place, one after the other, in float64."""
    softmax, features = [], []
    for update in places:
        parameter = next(update.model.parameters())
        for part in images.split(125):  # in pieces, for the memory's sake
            out, logits = update.forward(part.to(parameter))
            features.append(out.double())
            softmax.append(logits.double().softmax(1))
    return torch.cat(softmax), torch.cat(features)
