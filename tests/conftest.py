import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

import gleak


@pytest.fixture
def batch():
    """Four CIFAR-10 test images: cat, ship, airplane, frog."""
    return gleak.load_batch("cifar10-samples", indices=[0, 1, 3, 4])


@pytest.fixture
def tiny():
    """Three random 1x4x4 images of three classes, one of them repeated."""
    images = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return gleak.Batch(images, torch.tensor([2, 0, 2]), ["a", "b", "c"])


@pytest.fixture
def two_layers():
    """A network made by hand: flatten, linear 16 -> 5, ReLU, linear 5 -> 3."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(16, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)
        )
