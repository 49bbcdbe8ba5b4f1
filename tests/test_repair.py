"""Label counts: what the gradient proves, and wrong ones put right."""

import pytest
import torch

import gleak
from gleak.labels import LastLayer
from gleak.labels.features import NoSoftmaxFits, features_at_once
from gleak.labels.repair import fits, least_counts, possible_classes, repair_counts


@pytest.fixture(scope="module")
def case():
    batch = gleak.load_batch("cifar10-samples", indices=[0, 1, 2, 3])  # labels 3, 8, 8, 0
    return batch, gleak.fedsgd(gleak.build_model("lenet", batch, seed=1, activation="relu"), batch)


@pytest.fixture(scope="module")
def trained():
    pool = gleak.load_pool("digits")
    network = gleak.trained_model("lenet", "digits", steps=15, activation="relu")
    batches = [gleak.draw_batch(pool, 4, seed=seed) for seed in range(5)]
    return [(batch, gleak.fedsgd(network, batch)) for batch in batches]


def test_least_counts_by_hand():
    """Two classes, K = 2, labels 0 and 0, softmax (.7, .3): the bias gradient is (-.3, .3)."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    sent = {"1.weight": torch.zeros(2, 4), "1.bias": torch.tensor([-0.3, 0.3])}
    update = gleak.Update(model, 2, (1, 2, 2), gradient=sent)
    # class 0 at least once: with counts 0 its softmax would be -.3, with 1 it is .2;
    # K mean(p) = (1.4, .6), so one label is left open
    assert least_counts(update).tolist() == [1, 0]


def test_untrained_network_proves_all_counts(case):
    batch, update = case
    assert torch.equal(least_counts(update), batch.label_counts)
    assert torch.equal(possible_classes(update), batch.label_counts > 0)


def test_proofs_hold_on_trained_networks(trained):
    for batch, update in trained:
        assert (least_counts(update) <= batch.label_counts).all()
        assert possible_classes(update)[batch.labels].all()


def test_a_wrong_label_is_noticed_and_repaired(case):
    batch, update = case
    wrong = batch.label_counts.clone()
    wrong[8] -= 1
    wrong[5] += 1
    assert fits(update, batch.label_counts) and not fits(update, wrong)
    assert torch.equal(repair_counts(update, wrong), batch.label_counts)


def test_repair_on_trained_networks_is_right_or_silent(trained):
    answers = 0
    for batch, update in trained:
        rule = gleak.restore_labels(update, "zlg", inputs=50)
        try:
            assert torch.equal(repair_counts(update, rule, most=5), batch.label_counts)
            answers += 1
        except gleak.MissingKnowledge:
            pass
    assert answers >= 3


def test_fedavg_proves_nothing(case):
    batch, _ = case
    update = gleak.fedavg(gleak.build_model("lenet", batch), batch, epochs=2)
    with pytest.raises(gleak.MissingKnowledge, match="one step"):
        repair_counts(update, batch.label_counts)


FORMATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module", params=FORMATS, ids=lambda dtype: str(dtype)[6:])
def dtype(request):
    return request.param


@pytest.mark.parametrize(("activation", "steps"), [("relu", 0), ("sigmoid", 0), ("relu", 15)])
def test_true_counts_fit_and_wrong_ones_do_not_in_any_format(sent_in, dtype, activation, steps):
    if steps:
        batch = gleak.draw_batch(gleak.load_pool("digits"), 4, seed=1)
        model = gleak.trained_model("lenet", "digits", steps=steps, activation=activation)
    else:
        batch = gleak.load_batch("cifar10-samples", indices=[0, 1, 2, 3])
        model = gleak.build_model("lenet", batch, seed=1, activation=activation)
    update = sent_in(dtype, model, batch)
    wrong = batch.label_counts.clone()
    wrong[batch.labels[0]] -= 1
    wrong[7] += 1
    assert fits(update, batch.label_counts)
    try:
        assert not fits(update, wrong, attempts=2)
    except gleak.MissingKnowledge as error:  # rounding is all that tells two images apart
        assert dtype in (torch.float16, torch.bfloat16)
        assert "no telling" in str(error)
    assert (least_counts(update) <= batch.label_counts).all()
    assert possible_classes(update)[batch.labels].all()
    assert torch.equal(repair_counts(update, wrong), batch.label_counts)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_where_digits_do_not_tell_there_is_no_answer(sent_in, kind):
    """After 150 steps the network knows an image to seven digits, and three or two were sent."""
    batch = gleak.draw_batch(gleak.load_pool("digits"), 4, seed=1)
    model = gleak.trained_model("lenet", "digits", steps=150, activation="relu")
    update = sent_in(kind, model, batch)
    with pytest.raises(gleak.MissingKnowledge, match="no telling whether these counts fit"):
        fits(update, batch.label_counts, attempts=1)
    with pytest.raises(gleak.MissingKnowledge):
        repair_counts(update, batch.label_counts, most=1)


def test_counts_that_fit_whatever_the_label_are_not_called_right():
    """Equations that need to hold no better than 1 would hold with any label."""
    batch = gleak.load_batch("cifar10-samples", indices=[0, 1, 2])
    update = gleak.fedsgd(gleak.build_model("lenet", batch), batch)
    layer = LastLayer.of(update, precision=0.5)
    with pytest.raises(gleak.MissingKnowledge, match="these counts fit, and so might others"):
        fits(layer, batch.label_counts)


def test_no_fit_has_a_type(case):
    batch, update = case
    wrong = batch.label_counts.roll(1)
    with pytest.raises(NoSoftmaxFits):
        features_at_once(update, wrong, attempts=1)
    with pytest.raises(gleak.MissingKnowledge, match="64 at most") as refused:
        features_at_once(update, 5 * batch.label_counts)
    assert not isinstance(refused.value, NoSoftmaxFits)
