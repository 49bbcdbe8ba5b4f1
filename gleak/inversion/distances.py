"""How far a simulated gradient is from the observed one: tensors layer by layer -> one number.

Every distance is relative: it is about 1 for a gradient that has nothing to do with the observed
one, whatever the model's size, so the weights of priors carry over from model to model.
"""

from collections.abc import Callable, Sequence

import torch

Gradient = Sequence[torch.Tensor]
TINY = 1e-20  # keeps square roots and quotients finite for layers whose gradient is zero


def l2(gradient: Gradient, observed: Gradient) -> torch.Tensor:
    """|a - b|^2 / |b|^2 over all parameters (Zhu et al. 2019, there without the quotient)."""
    a, b = flatten(gradient), flatten(observed)
    return (a - b).square().sum() / b.square().sum().clamp_min(TINY)


def l1(gradient: Gradient, observed: Gradient) -> torch.Tensor:
    """|a - b|_1 / |b|_1 over all parameters."""
    a, b = flatten(gradient), flatten(observed)
    return (a - b).abs().sum() / b.abs().sum().clamp_min(TINY)


def cosine(gradient: Gradient, observed: Gradient) -> torch.Tensor:
    """1 - <a, b> / (|a| |b|) over all parameters, in [0, 2] (Geiping et al. 2020, eq. 4)."""
    a, b = flatten(gradient), flatten(observed)
    # dot(a, a) and not a.norm(): summing millions of float32 squares one by one loses digits
    return 1 - torch.dot(a, b) / torch.sqrt(torch.dot(a, a) * torch.dot(b, b) + TINY)


def layer_l2(gradient: Gradient, observed: Gradient) -> torch.Tensor:
    """The mean of `l2` over the tensors: a small early layer counts as much as a large late one."""
    return torch.stack([l2([a], [b]) for a, b in zip(gradient, observed, strict=True)]).mean()


def layer_cosine(gradient: Gradient, observed: Gradient) -> torch.Tensor:
    """The mean of `cosine` over the tensors."""
    return torch.stack([cosine([a], [b]) for a, b in zip(gradient, observed, strict=True)]).mean()


def sent_cosine(gradient: Gradient, observed: Gradient) -> torch.Tensor:
    """`cosine` over the values that are not zero in the observed gradient: for pruned ones."""
    return cosine([a * (b != 0) for a, b in zip(gradient, observed, strict=True)], observed)


def sign_cosine(gradient: Gradient, observed: Gradient) -> torch.Tensor:
    """`cosine` of what is left when sizes are squashed: for gradients of which signs were sent.

    Each value over the mean size in its tensor, through tanh: smooth where a sign has no slope.
    """
    return cosine([squashed(a) for a in gradient], [squashed(b) for b in observed])


def squashed(tensor: torch.Tensor) -> torch.Tensor:
    """The values in (-1, 1), about their signs where they are larger than most."""
    return torch.tanh(tensor / (tensor.abs().mean() + TINY))


def flatten(tensors: Gradient) -> torch.Tensor:
    """All values of several tensors in one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


DISTANCES: dict[str, Callable[[Gradient, Gradient], torch.Tensor]] = {
    "cosine": cosine,
    "l1": l1,
    "l2": l2,
    "layer-cosine": layer_cosine,
    "layer-l2": layer_l2,
    "sent-cosine": sent_cosine,
    "sign-cosine": sign_cosine,
}
