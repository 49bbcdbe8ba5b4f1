import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gleak
from gleak.inversion import (
    ATTACKS,
    DISTANCES,
    TERMS,
    InversionFailed,
    cosine,
    labels_of,
    simulate,
    total_variation,
)
from gleak.inversion.attack import Options
from gleak.inversion.closed import peel
from gleak.inversion.linear import linear_guess
from gleak.inversion.own import of_many
from gleak.inversion.priors import consensus
from gleak.inversion.search import Record
from gleak.labels.features import image_features
from gleak.study.runner import run_grid


@pytest.fixture
def update(batch):
    return gleak.fedsgd(gleak.build_model("convnet", batch, seed=1), batch)


def check_slope(loss, images, rel=2e-3, step=1e-9):
    """The gradient of the loss at the images against finite differences in a random direction."""
    generator = torch.Generator().manual_seed(5)
    direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    variable = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(variable), variable)
    up, down = loss(images + step * direction), loss(images - step * direction)
    assert (gradient * direction).sum().item() == pytest.approx(
        ((up - down) / (2 * step)).item(), rel=rel
    )


@pytest.mark.parametrize(
    ("name", "distance"),
    [("lenet", "l2"), ("resnet18", "cosine"), *(("convnet", name) for name in DISTANCES)],
)
def test_gradient_of_the_images_against_finite_differences(batch, name, distance):
    """Twice differentiated networks are where errors would hide; float64, sigmoid and ReLU."""
    images = nn.functional.avg_pool2d(batch.images[:2].double(), 2)
    double = gleak.Batch(images, batch.labels[:2], batch.class_names)
    update = gleak.fedsgd(gleak.build_model(name, double, seed=1).double(), double)
    parameters, observed = list(update.model.parameters()), list(update.gradient.values())
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(images.shape, generator=generator, dtype=torch.float64)

    def loss(x):
        simulated = simulate(update.model, parameters, x, double.labels)
        return DISTANCES[distance](simulated, observed)

    check_slope(loss, images)  # the step is small enough to cross no kink of a ReLU


PRIORS = {name: t.function for name, t in TERMS.items() if t.reads == ("images",)}


@pytest.mark.parametrize("prior", PRIORS)
def test_gradient_of_the_priors_against_finite_differences(prior):
    generator = torch.Generator().manual_seed(0)
    images = 0.5 + 0.5 * torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    if prior == "scale":  # the extremes must not lie at a kink: keep the differences small
        check_slope(PRIORS[prior], images, rel=1e-3, step=1e-7)
    else:
        check_slope(PRIORS[prior], images, rel=1e-4, step=1e-7)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_truth_has_distance_zero(update, batch, distance):
    simulated = simulate(update.model, list(update.model.parameters()), batch.images, batch.labels)
    observed = list(update.gradient.values())
    assert DISTANCES[distance](simulated, observed) < 1e-5
    noise = [torch.randn_like(tensor) * tensor.std() for tensor in observed]
    assert DISTANCES[distance](noise, observed) > 0.5


def test_distances_and_priors_worked_by_hand():
    a, b = [torch.tensor([3.0]), torch.tensor([4.0])], [torch.tensor([4.0]), torch.tensor([3.0])]
    assert cosine(a, b).item() == pytest.approx(1 - 24 / 25)
    assert cosine(a, [-tensor for tensor in a]).item() == pytest.approx(2)
    assert DISTANCES["l2"](a, b).item() == pytest.approx(2 / 25)
    assert DISTANCES["l1"](a, b).item() == pytest.approx(2 / 7)
    assert DISTANCES["layer-l2"](a, b).item() == pytest.approx((1 / 16 + 1 / 9) / 2)
    assert DISTANCES["layer-cosine"](a, b).item() == pytest.approx(0, abs=1e-6)
    image = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]])
    # down: |0.5| and |-0.5|, mean 0.5; across: 1 and 0, mean 0.5
    assert total_variation(image).item() == pytest.approx(1.0)
    assert PRIORS["smooth_tv"](image).item() == pytest.approx((0.5**2 + 1) ** 0.5)
    assert PRIORS["norm"](image).item() == pytest.approx(0.125)
    assert PRIORS["scale"](image).item() == 0
    assert PRIORS["scale"](image / 2).item() == pytest.approx((0.25 + 2 * 0.0625) / 4)
    assert PRIORS["clip"](image).item() == 0
    assert PRIORS["clip"](image + 0.5).item() == pytest.approx(0.25 / 4)


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "exact"])
def test_every_preset_runs_and_lowers_its_loss(update, batch, name):
    few = max(12 // getattr(ATTACKS[name], "evaluations", 1), 1)
    result = gleak.invert(update, batch.label_counts, name, iterations=few, progress=False)
    assert result.history["loss"].min() < 0.95 * result.history["loss"].iloc[0]
    assert result.images.shape == batch.images.shape
    assert result.labels.shape == batch.labels.shape
    assert "minimise" in str(result.attack)
    assert "after" in str(result.attack)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adam", "start": "gray"},
        {"optimizer": "adamw", "start": "uniform", "schedule": "cosine"},
        {"optimizer": "lbfgs", "lr": 1, "start": "patterned", "restarts": 2},
        {"distance": "layer-cosine", "restarts": 2, "group": 0.1},
        {"features": 1.0, "tv_end": 0.5, "noise": 0.01},
        {"resolution": 0.25, "start": "normal"},
        {"scale": 0.01, "clip": 1.0, "norm": 0.1, "box": False},
    ],
)
def test_single_settings_can_be_replaced(update, batch, settings):
    result = gleak.invert(
        update, batch.label_counts, iterations=6, seed=3, progress=False, **settings
    )
    assert len(result.history) == 6 * (2 if settings.get("optimizer") == "lbfgs" else 1) or (
        "restarts" in settings
    )
    assert torch.isfinite(result.images).all()
    assert all(getattr(result.attack, name) == value for name, value in settings.items())


class Reads(TorchDispatchMode):
    """Counts the numbers that are read from tensors: on a GPU, each waits for all work before."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **kwargs or {})


def test_a_record_reads_no_number_from_the_device():
    images, losses = torch.rand(2, 3, 1, 4, 4), torch.tensor([2.0, 1.0])
    record = Record(4, ["loss", "distance"], [images], snapshots=[0])
    with Reads() as reads:
        record.add(losses, losses, torch.tensor([[5.0], [6.0]]), [images])
    assert reads.count == 0
    assert record.frame().iloc[0].tolist() == [1, 6]  # of the restart with the lower loss
    assert torch.equal(record.kept[0], images[1])
    with Reads() as reads:
        losses[losses.argmin()]
    assert reads.count == 1  # so it would have been seen


def test_restarts_are_chosen_by_the_loss(update, batch):
    runs = [
        gleak.invert(update, batch.label_counts, iterations=10, restarts=count, progress=False)
        for count in (1, 3)
    ]
    best = [run.history["loss"].min() for run in runs]
    assert best[1] <= best[0] + 1e-4


def test_a_start_can_be_given(update, batch):
    start = batch.images[batch.labels.argsort()]
    result = gleak.invert(
        update, batch.label_counts, start=start, iterations=1, tv=0, progress=False
    )
    assert torch.equal(result.images, start)
    with pytest.raises(ValueError, match="start must have shape"):
        gleak.invert(update, batch.label_counts, start=start[:1], progress=False)


def test_known_batch_norm_statistics_are_a_prior(batch):
    model = gleak.build_model("resnet18", batch)
    update = gleak.fedsgd(model, batch)
    entered = {}
    norm = update.model.get_submodule("1.bn1")
    handle = norm.register_forward_pre_hook(lambda _, inputs: entered.update(x=inputs[0]))
    with torch.no_grad():
        update.model(batch.images)
    handle.remove()
    values = entered["x"].transpose(0, 1).flatten(1)
    statistics = {"1.bn1": (values.mean(1), values.var(1, unbiased=False))}
    result = gleak.invert(
        dataclasses.replace(update, statistics=statistics),
        batch.label_counts,
        "gradinversion",
        start=batch.images[batch.labels.argsort()],
        restarts=1,
        iterations=1,
        progress=False,
    )
    assert result.history["batch_norm"][0] < 1e-4
    with pytest.raises(ValueError, match="no batch norm layer 1.nothing"):
        dataclasses.replace(update, statistics={"1.nothing": statistics["1.bn1"]})


def test_a_missing_compiler_is_a_note_not_a_failure(update, batch, monkeypatch, capsys):
    def no_compiler(step):
        def fail(*inputs):
            raise RuntimeError("no C++ compiler found")

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    settings = {"iterations": 3, "progress": False}
    result = gleak.invert(update, batch.label_counts, compile=True, **settings)
    plain = gleak.invert(update, batch.label_counts, **settings)
    assert "no C++ compiler found" in capsys.readouterr().out
    assert torch.equal(result.images, plain.images)


@pytest.mark.parametrize("optimizer", ["signed-adam", "lbfgs"])
def test_the_functional_step_is_the_eager_step(update, batch, monkeypatch, optimizer):
    monkeypatch.setattr(torch, "compile", lambda step: step)  # the form, without the compiler
    runs = [
        gleak.invert(
            update,
            batch.label_counts,
            iterations=3,
            optimizer=optimizer,
            compile=compile,
            progress=False,
        )
        for compile in (False, True)
    ]
    assert runs[0].history["loss"].to_numpy() == pytest.approx(
        runs[1].history["loss"].to_numpy(), rel=1e-3
    )


def test_one_image_of_a_smooth_network_comes_back_in_closed_form(batch):
    one = gleak.Batch(batch.images[:1], batch.labels[:1], batch.class_names)
    update = gleak.fedsgd(gleak.build_model("lenet", one, seed=1), one)
    with pytest.raises(ValueError, match="no features left"):
        gleak.invert(update, one.label_counts, "general", features=1, progress=False)
    result = gleak.invert(update, one.label_counts, "gleak", progress=False)
    assert result.attack is None  # there was nothing to search
    assert (result.images - one.images).abs().max() < 5e-3
    assert gleak.score(result.images, one.images)["psnr"][0] > 55


def test_lbfgs_goes_on_where_losses_are_rounding():
    small = gleak.load_batch("cifar10-samples", indices=[0], image_size=8)
    update = gleak.fedsgd(gleak.build_model("lenet", small, seed=1), small)
    runs = [
        gleak.invert(update, small.label_counts, "idlg", seed=s, iterations=15, progress=False)
        for s in range(3)
    ]
    reached = [gleak.score(run.images, small.images)["psnr"].mean() for run in runs]
    assert sorted(reached)[1] > 60
    assert {run.images.dtype for run in runs} == {torch.float32}  # though searched in float64
    lowest = sorted(run.history["loss"].min() for run in runs)
    assert lowest[1] < 1e-12  # where torch's own tolerances, left alone, end it above 1e-10
    assert max(len(run.history) for run in runs) <= 15 * 20


PAPER_SETTINGS = {  # steps, evaluations in each, starts
    "dlg": (300, 20, 1),
    "idlg": (300, 20, 1),
    "inverting-gradients": (24_000, 1, 1),
    "gradinversion": (20_000, 1, 8),
}


@pytest.mark.parametrize("name", PAPER_SETTINGS)
def test_efforts_are_those_of_the_papers(name):
    attack = ATTACKS[name]
    assert (attack.iterations, attack.evaluations, attack.restarts) == PAPER_SETTINGS[name]


@pytest.mark.parametrize("name", ["lenet", "convnet", "resnet18"])
def test_features_of_single_images_come_back_although_labels_repeat(name):
    batch = gleak.load_batch("cifar10-samples", indices=[0, 1, 2, 3])  # two ships
    update = gleak.fedsgd(gleak.build_model(name, batch, seed=1), batch)
    features, _ = image_features(update, batch.label_counts)
    truth, _ = update.forward(batch.images)
    error = torch.cdist(features, truth.double()) / truth.double().norm(dim=1)
    assert error.min(0).values.max() < 1e-3


def test_features_need_the_right_counts(update):
    wrong = torch.tensor([2, 1, 0, 0, 0, 0, 0, 1, 0, 0])
    with pytest.raises(gleak.MissingKnowledge, match="are the counts right"):
        image_features(update, wrong)


def test_consensus_registers_before_it_takes_the_mean(batch):
    moved = batch.images.roll((3, -5), dims=(-2, -1))
    restarts = torch.stack([batch.images, moved])
    assert torch.allclose(consensus(restarts), restarts, atol=1e-6)
    noise = 0.05 * torch.randn(restarts.shape, generator=torch.Generator().manual_seed(0))
    noisy = consensus(restarts + noise) - restarts
    assert noisy.std() == pytest.approx(0.05 / 2**0.5, rel=0.1)  # two means of two


@pytest.mark.parametrize(
    ("name", "indices", "message"),
    [
        ("convnet", [0, 1, 3, 4], "peeling ends at what enters Conv2d"),
        ("convnet", [0] * 10, "fewer images than classes"),
    ],
)
def test_exact_refuses_networks_without_closed_form(name, indices, message):
    batch = gleak.load_batch("cifar10-samples", indices=indices)
    update = gleak.fedsgd(gleak.build_model(name, batch), batch)
    with pytest.raises(gleak.MissingKnowledge, match=message):
        gleak.invert(update, batch.label_counts, "exact", progress=False)


def test_an_image_comes_back(batch):
    one = gleak.Batch(batch.images[:1], batch.labels[:1], batch.class_names)
    update = gleak.fedsgd(gleak.build_model("convnet", one, seed=1), one)
    result = gleak.invert(update, one.label_counts, iterations=250, progress=False)
    scores = gleak.score(result.images, one.images)
    assert scores["psnr"][0] > scores["thumb8"][0]
    assert result.history["distance"].iloc[-1] < 0.1 * result.history["distance"].iloc[0]
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    assert result.labels.tolist() == [3]


def test_a_seed_fixes_the_result(update, batch):
    first, again, other = (
        gleak.invert(update, batch.label_counts, iterations=5, seed=seed, progress=False)
        for seed in (1, 1, 2)
    )
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


def test_the_best_iterate_is_kept(update, batch):
    result = gleak.invert(update, batch.label_counts, iterations=8, lr=2.0, tv=0.0, progress=False)
    simulated = simulate(
        update.model, list(update.model.parameters()), result.images, result.labels
    )
    distance = cosine(simulated, list(update.gradient.values())).item()
    assert distance == pytest.approx(result.history["loss"].min(), rel=1e-3)
    assert result.history["loss"].iloc[-1] > result.history["loss"].min()


def test_the_update_is_left_as_it_was(batch):
    update = gleak.fedsgd(gleak.build_model("resnet18", batch), batch)
    before = copy.deepcopy(update.model.state_dict())
    gleak.invert(update, batch.label_counts, iterations=2, progress=False)
    for name, value in update.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in update.model.parameters())


def test_ctrl_c_returns_the_best_so_far(update, batch, capsys):
    calls = iter(range(100))

    def interrupted(images):
        if next(calls) == 7:
            raise KeyboardInterrupt
        return total_variation(images)

    search = {"iterations": 50, "priors": [interrupted], "progress": False}
    result = gleak.invert(update, batch.label_counts, **search)
    assert len(result.history) == 7
    assert not result.finished
    assert torch.isfinite(result.images).all()
    assert "stopped after 7 of 50" in capsys.readouterr().out


def grid_row(iterations):
    """A search that is interrupted at one evaluation of its loss, if ever."""
    ROW.calls += 1
    draws = torch.Generator().manual_seed(0)
    batch = gleak.Batch(torch.rand(2, 1, 4, 4, generator=draws), torch.tensor([2, 0]), list("abc"))
    update = gleak.fedsgd(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), batch)
    evaluations = iter(range(10**6))

    def interrupted(images):
        if next(evaluations) == ROW.interrupt_at:
            raise KeyboardInterrupt
        return total_variation(images)

    search = {"iterations": iterations, "priors": [interrupted], "progress": False}
    return {"done": len(gleak.invert(update, batch.label_counts, **search).history)}


ROW = SimpleNamespace(calls=0, interrupt_at=None)


def test_an_interrupted_search_ends_a_grid_and_is_not_stored(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GLEAK_CACHE", str(tmp_path))
    monkeypatch.delenv("GLEAK_GRID", raising=False)
    ROW.calls, ROW.interrupt_at = 0, 90
    with pytest.raises(KeyboardInterrupt):
        run_grid(grid_row, [{"iterations": 300}])
    assert grid_row(300)["done"] == 90  # outside a grid the best images are kept
    assert "stopped after 90 of 300" in capsys.readouterr().out
    ROW.interrupt_at = None
    for _ in range(2):
        assert run_grid(grid_row, [{"iterations": 300}])["done"].item() == 300
    assert ROW.calls == 3  # the second call was run anew, the third came from the store


def test_a_loss_that_is_not_finite_keeps_the_last_good_images(update, batch):
    calls = iter(range(100))

    def breaking(images):
        return total_variation(images) * (torch.nan if next(calls) >= 30 else 1)

    with pytest.raises(InversionFailed, match="not finite at iteration 50") as caught:
        gleak.invert(
            update, batch.label_counts, iterations=100, priors=breaking, tv=0, progress=False
        )
    best = caught.value.best
    assert torch.isfinite(best.images).all()
    assert best.images.std() > 0.05
    assert best.history["loss"].notna().sum() == 30


def test_labels_are_in_ascending_order(update):
    assert labels_of([1, 0, 0, 2, 0, 0, 0, 0, 1, 0], update).tolist() == [0, 3, 3, 8]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attack": "magic"}, "unknown attack 'magic'; known: dlg, idlg, inverting-gradients"),
        ({"strength": 3}, "has no strength; known: distance, match"),
        ({"distance": "far"}, "unknown distance 'far'; known: cosine"),
        ({"optimizer": "luck"}, "unknown optimizer 'luck'; known: adam"),
        ({"schedule": "late"}, "unknown schedule 'late'"),
        ({"start": "nowhere"}, "unknown start 'nowhere'"),
        ({"tv": -1}, "tv must be a number >= 0"),
        ({"tv": float("nan")}, "tv must be a number >= 0"),
        ({"resolution": 1.5}, "resolution must be in"),
        ({"restarts": 0}, "restarts must be at least 1"),
        ({"match": 0}, "needs match or features"),
        ({"optimizer": "lbfgs", "group": 1, "restarts": 2}, "group consistency needs"),
        ({"attack": "dlg", "optimizer": "adam"}, "a step of adam takes one evaluation; got 20"),
        ({"evaluations": 0}, "evaluations must be at least 1"),
        ({"attack": "exact", "tv": 1}, "nothing to override"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"counts": [4]}, "counts must be 10 whole numbers"),
        ({"counts": torch.full((10,), 0.4)}, "counts must be 10 whole numbers"),
        ({"counts": [5, -1, 0, 0, 0, 0, 0, 0, 0, 0]}, "counts must be 10 whole numbers"),
        ({"counts": [5, 0, 0, 0, 0, 0, 0, 0, 0, 0]}, "sum to 5, but the update has 4 samples"),
    ],
)
def test_refusals(update, batch, arguments, message):
    with pytest.raises(ValueError, match=message):
        gleak.invert(update, **({"counts": batch.label_counts} | arguments))


def test_a_dead_network_fails_with_an_error_not_with_nan(tiny):
    dead = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3))
    dead[1].bias.data.fill_(-100.0)
    dead[3].requires_grad_(False)  # all that is sent is zero
    update = gleak.fedsgd(dead, tiny)
    with pytest.raises(ValueError, match="gradient is zero"):
        gleak.invert(update, tiny.label_counts, progress=False)


def test_snapshots_are_the_images_of_their_iterations(batch):
    update = gleak.fedsgd(gleak.build_model("lenet", batch), batch)
    search = {"attack": "inverting-gradients", "progress": False, "tv": 0.0}
    # the schedule's first decay comes after 3/8 of the way, so the first steps are the same
    watched = gleak.invert(update, batch.label_counts, iterations=8, snapshots=[0, 2, 9], **search)
    short = gleak.invert(update, batch.label_counts, iterations=16, snapshots=[2], **search)
    assert list(watched.snapshots) == [0, 2]
    assert watched.snapshots[0].shape == batch.images.shape
    assert torch.equal(watched.snapshots[2], short.snapshots[2])
    assert not torch.equal(watched.snapshots[0], watched.snapshots[2])
    staged = gleak.invert(
        update, batch.label_counts, "gleak", iterations=10, snapshots=[3], progress=False
    )  # five stages of two iterations
    assert staged.attack.then
    assert list(staged.snapshots) == [3]


def test_many_activations_lead_to_the_image_from_a_linear_guess(batch):
    """Least squares on random images tells the image at large, a search from there all of it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convs = [nn.Conv2d(3, 32, 3, 1, 1), nn.Conv2d(32, 32, 3, 1, 1), nn.Conv2d(32, 96, 3, 2, 1)]
    layers = [layer for conv in convs for layer in (conv, nn.ReLU())]
    for conv in convs:
        nn.init.kaiming_normal_(conv.weight, generator=torch.Generator().manual_seed(1))
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 64, 10))
    images = torch.nn.functional.avg_pool2d(batch.images, 2)
    update = gleak.fedsgd(model, gleak.Batch(images, batch.labels, batch.class_names))
    peeled = peel(update, batch.label_counts)
    assert not peeled.is_image and peeled.rough
    truth = images[batch.labels.argsort(stable=True)]
    given = dataclasses.replace(peeled, activations=peeled.trunk(truth).detach())
    guess = linear_guess(given, (3, 16, 16))
    assert (guess - truth).square().mean() < 0.3 * truth.var()
    labels = batch.labels.sort().values
    found = of_many({}, update, labels, Options(), given)
    assert (found.images - truth).square().mean() < 1e-8
    assert found.way.startswith("from a linear guess")
    few = dataclasses.replace(given, activations=torch.zeros_like(given.activations))
    assert of_many({}, update, labels, Options(), few) is None
