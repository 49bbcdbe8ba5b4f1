"""What the report says, on cases whose answer is known."""

import pandas as pd
import pytest
import torch

import gleak
from gleak import defences, risk


@pytest.fixture(scope="module")
def batch():
    return gleak.load_batch("cifar10-samples", indices=[0, 1])


@pytest.fixture(scope="module")
def update(batch):
    return gleak.fedsgd(gleak.build_model("lenet", batch, seed=1, activation="relu"), batch)


def scores(*values):
    """Images at these PSNR; a flat colour has 10 dB, thumbnails 15 and 20."""
    frame = pd.DataFrame({"psnr": values})
    return frame.assign(mean_colour=10.0, thumb4=15.0, thumb8=20.0)


def leak(right, *values):
    labels = {"instance": right, "chance": 0.4, "corrected": (right - 0.4) / 0.6}
    return risk.Leak(torch.tensor([1, 1]), labels, None, scores(*values))


def test_grades_are_set_by_thumbnails():
    assert risk.grade(scores(9.0, 15.0, 15.1, 20.1, 100.0)) == [0, 0, 1, 2, 2]
    flat = scores(16.0).assign(mean_colour=17.0, thumb4=15.0)  # an image of almost one colour
    assert risk.grade(flat) == [0]


def test_words_say_what_leaks():
    words = risk.in_words(leak(1.0, 25, 16, 9))
    assert "reads 100% of the labels" in words
    assert "guessing would find 40%" in words
    assert "1 of 3 clear enough to be recognised (better than an 8×8 thumbnail), 1 of 3 in" in words
    words = risk.in_words(leak(0.5, 14, 9))
    assert "no better than guesses" in words
    assert "None of the 2 images" in words


def test_the_advice_is_the_cheapest_defence_that_closes_the_leak():
    open_, images, both = leak(1.0, 25), leak(1.0, 9), leak(0.4, 9)
    assert "Nothing was found" in risk.advice(both, {})
    tried = {"a": (0.9, open_), "b": (0.2, both), "c": (0.5, both), "d": (0.8, images)}
    assert "**c** closes the leak of labels and images" in risk.advice(open_, tried)
    assert "**d** closes the leak of images" in risk.advice(open_, {n: tried[n] for n in "ad"})
    assert "None of the defences" in risk.advice(open_, {"a": tried["a"]})


def test_an_update_is_assessed_by_itself(update, batch):
    found = risk.assess(update, batch, iterations=2)
    assert found.labels["instance"] == 1
    assert found.labels_leak
    assert found.result.images.shape == batch.images.shape
    table = risk.table({"plain": found})
    assert table.loc["plain", "labels right"] == 1
    figure, alt = risk.risk({"plain": found})
    assert "plain: 100% and" in alt
    assert [axis.get_title() for axis in figure.axes] == ["labels", "images"]


def test_without_the_classifier_labels_are_guessed(update, batch):
    kept = risk.headless(update)
    assert update.gradient.keys() - kept.gradient.keys() == {"1.7.weight", "1.7.bias"}
    found = risk.assess(kept, batch, iterations=1)
    assert found.counts.sum() == len(batch)
    assert found.counts.max() == 1


def test_an_update_of_zeros_leaves_nothing(update, batch):
    nothing = defences.replaced(update, {n: 0 * g for n, g in update.gradient.items()})
    found = risk.assess(nothing, batch, iterations=1)
    assert found.result is None
    assert not found.images_leak


def test_how_much_of_an_update_is_kept(update):
    assert risk.kept(update, update) == pytest.approx(1)
    assert risk.kept(risk.noise(update, 1, seed=0), update) == pytest.approx(0.5**0.5, abs=0.05)
    loud = risk.noise(update, 100, seed=0)
    assert loud.norm() == pytest.approx(100 * update.norm(), rel=0.05)
    head = {n: g for n, g in update.gradient.items() if n.startswith("1.7.")}
    share = sum(g.square().sum() for g in head.values()).item() / update.norm() ** 2
    assert risk.kept(risk.headless(update), update) == pytest.approx((1 - share) ** 0.5, rel=1e-4)
