"""Several settings in one grade, and what sets those where a claim holds apart from the others."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from gleak.study.criterion import CONDITION, FAILS, HOLDS, OPEN
from gleak.study.verdicts import CONDITIONS, KEYS

ALTERNATIVES = 3  # conditions named one beside the other; with more, the settings are listed


@dataclass(frozen=True)
class Summary:
    """Several settings in one grade, and the settings on each side in words."""

    grade: str
    holds: str = ""
    fails: str = ""
    open: str = ""


def combined(rows: pd.DataFrame) -> Summary:
    """One grade for several rows, as `stored_verdicts` has them.

    It holds if it does in all settings, under a condition if in some and not in others. A setting
    in which nothing was shown counts only where nothing else was shown under its conditions.
    """
    conditions = list(CONDITIONS)
    shown = rows[rows.grade != OPEN]
    known = set(shown[conditions].itertuples(index=False, name=None))
    unknown = rows[rows.grade == OPEN]
    keys = [key not in known for key in unknown[conditions].itertuples(index=False, name=None)]
    unknown = unknown[pd.Series(keys, index=unknown.index, dtype=bool)]
    held, failed = shown[shown.grade == HOLDS], shown[shown.grade == FAILS]
    if held.empty:
        return Summary(OPEN if failed.empty else FAILS)
    if failed.empty and unknown.empty:
        return Summary(HOLDS)
    return Summary(
        CONDITION,
        where(held, pd.concat([failed, unknown])),
        where(failed, pd.concat([held, unknown])),
        where(unknown, pd.concat([held, failed])),
    )


def where(rows: pd.DataFrame, others: pd.DataFrame) -> str:
    """What sets rows apart from others in words: the fewest conditions that do, else their names.

    >>> from gleak.study.verdicts import setting
    >>> here = pd.DataFrame([setting("a", images=4), setting("b", images=50)])
    >>> where(here, pd.DataFrame([setting("c", images=4, trained=True)]))
    'on untrained networks'
    """
    if rows.empty:
        return ""
    for size in range(1, len(KEYS) + 1):
        for keys in map(list, itertools.combinations(KEYS, size)):
            here = dict.fromkeys(rows[keys].itertuples(index=False, name=None))
            there = set(others[keys].itertuples(index=False, name=None))
            told = all(all(values) for values in here) and len(here) <= ALTERNATIVES
            if told and not there.intersection(here):
                return " or ".join(named(dict(zip(keys, values, strict=True))) for values in here)
    return "in: " + "; ".join(dict.fromkeys(rows.setting))


def named(chosen: Mapping[str, str]) -> str:
    """Conditions in words."""
    return " ".join(CONDITIONS.get(key, {}).get(value, value) for key, value in chosen.items())


def telling(rows: pd.DataFrame, grade: str) -> pd.Series:
    """The row that a grade rests on: of those that have it, and of most units, the least clear.

    Where a claim holds, under a condition or not, the one that supports it least; else the one
    that supports it most.
    """
    wanted = {CONDITION: HOLDS}.get(grade, grade)
    chosen = rows[rows.grade == wanted] if (rows.grade == wanted).any() else rows
    support = chosen[chosen.n == chosen.n.max()]["mean"].astype(float).fillna(0)
    return rows.loc[support.idxmin() if wanted == HOLDS else support.idxmax()]
