"""What a client can do to its update before it leaves: functions from Update to Update.

All work on what is sent, the gradient of a FedSGD client or the change W_T - W_0 of a FedAvg one.
Defences that change how the client trains are settings of the client instead: a larger batch, more
local steps, dropout, and clipping sample by sample, `private_fedsgd`.

Who is protected depends on what is clipped. `clip` followed by `add_noise` bounds what the whole
update can say, so it protects all of a client's data at once (client level). Clipping each sample's
gradient, `private_fedsgd`, protects one record of the client (record level) with less noise.
"""

import dataclasses
import math
import warnings
from collections.abc import Sequence

import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from gleak.client import run
from gleak.data import Batch
from gleak.extras import extra
from gleak.update import Update, as_sent, batch_norm_mode

Message = dict[str, torch.Tensor]


def clip(update: Update, max_norm: float) -> Update:
    """Scale what is sent down to an L2 norm of at most `max_norm` (McMahan et al. 2018).

    Raises ValueError unless max_norm > 0.
    """
    check(0 < max_norm < math.inf, f"max_norm must be positive; got {max_norm}")
    factor = min(1.0, max_norm / max(update.norm(), 1e-30))
    return replaced(update, {name: factor * tensor for name, tensor in update.message().items()})


def add_noise(update: Update, std: float, *, seed: int) -> Update:
    """Add Gaussian noise of this standard deviation to every value that is sent.

    After `clip(update, C)`, std = z C hides the whole client with noise multiplier z; see
    `epsilon`. Raises ValueError for a negative std.
    """
    check(0 <= std < math.inf, f"std must be a number >= 0; got {std}")
    draws = torch.Generator().manual_seed(seed)
    return replaced(
        update,
        {
            name: tensor + std * torch.randn(tensor.shape, generator=draws).to(tensor)
            for name, tensor in update.message().items()
        },
    )


def prune(update: Update, share: float) -> Update:
    """Send zero in place of the `share` of values that are smallest in size, over all parameters.

    The same as top-k sparsification with k = (1 - share) of the values, rounded up (Aji and
    Heafield 2017). Raises ValueError for a share that is not in [0, 1).
    """
    check(0 <= share < 1, f"share must be in [0, 1); got {share}")
    sent = update.message()
    sizes = torch.cat([tensor.abs().flatten() for tensor in sent.values()])
    dropped = int(share * len(sizes) + 1e-9)  # without the error of 0.29 * 100
    kept = torch.ones_like(sizes, dtype=torch.bool)
    kept[sizes.topk(dropped, largest=False).indices] = False
    masks = kept.split([tensor.numel() for tensor in sent.values()])
    return replaced(
        update,
        {
            name: tensor * mask.view_as(tensor)
            for (name, tensor), mask in zip(sent.items(), masks, strict=True)
        },
    )


def quantise(update: Update, bits: int = 8) -> Update:
    """Round each tensor to a grid of 2^bits - 1 values, even and symmetric, up to its largest.

    Raises ValueError for bits outside 2..16.
    """
    check(bits in range(2, 17), f"bits must be a whole number from 2 to 16; got {bits}")
    levels = 2 ** (bits - 1) - 1
    rounded = {}
    for name, tensor in update.message().items():
        step = (tensor.abs().max() / levels).clamp_min(torch.finfo(tensor.dtype).tiny)
        rounded[name] = (tensor / step).round() * step
    return replaced(update, rounded)


def sign(update: Update) -> Update:
    """Send signs alone, times the mean size of each tensor (Karimireddy et al. 2019)."""
    sent = update.message()
    return replaced(update, {name: t.sign() * t.abs().mean() for name, t in sent.items()})


def cast(update: Update, dtype: torch.dtype) -> Update:
    """Round to a shorter floating point format, such as torch.bfloat16, and back.

    Raises ValueError for a dtype that is no floating point format.
    """
    check(dtype.is_floating_point, f"{dtype} is not a floating point format")
    sent = update.message()
    return replaced(update, {name: tensor.to(dtype).to(tensor) for name, tensor in sent.items()})


def aggregate(updates: Sequence[Update]) -> Update:
    """What a server sees through secure aggregation (Bonawitz et al. 2017): the clients' mean.

    It reads as the update of one client with all samples. For FedSGD without batch norm in train
    mode it is exactly that; for FedAvg with more than one local step it is so nearly, with the
    batch sizes added up.

    Raises ValueError unless all clients sent the same kind of update for the same model, with equal
    numbers of samples and equal facts.
    """
    check(len(updates) > 0, "no update to aggregate")
    first, weights = updates[0], updates[0].model.state_dict()
    for other in updates[1:]:
        same = (
            (other.gradient is None) == (first.gradient is None)
            and other.num_samples == first.num_samples
            and other.facts == first.facts
            and other.message().keys() == first.message().keys()
        )
        check(same, "the updates differ in kind, number of samples, facts or parameters")
        theirs = other.model.state_dict()
        same = weights.keys() == theirs.keys() and all(
            torch.equal(value, theirs[name]) for name, value in weights.items()
        )
        check(same, "the updates are of different models")
    messages = [update.message() for update in updates]
    mean = {name: torch.stack([m[name] for m in messages]).mean(0) for name in messages[0]}
    facts = dict(first.facts)
    if "batch_size" in facts:
        facts["batch_size"] *= len(updates)
    whole = dataclasses.replace(first, num_samples=first.num_samples * len(updates), facts=facts)
    return replaced(whole, mean)


def private_fedsgd(
    model: torch.nn.Module,
    batch: Batch,
    *,
    max_norm: float,
    noise_multiplier: float,
    seed: int,
    expected_size: int | None = None,
    training: bool = False,
) -> Update:
    """FedSGD with each sample's gradient clipped and noise on the sum (Abadi et al. 2016, alg. 1).

    Sends (sum_k clip(g_k, C) + z C N(0, 1)) / K for C = max_norm and z = noise_multiplier. It
    hides one record of the client; for the privacy that `epsilon` tells, the batch must be a
    Poisson sample of the client's records and `expected_size` its expected size, which then takes
    the place of K under the sum.

    training: the mode of the model; dropout is off, as for `fedsgd`.

    Raises ValueError for batch norm in train mode, which has no gradient of a single sample, and
    for a max_norm, noise_multiplier or expected_size that is not positive (noise may be 0).
    """
    size = len(batch) if expected_size is None else expected_size
    check(0 < max_norm < math.inf, f"max_norm must be positive; got {max_norm}")
    check(size >= 1, f"expected_size must be at least 1; got {size}")
    check(
        0 <= noise_multiplier < math.inf,
        f"noise_multiplier must be a number >= 0; got {noise_multiplier}",
    )
    model = as_sent(model, training)
    check(
        "own" not in batch_norm_mode(model),
        "batch norm in train mode mixes the samples of a batch, so there is no gradient of one to "
        "clip; use training=False or a model without batch norm",
    )
    gradients = sample_gradients(model, batch)
    norms = sum(g.flatten(1).square().sum(1) for g in gradients.values()).sqrt()  # (K,)
    factors = max_norm / norms.clamp_min(max_norm)
    draws = torch.Generator().manual_seed(seed)
    sent = {}
    for name, gradient in gradients.items():
        noise = torch.randn(gradient.shape[1:], generator=draws).to(gradient)
        total = torch.einsum("k,k...->...", factors, gradient)
        sent[name] = (total + noise_multiplier * max_norm * noise) / size
    return Update(model, len(batch), tuple(batch.images.shape[1:]), gradient=sent)


def sample_gradients(model: torch.nn.Module, batch: Batch) -> Message:
    """The gradient of each sample's cross-entropy, parameter name -> tensor (K, *shape)."""
    run(model, batch)  # its errors say what about the batch does not fit
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    images = batch.images.to(next(model.parameters()))

    def loss(parameters, image, label):
        logits = functional_call(model, parameters, (image[None],))
        return F.cross_entropy(logits, label[None])

    labels = batch.labels.to(images.device)
    return vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, labels)


def epsilon(
    noise_multiplier: float, *, steps: int, delta: float, sample_rate: float = 1.0
) -> float:
    """The (epsilon, delta) privacy that `steps` noisy updates spend, by Renyi accounting (opacus).

    noise_multiplier: standard deviation of the noise over how far one protected unit can move the
    sum that it is added to. The unit is a record for `private_fedsgd`, which can be in the batch or
    not: z itself. It is a client for `clip` and `add_noise`: z if the client can be there or send
    zero, z / 2 if all its data can be replaced, because two clipped updates lie up to 2 C apart.
    sample_rate: the chance of the unit to be in a step, drawn anew each time (Poisson sampling) and
    hidden from the server. A server that picks the clients itself knows who took part: 1.

    Raises ValueError for numbers out of range.

    >>> round(epsilon(1.0, steps=1, delta=1e-5), 2)
    4.73
    """
    with extra("privacy"):
        from opacus.accountants import RDPAccountant  # takes seconds to import

    check(noise_multiplier > 0, f"without noise there is no privacy; got {noise_multiplier}")
    check(
        steps >= 1 and 0 < delta < 1 and 0 < sample_rate <= 1,
        f"needs steps >= 1, delta in (0, 1) and sample_rate in (0, 1]; got {steps}, {delta} and "
        f"{sample_rate}",
    )
    accountant = RDPAccountant()
    accountant.history = [(noise_multiplier, sample_rate, steps)]
    near_one, large = (1 + 2.0**-power for power in range(4, 11)), (2**p for p in range(6, 13))
    orders = sorted({*RDPAccountant.DEFAULT_ALPHAS, *near_one, *large})
    with warnings.catch_warnings():
        # at the end of the orders the bound is looser, and as true
        warnings.filterwarnings("ignore", "Optimal order is the")
        return accountant.get_epsilon(delta, alphas=orders)


def replaced(update: Update, sent: Message) -> Update:
    """The update with this sent in place of what it holds."""
    if update.gradient is not None:
        return dataclasses.replace(update, gradient=sent)
    before = dict(update.model.named_parameters())
    after = {name: before[name].detach() + change for name, change in sent.items()}
    return dataclasses.replace(update, weights_after=after)


def check(condition: bool, message: str) -> None:
    """Raise ValueError with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)
