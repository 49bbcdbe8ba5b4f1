"""Where a label method takes softmax and features from: random inputs, data, or given tensors."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from gleak.data import Batch

DISTRIBUTIONS = ("gaussian", "natural")
FEW = 32  # random inputs for what needs no precision

SoftmaxAndFeatures = tuple[torch.Tensor, torch.Tensor]  # (S, N) and (S, M), in float64


class Statistics(Protocol):
    """What a `LastLayer` asks for. labels: (S,) of the chosen ones, None where they have none."""

    @property
    def labels(self) -> torch.Tensor | None: ...

    @property
    def chosen(self) -> SoftmaxAndFeatures:
        """Those that rules work with."""

    @property
    def few_gaussian(self) -> SoftmaxAndFeatures:
        """Those of a few random images made of noise."""

    @property
    def few_natural(self) -> SoftmaxAndFeatures:
        """Those of a few smooth random images."""


@dataclass(frozen=True, eq=False)
class Given:
    """Softmax (S, N), features (S, M) and perhaps labels (S,), the same for every purpose."""

    softmax: torch.Tensor
    features: torch.Tensor
    labels: torch.Tensor | None = None

    @property
    def chosen(self) -> SoftmaxAndFeatures:
        return self.softmax.double(), self.features.double()

    few_gaussian = few_natural = chosen


@dataclass(frozen=True, eq=False)
class Drawn:
    """Those of `inputs` random images, fixed by `seed`; or of `aux`, the server's own data.

    forward: images (S, C, H, W) to softmax and features, in float64. At several places along a
    client's way it gives those of all images at each place, one place after the other.
    distribution: see `random_inputs`.
    """

    forward: Callable[[torch.Tensor], SoftmaxAndFeatures]
    input_shape: tuple[int, int, int]
    seed: int = 0
    inputs: int = 1000
    distribution: str = "gaussian"
    aux: Batch | None = None

    @property
    def labels(self) -> torch.Tensor | None:
        if self.aux is None:
            return None
        return self.aux.labels.repeat(len(self.chosen[0]) // len(self.aux.labels))

    @cached_property
    def chosen(self) -> SoftmaxAndFeatures:
        if self.aux is not None:
            return self.forward(self.aux.images)
        if self.inputs < FEW:
            return self.zero_shot(self.inputs, self.distribution)
        few = self.few_gaussian if self.distribution == "gaussian" else self.few_natural
        if self.inputs == FEW:
            return few
        more = self.zero_shot(self.inputs - FEW, self.distribution, first=FEW)
        return torch.cat([few[0], more[0]]), torch.cat([few[1], more[1]])

    @cached_property
    def few_gaussian(self) -> SoftmaxAndFeatures:
        return self.zero_shot(FEW, "gaussian")

    @cached_property
    def few_natural(self) -> SoftmaxAndFeatures:
        return self.zero_shot(FEW, "natural")

    def zero_shot(self, count: int, distribution: str, first: int = 0) -> SoftmaxAndFeatures:
        """Those of random images, numbers `first` and following."""
        seed = [self.seed, first]
        return self.forward(random_inputs(count, self.input_shape, seed, distribution))


def random_inputs(
    count: int, shape: tuple[int, int, int], seed: list[int], distribution: str
) -> torch.Tensor:
    """Images (S, C, H, W) drawn without any data.

    gaussian: each pixel with mean 1/2 and deviation 1/4: about N(0, 1) after the normalisation.
    natural: smooth, as photographs are: an amplitude of 1/f over the frequencies f, with random
    brightness and contrast, in [0, 1].

    >>> images = random_inputs(500, (1, 8, 8), [0], "natural")
    >>> tuple(images.shape), bool(images.min() >= 0), bool(images.max() <= 1)
    ((500, 1, 8, 8), True, True)
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
