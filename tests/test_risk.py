"""What the report says, on cases whose answer is known."""

import dataclasses

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


def silent(batch):
    """What a client of two epochs sends that tells nothing of them."""
    model = gleak.build_model("lenet", batch, seed=1, activation="relu")
    return gleak.fedavg(model, batch, epochs=2, reveal=())


def test_a_client_that_tells_no_lr_is_not_attacked_and_not_called_safe(batch):
    found = risk.assess(silent(batch), batch, iterations=1)
    assert "lr" in found.not_attacked["labels"]
    assert found.not_attacked.keys() == {"labels", "images"}
    assert found.result is None
    for ask in ("labels_leak", "images_leak", "grades"):
        with pytest.raises(gleak.MissingKnowledge, match="were not attacked"):
            getattr(found, ask)
    assert found.scores["psnr"].isna().all()
    assert found.scores["thumb8"].notna().all()
    assert found.labels["chance"] > 0
    words = risk.in_words(found)
    assert "labels were not attacked" in words
    assert "images were not attacked" in words
    assert "no better than guesses" not in words
    assert "finds nothing" not in words


def test_images_that_cannot_be_attacked_are_not_called_safe(update, batch, monkeypatch):
    def refuses(*_, **__):
        raise gleak.MissingKnowledge("this needs the client's shoe size")

    plain = risk.assess(update, batch, iterations=1)
    monkeypatch.setattr(risk, "invert", refuses)
    found = risk.assess(update, batch, iterations=1)
    assert found.labels_leak
    assert found.labels == plain.labels
    assert found.not_attacked == {"images": "this needs the client's shoe size"}
    assert "not attacked: this needs the client's shoe size" in risk.in_words(found)
    assert not found.closed("images")
    table = risk.table({"plain": plain, "other": found})
    assert table["recognisable"].isna().tolist() == [False, True]
    assert table["not attacked"].tolist() == ["", "images: this needs the client's shoe size"]
    figure, alt = risk.risk({"plain": plain, "other": found})
    assert "other: 100% and images not attacked" in alt
    assert [text.get_text() for text in figure.axes[1].texts] == ["not attacked"]
    assert not figure.axes[0].texts


def test_other_errors_of_a_label_rule_are_told_too(update, batch, monkeypatch):
    def fails(*_, **__):
        raise ValueError("the label counts are not finite")

    monkeypatch.setattr(risk, "restore_labels", fails)
    found = risk.assess(update, batch, iterations=1)
    assert found.not_attacked["labels"] == "the label counts are not finite"


def test_no_defence_is_credited_with_what_was_not_attacked():
    open_, both = leak(1.0, 25), leak(0.4, 9)
    unknown = dataclasses.replace(both, not_attacked={"images": "no lr"})
    tried = {"a": (0.9, unknown), "b": (0.2, both)}
    words = risk.advice(open_, tried)
    assert "**b** closes the leak of labels and images" in words
    assert "not judged: a." in words
    words = risk.advice(open_, {"a": tried["a"]})
    assert words == "Not attacked in full, so not judged: a."
    words = risk.advice(unknown, tried)
    assert "No defence can be advised" in words
    assert "images: no lr" in words
    half = dataclasses.replace(open_, not_attacked={"images": "no lr"})
    assert "Of the plain update not attacked: images: no lr." in risk.advice(half, tried)


@pytest.mark.parametrize("iterations", [0, -1])
def test_no_effort_is_refused(update, batch, iterations):
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        risk.assess(update, batch, iterations=iterations)


def test_a_batch_of_another_size_is_refused(update, batch):
    other = gleak.Batch(batch.images[:1], batch.labels[:1], batch.class_names)
    with pytest.raises(ValueError, match="the update is of images"):
        risk.assess(update, other, iterations=1)


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
    assert not found.not_attacked
    # and of weights that did not move, whatever was told
    sent = silent(batch)
    nothing = defences.replaced(sent, {n: 0 * change for n, change in sent.message().items()})
    found = risk.assess(nothing, batch, iterations=1)
    assert not found.not_attacked
    assert found.closed("images")


def test_how_much_of_an_update_is_kept(update):
    assert risk.kept(update, update) == pytest.approx(1)
    assert risk.kept(risk.noise(update, 1, seed=0), update) == pytest.approx(0.5**0.5, abs=0.05)
    loud = risk.noise(update, 100, seed=0)
    assert loud.norm() == pytest.approx(100 * update.norm(), rel=0.05)
    head = {n: g for n, g in update.gradient.items() if n.startswith("1.7.")}
    share = sum(g.square().sum() for g in head.values()).item() / update.norm() ** 2
    assert risk.kept(risk.headless(update), update) == pytest.approx((1 - share) ** 0.5, rel=1e-4)
