"""Images from gradients: search for the batch whose gradient is the one that the client sent.

attack      what an attack is, and the presets
distances   between gradients
priors      on images
peel        what the gradient gives away in closed form, layer by layer
residual    the same through residual blocks, pooling and batch norm
linear      linear algebra that the closed forms share
exact       images in closed form
update_models  how a candidate batch is turned into what the server saw
objective   the loss of an attack on an update
search      its minimum: starts, optimisers, the record of the way
loop        `invert`: one door for all attacks
"""

from gleak.inversion.attack import ATTACKS, Attack
from gleak.inversion.closed.peel import peel
from gleak.inversion.closed.spear import spear
from gleak.inversion.distances import DISTANCES, cosine, flatten
from gleak.inversion.gradients import simulate
from gleak.inversion.invert import invert, labels_of, list_attacks
from gleak.inversion.priors import PRIORS, total_variation
from gleak.inversion.search import Inversion, InversionFailed
from gleak.inversion.update_models import (
    UPDATE_MODELS,
    equivalent,
    list_update_models,
    nl_sme,
    path,
    sme,
    unrolled,
)

__all__ = [
    "ATTACKS",
    "DISTANCES",
    "PRIORS",
    "UPDATE_MODELS",
    "Attack",
    "Inversion",
    "InversionFailed",
    "cosine",
    "equivalent",
    "flatten",
    "invert",
    "labels_of",
    "list_attacks",
    "list_update_models",
    "nl_sme",
    "path",
    "peel",
    "simulate",
    "sme",
    "spear",
    "total_variation",
    "unrolled",
]
