"""What the chapters on images compute and show, on settings that take moments."""

import runpy
import sys
from dataclasses import replace
from math import isnan
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import gleak
from gleak.inversion import peel
from gleak.metrics import psnr
from gleak.study import chapters, recorded
from gleak.study.displays import (
    imagenet as imagenet_display,
)
from gleak.study.displays import (
    images_fedavg as fedavg_display,
)
from gleak.study.displays import (
    images_fedsgd as fedsgd_display,
)
from gleak.study.displays import (
    ingredients as ingredients_display,
)
from gleak.study.experiments import imagenet, images_fedavg, images_fedsgd, ingredients, searches
from gleak.study.experiments.common import fresh_seeds

ONE = {"dataset": "cifar10-samples", "indices": [0]}
FOUR = {"dataset": "cifar10-samples", "indices": [0, 1, 3, 4]}
RESULTS = chapters.root() / "book" / "results"


# What several chapters share.


def test_samples_by_number_or_so_many_of_a_pool():
    assert len(set(searches.samples("cifar10", searches.DISTINCT).labels.tolist())) == 8
    assert len(set(searches.samples("cifar100", searches.SIXTEEN).labels.tolist())) == 16
    assert searches.samples("cifar10", [0, 1], image_size=16).images.shape == (2, 3, 16, 16)
    assert len(searches.samples("digits", 3)) == 3


def test_one_of_each_class():
    assert searches.one_of_each_class("digits", 4).labels.tolist() == [0, 1, 2, 3]


def test_one_wrong(tiny):
    assert tiny.label_counts.tolist() == [1, 0, 2]
    assert searches.one_wrong(tiny).tolist() == [1, 1, 1]


# From gradients.


def test_noise_moves_a_smooth_gradient_in_proportion():
    moved = [
        images_fedsgd.gradient_moved(**ONE, model="lenet", noise=noise, seed=1)["change"]
        for noise in (0, 1e-3, 1e-2)
    ]
    assert moved[0] < 1e-6
    assert moved[2] / moved[1] == pytest.approx(10, rel=0.2)


def test_peeled_error(batch):
    peeled = peel(searches.sent("lenet", batch, 1), batch.label_counts)
    assert images_fedsgd.peeled_error(peeled, batch) < 1e-3
    off = replace(peeled, activations=1.5 * peeled.activations)
    assert images_fedsgd.peeled_error(off, batch) == pytest.approx(0.5, abs=1e-3)
    assert isnan(images_fedsgd.peeled_error(None, batch))


def test_twins_come_apart():
    row = images_fedsgd.twins("cifar10-samples", [0, 1, 2, 3], "convnet", seed=1)
    assert 0 < row["likeness"] < 1e-3
    assert row["error"] < 1e-3


def test_operations_are_counted_and_grow_by_the_iteration(tiny, two_layers):
    with images_fedsgd.Counter() as counter:
        torch.ones(2, 3) @ torch.ones(3, 4)
    assert counter.total == 2 * 2 * 3 * 4
    update = gleak.fedsgd(two_layers, tiny)
    asked = (update, tiny.label_counts, "inverting-gradients")
    few, more, most = (images_fedsgd.operations(*asked, count) for count in (8, 16, 32))
    assert few > 8 * 2 * 3 * (16 * 5 + 5 * 3)  # more than a forward pass each
    assert most - more == pytest.approx(2 * (more - few))


def test_the_difference_saves_two_of_seven_convolutions():
    batch = gleak.load_batch(**ONE)
    saved = images_fedsgd.saved_operations(searches.sent("convnet", batch, 1), batch.label_counts)
    assert saved == pytest.approx(2 / 7, abs=0.05)


def test_the_difference_is_the_derivative_where_pieces_are_held():
    row = images_fedsgd.difference_error(**ONE, model="convnet", seed=1)
    assert row["pieces held"] < 0.03
    assert row["units free"] > 10 * row["pieces held"]


def test_equations_of_the_lenet_by_hand(batch):
    counted = images_fedsgd.lenet_equations(searches.sent("lenet", batch, 1))
    assert counted["equations"] == (12 * 75 + 12) + (12 * 300 + 12) + 4 * 12 * 8 * 8
    assert counted["unknowns"] == 4 * 3 * 32 * 32


# A thousand classes.


def test_labels_read_by_each_method():
    rows = imagenet.labels_read("cifar10-samples", 4, 32, "convnet", inputs=8, seed=1)
    frame = pd.DataFrame(rows).set_index("method")
    assert list(frame.index) == list(imagenet.METHODS)
    assert frame.instance["gleak"] == 1
    assert (frame.chance < 1).all()


# From weights.


def test_update_models_on_the_true_images():
    row = images_fedavg.fit(**ONE, model="lenet", lr=0.1, local_epochs=1)
    assert row["equivalent"] < 0.01
    row = images_fedavg.fit(**ONE, model="lenet", lr=0.5, local_epochs=6)
    assert row["unrolled"] < row["middle"] < row["equivalent"]


def test_a_client_trains_as_by_the_function_itself(batch):
    network = gleak.build_model("lenet", batch)
    ours = images_fedavg.trained_by(network, batch, [2, 0, 0.1], shuffle_seed=0).weights_after
    plain = gleak.fedavg(network, batch, epochs=2, lr=0.1).weights_after
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


def test_settings_of_all_ways():
    settings = images_fedavg.settings([[1, 0, 0.1], [2, 0, 0.1]], matching=3, own=5)
    frame = fedavg_display.runs(settings)
    assert frame["E, B, lr"].value_counts().to_dict() == {"1, all, 0.1": 3, "2, all, 0.1": 3}
    assert set(frame.iterations[frame.attack == "gleak"]) == {5}
    pictures = fedavg_display.pictures(frame, range(len(frame)))
    names = ["the paper's procedure", "matching in the middle", "the study's procedure"]
    assert list(pictures) == names
    assert list(pictures.values()) == [3, 4, 5]


@pytest.mark.parametrize("update_model", ["equivalent", "middle", "sme"])
def test_an_attack_on_a_way_of_training(batch, update_model):
    run = {"way": [2, 2, 0.01], "attack": "inverting-gradients", "update_model": update_model}
    row, (found, scores) = images_fedavg.attacked("lenet", batch, **run, iterations=2, seed=1)
    assert len(found.history) == 2
    assert row["psnr"] == pytest.approx(scores.psnr.mean())
    assert 0 < row["moved"] < 1


def test_one_step_is_one_gradient():
    run = {**ONE, "model": "lenet", "attack": "inverting-gradients", "iterations": 4}
    reached = {kind: images_fedavg.of_one_step(**run, kind=kind) for kind in ("FedSGD", "FedAvg")}
    assert reached["FedSGD"]["psnr"] == pytest.approx(reached["FedAvg"]["psnr"], abs=0.1)


def test_gleak_from_the_gradient_of_one_image_is_exact():
    assert images_fedavg.from_gradient(**ONE, model="lenet", iterations=5, seed=1)["psnr"] > 60


def test_what_the_attacker_knows_of_the_labels(batch):
    update = images_fedavg.trained_by(gleak.build_model("lenet", batch), batch, [1, 0, 0.1])
    given, restored, wrong = (
        images_fedavg.known_counts(update, batch, labels)
        for labels in ("given", "restored", "wrong")
    )
    assert torch.equal(given, batch.label_counts)
    assert torch.equal(restored, given)
    assert sorted((wrong - given).tolist()) == [-1, *[0] * 8, 1]


def test_other_cases():
    client = {**FOUR, "model": "lenet", "way": [1, 0, 0.1]}
    assert images_fedavg.labels_right(**client, steps=0)
    matching = {"attack": "inverting-gradients", "iterations": 10}
    given, wrong = (
        images_fedavg.other_case(labels, **matching, **client, steps=0)
        for labels in ("given", "wrong")
    )
    assert given["thumb8"] == wrong["thumb8"]
    assert given["psnr"] != wrong["psnr"]
    trained, crops = images_fedavg.other_client(**client, steps=1)
    assert crops.labels.tolist() == [0, 1, 2, 3]
    assert crops.images.shape == (4, 3, 32, 32)
    assert trained.num_samples == 4


@pytest.mark.parametrize("attack", ["middle", "sme, no lr"])
def test_a_row_of_the_recorded_table(attack):
    client = {"network": "lenet", "steps": 0, "images": 1, "epochs": 2, "batch_size": 0, "lr": 0.1}
    row = images_fedavg.recorded(
        **client, labels="restored", attack=attack, seed=1, matching=2, own=2
    )
    names = recorded.read(RESULTS / "06_images_fedavg.csv").columns
    assert list(row) == list(names[names.get_loc("moved") :])
    assert 0 < row["moved"] < 1


def test_a_scanned_rate_is_the_one_that_leads_to_the_weights(batch, monkeypatch):
    update = images_fedavg.trained_by(gleak.build_model("lenet", batch), batch, [1, 0, 0.1])

    def fake(update, counts, attack, **settings):
        assert (attack, settings["update_model"]) == ("gleak", "unrolled")
        lr = update.facts["lr"]
        history = pd.DataFrame({"distance_of_weights": [1, abs(lr - 0.2)]})
        return SimpleNamespace(images=lr, history=history)

    monkeypatch.setattr(gleak, "invert", fake, raising=False)
    asked = (update, batch.label_counts)
    assert images_fedavg.recorded_attack(*asked, "gleak", 1, matching=1, own=1) == 0.1
    assert images_fedavg.recorded_attack(*asked, "gleak, lr scanned", 1, matching=1, own=1) == 0.2


# Ingredients.


def test_changes_that_a_network_allows():
    runs = ingredients.settings("general", "convnet", seeds=2)
    assert {run["change"] for run in runs} == set(ingredients.CHANGES["general"])
    assert [run["seed"] for run in runs] == sorted(run["seed"] for run in runs)
    lenet = {run["change"] for run in ingredients.settings("gleak", "lenet", seeds=1)}
    assert lenet == set(ingredients.CHANGES["gleak"]) - {"32 channels"}


def test_the_network_is_built_as_asked(batch):
    plain = ingredients.network(batch, 1)
    assert [p.shape[0] for p in plain.parameters() if p.ndim == 4] == [64, 128, 256]
    other = ingredients.network(batch, 1, width=8, depth=3, activation="tanh", norm="train")
    kinds = [type(layer).__name__ for layer in other[1]]
    block = ["Conv2d", "BatchNorm2d", "Tanh"]
    assert kinds == [*block, "MaxPool2d", *block, "MaxPool2d", *block, "Flatten", "Linear"]
    assert other(batch.images).shape == (4, 10)
    same = ingredients.network(batch, 1)(batch.images)
    assert torch.equal(same, plain(batch.images))


@pytest.mark.parametrize(
    ("attack", "change"),
    [
        ("general", "base"),
        ("general", "2 restarts, half as long"),
        ("general", "update in bfloat16"),
        ("general", "twice as long"),
        ("gleak", "no closed form at all"),
    ],
)
def test_one_change_is_run(attack, change):
    client = {"dataset": "cifar10-samples", "model": "lenet", "size": 1, "seed": 0}
    row = ingredients.attacked(attack, change, iterations=20, **client)
    assert set(row) == {"psnr", "mean_colour", "thumb8"}
    again = ingredients.attacked("general", "base", iterations=20, **client)
    assert (row == again) == (change == "base")


def test_images_side_by_side_are_those_of_single_runs():
    about = {"dataset": "cifar10-samples", "model": "lenet", "size": 1, "iterations": 2}
    batch, results = ingredients.side_by_side({"plain": ("general", "base")}, 2, **about)
    found, scores = results["plain"]
    assert batch.images.shape == found.images.shape == (2, 3, 32, 32)
    for row, seed in enumerate(fresh_seeds(2)):
        alone = ingredients.attacked("general", "base", seed=seed, **about)
        assert scores["psnr"][row] == pytest.approx(alone["psnr"])
        here = psnr(found.images[row : row + 1], batch.images[row : row + 1]).item()
        assert here == pytest.approx(alone["psnr"])


def test_worth_by_hand():
    runs = pd.DataFrame(
        {
            "change": ["base", "base", "32 channels", "32 channels", "cosine", "cosine"],
            "seed": [0, 1, 0, 1, 0, 1],
            "psnr": [10.0, 12.0, 13.0, 12.0, 9.0, 11.0],
        }
    )
    compared = ingredients.compared(runs, "general")
    assert compared["difference"].tolist() == [0, 0, 3, 0, -1, -1]
    worth = ingredients.worth(compared)
    assert worth.loc["client", "32 channels"].tolist() == [1.5, 0, 3, 2]
    assert worth.loc["distance", "cosine"].tolist() == [-1, -1, -1, 2]


# What is shown.


def test_a_table_comes_back_as_it_was_recorded(tmp_path):
    frame = pd.DataFrame({"case": ["a", "b"], "psnr": [12.345, 6.0]})
    file = tmp_path / "results" / "x.csv"
    recorded.write(file, frame, ["made by hand", "on paper"])
    assert recorded.provenance(file) == "# made by hand\n# on paper\n"
    assert recorded.read(file).equals(frame)


def test_roughness_shows_a_line_for_each_model():
    rows = [
        {"model": model, "noise": noise, "change": factor * noise}
        for model, factor in (("lenet", 1), ("convnet", 20), ("resnet18", 30))
        for noise in (1e-3, 1e-2)
    ]
    frame = pd.DataFrame(rows)
    assert list(fedsgd_display.by_noise(frame)) == ["lenet", "convnet", "resnet18"]
    assert fedsgd_display.roughness_numbers(frame)["rough_convnet"] == pytest.approx(2)
    assert list(fedsgd_display.roughness_claims(frame).values()) == [True, False, False]


def test_recorded_runs_from_gradients():
    stored = recorded.read(RESULTS / "04_images_fedsgd.csv")
    table = fedsgd_display.overview(stored)
    one = stored.query("case == 'convnet-4' and attack == 'gleak'")
    assert table.PSNR["convnet-4", "gleak"] == pytest.approx(one.psnr.mean())
    assert table.seeds["convnet-4", "gleak"] == len(one)
    assert all(fedsgd_display.repeated_claims(table).values())
    assert len(fedsgd_display.best_attacks(table)) == stored.case.nunique()
    assert all(fedsgd_display.recorded_claims(stored).values())
    shown = fedsgd_display.contest_table(fedsgd_display.contest(stored))
    assert list(shown.index) == ["16", "16, labels repeat", "8", "8, labels repeat"]
    numbers = fedsgd_display.contest_numbers(stored)
    assert numbers["gap_low"] == fedsgd_display.gaps(fedsgd_display.contest(stored)).min()
    assert numbers["lead_low"] <= numbers["lead_high"]


def test_the_lead_is_compared_on_images_that_no_setting_was_chosen_on():
    def runs(ours, theirs):
        pairs = [("gleak", ours), ("general", theirs)]
        return pd.DataFrame(
            [
                {"case": "convnet-4", "attack": attack, "seed": seed, "psnr": psnr, "thumb8": 20}
                for attack, reached in pairs
                for seed, psnr in enumerate(reached)
            ]
        )

    usual, fresh = runs([26, 25], [22, 22]), runs([24.0, 23.5], [22.0, 22.5])
    assert list(fedsgd_display.lead(fresh)["convnet-4"]) == [2, 1]
    numbers = fedsgd_display.fresh_numbers(usual, fresh)
    assert (numbers["lead_usual"], numbers["lead_fresh"]) == (3.5, 1.5)
    assert (numbers["lead_fresh_lowest"], numbers["lead_fresh_highest"]) == (1, 2)
    row = fedsgd_display.fresh_table(usual, fresh).loc["convnet, 4 images"]
    assert [cell.split()[0] for cell in row] == ["+3.5", "+1.5", "+3.8"]
    assert not any(fedsgd_display.fresh_claims(runs([24, 24], [24, 25])).values())


def test_recorded_runs_on_fresh_images():
    stored = recorded.read(RESULTS / "04_images_fedsgd.csv")
    fresh = recorded.read(RESULTS / "04_fresh_images.csv")
    assert not set(fresh.seed) & set(stored.seed)
    assert all(fedsgd_display.fresh_claims(fresh).values())


def test_the_card_is_shared_by_two_chapters():
    stored = recorded.read(RESULTS / "gpu.csv")
    small, photos = fedsgd_display.card(stored), imagenet_display.card(stored)
    assert len(small) + len(photos) == len(stored)
    assert all(imagenet_display.card_claims(photos).values())


def test_tabled_takes_the_seeds_that_all_attacks_ran_with():
    rows = pd.DataFrame(
        {
            "attack": ["a", "a", "b", "c"],
            "lr": 0.1,
            "seed": [1, 2, 1, 1],
            "psnr": [10.0, 20.0, 12.0, 99.0],
            "mean_colour": 5.0,
            "thumb8": 7.0,
        }
    )
    table = fedavg_display.tabled(rows, ["lr"], ["a", "b"])
    assert table.loc[0.1].to_dict() == {"flat": 5, "thumb8": 7, "seeds": 1, "a": 10, "b": 12}


def test_recorded_runs_from_weights():
    stored = fedavg_display.whole_batches(recorded.read(RESULTS / "06_images_fedavg.csv"))
    assert (stored.B >= 1).all()
    assert all(fedavg_display.recorded_claims(stored).values())


def test_other_cases_in_words():
    rows = [("given", "inverting-gradients", 0), ("wrong", "inverting-gradients", 0)]
    frame = pd.DataFrame([*rows, ("given", "gleak", 40)], columns=["labels", "attack", "steps"])
    frame = frame.assign(psnr=[17.0, 9.0, 20.0], thumb8=18.0)
    cases = fedavg_display.other_cases(frame, steps=40)
    assert cases.index[1] == ("untrained", "one wrong", "the paper's procedure")
    assert cases.index[2][0] == "trained for 40 steps"
    assert all(fedavg_display.other_claims(frame, right=True, reference=True).values())
    assert not all(fedavg_display.other_claims(frame, right=False, reference=True).values())


def test_settings_in_words_and_their_distance_to_the_thumbnails():
    rows = [
        {"case": case, "attack": attack, "seed": seed, "psnr": 20.0 + seed, "thumb8": 19.0}
        for case in ("crops-32", "convnet-8", "gradinversion-8", "lenet-1", "convnet-4-repeated")
        for attack in ("gleak", "general", "dlg")
        for seed in (1, 2, 3)
    ]
    table = fedsgd_display.small_table(pd.DataFrame(rows))
    assert list(table.index) == [
        "convnet, 4 images, labels repeat",
        "convnet, 8 images",
        "convnet, 32 crops",
        "LeNet with sigmoids, 1 image",
    ]
    assert set(table["the paper's attack (dB)"]) == {22.0}
    assert set(table["the paper's attack above the thumbnail"]) == {"+3.0 (+2.0 to +4.0)"}
    one = fedsgd_display.small_table(pd.DataFrame(rows[:1]))
    assert one["the study's attack above the thumbnail"].tolist() == ["+2.0"]
    assert one["the paper's attack above the thumbnail"].tolist() == [""]


def test_a_ranking_below_the_thumbnails_is_counted_as_one():
    rows = [
        {"case": case, "attack": attack, "seed": 1, "psnr": psnr, "thumb8": 19.0}
        for case, general, rival in (("a", 25, 20), ("b", 15, 14), ("c", 14, 15))
        for attack, psnr in (("general", general), ("gradinversion", rival))
    ]
    found = fedsgd_display.rankings(pd.DataFrame(rows))
    assert found == {"ranked": 3, "ranked_below": 2, "ranked_ahead": 1}


def test_recorded_ingredients():
    stored = recorded.read(RESULTS / "10_ingredients.csv")
    assert all(ingredients_display.claims(stored).values())
    table = ingredients_display.summary(stored)
    assert list(table.index.unique(0)) == ["the paper's attack", "the study's attack", "no leak"]
    assert {"general_no_clip", "gleak_no_places_of_maxima"} <= set(
        ingredients_display.numbers(stored)
    )


# The commands that record.


@pytest.mark.parametrize(
    ("command", "table", "rows"),
    [
        (
            "images.py --cases lenet-1 --attacks idlg general --seeds 1 --iterations 2",
            "04_images_fedsgd",
            2,
        ),
        ("fedavg.py --sweeps wrong --seeds 1 --matching 1 --own 1", "06_images_fedavg", 4),
        (
            "gpu.py --device cpu --cases cifar10-8 --attacks general --workers 1 --iterations 2",
            "gpu",
            1,
        ),
        (
            "ingredients.py --attacks general --seeds 1 --iterations 2 --model lenet",
            "10_ingredients",
            18,
        ),
    ],
)
def test_recorded_tables_are_made_and_resumed(tmp_path, monkeypatch, command, table, rows):
    monkeypatch.setenv("GLEAK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GLEAK_GRID", raising=False)
    script, *options = command.split()
    path, file = chapters.root() / "benchmarks" / script, tmp_path / "table.csv"
    monkeypatch.setattr(sys, "argv", [script, str(file), *options])
    main = runpy.run_path(str(path))["main"]
    threads = torch.get_num_threads()
    main()
    made = recorded.read(file)
    assert list(made) == list(recorded.read(RESULTS / f"{table}.csv"))
    assert len(made) == rows
    first, stored = file.read_text(), sorted((tmp_path / "cache" / "grid").iterdir())
    assert len(stored) == rows
    main()  # what is done is not done again, so that seconds are the same
    assert file.read_text() == first
    torch.set_num_threads(threads)
