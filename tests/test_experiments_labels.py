"""What the chapters on labels and defences compute, on settings that take seconds."""

import pandas as pd
import pytest
import torch
from torch import nn

import gleak
from gleak import defences
from gleak.study import chapters, recorded
from gleak.study.displays import defences as defences_display
from gleak.study.displays import first_leak as first_leak_display
from gleak.study.displays import labels_fedsgd as fedsgd_display
from gleak.study.experiments import defences as defended
from gleak.study.experiments import first_leak, labels_fedavg, labels_fedsgd, labels_trained
from gleak.study.experiments.common import clients_and_aux, counted, model_options


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Networks are trained for the test alone."""
    monkeypatch.setenv("GLEAK_CACHE", str(tmp_path))


@pytest.fixture
def sample():
    """Two MNIST images of two classes."""
    return gleak.load_batch("mnist-samples", size=2, seed=0, distinct_labels=True)


@pytest.fixture
def net(sample):
    return defended.network(sample, 0, model="lenet")


def rows_by(rows, column="method"):
    return {row[column]: row for row in rows}


def of_size(pool, size):
    return gleak.Batch(pool.images[:size], pool.labels[:size], pool.class_names)


# What they share


def test_aux_images_are_no_clients():
    pool = gleak.load_pool("digits")
    clients, aux = clients_and_aux(pool)
    assert len(aux) == 250
    assert len(clients) + len(aux) == len(pool)
    assert torch.equal(torch.cat([clients.images, aux.images]), pool.images)
    small = of_size(pool, 499)
    assert clients_and_aux(small) == (small, None)


def test_counted_leaves_out_what_refuses(tiny, two_layers):
    negative = nn.Sequential(*two_layers[:2], nn.Tanh(), two_layers[3])
    update = gleak.fedsgd(negative, tiny)
    with pytest.raises(ValueError, match="reads signs"):
        gleak.restore_labels(update, "idlg")
    found = counted(update, ["idlg", "zlg-bias"], inputs=50)
    assert list(found) == ["zlg-bias"]
    assert torch.equal(found["zlg-bias"], gleak.restore_labels(update, "zlg-bias", inputs=50))


# Chapter 01


def test_starts_image_by_image(batch):
    """Two starts whose PSNR is known; the first and third image share a class."""
    shared = gleak.Batch(batch.images[:3], torch.tensor([2, 0, 2]), ["a", "b", "c"])
    runs = [gleak.score(shared.images, shared.images).assign(psnr=p) for p in (10.0, 16.0)]
    table = first_leak.starts(shared, runs)
    assert table["class"].tolist() == ["c", "a", "c"]
    assert table["alone in its class"].tolist() == [False, True, False]
    assert table[["lowest", "PSNR (mean)", "highest"]].iloc[0].tolist() == [10, 13, 16]


def test_restarts_differ_and_are_those_of_their_seeds(sample, net):
    update, counts = gleak.fedsgd(net, sample), sample.label_counts
    first, second = first_leak.restarts(update, counts, sample, (1, 2), iterations=3)
    again = gleak.invert(update, counts, iterations=3, seed=2, progress=False)
    assert second["psnr"].tolist() == gleak.score(again.images, sample.images)["psnr"].tolist()
    assert first["psnr"].tolist() != second["psnr"].tolist()


def test_only_classes_that_anyone_sees_are_shown(tiny):
    counts = torch.tensor([1, 0, 2])
    table = first_leak_display.labels(tiny, {"right": counts, "wrong": torch.tensor([3, 0, 0])})
    assert table.columns.tolist() == ["a", "c"]
    assert table.loc["client (hidden)"].tolist() == [1, 2]
    assert table.loc["wrong"].tolist() == [3, 0]


# Chapter 02


def test_scores_have_every_method_the_guess_and_an_exact_oracle():
    pool = gleak.load_pool("digits")
    clients, aux = clients_and_aux(pool)
    net = gleak.build_model("lenet", pool, seed=0, **model_options("lenet"))
    rows = rows_by(labels_fedsgd.scores(net, of_size(clients, 8), inputs=20, aux=aux, oracle=True))
    assert set(rows) == {*gleak.list_label_methods(aux=True), "oracle", "even"}
    assert rows["oracle"]["exact"] == 1
    assert rows["even"]["instance"] == rows["gleak"]["even"] < 1
    assert len({row["width"] for row in rows.values()}) == 1  # one set of intervals


def test_augmented_moves_pixels_of_one_sample():
    """Every image is its sample, shifted by up to four pixels, perhaps flipped."""
    samples = gleak.load_batch("cifar10-samples", indices=[0, 1])
    moved = labels_fedsgd.augmented(samples, 12, seed=3)
    again = labels_fedsgd.augmented(samples, 12, seed=3)
    assert torch.equal(moved.images, again.images)
    inner = slice(8, 24)
    for image, label in zip(moved.images, moved.labels, strict=True):
        (source,) = samples.images[samples.labels == label]
        windows = [
            candidate[:, 8 + y : 24 + y, 8 + x : 24 + x]
            for candidate in (source, source.flip(2))
            for y in range(-4, 5)
            for x in range(-4, 5)
        ]
        assert any(torch.equal(image[:, inner, inner], window) for window in windows)
    assert set(moved.labels.tolist()) == set(samples.labels.tolist())


def test_settings_of_the_untrained_networks():
    datasets, networks = ["cifar10-samples", "cifar100-samples"], ["lenet", "resnet18"]
    found = pd.DataFrame(labels_fedsgd.untrained_settings(datasets, networks, [1, 8, 512], 3))
    # two data sets, three sizes, three seeds; one data set, two sizes, two seeds
    assert found.groupby("network").size().to_dict() == {"lenet": 18, "resnet18": 4}
    assert set(found[found.network == "resnet18"].K) == {1, 8}


def test_rows_of_an_untrained_network():
    shared = {"dataset": "cifar10-samples", "K": 8, "seed": 0, "inputs": 50, "width": 4}
    rows = rows_by(labels_fedsgd.untrained(network="lenet", **shared))
    assert rows["gleak"]["instance"] == 1
    assert rows["gleak"]["N"] == 10
    tanh = rows_by(labels_fedsgd.untrained(network="lenet, tanh", **shared))
    assert "idlg" in rows
    assert set(tanh) == {"zlg", "zlg-bias", "ebi", "llbg", "ilrg", "gleak", "even"}
    refused = labels_fedsgd.refusals("cifar10-samples", 0, inputs=50, width=4)
    assert {"idlg", "llg"} <= set(refused)
    assert not set(tanh) & set(refused)  # the table leaves out just what refuses


def test_rows_of_the_recorded_table_are_made_again():
    file = chapters.root() / "book" / "results" / "02_labels_untrained.csv"
    stored = recorded.read(file)
    stored = stored[(stored.network == "convnet") & (stored.K == 8) & (stored.seed == 1)]
    rows = labels_fedsgd.recorded("convnet", "cifar10-samples", 8, 1)
    assert rows == stored[stored.N == 10].drop(columns=["network", "K", "seed"]).to_dict("records")


def test_rows_of_a_trained_network():
    shared = {"pool": "digits", "training": 0, "steps": 3, "width": 4}
    found = labels_trained.trained(
        network="lenet", batches=2, size=8, alpha=0.3, inputs=20, **shared
    )
    assert {row["seed"] for row in found} == {0, 1}
    assert 0 < found[0]["test accuracy"] < 1
    oracle = [row["exact"] for row in found if row["method"] == "oracle"]
    assert oracle == [1, 1]
    assert "confusion" in rows_by(found)
    row = labels_trained.small_batches(K=2, seed=0, model="lenet", alpha=0.3, inputs=20, **shared)
    assert row["gleak"] == row["gleak exact"] == 1  # each of two images lies open
    assert row["wrongly proven"] == 0
    assert row["even"] < 1
    rows = rows_by(
        labels_trained.distributions(
            labels="one class", seed=0, model="lenet", size=8, inputs=20, **shared
        )
    )
    assert rows["even"]["instance"] < 0.2  # K / N of each class


def test_distributions_of_labels():
    clients = gleak.load_pool("digits")
    present = clients.labels.unique()
    for name in labels_trained.DISTRIBUTIONS:
        batch = labels_trained.drawn_with(name, clients, 20, seed=1)
        assert len(batch) == 20
        counts = batch.label_counts
        if name == "one dominant":
            assert counts[present[1]] >= 14
        if name == "one class":
            assert counts[present[1]] == 20
    few = of_size(clients, 30)
    alone = int(few.label_counts[few.labels.unique()[0]])
    assert len(labels_trained.drawn_with("one class", few, 20, seed=0)) == alone < 20


def test_rows_by_the_number_of_classes():
    shared = {"size": 4, "alpha": 0.3, "inputs": 20, "photo_size": 32}
    two = rows_by(labels_trained.classes(2, 0, 0, **shared))
    assert two["zlg-bias"]["instance"] == 1
    assert two["even"]["instance"] >= 0.5
    twenty = rows_by(labels_trained.classes(20, 0, 0, **shared))
    assert twenty["even"]["instance"] <= 4 / 20 + 0.2
    assert "confusion" in twenty
    assert "confusion" not in two
    numbers = [setting["N"] for setting in labels_trained.classes_settings(1, photos=True)]
    assert numbers == [2, 20, 20, 1000, 1000]
    assert {s["N"] for s in labels_trained.classes_settings(1, photos=False)} == {2, 20}


def test_cells_where_gleak_is_behind_or_reaches_its_mark():
    """By hand: gleak is exact on one network, behind by more than its spread on the other."""
    found = {("a", "gleak"): (1.0, 1.0), ("a", "zlg-bias"): (0.9, 0.9)}
    found |= {("b", "gleak"): (0.5, 0.6), ("b", "zlg-bias"): (1.0, 1.0)}
    frame = pd.DataFrame(
        [
            {
                "network": network,
                "N": 10,
                "K": 8,
                "seed": seed,
                "method": method,
                "instance": share,
                "exact": float(share == 1),
                "even": 0.4,
                "chance": 0.3,
            }
            for (network, method), shares in found.items()
            for seed, share in enumerate(shares)
        ]
    )
    assert fedsgd_display.reached(frame) == {"zlg-bias": ["b"], "gleak": ["a"]}
    assert fedsgd_display.behind(frame) == ["b, 10 classes, 8 images"]


# Chapter 03


def test_rows_of_local_training():
    """Eight images, two epochs in batches of three: six steps."""
    rows = labels_fedavg.local_training(
        0, 0, 1e-3, 2, 3, 0, dataset="digits", model="lenet", size=8, alpha=0.3, inputs=20
    )
    found = rows_by(rows)
    assert {row["s"] for row in rows} == {6}
    along = {f"zlg-bias, {place}" for place in ("start", "average", "end")}
    assert set(found) == {*labels_fedavg.METHODS, *along, *labels_fedavg.DATA_METHODS, "even"}
    assert found["gleak"]["instance"] > found["even"]["instance"]
    known = labels_fedavg.held_out(0, 0, dataset="digits", model="lenet")["test accuracy"]
    assert 0 <= known < 0.5


def test_deep_rows():
    rows = rows_by(labels_fedavg.deep(0))
    assert set(rows) == {"zlg-bias", "gleak"}
    assert rows["gleak"]["instance"] == 1


# Chapter 11


def values(update):
    return torch.cat([tensor.flatten() for tensor in update.message().values()])


def test_every_defence_changes_what_is_sent(sample, net):
    plain = values(gleak.fedsgd(net, sample))
    for defence, strength in defended.DEFENCES:
        its_net = defended.network(sample, 0, defence, strength, model="lenet")
        sent = values(defended.send(its_net, sample, defence, strength, seed=0))
        assert torch.equal(sent, plain) == (defence in ("none", "sum")), defence
    clipped = defended.send(net, sample, "clip", 0.2, seed=0)
    assert clipped.norm() == pytest.approx(0.2, rel=1e-4)
    with pytest.raises(ValueError, match="unknown defence 'hope'; known: none, clip"):
        defended.send(net, sample, "hope", 1, seed=0)


def test_settings_and_accounts():
    found = defended.settings(2)
    assert len(found) == 2 * len(defended.DEFENCES)
    assert found[1] == {"defence": "none", "strength": 0, "seed": 102}
    records = len(gleak.load_pool("digits", "server")) // 2
    first, second, *others = defended.accounts("digits", 3, 2)
    assert first["sample rate"] == 3 / records
    assert second["sample rate"] == defended.MORE * 3 / records
    assert {row["sample rate"] for row in others} == {1.0}


def test_an_empty_poisson_sample_sends_the_noise_alone():
    """One record in 500 on average: draws of this seed choose none."""
    data = gleak.load_pool("digits")
    net = defended.network(data, 0, model="lenet")
    seed = next(
        seed
        for seed in range(20)
        if (torch.rand(500, generator=torch.Generator().manual_seed(seed)) >= 1 / 500).all()
    )
    quiet, loud = (
        values(
            defended.send_of_shard(
                net,
                data,
                torch.arange(500),
                "private",
                z,
                size=1,
                draws=torch.Generator().manual_seed(seed),
                seed=5,
            )
        )
        for z in (0.0, 2.0)
    )
    assert not quiet.any()
    assert loud.std().item() == pytest.approx(2.0 * defended.MAX_NORM, rel=0.05)


def test_training_with_a_defence():
    shared = {"pool": "digits", "model": "lenet", "size": 16, "clients": 2, "rounds": 12}
    plain = defended.trained("none", 0, 0, **shared)["accuracy"]
    assert plain > 0.3  # of ten classes
    assert defended.trained("none", 0, 0, **shared)["accuracy"] == plain
    assert defended.trained("noise", 10.0, 0, **shared)["accuracy"] < plain
    for defence in ("private", "private sum"):
        found = defended.trained(defence, 0.1, 0, **{**shared, "rounds": 1})
        assert 0 <= found["accuracy"] <= 1


def test_the_clip_is_found_and_undone(sample, net):
    """Up to the softmax of random images, the update of before the clip."""
    update = gleak.fedsgd(net, sample)
    clipped = defences.clip(update, 0.2)
    found = defended.undone(clipped, "clip", seed=0)
    assert found.norm() == pytest.approx(update.norm(), rel=0.1)
    assert update.norm() > 2 * clipped.norm()
    assert defended.undone(clipped, "none", seed=0) is clipped


def test_what_is_known_of_the_precision(sample, net):
    update = gleak.fedsgd(net, sample)
    noisy = defences.add_noise(update, 0.01, seed=0)
    size = values(noisy).square().mean().sqrt().item()
    assert defended.precision_of(noisy, "noise", 0.01) == pytest.approx(0.01 / size, rel=1e-4)
    assert defended.precision_of(noisy, "noise", 1e3) == 1
    assert defended.precision_of(update, "none", 0) == 0
    assert defended.precision_of(update, "bits", 8) == 1 / 16
    assert defended.precision_of(update, "prune", 0.9) == 1


def test_kept_units():
    kept = defended.Kept(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), share=0.5)
    assert kept(torch.ones(2, 2)).tolist() == [[2, 0], [0, 2]]
    assert kept(torch.ones(3, 2)).tolist() == torch.ones(3, 2).tolist()


def test_knowing_takes_the_way_of_the_defence(sample, net):
    counts, options = sample.label_counts, {"iterations": 3, "seed": 0}
    pruned = defended.send(net, sample, "prune", 0.9, seed=0)
    found = defended.knowing(pruned, counts, "prune", 0.9, precision=1.0, **options)
    assert found.attack.distance == "sent-cosine"
    exact = defended.knowing(gleak.fedsgd(net, sample), counts, **options)
    assert exact.attack.features == 1
    blind = defended.knowing(gleak.fedsgd(net, sample), counts, precision=1.0, **options)
    assert blind.attack.features == 0
    dropping = defended.network(sample, 0, "dropout", 0.5, model="lenet")
    sent = defended.send(dropping, sample, "dropout", 0.5, seed=0)
    found = defended.knowing(sent, counts, "dropout", 0.5, precision=1.0, **options)
    assert gleak.score(found.images, sample.images)["psnr"].min() > 0
    assert isinstance(sent.model[1][-2], nn.Dropout)  # the update is as it was


ATTACKED = {
    "dataset": "mnist-samples",
    "pool": "mnist-5k",
    "model": "lenet",
    "size": 2,
    "label_size": 4,
    "clients": 2,
    "iterations": 3,
}


def test_what_leaks_of_an_update(cache):
    row = defended.attacked("clip", 0.2, 0, **ATTACKED)
    assert row["labels_knowing"] == 1  # once the factor is undone
    assert row["flat"] < row["thumb8"]
    later = defended.attacked("none", 0, 0, 2, **ATTACKED)
    assert later["flat"] == row["flat"]  # the same images
    assert later["knowing"] != row["knowing"] and "usual" not in later
    both = defended.attacked("sum", 0, 0, **ATTACKED)
    assert both["flat"] != row["flat"]  # those of two clients


def test_an_image_alone_comes_back_in_closed_form():
    shared = {"dataset": "mnist-samples", "model": "lenet", "iterations": 3}
    alone = defended.batched(1, 1, number=1, **shared)
    assert alone["psnr"] > 90
    assert alone["labels"] == 1
    singles, pair = (defended.batched(each, 0, number=2, **shared) for each in (1, 2))
    assert singles["psnr"] > pair["psnr"] + 5
    assert singles["thumb8"] == pytest.approx(pair["thumb8"])  # the same images


def test_norms_of_later_updates(cache):
    row = defended.norms(0, 0, pool="digits", model="lenet", size=2)
    assert 0 < row["mean"] < row["largest"]
    names = {s["defence"] for s in defended.later_settings(1, 5, "mnist-samples", "mnist-5k")}
    assert names == {"none", "noise"}
    assert defended.later_settings(1, 5, "mnist-samples", "imagenet-crops") == []


def test_a_secure_sum_keeps_the_model_of_no_defence():
    leaks = pd.DataFrame(
        [
            {"defence": "none", "strength": 0, "seed": 0, "knowing": 20.0},
            {"defence": "sum", "strength": 0, "seed": 0, "knowing": 10.0},
        ]
    )
    kept = pd.DataFrame([{"defence": "none", "strength": 0, "seed": 0, "accuracy": 0.9}])
    found = defences_display.named(leaks, kept).set_index("name")
    assert found["accuracy"].to_dict() == {"nothing": 0.9, "secure sum of 4 clients": 0.9}
    assert found["knowing"]["secure sum of 4 clients"] == 10
