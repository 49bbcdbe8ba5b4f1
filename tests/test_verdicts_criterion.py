"""The criterion: worked cases for each grade, and several settings in one."""

import numpy as np
import pandas as pd
import pytest

from gleak.study import criterion
from gleak.study.criterion import CONDITION, FAILS, GRADES, HOLDS, LEAST, OPEN
from gleak.study.summary import combined, where
from gleak.study.verdicts import CONDITIONS, KEYS, setting

SIX = np.array([-0.1, -0.05, 0, 0, 0.05, 0.1])  # around nothing


def test_fewer_units_than_the_least_could_lie_on_one_side_by_chance():
    assert 0.5**LEAST <= 1 - criterion.LEVEL < 0.5 ** (LEAST - 1)


def test_an_interval_holds_the_mean_and_narrows_with_the_spread():
    wide, narrow = criterion.interval(20 * SIX), criterion.interval(SIX)
    assert wide.low < 0 < wide.high
    assert wide.high - wide.low == pytest.approx(20 * (narrow.high - narrow.low))
    assert criterion.interval([3.0]) == (3, 3, 3, 1)
    assert criterion.interval([1, 2], over=[2, 4]).mean == 0.5
    assert criterion.interval(20 * SIX) == wide  # the same each time


def test_intervals_of_few_units_are_too_narrow():
    assert 0.75 < criterion.coverage(LEAST) < criterion.coverage(30) < criterion.LEVEL + 0.02
    units = np.random.default_rng(1).normal(size=(100, LEAST))
    found = [criterion.interval(row) for row in units]
    held = np.mean([one.low <= 0 <= one.high for one in found])
    assert held == pytest.approx(criterion.coverage(LEAST), abs=0.08)


@pytest.mark.parametrize("values", [[], [1.0, np.nan]])
def test_an_interval_of_missing_numbers_is_refused(values):
    with pytest.raises(ValueError, match="missing"):
        criterion.interval(values)


@pytest.mark.parametrize(
    ("share", "grade", "reason"),
    [
        (0.99 + 0.01 * SIX, HOLDS, "nearly all labels come back"),
        (0.7 + SIX, FAILS, "part of the labels"),
        (0.4 + SIX, FAILS, "no more labels are right"),
        (0.2 + SIX, FAILS, "fewer labels are right"),
        (0.94 + SIX, OPEN, "more than a guess comes back"),
        ((0.99 + SIX)[:4], OPEN, "4 networks were measured"),
    ],
)
def test_labels(share, grade, reason):
    found = criterion.labels("zlg", share, np.full(len(share), 0.4))
    assert found.grade == grade
    assert reason in found.reason
    assert found.n == len(share)
    assert found.short == f"{share.mean():.0%} / 40%"


def test_labels_are_judged_by_what_the_guess_leaves_open():
    found = criterion.labels("zlg", [0.95] * 6, [0.5] * 6)
    assert "90% of what a guess leaves open" in found.numbers
    assert found.mean == pytest.approx(0)


@pytest.mark.parametrize(
    ("psnr", "grade", "reason"),
    [
        (25 + SIX, HOLDS, "more comes back than a thumbnail shows"),
        (18 + SIX, FAILS, "less than a thumbnail shows"),
        (14 + SIX, FAILS, "no better than one flat colour"),
        (10 + SIX, FAILS, "worse than one flat colour"),
        (20 + SIX, OPEN, "too close to the thumbnails to call"),
        (np.array([25.0]), OPEN, "only 1 network was measured"),
    ],
)
def test_images(psnr, grade, reason):
    ones = np.ones(len(psnr))
    found = criterion.images("general", psnr, 20 * ones, 14 * ones)
    assert (found.grade, found.short) == (grade, f"{psnr.mean() - 20:+z.1f} dB")
    assert reason in found.reason


@pytest.mark.parametrize(
    ("right", "wrong", "grade", "reason"),
    [
        (25, 12, HOLDS, "below their thumbnails"),
        (25, 23, FAILS, "still come back better"),
        (25, 20, OPEN, "too close"),
        (15, 12, OPEN, "none to lose"),
    ],
)
def test_one_wrong_label(right, wrong, grade, reason):
    found = criterion.spoilt("L2", right + SIX, wrong + SIX, np.full(6, 20.0))
    assert found.grade == grade
    assert reason in found.reason
    assert found.mean == pytest.approx(20 - wrong)  # positive where the claim holds


@pytest.mark.parametrize(
    ("distinct", "equal", "restored", "grade", "reason"),
    [
        (0.8, 0.2, 22, HOLDS, "most of the differences do not"),
        (0.8, 0.7, 22, FAILS, "most of the differences between the images come back"),
        (0.8, 0.4, 22, OPEN, "too close to 50%"),
        (0.0, 0.0, 22, OPEN, "with distinct labels either"),
        (0.8, 0.2, 10, OPEN, "so may be the mean"),
    ],
)
def test_fusion(distinct, equal, restored, grade, reason):
    found = criterion.fused("L2", distinct + SIX, equal + SIX, [restored] * 6, [14] * 6)
    assert found.grade == grade
    assert reason in found.reason


@pytest.mark.parametrize(
    ("ours", "theirs", "missing", "grade", "reason"),
    [
        (25, 22, (), HOLDS, "ahead of GradInversion"),
        (25, 22, ("registration",), OPEN, "GradInversion ran without registration"),
        (21, 25, ("registration",), FAILS, "which even ran without registration"),
        (25, 25, (), OPEN, "too close to GradInversion"),
        (17, 15, (), OPEN, "neither method is above the thumbnails"),
    ],
)
def test_two_attacks(ours, theirs, missing, grade, reason):
    found = criterion.ahead("general", ours + SIX, theirs - SIX, np.full(6, 20.0), missing=missing)
    assert found.grade == grade
    assert reason in found.reason


def test_a_ranking_of_failures_is_called_that_with_few_networks_too():
    found = criterion.ahead("general", [13.1], [12.0], [17.3])
    assert found.grade == OPEN
    assert found.reason.startswith("neither method is above the thumbnails")
    assert found.reason.endswith("only 1 network was measured, and a verdict takes 5 or more")


def test_of_several_methods_the_strongest_attacker():
    weak, strong = (
        criterion.images(name, level + SIX, [20] * 6, [14] * 6)
        for name, level in (("a", 18), ("b", 25))
    )
    assert criterion.columns({"a": weak, "b": strong}, "a") == {"paper": weak, "any": strong}
    lost, kept = (
        criterion.spoilt(name, 25 + SIX, level + SIX, [20] * 6)
        for name, level in (("a", 12), ("b", 23))
    )
    assert criterion.columns({"a": lost, "b": kept}, "a", harmed=True)["any"] == kept
    assert criterion.columns({}, "a")["any"].grade == OPEN


def test_units_are_what_tells_networks_apart_and_is_there():
    runs = pd.DataFrame({"pool": ["a", "a", "b"], "seed": [0, 1, 0], "psnr": [1.0, 3.0, 5.0]})
    assert criterion.by_unit(runs, criterion.TRAINED).psnr.tolist() == [2, 5]
    assert criterion.by_unit(runs, ["training"]).psnr.tolist() == [3]


def test_only_cases_that_both_ran_are_compared():
    runs = pd.DataFrame(
        [
            {"attack": attack, "case": case, "seed": seed, "psnr": psnr, "thumb8": 20.0}
            for seed in range(6)
            for attack, case, psnr in (
                ("general", "easy", 30.0),
                ("general", "hard", 22.0),
                ("gradinversion", "hard", 24.0),
            )
        ]
    )
    found = criterion.rival_columns(runs, ["seed"], "general", match=["case"])
    assert found["paper"].grade == FAILS
    assert found["paper"].mean == pytest.approx(-2)
    alone = criterion.rival_columns(runs[runs.attack == "general"], ["seed"], "general")
    assert alone["any"].reason == "GradInversion was not run here"


def test_an_attack_that_ran_in_easy_cases_only_does_not_stand_for_any():
    runs = pd.DataFrame(
        [
            {"attack": attack, "case": case, "seed": seed, "psnr": psnr}
            for seed in range(6)
            for attack, case, psnr in (
                ("all", "easy", 24.0), ("all", "hard", 22.0), ("some", "easy", 30.0)
            )
        ]
    ).assign(thumb8=20.0, mean_colour=14.0)  # fmt: skip
    assert criterion.image_columns(runs, ["seed"], match=["case"])["any"].method == "all"
    assert criterion.image_columns(runs, ["seed"])["any"].method == "some"
    assert criterion.image_columns(runs, ["seed"], "some", match=["case"])["paper"].n == 6


# -- several settings -----------------------------------------------------------------------------

EASY = setting("easy", images=4)
MANY = setting("many", images=50)
LATE = setting("late", images=4, trained=True)
LATE_MANY = setting("late, many", images=50, trained=True)
SMOOTH = setting("smooth", images=4, more="with sigmoids")


def judged(*graded):
    return pd.DataFrame(
        [
            {
                "setting": one.words,
                **{key: getattr(one, key) for key in KEYS},
                "grade": grade,
                "n": n,
            }
            for one, grade, n in ((*row, 6)[:3] for row in graded)
        ]
    )


def test_every_grade_of_several_settings():
    assert combined(judged((EASY, HOLDS), (LATE, HOLDS))).grade == HOLDS
    assert combined(judged((EASY, FAILS), (LATE, OPEN))).grade == FAILS
    assert combined(judged((EASY, OPEN), (LATE, OPEN))).grade == OPEN
    found = combined(judged((EASY, HOLDS), (MANY, HOLDS), (LATE, FAILS), (LATE_MANY, OPEN)))
    assert found.grade == CONDITION
    assert found.holds == "on untrained networks"
    assert found.fails == "on trained networks for up to 8 images"
    assert found.open == "on trained networks for more than 8 images"
    assert combined(judged((EASY, HOLDS), (LATE, FAILS), (MANY, FAILS))).holds == (
        "on untrained networks for up to 8 images"
    )


def test_the_condition_names_what_else_is_different():
    assert combined(judged((EASY, HOLDS), (SMOOTH, FAILS))).fails == "with sigmoids"
    alike = setting("another", images=4)
    assert combined(judged((EASY, HOLDS), (alike, FAILS))).counts == "in 1 of 2 settings"
    found = combined(judged((EASY, FAILS), (SMOOTH, HOLDS), (LATE, HOLDS)))
    assert found.holds == "with sigmoids or on trained networks"


def test_where_no_condition_decides_settings_are_counted():
    more = [setting(f"{n}", images=4, more=f"on {n}") for n in range(6)]
    late = [setting(f"{n}", images=4, more=f"on {n}", trained=True) for n in range(3)]
    photographs = setting("photographs", images=50, pixels=224)
    found = combined(
        judged(
            *((one, HOLDS) for one in more),
            (EASY, FAILS),
            *((one, FAILS) for one in late),
            (MANY, OPEN),
            (photographs, OPEN),
        )
    )
    assert found.counts == (
        "on untrained networks in 6 of 7 settings, on trained networks in none of 3"
    )
    assert found.open == (
        "in 2 other settings, among them all for more than 8 images and all with pictures of more "
        "than 64 pixels"
    )
    one = combined(judged((late[0], HOLDS), *((where, FAILS) for where in (*more, EASY, LATE))))
    assert (one.holds, one.counts) == ("on trained networks on 0", "")
    assert one.fails == "in 8 other settings"


def test_labels_say_nothing_about_images():
    labels = setting("labels", what="labels", images=4)
    found = combined(judged((labels, HOLDS), (EASY, OPEN)))
    assert (found.grade, found.holds, found.open) == (CONDITION, "for labels", "for images")


def test_a_setting_with_too_few_networks_counts_only_where_no_other_was_decided():
    example = setting("an example", images=2)
    assert combined(judged((EASY, HOLDS), (example, OPEN, 1))).grade == HOLDS
    assert combined(judged((EASY, HOLDS), (example, OPEN, LEAST))).grade == CONDITION
    assert combined(judged((EASY, HOLDS), (SMOOTH, OPEN, 1))).grade == CONDITION
    assert combined(judged((EASY, HOLDS), (LATE, OPEN, 1))).grade == CONDITION


def test_sides_of_the_conditions():
    assert (EASY.batch, MANY.batch) == ("few", "many")
    assert setting("photographs", images=1, pixels=224, weights=True).pixels == "large"
    assert all(getattr(LATE, key) in values for key, values in CONDITIONS.items())
    assert where(judged(), judged((EASY, HOLDS))) == ""
    assert len(set(GRADES)) == 4
