"""Three answers to whether something leaks, from the attacks on many updates.

It leaks, and here are the numbers; nothing was found by these attacks with this effort; it cannot
leak, and here is why. What could not be attacked is of the second kind. They are types and not
words, so that they are never mixed up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import pandas as pd
from scipy.stats import binomtest

# Labels count as leaked above this share of the way from guessing to all right.
LABELS_LEAK = 0.25
EXACT = 40.0  # dB: an error of 1 % of the range, which no eye sees
SURE = 0.95  # of the intervals


class Verdict(StrEnum):
    """The three answers."""

    LEAKS = "leaks"
    NOT_FOUND = "not found"
    CANNOT = "cannot leak"


@dataclass(frozen=True)
class Answer:
    """One of the three answers to one question.

    Parameters
    ----------
    verdict
        Which one.
    because
        What was found, in numbers; what was tried; or why nothing can leak.
    attacked
        False where no attack could be run, which is not found, and says nothing about a stronger
        attacker.
    stronger
        What an attacker would need who finds more; empty unless nothing was found.

    Raises
    ------
    ValueError
        Unless there is a reason; and for a leak, or an impossible one, that was not attacked.
    """

    verdict: Verdict
    because: str
    attacked: bool = True
    stronger: str = ""

    def __post_init__(self) -> None:
        if not self.because:
            raise ValueError("an answer needs a reason")
        if not self.attacked and self.verdict is not Verdict.NOT_FOUND:
            raise ValueError("what was not attacked is not found, whatever else it is")

    @property
    def fails(self) -> bool:
        """Whether somebody who asked for no leak should stop: it leaks, or was not attacked."""
        return self.verdict is Verdict.LEAKS or not self.attacked


@dataclass(frozen=True)
class Share:
    """So many of so many, with the interval that Wilson gives for the share behind it.

    As if images were drawn independently. Those of one batch share a fate, so the truth is wider.

    >>> print(Share(0, 12))
    0 of 12 (95 % interval: 0 to 24 %)
    """

    found: int
    of: int

    @property
    def share(self) -> float:
        return self.found / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """Of 95 %."""
        found = binomtest(self.found, self.of).proportion_ci(SURE, method="wilson")
        return max(found.low, 0.0), min(found.high, 1.0)

    def __str__(self) -> str:
        return self.words()

    def words(self, what: str = "") -> str:
        """The numbers, what they count, and the interval.

        >>> Share(0, 12).words("images leak")
        '0 of 12 images leak (95 % interval: 0 to 24 %)'
        """
        low, high = (f"{100 * end:.0f}" for end in self.interval)
        counted = f"{self.found} of {self.of}{' ' * bool(what)}{what}"
        return f"{counted} ({100 * SURE:.0f} % interval: {low} to {high} %)"


def text(rows: pd.DataFrame, column: str) -> str:
    """The different texts of a column, one after the other; empty where there is none."""
    if column not in rows:
        return ""
    return "; ".join(dict.fromkeys(words for words in rows[column].dropna() if words))


def reason(rows: pd.DataFrame, subject: str) -> str:
    """Why a subject cannot leak, if there is a reason in every batch, else nothing."""
    column = f"cannot {subject}"
    if column not in rows or rows[column].isna().any():
        return ""
    return str(rows[column].iloc[0])


def best_rule(rows: pd.DataFrame) -> tuple[str, Share]:
    """The rule that has most labels right, and how many of those that it could read.

    Raises KeyError where no rule could read any.
    """
    found: dict[str, Share] = {}
    for name in rows:
        read = rows[rows[name].notna()] if name.startswith("right ") else rows.iloc[:0]
        if len(read):
            right = int(read.groupby("batch")[name].first().sum())
            found[name.removeprefix("right ")] = Share(right, len(read))
    if not found:
        raise KeyError("no rule could read the labels")
    return max(found.items(), key=lambda each: each[1].share)


BETTER = "images come back better than their 4×4 thumbnail"
SHARP = f"images come back at {EXACT:.0f} dB or more"
MORE_EFFORT = "more iterations and starts (a longer effort)"


def labels_answer(rows: pd.DataFrame) -> Answer:
    """Whether the labels of these images leak. rows: of one setting, see `rows_of`."""
    cannot, refused = reason(rows, "labels"), text(rows, "not attacked labels")
    try:
        _, found = best_rule(rows)
    except KeyError:
        if cannot:
            return Answer(Verdict.CANNOT, cannot)
        return Answer(
            Verdict.NOT_FOUND,
            f"not attacked: {refused or 'no rule could read them'}",
            attacked=False,
            stronger="what the attack asked for, which a server may well know",
        )
    chance = rows["chance"].mean()
    numbers = f"{found.words('labels are read')}; guessing finds {100 * chance:.0f} %"
    corrected = (found.share - chance) / (1 - chance)
    if corrected > LABELS_LEAK or found.interval[0] > chance:
        return Answer(Verdict.LEAKS, numbers)
    if cannot:
        return Answer(Verdict.CANNOT, cannot)
    return Answer(
        Verdict.NOT_FOUND,
        f"{numbers}. {partly(refused)}".strip(),
        stronger="images with labels of its own, several updates of this client, or to know how "
        "skewed its classes are",
    )


def partly(refused: str) -> str:
    return f"In part not attacked: {refused}." if refused else ""


def images_answer(rows: pd.DataFrame) -> Answer:
    """Whether something of these images leaks: more than a thumbnail of 4x4 pixels shows."""
    cannot, refused = reason(rows, "images"), text(rows, "not attacked images")
    seen = rows[rows["psnr"].notna()]
    found = Share(int((seen["grade"] > 0).sum()), len(seen)) if len(seen) else None
    if found and found.found:
        clear = int((seen["grade"] == 2).sum())
        given = " (with the labels given)" if seen["given"].all() else ""
        return Answer(
            Verdict.LEAKS,
            f"{found.words(BETTER)}{given}, {clear} of them better than an 8×8 one. "
            f"{partly(refused)}".strip(),
        )
    if cannot:
        return Answer(Verdict.CANNOT, cannot)
    if found is None:
        return Answer(
            Verdict.NOT_FOUND,
            f"not attacked: {refused}",
            attacked=False,
            stronger="what the attack asked for, which a server may well know",
        )
    return Answer(
        Verdict.NOT_FOUND,
        f"{found.words(BETTER)}. {partly(refused)}".strip(),
        stronger=f"{MORE_EFFORT}, a prior learnt from images such as these, or several updates",
    )


def pixels_answer(rows: pd.DataFrame) -> Answer:
    """Whether images come back so exactly that no eye sees a difference."""
    cannot, seen = reason(rows, "pixels"), rows[rows["psnr"].notna()]
    exact = int((seen["psnr"] >= EXACT).sum())
    if exact:
        share = Share(exact, len(seen))
        return Answer(Verdict.LEAKS, share.words(SHARP))
    if cannot:
        return Answer(Verdict.CANNOT, cannot)
    if seen.empty:
        why = text(rows, "not attacked images")
        return Answer(Verdict.NOT_FOUND, f"not attacked: {why}", attacked=False)
    return Answer(
        Verdict.NOT_FOUND,
        f"{Share(0, len(seen)).words(SHARP)}, the best at {seen['psnr'].max():.1f} dB",
        stronger=f"{MORE_EFFORT}; a closed form for the layers where the peeling ends",
    )


def answered(rows: pd.DataFrame) -> dict[str, Answer]:
    """Subject -> answer on one setting. rows: as of `gleak.risk.rows_of`, with `batch` besides."""
    return {
        "labels": labels_answer(rows),
        "images": images_answer(rows),
        "pixels": pixels_answer(rows),
    }


def known_words(rows: pd.DataFrame, classes: int) -> list[str]:
    """What is known without any picture, in sentences with numbers. rows: of one setting."""
    batches = rows.groupby("batch").first()
    sentences, count = [], len(batches)
    if batches["known certain"].notna().any():
        certain = int(batches["known certain"].sum())
        right = int(batches["known certain_right"].sum())
        proven = int(batches["known at_least"].sum())
        sentences.append(
            f"For {certain} of {count * classes} classes ({classes} in each of {count} batches) "
            "the server knows for certain how many images the client has of them: its 90 % "
            f"interval holds one number. {right} of these counts are right."
        )
        sentences.append(f"{proven} of {len(rows)} labels are proven to be there, one by one.")
    features = Share(int(batches["known features"].sum()), len(rows))
    if features.found:
        places = text(batches, "known layers")
        sentences.append(
            f"The features of {features.words('images')}, what enters the classifier, are known "
            f"exactly. They tell alike images from others. Layers were peeled up to: {places}."
        )
    else:
        sentences.append("The features of no image are known exactly.")
    layers = int(batches["known statistics"].max())
    if layers:
        sentences.append(
            f"Mean and variance of what entered {layers} batch norm layers are known exactly: the "
            "running statistics that the client sends along tell them after a single step."
        )
    return sentences


def advice(
    found: Mapping[str, Mapping[str, Answer]], left: Mapping[str, float], images: int
) -> list[str]:
    """What the defences did, in sentences that promise nothing.

    found: defence -> subject -> answer; left: defence -> how much of the update is left, `kept`;
    images: how many were attacked behind each.
    """
    sentences = []
    for subject in ("labels", "images"):
        kinds: dict[str, list[str]] = {}
        for name in sorted(found, key=lambda name: -left[name]):
            answer = found[name][subject]
            kind = answer.verdict.value if answer.attacked else "not attacked"
            kinds.setdefault(kind, []).append(f"{name} ({left[name]:.2f} of the update left)")
        for kind, words in (
            ("leaks", f"Behind these defences the {subject} still leak"),
            (
                "not found",
                f"Behind these the attacks found nothing of the {subject} in {images} images, and "
                "a stronger one may",
            ),
            ("not attacked", f"Behind these the {subject} were not attacked, so nothing is known"),
            ("cannot leak", f"For these there is a reason why the {subject} cannot leak"),
        ):
            if kind in kinds:
                sentences.append(f"{words}: {', '.join(kinds[kind])}.")
    return sentences
