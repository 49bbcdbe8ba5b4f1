"""What the book needs of MyST-NB beyond what it does by itself."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields

import myst_nb
import pandas as pd
from docutils import nodes
from IPython.display import display

from gleak.study.criterion import BADGES, Finding
from gleak.study.summary import Summary, case_name, combined, method, telling
from gleak.study.tables import rendered
from gleak.study.verdicts import (
    COLUMNS,
    KEYS,
    MIME,
    Setting,
    flat,
    notebook_folder,
    stored_verdicts,
)

Row = tuple[Setting, Mapping[str, Finding]]  # a finding for each of COLUMNS


def glue(name: str, value) -> None:
    """Keep a value of this cell for the prose, which names it.

    Parameters
    ----------
    name
        What the prose calls it.
    value
        Also one of torch or numpy.
    """
    value = value.item() if hasattr(value, "item") else value  # their repr cannot be formatted
    myst_nb.glue(name, value, display=False)


def glue_all(values: Mapping[str, object]) -> None:
    """Keep several values for the prose, each under its name."""
    for name, value in values.items():
        glue(name, value)


def claims(found: Mapping[str, object]) -> None:
    """Show claims and whether they hold as badges; other values as they are.

    The plain text has a line for each, `claim: True`: what the tests of the book look for.
    """
    lines, badges = [], []
    for claim, holds in found.items():
        holds = holds.item() if hasattr(holds, "item") else holds
        lines.append(f"{claim}: {holds}")
        if isinstance(holds, bool):
            kind, said = ("holds", "holds") if holds else ("fails", "does not hold")
            text = f'<span aria-hidden="true">{"✓" if holds else "✗"}</span> {html.escape(claim)}'
            text += f'<span class="gleak-unseen">: {said}</span>'
        else:
            kind, text = "told", html.escape(lines[-1])
        badges.append(f'<li class="{kind}">{text}</li>')
    if lines:
        page = f'<ul class="gleak-claims" aria-label="Checked here">{"".join(badges)}</ul>'
        display({"text/html": page, "text/plain": "\n".join(lines)}, raw=True)


def table(
    frame: pd.DataFrame,
    *,
    best: Mapping[str, str] | None = None,
    best_of_row: str | None = None,
    digits: int | Mapping[str, int] = 1,
    kind: str | None = None,
) -> None:
    """Show a small table in readers' words; see `tables.rendered` for the parameters."""
    page, plain = rendered(
        frame, best=best or {}, best_of_row=best_of_row, digits=digits, kind=kind
    )
    display({"text/html": page, "text/plain": plain}, raw=True)


def verdict(claims: Sequence[int], rows: Sequence[Row]) -> None:
    """Show a verdict on claims of the paper as a box, and record it in the notebook.

    Nothing of it is written by hand: `criterion` makes grades, numbers and reasons.

    Parameters
    ----------
    claims
        1 to 7; several where the same measurement bears on each.
    rows
        A setting, and what was found there for each of `verdicts.COLUMNS`.

    Raises
    ------
    ValueError
        For another claim, no row, a setting without words, or one that is there twice.
    """
    if not claims or not set(claims) <= set(range(1, 8)):
        raise ValueError(f"a verdict is on claims from 1 to 7; got {list(claims)}")
    words = [where.words for where, _ in rows]
    if not rows or not all(text.strip() for text in words) or len(set(words)) < len(words):
        raise ValueError(f"a verdict has settings, each with words of its own; got {words}")
    stored = {
        "claims": list(claims),
        "rows": [
            {"setting": asdict(where), **{name: asdict(found[name]) for name in COLUMNS}}
            for where, found in rows
        ],
    }
    frame = pd.DataFrame(flat(stored))
    frame = frame[frame.claim == claims[0]]
    title = f"Claim{'s' * (len(claims) > 1)} {' and '.join(map(str, claims))}"
    lines, plain = [], [title]
    for column, name in COLUMNS.items():
        chosen = frame[frame.column == column]
        found = combined(chosen)
        row = telling(chosen, found.grade)
        said = in_words(found)
        kind = case_name(found.grade).capitalize() if len(rows) > 1 else "Here"
        case = f"{kind}: {row.setting}, {method(row)}: {row.numbers}; {row.reason}."
        start = f"{name[0].upper()}{name[1:]}: "
        lines.append(f"<p>{start}{badge(found.grade)}{html.escape(f'{said}. {case}')}</p>")
        plain.append(f"{start}{found.grade}{said}. {case}")
    details = each_setting(frame, title) if len(rows) > 1 else ""
    link = '<a href="12_verdicts.html#the-criterion">criterion</a>'
    box = (
        f'<div class="gleak-verdict"><p><strong>{title}</strong> ({link})</p>'
        f"{''.join(lines)}{details}</div>"
    )
    display({"text/html": box, "text/plain": "\n".join(plain), MIME: stored}, raw=True)


def each_setting(frame: pd.DataFrame, title: str) -> str:
    """A table to unfold; frame: the rows of a verdict on one claim."""
    body = ""
    for number, (_, row) in enumerate(frame.iterrows()):
        first = number % len(COLUMNS) == 0  # of its setting
        header = f'<th scope="rowgroup" rowspan="{len(COLUMNS)}">{html.escape(row.setting)}</th>'
        cells = (
            html.escape(f"{row.column}: {method(row)}"),
            badge(row.grade),
            html.escape(row.numbers),
            html.escape(row.reason),
        )
        body += f"<tr>{header * first}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    names = ("Setting", "Method", "Grade", "Measured", "Reason")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        "<details><summary>Setting by setting</summary>"
        f'<div class="gleak-scroll" tabindex="0" role="region" aria-label="{title}, setting by '
        f'setting"><table class="table verdicts"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></details>"
    )


def badge(grade: str) -> str:
    """A grade as a coloured word."""
    return f'<span class="badge-{BADGES[grade]}">{grade}</span>'


def in_words(found: Summary) -> str:
    """The conditions behind a summary's grade."""
    parts = [
        f"it {verb} {words}"
        for verb, words in (
            ("holds", found.counts or found.holds),
            ("does not hold", found.fails),
            ("is not shown", found.open),
        )
        if words
    ]
    return f" ({'; '.join(parts)})" if parts else ""


def verdicts() -> pd.DataFrame:
    """All verdicts that the chapters of this profile recorded.

    Returns
    -------
    DataFrame
        One row for each claim, setting and column, ordered by claim; see
        `verdicts.stored_verdicts`.
    """
    files = sorted(notebook_folder().glob("[0-9]*.ipynb"))
    names = ["chapter", "link", "claim", "setting", "column", *KEYS]
    names += [field.name for field in fields(Finding)]
    frame = pd.DataFrame(stored_verdicts(files), columns=names)
    return frame.sort_values(["claim", "chapter"], kind="stable", ignore_index=True)


class AltText:
    """Shows what `figures.show` stored, with its alt text (a MyST-NB mime plugin).

    A drawn figure goes into the page itself, whose colours it takes. Records of verdicts are passed
    over.
    """

    mime_priority_overrides = ()

    @staticmethod
    def handle_mime(renderer, data, inline):
        if data.mime_type == MIME:
            return []  # a record is not for readers; the box beside it is
        alt = data.output_metadata.get("image/png", {}).get("alt")
        if alt is None or inline:
            return None  # left to MyST-NB
        if data.mime_type == "image/svg+xml":
            return [nodes.raw("", in_page(data.string), format="html")]
        if data.mime_type != "image/png":
            return None
        (image,) = renderer.render_image(data)
        image["alt"] = alt
        return [image]


def in_page(drawn: str) -> str:
    """A drawn figure as a part of a page; see the book's style sheet."""
    return f'<div class="gleak-figure">{drawn}</div>'
