"""Images from gradients: search for the batch whose gradient is the one that the client sent.

attack      what an attack is, and the presets
distances   between gradients
priors      on images
peel        what the gradient gives away in closed form, layer by layer
exact       images in closed form
loop        `invert`: the one search that serves all attacks
"""

from gleak.inversion.attack import ATTACKS, Attack
from gleak.inversion.distances import DISTANCES, cosine, flatten
from gleak.inversion.exact import spear
from gleak.inversion.loop import (
    Inversion,
    InversionFailed,
    invert,
    labels_of,
    list_attacks,
    simulate,
)
from gleak.inversion.peel import peel
from gleak.inversion.priors import PRIORS, total_variation

__all__ = [
    "ATTACKS",
    "DISTANCES",
    "PRIORS",
    "Attack",
    "Inversion",
    "InversionFailed",
    "cosine",
    "flatten",
    "invert",
    "labels_of",
    "list_attacks",
    "peel",
    "simulate",
    "spear",
    "total_variation",
]
