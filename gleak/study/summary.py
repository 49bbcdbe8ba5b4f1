"""Several settings in one grade, and what sets those where a claim holds apart from the others."""

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from gleak.study.criterion import CONDITION, FAILS, HOLDS, LEAST, OPEN
from gleak.study.verdicts import CONDITIONS, KEYS
from gleak.study.words import name

ALTERNATIVES = 2  # conditions that are named one beside the other; more are counted


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
    with too few units counts only where no other one was decided under the same conditions.
    """
    decided = rows.grade != OPEN
    known = set(rows.loc[decided, KEYS].itertuples(index=False, name=None))
    again = [key in known for key in rows[KEYS].itertuples(index=False, name=None)]
    shown = rows[decided]
    unknown = rows[~decided & ~(pd.Series(again, index=rows.index) & (rows.n < LEAST))]
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
    """Where rows lie as opposed to others, in words.

    That is the conditions that tell them apart where one or two do. Otherwise settings are
    counted, with what all of them have in common and the others do not.

    >>> from gleak.study.verdicts import setting
    >>> here = pd.DataFrame([vars(setting("a", images=4)), vars(setting("b", images=50))])
    >>> where(here, pd.DataFrame([vars(setting("c", images=4, trained=True))]))
    'on untrained networks'
    """
    if rows.empty:
        return ""
    told: dict[str, None] = {}  # in order
    rest = others[KEYS].to_dict("records")
    for row in rows[KEYS].to_dict("records"):
        told[apart(row, rest)] = None
        if "" in told or len(told) > ALTERNATIVES:
            break
    else:
        return " or ".join(told)
    count = f"in {len(rows)} of {len(rows) + len(others)} settings"
    shared = common(rows, others)
    return f"{count}, {'all ' * (len(rows) > 1)}{shared}" if shared else count


def apart(row: Mapping[Hashable, str], others: Sequence[Mapping[Hashable, str]]) -> str:
    """The fewest conditions of a row that none of the others has together, in words.

    What else tells it apart, its network for instance, is named only where these do not. Empty
    where nothing does.
    """
    also = [key for key in KEYS if key not in CONDITIONS and row[key]]
    for more in ([], also):
        for size in range(1 if not more else 0, len(CONDITIONS) + 1):
            for few in itertools.combinations(CONDITIONS, size):
                keys = [*few, *more]
                if not any(all(other[key] == row[key] for key in keys) for other in others):
                    return named({key: row[key] for key in keys})
    return ""


def common(rows: pd.DataFrame, others: pd.DataFrame) -> str:
    """The conditions that all rows have and not all of the others, in words."""
    first = rows.iloc[0]
    keys = [
        key
        for key in CONDITIONS
        if (rows[key] == first[key]).all() and not (others[key] == first[key]).all()
    ]
    *start, last = [named({key: first[key]}) for key in keys] or [""]
    return f"{', '.join(start)} and {last}" if start else last


def named(chosen: Mapping[str, str]) -> str:
    """Conditions in words."""
    return " ".join(CONDITIONS.get(key, {}).get(value, value) for key, value in chosen.items())


def method(row: pd.Series) -> str:
    """The method of a row in readers' words."""
    images = "attack" if row["update"] == "FedSGD" else "procedure"
    return name(row["method"], "rule" if row["what"] == "labels" else images)


def case_name(grade: str) -> str:
    """What the row that a grade rests on is among the others."""
    if grade in (HOLDS, CONDITION):
        return "the hardest case in which it holds"
    return "the case that comes closest"


def telling(rows: pd.DataFrame, grade: str) -> pd.Series:
    """The row that a grade rests on: of those that have it, and of most units, the least clear.

    Where a claim holds, under a condition or not, the one that supports it least; else the one
    that supports it most.
    """
    wanted = {CONDITION: HOLDS}.get(grade, grade)
    chosen = rows[rows.grade == wanted] if (rows.grade == wanted).any() else rows
    support = chosen[chosen.n == chosen.n.max()]["mean"].astype(float).fillna(0)
    return rows.loc[support.idxmin() if wanted == HOLDS else support.idxmax()]
