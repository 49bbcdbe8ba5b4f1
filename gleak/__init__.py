"""gleak: what a federated server can read from the updates that its clients send.

Data flows one way: data -> client -> update -> labels -> inversion -> metrics -> figures.
"""

from importlib import import_module

__version__ = "0.1.0"

# Public name -> its module. Imported on first use: the command line should not wait for torch.
_HOME = {
    "Batch": "data",
    "draw_batch": "data",
    "list_datasets": "data",
    "load_batch": "data",
    "build_model": "models",
    "list_models": "models",
    "fedavg": "client",
    "fedsgd": "client",
    "MissingKnowledge": "update",
    "Update": "update",
    "compare_labels": "labels",
    "label_posterior": "labels",
    "list_label_methods": "labels",
    "restore_labels": "labels",
    "single_images": "labels",
    "invert": "inversion",
    "list_attacks": "inversion",
    "list_update_models": "inversion",
    "score": "metrics",
    "score_drift": "metrics",
    "score_labels": "metrics",
    "list_pools": "training",
    "load_pool": "training",
    "trained_model": "training",
    "provenance": "provenance",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'gleak' has no attribute {name!r}")
    return getattr(import_module(f"gleak.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
