"""A server that changes the network: a layer that sorts images by brightness into its rows.

After Fowl et al. 2022, "Robbing the Fed", with equal slopes for all rows.
"""

import torch
from torch import nn

import gleak
from gleak.data import Batch
from gleak.update import GradientUpdate

SPREAD = 0.15  # standard deviation of the brightness of photographs, as a server might guess
MIDDLE = 0.45  # and their mean
EMPTY = 1e-5  # part of the largest bias gradient below which no image lies between two rows


class Imprinted(nn.Module):
    """A network behind a linear layer of many rows that all measure the brightness of an image.

    bins: so many rows; each is active for images brighter than its own bound, quantiles of a
    normal distribution. A second layer hands the sum of all rows on, so that slopes are equal.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, int, int], bins: int):
        super().__init__()
        values = shape[0] * shape[1] * shape[2]
        self.measure, self.back = nn.Linear(values, bins), nn.Linear(bins, values)
        self.network = network
        normal = torch.distributions.Normal(MIDDLE, SPREAD)
        with torch.no_grad():
            self.measure.weight.fill_(1 / values)
            self.measure.bias.copy_(-normal.icdf((torch.arange(bins) + 0.5) / bins))
            self.back.weight.copy_(self.back.weight[:, :1].expand(-1, bins) / bins**0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        measured = self.measure(images.flatten(1)).relu()
        return self.network(images + self.back(measured).view_as(images))


def sorted_out(update: GradientUpdate) -> torch.Tensor:
    """Images (R, C, H, W) between neighbouring rows of an `Imprinted` network's gradient.

    Between two rows lies one image, or the mean of several, weighed by their slopes.
    """
    weight = update.gradient["measure.weight"].double()
    bias = update.gradient["measure.bias"].double()
    rows = -weight.diff(dim=0, append=torch.zeros_like(weight[:1]))
    slopes = -bias.diff(append=torch.zeros_like(bias[:1]))
    taken = slopes.abs() > EMPTY * bias.abs().max()
    return (rows[taken] / slopes[taken, None]).view(-1, *update.input_shape).float()


def best_psnr(found: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each image (K, C, H, W) the PSNR in dB of the nearest one that was found, and which."""
    errors, which = torch.cdist(images.flatten(1), found.clamp(0, 1).flatten(1)).min(1)
    mean = errors.square() / images[0].numel()
    return -10 * mean.clamp_min(1e-12).log10(), which


def client(pool: str, size: int, seed: int) -> Batch:
    """A batch of this size, drawn from a pool."""
    return gleak.draw_batch(gleak.load_pool(pool), size, seed=seed)


def imprinted(model: str, batch: Batch, bins: int, seed: int) -> Imprinted:
    """The network of `build_model`, changed by the server."""
    _, channels, height, width = batch.images.shape
    net = gleak.build_model(model, batch, seed=seed)
    return Imprinted(net, (channels, height, width), bins)


def copied(pool: str, size: int, bins: int, model: str, seed: int) -> dict[str, float]:
    """The share of a batch that comes back at 40 dB or more, and the median PSNR."""
    batch = client(pool, size, seed)
    found = sorted_out(gleak.fedsgd(imprinted(model, batch, bins, seed), batch))
    psnr, _ = best_psnr(found, batch.images)
    return {"share": float((psnr >= 40).float().mean()), "median": float(psnr.median())}


def alike(layer: nn.Linear) -> float:
    """What a client can look at: the share of a layer's rows that are copies of others."""
    rows = layer.weight.detach()
    return 1 - len(rows.unique(dim=0)) / len(rows)
