"""The honest client: it computes on its own batch and sends an update."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from gleak.buffers import statistics_of
from gleak.data import Batch
from gleak.network import as_sent, classifying, is_dropout, mixes_samples
from gleak.update import GradientUpdate, WeightsUpdate


def fedsgd(
    model: nn.Module, batch: Batch, *, training: bool = True, dropout_seed: int | None = None
) -> GradientUpdate:
    """FedSGD: send the gradient of the mean cross-entropy over the batch.

    Parameters
    ----------
    model
        The network as the server sends it. It is copied, not changed.
    batch
        The client's images and labels.
    training
        Run the model in train mode, as clients do (batch norm then uses the batch's own
        statistics), or in eval mode.
    dropout_seed
        Draws what the client's dropout layers drop, which the server does not learn; by default
        dropout is off.

    Returns
    -------
    GradientUpdate
        What the server gets.

    Raises
    ------
    ValueError
        When the model cannot take the images, has too few outputs for the labels or nothing to
        train.

    Examples
    --------
    >>> import gleak
    >>> batch = gleak.load_batch("cifar10-samples", indices=[0, 1])
    >>> update = gleak.fedsgd(gleak.build_model("lenet", batch), batch)
    >>> update
    GradientUpdate(2 samples of 3x32x32, 10 classes, 15,826 values sent)
    >>> update.gradient["1.7.bias"].shape
    torch.Size([10])
    """
    model = as_sent(model, training)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("the model has no parameter to train, so there is nothing to send")
    with dropout(model, dropout_seed):
        logits = run(model, batch)
    loss = F.cross_entropy(logits, batch.labels.to(logits.device))
    gradient = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return GradientUpdate(
        model,
        gradient=dict(zip(parameters, gradient, strict=True)),
        num_samples=len(batch),
        input_shape=shape_of(batch),
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
    buffers: bool = False,
    reveal: Sequence[str] = ("lr", "epochs", "batch_size"),
) -> WeightsUpdate:
    """FedAvg: train a copy of the model with SGD and send its weights.

    Parameters
    ----------
    model
        The network as the server sends it. It is copied, not changed.
    batch
        The client's images and labels.
    epochs
        Passes over the batch, at least 1, each in an order drawn from `shuffle_seed`.
    batch_size
        Samples in a step, at least 1, all of them by default.
    lr
        Learning rate of SGD, above 0.
    momentum
        Of SGD, in [0, 1).
    drop_last
        Whether an epoch's last step is left out if it would be smaller.
    shuffle_seed
        Of the orders; None leaves the batch as it stands.
    training
        As for `fedsgd`.
    buffers
        Whether the running statistics of batch norm are sent along, as state dicts have them: from
        a single step in train mode the update then has the statistics of the batch.
    reveal
        Which of the facts (lr, epochs, batch_size, momentum, drop_last) the server is told.

    Returns
    -------
    WeightsUpdate
        What the server gets.

    Raises
    ------
    ValueError
        For settings that make no step, an unknown fact, or training that diverges; for the model
        and the batch as `fedsgd`.

    References
    ----------
    McMahan et al. 2017.

    Examples
    --------
    >>> import gleak
    >>> batch = gleak.load_batch("cifar10-samples", indices=[0, 1, 2])
    >>> network = gleak.build_model("lenet", batch)
    >>> update = gleak.fedavg(network, batch, epochs=2, batch_size=2, lr=0.1)
    >>> update
    WeightsUpdate(3 samples of 3x32x32, 10 classes, 15,826 values sent)
    >>> dict(update.facts), update.local_steps
    ({'lr': 0.1, 'epochs': 2, 'batch_size': 2}, 4)
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
    update = WeightsUpdate(
        sent,
        num_samples=len(batch),
        input_shape=shape_of(batch),
        weights_after=after,
        facts={name: facts[name] for name in reveal},
    )
    if buffers and mixes_samples(sent) and epochs == 1 and batch_size >= len(batch):
        return replace(update, statistics=statistics_of(sent, images_for(sent, batch)))
    return update


def private_fedsgd(
    model: nn.Module,
    batch: Batch,
    *,
    max_norm: float,
    noise_multiplier: float,
    seed: int,
    expected_size: int | None = None,
    training: bool = False,
) -> GradientUpdate:
    """FedSGD with each sample's gradient clipped and noise on the sum.

    Sends (sum_k clip(g_k, C) + z C N(0, 1)) / K for C = max_norm and z = noise_multiplier. It
    hides one record of the client; for the privacy that `gleak.defences.epsilon` tells, the batch
    must be a Poisson sample of the client's records and `expected_size` its expected size.

    Parameters
    ----------
    model
        The network as the server sends it. It is copied, not changed.
    batch
        The client's images and labels.
    max_norm
        C, the largest norm of one sample's gradient, above 0.
    noise_multiplier
        z, at least 0.
    seed
        Of the noise.
    expected_size
        Takes the place of K under the sum, at least 1; by default the sum is divided by K.
    training
        The mode of the model; dropout is off, as for `fedsgd`.

    Returns
    -------
    GradientUpdate
        What the server gets.

    Raises
    ------
    ValueError
        For batch norm in train mode, which has no gradient of a single sample, and for a max_norm,
        noise_multiplier or expected_size that is not positive (noise may be 0).

    References
    ----------
    Abadi et al. 2016, algorithm 1.

    Examples
    --------
    >>> import gleak
    >>> batch = gleak.load_batch("cifar10-samples", indices=[0, 1])
    >>> network = gleak.build_model("lenet", batch)
    >>> update = private_fedsgd(network, batch, max_norm=0.5, noise_multiplier=0.0, seed=0)
    >>> update.norm() <= 0.5 < gleak.fedsgd(network, batch).norm()
    True
    """
    size = len(batch) if expected_size is None else expected_size
    if not 0 < max_norm < math.inf:
        raise ValueError(f"max_norm must be positive; got {max_norm}")
    if size < 1:
        raise ValueError(f"expected_size must be at least 1; got {size}")
    if not 0 <= noise_multiplier < math.inf:
        raise ValueError(f"noise_multiplier must be a number >= 0; got {noise_multiplier}")
    model = as_sent(model, training)
    if mixes_samples(model):
        raise ValueError(
            "batch norm in train mode mixes the samples of a batch, so there is no gradient of one "
            "to clip; use training=False or a model without batch norm"
        )
    gradients = sample_gradients(model, batch)
    squares = (gradient.flatten(1).square().sum(1) for gradient in gradients.values())
    norms = sum(squares, torch.zeros(())).sqrt()  # (K,)
    factors = max_norm / norms.clamp_min(max_norm)
    draws = torch.Generator().manual_seed(seed)
    sent = {}
    for name, gradient in gradients.items():
        noise = torch.randn(gradient.shape[1:], generator=draws).to(gradient)
        total = torch.einsum("k,k...->...", factors, gradient)
        sent[name] = (total + noise_multiplier * max_norm * noise) / size
    return GradientUpdate(model, len(batch), shape_of(batch), gradient=sent)


def shape_of(batch: Batch) -> tuple[int, int, int]:
    """(C, H, W) of one image."""
    _, channels, height, width = batch.images.shape
    return channels, height, width


def sample_gradients(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """The gradient of each sample's cross-entropy, parameter name -> tensor (K, *shape)."""
    run(model, batch)  # its errors say what about the batch does not fit
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    images = images_for(model, batch)

    def loss(
        parameters: dict[str, torch.Tensor], image: torch.Tensor, label: torch.Tensor
    ) -> torch.Tensor:
        logits = functional_call(model, parameters, (image[None],))
        return F.cross_entropy(logits, label[None])

    labels = batch.labels.to(images.device)
    return vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, labels)


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
def dropout(model: nn.Module, seed: int | None) -> Iterator[None]:
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


def images_for(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The images as the model takes them."""
    return batch.images.to(next(model.parameters()))


def run(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Logits (K, N), with errors that say what about the batch does not fit.

    A model of several outputs returns its logits alone from then on.
    """
    images = images_for(model, batch)
    try:
        logits = model(images)
        if not isinstance(logits, torch.Tensor):
            taken = classifying(model, shape_of(batch))[1]
            assert taken
            model.register_forward_hook(taken)
            logits = taken(model, images, logits)
    except ValueError as error:
        if len(images) == 1 and mixes_samples(model):  # torch refuses it with a ValueError
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
