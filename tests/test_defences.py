import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import gleak
from gleak import defences
from gleak.client import private_fedsgd
from gleak.inversion import DISTANCES, peel


def by_hand(model, values, weights=False):
    """An update of a small linear network that sends these 15 values."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    parts = torch.as_tensor(values, dtype=torch.float32).split([12, 3])
    sent = {n: part.view(shape) for (n, shape), part in zip(shapes.items(), parts, strict=True)}
    if not weights:
        return gleak.Update(model, 2, (1, 2, 2), gradient=sent)
    before = dict(model.named_parameters())
    after = {name: before[name].detach() + change for name, change in sent.items()}
    return gleak.Update(
        model, 2, (1, 2, 2), weights_after=after, facts={"lr": 0.1, "batch_size": 2}
    )


def values(update):
    return torch.cat([tensor.flatten() for tensor in update.message().values()])


@pytest.fixture
def linear():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)  # so that W_T - W_0 has no rounding
    return model


@pytest.fixture(params=[False, True], ids=["gradient", "weights"])
def update(request, linear):
    """Twelve weights and three biases: 1, -2, 3, ..., 15, of norm sqrt(1240)."""
    return by_hand(linear, [(-1) ** (n + 1) * n for n in range(1, 16)], request.param)


def test_clip(update):
    assert update.norm() == pytest.approx(1240**0.5)
    clipped = defences.clip(update, 2.0)
    assert clipped.norm() == pytest.approx(2.0)
    torch.testing.assert_close(values(clipped) * 1240**0.5 / 2, values(update))
    torch.testing.assert_close(values(defences.clip(update, 36.0)), values(update))  # is shorter


def test_prune_keeps_the_largest_over_all_tensors(update):
    kept = values(defences.prune(update, 0.8))
    assert kept.nonzero().flatten().tolist() == [12, 13, 14]
    assert kept[12:].tolist() == [13.0, -14.0, 15.0]
    assert torch.equal(values(defences.prune(update, 0.0)), values(update))
    # ties: exactly as many as asked for
    flat = by_hand(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), [1.0] * 15)
    assert values(defences.prune(flat, 0.6)).sum() == 6


def test_quantise(update):
    # two bits: the three values -max, 0 and max of each tensor, whose largest are 12 and 15 here;
    # 6 / 12 lies between two of them and goes to the even one, 0
    coarse = values(defences.quantise(update, 2))
    assert coarse.tolist() == [0] * 6 + [12, -12, 12, -12, 12, -12] + [15, -15, 15]
    fine = values(defences.quantise(update, 8))
    assert (fine - values(update)).abs().max() <= 15 / 127 / 2 + 1e-6
    assert len(torch.unique(values(defences.quantise(update, 3))[:12])) <= 7


def test_sign_and_cast(update):
    signs = values(defences.sign(update))
    assert torch.equal(signs.sign(), values(update).sign())
    assert signs[:12].abs().unique().tolist() == [6.5]
    assert signs[12:].abs().unique().tolist() == [14.0]
    third = defences.replaced(update, {n: t / 3 for n, t in update.message().items()})
    short = values(defences.cast(third, torch.bfloat16))
    torch.testing.assert_close(short, values(third), rtol=2**-8, atol=0)
    assert not torch.equal(short, values(third))


def test_a_zero_update_stays_zero_and_finite(linear):
    zero = by_hand(linear, [0.0] * 15)
    for defended in (
        defences.clip(zero, 1.0),
        defences.prune(zero, 0.5),
        defences.quantise(zero),
        defences.sign(zero),
    ):
        assert not values(defended).any()


def test_noise_has_the_asked_scale_and_seed(batch):
    update = gleak.fedsgd(gleak.build_model("lenet", batch), batch)
    noisy, again, other = (defences.add_noise(update, 0.3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(values(noisy), values(again))
    assert not torch.equal(values(noisy), values(other))
    noise = values(noisy) - values(update)  # 15 thousand draws
    assert noise.std().item() == pytest.approx(0.3, rel=0.03)
    assert abs(noise.mean().item()) < 0.01
    assert torch.equal(values(defences.add_noise(update, 0.0, seed=1)), values(update))


def test_samples_are_clipped_one_by_one(batch):
    model = gleak.build_model("lenet", batch, activation="relu")
    alone = [
        gleak.fedsgd(model, gleak.Batch(batch.images[k : k + 1], batch.labels[k : k + 1], "x" * 10))
        for k in range(len(batch))
    ]
    norms = [update.norm() for update in alone]
    bound = sorted(norms)[1] * 1.001  # clips two of the four
    expected = torch.stack([values(defences.clip(update, bound)) for update in alone]).mean(0)
    private = private_fedsgd(model, batch, max_norm=bound, noise_multiplier=0, seed=0)
    torch.testing.assert_close(values(private), expected, rtol=1e-4, atol=1e-7)
    # and without a bound it is FedSGD
    free = private_fedsgd(model, batch, max_norm=1e6, noise_multiplier=0, seed=0)
    torch.testing.assert_close(
        values(free), values(gleak.fedsgd(model, batch)), rtol=1e-4, atol=1e-7
    )


def test_the_noise_of_private_fedsgd(batch):
    model = gleak.build_model("lenet", batch)
    quiet, noisy = (
        private_fedsgd(model, batch, max_norm=0.5, noise_multiplier=z, seed=3, expected_size=8)
        for z in (0, 2)
    )
    noise = values(noisy) - values(quiet)
    assert noise.std().item() == pytest.approx(2 * 0.5 / 8, rel=0.03)


def test_aggregate_is_the_update_of_all_samples(batch):
    model = gleak.build_model("convnet", batch, width=4)
    halves = [
        gleak.Batch(batch.images[part], batch.labels[part], batch.class_names)
        for part in (slice(0, 2), slice(2, 4))
    ]
    summed = defences.aggregate([gleak.fedsgd(model, half) for half in halves])
    whole = gleak.fedsgd(model, batch)
    assert summed.num_samples == 4
    torch.testing.assert_close(values(summed), values(whole), rtol=1e-4, atol=1e-7)
    # FedAvg: one step each is one step of all
    summed = defences.aggregate([gleak.fedavg(model, half, lr=0.1) for half in halves])
    assert summed.local_steps == 1
    for name, value in summed.equivalent_gradient().items():
        torch.testing.assert_close(value, whole.gradient[name], rtol=1e-3, atol=1e-5)


def test_dropout_of_the_client(batch):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3072, 10))
    one = gleak.Batch(batch.images[:1], batch.labels[:1], batch.class_names)
    off, on, again, other = (
        gleak.fedsgd(model, one, dropout_seed=seed) for seed in (None, 1, 1, 2)
    )
    dropped = (on.gradient["2.weight"] == 0).all(0)
    assert 0.45 < dropped.float().mean() < 0.55
    assert not (off.gradient["2.weight"] == 0).all(0).any()
    assert torch.equal(values(on), values(again))
    assert not torch.equal(values(on), values(other))
    assert not on.model[1].training  # the server's model drops nothing


def test_closed_forms_with_rounding(batch):
    model = gleak.build_model("convnet", batch, width=16)
    update = gleak.fedsgd(model, batch)
    short = defences.cast(update, torch.bfloat16)
    counts = batch.label_counts
    with pytest.raises(gleak.MissingKnowledge, match="no softmax fits"):
        peel(replace(short, precision=2.0**-24), counts)
    assert short.precision == 2.0**-8  # the digits show it
    peeled = peel(short, counts)
    with torch.no_grad():
        activations = peeled.trunk(batch.images[batch.labels.argsort()])
    error = (peeled.activations - activations).norm() / activations.norm()
    assert 1e-4 < error < 1e-2  # of bfloat16, whose steps are 1 / 128


def test_pruned_values_do_not_count_for_sent_cosine():
    observed = [torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])]
    simulated = [torch.tensor([6.0, 5.0]), torch.tensor([-7.0, 8.0])]
    assert DISTANCES["sent-cosine"](simulated, observed).item() == pytest.approx(0, abs=1e-6)
    assert DISTANCES["cosine"](simulated, observed) > 0.2


def test_epsilon_is_the_gaussian_mechanisms_and_opacus():
    # one step, all records: Renyi divergence a / (2 z^2) at order a, and the conversion of Balle
    # et al. (2020), minimised over the order
    z, delta = 2.0, 1e-5
    by_order = [
        a / (2 * z**2) + math.log((a - 1) / a) - (math.log(delta) + math.log(a)) / (a - 1)
        for a in (1 + n / 100 for n in range(1, 5000))
    ]
    assert defences.epsilon(z, steps=1, delta=delta) == pytest.approx(min(by_order), rel=1e-3)
    # noise alone counts with the square root of the steps
    once, often = (defences.epsilon(z * s**0.5, steps=s, delta=delta) for s in (1, 100))
    assert often == pytest.approx(once)
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    for _ in range(200):
        accountant.step(noise_multiplier=1.1, sample_rate=0.02)
    ours = defences.epsilon(1.1, steps=200, sample_rate=0.02, delta=1e-5)
    assert ours == pytest.approx(accountant.get_epsilon(1e-5))
    assert ours < defences.epsilon(1.1, steps=200, delta=1e-5) / 10  # sampling pays


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda u: defences.clip(u, 0.0), "max_norm must be positive"),
        (lambda u: defences.add_noise(u, -1.0, seed=0), "std must be"),
        (lambda u: defences.add_noise(u, math.nan, seed=0), "std must be"),
        (lambda u: defences.prune(u, 1.0), r"share must be in \[0, 1\)"),
        (lambda u: defences.quantise(u, 1), "from 2 to 16"),
        (lambda u: defences.cast(u, torch.int8), "not a floating point format"),
        (lambda u: defences.aggregate([]), "no update"),
        (lambda u: defences.aggregate([u, gleak.fedsgd(u.model, TWO)]), "differ in kind, number"),
        (lambda u: defences.epsilon(0.0, steps=1, delta=1e-5), "without noise there is no privacy"),
        (lambda u: defences.epsilon(1.0, steps=1, delta=0), "delta in"),
    ],
)
def test_bad_settings_are_refused(linear, call, words):
    with pytest.raises(ValueError, match=words):
        call(by_hand(linear, [1.0] * 15))


TWO = gleak.Batch(torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 2]), "abc")


def test_what_cannot_be_clipped_or_summed(batch):
    resnet = gleak.build_model("resnet18", batch)
    with pytest.raises(ValueError, match="mixes the samples"):
        private_fedsgd(resnet, batch, max_norm=1.0, noise_multiplier=1, seed=0, training=True)
    one, other = (gleak.build_model("lenet", batch, seed=seed) for seed in (0, 1))
    with pytest.raises(ValueError, match="different models"):
        defences.aggregate([gleak.fedsgd(one, batch), gleak.fedsgd(other, batch)])
