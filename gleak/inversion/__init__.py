"""Images from gradients: search for the batch whose gradient is the one that the client sent.

invert      `invert`: one door for all attacks
attack      what an attack is: gradient matching, closed form, or one's own
presets     the attacks of papers, and the searches of this study
own         the study's own attack: chooses by what the update offers
drift       what local training changes in a gradient, and how to undo it
terms       the loss as a list of terms
distances   between gradients
priors      on images
batch_norm  what should enter the batch norm layers
update_models  how a candidate batch is turned into what the server saw
gradients   what a client would send, differentiable
finite_difference  the derivative of a gradient, from two first derivatives
objective   the loss of an attack on an update
search      its minimum: starts, optimisers, the record of the way
journal     searches that go on where they were interrupted
closed      what a gradient gives away in closed form
"""

from gleak.inversion.attack import Attack, ClosedForm, GradientMatching, Options
from gleak.inversion.closed import embedded_image, peel, spear
from gleak.inversion.distances import DISTANCES, cosine, flatten
from gleak.inversion.gradients import local_gradient, simulate
from gleak.inversion.invert import ATTACKS, invert, labels_of, list_attacks
from gleak.inversion.own import Gleak
from gleak.inversion.priors import total_variation
from gleak.inversion.search import Inversion, InversionFailed, interrupts_pass
from gleak.inversion.terms import TERMS, Term
from gleak.inversion.update_models import (
    UPDATE_MODELS,
    Simulation,
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
    "TERMS",
    "UPDATE_MODELS",
    "Attack",
    "ClosedForm",
    "Gleak",
    "GradientMatching",
    "Inversion",
    "InversionFailed",
    "Options",
    "Simulation",
    "Term",
    "cosine",
    "embedded_image",
    "equivalent",
    "flatten",
    "interrupts_pass",
    "invert",
    "labels_of",
    "list_attacks",
    "list_update_models",
    "local_gradient",
    "nl_sme",
    "path",
    "peel",
    "simulate",
    "sme",
    "spear",
    "total_variation",
    "unrolled",
]
