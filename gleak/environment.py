"""What a result was made with."""

import platform
from importlib.metadata import version

import torch


def provenance() -> dict[str, str]:
    """Versions and settings that a figure in the book depends on; nothing that names a person."""
    packages = ("gleak", "torch", "torchvision", "numpy", "scipy")
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "threads": str(torch.get_num_threads()),
    }
