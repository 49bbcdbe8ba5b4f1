"""Images from gradients: search for the batch whose gradient is the one that the client sent."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch.nn import functional as F
from tqdm import tqdm

from gleak.update import Update


@dataclass(frozen=True)
class Attack:
    """The numbers that make one gradient matching attack."""

    reference: str
    tv: float  # weight of the total variation prior
    lr: float  # step size of Adam, in units of the pixel range [0, 1]

    def __str__(self) -> str:
        return (
            f"minimise  1 - cos(gradient of x, observed) + {self.tv:g} TV(x)\n"
            "over      images x in [0, 1], labels fixed\n"
            f"by        Adam on the gradient's sign, step {self.lr:g}, decayed at 3/8, 5/8, 7/8\n"
            f"source    {self.reference}"
        )


ATTACKS = {
    "inverting-gradients": Attack(reference="Geiping et al. 2020", tv=0.04, lr=0.1),
}


@dataclass(frozen=True, eq=False)
class Inversion:
    """Restored images (K, C, H, W) in [0, 1], their labels (K,), and how the search went.

    history: a frame with a row for each iteration: loss, distance, tv.
    """

    images: torch.Tensor
    labels: torch.Tensor
    history: pd.DataFrame
    attack: Attack


class InversionFailed(RuntimeError):
    """The loss is not finite any more; `best` holds the Inversion up to the last good images."""

    def __init__(self, message: str, best: Inversion):
        super().__init__(message)
        self.best = best


def list_attacks() -> list[str]:
    """The names that `invert` takes."""
    return list(ATTACKS)


def invert(
    update: Update,
    counts: torch.Tensor | Sequence[int],
    attack: str = "inverting-gradients",
    *,
    iterations: int = 300,
    seed: int = 0,
    progress: bool = True,
    **overrides: float,
) -> Inversion:
    """Images whose gradient, with labels as counted, is the update's gradient.

    counts: (N,) how often each class occurs, summing to K (see `restore_labels`).
    overrides: single numbers of the attack, such as `tv=1e-3`.

    The images with the smallest loss are returned, also when Ctrl-C ends the search early.

    A FedAvg update is treated as its equivalent gradient.

    Raises ValueError for an unknown attack or override, for counts that do not fit the update and
    for a gradient that is zero; InversionFailed when the loss stops being finite.
    """
    settings = settings_of(attack, overrides)
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1; got {iterations}")
    labels = labels_of(counts, update)
    gradient = update.equivalent_gradient()
    observed = flatten(gradient.values())
    if not observed.any():
        raise ValueError("the update's gradient is zero: there is nothing to match")
    parameters = [update.model.get_parameter(name) for name in gradient]
    labels = labels.to(observed.device)

    generator = torch.Generator().manual_seed(seed)
    start = 0.5 + 0.25 * torch.randn(len(labels), *update.input_shape, generator=generator)
    images = start.clamp(0, 1).to(observed).requires_grad_()
    optimizer = torch.optim.Adam([images], lr=settings.lr)
    steps = [iterations * eighth // 8 for eighth in (3, 5, 7)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, steps, gamma=0.1)

    # Losses and the best images stay on the device: no step waits for a number to reach Python.
    history = observed.new_full((iterations, 3), torch.nan)
    best_loss, best_images = observed.new_tensor(torch.inf), images.detach().clone()
    done, failed_at = 0, None
    bar = tqdm(range(iterations), disable=not progress, desc=attack, leave=False)
    try:
        for step in bar:
            distance = cosine_distance(simulate(update.model, parameters, images, labels), observed)
            tv = total_variation(images)
            loss = distance + settings.tv * tv
            (gradient,) = torch.autograd.grad(loss, images)
            with torch.no_grad():
                history[step] = torch.stack([loss, distance, tv])
                better = loss < best_loss
                best_loss = torch.where(better, loss, best_loss)
                best_images = torch.where(better, images, best_images)
                images.grad = gradient.sign()
                optimizer.step()
                schedule.step()
                images.clamp_(0, 1)
            done = step + 1
            if done % 25 == 0 or done == iterations:
                bar.set_postfix(loss=f"{loss.item():.4f}")
                if not torch.isfinite(loss):
                    failed_at = done
                    break
    except KeyboardInterrupt:
        print(f"stopped after {done} of {iterations} iterations; the best images so far are kept")
    finally:
        bar.close()

    frame = pd.DataFrame(history[:done].cpu().numpy(), columns=["loss", "distance", "tv"])
    frame.index.name = "iteration"
    result = Inversion(best_images.cpu(), labels.cpu(), frame, settings)
    if failed_at is not None:
        raise InversionFailed(
            f"{attack}: the loss is not finite at iteration {failed_at} "
            "(error.best holds the last good images)",
            result,
        )
    return result


def settings_of(attack: str, overrides: dict[str, float]) -> Attack:
    """The attack by name, with single numbers replaced."""
    if attack not in ATTACKS:
        raise ValueError(f"unknown attack {attack!r}; known: {', '.join(ATTACKS)}")
    numbers = [entry.name for entry in dataclasses.fields(Attack) if entry.name != "reference"]
    unknown = sorted(set(overrides) - set(numbers))
    if unknown:
        raise ValueError(f"{attack} has no {', '.join(unknown)}; known: {', '.join(numbers)}")
    return dataclasses.replace(ATTACKS[attack], **overrides)


def labels_of(counts: torch.Tensor | Sequence[int], update: Update) -> torch.Tensor:
    """Labels (K,) in ascending order from counts (N,); the order of a batch leaves no trace."""
    counts = torch.as_tensor(counts)
    if counts.shape != (update.num_classes,) or counts.is_floating_point() or counts.min() < 0:
        raise ValueError(
            f"counts must be {update.num_classes} whole numbers >= 0, one for each class; "
            f"got {counts.dtype} of shape {tuple(counts.shape)}"
        )
    if counts.sum() != update.num_samples:
        raise ValueError(
            f"counts sum to {counts.sum()}, but the update has {update.num_samples} samples"
        )
    return torch.repeat_interleave(torch.arange(len(counts)), counts)


def simulate(model, parameters, images, labels) -> torch.Tensor:
    """The gradient (P,) that a client with these images and labels would send, differentiable."""
    loss = F.cross_entropy(model(images), labels)
    return flatten(torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True))


def flatten(tensors) -> torch.Tensor:
    """All values of several tensors in one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def cosine_distance(gradient: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    """1 - <a, b> / (|a| |b|) of two vectors (P,), in [0, 2] (Geiping et al. 2020, eq. 4)."""
    # dot(a, a) and not a.norm(): summing millions of float32 squares one by one loses digits
    norms = torch.sqrt(torch.dot(gradient, gradient) * torch.dot(observed, observed))
    return 1 - torch.dot(gradient, observed) / norms


def total_variation(images: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of neighbouring pixels, across plus down; images (K, C, H, W)."""
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    across = (images[..., :, 1:] - images[..., :, :-1]).abs().mean()
    return down + across
