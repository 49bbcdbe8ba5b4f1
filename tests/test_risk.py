"""Attacks on updates whose answer is known, and what is said of them."""

import pandas as pd
import pytest
import torch

import gleak
from gleak import answers, defences, risk
from gleak.answers import Answer, Share, Verdict
from gleak.defended import DEFENCES, SIGNS, headless, kept, noise, private
from gleak.inversion.distances import cosine, sign_cosine
from gleak.pools import load_pool
from gleak.training import accuracy, trained_model

LEAKS, NOT_FOUND, CANNOT = Verdict.LEAKS, Verdict.NOT_FOUND, Verdict.CANNOT
QUICK = {"the signs": SIGNS}


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


def rows(*values, right, chance=0.4, **more):
    """Rows of one batch of images at these PSNR, so many of its labels being right."""
    frame = scores(*values)
    frame = frame.assign(grade=risk.grade(frame), batch=0, chance=chance, given=False)
    read = {} if right is None else {"right gleak": right}
    known = {f"known {name}": value for name, value in vars(risk.Known()).items()}
    return frame.assign(**read, **known, **more)


# -- one update -----------------------------------------------------------------------------------


def test_grades_are_set_by_thumbnails():
    assert risk.grade(scores(9.0, 15.0, 15.1, 20.1, 100.0)) == [0, 0, 1, 2, 2]
    flat = scores(16.0).assign(mean_colour=17.0, thumb4=15.0)  # an image of almost one colour
    assert risk.grade(flat) == [0]


def test_an_update_is_assessed_by_itself(update, batch):
    found = risk.assess(update, batch, iterations=2)
    assert found.labels["gleak"]["instance"] == 1
    assert not found.given
    assert set(found.images) == {"the study's own", "the signs", "coarse to fine"}
    best = [score.psnr for score in found.scores.itertuples()]
    each = [gleak.score(one.images, batch.images)["psnr"] for one in found.images.values()]
    assert best == pd.concat(each, axis=1).max(axis=1).tolist()
    assert found.known == risk.Known(10, 10, 2, 2, found.known.layers)
    assert "layer" in found.known.layers
    plain = risk.rows_of(found)
    assert len(plain) == 2
    assert {row["right gleak"] for row in plain} == {2}


def test_a_trained_network_gives_the_report_what_it_gives_the_chapters_attacks():
    clients = load_pool("mnist-5k", "client")
    model = trained_model("lenet", "mnist-5k", steps=300, seed=1, activation="relu")
    assert accuracy(model, clients) > 0.9  # on images that it never saw
    batch = gleak.draw_batch(clients, 4, seed=5)
    update = gleak.fedsgd(model, batch, training=False)
    found = risk.assess(update, batch, iterations=20, seed=1)
    right = max(scores["instance"] for scores in found.labels.values())
    for rule in ("gleak", "zlg-bias"):
        restored = gleak.restore_labels(update, rule)
        assert right >= gleak.score_labels(restored, batch.label_counts)["instance"] > 0.5
    alone = gleak.invert(update, batch.label_counts, "gleak", iterations=20, seed=1, progress=False)
    alone = gleak.score(alone.images, batch.images)
    assert (found.scores["psnr"].to_numpy() >= alone["psnr"].to_numpy() - 1e-6).all()
    assert all(here >= there for here, there in zip(found.grades, risk.grade(alone), strict=True))


def test_a_client_that_tells_no_lr_is_not_called_safe(batch):
    model = gleak.build_model("lenet", batch, seed=1, activation="relu")
    silent = gleak.fedavg(model, batch, epochs=2, reveal=())
    found = risk.assess(silent, batch, iterations=1)
    assert "lr" in found.not_attacked["labels"]
    assert found.given
    said = answers.answered(pd.DataFrame(risk.rows_of(found)).assign(batch=0))
    assert said["labels"].verdict is NOT_FOUND
    assert not said["labels"].attacked
    assert said["labels"].fails
    # one search does without, and the labels were given
    assert set(found.images) == {"the study's own"}
    assert "lr" in said["images"].because


def test_nothing_that_was_not_attacked_is_called_safe(update, batch):
    found = risk.assess(update, batch, iterations=1, searches={})
    assert found.scores["psnr"].isna().all()
    assert found.scores["thumb8"].notna().all()
    said = answers.answered(pd.DataFrame(risk.rows_of(found)).assign(batch=0))
    for subject in ("images", "pixels"):
        assert said[subject].verdict is NOT_FOUND
        assert said[subject].fails


def test_one_search_that_breaks_leaves_the_others_and_is_told(update, batch, monkeypatch):
    attack = risk.invert

    def breaks(update, counts, *, attack, **settings):
        if attack == "gleak":
            raise RuntimeError("derivative for x is not implemented\nsecond line")
        return invert(update, counts, attack, **settings)

    invert = attack
    monkeypatch.setattr(risk, "invert", breaks)
    found = risk.assess(update, batch, iterations=1)
    assert set(found.images) == {"the signs", "coarse to fine"}
    assert found.not_attacked == {"images": "the study's own: derivative for x is not implemented"}
    said = answers.answered(pd.DataFrame(risk.rows_of(found)).assign(batch=0))
    assert said["images"].attacked
    assert "not implemented" in said["images"].because


def test_wrong_counts_are_replaced_for_the_images_and_it_is_told(update, batch, monkeypatch):
    wrong = torch.tensor([2, *[0] * 9])
    asked = []

    def watched(update, counts, **settings):
        asked.append(counts)
        raise ValueError("enough")

    monkeypatch.setattr(risk, "restore_labels", lambda *_, **__: wrong)
    monkeypatch.setattr(risk, "invert", watched)
    found = risk.assess(update, batch, iterations=1, searches=QUICK)
    assert found.given
    assert torch.equal(asked[0], batch.label_counts)
    assert found.labels["gleak"]["instance"] == 0


def test_an_update_of_zeros_cannot_leak(update, batch):
    nothing = defences.replaced(update, {n: 0 * g for n, g in update.gradient.items()})
    found = risk.assess(nothing, batch, iterations=1)
    assert not found.not_attacked
    said = answers.answered(pd.DataFrame(risk.rows_of(found)).assign(batch=0))
    assert {answer.verdict for answer in said.values()} == {CANNOT}
    assert "all zeros" in said["images"].because


def test_equations_are_counted(update):
    assert risk.limits(update) == {}  # 15,826 numbers for 6,144 pixels
    few = defences.prune(update, 0.7)
    assert "6,144 pixel values are unknown" in risk.limits(few)["pixels"]


def test_without_the_classifier_no_class_has_a_name(update, batch):
    own = headless(update)
    assert update.gradient.keys() - own.gradient.keys() == {"1.7.weight", "1.7.bias"}
    defence = DEFENCES["classifier stays at the client"]
    found = risk.assess(
        own, batch, iterations=1, searches=defence.searches, cannot=defence.cannot(own)
    )
    assert found.given
    assert not found.labels
    assert "labels" in found.not_attacked
    assert "renaming" in found.cannot["labels"]


@pytest.mark.parametrize("effort", [{"iterations": 0}, {"iterations": 1, "starts": 0}])
def test_no_effort_is_refused(update, batch, effort):
    with pytest.raises(ValueError, match="iterations and starts must be at least 1"):
        risk.assess(update, batch, **effort)


def test_a_batch_of_another_size_is_refused(update, batch):
    other = gleak.Batch(batch.images[:1], batch.labels[:1], batch.class_names)
    with pytest.raises(ValueError, match="the update is of images"):
        risk.assess(update, other, iterations=1)


# -- defences -------------------------------------------------------------------------------------


def test_how_much_of_an_update_is_kept(update):
    assert kept(update, update) == pytest.approx(1)
    assert kept(noise(update, 1, seed=0), update) == pytest.approx(0.5**0.5, abs=0.05)
    loud = noise(update, 100, seed=0)
    assert loud.norm() == pytest.approx(100 * update.norm(), rel=0.05)
    head = {n: g for n, g in update.gradient.items() if n.startswith("1.7.")}
    share = sum(g.square().sum() for g in head.values()).item() / update.norm() ** 2
    assert kept(headless(update), update) == pytest.approx((1 - share) ** 0.5, rel=1e-4)


def test_what_is_clipped_for_privacy_does_not_depend_on_the_data(batch):
    model = gleak.build_model("lenet", batch, seed=1, activation="relu")
    sizes = {
        round(private(gleak.fedavg(model, part, lr=0.1, epochs=2), seed=0).norm(), 1)
        for part in (batch, gleak.load_batch("cifar10-samples", indices=[5, 6]))
    }
    assert len(sizes) == 1
    count = sum(p.numel() for p in model.parameters())
    assert sizes.pop() == pytest.approx(10 * 0.1 * 2 * count**0.5, rel=0.02)


def test_signs_are_compared_whatever_their_size():
    draws = torch.Generator().manual_seed(0)
    gradient, other = (torch.randn(1000, generator=draws).pow(3) for _ in range(2))
    near, twice, far = (
        sign_cosine([gradient], [sent.sign() * size]).item()
        for sent, size in ((gradient, 1), (gradient, 1e-3), (other, 1))
    )
    assert near == pytest.approx(twice, abs=1e-5)
    assert near < 0.5 * cosine([gradient], [gradient.sign()])
    assert far == pytest.approx(1, abs=0.1)


# -- answers --------------------------------------------------------------------------------------


def test_an_answer_is_one_of_three_and_has_a_reason():
    with pytest.raises(ValueError, match="needs a reason"):
        Answer(LEAKS, "")
    for verdict in (LEAKS, CANNOT):
        with pytest.raises(ValueError, match="not attacked"):
            Answer(verdict, "because", attacked=False)
    assert Answer(LEAKS, "x").fails
    assert Answer(NOT_FOUND, "x", attacked=False).fails
    assert not Answer(NOT_FOUND, "x").fails
    assert not Answer(CANNOT, "x").fails


def test_intervals_are_wilsons():
    low, high = Share(5, 10).interval  # worked by hand with z = 1.96
    assert (low, high) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert Share(0, 4).interval == pytest.approx((0, 0.4899), abs=1e-4)


def test_labels_leak_where_they_are_better_than_guesses():
    assert answers.labels_answer(rows(9, 9, 9, 9, right=3)).verdict is LEAKS
    said = answers.labels_answer(rows(9, 9, 9, 9, right=2))
    assert said.verdict is NOT_FOUND
    assert said.attacked
    assert said.stronger
    # a small step above guessing is a leak where it is certain
    many = rows(*[9] * 400, right=200)
    assert answers.labels_answer(many).verdict is LEAKS


def test_the_best_rule_is_reported_and_only_what_it_read_is_counted():
    first = rows(9, 9, right=0).assign(**{"right zlg": 2})
    second = rows(9, 9, right=None).assign(batch=1)
    rule, share = answers.best_rule(pd.concat([first, second], ignore_index=True))
    assert (rule, share) == ("zlg", Share(2, 2))


def test_one_image_is_a_leak():
    said = answers.images_answer(rows(25, 16, 9, 9, right=4))
    assert said.verdict is LEAKS
    assert "2 of 4" in said.because
    assert "1 of them better than an 8×8" in said.because
    said = answers.images_answer(rows(9, 9, right=2))
    assert said.verdict is NOT_FOUND
    assert "0 of 2 images come back better than their 4×4 thumbnail" in said.because
    assert "(95 % interval: 0 to 66 %)" in said.because
    assert answers.pixels_answer(rows(45, 9, right=2)).verdict is LEAKS


def test_a_leak_that_is_shown_outweighs_a_reason_why_not():
    impossible = {"cannot images": "a bound", "cannot labels": "a bound"}
    assert answers.images_answer(rows(25, 9, right=0, **impossible)).verdict is LEAKS
    assert answers.images_answer(rows(9, 9, right=0, **impossible)).verdict is CANNOT
    assert answers.labels_answer(rows(9, 9, right=2, **impossible)).verdict is LEAKS


def test_a_reason_has_to_hold_in_every_batch():
    one = rows(9, 9, right=0, **{"cannot images": "a bound"})
    other = rows(9, 9, right=0).assign(batch=1)
    both = pd.concat([one, other], ignore_index=True)
    assert answers.images_answer(both).verdict is NOT_FOUND


def test_no_defence_closes_anything():
    quiet, open_ = Answer(NOT_FOUND, "x"), Answer(LEAKS, "x")
    unknown, bound = Answer(NOT_FOUND, "x", attacked=False), Answer(CANNOT, "x")
    found = {
        "a": {"labels": open_, "images": quiet},
        "b": {"labels": unknown, "images": bound},
        "c": {"labels": quiet, "images": open_},
    }
    said = " ".join(answers.advice(found, {"a": 0.9, "b": 0.2, "c": 0.5}, images=8))
    assert "clos" not in said
    assert (
        "the attacks found nothing of the images in 8 images, and a stronger one may: a (0.90"
    ) in said
    assert "a reason why the images cannot leak: b" in said
    assert "the labels were not attacked, so nothing is known: b" in said
    assert "the images still leak: c" in said
