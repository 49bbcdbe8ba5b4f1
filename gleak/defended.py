"""Clients that defend themselves, and attackers who know how they do it.

`gleak.defences` has what is done to an update; here each defence comes with the searches of
somebody who knows it, and with the reason, if there is one, why something cannot leak.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gleak import defences
from gleak.inversion.presets import GLEAK_GRADIENT
from gleak.update import Update, WeightsUpdate

PRIVATE = 1.0  # epsilon up to which no attack can say much about a client
DELTA = 1e-5
MULTIPLIER = 10.0  # noise over the clip's norm; two clients' updates lie up to twice that apart

Search = Mapping[str, Any]  # arguments of `invert`
# gets further in few steps than the default of the attack
SHORT: Search = {"attack": "inverting-gradients", "schedule": "cosine", "lr": 0.2}
# Squashed values count every parameter alike. On CIFAR and the ConvNet this gets to 21.6 dB in 100
# steps, where the study's own attack has 20.1 after 240; after 400 neither is ahead.
SIGNS: Search = {**SHORT, "tv": 0.5, "distance": "sign-cosine"}
# The study's own attack needs more steps than these where layers are smooth, as in LeNet: there
# matching from coarse to fine gets to 16 dB in 100 steps, where it has 13.
UNDEFENDED: Mapping[str, Search] = {
    "the study's own": {"attack": "gleak"},
    "the signs": SIGNS,
    "coarse to fine": {"attack": GLEAK_GRADIENT},
}


@dataclass(frozen=True)
class Defence:
    """What a client does to its update before it leaves, and what an attacker makes of it.

    Parameters
    ----------
    change
        (update, seed) -> the update as it is sent.
    searches
        Name -> arguments of `gleak.invert`, by an attacker who knows the defence.
    cannot
        (update as it is sent) -> subject -> why it cannot leak.
    """

    change: Callable[[Update, int], Update]
    searches: Mapping[str, Search]
    cannot: Callable[[Update], Mapping[str, str]] = lambda update: {}


def noise(update: Update, strength: float, seed: int) -> Update:
    """Gaussian noise whose norm is `strength` times that of what is sent."""
    size = sum(tensor.numel() for tensor in update.message().values())
    return defences.add_noise(update, strength * update.norm() / size**0.5, seed=seed)


def noisy(strength: float) -> Defence:
    """Noise of so many times the update's norm; the attacker trusts its prior more."""
    searches = {"a stronger prior": {**SHORT, "tv": 0.5}}
    return Defence(lambda update, seed: noise(update, strength, seed), searches)


def pruned(share: float, tv: float) -> Defence:
    """All but the largest values left out; the attacker compares those that were sent."""
    searches = {"the values sent": {**SHORT, "tv": tv, "distance": "sent-cosine"}}
    return Defence(lambda update, seed: defences.prune(update, share), searches)


def headless(update: Update) -> Update:
    """The update without the classifier, which stays with the client (FedPer, Arivazhagan 2019)."""
    own = update.classifier_name
    kept = {name: tensor for name, tensor in update.sent.items() if name.rpartition(".")[0] != own}
    return update.resent(kept)


def without_names(update: Update) -> dict[str, str]:
    """Why a classifier that never left the client keeps the names of classes."""
    return {
        "labels": "the server never had the classifier, and any renaming of the classes leaves the "
        "rest of the update as it is, so no attack can name them (it may still tell which images "
        "are of one class)"
    }


def private(update: Update, seed: int) -> Update:
    """Clipped and noised so that one round hides all of the client's data.

    The norm is 1 for a gradient, and lr times the local steps for weights: what is clipped must not
    depend on the data.
    """
    norm = 1.0
    if isinstance(update, WeightsUpdate):
        (rate,) = update.told("lr")
        norm = rate * update.local_steps
    return defences.add_noise(defences.clip(update, norm), MULTIPLIER * norm, seed=seed)


def bounded(update: Update) -> dict[str, str]:
    """What differential privacy bounds, whatever the attack; empty where epsilon is large."""
    spent = defences.epsilon(MULTIPLIER / 2, steps=1, delta=DELTA)
    if spent > PRIVATE:
        return {}
    words = (
        f"differential privacy: epsilon = {spent:.2f}, delta = {DELTA:g} for one round and all of "
        f"the client's data, so no attack raises the odds of anything by more than "
        f"{math.exp(spent):.1f} times; every further round spends as much again"
    )
    return dict.fromkeys(("labels", "images", "pixels"), words)


# What a client can do to its update, by its name in the report.
DEFENCES: dict[str, Defence] = {
    "send 10 % of the values": pruned(0.9, tv=0.15),
    "send 1 % of the values": pruned(0.99, tv=0.05),
    "signs only": Defence(
        lambda update, seed: defences.sign(update),
        {"the signs": SIGNS},
    ),
    "noise as large as the update": noisy(1),
    "noise 100 times the update": noisy(100),
    "classifier stays at the client": Defence(
        lambda update, seed: headless(update),
        {"the signs of the other layers": SIGNS},
        cannot=without_names,
    ),
    "clip and noise for privacy": Defence(
        private, {"a stronger prior": {**SHORT, "tv": 0.5}}, cannot=bounded
    ),
}


def kept(defended: Update, plain: Update) -> float:
    """How much of an update's direction is left: the cosine of the angle to the plain one."""
    ours, theirs = defended.message(), plain.message()
    a = torch.cat([tensor.flatten() for tensor in theirs.values()])
    b = torch.cat([ours.get(name, torch.zeros_like(t)).flatten() for name, t in theirs.items()])
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0).item()
