"""What a third party adds without touching the package: functions and objects for names."""

from dataclasses import replace

import pytest
import torch

import gleak
from gleak.inversion import Attack, GradientMatching, Inversion, Simulation, Term, unrolled
from gleak.inversion.attack import found_at_once
from gleak.inversion.distances import flatten

SEARCH = {"iterations": 6, "progress": False}


@pytest.fixture
def update(batch):
    return gleak.fedsgd(gleak.build_model("lenet", batch, activation="relu", seed=1), batch)


# -- attacks --------------------------------------------------------------------------------------


class Gray(Attack):
    def run(self, update, labels, options):
        shape = (len(labels), *update.input_shape)
        return found_at_once(torch.full(shape, 0.5), labels, "without looking")


class NoAttack:
    """Nothing of the package's, but it has a `run`."""

    def run(self, update, labels, options):
        draws = torch.Generator().manual_seed(options.seed)
        images = torch.rand(len(labels), *update.input_shape, generator=draws)
        return Inversion(images, labels, None, None)


def test_an_attack(update, batch):
    found = gleak.invert(update, batch.label_counts, Gray())
    assert found.way == "without looking" and (found.images == 0.5).all()
    drawn = gleak.invert(update, batch.label_counts, NoAttack(), seed=3)
    assert drawn.labels.tolist() == batch.labels.sort().values.tolist()
    with pytest.raises(ValueError, match="has no iterations; known: none"):
        gleak.invert(update, batch.label_counts, Gray(), iterations=3)
    with pytest.raises(ValueError, match="NoAttack has nothing to override"):
        gleak.invert(update, batch.label_counts, NoAttack(), tv=1)
    with pytest.raises(ValueError, match="unknown attack 3"):
        gleak.invert(update, batch.label_counts, 3)


def test_settings_of_ones_own(update, batch):
    mine = GradientMatching("mine", distance="l2", tv=0.1, optimizer="adam", schedule="cosine")
    found = gleak.invert(update, batch.label_counts, mine, **SEARCH)
    assert found.attack == mine.override(iterations=6)
    assert len(found.history) == 6


# -- the parts of a gradient matching attack ------------------------------------------------------


def huber(gradient, observed):
    return torch.nn.functional.huber_loss(flatten(gradient), flatten(observed), delta=0.01)


def dark(images):
    return images.square().mean()


def test_a_distance(update, batch):
    plain = gleak.invert(update, batch.label_counts, **SEARCH)
    found = gleak.invert(update, batch.label_counts, distance=huber, **SEARCH)
    assert "huber(gradient, observed)" in str(found.attack)
    assert found.history["distance"][0] != plain.history["distance"][0]


def test_whether_a_distance_needs_the_scale_is_seen_by_what_it_does(batch):
    net = gleak.build_model("lenet", batch, activation="relu", seed=1)
    silent = gleak.fedavg(net, batch, epochs=2, reveal=())
    search = SEARCH | {"update_model": "sme"}
    with pytest.raises(gleak.MissingKnowledge, match="huber needs the scale"):
        gleak.invert(silent, batch.label_counts, distance=huber, **search)

    def angle(gradient, observed):
        return 1 - torch.cosine_similarity(flatten(gradient), flatten(observed), dim=0)

    found = gleak.invert(silent, batch.label_counts, distance=angle, **search)
    assert found.images.isfinite().all()


@pytest.mark.parametrize("prior", [dark, [dark], Term("dark", 10, dark, fades=True)])
def test_a_prior(update, batch, prior):
    found = gleak.invert(update, batch.label_counts, priors=prior, tv_end=0.5, **SEARCH)
    plain = gleak.invert(update, batch.label_counts, **SEARCH)
    assert list(found.history.columns) == ["loss", "distance", "tv", "dark"]
    assert found.history["loss"][0] > plain.history["loss"][0]
    assert "dark(x)" in str(found.attack)
    for bad, message in (
        (Term("tv", 1, dark), "more than one term of the name 'tv'"),
        ([dark, dark], "more than one term of the name 'dark'"),
    ):
        with pytest.raises(ValueError, match=message):
            gleak.invert(update, batch.label_counts, priors=bad, **SEARCH)
    with pytest.raises(ValueError, match="dark must be a number >= 0"):
        Term("dark", -1, dark)


def test_a_term_may_read_what_was_sent(update, batch):
    def norms(simulated, observed):
        return (flatten(simulated).norm() / flatten(observed).norm() - 1).square()

    term = Term("norms", 0.1, norms, reads=("simulated", "observed"))
    found = gleak.invert(update, batch.label_counts, priors=term, **SEARCH)
    assert (found.history["norms"] > 0).all()


def test_an_optimiser(update, batch):
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.5, momentum=0.9)

    search = SEARCH | {"schedule": "constant", "tv": 0, "box": False}
    found = gleak.invert(update, batch.label_counts, optimizer=sgd, **search)
    slow = gleak.invert(
        update, batch.label_counts, optimizer=lambda p: torch.optim.SGD(p, lr=0.0), **search
    )
    assert found.history["loss"].nunique() == 6
    assert slow.history["loss"].nunique() == 1  # its own step size is kept
    assert "by        sgd" in str(found.attack)


# -- update models --------------------------------------------------------------------------------


def first_step(update, names, seed):
    """All of the update as if it were the first local step."""
    before = {name: p.detach() for name, p in update.model.named_parameters()}

    def run(gradient, images, labels):
        return gradient(before, names, images, labels)

    return Simulation(run)


@pytest.mark.parametrize("attack", ["inverting-gradients", "gleak"])
def test_an_update_model(batch, attack):
    net = gleak.build_model("lenet", batch, activation="relu", seed=1)
    update = gleak.fedavg(net, batch, epochs=2, lr=0.05)
    search = SEARCH | {"attack": attack}
    found = gleak.invert(update, batch.label_counts, update_model=first_step, **search)
    assert "first_step" in found.way
    known = gleak.invert(update, batch.label_counts, update_model=unrolled, **search)
    assert not found.history.equals(known.history)


# -- what is not of the attack --------------------------------------------------------------------


def scale(layer):
    """A label rule: how far each entry of the bias gradient lies below the largest one."""
    gap = layer.bias_gradient.max() - layer.bias_gradient
    return layer.k * gap / gap.sum()


def halved(update):
    """A defence: half of what would have been sent."""
    return update.resent({name: tensor / 2 for name, tensor in update.sent.items()})


def test_a_label_rule_and_a_defence(update, batch):
    counts = gleak.restore_labels(update, scale)
    assert counts.sum() == len(batch) and counts[batch.labels].sum() > 0
    assert torch.equal(gleak.restore_labels(halved(update), scale), counts)  # scale alone is hidden
    assert halved(update).norm() == pytest.approx(update.norm() / 2)


def test_a_fact_that_an_update_model_of_ones_own_reads(batch):
    net = gleak.build_model("lenet", batch, activation="relu", seed=1)
    update = gleak.fedavg(net, batch, epochs=2, lr=0.05)

    def warmed_up(update, names, seed):
        (share,) = update.told("warm_up")
        simulation = first_step(update, names, seed)

        def run(*arguments):
            return [share * tensor for tensor in simulation.run(*arguments)]

        return Simulation(run)

    with pytest.raises(gleak.MissingKnowledge, match="needs warm_up"):
        gleak.invert(update, batch.label_counts, update_model=warmed_up, **SEARCH)
    told = replace(update, facts={**update.facts, "warm_up": 0.5})
    found = gleak.invert(told, batch.label_counts, update_model=warmed_up, **SEARCH)
    assert "warmed_up" in found.way
    assert "warm_up = 0.5" in str(told)
