"""What images look like, gradient or not: priors on images (K, C, H, W) -> one number.

All are means over images and pixels, so weights carry over from size to size.
"""

import torch


def total_variation(images: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of neighbouring pixels, across plus down.

    >>> total_variation(torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]])).item()
    1.0
    """
    down, across = differences(images)
    return down.abs().mean() + across.abs().mean()


def isotropic_variation(images: torch.Tensor) -> torch.Tensor:
    """Mean length of the colour gradient; unlike `total_variation` it is smooth everywhere."""
    down, across = differences(images)
    return (down[..., :-1].square() + across[..., :-1, :].square() + 1e-6).sqrt().mean()


def clip(images: torch.Tensor) -> torch.Tensor:
    """Squared distance to the valid range [0, 1].

    >>> clip(torch.tensor([[[[0.5, 1.5]]]])).item()
    0.125
    """
    return (images - images.clamp(0, 1)).square().mean()


def scale(images: torch.Tensor) -> torch.Tensor:
    """Squared distance of each image to itself stretched to fill [0, 1]."""
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - (images - low) / (high - low).clamp_min(1e-6)).square().mean()


def norm(images: torch.Tensor) -> torch.Tensor:
    """Squared distance to mid gray (the l2 prior; normalised images have their origin there).

    >>> norm(torch.ones(1, 3, 2, 2)).item()
    0.25
    """
    return (images - 0.5).square().mean()


def consensus(images: torch.Tensor) -> torch.Tensor:
    """What restarts (R, K, C, H, W) agree on: their mean, registered, for each of them.

    Each restart is moved by whole pixels onto the first one, by phase correlation, and the mean is
    moved back (GradInversion, Yin et al. 2021, has a registration of its own in this place).
    """
    height, width = images.shape[-2:]
    spectra = torch.fft.rfft2(images - images.mean((-2, -1), keepdim=True))
    phases = spectra[:1].conj() * spectra
    phases = phases / phases.abs().clamp_min(1e-12)
    likeness = torch.fft.irfft2(phases, s=(height, width)).sum(2).flatten(2)
    shift = likeness.argmax(2)  # (R, K), how far down and right a restart lies
    down, right = shift.div(width, rounding_mode="floor"), shift % width
    mean = roll(images, down, right).mean(0, keepdim=True).expand_as(images)
    return roll(mean, -down, -right)


def away_from_consensus(images: torch.Tensor) -> torch.Tensor:
    """What parts each of the restarts (R, K, C, H, W) from what they agree on."""
    return images - consensus(images)


def roll(images: torch.Tensor, down: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Images (R, K, C, H, W), each taken `down` (R, K) rows and `right` columns further, cyclic."""
    height, width = images.shape[-2:]
    rows = (torch.arange(height, device=images.device) + down[..., None]) % height
    columns = (torch.arange(width, device=images.device) + right[..., None]) % width
    images = images.gather(3, rows[:, :, None, :, None].expand_as(images))
    return images.gather(4, columns[:, :, None, None, :].expand_as(images))


def differences(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixel minus upper neighbour, and minus left neighbour."""
    down = images[..., 1:, :] - images[..., :-1, :]
    return down, images[..., :, 1:] - images[..., :, :-1]
