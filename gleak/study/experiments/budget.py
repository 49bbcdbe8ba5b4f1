"""As many iterations as fit into a time: for attacks whose steps cost differently."""

from collections.abc import Callable

Trials = tuple[int, int]


def iterations_within(
    seconds: float,
    attack: Callable[[int], object],
    clock: Callable[[], float],
    trials: Trials,
    most: int,
) -> int:
    """How many iterations of an attack take so long, from two short runs of it.

    Parameters
    ----------
    seconds
        For the whole run, with what comes before its first iteration.
    attack
        Runs for so many iterations.
    clock
        In seconds, such as `time.process_time`.
    trials
        Iterations of the two short runs, the shorter one first.
    most
        No more than these are asked for, and never less than those of the shorter trial.

    Examples
    --------
    An attack that takes 2 s to begin with and half a second for each iteration.

    >>> passed = [0.0]
    >>> def attack(iterations):
    ...     passed[0] += 2 + iterations / 2
    >>> iterations_within(12, attack, lambda: passed[0], (4, 8), most=1000)
    20
    """
    few, more = trials
    taken = []
    for iterations in (2, few, more):  # the first sets up what is set up when it is first used
        began = clock()
        attack(iterations)
        taken.append(clock() - began)
    each = max((taken[2] - taken[1]) / (more - few), 1e-6)
    return min(max(few + int((seconds - taken[1]) / each), few), most)
