"""Several settings in one grade, and what sets those where a claim holds apart from the others."""

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from gleak.study.criterion import CONDITION, FAILS, HOLDS, LEAST, OPEN
from gleak.study.verdicts import CONDITIONS, KEYS
from gleak.study.words import name

ALTERNATIVES = 2  # conditions that are named one beside the other; else settings are counted

SEARCHES = {  # methods of the chapters on wrong and on equal labels
    "L2": "the paper's L2 search",
    "cosine": "cosine search",
    "matching": "cosine search",
    "batch norm, eval": "cosine search, eval mode",
    "batch norm, train": "cosine search, train mode",
    "local steps": "search through simulated steps",
    "closed form (gleak)": "the study's attack",
    "any": "no method",
}


@dataclass(frozen=True)
class Summary:
    """Several settings in one grade, and the settings on each side in words.

    counts: in how many settings it holds, where no condition tells those from the others.
    """

    grade: str
    holds: str = ""
    fails: str = ""
    open: str = ""
    counts: str = ""


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
    holds = where(held, pd.concat([failed, unknown]))
    if not holds:
        fails = where(failed, pd.concat([held, unknown]))
        return Summary(
            CONDITION,
            fails=fails,
            open=undecided(unknown, shown),
            counts=counted(held, failed),
        )
    return Summary(
        CONDITION,
        holds,
        where(failed, pd.concat([held, unknown])) or besides(failed),
        where(unknown, pd.concat([held, failed])) or besides(unknown),
    )


def where(rows: pd.DataFrame, others: pd.DataFrame) -> str:
    """Where rows lie as opposed to others, in words.

    That is the conditions that tell them apart where one or two do, else nothing.

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
            return ""
    return " or ".join(told)


def counted(held: pd.DataFrame, failed: pd.DataFrame) -> str:
    """In how many settings that decide it holds, on both sides of the condition that tells most."""
    decided = pd.concat([held, failed])
    holds = decided.index.isin(held.index)
    best, told = -1.0, [f"in {among(len(held), len(decided))}"]
    for key in CONDITIONS:
        sides = pd.DataFrame({"side": decided[key], "holds": holds}).groupby("side").holds
        shares = sides.agg(["mean", "sum", "size"]).sort_values("mean", ascending=False)
        gap = float(shares["mean"].iloc[0] - shares["mean"].iloc[-1])
        if len(shares) < 2 or gap <= best:
            continue
        best = gap
        told = [
            f"{named({key: str(side)})} in {among(int(row['sum']), int(row['size']))}"
            for side, row in shares.iterrows()
        ]
    first, *rest = told
    unit = "" if "setting" in first else " settings"
    return ", ".join([f"{first}{unit}", *rest])


def among(part: int, whole: int) -> str:
    """So many settings of so many.

    >>> among(3, 3), among(0, 3), among(2, 3), among(0, 1)
    ('all 3 settings', 'none of 3', '2 of 3', 'none of 1')
    """
    if part == whole:
        return f"all {whole} settings" if whole > 1 else "the one setting that decides"
    return f"{part or 'none'} of {whole}"


def undecided(rows: pd.DataFrame, decided: pd.DataFrame) -> str:
    """Settings that show nothing, with the conditions under which none is decided."""
    sides = [
        named({key: value})
        for key, values in CONDITIONS.items()
        for value in values
        if (rows[key] == value).any() and not (decided[key] == value).any()
    ]
    shared = f", among them all {' and all '.join(sides)}" if sides else ""
    return f"{besides(rows)}{shared}" if len(rows) else ""


def besides(rows: pd.DataFrame) -> str:
    """So many settings besides those that were named; nothing for none."""
    if rows.empty:
        return ""
    return f"in {len(rows)} other settings" if len(rows) > 1 else "in one other setting"


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


def named(chosen: Mapping[str, str]) -> str:
    """Conditions in words."""
    return " ".join(CONDITIONS.get(key, {}).get(value, value) for key, value in chosen.items())


def method(row: pd.Series) -> str:
    """The method of a row in readers' words."""
    if row["method"] in SEARCHES:
        return SEARCHES[row["method"]]
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
