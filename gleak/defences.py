"""What a client can do to its update before it leaves: functions from Update to Update.

All work on what is sent, the gradient of a FedSGD client or the change W_T - W_0 of a FedAvg one.
Defences that change how the client trains are settings of the client instead: a larger batch, more
local steps, dropout, and clipping sample by sample, `gleak.client.private_fedsgd`.

Who is protected depends on what is clipped. `clip` followed by `add_noise` bounds what the whole
update can say, so it protects all of a client's data at once (client level). Clipping each sample's
gradient, `private_fedsgd`, protects one record of the client (record level) with less noise.
"""

import dataclasses
import math
import warnings
from collections.abc import Sequence

import torch

from gleak.extras import extra
from gleak.update import Update, WeightsUpdate

Message = dict[str, torch.Tensor]


def clip(update: Update, max_norm: float) -> Update:
    """Scale what is sent down to an L2 norm of at most `max_norm`.

    Parameters
    ----------
    update
        What the client would send.
    max_norm
        The largest norm, above 0.

    Raises
    ------
    ValueError
        Unless max_norm is positive.

    References
    ----------
    McMahan et al. 2018.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 1, bias=False))
    >>> update = Update(net, 1, (1, 1, 2), gradient={"1.weight": torch.tensor([[3.0, -4.0]])})
    >>> clip(update, 2.5).gradient["1.weight"]
    tensor([[ 1.5000, -2.0000]])
    """
    check(0 < max_norm < math.inf, f"max_norm must be positive; got {max_norm}")
    factor = min(1.0, max_norm / max(update.norm(), 1e-30))
    return replaced(update, {name: factor * tensor for name, tensor in update.message().items()})


def add_noise(update: Update, std: float, *, seed: int) -> Update:
    """Add Gaussian noise to every value that is sent.

    After `clip(update, C)`, std = z C hides the whole client with noise multiplier z; see
    `epsilon`.

    Parameters
    ----------
    update
        What the client would send.
    std
        Standard deviation of the noise, at least 0.
    seed
        Of the noise.

    Raises
    ------
    ValueError
        For a negative std.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 500, bias=False))
    >>> update = Update(net, 1, (1, 1, 2), gradient={"1.weight": torch.zeros(500, 2)})
    >>> noise = add_noise(update, 3.0, seed=0).gradient["1.weight"]
    >>> 2.8 < noise.std() < 3.2
    tensor(True)
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
    """Send zero in place of the values that are smallest in size, over all parameters.

    The same as top-k sparsification with k = (1 - share) of the values, rounded up.

    Parameters
    ----------
    update
        What the client would send.
    share
        How much of the values is left out, in [0, 1).

    Raises
    ------
    ValueError
        For a share that is not in [0, 1).

    References
    ----------
    Aji and Heafield 2017.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1, bias=False))
    >>> sent = {"1.weight": torch.tensor([[1.0, -3.0, 0.5, 2.0]])}
    >>> prune(Update(net, 1, (1, 2, 2), gradient=sent), 0.5).gradient["1.weight"]
    tensor([[ 0., -3.,  0.,  2.]])
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

    Parameters
    ----------
    update
        What the client would send.
    bits
        A whole number from 2 to 16.

    Raises
    ------
    ValueError
        For other bits.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1, bias=False))
    >>> sent = {"1.weight": torch.tensor([[3.0, -1.2, 0.9, 0.1]])}
    >>> quantise(Update(net, 1, (1, 2, 2), gradient=sent), bits=3).gradient["1.weight"]
    tensor([[ 3., -1.,  1.,  0.]])
    """
    check(bits in range(2, 17), f"bits must be a whole number from 2 to 16; got {bits}")
    levels = 2 ** (bits - 1) - 1
    rounded = {}
    for name, tensor in update.message().items():
        step = (tensor.abs().max() / levels).clamp_min(torch.finfo(tensor.dtype).tiny)
        rounded[name] = (tensor / step).round() * step
    return replaced(update, rounded)


def sign(update: Update) -> Update:
    """Send signs alone, times the mean size of each tensor.

    References
    ----------
    Karimireddy et al. 2019.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1, bias=False))
    >>> sent = {"1.weight": torch.tensor([[3.0, -1.0, 0.0, 4.0]])}
    >>> sign(Update(net, 1, (1, 2, 2), gradient=sent)).gradient["1.weight"]
    tensor([[ 2., -2.,  0.,  2.]])
    """
    sent = update.message()
    return replaced(update, {name: t.sign() * t.abs().mean() for name, t in sent.items()})


def cast(update: Update, dtype: torch.dtype) -> Update:
    """Round to a shorter floating point format and back.

    The digits of a gradient then show it (`Update.precision`); of a FedAvg client the change is
    rounded, which its weights do not show.

    Parameters
    ----------
    update
        What the client would send.
    dtype
        The format, such as torch.bfloat16.

    Raises
    ------
    ValueError
        For a dtype that is no floating point format.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1, bias=False))
    >>> sent = {"1.weight": torch.tensor([[1.001, 1.003, 2.0, 3.1415]])}
    >>> cast(Update(net, 1, (1, 2, 2), gradient=sent), torch.bfloat16).gradient["1.weight"]
    tensor([[1.0000, 1.0000, 2.0000, 3.1406]])
    """
    check(dtype.is_floating_point, f"{dtype} is not a floating point format")
    sent = update.message()
    return replaced(update, {name: tensor.to(dtype).to(tensor) for name, tensor in sent.items()})


def aggregate(updates: Sequence[Update]) -> Update:
    """What a server sees through secure aggregation: the clients' mean.

    It reads as the update of one client with all samples. For FedSGD without batch norm in train
    mode it is exactly that; for FedAvg with more than one local step it is so nearly, with the
    batch sizes added up.

    Parameters
    ----------
    updates
        One of each client.

    Raises
    ------
    ValueError
        Unless all clients sent the same kind of update for the same model, with equal numbers of
        samples and equal facts.

    References
    ----------
    Bonawitz et al. 2017.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 1, bias=False))
    >>> sent = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -2.0]])]
    >>> total = aggregate([Update(net, 4, (1, 1, 2), gradient={"1.weight": g}) for g in sent])
    >>> total.num_samples, total.gradient["1.weight"]
    (8, tensor([[2., 0.]]))
    """
    check(len(updates) > 0, "no update to aggregate")
    first, weights = updates[0], updates[0].model.state_dict()
    for other in updates[1:]:
        same = (
            type(other) is type(first)
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


def epsilon(
    noise_multiplier: float, *, steps: int, delta: float, sample_rate: float = 1.0
) -> float:
    """The (epsilon, delta) privacy that noisy updates spend, by Renyi accounting (opacus).

    Parameters
    ----------
    noise_multiplier
        Standard deviation of the noise over how far one protected unit can move the sum that it is
        added to. The unit is a record for `private_fedsgd`, which can be in the batch or not: z
        itself. It is a client for `clip` and `add_noise`: z if the client can be there or send
        zero, z / 2 if all its data can be replaced, because two clipped updates lie up to 2 C
        apart.
    steps
        How many updates, at least 1.
    delta
        In (0, 1).
    sample_rate
        The chance of the unit to be in a step, drawn anew each time (Poisson sampling) and hidden
        from the server, in (0, 1]. A server that picks the clients itself knows who took part: 1.

    Raises
    ------
    ValueError
        For numbers out of range.

    Examples
    --------
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
    if isinstance(update, WeightsUpdate):
        before = dict(update.model.named_parameters())
        after = {name: before[name].detach() + change for name, change in sent.items()}
        return update.resent(after)
    return update.resent(sent)


def check(condition: bool, message: str) -> None:
    """Raise ValueError with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)
