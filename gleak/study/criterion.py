"""The one criterion of all verdicts: the same in every chapter, and applied by code.

What is judged is a mean over independent units: networks, each with weights and a batch of its
own. Images of one batch, batches of one network and starts on one gradient are averaged first.

- Labels are restored if nearly all of those come back that an even guess leaves open.
- Images are restored if their PSNR beats that of their own 8x8 thumbnails.
- An interval on one side of the bar decides; one that holds the bar shows nothing, and neither do
  fewer units than `LEAST`.

Every reason is made here from the numbers that decided, so none can be printed that they do not
support.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

GRADES = ("holds", "holds under a condition", "does not hold", "not shown")
HOLDS, CONDITION, FAILS, OPEN = GRADES
BADGES = dict(zip(GRADES, ("holds", "partly", "not", "open"), strict=True))  # classes of the page

LEVEL = 0.95  # of the intervals
# With fewer units, all of them on one side is no rarer by chance than 1 in 20: 2^-4 > 0.05.
LEAST = math.ceil(-math.log2(1 - LEVEL))
RESTORED = 0.9  # of the labels that a guess leaves open: "nearly all"
LOST = 0.5  # of the differences between images of one class: fused if less than this is left
DRAWS = 2000  # of the bootstrap

TRAINED = ("network", "pool", "training")  # columns that tell trained networks apart
# What makes GradInversion what it is, and no run of this study with it has.
MISSING = ("the batch norm statistics of a trained network", "registration")


class Interval(NamedTuple):
    """A mean over units with its interval; of fewer than two units both ends are the mean."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Finding:
    """What one method did in one setting, judged.

    method: its name here. grade: one of GRADES. numbers: what was measured, for a reader; short:
    the same for a cell of a table. reason: why this grade, made from the numbers. n units, of
    what; mean, low and high: the interval of the distance to the bar (in dB, or as a share),
    positive where it speaks for the claim. Without a measurement n is 0 and these are None.
    """

    method: str
    grade: str
    numbers: str
    short: str
    reason: str
    n: int
    unit: str
    mean: float | None = None
    low: float | None = None
    high: float | None = None


def interval(values: ArrayLike, over: ArrayLike | None = None) -> Interval:
    """The mean of one value for each unit, or the ratio of two means, by the bootstrap.

    Raises
    ------
    ValueError
        Where there is none, or one is missing.

    Examples
    --------
    >>> interval([1.0, 1.0, 1.0])
    Interval(mean=1.0, low=1.0, high=1.0, n=3)
    """
    top = np.asarray(values, dtype=float)
    below = np.ones_like(top) if over is None else np.asarray(over, dtype=float)
    if not len(top) or not np.isfinite([top, below]).all():
        raise ValueError("an interval needs a number of every unit; some are missing")
    mean = ratio(top, below)
    if len(top) < 2:
        return Interval(float(mean), float(mean), float(mean), len(top))
    found = stats.bootstrap(
        (top, below),
        ratio,
        paired=True,
        n_resamples=DRAWS,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(float(mean), float(found.low), float(found.high), len(top))


def ratio(top: NDArray, below: NDArray, axis: int = -1) -> NDArray:
    """The mean of `top` over the mean of `below`; 1 where nothing is left below."""
    upper, lower = top.mean(axis), below.mean(axis)
    return np.where(lower > 0, upper / np.where(lower > 0, lower, 1), 1.0)


def coverage(n: int, trials: int = 500) -> float:
    """How often the interval of n units holds their true mean, where units spread as a normal.

    Less often than LEVEL for few: the bootstrap knows no values beyond those it has.
    """
    draws = np.random.default_rng(0)
    units, again = draws.normal(size=(trials, n)), draws.integers(n, size=(trials, n))
    means = units[:, again].mean(-1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    return float(((low <= 0) & (high >= 0)).mean())


def by_unit(frame: pd.DataFrame, unit: Iterable[str]) -> pd.DataFrame:
    """Means of all numbers, a row for each unit.

    unit: the columns that tell units apart, those that the frame has. Without any of them all rows
    are of one unit.
    """
    keys = [name for name in unit if name in frame or name in frame.index.names]
    if keys:
        return frame.groupby(keys).mean(numeric_only=True)
    return frame.mean(numeric_only=True).to_frame().T


# -- the words of the reasons ---------------------------------------------------------------------


def counted(n: int, unit: str) -> str:
    """So many units, in words; unit: its singular."""
    many = f"{unit[:-2]}ches" if unit.endswith("ch") else f"{unit}s"
    return f"{n} {unit if n == 1 else many}"


def too_few(n: int, unit: str) -> str:
    """Why so few units show nothing."""
    were = "was" if n == 1 else "were"
    return f"only {counted(n, unit)} {were} measured, and a verdict takes {LEAST} or more"


def spread(found: Interval, pattern: str) -> str:
    """An interval in words, or nothing of a single unit."""
    if found.n < 2:
        return ""
    return f", {LEVEL:.0%} interval {found.low:{pattern}} to {found.high:{pattern}}"


def untested(method: str, reason: str = "it was not run in this setting") -> Finding:
    """Nothing was measured."""
    return Finding(method, OPEN, "not measured", "–", reason, 0, "network")


def above(found: Interval, bar: float) -> Interval:
    """An interval as the distance to a bar below it."""
    return Interval(found.mean - bar, found.low - bar, found.high - bar, found.n)


def below(found: Interval, bar: float = 0) -> Interval:
    """An interval as the distance to a bar above it."""
    return Interval(bar - found.mean, bar - found.high, bar - found.low, found.n)


def decided(found: Interval) -> str:
    """The grade of a distance to the bar: by the side of it that the interval lies on."""
    if found.n < LEAST or found.low <= 0 <= found.high:
        return OPEN
    return HOLDS if found.low > 0 else FAILS


# -- labels ---------------------------------------------------------------------------------------


def labels(method: str, share: ArrayLike, even: ArrayLike, unit: str = "network") -> Finding:
    """Whether labels are restored; share: of the labels that are right, even: of a guess, by unit.

    Judged is the share of what the guess leaves open.
    """
    right, guess = np.asarray(share, float), np.asarray(even, float)
    part = interval(right - guess, 1 - guess)
    judged = above(part, RESTORED)
    grade = decided(judged)
    if part.n < LEAST:
        reason = too_few(part.n, unit)
    elif grade == HOLDS:
        reason = "nearly all labels come back"
    elif grade == OPEN:
        reason = (
            "more than a guess comes back, but whether nearly all does is too close to call"
            if part.low > 0
            else "the spread is too wide: anything from a guess to nearly all labels is possible"
        )
    elif part.low > 0:
        reason = "part of the labels come back: more than by guessing, and not nearly all"
    elif part.high < 0:
        reason = "fewer labels are right than by guessing"
    else:
        reason = "no more labels are right than by guessing, as far as can be told"
    numbers = (
        f"{right.mean():.0%} of the labels right, {guess.mean():.0%} by an even guess; "
        f"{part.mean:.0%} of what a guess leaves open{spread(part, '.0%')}, {counted(part.n, unit)}"
    )
    short = f"{right.mean():.0%} / {guess.mean():.0%}"
    return Finding(method, grade, numbers, short, reason, part.n, unit, *judged[:3])


# -- images ---------------------------------------------------------------------------------------


def images(
    method: str, psnr: ArrayLike, thumbnail: ArrayLike, flat: ArrayLike, unit: str = "network"
) -> Finding:
    """Whether images are restored; PSNR in dB of the images, their 8x8 thumbnails, a flat colour.

    Judged is the distance to the thumbnails.
    """
    reached, bar, plain = (np.asarray(values, float) for values in (psnr, thumbnail, flat))
    ahead, shown = interval(reached - bar), interval(reached - plain)
    grade = decided(ahead)
    if ahead.n < LEAST:
        reason = too_few(ahead.n, unit)
    elif grade == HOLDS:
        reason = "more comes back than a thumbnail shows"
    elif grade == FAILS and shown.low > 0:
        reason = "something comes back, but less than a thumbnail shows"
    elif grade == FAILS and shown.high < 0:
        reason = "what comes back is worse than one flat colour"
    elif grade == FAILS:
        reason = "what comes back is no better than one flat colour, as far as can be told"
    else:
        reason = "too close to the thumbnails to call"
    numbers = (
        f"{reached.mean():.1f} dB, {ahead.mean:+z.1f} dB against 8×8 thumbnails"
        f"{spread(ahead, '+z.1f')}, a flat colour {plain.mean():.1f} dB, {counted(ahead.n, unit)}"
    )
    return Finding(
        method, grade, numbers, f"{ahead.mean:+z.1f} dB", reason, ahead.n, unit, *ahead[:3]
    )


def spoilt(
    method: str, right: ArrayLike, wrong: ArrayLike, thumbnail: ArrayLike, unit: str = "network"
) -> Finding:
    """Whether one wrong label loses the images whose own label is right (claim 4).

    PSNR in dB of these images with all labels right, with one wrong, of their thumbnails. Lost
    means below the thumbnails; where right labels bring no images back, there is none to lose.
    """
    whole, broken, bar = (np.asarray(values, float) for values in (right, wrong, thumbnail))
    before, after = interval(whole - bar), interval(broken - bar)
    judged = below(after)
    grade = decided(judged)
    if after.n < LEAST:
        reason = too_few(after.n, unit)
    elif decided(before) != HOLDS:
        grade = OPEN
        reason = "with the right labels no images are shown to come back: there are none to lose"
    elif grade == HOLDS:
        reason = "one wrong label, and the other images fall below their thumbnails"
    elif grade == FAILS:
        reason = "the other images still come back better than their thumbnails"
    else:
        reason = "with a wrong label, too close to the thumbnails to call"
    numbers = (
        f"the other images fall from {whole.mean():.1f} to {broken.mean():.1f} dB, "
        f"{after.mean:+z.1f} dB against 8×8 thumbnails{spread(after, '+z.1f')}, "
        f"{counted(after.n, unit)}"
    )
    return Finding(
        method, grade, numbers, f"{after.mean:+z.1f} dB", reason, after.n, unit, *judged[:3]
    )


def fused(
    method: str,
    distinct: ArrayLike,
    equal: ArrayLike,
    mean_restored: ArrayLike,
    mean_image: ArrayLike,
    unit: str = "network",
) -> Finding:
    """Whether equal labels fuse the images of a class (claim 5).

    distinct, equal: correlation of the differences from the mean that come back, with the true
    ones, by the labels of the same images. mean_restored: PSNR of the restored mean, in dB;
    mean_image: of the true mean, shown in the place of every image. Fused means that the mean
    comes back and the differences do not.
    """
    apart, together = np.asarray(distinct, float), np.asarray(equal, float)
    left = interval(together, apart)
    kept = interval(np.asarray(mean_restored, float) - np.asarray(mean_image, float))
    judged = below(left, LOST)
    grade = decided(judged)
    if left.n < LEAST:
        reason = too_few(left.n, unit)
    elif decided(interval(apart)) != HOLDS:
        grade, reason = OPEN, "the differences do not come back with distinct labels either"
    elif grade == HOLDS and kept.low <= 0:
        grade, reason = OPEN, "the differences are lost, and so may be the mean"
    elif grade == HOLDS:
        reason = "the mean of the class comes back, most of the differences do not"
    elif grade == FAILS:
        reason = "most of the differences between the images come back"
    else:
        reason = f"what is left of the differences is too close to {LOST:.0%} to call"
    numbers = (
        f"{left.mean:.0%} of the differences are left{spread(left, '.0%')}, the restored mean is "
        f"{kept.mean:+z.1f} dB from what the mean scores for each image, {counted(left.n, unit)}"
    )
    return Finding(
        method, grade, numbers, f"{left.mean:.0%} left", reason, left.n, unit, *judged[:3]
    )


# -- two attacks ----------------------------------------------------------------------------------


def ahead(
    method: str,
    reached: ArrayLike,
    rival: ArrayLike,
    bar: ArrayLike,
    *,
    missing: Iterable[str] = (),
    of: str = "images",
    unit: str = "network",
) -> Finding:
    """Whether a method is ahead of GradInversion (claim 7), paired by unit.

    reached, rival: PSNR in dB, or the share of labels (of: images, or labels). bar: of the
    thumbnails, or of a guess: where neither is above it, this is a ranking of two failures.
    missing: what the rival ran without though it makes it what it is; a win over such a one shows
    nothing, a defeat by it does.
    """
    ours, theirs, least = (np.asarray(values, float) for values in (reached, rival, bar))
    lead, better = interval(ours - theirs), interval(np.maximum(ours, theirs) - least)
    bar_name, has, pattern = {
        "images": ("the thumbnails", "the thumbnails have", "+z.1f"),
        "labels": ("an even guess", "an even guess has", "+z.2f"),
    }[of]
    grade, lacks = decided(lead), list(missing)
    if better.mean <= 0 or (better.n >= LEAST and better.low <= 0):
        is_above = "is" if better.high < 0 or better.n < LEAST else "is shown to be"
        grade, reason = OPEN, f"neither method {is_above} above {bar_name}, so a lead says nothing"
        if lead.n < LEAST:
            reason += f"; {too_few(lead.n, unit)}"
    elif lead.n < LEAST:
        reason = too_few(lead.n, unit)
    elif grade == HOLDS and lacks:
        grade, reason = OPEN, f"ahead, but GradInversion ran without {' and '.join(lacks)}"
    elif grade == HOLDS:
        reason = "ahead of GradInversion"
    elif grade == FAILS:
        reason = "behind GradInversion"
        reason += f", which even ran without {' and '.join(lacks)}" if lacks else ""
    else:
        reason = "too close to GradInversion to call"
    size = (
        f"{ours.mean():.1f} against {theirs.mean():.1f} dB"
        if of == "images"
        else f"{ours.mean():.0%} against {theirs.mean():.0%} of the labels"
    )
    measure = " dB" if of == "images" else ""
    numbers = (
        f"{size}, a lead of {lead.mean:{pattern}}{measure}{spread(lead, pattern)}; "
        f"{has} {least.mean():{'.1f' if of == 'images' else '.0%'}}{measure}, "
        f"{counted(lead.n, unit)}"
    )
    short = f"{lead.mean:{pattern}}{measure}"
    return Finding(method, grade, numbers, short, reason, lead.n, unit, *lead[:3])


def strongest(findings: Iterable[Finding], harmed: bool = False) -> Finding:
    """Of several methods the strongest attacker.

    harmed: whether the claim is that attackers fail, as claims 4 and 5 say.
    """
    measured = [found for found in findings if found.mean is not None]
    if not measured:
        return untested("any")
    sign = -1 if harmed else 1
    return max(measured, key=lambda found: sign * float(found.mean or 0))


# -- frames of runs -------------------------------------------------------------------------------


def label_columns(
    runs: pd.DataFrame, unit: Iterable[str], paper: str = "zlg", *, name: str = "network"
) -> dict[str, Finding]:
    """Both columns of a claim on labels.

    runs: a row for each run of a method, with `method`, `instance` (the share of labels that are
    right), `even` and the columns of `unit`. paper: the published rule. The others are the rules
    of the study; the best of all counts. name: what a unit is.
    """
    found = {
        str(method): labels(str(method), rows.instance, rows.even, name)
        for method, rows in by_method(runs[runs.method != "even"], "method", unit).items()
    }
    return columns(found, paper)


def image_columns(
    runs: pd.DataFrame,
    unit: Iterable[str],
    paper: str = "general",
    *,
    match: Iterable[str] = (),
    name: str = "network",
) -> dict[str, Finding]:
    """Both columns of a claim on images; runs: with `attack`, `psnr`, `thumb8`, `mean_colour`.

    match: columns of cases within a unit; an attack that ran in some of them only, perhaps the
    easy ones, does not stand for any method.
    """
    found, cases = {}, list(match)
    every = set(runs[cases].itertuples(index=False, name=None))
    for attack, rows in runs.groupby("attack", sort=False):
        ran = set(rows[cases].itertuples(index=False, name=None))
        if attack == paper or ran == every:
            means = by_unit(rows, unit)
            found[str(attack)] = images(
                str(attack), means.psnr, means.thumb8, means.mean_colour, name
            )
    return columns(found, paper)


def rival_columns(
    runs: pd.DataFrame,
    unit: Iterable[str],
    paper: str,
    *,
    rival: str = "gradinversion",
    match: Iterable[str] = (),
    missing: Iterable[str] = MISSING,
    of: str = "images",
    name: str = "network",
) -> dict[str, Finding]:
    """Both columns of claim 7; runs: as for `label_columns` or `image_columns`.

    match: columns of cases within a unit, of which only those count that both ran. missing: what
    the search for images of GradInversion ran without.
    """
    method, value, bar = {
        "images": ("attack", "psnr", "thumb8"),
        "labels": ("method", "instance", "even"),
    }[of]
    unit, cases = list(unit), [*unit, *match]
    means = by_method(runs[runs[method] != "even"], method, cases)
    if rival not in means:
        return dict.fromkeys(("paper", "any"), untested(rival, "GradInversion was not run here"))
    found, against = {}, means.pop(rival)
    lacks = list(missing) if of == "images" else []
    for one, rows in means.items():
        both = rows.index.intersection(against.index)
        if len(both):
            ours, theirs = (by_unit(part.loc[both], unit) for part in (rows, against))
            found[str(one)] = ahead(
                str(one), ours[value], theirs[value], ours[bar], missing=lacks, of=of, unit=name
            )
    return columns(found, paper)


def by_method(runs: pd.DataFrame, method: str, unit: Iterable[str]) -> dict[object, pd.DataFrame]:
    """Method -> its means, a row for each unit."""
    return {key: by_unit(rows, unit) for key, rows in runs.groupby(method, sort=False)}


def columns(
    found: Mapping[str, Finding], paper: str, *, harmed: bool = False
) -> dict[str, Finding]:
    """The published method beside the strongest of all; harmed: as for `strongest`."""
    return {
        "paper": found.get(paper, untested(paper)),
        "any": strongest(found.values(), harmed),
    }
