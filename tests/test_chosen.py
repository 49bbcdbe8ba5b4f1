"""Chapters report on images and seeds that had no part in choosing settings."""

import re
import runpy

import pytest

from gleak.study import chapters
from gleak.study.experiments import searches
from gleak.study.experiments.common import fresh_seeds

ROOT = chapters.root()


@pytest.fixture(scope="module")
def chosen():
    return runpy.run_path(str(ROOT / "benchmarks" / "chosen.py"))


@pytest.fixture(scope="module")
def rows(chosen):
    return {row["chapter"]: row for row in chosen["rows"]()}


def test_no_chapter_reports_on_seeds_that_settings_were_chosen_on(rows):
    assert len(rows) > 20
    assert {row["seeds chosen on"].split(" of ")[0] for row in rows.values()} == {"0"}
    assert all(row["seeds"] for row in rows.values())


def test_images_that_settings_were_chosen_on_are_the_named_exceptions(chosen, rows):
    old = {name for name, row in rows.items() if not row["images chosen on"].startswith("0 ")}
    assert old == set(chosen["EXCEPTIONS"])
    assert all(chosen["EXCEPTIONS"].values())


def test_seeds_are_counted_from_the_first_fresh_one_everywhere():
    """Numbers of seeds become seeds in no other way; recorded tables name theirs."""
    counted = re.compile(r"(?:seed|training)\"?(?:=|: | in )range\(")
    for file in [*(ROOT / "notebooks").glob("*.md")]:
        assert not counted.search(file.read_text()), file.name
    for file in (ROOT / "gleak" / "study" / "experiments").glob("*.py"):
        for function in file.read_text().split("\ndef ")[1:]:
            if not function.startswith(("recorded", "step_settings")):
                assert not counted.search(function), (file.name, function.split("(")[0])


def test_a_seed_that_was_chosen_on_is_found_out(chosen):
    assert not set(fresh_seeds(100)) & chosen["SEEDS"]
    assert chosen["part"]([3, 101], chosen["SEEDS"]) == "1 of 2"
    assert not set(searches.FRESH) & searches.CHOSEN_ON["cifar10-samples"]


def test_images_are_drawn_among_those_that_nothing_was_chosen_on(chosen):
    for seed in range(20):
        batch = searches.unchosen("cifar10-samples", 2, seed)
        assert len(set(batch.labels.tolist())) == 2
        found = set(chosen["numbers"](batch, "cifar10-samples"))
        assert not found & searches.CHOSEN_ON["cifar10-samples"]
    gray = searches.unchosen("fashion-mnist-samples", 2, 0)
    assert len(gray) == 2


def test_recorded_tables_are_listed_with_their_seeds(chosen):
    tables = {row["table"]: row for row in chosen["tables"]()}
    assert set(tables) == {file.name for file in (ROOT / "book" / "results").glob("*.csv")}
    fresh = [name for name, row in tables.items() if row["seeds chosen on"].startswith("0 ")]
    assert fresh == ["04_fresh_images.csv"]
    assert tables["07_wrong_label.csv"]["seeds"] == "0, 1, 2, 3, 4"
