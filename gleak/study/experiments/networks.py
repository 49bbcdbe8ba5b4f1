"""Networks at a stage of their training, several for each cell: the units of the statistics."""

import copy
from functools import lru_cache
from itertools import islice

from torch import nn

import gleak
from gleak.study.experiments.common import model_options
from gleak.training import training_of

BATCHES = 1000  # more than any network gets, so that no two networks share a batch


class Course:
    """The training of one network; a later stage goes on from an earlier one."""

    def __init__(self, model: str, pool: str, training: int, width: int | None):
        data, self.done = gleak.load_pool(pool, "server"), 0
        self.net = gleak.build_model(model, data, seed=training, **model_options(model, width))
        self.steps = training_of(self.net, data, seed=training)

    def after(self, steps: int) -> nn.Module:
        """A copy of the network after so many steps, not fewer than were asked for before."""
        for _ in islice(self.steps, steps - self.done):
            self.done += 1
        return copy.deepcopy(self.net)


course = lru_cache(maxsize=64)(Course)


@lru_cache(maxsize=64)
def trained_network(
    model: str, pool: str, steps: int, training: int, width: int | None = None
) -> nn.Module:
    """The network after so many steps on the server's half of a pool; trained once a session.

    training: seed of its weights and of what it is trained on. width: of a ConvNet. LeNet has ReLU.
    Callers leave the network as it is.
    """
    way = model, pool, training, width
    going = course(*way)
    return (going if steps >= going.done else Course(*way)).after(steps)


def batch_seed(training: int, number: int) -> int:
    """The seed of a network's batch of that number: no two networks are asked for the same one.

    >>> batch_seed(2, 1)
    2001
    """
    return training * BATCHES + number
