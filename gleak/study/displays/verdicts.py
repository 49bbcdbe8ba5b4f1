"""Chapter 12, how it is shown: all verdicts as a figure, claim by claim, and in full."""

import html
import re
from collections.abc import Iterable

import pandas as pd
from IPython.display import HTML
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from gleak import figures
from gleak.study.book import glue
from gleak.study.verdicts import VERDICTS

CLAIMS = {
    1: "Labels are restored without any data, repeated ones included",
    2: "Images are restored from FedSGD gradients",
    3: "Images are restored from FedAvg weights",
    4: "One wrong label, and the images fail",
    5: "Equal labels give a fusion of the class",
    6: "It works at any stage of training",
    7: "It goes beyond GradInversion in batch size, quality and label distributions",
}
STYLES = {
    "holds": ("#009E73", "o"),
    "holds partly": ("#E69F00", "D"),
    "does not hold": ("#B2182B", "X"),
}
BADGES = {"holds": "holds", "holds partly": "partly", "does not hold": "not"}


def sentence(records: pd.DataFrame, number: int) -> str:
    """A claim's verdict, one for several settings, in how many it holds, and why not in the others.

    It is theirs if they agree, else that the claim holds partly.
    """
    found = records[records.claim == number]
    if not len(found):
        return "No chapter has recorded a verdict on it."
    different = found.verdict.unique()
    verdict = different[0] if len(different) == 1 else "holds partly"
    times = found.verdict.value_counts()
    words = dict(zip(VERDICTS, ("it holds in", "partly in", "not in"), strict=True))
    parts = ", ".join(f"{words[v]} {times[v]}" for v in VERDICTS if v in times)
    telling = found.loc[found.verdict.map(VERDICTS.index).idxmax()]  # the one that limits the claim
    of = f" (of {len(found)} settings {parts})" if len(found) > 1 else ""
    return f"{verdict[0].upper()}{verdict[1:]}{of}: {telling.why}"


def title(chapter: str) -> str:
    """A chapter's name without its number."""
    return re.sub(r"^\d+_", "", chapter).replace("_", " ")


def marks(records: pd.DataFrame) -> tuple[Figure, str]:
    """A mark for each verdict, claims against chapters; the figure and its alt text."""
    chapters = sorted(records.chapter.unique())
    with plt.rc_context(figures.STYLE):
        figure, axis = plt.subplots(
            figsize=(max(5.0, 2.6 + 0.62 * len(chapters)), 3.4), layout="constrained"
        )
        for (number, chapter), found in records.groupby(["claim", "chapter"]):
            for place, verdict in enumerate(found.verdict):
                colour, marker = STYLES[verdict]
                shift = 0.22 * (place - (len(found) - 1) / 2)
                axis.plot(chapters.index(chapter) + shift, number, marker, color=colour, ms=8)
        for verdict, (colour, marker) in STYLES.items():
            axis.plot([], [], marker, color=colour, ms=7, label=verdict)
        axis.set_xticks(range(len(chapters)), [chapter.split("_")[0] for chapter in chapters])
        axis.set_yticks(list(CLAIMS), [f"claim {number}" for number in CLAIMS])
        axis.set(ylim=(7.6, 0.4), xlim=(-0.6, max(len(chapters), 1) - 0.4), xlabel="chapter")
        axis.grid(alpha=0.3)
        axis.legend(
            fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.16), frameon=False
        )
    total = records.verdict.value_counts()
    alt = "A grid of claims and chapters with a mark for each verdict: "
    return figure, alt + ", ".join(f"{total.get(v, 0)} {v}" for v in VERDICTS) + "."


def page_table(names: Iterable[str], rows: Iterable[Iterable[str]]) -> HTML:
    """A table of the page; rows: cells as HTML."""
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return HTML(
        f'<table class="table verdicts"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    )


def claims(records: pd.DataFrame) -> HTML:
    """What was found of each claim, with how often claims hold for the prose."""
    total = records.verdict.value_counts()
    found = {number: sentence(records, number) for number in CLAIMS}
    for number, words in found.items():
        glue(f"claim_{number}", words)
    for verdict in VERDICTS:
        glue(f"number_{verdict.replace(' ', '_')}", int(total.get(verdict, 0)))
    glue("settings", len(records))
    glue("chapters", records.chapter.nunique())
    rows = (
        (str(number), html.escape(text), html.escape(found[number]))
        for number, text in CLAIMS.items()
    )
    return page_table(("Claim", "What it says", "What was found"), rows)


def all_verdicts(records: pd.DataFrame) -> HTML:
    """Each verdict with its chapter, setting, numbers and reason."""
    rows = (
        (
            str(row.claim),
            f'<a href="{row.chapter}.html">{html.escape(title(row.chapter))}</a>',
            html.escape(row.setting),
            html.escape(row.measured),
            f'<span class="badge-{BADGES[row.verdict]}">{row.verdict}</span>',
            html.escape(row.why),
        )
        for row in records.itertuples()
    )
    return page_table(("Claim", "Chapter", "Setting", "Measured", "Verdict", "Why"), rows)


def check(records: pd.DataFrame, least: int) -> None:
    """Print whether there are verdicts, and whether each has its numbers and its reason."""
    print(f"enough verdicts recorded: {len(records) >= least}")
    told = bool(records[["measured", "why"]].map(len).gt(20).all(axis=None))
    print(f"every verdict has its numbers and its reason: {told}")
