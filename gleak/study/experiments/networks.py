"""Networks at a stage of their training, several for each cell: the units of the statistics."""

from functools import lru_cache

from torch import nn

import gleak
from gleak.study.experiments.common import model_options
from gleak.training import train

BATCHES = 1000  # more than any network gets, so that no two networks share a batch


@lru_cache(maxsize=64)
def trained_network(
    model: str, pool: str, steps: int, training: int, width: int | None = None
) -> nn.Module:
    """The network after so many steps on the server's half of a pool; trained once a session.

    training: seed of its weights and of what it is trained on. width: of a ConvNet. LeNet has ReLU.
    Callers leave the network as it is.
    """
    data = gleak.load_pool(pool, "server")
    net = gleak.build_model(model, data, seed=training, **model_options(model, width))
    train(net, data, steps=steps, seed=training)
    return net


def batch_seed(training: int, number: int) -> int:
    """The seed of a network's batch of that number: no two networks are asked for the same one.

    >>> batch_seed(2, 1)
    2001
    """
    return training * BATCHES + number
