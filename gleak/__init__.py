"""gleak: what a federated server can read from the updates that its clients send.

Data flows one way: data -> client -> update -> labels -> inversion -> metrics -> figures.
"""

from gleak.client import fedsgd
from gleak.data import Batch, datasets, load_batch
from gleak.inversion import attacks, invert
from gleak.labels import label_methods, restore_labels
from gleak.metrics import score
from gleak.models import build_model, models
from gleak.provenance import provenance
from gleak.update import MissingKnowledge, Update

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "MissingKnowledge",
    "Update",
    "attacks",
    "build_model",
    "datasets",
    "fedsgd",
    "invert",
    "label_methods",
    "load_batch",
    "models",
    "provenance",
    "restore_labels",
    "score",
]
