"""Chapter 12, how it is shown: the criterion, a sentence for each claim, the matrix, all rows."""

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
from IPython.display import HTML
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from gleak import figures
from gleak.study import criterion
from gleak.study.book import badge, glue
from gleak.study.criterion import BADGES, CONDITION, FAILS, GRADES, HOLDS, OPEN
from gleak.study.summary import Summary, case_name, combined, telling
from gleak.study.verdicts import COLUMNS, CONDITIONS, FEW, SMALL


@dataclass(frozen=True)
class Claim:
    """A claim: what the paper says, and the same of a method in the words of a report.

    does, does_not: go on from "the paper's method" and "the best method of this study".
    """

    says: str
    does: str
    does_not: str


CLAIMS = {
    1: Claim(
        "Labels are restored without any data, repeated ones included",
        "reads nearly all labels of a batch out of an update",
        "does not read nearly all labels of a batch out of an update",
    ),
    2: Claim(
        "Images are restored from FedSGD gradients",
        "brings images back from a gradient",
        "brings back less of the images from a gradient than a thumbnail shows",
    ),
    3: Claim(
        "Images are restored from FedAvg weights",
        "brings images back from the weights of a client that trained",
        "brings back less of the images from weights than a thumbnail shows",
    ),
    4: Claim(
        "One wrong label, and the images fail",
        "loses all images of a batch by one wrong label",
        "still brings images back in spite of one wrong label",
    ),
    5: Claim(
        "Equal labels give a fusion of the class",
        "mixes images of one class into their mean",
        "tells images of one class apart",
    ),
    6: Claim(
        "It works at any stage of training",
        "works without data of its own",
        "does not work at the stages of training that were tried",
    ),
    7: Claim(
        "It goes beyond GradInversion in batch size, quality and label distributions",
        "is ahead of GradInversion",
        "is not ahead of GradInversion",
    ),
}
WHO = {"paper": "the paper's method as published", "any": "the best method of this study"}
MARKS = {HOLDS: "✓", CONDITION: "◐", FAILS: "✗", OPEN: "?"}
STYLES = {
    HOLDS: ("#009E73", "o"),
    CONDITION: ("#E69F00", "D"),
    FAILS: ("#B2182B", "X"),
    OPEN: ("#777777", "$?$"),
}

# What is known of the paper beside what was done here. Its tables were not at hand.
PAPER_AND_HERE = [
    (
        "What the server gets",
        "gradients (FedSGD) or weights after local training (FedAvg); it is honest but curious",
        "the same",
    ),
    (
        "What else it needs",
        "no data of the client's kind, no further model that was trained",
        "the same; rules that need data are shown in the chapters and judged in no verdict",
    ),
    (
        "Labels",
        "counts from the last layer, with statistics of random inputs; how many inputs, and how "
        "counts are rounded, is not known",
        "rule `zlg`, from re-implementations and from the algebra; largest remainders",
    ),
    (
        "Images",
        "L2 distance of gradients, total variation, a clip and a scale prior; optimiser, weights "
        "and steps are not known",
        "attack `general`; optimiser, weights and steps are ours",
    ),
    (
        "Weights of FedAvg",
        "taken for a gradient: their change over learning rate and steps; the paper may have "
        "another way, too",
        "`equivalent`, searched by a cosine",
    ),
    (
        "Data",
        "CIFAR-10 and ImageNet; which networks, batches and stages of training is not known",
        "samples of CIFAR and ImageNet that ship with packages, digits, crops of photographs",
    ),
    (
        "Wrong and equal labels",
        "one wrong label makes the restoration of images fail; images of equal labels come back "
        "as a fusion",
        "claims 4 and 5",
    ),
    (
        "Against GradInversion",
        "larger batches, better images, more distributions of labels; by which scores is not known",
        "claim 7; GradInversion without the batch norm statistics of a trained network, and "
        "without registration",
    ),
    ("Numbers of its tables", "not known here, and none is printed", "every table of this book"),
]


def criterion_table() -> HTML:
    """The criterion, from the constants that the code judges by."""
    rows = {
        "Unit": "a network with weights and a batch of its own. Images of one batch, batches of "
        "one trained network and starts on one gradient are averaged first. Where all units share "
        "their images, the interval is about networks and not about images.",
        "Interval": f"{criterion.LEVEL:.0%}, of the mean over units, by the bootstrap "
        f"({criterion.DRAWS} draws, percentiles). With few units it is too narrow: where they "
        f"spread as a normal, that of {criterion.LEAST} holds the true mean "
        f"{criterion.coverage(criterion.LEAST):.0%} of the time, that of 20 "
        f"{criterion.coverage(20):.0%}.",
        "Fewest units": f"{criterion.LEAST}: with fewer, all of them on one side of a bar is no "
        "rarer by chance than 1 in 20.",
        "Labels (claims 1, 6)": "restored if, of the labels that an even guess leaves open, "
        f"{criterion.RESTORED:.0%} come back or more. An even guess gives each class the same "
        "count.",
        "Images (claims 2, 3, 6)": "restored if their PSNR is above that of their own 8×8 "
        "thumbnails; below that, above one flat colour, something leaks.",
        "One wrong label (claim 4)": "right labels bring images back, and one wrong label leaves "
        "those whose own label is right below their thumbnails.",
        "Equal labels (claim 5)": f"less than {criterion.LOST:.0%} of the differences between the "
        "images is left of what distinct labels bring back, and the mean comes back.",
        "GradInversion (claim 7)": "ahead on the same networks and images. Where neither of two "
        "attacks is above the thumbnails, it is a ranking of failures and shows nothing. Nor does "
        f"a lead over a GradInversion without {' and '.join(criterion.MISSING)}.",
        HOLDS: "the interval lies above the bar.",
        FAILS: "the interval lies below the bar.",
        OPEN: "the interval holds the bar, there are too few units, or the setting cannot show it.",
        CONDITION: "of several settings it holds in some, and the condition that tells them from "
        "the others is named. A setting with too few units counts only where no other one was "
        "decided under the same conditions.",
        "Two columns": f"{'; '.join(COLUMNS.values())}: the best in that setting of all that need "
        "no data. That choice is made on the same runs, which favours it a little.",
        "Conditions": f"few is up to {FEW} images, small up to {SMALL} pixels a side (mostly 32, "
        "else 112 to 224).",
    }
    return page_table(
        ("Of what", "What counts"),
        ((html.escape(a), html.escape(b)) for a, b in rows.items()),
        "criterion",
        prose=True,
    )


def of(records: pd.DataFrame, claim: int, column: str) -> pd.DataFrame:
    """The rows of a claim in a column."""
    return records[(records.claim == claim) & (records.column == column)]


def sentence(records: pd.DataFrame, number: int, column: str, case: bool = True) -> str:
    """What was found of a claim, as one could print it; case: with the setting it rests on."""
    rows, claim, who = of(records, number, column), CLAIMS[number], WHO[column]
    start = f"{who[0].upper()}{who[1:]}"
    if rows.empty:
        return f"No chapter has measured whether {who} {claim.does}."
    found = combined(rows)
    row = telling(rows, found.grade)
    words = f"{row.setting}, {row['method']}: {row.numbers}"
    told = f" ({case_name(found.grade)}: {words})" if case else ""
    if found.grade == OPEN:
        return f"It is not shown that {who} {claim.does}: {row.reason}{told}."
    if found.grade == FAILS:
        return f"{start} {claim.does_not}: {row.reason}{told}."
    if found.grade == HOLDS:
        number = rows.setting.nunique()
        each = f"in each of {number} settings" if number > 1 else "in the one setting tried"
        return f"{start} {claim.does} {each}{told}."
    return f"{start} {claim.does} {found.holds}{told}{elsewhere(found)}."


def elsewhere(found: Summary) -> str:
    """Where a claim does not hold, and where nothing is shown."""
    fails = f"; it does not {found.fails}" if found.fails else ""
    return fails + (f"; nothing is shown {found.open}" if found.open else "")


def title(chapter: str) -> str:
    """A chapter's name without its number."""
    return re.sub(r"^\d+[a-z]?_", "", chapter).replace("_", " ")


def marks(records: pd.DataFrame) -> tuple[Figure, str]:
    """A mark for each claim and chapter, both columns side by side; the figure and its alt text."""
    chapters = sorted(records.chapter.unique())
    with plt.rc_context(figures.STYLE):
        figure, axis = plt.subplots(
            figsize=(max(5.0, 2.6 + 0.62 * len(chapters)), 3.8), layout="constrained"
        )
        for (number, chapter, column), rows in records.groupby(["claim", "chapter", "column"]):
            colour, marker = STYLES[combined(rows).grade]
            shift = -0.18 if column == "paper" else 0.18
            place = [chapters.index(chapter) + shift], [number]
            axis.plot(*place, marker=marker, color=colour, ms=8, linestyle="")
        for grade, (colour, marker) in STYLES.items():
            axis.plot([], [], marker=marker, color=colour, ms=7, label=grade, linestyle="")
        axis.set_xticks(range(len(chapters)), [chapter.split("_")[0] for chapter in chapters])
        axis.set_yticks(list(CLAIMS), [f"claim {number}" for number in CLAIMS])
        axis.set(ylim=(7.6, 0.4), xlim=(-0.6, max(len(chapters), 1) - 0.4), xlabel="chapter")
        axis.grid(alpha=0.3)
        axis.legend(
            fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.22), frameon=False
        )
    total = records.grade.value_counts()
    alt = "A grid of claims and chapters, two marks in each place that was measured: "
    return figure, alt + ", ".join(f"{total.get(g, 0)} rows {g}" for g in GRADES) + "."


def page_table(
    names: Iterable[str], rows: Iterable[Iterable[str]], label: str, prose: bool = False
) -> HTML:
    """A table of the page in a box that scrolls; rows: cells as HTML, the first is a header.

    prose: cells are sentences.
    """
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    kind = "gleak-scroll prose" if prose else "gleak-scroll"
    return HTML(
        f'<div class="{kind}" tabindex="0" role="region" aria-label="{html.escape(label)}">'
        f'<table class="table verdicts"><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )


def claims(records: pd.DataFrame) -> HTML:
    """A sentence on each claim and column, also for the front page."""
    rows = []
    for number, claim in CLAIMS.items():
        cells = []
        for column in COLUMNS:
            found = combined(of(records, number, column))
            words = sentence(records, number, column)
            glue(f"claim_{number}_{column}", sentence(records, number, column, case=False))
            glue(f"grade_{number}_{column}", found.grade)
            cells.append(f"{badge(found.grade)} {html.escape(words)}")
        rows.append((f"{number}. {html.escape(claim.says)}", *cells))
    glue("settings", int(records.groupby(["chapter", "setting"]).ngroups))
    glue("chapters", int(records.chapter.nunique()))
    names = [f"{name[0].upper()}{name[1:]}" for name in COLUMNS.values()]
    return page_table(("Claim", *names), rows, "a sentence for each claim", prose=True)


def cell(rows: pd.DataFrame) -> str:
    """Mark, number and link of the matrix: of all settings under one condition."""
    if rows.empty:
        return '<span class="none">not measured</span>'
    found = combined(rows)
    row = telling(rows, found.grade)
    number, failed = row.short, rows[rows.grade == FAILS]
    if found.grade == CONDITION and len(failed):
        number = f"{number} to {failed.loc[failed['mean'].astype(float).idxmin()].short}"
    units = f"{row.n} {row.unit}{'' if row.n == 1 else 's'}" if row.n else "none"
    return (
        f'<a class="badge-{BADGES[found.grade]}" href="{row.link}" '
        f'title="{html.escape(row.setting)}: {html.escape(row.reason)}">'
        f'<span aria-hidden="true">{MARKS[found.grade]}</span>'
        f'<span class="visually-hidden">{found.grade}: </span> {html.escape(number)}</a>'
        f"<br><small>{html.escape(units)}</small>"
    )


def matrix(records: pd.DataFrame) -> HTML:
    """Claims and columns against conditions."""
    conditions = [(key, value) for key, values in CONDITIONS.items() for value in values]
    names = {
        "few": f"few (to {FEW})", "many": f"many ({FEW + 1} and more)",
        "small": "small (32 pixels)", "large": "large (224 pixels)",
    }  # fmt: skip
    rows = []
    for number in CLAIMS:
        for column in COLUMNS:
            chosen = of(records, number, column)
            cells = [cell(chosen[chosen[key] == value]) for key, value in conditions]
            rows.append((f"{number}, {column}", *cells))
    head = ("Claim", *(names.get(value, value) for _, value in conditions))
    return page_table(head, rows, "claims against conditions")


def paper_and_here() -> HTML:
    """What is known of the paper, and what was done here."""
    rows = ((name, coded(theirs), coded(ours)) for name, theirs, ours in PAPER_AND_HERE)
    return page_table(
        ("Subject", "The paper says", "We did"), rows, "the paper and this study", prose=True
    )


def coded(text: str) -> str:
    """Text as HTML, what stands in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def paper_says(records: pd.DataFrame) -> HTML:
    """Each claim of the paper beside the grades, the numbers and the networks of this study."""
    rows = []
    for number, claim in CLAIMS.items():
        cells = []
        for column in COLUMNS:
            chosen = of(records, number, column)
            if chosen.empty:
                cells.append("not measured")
                continue
            found = combined(chosen)
            row = telling(chosen, found.grade)
            cells.append(
                f'{badge(found.grade)} <a href="{row.link}">{html.escape(row["method"])}</a>: '
                f"{html.escape(row.numbers)}"
            )
        rows.append((html.escape(claim.says), *cells))
    return page_table(
        ("The paper says", "We got, by its method", "We got, by any method"),
        rows,
        "claims and numbers",
        prose=True,
    )


def all_verdicts(records: pd.DataFrame) -> HTML:
    """Each row of each verdict with its chapter, setting, numbers and reason."""
    rows = (
        (
            f"{row.claim}, {row.column}",
            f'<a href="{row.link}">{html.escape(title(row.chapter))}</a>',
            html.escape(row.setting),
            html.escape(row.method),
            badge(row.grade),
            html.escape(row.numbers),
            html.escape(row.reason),
        )
        for row in records.itertuples()
    )
    names = ("Claim", "Chapter", "Setting", "Method", "Grade", "Measured", "Reason")
    return page_table(names, rows, "every verdict")


def check(records: pd.DataFrame, least: int) -> None:
    """Print whether there are verdicts, and whether grades are those of their numbers."""
    print(f"enough verdicts recorded: {len(records) >= least}")
    graded = records[records.grade != OPEN]
    print(f"every grade has enough networks behind it: {(graded.n >= criterion.LEAST).all()}")
