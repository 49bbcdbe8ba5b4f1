"""Images from gradients: search for the batch whose gradient is the one that the client sent.

attack      what an attack is, and the presets
distances   between gradients
priors      on images
closed      what the gradient gives away in closed form, layer by layer, and sometimes whole images
update_models  how a candidate batch is turned into what the server saw
objective   the loss of an attack on an update
search      its minimum: starts, optimisers, the record of the way
loop        `invert`: one door for all attacks
"""

from gleak.inversion.attack import ATTACKS, Attack
from gleak.inversion.closed import peel, spear
from gleak.inversion.distances import DISTANCES, cosine, flatten
from gleak.inversion.invert import invert, labels_of, list_attacks
from gleak.inversion.priors import PRIORS, total_variation
from gleak.inversion.search import Inversion, InversionFailed
from gleak.inversion.update_models import (
    UPDATE_MODELS,
    equivalent,
    list_update_models,
    nl_sme,
    path,
    simulate,
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
