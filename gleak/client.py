"""The honest client: it computes on its own batch and sends an update."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from gleak.data import Batch
from gleak.update import Update, as_sent, is_dropout


def fedsgd(
    model: nn.Module, batch: Batch, *, training: bool = True, dropout_seed: int | None = None
) -> Update:
    """FedSGD: send the gradient of the mean cross-entropy over the batch.

    training: run the model in train mode, as clients do (batch norm then uses the batch's own
    statistics), or in eval mode. The model is copied, not changed.
    dropout_seed: draws what the client's dropout layers drop, which the server does not learn; by
    default dropout is off.

    Raises ValueError when the model cannot take the images or has too few outputs for the labels.
    """
    model = as_sent(model, training)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("the model has no parameter to train, so there is nothing to send")
    with dropout(model, dropout_seed):
        logits = run(model, batch)
    loss = F.cross_entropy(logits, batch.labels.to(logits.device))
    gradient = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return Update(
        model=model,
        gradient=dict(zip(parameters, gradient, strict=True)),
        num_samples=len(batch),
        input_shape=tuple(batch.images.shape[1:]),
    )


def fedavg(
    model: nn.Module,
    batch: Batch,
    *,
    epochs: int = 1,
    batch_size: int | None = None,
    lr: float = 0.01,
    momentum: float = 0.0,
    drop_last: bool = False,
    shuffle_seed: int | None = 0,
    training: bool = True,
    reveal: Sequence[str] = ("lr", "epochs", "batch_size"),
) -> Update:
    """FedAvg: train a copy of the model with SGD and send its weights (McMahan et al. 2017).

    epochs: passes over the batch, each in an order drawn from `shuffle_seed` (None: as it stands).
    batch_size: samples in a step, all of them by default; `drop_last` leaves out an epoch's last
    step if it would be smaller.
    reveal: which of the facts (lr, epochs, batch_size, momentum, drop_last) the server is told.
    training: as for `fedsgd`. The buffers of batch norm are not part of the update.

    Raises ValueError for settings that make no step, an unknown fact, or training that diverges.
    """
    batch_size = len(batch) if batch_size is None else batch_size
    if epochs < 1 or batch_size < 1 or lr <= 0 or not 0 <= momentum < 1:
        raise ValueError(
            "fedavg needs epochs >= 1, batch_size >= 1, lr > 0 and 0 <= momentum < 1; got "
            f"epochs={epochs}, batch_size={batch_size}, lr={lr}, momentum={momentum}"
        )
    if drop_last and batch_size > len(batch):
        raise ValueError(f"drop_last leaves no step of {batch_size} from {len(batch)} samples")
    facts = {
        "lr": lr,
        "epochs": epochs,
        "batch_size": batch_size,
        "momentum": momentum,
        "drop_last": drop_last,
    }
    unknown = sorted(set(reveal) - set(facts))
    if unknown:
        raise ValueError(f"cannot reveal {', '.join(unknown)}; known: {', '.join(facts)}")

    sent, local = as_sent(model, training), as_sent(model, training)
    optimizer = torch.optim.SGD(local.parameters(), lr=lr, momentum=momentum)
    for indices in local_batches(len(batch), epochs, batch_size, drop_last, shuffle_seed):
        part = Batch(batch.images[indices], batch.labels[indices], batch.class_names)
        optimizer.zero_grad()
        logits = run(local, part)
        F.cross_entropy(logits, part.labels.to(logits.device)).backward()
        optimizer.step()
    after = {name: p.detach() for name, p in local.named_parameters() if p.requires_grad}
    if not all(torch.isfinite(weights).all() for weights in after.values()):
        raise ValueError(f"local training diverged with lr={lr}: the weights are not finite")
    return Update(
        model=sent,
        num_samples=len(batch),
        input_shape=tuple(batch.images.shape[1:]),
        weights_after=after,
        facts={name: facts[name] for name in reveal},
    )


def local_batches(
    num_samples: int, epochs: int, batch_size: int, drop_last: bool, shuffle_seed: int | None
) -> Iterator[torch.Tensor]:
    """The indices of each local step, epoch after epoch."""
    generator = torch.Generator().manual_seed(shuffle_seed or 0)
    for _ in range(epochs):
        order = torch.randperm(num_samples, generator=generator)
        if shuffle_seed is None:
            order = torch.arange(num_samples)
        for indices in order.split(batch_size):
            if len(indices) == batch_size or not drop_last:
                yield indices


@contextmanager
def dropout(model: nn.Module, seed: int | None):
    """Turn the dropout layers on, with draws of this seed; None leaves them as they are."""
    layers = [module for module in model.modules() if is_dropout(module) and seed is not None]
    with torch.random.fork_rng(enabled=bool(layers)):
        for layer in layers:
            layer.train()
        if layers:
            torch.manual_seed(seed)
        yield
    for layer in layers:
        layer.eval()


def run(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Logits (K, N), with errors that say what about the batch does not fit."""
    images = batch.images.to(next(model.parameters()))
    try:
        logits = model(images)
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            raise ValueError(
                "batch norm in train mode cannot take a batch of one here (a single value per "
                "channel); use more images or training=False"
            ) from error
        raise
    except RuntimeError as error:
        shape = "x".join(map(str, images.shape[1:]))
        raise ValueError(f"the model does not take images of shape {shape}: {error}") from error
    if logits.ndim != 2 or logits.shape[1] <= batch.labels.max():
        raise ValueError(
            f"the model's output has shape {tuple(logits.shape)}; labels up to "
            f"{batch.labels.max()} need (K, N) with N > {batch.labels.max()}"
        )
    return logits
