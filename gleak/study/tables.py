"""A small table as HTML and as plain text, in readers' words, the best in bold.

The HTML has no styles of its own; the book's sheet gives them, and a sign where a table scrolls.
"""

import html
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from gleak.study.words import readable

Place = tuple[int, int]  # row, column


def rendered(
    frame: pd.DataFrame,
    *,
    best: Mapping[str, str],
    best_of_row: str | None,
    digits: int | Mapping[str, int],
    kind: str | None,
) -> tuple[str, str]:
    """A table's HTML and its plain text, in which a star marks what is bold.

    Parameters
    ----------
    frame
        An index that only counts the rows is left out.
    best
        Columns, by their name in the code or in words, and which value of each is the best:
        "max" or "min".
    best_of_row
        The same of the numbers in each row.
    digits
        Behind the point: for all columns, or for some as in `best` (1 for others).
    kind
        What its methods are; see `words.readable`.

    Raises
    ------
    ValueError
        For a column that is not there, or another word than "max" and "min".
    """
    wrong = {*best.values(), best_of_row} - {"max", "min", None}
    if wrong:
        raise ValueError(f'the best is a "max" or a "min"; got {", ".join(map(repr, wrong))}')
    shown = readable(frame, kind)
    bold = best_of_columns(shown, {where(frame, shown, c): extreme for c, extreme in best.items()})
    if best_of_row:
        bold |= best_of_rows(shown, best_of_row)
    special = digits if isinstance(digits, Mapping) else {}
    usual = 1 if isinstance(digits, Mapping) else digits
    many = {where(frame, shown, column): number for column, number in special.items()}
    texts = [
        [in_digits(value, many.get(column, usual)) for value in shown.iloc[:, column]]
        for column in range(shown.shape[1])
    ]
    rows = list(zip(*texts, strict=True)) if texts else []
    counted = isinstance(frame.index, pd.RangeIndex) and frame.index.name is None
    page = (
        f'<div class="gleak-scroll"><table class="gleak-table"><thead>{head(shown, counted)}'
        f"</thead><tbody>{body(shown.index, rows, bold, counted)}</tbody></table></div>"
    )
    starred = [
        [text + "*" * ((row, column) in bold) for column, text in enumerate(texts)]
        for row, texts in enumerate(rows)
    ]
    plain = pd.DataFrame(starred, index=shown.index, columns=shown.columns)
    return page, plain.to_string(index=not counted)


def where(frame: pd.DataFrame, shown: pd.DataFrame, column: str) -> int:
    """The place of a column that is named as in the code or in words."""
    for columns in (frame.columns, shown.columns):
        if column in columns:
            return list(columns).index(column)
    raise ValueError(f"no column {column!r}; there are {', '.join(map(str, frame.columns))}")


def best_of_columns(shown: pd.DataFrame, best: Mapping[int, str]) -> set[Place]:
    """What is bold in some columns; equals are so together, a single row is not."""
    found = set()
    for column, extreme in best.items() if len(shown) > 1 else ():
        values = shown.iloc[:, column]
        hits = np.flatnonzero(values == getattr(values, extreme)())
        found |= {(int(row), column) for row in hits}
    return found


def best_of_rows(shown: pd.DataFrame, extreme: str) -> set[Place]:
    """What is bold among the numbers of each row."""
    kinds = enumerate(shown.dtypes)
    columns = [i for i, dtype in kinds if pd.api.types.is_numeric_dtype(dtype)]
    numbers = shown.iloc[:, columns]
    hits = numbers.eq(getattr(numbers, extreme)(axis=1), axis=0).to_numpy()
    return {(int(row), columns[place]) for row, place in np.argwhere(hits)}


def in_digits(value: Any, digits: int) -> str:
    """A cell's text: yes and no for bools, a dash where there is nothing."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float | np.floating) else str(value)


def label(value: object) -> str:
    """A label of an axis as HTML; rates as people write them."""
    if value is None:
        return ""
    return html.escape(f"{value:g}" if isinstance(value, float) else str(value))


def runs(axis: pd.Index, level: int) -> list[tuple[object, int]]:
    """The labels of a level, and how many lie under each; in the last level each is for itself."""
    levels = [axis.get_level_values(place) for place in range(level + 1)]
    labels = list(zip(*levels, strict=True))
    if level == axis.nlevels - 1:
        return [(each[-1], 1) for each in labels]
    return [(each[-1], len(list(run))) for each, run in groupby(labels)]


def head(shown: pd.DataFrame, counted: bool) -> str:
    """The rows of the header, one for each level of the columns; the last has the index's names."""
    rows, levels = [], shown.columns.nlevels
    for level in range(levels):
        last = level == levels - 1
        names = [] if counted else [label(name) if last else "" for name in shown.index.names]
        cells = [f'<th scope="col">{name}</th>' if name else "<td></td>" for name in names]
        for text, wide in runs(shown.columns, level):
            scope = 'scope="col"' if last else f'scope="colgroup" colspan="{wide}"'
            cells.append(f"<th {scope}>{label(text)}</th>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return "".join(rows)


def body(index: pd.Index, rows: Sequence[Sequence[str]], bold: set[Place], counted: bool) -> str:
    """The rows of the body; a label of the index spans the rows that it is for.

    Where the index only counts, the first column names the rows.
    """
    headers: list[list[str]] = [[] for _ in rows]
    for level in range(0 if counted else index.nlevels):
        start = 0
        for text, high in runs(index, level):
            scope = f'scope="rowgroup" rowspan="{high}"' if high > 1 else 'scope="row"'
            headers[start].append(f"<th {scope}>{label(text)}</th>")
            start += high
    lines = []
    for number, texts in enumerate(rows):
        cells = [html.escape(text) for text in texts]
        for column, text in enumerate(cells):
            if (number, column) in bold:
                cells[column] = f"<strong>{text}</strong>"
        first = [f'<th scope="row">{cells.pop(0)}</th>'] if counted else headers[number]
        lines.append(f"<tr>{''.join(first)}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return "".join(lines)
