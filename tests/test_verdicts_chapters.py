"""Each chapter's verdict falls every way: frames of results in, grades out."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import gleak
from gleak.study import chapters, recorded
from gleak.study.criterion import FAILS, HOLDS, MISSING, OPEN
from gleak.study.displays import (
    first_leak,
    imagenet,
    images_fedavg,
    images_fedsgd,
    ingredients,
    labels_fedavg,
    labels_fedsgd,
    labels_trained,
    same_label,
    trained,
    training_stage,
    transformers,
    wrong_label,
)

DISPLAYS = (
    first_leak, imagenet, images_fedavg, images_fedsgd, ingredients, labels_fedavg, labels_fedsgd,
    labels_trained, same_label, trained, training_stage, transformers, wrong_label,
)  # fmt: skip
RESULTS = chapters.root() / "book" / "results"
SEEDS = range(6)
# share of labels, PSNR of images (thumbnails 20 dB, flat 14 dB), networks -> grade
OUTCOMES = [(0.99, 25.0, 6, HOLDS), (0.5, 16.0, 6, FAILS), (0.99, 25.0, 3, OPEN)]


@pytest.fixture
def said(monkeypatch):
    """Claims and rows of the verdicts that displays pass, in their order."""
    passed = []
    for display in DISPLAYS:
        monkeypatch.setattr(display, "verdict", lambda *words: passed.append(words))
    return passed


def grades(verdict, column="paper"):
    return [found[column].grade for _, found in verdict[1]]


def label_runs(share, units=6, unit="seed", **about):
    """Runs of the rule of the paper, our own, and the rival's, each on so many units."""
    shares = {"zlg": share, "gleak": share, "gradinversion": 0.45, "even": 0.4}
    return pd.DataFrame(
        [
            {"method": method, "instance": right, "even": 0.4, "seed": 0, **about, unit: number}
            for method, right in shares.items()
            for number in range(units)
        ]
    )


def image_runs(psnr, units=6, attacks=("general", "gleak"), **about):
    """Runs of attacks, each on so many networks."""
    return pd.DataFrame(
        [
            {"attack": attack, "seed": seed, "psnr": psnr, "thumb8": 20.0, "mean_colour": 14.0}
            for attack in attacks
            for seed in range(units)
        ]
    ).assign(**about)


def test_one_gradient_is_no_evidence(said):
    batch = gleak.Batch(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 1, 2]), list("abc"))
    scores = pd.DataFrame({"psnr": [40.0] * 4, "thumb8": 20.0, "mean_colour": 14.0})
    first_leak.verdict_on_labels(batch, {"zlg": batch.label_counts}, "convnet")
    first_leak.verdict_on_images(batch, [scores], {"general": scores, "gleak": scores}, "convnet")
    assert [claims for claims, _ in said] == [[1], [2]]
    assert all(grades(verdict, "any") == [OPEN] for verdict in said)
    assert "1 gradient" in said[1][1][0][1]["any"].numbers


@pytest.mark.parametrize(("share", "_", "units", "grade"), OUTCOMES)
def test_labels_from_gradients(said, share, _, units, grade):
    grid = label_runs(share, units, network="convnet", K=64, N=10)
    labels_fedsgd.verdict_untrained(grid, grid)
    skewed = label_runs(share, units, "training", network="lenet", pool="digits", steps=40)
    with_data = skewed[skewed.method == "gleak"].assign(method="oracle", instance=1.0)
    handful = pd.DataFrame(
        [
            {"pool": "digits", "training": training, "steps": 40, "K": 4, "seed": 0, "even": 0.4,
             "zlg": share, "gleak": share, "gleak exact": 1.0}
            for training in range(units)
        ]
    )  # fmt: skip
    labels_trained.verdict_trained(pd.concat([skewed, with_data]), 64)
    labels_trained.verdict_small_batches(handful)
    assert [claims for claims, _ in said] == [[1], [1, 6], [1, 6]]
    for verdict in said:
        for column in ("paper", "any"):
            assert set(grades(verdict, column)) == {grade}
    stages = [where.stage for verdict in said for where, _ in verdict[1]]
    assert stages == ["untrained"] * 2 + ["trained"] * 2
    assert [where.batch for verdict in said[1:] for where, _ in verdict[1]] == ["many", "few"]


@pytest.mark.parametrize(
    ("share", "units", "grade"), [(0.9, 6, HOLDS), (0.42, 6, FAILS), (0.9, 3, OPEN)]
)
def test_label_distributions_against_the_rival(said, share, units, grade):
    grid = label_runs(share, units, network="convnet", K=8, N=10)
    runs = label_runs(share, units, "training", network="lenet", pool="digits", steps=40)
    labels_fedsgd.verdict_on_rivals(grid)
    labels_trained.verdict_on_rivals(runs, 64)
    labels_trained.verdict_distributions(runs, 64)
    assert [claims for claims, _ in said] == [[7], [7], [1], [7]]
    assert [grades(said[number]) for number in (0, 1, 3)] == [[grade]] * 3
    labels_trained.verdict_on_rivals(runs[runs.method == "zlg"], 64)
    assert "GradInversion was not run here" in said[4][1][0][1]["paper"].reason


@pytest.mark.parametrize(("share", "_", "units", "grade"), OUTCOMES)
def test_labels_from_weights(said, share, _, units, grade):
    runs = pd.concat(
        label_runs(share, units, "training", steps=steps, E=epochs, lr=0.01)
        for steps in (0, 40)
        for epochs in (1, 10)
    )
    deep = label_runs(share, units)
    labels_fedavg.verdict_on_counts(runs, deep, "lenet", "digits", 64)
    assert [claims for claims, _ in said] == [[1], [1, 6]]
    assert grades(said[0]) == [grade] * 3
    assert grades(said[1]) == [grade] * 2
    assert {where.update for where, _ in said[0][1]} == {"FedAvg"}


def one_gradient(psnr, *attacks):
    scores = pd.DataFrame({"psnr": [psnr], "thumb8": 20.0, "mean_colour": 14.0})
    return {attack: (SimpleNamespace(), scores) for attack in attacks}


@pytest.mark.parametrize(("_", "psnr", "units", "grade"), OUTCOMES)
def test_images_from_gradients(said, _, psnr, units, grade):
    stored = pd.concat(
        image_runs(psnr, units, case=case)
        for case in ("convnet-4", "lenet-1", "gradinversion-16-repeated", "crops-48")
    )
    one = one_gradient(psnr, "general", "gleak")
    fresh = image_runs(psnr, units, case="convnet-4")
    images_fedsgd.verdict_on_images(stored, fresh, "convnet", one)
    assert said[0][0] == [2]
    for column in ("paper", "any"):
        assert grades(said[0], column) == [grade] * 5 + [OPEN]  # the page has one gradient
    found = [(where.batch, where.more) for where, _ in said[0][1][:4]]
    assert ("few", "on the LeNet with sigmoids") in found
    assert ("many", "on the convnet") in found
    assert ("many", "on the convnet with repeated labels") in found


def rivals(ours, theirs, units=6, case="gradinversion-8"):
    general = image_runs(ours, units, ("general", "gleak"), case=case)
    return pd.concat([general, image_runs(theirs, units, ("gradinversion",), case=case)])


@pytest.mark.parametrize(
    ("ours", "theirs", "units", "grade", "reason"),
    [
        (25, 22, 6, OPEN, f"GradInversion ran without {MISSING[0]}"),
        (22, 25, 6, FAILS, "behind GradInversion"),
        (18, 15, 6, OPEN, "neither method is above the thumbnails"),
        (25, 22, 3, OPEN, "only 3 networks were measured"),
    ],
)
def test_images_against_the_rival(said, ours, theirs, units, grade, reason):
    stored = pd.concat([rivals(ours, theirs, units), image_runs(30, case="convnet-1")])
    images_fedsgd.verdict_on_rivals(stored, rivals(ours, theirs, units, case="cifar10-8"))
    photos = rivals(ours, theirs, units, case="resnet18-eval-8").set_index(["case", "attack"])
    imagenet.verdict_on_rivals(photos)
    for verdict in said:
        assert verdict[0] == [7]
        assert set(grades(verdict)) == {grade}
        assert all(reason in found["paper"].reason for _, found in verdict[1])
    assert [where.pixels for where, _ in said[1][1]] == ["large"]


def test_a_whole_rival_that_is_beaten(said, monkeypatch):
    monkeypatch.setattr("gleak.study.criterion.MISSING", ())
    found = images_fedsgd.criterion.rival_columns(rivals(25, 22), ["seed"], "general", missing=())
    assert found["paper"].grade == found["any"].grade == HOLDS


@pytest.mark.parametrize(("share", "psnr", "units", "grade"), OUTCOMES)
def test_photographs(said, share, psnr, units, grade):
    read = pd.concat(
        label_runs(share, units, model=model) for model in ("resnet18", "efficientnet-lite0")
    )
    imagenet.verdict_on_labels(read, "efficientnet-lite0", 16, 112)
    assert [verdict[0] for verdict in said] == [[1], [1, 6]]
    assert [grades(verdict) for verdict in said] == [[grade]] * 2
    card = image_runs(psnr, units, case="resnet50-eval-8").set_index(["case", "attack"])
    runs = one_gradient(psnr, "gleak", "general")
    imagenet.verdict_on_images(
        runs, {"eval mode": runs["gleak"]}, "net", card,
        model="convnet", sides=(64, 112),
    )  # fmt: skip
    assert grades(said[2]) == [OPEN, OPEN, grade]
    assert said[3][0] == [2, 6]
    assert grades(said[3], "any") == [OPEN]


@pytest.mark.parametrize(("_", "psnr", "units", "grade"), OUTCOMES)
def test_a_photograph_in_a_transformer(said, _, psnr, units, grade):
    transformers.verdict_on_images(image_runs(psnr, units, ("gleak",)), 224)
    assert said[0][0] == [2]
    assert grades(said[0], "any") == [grade]
    assert grades(said[0]) == [OPEN]  # the paper's attack was not run


def weights_runs(psnr, units, steps, cosine, images):
    about = {"network": "convnet", "steps": steps, "K": images, "labels": "given"}
    about |= {"B": 4, "E": 1, "lr": 0.1}
    return image_runs(psnr, units, ("equivalent", "gleak"), cosine=cosine, **about)


@pytest.mark.parametrize(("_", "psnr", "units", "grade"), OUTCOMES)
def test_images_from_weights(said, _, psnr, units, grade):
    stored = pd.concat(
        weights_runs(psnr, units, steps, cosine, images)
        for steps, images in ((0, 4), (0, 50), (40, 4))
        for cosine in (0.99, 0.1)
    )
    images_fedavg.verdict_on_weights(stored)
    assert [verdict[0] for verdict in said] == [[3], [3, 6]]
    assert grades(said[0]) == grades(said[0], "any") == [grade] * 4
    assert grades(said[1]) == [grade] * 2
    assert "many" in {where.batch for where, _ in said[0][1]}


def way_runs(attack, psnr, units, epochs=1):
    return image_runs(psnr, units, (attack,), B=4, E=epochs, lr=0.1)


def test_ways_of_training_that_ran_with_fewer_networks_do_not_count():
    attacks = [way_runs("equivalent", 25.0, 6), way_runs("gleak", 25.0, 6)]
    fewer = way_runs("equivalent", 5.0, 3, epochs=16)
    assert set(images_fedavg.of_most_seeds(pd.concat([*attacks, fewer])).E) == {1}


@pytest.mark.parametrize(("psnr", "networks"), [(16.0, 6), (22.0, 3)])
def test_a_stronger_attack_on_fewer_networks_is_not_left_out(psnr, networks):
    runs = pd.concat([way_runs("equivalent", 16.0, 6), way_runs("gleak", psnr, 3)])
    kept = images_fedavg.of_most_seeds(runs)
    assert kept.seed.nunique() == networks
    assert kept.attack.nunique() == (2 if networks == 3 else 1)


@pytest.mark.parametrize(
    ("right", "wrong", "units", "grade"),
    [(25, 12, 6, HOLDS), (25, 24, 6, FAILS), (15, 12, 6, OPEN), (25, 12, 3, OPEN)],
)
def test_wrong_labels(said, monkeypatch, right, wrong, units, grade):
    bars = pd.Series(20.0, index=range(4))
    monkeypatch.setattr(wrong_label, "thumbnails", lambda *batch: bars)
    rows = pd.DataFrame(
        [
            {"network": "convnet", "attack": attack, "images": 4, "wrong": way, "seed": seed,
             "image": image, "touched": way == "absent" and image == 1, "flat": 14.0,
             "psnr": right if way == "right" else 0.0 if image == 1 else wrong, "lr": lr}
            for attack, rates in (("L2", [0.0]), ("gleak", [0.0]), ("local steps", [0.1, 0.01]))
            for lr in rates
            for way in ("right", "absent")
            for seed in range(units)
            for image in range(4)
        ]
    )  # fmt: skip
    here = rows[rows.attack != "local steps"].assign(kind="distinct").drop(columns="images")
    rows.loc[rows.attack == "L2", "psnr"] = 15.0  # the page searched longer
    other = rows[rows.wrong == "absent"].assign(wrong="count", psnr=30.0)  # not judged
    wrong_label.verdict_on_wrong_labels(here, pd.concat([rows, other]), "cifar10-samples", 4)
    wrong_label.verdict_on_more(here, "cifar10-samples", 4, 8)
    verdict, more = said
    assert grades(more) == [grade]
    assert verdict[0] == [4]
    assert grades(verdict) == [grade, OPEN]  # local steps: not by the paper's attack
    assert grades(verdict, "any") == [grade] * 2


def test_the_attack_that_a_wrong_label_harms_least_stands_for_any(said, monkeypatch):
    bars = pd.Series(20.0, index=range(2))
    monkeypatch.setattr(wrong_label, "thumbnails", lambda *batch: bars)
    rows = pd.DataFrame(
        [
            {"network": "convnet", "attack": attack, "images": 4, "wrong": way, "seed": seed,
             "image": 0, "touched": False, "psnr": psnr}
            for attack, after in (("L2", 12.0), ("gleak", 24.0))
            for way, psnr in (("right", 25.0), ("absent", after))
            for seed in SEEDS
        ]
    )  # fmt: skip
    found = wrong_label.case_rows(
        rows.assign(kind="distinct", fresh=True), "cifar10-samples", "here"
    )
    assert (found[0][1]["paper"].grade, found[0][1]["any"].grade) == (HOLDS, FAILS)


def test_an_attack_that_brings_nothing_back_does_not_stand_for_any():
    keys = {"kind": "distinct", "network": "convnet", "images": 2}
    after = {"L2": (19.0, 16.0), "gleak": (25.0, 12.0)}
    runs = pd.DataFrame(
        [
            {**keys, "attack": attack, "seed": seed, "right": right, "wrong": wrong}
            for attack, (right, wrong) in after.items()
            for seed in SEEDS
        ]
    ).assign(thumbnail=20.0)
    found = wrong_label.spoilt_columns(runs.set_index([*keys, "attack", "seed"]))
    assert (found["any"].method, found["any"].grade) == ("gleak", HOLDS)
    assert (found["paper"].method, found["paper"].grade) == ("L2", OPEN)


def test_thumbnails_are_those_of_the_batch():
    found = wrong_label.thumbnails("cifar10-samples", 4)
    assert list(found.index) == [0, 1, 2, 3]
    assert 15 < found.mean() < 25


@pytest.mark.parametrize(
    ("equal", "units", "grade"), [(0.1, 6, HOLDS), (0.7, 6, FAILS), (0.1, 3, OPEN)]
)
def test_equal_labels(said, equal, units, grade):
    frame = pd.DataFrame(
        [
            {"case": case, "labels": labels, "seed": seed, "mean restored": 22.0,
             "mean image": 14.0, "differences": left}
            for case in ("L2", same_label.CLOSED_FORM, "batch norm, train", "local steps")
            for labels, left in (("distinct", 0.8), ("equal", equal))
            for seed in range(units)
        ]
        + [{"case": "group consistency", "labels": "equal", "seed": 0, "differences": 0.5}]
    )  # fmt: skip
    same_label.verdict_on_fusion(frame, "convnet", "cifar10-samples", 4)
    (verdict,) = said
    assert verdict[0] == [5]
    assert grades(verdict) == [grade, OPEN, OPEN]
    assert grades(verdict, "any") == [grade] * 3
    assert same_label.fusion(frame, "group consistency") is None


@pytest.mark.parametrize(("share", "psnr", "units", "grade"), OUTCOMES)
def test_stages_of_training(said, share, psnr, units, grade):
    frame = pd.concat(
        image_runs(psnr, units, pool="digits", step=step, kind=kind)
        for step, kind in ((0, "all"), (240, "all"), (240, "wrong"))
    ).rename(columns={"seed": "training"})
    training_stage.verdict_on_images(frame, "lenet", 2)
    labels = pd.concat(
        label_runs(share, units, "training", pool="digits", step=step, sent=sent)
        for step in (0, 240)
        for sent in ("gradient", "weights")
    )
    training_stage.verdict_on_labels(labels, "lenet", 32)
    images, named = said
    assert (images[0], named[0]) == ([2, 6], [1, 6])
    assert grades(images) == grades(images, "any") == [grade] * 3
    assert grades(named) == [grade] * 4
    assert [where.stage for where, _ in named[1]] == ["untrained"] * 2 + ["trained"] * 2
    assert [where.update for where, _ in named[1]] == ["FedSGD", "FedAvg"] * 2


@pytest.mark.parametrize(("_", "psnr", "units", "grade"), OUTCOMES)
def test_recorded_networks_with_batch_norm(said, _, psnr, units, grade):
    runs = image_runs(psnr, units, ["gleak"], format="float32", K=4, accuracy=0.96)
    paper = runs.assign(attack="general", psnr=psnr - 8, mode="eval")
    stored = pd.concat([*(runs.assign(mode=mode) for mode in ("eval", "train")), paper])
    trained.verdict_on_trained(stored)
    (verdict,) = said
    assert verdict[0] == [2, 6]
    assert grades(verdict, "any") == [grade] * 2
    assert grades(verdict) == [FAILS if units >= 5 else OPEN, OPEN]  # the paper's, in eval mode
    assert [where.stage for where, _ in verdict[1]] == ["trained"] * 2
    told = trained.numbers(stored)
    assert (told["deep_networks"], told["deep_train_float32_4"]) == (units, psnr)
    assert list(trained.claims(stored).values()) == [True, psnr > 20, True]
    assert not list(trained.claims(stored.assign(psnr=21.0)).values())[-1]


@pytest.mark.parametrize(("_", "psnr", "units", "grade"), OUTCOMES)
def test_the_base_of_the_ingredients(said, _, psnr, units, grade):
    runs = image_runs(psnr, units, change="base")
    other = image_runs(99.0, units, change="no clip")  # only the base is judged
    ingredients.verdict_on_images(pd.concat([runs, other]))
    assert said[0][0] == [2]
    assert grades(said[0]) == grades(said[0], "any") == [grade]


def test_the_recorded_tables_are_judged(said):
    stored = recorded.read(RESULTS / "04_images_fedsgd.csv")
    images_fedsgd.verdict_on_rivals(stored, recorded.read(RESULTS / "gpu.csv"))
    weights = images_fedavg.whole_batches(recorded.read(RESULTS / "06_images_fedavg.csv"))
    rows = images_fedavg.recorded_rows(weights)
    assert any("50 images" in where.words for _, (where, _) in rows)
    grid = recorded.read(RESULTS / "02_labels_untrained.csv")
    assert len(list(labels_fedsgd.untrained_rows(grid, "recorded"))) == 2 * grid.network.nunique()
    wrong = recorded.read(RESULTS / "07_wrong_label.csv").assign(kind="distinct", fresh=False)
    found = wrong_label.case_rows(wrong, "cifar10-samples", "recorded")
    assert {where.update for where, _ in found} == {"FedSGD", "FedAvg"}
    assert (ingredients.bases(recorded.read(RESULTS / "10_ingredients.csv")).psnr > 0).all()
