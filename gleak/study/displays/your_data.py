"""The audit's report: tables, figures and words, for its page and for the chapter alike."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure

from gleak import risk
from gleak.answers import EXACT, Answer, Share, Verdict, advice, known_words
from gleak.data import Batch
from gleak.figures import PAGE, STYLE, across, show_image
from gleak.provenance import provenance
from gleak.study import page
from gleak.study.audit import YOURS, Report, as_json, numbers
from gleak.study.page import Html, Part
from gleak.study.words import name as in_readers_words

QUESTIONS = {
    "labels": "Do the labels leak?",
    "images": "Does something of the images leak?",
    "pixels": "Does every pixel of an image leak?",
}
NAMES = {
    "labels": "the labels",
    "images": "something of the images",
    "pixels": "every pixel of an image",
}
KINDS = {Verdict.LEAKS: "leaks", Verdict.NOT_FOUND: "unknown", Verdict.CANNOT: "cannot"}
LOOKS = ("nothing to see", "coarse shapes", "recognisable")  # a restored image, by its grade
MOST_SHOWN = 12  # images on a page

# -- words ----------------------------------------------------------------------------------------


def in_short(answer: Answer) -> str:
    """The answer in a few words, for a cell of a table.

    >>> in_short(Answer(Verdict.NOT_FOUND, "not attacked: no lr", attacked=False))
    'not attacked'
    """
    return str(answer.verdict) if answer.attacked else "not attacked"


def in_words(answer: Answer) -> str:
    """The answer with its reason, and what a stronger attack would need."""
    head = {
        Verdict.LEAKS: "Leaks",
        Verdict.NOT_FOUND: "Not found by these attacks with this effort",
        Verdict.CANNOT: "Cannot leak, because",
    }[answer.verdict]
    head = head if answer.attacked else "Not known"
    more = f" A stronger attack would need: {answer.stronger}." if answer.stronger else ""
    return f"{head}: {answer.because.removesuffix('.')}.{more}"


def conclusions(report: Report) -> list[str]:
    """The answers on the training that was asked for, as sentences."""
    answers = report.answers[YOURS]
    return [f"{QUESTIONS[subject]} {in_words(answers[subject])}" for subject in risk.SUBJECTS]


def glue_effort(report: Report) -> None:
    """Keep what the chapter says of the evidence behind its answers."""
    from gleak.study.book import glue_all  # the command needs no notebook

    plan = report.plan
    effort = {
        "images": len(report.of(YOURS)),
        "batches": plan.batches,
        "iterations": plan.iterations,
        "networks": "with the weights that were named"
        if plan.weights
        else "each with a fresh network that has not been trained",
    }
    glue_all({f"audit_{name}": value for name, value in effort.items()})


def known(report: Report) -> list[str]:
    """What the update of the training that was asked for says without any picture."""
    return known_words(report.of(YOURS), report.batches[0].num_classes)


def advised(report: Report) -> list[str]:
    """What the defences did, in sentences."""
    answers, kept = report.answers, report.kept
    attacked = [int(report.of(name)["psnr"].notna().sum()) for name in report.plan.defences]
    images = min((count for count in attacked if count), default=0)
    return advice({name: answers[name] for name in report.plan.defences}, kept, images)


# -- tables ---------------------------------------------------------------------------------------


def labels(report: Report) -> pd.DataFrame:
    """For each batch: images, labels right by each rule, guesses, and classes known for certain."""
    rows = report.of(YOURS).groupby("batch")
    first, size = rows.first(), rows.size()
    frame = pd.DataFrame({"images": size})
    for name in first:
        if name.startswith("right "):
            rule = in_readers_words(name.removeprefix("right "), "rule")
            frame[f"right by {rule}"] = first[name].astype("Int64")
    frame["right by guessing"] = (first["chance"] * size).round(1)
    frame["classes certain"] = first["known certain"].astype("Int64")
    frame["proven labels"] = first["known at_least"].astype("Int64")
    frame["features known"] = first["known features"]
    frame.index = pd.Index([f"batch {number + 1}" for number in frame.index])
    return frame


def share(found: int, of: int) -> str:
    """A share with its interval, for a cell.

    >>> share(0, 12)
    '0 of 12 (0 to 24 %)'
    """
    low, high = Share(found, of).interval
    return f"{found} of {of} ({100 * low:.0f} to {100 * high:.0f} %)"


def overview(report: Report) -> pd.DataFrame:
    """One row for each way of training and each defence: answers and figures with intervals."""
    answers, kept, rows = report.answers, report.kept, {}
    for name in report.plan.all_settings:
        found = numbers(report.of(name))
        read, seen = found["labels"], found["images"]
        rows[name] = {
            "labels": in_short(answers[name]["labels"]),
            "images": in_short(answers[name]["images"]),
            "every pixel": in_short(answers[name]["pixels"]),
            "labels right": share(read["right"], read["of"]) if read else "–",
            "images better than 4×4": share(seen["better_than_4x4"], seen["of"]) if seen else "–",
            "PSNR (dB)": interval(seen["psnr"]) if seen else "–",
            "update kept": f"{kept[name]:.2f}" if name in kept else "",
        }
    return pd.DataFrame(rows).T


def interval(psnr: dict[str, float]) -> str:
    return f"{psnr['mean']:.1f} ({psnr['low']:.1f} to {psnr['high']:.1f})"


def reasons(report: Report) -> pd.DataFrame:
    """The answers in full: one row for each setting and subject."""
    rows = [
        (name, subject, in_words(answer))
        for name, answers in report.answers.items()
        for subject, answer in answers.items()
    ]
    frame = pd.DataFrame(rows, columns=["", "question", "answer"])
    return frame.set_index("")


def tried(report: Report) -> pd.DataFrame:
    """What was run, which way it went and what it fell back from, and how long it took."""
    rows = [
        {
            "": entry["name"],
            "search": one["search"],
            "best for": one["best_for"],
            "way": one["way"] or "not run: as another one here, or see the answers",
            "fell back from": one["fell_back"] or "nothing",
            "seconds, together": entry["seconds"],
        }
        for entry in as_json(report)["settings"]
        for one in entry["tried"]
    ]
    return pd.DataFrame(rows).set_index("")


# -- figures --------------------------------------------------------------------------------------


def originals(report: Report) -> list[tuple[Batch, int, pd.Series]]:
    """(batch, index, row) of images whose training was attacked, those that leaked most first."""
    rows = report.of(YOURS)
    rows = rows[rows["psnr"].notna()].sort_values("psnr", ascending=False)
    return [
        (report.batches[row["batch"]], row["image"], row)
        for _, row in rows.head(MOST_SHOWN).iterrows()
    ]


def pairs(report: Report) -> tuple[Figure, str] | None:
    """The client's images above what came back of them; figure and alt text, None without any."""
    shown = originals(report)
    if not shown:
        return None
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            2, len(shown), figsize=(across(len(shown)), 2.8), squeeze=False, layout="constrained"
        )
        for column, (batch, index, row) in enumerate(shown):
            show_image(axes[0, column], batch.images[index], "")
            show_image(axes[1, column], page.pixels(row["picture"]), f"{row['psnr']:.1f} dB")
        for axis, word in zip(axes[:, 0], ("original", "restored"), strict=True):
            axis.set_ylabel(word)
    best, worst = shown[0][2]["psnr"], shown[-1][2]["psnr"]
    alt = (
        f"Two rows of {len(shown)} pictures: the client's images, and what the attack restored of "
        f"them from its update, at {worst:.0f} to {best:.0f} dB."
    )
    return figure, alt


def chart(report: Report) -> tuple[Figure, str]:
    """The shares of labels and of images that leak, with intervals; the figure and its alt text."""
    names = report.plan.all_settings
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            2, 1, figsize=(PAGE, 1.6 + 0.56 * len(names)), layout="constrained"
        )
        found = {name: numbers(report.of(name)) for name in names}
        words = []
        for axis, what, key in zip(
            axes, ("labels", "images"), ("right", "better_than_4x4"), strict=True
        ):
            for row, name in enumerate(names):
                numbers_of = found[name][what]
                if numbers_of is None:
                    place = axis.get_yaxis_transform()
                    axis.text(
                        0.02,
                        row,
                        in_short(report.answers[name][what]),
                        transform=place,
                        va="center",
                    )
                    continue
                middle = numbers_of[key] / numbers_of["of"]
                axis.hlines(row, numbers_of["low"], numbers_of["high"], color="C0", linewidth=1.5)
                axis.plot(middle, row, "o", color="C0")
                if what == "labels":
                    axis.plot(
                        numbers_of["chance"], row, "|", color="C1", markersize=12, markeredgewidth=2
                    )
                words.append(f"{name}, {what}: {middle:.0%}")
            axis.set_xlim(-0.02, 1.02)
            axis.grid(axis="y", color="0.92", linewidth=0.8)
        axes[0].set(title="labels", xlabel="share read right (stroke: by guessing)")
        axes[1].set(title="images", xlabel="share better than a 4×4 thumbnail")
        for axis in axes:
            axis.set_yticks(range(len(names)), names)
            axis.set_ylim(len(names) - 0.5, -0.5)
    alt = (
        "Two panels with a row for each way of training and each defence, dots with 95 % "
        "intervals. Above, the share of labels that is read; below, of images that come back. "
        f"{'; '.join(words)}."
    )
    return figure, alt


# -- the page -------------------------------------------------------------------------------------


def parts(report: Report) -> list[Part]:
    """All that stands on the report's page."""
    plan, answers = report.plan, report.answers
    images, others = plan.size * plan.batches, len(plan.all_settings) > 1
    found: list[Part] = [
        page.paragraph(
            f"A client with {plan.size} images trains {page.short(plan.model, 60)} for "
            f"{plan.epochs} epoch{'s'[: plan.epochs > 1]} of {plan.batch_size or plan.size} images "
            f"a step, at a learning rate of {plan.lr:g}, and sends its weights. That was played "
            f"{plan.batches} times, with other images each time ({images} in all). The attacks see "
            "what is sent, and nothing else; images and labels only score what came back."
        ),
        page.facts(in_a_minute(report), "What came of it, in a minute"),
        page.section(
            "The answers",
            *(boxed(report, subject, answers[YOURS][subject]) for subject in QUESTIONS),
            known_box(report),
        ),
        page.section(
            "What the server reads of the labels",
            page.table(labels(report), "Labels of each batch that each rule has right"),
        ),
        page.section("What the server sees of the images", *gallery(report)),
        *([page.section("Other ways to train, and defences", *compared(report))] if others else []),
        page.section("What was tried", *effort(report)),
        page.section("The client", page.preformatted(report.about)),
        page.section("How to read this", page.bullets(HOW_TO_READ)),
    ]
    return found


def in_a_minute(report: Report) -> dict[str, str]:
    """Each kind of answer, and what it was given on."""
    answers = report.answers[YOURS]
    kinds: dict[str, list[str]] = {
        "leaks": ["label counts or features, without any picture"] * knows(report),
        "not found, with this effort": [],
        "cannot leak": [],
        "was not attacked": [],
    }
    words = {
        Verdict.LEAKS: "leaks",
        Verdict.NOT_FOUND: "not found, with this effort",
        Verdict.CANNOT: "cannot leak",
    }
    for subject, answer in reversed(answers.items()):
        kind = words[answer.verdict] if answer.attacked else "was not attacked"
        kinds[kind].insert(0, NAMES[subject])
    return {kind: "; ".join(found) or "nothing" for kind, found in kinds.items()}


def knows(report: Report) -> bool:
    """Whether something is known exactly of the training that was asked for, without pictures."""
    rows = report.of(YOURS)
    names = ("at_least", "features", "statistics")
    return any(rows[f"known {name}"].fillna(0).gt(0).any() for name in names)


def known_box(report: Report) -> Html:
    """What the server knows without restoring any image, which is a leak of its own."""
    found = knows(report)
    return page.verdict(
        "leaks" if found else "unknown",
        f"Is something known exactly, without any picture? {'Yes' if found else 'Nothing found'}",
        page.bullets(known(report)),
    )


def elsewhere(report: Report, subject: str) -> str:
    """A word on other ways of training that leak what this one did not show; else empty."""
    answers = report.answers
    if answers[YOURS][subject].verdict is not Verdict.NOT_FOUND:
        return ""
    leaking = [
        name
        for name in report.plan.settings
        if name != YOURS and answers[name][subject].verdict is Verdict.LEAKS
    ]
    if not leaking:
        return ""
    return (
        f"They do leak with: {', '.join(leaking)} (see below). Ways to train differ little in what "
        "they give away, so take that as a warning."
    )


def boxed(report: Report, subject: str, answer: Answer) -> Html:
    """One answer that stands out."""
    warning = elsewhere(report, subject)
    more = [page.paragraph(page.strong(warning))] * bool(warning)
    more += [page.paragraph(f"A stronger attack would need: {answer.stronger}.")] * bool(
        answer.stronger
    )
    because = answer.because.removesuffix(".")
    return page.verdict(
        KINDS[answer.verdict],
        f"{QUESTIONS[subject]} {in_heading(answer)}",
        page.paragraph(f"{because[0].upper()}{because[1:]}."),
        *more,
    )


def in_heading(answer: Answer) -> str:
    if not answer.attacked:
        return "Not known: it was not attacked"
    return {
        Verdict.LEAKS: "Yes",
        Verdict.NOT_FOUND: "Not found by these attacks with this effort",
        Verdict.CANNOT: "No, it cannot",
    }[answer.verdict]


def gallery(report: Report) -> list[Part]:
    """Each image beside what came back of it."""
    shown = originals(report)
    if not shown:
        return [page.paragraph("No image was restored: see above.")]
    images, alts, captions = [], [], []
    for batch, index, row in shown:
        name = page.short(batch.names[index], 40)
        words = f"{LOOKS[row['grade']]}, {row['psnr']:.1f} dB"
        images.append(beside(batch.images[index], page.pixels(row["picture"])))
        alts.append(f"An image of {name}, and on its right what was restored of it: {words}.")
        captions.append(f"{name}: {words}")
    total = len(report.of(YOURS))
    words = (
        f"{len(shown)} of {total} images, those that came back best"
        if total > len(shown)
        else ("All images")
    )
    return [
        page.paragraph(
            f"{words}: on the left the client's, on the right what was restored. dB say how near "
            f"they are: a picture of one colour often has 10 to 18, at {EXACT:.0f} no eye sees a "
            "difference."
        ),
        page.gallery(images, alts, captions),
    ]


def beside(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Two images (C, H, W) in one, with a white line between."""
    gap = torch.ones(left.shape[0], left.shape[1], max(left.shape[2] // 16, 1))
    return torch.cat([left.cpu(), gap, right], dim=2)


def compared(report: Report) -> list[Part]:
    """What other ways of training and defences change."""
    figure, alt = chart(report)
    picture = page.figure(figure, alt, "Shares with their 95 % intervals.")
    plt.close(figure)
    return [
        page.bullets(advised(report)),
        page.table(overview(report), "Answers for each way of training and each defence, as sent"),
        picture,
        page.folded(
            "All answers in full", page.table(reasons(report), "Every answer with its reason")
        ),
    ]


def effort(report: Report) -> list[Part]:
    """What was tried, and for how long."""
    plan = report.plan
    seconds = report.rows.groupby(["batch", "setting"])["seconds"].first().sum()
    shared = "There were too few images: batches share some. " if report.overlap else ""
    fixed = (
        "with the weights that were named" if plan.weights else "with weights drawn anew for each"
    )
    return [
        page.paragraph(
            f"{plan.batches} batches of {plan.size} images, {fixed}. {shared}Each search had "
            f"{plan.iterations} iterations from {plan.starts} start{'s'[: plan.starts > 1]}; all "
            f"attacks together took {seconds:,.0f} seconds. Every defence was attacked by somebody "
            "who knows it."
        ),
        page.folded(
            "Every search",
            page.table(tried(report), "Searches, the way they went, and what they fell back from"),
        ),
    ]


HOW_TO_READ = (
    "An 8×8 thumbnail of an image shows what it is about, one of 4×4 pixels its coarse shapes. An "
    "image counts as leaked if what was restored is nearer to it than its 4×4 thumbnail is.",
    "Labels count as leaked if more are right than guessing has, by a quarter of the way to all or "
    "beyond the interval.",
    "Where the label counts that were read are wrong, or none were, the images are attacked with "
    "the true ones; and where the classifier stays at the client, with this classifier. The report "
    "errs to the warning.",
    "Intervals are for images drawn independently. Those of one batch share a fate, so they are "
    "wider in truth.",
    "“Not found” is about these attacks, this effort and these images. Only what cannot leak is "
    "proven.",
    "“Update kept” is the cosine between the defended update and the plain one: 1 is all of it, 0 "
    "is nothing that training could use. The noise of many clients averages out, and a classifier "
    "that stays at the client is not lost to it.",
)


def footer() -> str:
    """What the report was made with."""
    return "Made with " + ", ".join(f"{name} {value}" for name, value in provenance().items()) + "."


# -- in the book -----------------------------------------------------------------------


EXAMPLE = {
    "dataset": "cifar10-samples",
    "indices": [5, 8, 9, 10],
    "seed": 101,
    "model": "convnet",
    "batch_size": 2,
    "batches": 2,
    "settings": [],
    "defences": [
        "send 10 % of the values",
        "signs only",
        "noise as large as the update",
        "classifier stays at the client",
        "clip and noise for privacy",
    ],
}


def paragraphs(sentences: Sequence[str]) -> None:
    """Show sentences in a notebook, a paragraph each."""
    from IPython.display import Markdown, display  # the command needs no notebook

    display(Markdown("\n\n".join(sentences)))


def example_claims(report: Report) -> dict[str, Any]:
    """Whether the report is right about the images that ship with the study."""
    answers = report.answers
    yours, signs = answers[YOURS], answers["signs only"]
    bounded, own = answers["clip and noise for privacy"], answers["classifier stays at the client"]
    features = report.of(YOURS).groupby("batch")["known features"].first().sum()
    return {
        "labels and images leak": {yours[s].verdict for s in ("labels", "images")}
        == {Verdict.LEAKS},
        "all labels are read": numbers(report.of(YOURS))["labels"]["right"]
        == len(report.of(YOURS)),
        "features of every image known exactly": int(features) == len(report.of(YOURS)),
        "signs alone still leak images": signs["images"].verdict is Verdict.LEAKS,
        "differential privacy bounds the images": bounded["images"].verdict is Verdict.CANNOT,
        "a classifier that stays names no class": own["labels"].verdict is Verdict.CANNOT,
        "and images leak to somebody who has it": own["images"].verdict is Verdict.LEAKS,
    }
