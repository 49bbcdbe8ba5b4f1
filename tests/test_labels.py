import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import gleak
from gleak import labels
from gleak.labels import largest_remainder


@pytest.fixture
def by_hand(two_layers, tiny):
    """K = 4, N = 3, M = 5; softmax and features of the random inputs are set by the test."""
    update = gleak.fedsgd(two_layers, tiny)
    object.__setattr__(update, "num_samples", 4)
    return update


def test_zlg_worked_by_hand(by_hand, monkeypatch):
    # p = (1/2, 1/4, 1/4), feature sums 8 and 12, so O = 10. Row sums g = (-2.5, 1.25, 1.25):
    # lambda = 4 p - 4 g / 10 = (2, 1, 1) - (-1, .5, .5) = (3, .5, .5); the tie goes to the first.
    monkeypatch.setattr(
        labels,
        "zero_shot",
        lambda update, seed: (
            torch.tensor([[0.75, 0.125, 0.125], [0.25, 0.375, 0.375]]).double(),
            torch.tensor([[8.0, 0, 0, 0, 0], [3, 3, 3, 3, 0]]).double(),
        ),
    )
    by_hand.gradient["3.weight"] = torch.tensor([[-0.5] * 5, [0.25] * 5, [0.25] * 5])
    assert gleak.restore_labels(by_hand, "zlg").tolist() == [3, 1, 0]
    # grad b = (-0.5, 0.25, 0.25): lambda = 4 (p - grad b) = (4, 0, 0)
    by_hand.gradient["3.bias"] = torch.tensor([-0.5, 0.25, 0.25])
    assert gleak.restore_labels(by_hand, "zlg-bias").tolist() == [4, 0, 0]


def test_idlg_worked_by_hand(by_hand):
    # Row sums (-1, 2, -3): classes 2 and 0 are there; four samples are dealt 2, 0, 2, 0.
    by_hand.gradient["3.weight"] = torch.tensor([[-0.2] * 5, [0.4] * 5, [-0.6] * 5])
    assert gleak.restore_labels(by_hand, "idlg").tolist() == [2, 0, 2]


def test_bias_form_is_exact_with_the_batchs_own_softmax(batch, monkeypatch):
    torch.manual_seed(0)
    labels_ = torch.randint(10, (64,), generator=torch.Generator().manual_seed(0))
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    many = gleak.Batch(images, labels_, batch.class_names)
    model = gleak.build_model("lenet", batch, activation="relu", seed=3)
    with torch.no_grad():
        model[1][-1].weight.mul_(40)  # far from uniform, as after training
    update = gleak.fedsgd(model, many)
    features, logits = update.forward(images)
    assert logits.softmax(1).max() > 0.5
    oracle = (logits.double().softmax(1), features.double())
    monkeypatch.setattr(labels, "zero_shot", lambda update, seed: oracle)
    assert torch.equal(gleak.restore_labels(update, "zlg-bias"), many.label_counts)


@pytest.mark.parametrize(("model", "may_be_wrong"), [("convnet", 0), ("lenet", 1), ("resnet18", 1)])
@pytest.mark.parametrize("method", ["zlg", "zlg-bias"])
def test_repeated_labels_come_back_from_untrained_networks(model, may_be_wrong, method):
    batch = gleak.load_batch(
        "cifar10-samples", indices=range(8)
    )  # a frog three times, a ship twice
    update = gleak.fedsgd(gleak.build_model(model, batch, seed=1), batch)
    counts = gleak.restore_labels(update, method)
    assert (counts - batch.label_counts).clamp_min(0).sum() <= may_be_wrong


@pytest.mark.parametrize("method", gleak.list_label_methods())
def test_one_image_has_one_label(batch, method):
    one = gleak.Batch(batch.images[1:2], batch.labels[1:2], batch.class_names)
    update = gleak.fedsgd(gleak.build_model("convnet", one), one)
    assert torch.equal(gleak.restore_labels(update, method), one.label_counts)


@pytest.mark.parametrize("method", gleak.list_label_methods())
def test_a_seed_fixes_the_counts(batch, method):
    update = gleak.fedsgd(gleak.build_model("lenet", batch), batch)
    first, again = (gleak.restore_labels(update, method, seed=4) for _ in range(2))
    assert torch.equal(first, again)
    assert first.dtype == torch.long
    assert first.sum() == len(batch)


def test_refusals(batch, tiny):
    update = gleak.fedsgd(gleak.build_model("lenet", batch), batch)
    with pytest.raises(ValueError, match="unknown method 'magic'; known: zlg, zlg-bias, idlg"):
        gleak.restore_labels(update, "magic")
    no_bias = gleak.fedsgd(nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False)), tiny)
    with pytest.raises(gleak.MissingKnowledge, match="gradient of the classifier's bias"):
        gleak.restore_labels(no_bias, "zlg-bias")
    dead = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3))
    dead[1].weight.data.fill_(-1.0)
    dead[1].bias.data.fill_(-100.0)
    with pytest.raises(ValueError, match="mean feature sum, which is zero"):
        gleak.restore_labels(gleak.fedsgd(dead, tiny), "zlg")


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20),
    st.integers(1, 500),
)
def test_largest_remainder_gives_counts(values, total):
    counts = largest_remainder(torch.tensor(values, dtype=torch.float64), total)
    assert counts.sum() == total
    assert (counts >= 0).all()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(sum))
def test_largest_remainder_leaves_counts_alone(values):
    counts = torch.tensor(values)
    assert torch.equal(largest_remainder(counts, int(counts.sum())), counts)
    noise = torch.linspace(-0.03, 0.03, len(values))
    assert torch.equal(largest_remainder(counts + noise, int(counts.sum())), counts)
