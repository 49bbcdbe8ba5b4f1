"""Experiments on wrong labels, equal labels and training: tiny ones, checked by hand or by law."""

import math

import pandas as pd
import pytest
import torch
from torch import nn

import gleak
from gleak.inversion import DISTANCES, simulate
from gleak.study import chapters
from gleak.study import recorded as study_recorded
from gleak.study.displays.training_stage import image_numbers, label_numbers
from gleak.study.experiments import same_label, training_stage, wrong_label
from gleak.study.experiments.ablation import family, untrained
from gleak.study.experiments.networks import batch_seed, trained_network
from gleak.study.runner import run_grid

SAMPLES = "cifar10-samples"
WIDTH = 4
RECORDED_SEEDS = 5


@pytest.fixture(scope="module")
def four():
    """Four sample images of as many classes."""
    return wrong_label.drawn(SAMPLES, 4)


@pytest.fixture(scope="module")
def update(four):
    return gleak.fedsgd(untrained("convnet", four, seed=0, width=WIDTH), four)


@pytest.fixture(scope="module")
def equal():
    return same_label.of_one_class(SAMPLES, 4)


def all_different(settings):
    return len({tuple(setting.items()) for setting in settings}) == len(settings)


# -- what the chapters share ----------------------------------------------------------------------


def test_networks_are_those_that_their_names_say(four):
    assert family("lenet", 8) == ("lenet", {})
    narrow, wide = (untrained("convnet", four, seed=0, width=width) for width in (4, 8))
    channels = [
        next(m for m in network.modules() if isinstance(m, nn.Conv2d)).out_channels
        for network in (narrow, wide)
    ]
    assert channels[1] == 2 * channels[0]
    relu = untrained("lenet-relu", four, seed=0, width=8)
    assert any(isinstance(module, nn.ReLU) for module in relu.modules())
    assert not any(isinstance(module, nn.Sigmoid) for module in relu.modules())


# -- wrong labels ---------------------------------------------------------------------------------


def test_a_batch_of_as_many_classes_or_with_a_pair(four):
    assert len(set(four.labels.tolist())) == len(four) == 4
    pair = wrong_label.drawn(SAMPLES, 4, repeated=True)
    assert pair.labels[0] == pair.labels[1]
    assert len(set(pair.labels.tolist())) == 3
    assert not torch.equal(pair.images[0], pair.images[1])


@pytest.mark.parametrize(
    ("wrong", "touched"), [("right", 0), ("absent", 1), ("count", 1), ("two", 2)]
)
def test_labels_are_wrong_in_the_way_that_is_named(four, wrong, touched):
    labels = wrong_label.mislabelled(four, wrong)
    changed = labels != four.labels
    assert changed.sum() == touched
    present = set(four.labels.tolist())
    assert all((label in present) == (wrong == "count") for label in labels[changed].tolist())


def test_the_lowest_softmax_is_that_of_the_network_and_negative_for_a_wrong_label(four, update):
    softmax = update.forward(four.images)[1].softmax(1).mean(0)
    lowest = wrong_label.lowest_softmax(update, four.label_counts)
    assert float(lowest) == pytest.approx(float(softmax.min()), abs=1e-6)
    counts = wrong_label.counted(wrong_label.mislabelled(four, "absent"), four)
    assert wrong_label.lowest_softmax(update, counts) < 0


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_the_floor_is_nothing_for_right_labels_and_below_what_is_reached(four, update, distance):
    assert wrong_label.floor(update, four.label_counts, distance) == pytest.approx(0, abs=1e-6)
    labels = wrong_label.mislabelled(four, "absent")
    floor = wrong_label.floor(update, wrong_label.counted(labels, four), distance)
    simulated = simulate(update.model, list(update.model.parameters()), four.images, labels)
    observed = list(update.gradient.values())
    reached = DISTANCES[distance](simulated, observed)
    reached = reached / sum(g.square().sum() for g in observed) if distance == "l2" else reached
    assert 0 < floor < reached


def test_a_row_for_each_image_that_says_which_was_touched():
    common = {"dataset": SAMPLES, "size": 3, "larger_size": 5, "width": WIDTH}
    common |= {"iterations": 2, "feature_iterations": 2}
    rows = wrong_label.attacked("larger", "convnet", "L2", "absent", 0, **common)
    assert [row["touched"] for row in rows] == [False, True, False, False, False]
    assert {row["fits"] for row in rows} == {False}
    right = wrong_label.attacked("distinct", "lenet", "gleak", "right", 0, **common)
    assert [row["touched"] for row in right] == [False] * 3
    assert {row["fits"] for row in right} == {True}


def test_steps_exchanged_touch_two_images():
    about = {"dataset": SAMPLES, "model": "convnet", "width": WIDTH, "iterations": 6}
    found = {
        wrong: wrong_label.in_steps(3, 0.1, wrong, 0, **about) for wrong in ("right", "swapped")
    }
    touched = {wrong: [row["touched"] for row in rows] for wrong, rows in found.items()}
    assert touched == {"right": [False] * 3, "swapped": [True, True, False]}
    assert found["right"][0]["psnr"] != found["swapped"][0]["psnr"]


def rows_of(cases):
    """A frame of images from (wrong, touched, psnr) each, of one attack and seed."""
    about = {"kind": "distinct", "network": "convnet", "attack": "cosine", "seed": 0, "flat": 14.0}
    rows = [
        {**about, "wrong": wrong, "image": image, "touched": touched, "psnr": psnr}
        for wrong, images in cases.items()
        for image, (touched, psnr) in enumerate(images)
    ]
    return pd.DataFrame(rows)


def test_compared_sets_the_same_images_side_by_side():
    frame = rows_of(
        {
            "right": [(False, 20.0), (False, 22.0), (False, 30.0)],
            "absent": [(False, 15.0), (True, 5.0), (False, 17.0)],
        }
    )
    others = wrong_label.compared(frame, ["network"], "absent").loc["convnet"]
    assert others.to_dict() == {"right": 25.0, "wrong": 16.0, "flat": 14.0}
    touched = wrong_label.compared(frame, ["network"], "absent", touched=True).loc["convnet"]
    assert touched.to_dict() == {"right": 22.0, "wrong": 5.0, "flat": 14.0}
    means = wrong_label.means(frame).loc["distinct", "convnet", "cosine", "absent"]
    assert means["touched"] == 5
    assert means["lowest seed"] == pytest.approx(37 / 3)


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        (20, math.nan, "is told none"),
        (14.9, 14.0, "nothing to lose"),
        (20, 14.4, "all are lost"),
        (20, 18.9, "all are worse"),
        (20, 19.1, "only the touched"),
    ],
)
def test_a_case_in_words(right, wrong, words):
    assert wrong_label.reading({"right": right, "wrong": wrong, "flat": 14.0}) == words


def test_one_wrong_label_over_recorded_rows():
    rows = rows_of(
        {
            "right": [(False, 20.0), (False, 22.0)],
            "absent": [(False, 14.0), (True, 5.0)],
            "count": [(False, 14.2), (True, 5.0)],
        }
    ).assign(images=2)
    joint = rows[rows.wrong == "right"].assign(attack="joint labels")
    found = wrong_label.one_wrong(pd.concat([rows, joint]))
    assert found.words.to_dict() == {
        ("convnet", "cosine", 2): "all are lost",
        ("convnet", "joint labels", 2): "is told none",
    }
    assert found.right["convnet", "joint labels", 2] == 21
    assert len(wrong_label.at_stake(found.words)) == 1


@pytest.fixture(scope="module")
def recorded():
    return study_recorded.read(chapters.root() / "book" / "results" / "07_wrong_label.csv")


def test_the_recorded_table_has_the_runs_that_the_code_lists(recorded):
    by = ["network", "attack", "images", "wrong", "seed"]
    sizes = {"distinct": 4, "larger": 8}
    settings = wrong_label.recorded_settings(RECORDED_SEEDS)
    assert all_different(settings)
    listed = {tuple(({**s, "images": sizes[s["kind"]]})[name] for name in by) for s in settings}
    steps = recorded.attack == "local steps"
    assert set(recorded[~steps][by].itertuples(index=False, name=None)) == listed
    listed = {tuple(s.values()) for s in wrong_label.step_settings([4, 8], RECORDED_SEEDS)}
    in_steps = recorded[steps][["images", "lr", "wrong", "seed"]]
    assert set(in_steps.itertuples(index=False, name=None)) == listed


def test_rows_are_recorded_with_the_columns_of_the_table(recorded):
    rows = rows_of({"right": [(False, 20.123)]})
    in_steps = pd.DataFrame([{"images": 2, "lr": 0.1, "wrong": "right", "seed": 0, "psnr": 1.0}])
    in_steps = in_steps.assign(image=0, touched=False, flat=2.0)
    table = wrong_label.recorded_table(rows, in_steps, "convnet", 4, 8)
    assert list(table.columns) == list(recorded.columns)
    assert table.images.tolist() == [4, 2]
    assert table.psnr.tolist() == [20.12, 1.0]
    assert table.attack.tolist() == ["cosine", "local steps"]


def test_more_wrong_labels_have_the_right_ones_to_compare_with():
    settings = pd.DataFrame(wrong_label.more_settings("convnet", 2))
    told = settings[settings.attack != "joint labels"]
    right = told[told.wrong == "right"].groupby(["kind", "network", "attack"]).seed.nunique()
    assert (right == 2).all()
    assert right.index.equals(told.groupby(["kind", "network", "attack"]).size().index)


def test_the_pull_vanishes_at_the_clients_images_with_right_labels_alone(four, update):
    labels = wrong_label.mislabelled(four, "absent")
    others = labels == four.labels
    at_rest = wrong_label.pull(update, four.images, four.labels)
    pulled = wrong_label.pull(update, four.images, labels)
    assert pulled.shape == (4,)
    assert at_rest.max() < 1e-3 * pulled[others].min()
    alone = wrong_label.pull(update, four.images, labels, last=True)
    assert alone[others].mean() < 0.2 * alone[~others].mean()
    right, wrong = wrong_label.pulls(update, four, labels, "l2")
    assert right.shape == (len(wrong_label.NOISE),)
    assert wrong.shape == (len(wrong_label.NOISE), 4)
    assert right[0] < right[-1]
    assert wrong_label.pull_on_lenet(four, labels, "relu") > 0


def test_a_search_from_the_goal_stays_with_right_labels_only(four, update):
    labels = wrong_label.mislabelled(four, "absent")
    near = wrong_label.from_the_goal(update, four, labels, iterations=10)
    assert near["right"] > near["wrong"]
    assert near["start"] > 20


def test_the_order_matters_in_proportion_to_the_rate_and_a_wrong_label_does_not(four, update):
    effect = wrong_label.order_effect(update.model, four, wrong_label.mislabelled(four, "absent"))
    assert effect["two steps exchanged"].is_monotonic_increasing
    assert effect["two steps exchanged"][0.1] > 3 * effect["two steps exchanged"][0.01]
    assert effect["one label wrong"].max() < 1.5 * effect["one label wrong"].min()


def test_what_exchanged_steps_cost_the_two_images_and_the_others():
    rows = rows_of(
        {"right": [(False, 20.0), (False, 21.0)], "swapped": [(True, 17.0), (False, 20.5)]}
    ).assign(images=2, lr=0.1)
    cost = wrong_label.exchange_costs(rows)
    assert cost[True][2, 0.1] == 3
    assert cost[False][2, 0.1] == 0.5


def test_the_tests_are_read_once_for_each_run():
    rows = rows_of({"right": [(False, 20.0)] * 2, "absent": [(True, 5.0)] * 2})
    rows["lowest softmax"] = rows.wrong.map({"right": 0.1, "absent": -0.1})
    rows["fits"] = rows.wrong == "right"
    rows["reached"] = 0.5
    tests = wrong_label.tested(pd.concat([rows, rows.assign(attack="gleak")]))
    assert tests["softmax test"].tolist() == tests["closed form"].tolist() == [True, False] * 2
    assert tests.reached.isna().tolist() == [False, False, True, True]


def test_labels_of_an_untrained_network_are_repaired():
    rows = wrong_label.repaired("digits", 0, size=3, batches=2)
    assert [row["outcome"] for row in rows] == ["exact"] * 2
    assert all(row["labels left open"] >= 0 for row in rows)
    assert all(row["classes possible"] >= row["classes present"] for row in rows)
    stages = pd.DataFrame(rows).assign(steps=[0, 0])
    stages.loc[1, "outcome"] = "no answer"
    means = wrong_label.repair_means(stages).loc[0]
    assert (means["exact"], means["wrong"], means["no answer"]) == (0.5, 0.0, 0.5)


# -- equal labels ---------------------------------------------------------------------------------


def test_images_of_one_class_with_labels_in_a_pattern(equal):
    assert len(set(equal.labels.tolist())) == 1
    counts = {
        pattern: sorted(same_label.relabelled(equal, pattern).labels.bincount().tolist())[::-1]
        for pattern in same_label.PATTERNS
    }
    repeated = {pattern: [n for n in found if n] for pattern, found in counts.items()}
    assert repeated == {
        "distinct": [1, 1, 1, 1],
        "2 + 1 + 1": [2, 1, 1],
        "3 + 1": [3, 1],
        "2 + 2": [2, 2],
        "equal": [4],
    }
    assert torch.equal(same_label.relabelled(equal, "2 + 2").images, equal.images)


def test_correlation():
    a = torch.tensor([0.0, 1.0, 2.0])
    assert same_label.correlation(a, 3 * a + 1) == pytest.approx(1)
    assert same_label.correlation(a, -a) == pytest.approx(-1)
    assert same_label.correlation(a, torch.ones(3)) == 0


def test_parts_tell_a_fusion_from_the_images(equal):
    images = equal.images
    whole = same_label.parts(images.flip(0), images)
    assert whole["differences"] == pytest.approx(1, abs=1e-5)
    assert whole["spread"] == pytest.approx(1, abs=1e-5)
    fused = same_label.parts(images.mean(0, keepdim=True).expand_as(images), images)
    assert fused["differences"] == pytest.approx(0, abs=1e-3)
    assert fused["likeness"] == pytest.approx(1, abs=1e-5)
    assert fused["psnr"] == pytest.approx(float(fused["mean image"]))


def test_what_the_client_sends_in_each_case(equal):
    network = untrained("convnet", equal, seed=0, width=WIDTH)
    alone = same_label.sent("classifier only", network, equal)
    assert {key.rpartition(".")[0] for key in alone.gradient} == {alone.classifier.name}
    assert same_label.sent("local steps", network, equal).local_steps == 2
    assert same_label.sent("batch norm, train", network, equal).model.training
    assert not same_label.sent("batch norm, eval", network, equal).model.training
    norm = same_label.with_batch_norm(network)
    kinds = [type(module) for module in norm.modules()]
    assert kinds.count(nn.BatchNorm2d) == kinds.count(nn.Conv2d) > 0


def test_starts_apart_have_gray_as_their_mean_and_a_seed(equal):
    first, again, other = (same_label.apart(equal.images, seed) for seed in (0, 0, 1))
    assert first.shape == equal.images.shape
    assert first.mean() == pytest.approx(0.5, abs=0.01)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("case", ["matching", "group consistency", "starts apart", "L2"])
def test_how_much_is_fused(case):
    common = {"dataset": SAMPLES, "model": "convnet", "size": 2, "width": WIDTH}
    row = same_label.fused(case, "equal", 0, **common, iterations=2, feature_iterations=2)
    assert float(row["psnr"]) > 5
    assert -1 <= row["differences"] <= 1


def test_cases_of_equal_labels_are_listed_once_and_batch_norm_on_the_convnet_alone():
    assert all_different(same_label.settings("convnet", 3))
    settings = same_label.remedy_settings("convnet", 3, 2)
    assert all_different(settings)
    others = same_label.remedy_settings("lenet", 3, 2)
    left_out = {s["case"] for s in settings} - {s["case"] for s in others}
    assert left_out == {"batch norm, train", "batch norm, eval"}


def test_slopes_agree_at_the_classifier_if_labels_do(equal):
    network = untrained("convnet", equal, seed=0, width=WIDTH)
    cosines = same_label.slopes(network, equal)
    assert cosines[-1] > 0.99
    assert max(same_label.slopes(network, same_label.relabelled(equal, "distinct"))) < 0.5
    assert len(same_label.slopes(network, equal)) == len(cosines)  # no hook is left behind


def test_digits_that_tell_images_apart():
    settings = [
        {"network": network, "labels": "equal", "sent": sent, "seed": 0}
        for network in ("convnet", "lenet")
        for sent in same_label.SENT
    ]
    common = {"dataset": SAMPLES, "size": 2, "width": WIDTH}
    digits = pd.DataFrame([{**s, **same_label.separated(**s, **common)} for s in settings])
    digits = digits.astype({"worst": float, "best": float, "mean feature": float})
    errors = same_label.digit_errors(digits, "worst")
    assert list(errors.columns[:4]) == list(same_label.SENT)
    assert (errors["float64"] < errors["float32"]).all()
    assert errors["float32"].max() < 0.1
    assert errors["bfloat16"]["convnet", "equal"] == 1
    assert (same_label.digit_errors(digits, "best")["float64"] <= errors["float64"]).all()


# -- the stage of training ------------------------------------------------------------------------


class Knows(nn.Module):
    """Names the class 1 for whatever it is shown."""

    def forward(self, images):
        return torch.tensor([0.0, 1.0, 0.0]).expand(len(images), 3)


@pytest.fixture
def pool():
    """Six random images of labels 0 and 1, and a seventh without contrast."""
    images = torch.rand(7, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images[6] = 0.5
    return gleak.Batch(images, torch.tensor([0, 0, 1, 1, 1, 1, 1]), ["a", "b", "c"])


def test_images_are_drawn_of_those_that_the_network_names_right_or_wrong(pool):
    labels = {
        kind: training_stage.drawn(pool, Knows(), kind, 7, seed=0).labels.tolist()
        for kind in ("all", "right", "wrong")
    }
    assert labels["right"] == [1] * 4
    assert labels["wrong"] == [0] * 2
    assert sorted(labels["all"]) == [0, 0, 1, 1, 1, 1]
    ones = gleak.Batch(pool.images[2:], pool.labels[2:], pool.class_names)
    assert training_stage.drawn(ones, Knows(), "wrong", 2, seed=0) is None


def test_how_sure_a_network_is_of_an_image(pool):
    (known,) = training_stage.certainty(
        Knows(), gleak.Batch(pool.images[2:3], pool.labels[2:3], pool.class_names)
    )
    own = math.e / (math.e + 2)
    rest = (1 - own) / 2
    assert float(known["own softmax"]) == pytest.approx(own)
    assert float(known["loss"]) == pytest.approx(-math.log(own))
    entropy = -own * math.log(own) - 2 * rest * math.log(rest)
    assert float(known["entropy"]) == pytest.approx(entropy)


def test_shares_of_the_gradient_are_whole_together(pool, two_layers):
    batch = gleak.Batch(pool.images[:3], pool.labels[:3], pool.class_names)
    shares = training_stage.gradient_shares(two_layers, batch)
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0
    twice = gleak.Batch(pool.images[[0, 0]], pool.labels[[0, 0]], pool.class_names)
    assert training_stage.gradient_shares(two_layers, twice) == pytest.approx([0.5, 0.5])


def test_a_stage_has_a_row_for_each_image_and_attack():
    common = {"model": "lenet", "width": WIDTH, "size": 2, "iterations": 2, "own_iterations": 2}
    settings = training_stage.settings(["digits"], 2, [0])
    assert [s["kind"] for s in settings] == ["all"] * 2 + ["right", "wrong"] * 2
    frame = run_grid(training_stage.attacked, settings[:2], common=common)
    assert len(frame) == 2 * 2 * 2  # networks, attacks, images
    assert set(frame.attack) == {"general", "gleak"}
    assert (frame.gain == frame.psnr - frame.mean_colour).all()
    assert frame.groupby(["training", "attack"]).share.sum().tolist() == pytest.approx([1] * 4)
    table = training_stage.stage_means(frame)
    own = frame[frame.attack == "gleak"]
    assert table.gleak[0] == pytest.approx(own.psnr.mean())
    assert table.thumb8[0] == pytest.approx(own.thumb8.mean())
    told = image_numbers(frame)
    assert told["networks"] == 2
    assert told["gleak_first"] == told["gleak_last"] == pytest.approx(own.psnr.mean())


def test_networks_of_a_cell_have_weights_and_batches_of_their_own():
    first, second = (trained_network("lenet", "digits", 1, training) for training in (0, 1))
    assert trained_network("lenet", "digits", 1, 0) is first
    assert not torch.equal(next(first.parameters()), next(second.parameters()))
    assert len({batch_seed(training, number) for training in range(9) for number in range(9)}) == 81


def test_features_are_what_enters_the_last_layer(two_layers, tiny):
    found = training_stage.features(two_layers, tiny.images)
    assert torch.allclose(two_layers[3](found), two_layers(tiny.images))


def test_labels_at_a_stage():
    common = {"model": "lenet", "width": WIDTH, "size": 8, "inputs": 20}
    labels = pd.DataFrame(training_stage.labelled("digits", 0, 0, **common))
    assert set(labels.sent) == {"gradient", "weights"}
    shares = labels[labels.sent == "gradient"].set_index("method").instance
    assert shares["gleak"] > shares["even"] == labels.even.iloc[0]
    told = label_numbers(labels.assign(step=0))
    assert told["gleak_labels_first"] == told["gleak_labels_last"] == shares["gleak"]
