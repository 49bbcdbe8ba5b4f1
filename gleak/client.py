"""The honest client: it computes on its own batch and sends an update."""

import torch
from torch import nn
from torch.nn import functional as F

from gleak.data import Batch
from gleak.update import Update, as_sent


def fedsgd(model: nn.Module, batch: Batch, *, training: bool = True) -> Update:
    """FedSGD: send the gradient of the mean cross-entropy over the batch.

    training: run the model in train mode, as clients do (batch norm then uses the batch's own
    statistics), or in eval mode. The model is copied, not changed; dropout is off.

    Raises ValueError when the model cannot take the images or has too few outputs for the labels.
    """
    model = as_sent(model, training)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("the model has no parameter to train, so there is nothing to send")
    logits = run(model, batch)
    loss = F.cross_entropy(logits, batch.labels.to(logits.device))
    gradient = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return Update(
        model=model,
        gradient=dict(zip(parameters, gradient, strict=True)),
        num_samples=len(batch),
        input_shape=tuple(batch.images.shape[1:]),
    )


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
