"""Label counts: what the gradient proves, and wrong ones put right."""

import pytest
import torch

import gleak
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
