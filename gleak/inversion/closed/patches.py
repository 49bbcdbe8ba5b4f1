"""The input of a convolution from its weight gradient alone, as patches of one image overlap.

The gradient is S^T A, with the slopes S at the output and the patches A of the input, one row for
each image and position. The rows of A span the row space of the gradient. A set of patches, one for
each position, is a combination of that space's vectors for each of them; it belongs to an image if
all that take the same pixel agree about it, and what takes the padding is zero. These are two
subspaces. K images and their mixtures lie in both, and nothing else does as long as the row space
is small beside all patches: the cosines between the subspaces are 1 for these K, and less for all
others. Behind ReLU half of an input is zero, which tells the images from their mixtures (as in
SPEAR, Dimitrov et al. 2024).

Both projections are products with thin matrices and sums over patches, so the matrix of the
cosines, as large as rank times positions, is never written down.
"""

import torch
from torch import nn

from gleak.inversion.closed.solve import largest_vectors, row_space, separate, taken_pixels


def unmix(
    layer: nn.Conv2d,
    observed: torch.Tensor,
    shape: tuple[int, ...],
    size: int,
    centred: bool,
    rounding: float,
) -> torch.Tensor:
    """Inputs (K, C, H, W) of a convolution behind ReLU from its weight gradient alone.

    Each comes up to a factor, in no order. centred: batch norm in train mode makes the slopes sum
    to zero over the batch, so that the gradient knows patches only up to one common patch.

    Raises ArithmeticError for more patches than output channels, and where no K inputs come apart.
    """
    overlap = Overlap(layer, observed, shape, size, centred)
    draws = torch.Generator().manual_seed(0)
    start = torch.randn(size, overlap.positions * overlap.rank, generator=draws).to(observed)
    mixtures = largest_vectors(overlap.projected, start, rounding)
    pixels = overlap.pixels(mixtures).flatten(1)  # (K, C x H x W)
    alone = separate(pixels.T, size, rounding=rounding) @ pixels
    alone = alone * alone.sum(1, keepdim=True).sign()
    return (alone / alone.norm(dim=1, keepdim=True)).view(size, *shape)


class Overlap:
    """Patches in the row space of a gradient (out, C, ...), and images that have such patches.

    Patches are written as mixtures (B, positions x rank), B sets of them: how much of each of the
    orthogonal vectors of the row space is in the patch at each position.
    """

    def __init__(
        self,
        layer: nn.Conv2d,
        observed: torch.Tensor,
        shape: tuple[int, ...],
        size: int,
        centred: bool,
    ) -> None:
        self.channels, height, width = shape
        taken = taken_pixels(layer, shape)
        self.area, self.positions = taken.shape
        self.centred = centred
        self.rank = size * self.positions - centred
        if self.rank > len(observed):
            raise ArithmeticError(f"{self.rank} independent patches are too many to tell apart")
        if centred and self.positions == 1:
            raise ArithmeticError("a single position has no patch that another one overlaps")
        by_tap = observed.flatten(2).transpose(1, 2).flatten(1)  # (out, taps x C)
        self.right = row_space(by_tap, self.rank)
        self.taken = taken.T.flatten()  # (positions x taps,), 0 for the padding
        # images to patches and back: how often each pixel is taken, less what all patches share
        seen = torch.nn.functional.one_hot(taken.T, height * width + 1)[..., 1:].to(observed)
        square = seen.sum((0, 1)).diag()
        if centred:
            common = seen.sum(0)
            square -= common.T @ common / self.positions
        self.inverse = torch.linalg.pinv(square, hermitian=True)

    def summed(self, mixtures: torch.Tensor) -> torch.Tensor:
        """Patches summed up where they lie in the image, (H x W, B x C)."""
        patches = mixtures.view(-1, self.rank) @ self.right
        patches = patches.view(len(mixtures), len(self.taken), -1).transpose(0, 1).flatten(1)
        image = patches.new_zeros(len(self.inverse) + 1, patches.shape[1])
        return image.index_add_(0, self.taken, patches)[1:]

    def taken_from(self, images: torch.Tensor) -> torch.Tensor:
        """The other way, the transpose: mixtures of the patches of images (H x W, B x C)."""
        patches = torch.cat([torch.zeros_like(images[:1]), images])[self.taken]
        patches = patches.view(len(patches), -1, self.channels).transpose(0, 1)
        sets = len(patches)
        return (patches.reshape(sets * self.positions, -1) @ self.right.T).view(sets, -1)

    def without_common(self, mixtures: torch.Tensor) -> torch.Tensor:
        """Mixtures without the patch that all positions share, which train mode hides."""
        if not self.centred:
            return mixtures
        apart = mixtures.view(len(mixtures), self.positions, -1)
        return (apart - apart.mean(1, keepdim=True)).flatten(1)

    def projected(self, mixtures: torch.Tensor) -> torch.Tensor:
        """Mixtures projected on patches of images and back on mixtures: equal for those of both."""
        images = self.inverse @ self.summed(self.without_common(mixtures))
        return self.without_common(self.taken_from(images))

    def pixels(self, mixtures: torch.Tensor) -> torch.Tensor:
        """The images (B, C, H x W) whose patches come nearest to the mixtures."""
        images = self.inverse @ self.summed(self.without_common(mixtures))
        return images.view(len(images), -1, self.channels).permute(1, 2, 0)
