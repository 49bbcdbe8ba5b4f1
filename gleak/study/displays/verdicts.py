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
from gleak.study import book, criterion
from gleak.study.book import badge, glue
from gleak.study.criterion import BADGES, CONDITION, FAILS, GRADES, HOLDS, OPEN
from gleak.study.summary import Summary, case_name, combined, method, telling
from gleak.study.verdicts import COLUMNS, CONDITIONS, FEW, SMALL


@dataclass(frozen=True)
class Claim:
    """A claim: what the paper says, and the same of a method in plain words.

    says: the claim. name: the same, short. does, does_not: go on from "the paper's method" and
    "the best method of this study".
    """

    says: str
    name: str
    does: str
    does_not: str


CLAIMS = {
    1: Claim(
        "Labels are restored without any data, repeated ones included",
        "labels",
        "reads nearly all labels of a client's images",
        "does not read nearly all labels of a client's images",
    ),
    2: Claim(
        "Images are restored from FedSGD gradients",
        "images from gradients",
        "restores images from a gradient, nearer to the originals than their thumbnails",
        "restores no images from a gradient that come nearer to the originals than thumbnails",
    ),
    3: Claim(
        "Images are restored from FedAvg weights",
        "images from weights",
        "restores images from a client's weights, nearer to the originals than their thumbnails",
        "restores no images from weights that come nearer to the originals than thumbnails",
    ),
    4: Claim(
        "One wrong label, and the images fail",
        "one wrong label",
        "loses the images of a batch when a single label is wrong",
        "still restores images when a single label is wrong",
    ),
    5: Claim(
        "Equal labels give a fusion of the class",
        "equal labels",
        "returns a mixture where all images are of one class",
        "tells the images apart where all of them are of one class",
    ),
    6: Claim(
        "It works at any stage of training",
        "any stage of training",
        "restores labels or images with no data of its own",
        "restores neither labels nor images with no data of its own",
    ),
    7: Claim(
        "It goes beyond GradInversion in batch size, quality and label distributions",
        "against GradInversion",
        "does better than its rival GradInversion",
        "does worse than its rival GradInversion",
    ),
}
SPELT = {"fedsgd": "FedSGD", "fedavg": "FedAvg", "imagenet": "ImageNet"}  # in a chapter's name
LEAKS = (1, 2, 3, 6)  # claims that something leaks: what points to it is said, proven or not
WHO = {"paper": "the paper's method", "any": "the best method of this study"}
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
        "the paper's rule (`zlg`), from re-implementations and from the algebra; rounded by "
        "largest remainders",
    ),
    (
        "Images",
        "L2 distance of gradients, total variation, a clip and a scale prior; optimiser, weights "
        "and steps are not known",
        "the paper's attack (`general`); optimiser, weights and steps are ours",
    ),
    (
        "Weights of FedAvg",
        "taken for a gradient: their change over learning rate and steps; the paper may have "
        "another way, too",
        "the paper's procedure (`equivalent`), searched by a cosine",
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
        "GradInversion (claim 7)": "ahead on the same networks and images. Where neither of the "
        "two gets above the thumbnails, a lead shows nothing. Nor does a lead over a GradInversion "
        f"that ran without {' and '.join(criterion.MISSING)}.",
        HOLDS: "the whole interval lies above the bar.",
        FAILS: "the whole interval lies below the bar.",
        OPEN: "the bar lies inside the interval, there are too few units, or the setting cannot "
        "show it.",
        CONDITION: "of several settings it holds in some. Where one or two conditions tell those "
        "from the others they are named. Where not, the settings that decide are counted, on both "
        "sides of the condition that tells most. A setting with too few units is named only where "
        "no other one was decided under the same conditions.",
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


def sentence(records: pd.DataFrame, number: int, column: str) -> str:
    """What was found of a claim by one column, in sentences that can be printed as they are."""
    rows, claim, who = of(records, number, column), CLAIMS[number], WHO[column]
    if rows.empty:
        return f"No chapter has measured whether {who} {claim.does}."
    found = combined(rows)
    if found.grade == OPEN:
        why = telling(rows, OPEN).reason
        return f"It is open whether {who} {claim.does}. {capital(why)}.{leaning(rows, number)}"
    if found.grade == FAILS:
        return f"{capital(who)} {claim.does_not}."
    if found.grade == HOLDS:
        count = settings(rows)
        each = f"In each of {count} settings" if count > 1 else "In the one setting that was tried"
        return f"{each}, {who} {claim.does}."
    if found.counts:
        return f"{capital(who)} {claim.does}: {found.counts}.{elsewhere(found)}"
    return f"{capital(found.holds)}, {who} {claim.does}.{elsewhere(found)}"


def leaning(rows: pd.DataFrame, number: int) -> str:
    """In how many settings with too few networks a leak was seen, for a claim that is open."""
    few = rows[(rows.n > 0) & (rows.n < criterion.LEAST)]
    seen = settings(few[few["mean"].astype(float) > 0])
    if number not in LEAKS or not seen:
        return ""
    count = f"{seen} of {settings(few)} settings" if settings(few) > 1 else "the one setting tried"
    return f" What was measured points to yes in {count}."


def settings(rows: pd.DataFrame) -> int:
    """How many settings rows are of."""
    return int(rows.groupby(["chapter", "setting"]).ngroups)


def elsewhere(found: Summary) -> str:
    """Where a claim does not hold, and where nothing is shown, a sentence each."""
    fails = f" It does not {found.fails}." if found.fails else ""
    return fails + (f" Nothing is shown {found.open}." if found.open else "")


def headline(records: pd.DataFrame, number: int) -> str:
    """What was found of a claim, both columns in one: first what a server can do."""
    parts = {column: of(records, number, column) for column in ("any", "paper")}
    first = sentence(records, number, "any")
    if any(rows.empty for rows in parts.values()):
        return first
    best, paper = (combined(rows) for rows in parts.values())
    if best == paper:
        return f"{first} The same goes for the paper's method."
    if paper.grade == OPEN:
        return f"{first} For the paper's method it is open."
    if best.grade == paper.grade == CONDITION:
        return f"{first} The paper's method does so {paper.counts or paper.holds}."
    return f"{first} {sentence(records, number, 'paper')}"


def case(records: pd.DataFrame, number: int, column: str) -> str:
    """The setting that a grade rests on, with what was measured there and why it counts so."""
    rows = of(records, number, column)
    if rows.empty:
        return ""
    grade = combined(rows).grade
    row = telling(rows, grade)
    start = capital(case_name(grade)) if settings(rows) > 1 else "Measured"
    measured = f"{row.setting}, {method(row)}: {row.numbers}"
    return f"{start} ({source(row.chapter)}). {capital(measured)}. {capital(row.reason)}."


def capital(words: str) -> str:
    """Words as the beginning of a sentence."""
    return f"{words[0].upper()}{words[1:]}"


def source(chapter: str) -> str:
    """A chapter as sentences name it.

    >>> source("07a_more_wrong_labels")
    'chapter 7a'
    """
    return f"chapter {chapter.partition('_')[0].lstrip('0')}"


def title(chapter: str) -> str:
    """A chapter's name with its number.

    >>> title("04_images_fedsgd")
    '04 images FedSGD'
    """
    return " ".join(SPELT.get(word, word) for word in chapter.split("_"))


def marks(records: pd.DataFrame) -> tuple[Figure, str]:
    """A mark for each claim and chapter, both columns side by side; the figure and its alt text."""
    chapters = sorted(records.chapter.unique())
    with plt.rc_context(figures.STYLE):
        size = (figures.PAGE, 0.28 * len(chapters) + 1.4)
        figure, axis = plt.subplots(figsize=size, layout="constrained")
        for (number, chapter, column), rows in records.groupby(["claim", "chapter", "column"]):
            colour, marker = STYLES[combined(rows).grade]
            shift = -0.18 if column == "paper" else 0.18
            place = [number + shift], [chapters.index(chapter)]
            axis.plot(*place, marker=marker, color=colour, ms=7, linestyle="")
        for grade, (colour, marker) in STYLES.items():
            axis.plot([], [], marker=marker, color=colour, ms=7, label=grade, linestyle="")
        axis.set_yticks(range(len(chapters)), map(title, chapters))
        axis.set_xticks(list(CLAIMS))
        axis.set(xlim=(0.5, 7.5), ylim=(len(chapters) - 0.4, -0.6), xlabel="claim")
        axis.grid(alpha=0.3)
        figures.legend(figure, axis)
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
    """A block on each claim: grades, sentences, and the settings they rest on.

    What the front page says is glued: `headline_1` to `headline_7`, and `grade_1_paper` and so on.
    """
    blocks = []
    for number, claim in CLAIMS.items():
        glue(f"headline_{number}", headline(records, number))
        lines = [f"<h3>{number}. {html.escape(claim.says)}</h3>"]
        for column, name in COLUMNS.items():
            grade = combined(of(records, number, column)).grade
            glue(f"grade_{number}_{column}", grade)
            lines += [
                f"<p>{capital(name)}: {badge(grade)}<br>"
                f"{html.escape(sentence(records, number, column))}</p>",
                f'<p class="case">{html.escape(case(records, number, column))}</p>',
            ]
        blocks.append(f'<div class="claim">{"".join(lines)}</div>')
    glue("settings", settings(records))
    glue("chapters", int(records.chapter.nunique()))
    return HTML(f'<div class="gleak-findings">{"".join(blocks)}</div>')


def cell(rows: pd.DataFrame, column: str) -> str:
    """Mark, number and link of one column, for all settings under one condition."""
    chosen = rows[rows.column == column]
    if chosen.empty:
        return ""
    found = combined(chosen)
    row = telling(chosen, found.grade)
    numbers, failed = [bare(row.short)], chosen[chosen.grade == FAILS]
    if found.grade == CONDITION and len(failed):
        worst = failed.loc[failed["mean"].astype(float).idxmin()]
        numbers.append(f"to {bare(worst.short)}")
    number = " ".join(f'<span class="part">{html.escape(part)}</span>' for part in numbers)
    who = '<span class="who">paper </span>' if column == "paper" else ""
    about = f"{capital(source(row.chapter))}, {row.setting}: {row.numbers}; {row.reason}."
    return (
        f'<a class="badge-{BADGES[found.grade]} {column}" href="{row.link}" '
        f'title="{html.escape(about)}">{who}'
        f'<span class="gleak-unseen">{found.grade}: </span>{number}</a>'
    )


def bare(number: str) -> str:
    """A number as the matrix has room for, without its unit.

    >>> bare("98% / 46%"), bare("-3.1 dB"), bare("24% left")
    ('98/46', '−3.1', '24')
    """
    return re.sub(r"%| dB| left| (?=/)|(?<=/) ", "", number).replace("-", "−")


def matrix(records: pd.DataFrame) -> HTML:
    """Claims against conditions; in each place the best method above the paper's."""
    names = {
        "few": f"up to {FEW} images", "many": f"more than {FEW}",
        "small": "small images", "large": "large images",
    }  # fmt: skip
    conditions = [
        (key, value, names.get(value, value))
        for key, values in CONDITIONS.items()
        for value in values
    ]
    body = ""
    for number, claim in CLAIMS.items():
        chosen = records[records.claim == number]
        body += f'<tr role="row"><th scope="row" role="rowheader">{number}. {claim.name}</th>'
        for key, value, name in conditions:
            rows = chosen[chosen[key] == value]
            inside = "".join(cell(rows, column) for column in ("any", "paper"))
            none = (
                '<span class="none" aria-hidden="true">–</span>'
                '<span class="gleak-unseen">not measured</span>'
            )
            body += f'<td role="cell"><small>{name}</small>{inside or none}</td>'
        body += "</tr>"
    head = "".join(
        f'<th scope="col" role="columnheader">{name}</th>'
        for name in ("Claim", *(name for *_, name in conditions))
    )
    return HTML(
        '<div class="gleak-scroll matrix" tabindex="0" role="region" '
        'aria-label="claims against conditions"><table class="table verdicts" role="table">'
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{body}</tbody></table></div>'
    )


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
                f'{badge(found.grade)} <a href="{row.link}">{html.escape(method(row))}</a>: '
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
            f"{row.claim}, {WHO[row.column]}",
            f'<a href="{row.link}">{html.escape(title(row.chapter))}</a>',
            html.escape(row.setting),
            html.escape(method(row)),
            badge(row.grade),
            html.escape(row.numbers),
            html.escape(row.reason),
        )
        for _, row in records.iterrows()
    )
    names = ("Claim", "Chapter", "Setting", "Method", "Grade", "Measured", "Reason")
    table = page_table(names, rows, "every verdict").data
    return HTML(f"<details><summary>All {len(records)} rows</summary>{table}</details>")


def check(records: pd.DataFrame, least: int) -> None:
    """Show whether there are verdicts, and whether all that decide have enough networks."""
    graded = records[records.grade != OPEN]
    checks = {
        "enough verdicts recorded": len(records) >= least,
        "every grade has enough networks behind it": bool((graded.n >= criterion.LEAST).all()),
    }
    book.claims(checks)
