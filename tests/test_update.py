import copy
import dataclasses
import math
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import gleak
from gleak import defences
from gleak.network import find_classifier
from gleak.update import GradientUpdate, WeightsUpdate

NETWORKS = ["lenet", "convnet", "resnet18"]


def test_gradient_is_autograds_on_a_two_layer_net(two_layers, tiny):
    update = gleak.fedsgd(two_layers, tiny)
    # by hand: forward, softmax minus one-hot, and the chain rule down to the first layer
    first, second = two_layers[1], two_layers[3]
    x = tiny.images.flatten(1)
    before = x @ first.weight.T + first.bias
    o = before.clamp_min(0)
    error = ((o @ second.weight.T + second.bias).softmax(1) - F.one_hot(tiny.labels, 3)) / 3
    below = (error @ second.weight) * (before > 0)
    expected = {
        "1.weight": below.T @ x,
        "1.bias": below.sum(0),
        "3.weight": error.T @ o,
        "3.bias": error.sum(0),
    }
    assert update.gradient.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(update.gradient[name], value)


def test_an_update_holds_no_image_and_no_label(batch):
    update = gleak.fedsgd(gleak.build_model("lenet", batch), batch)
    fields = {field.name for field in dataclasses.fields(update)}
    known = {"model", "num_samples", "input_shape", "facts", "precision", "statistics"}
    assert fields == known | {"gradient", "classifier_name"}
    weights = gleak.fedavg(update.model, batch)
    fields = {field.name for field in dataclasses.fields(weights)}
    assert fields == known | {"weights_after", "classifier_name"}
    with pytest.raises(ValueError, match="does not fit the model: it has no images"):
        dataclasses.replace(update, gradient=update.gradient | {"images": batch.images})
    with pytest.raises(ValueError, match="facts are plain numbers"):
        dataclasses.replace(update, facts={"labels": batch.labels})
    assert "4 of shape 3x32x32" in str(update)
    assert "cat" not in str(update)


def test_order_of_the_batch_leaves_no_trace(batch):
    model = gleak.build_model("convnet", batch)
    turned = gleak.Batch(batch.images.flip(0), batch.labels.flip(0), batch.class_names)
    one, other = gleak.fedsgd(model, batch), gleak.fedsgd(model, turned)
    for name, value in one.gradient.items():
        torch.testing.assert_close(value, other.gradient[name], atol=1e-7, rtol=1e-4)


def test_the_client_leaves_the_model_as_it_was(batch):
    model = gleak.build_model("resnet18", batch).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    update = gleak.fedsgd(model, batch, training=True)
    update.forward(batch.images)
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        assert torch.equal(value, update.model.state_dict()[name])


def test_batch_norm_mode_changes_the_gradient_and_is_told(batch):
    model = gleak.build_model("resnet18", batch)
    train, evaluation = (gleak.fedsgd(model, batch, training=mode) for mode in (True, False))
    assert "batch's own statistics" in str(train)
    assert "running statistics" in str(evaluation)
    difference = train.gradient["1.fc.weight"] - evaluation.gradient["1.fc.weight"]
    assert difference.norm() > 0.01 * train.gradient["1.fc.weight"].norm()


def test_dropout_is_off(tiny):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(16, 3))
    one, other = gleak.fedsgd(model, tiny), gleak.fedsgd(model, tiny)
    assert torch.equal(one.gradient["2.weight"], other.gradient["2.weight"])
    assert one.gradient["2.weight"].norm() > 0


class Backwards(nn.Module):
    """Its classifier is registered first, so that a search by position would fail."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(7, 3)
        self.unused = nn.Linear(2, 2)
        self.body = nn.Linear(16, 7)

    def forward(self, images):
        return self.head(torch.relu(self.body(images.flatten(1))))


def test_classifier_is_found_by_the_forward_pass(tiny):
    update = gleak.fedsgd(Backwards(), tiny)
    assert update.classifier.name == "head"
    assert update.num_classes == 3
    weight, bias = update.classifier_gradient()
    assert weight.shape == (3, 7)
    assert bias.shape == (3,)
    features, logits = update.forward(tiny.images)
    torch.testing.assert_close(
        logits, features @ update.classifier.weight.T + update.classifier.bias
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten()), "no Linear layer in its forward pass"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Softmax(1)),
            "not the output of its last",
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(9, 3)), "does not take images of shape 1x4x4"),
    ],
)
def test_models_without_a_classifier_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        find_classifier(model, (1, 4, 4))


def test_a_batch_of_one(batch, tiny):
    one = gleak.Batch(batch.images[:1], batch.labels[:1], batch.class_names)
    for name in NETWORKS:
        update = gleak.fedsgd(gleak.build_model(name, one), one)
        assert update.num_samples == 1
    norm = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3))
    single = gleak.Batch(tiny.images[:1], tiny.labels[:1], tiny.class_names)
    with pytest.raises(ValueError, match="batch norm in train mode cannot take a batch of one"):
        gleak.fedsgd(norm, single)
    assert gleak.fedsgd(norm, single, training=False).num_samples == 1


def test_clients_refuse_what_does_not_fit(batch, tiny):
    with pytest.raises(ValueError, match="does not take images of shape 1x4x4"):
        gleak.fedsgd(gleak.build_model("convnet", batch), tiny)
    with pytest.raises(ValueError, match="labels up to 2 need"):
        gleak.fedsgd(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), tiny)
    frozen = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter to train"):
        gleak.fedsgd(frozen, tiny)
    broken = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    broken[1].weight.data.fill_(torch.inf)
    with pytest.raises(ValueError, match="not finite"):
        gleak.fedsgd(broken, tiny)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gradient": {}}, "the update's gradient is empty"),
        ({"gradient": {"3.weight": torch.zeros(3, 4)}}, r"3.weight has shape \(3, 4\)"),
        ({"gradient": {"3.bias": torch.tensor([0, torch.nan, 0])}}, "not finite in 3.bias"),
        ({"gradient": {"3.bias": torch.tensor([1, 2, 3])}}, "takes tensors of .*: see 3.bias"),
        ({"gradient": {"3.bias": [1.0, 2.0, 3.0]}}, "takes tensors of .*: see 3.bias"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"num_samples": 2.5}, "num_samples must be at least 1, and whole"),
        ({"precision": -1.0}, "precision is a relative error >= 0"),
        ({"precision": math.nan}, "precision is a relative error >= 0"),
        ({"classifier_name": "2"}, "no linear layer '2' to classify with"),
        ({"classifier_name": "9"}, "no linear layer '9' to classify with"),
        ({"facts": {"lr": 0.0}}, "the fact lr must be above 0; got 0.0"),
        ({"facts": {"lr": math.nan}}, "plain numbers; 'lr' is nan"),
        ({"facts": {"epochs": 1.5}}, "the fact epochs must be a whole number from 1 on"),
        ({"facts": {"batch_size": 0}}, "the fact batch_size must be a whole number from 1 on"),
        ({"facts": {"momentum": 1.0}}, r"the fact momentum must be in \[0, 1\)"),
        ({"facts": {"drop_last": 3}}, "the fact drop_last must be true or false"),
        ({"facts": {"own": math.inf}}, "plain numbers; 'own' is inf"),
        ({"facts": {"own": "text"}}, "plain numbers; 'own' is 'text'"),
    ],
)
def test_updates_that_do_not_fit_are_refused(two_layers, tiny, change, message):
    update = gleak.fedsgd(two_layers, tiny)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(update, **change)


def test_what_the_client_did_not_send_is_named(two_layers, tiny):
    two_layers[3].requires_grad_(False)
    update = gleak.fedsgd(two_layers, tiny)
    with pytest.raises(gleak.MissingKnowledge, match="no gradient of the classifier's 3.weight"):
        update.classifier_gradient()


def test_saved_updates_come_back_whole(tmp_path, batch):
    model = gleak.build_model("resnet18", batch, seed=1)
    update = gleak.fedsgd(model, batch)
    statistics = {"1.bn1": (torch.ones(64), torch.full((64,), 2.0))}
    update = dataclasses.replace(
        update, facts={"lr": 0.1, "own": 3}, precision=0.01, statistics=statistics
    )
    update.save(tmp_path / "update.safetensors")
    loaded = gleak.Update.load(
        tmp_path / "update.safetensors", gleak.build_model("resnet18", batch, seed=2)
    )
    assert loaded.num_samples == 4
    assert loaded.input_shape == (3, 32, 32)
    assert loaded.facts == {"lr": 0.1, "own": 3}
    assert loaded.precision == 0.01
    for value, saved in zip(statistics["1.bn1"], loaded.statistics["1.bn1"], strict=True):
        assert torch.equal(value, saved)
    assert str(loaded) == str(update)
    for name, value in update.gradient.items():
        assert torch.equal(value, loaded.gradient[name])
    noise = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.forward(noise)[1], update.forward(noise)[1])


def test_files_that_are_no_updates_are_refused(tmp_path, batch, tiny, two_layers):
    with pytest.raises(FileNotFoundError, match="no update at"):
        gleak.Update.load(tmp_path / "none", two_layers)
    (tmp_path / "bad").write_bytes(b"\x80\x04pickle or worse")
    with pytest.raises(ValueError, match="not a safetensors file"):
        gleak.Update.load(tmp_path / "bad", two_layers)
    gleak.fedsgd(two_layers, tiny).save(tmp_path / "good")
    with pytest.raises(ValueError, match="the saved model does not fit the model"):
        gleak.Update.load(tmp_path / "good", gleak.build_model("lenet", batch))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad", "good"]
    save_file({"x": torch.ones(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="not one that Update.save wrote"):
        gleak.Update.load(tmp_path / "other", two_layers)
    for about in ("[]", "no JSON", "{}"):
        save_file({"model.x": torch.ones(1)}, tmp_path / "part", metadata={"gleak": about})
        with pytest.raises(ValueError, match="not one that Update.save wrote|not a whole update"):
            gleak.Update.load(tmp_path / "part", two_layers)


def test_an_update_is_of_one_kind(two_layers, tiny):
    sent = dict(gleak.fedsgd(two_layers, tiny).gradient)
    made = gleak.Update(two_layers, 3, (1, 4, 4), gradient=sent)
    assert type(made) is GradientUpdate
    made = gleak.Update(two_layers, 3, (1, 4, 4), weights_after=sent, facts={"lr": 1})
    assert type(made) is WeightsUpdate
    for both in ({}, {"gradient": sent, "weights_after": sent}):
        with pytest.raises(ValueError, match="either a gradient or the weights"):
            gleak.Update(two_layers, 3, (1, 4, 4), **both)
    with pytest.raises(TypeError, match="weights_after"):
        GradientUpdate(two_layers, 3, (1, 4, 4), weights_after=sent)


KINDS = pytest.mark.parametrize("client", [gleak.fedsgd, gleak.fedavg])


@KINDS
def test_nothing_in_an_update_can_be_set(two_layers, tiny, client):
    update = client(two_layers, tiny)
    for mapping in (update.sent, update.facts, update.statistics):
        with pytest.raises(TypeError, match="does not support item assignment"):
            mapping["1.bias"] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        update.num_samples = 7
    own = {"lr": 0.1}  # what its maker does with this later does not matter
    update = dataclasses.replace(update, facts=own)
    own["lr"] = 0.2
    assert update.told("lr") == [0.1]


@pytest.fixture
def passes(monkeypatch):
    """A list that grows with each forward pass of a flatten layer."""
    done = []
    plain = nn.Flatten.forward
    monkeypatch.setattr(nn.Flatten, "forward", lambda *given: done.append(1) or plain(*given))
    return done


@KINDS
def test_a_replaced_or_copied_update_runs_no_forward_pass(two_layers, tiny, client, passes):
    update = client(two_layers, tiny)
    assert passes  # of the client, and the one that finds the classifier
    passes.clear()
    changed = dataclasses.replace(update, facts={"lr": 0.1, "epochs": 2, "batch_size": 3})
    changed.as_gradient()
    defences.clip(changed, 0.1).classifier_gradient()
    defences.aggregate([changed, changed])
    copy.deepcopy(changed)
    str(changed)
    assert not passes
    assert changed.classifier.name == "3"
    changed.forward(tiny.images)
    assert passes


@KINDS
@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda u: pickle.loads(pickle.dumps(u))]
)
def test_copies_are_whole_and_as_closed(tiny, client, copied):
    norm = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3))
    update = dataclasses.replace(
        client(norm, tiny),
        facts={"lr": 0.5},
        statistics={"1": (torch.zeros(16), torch.ones(16))},
        precision=0.01,
    )
    other = copied(update)
    assert type(other) is type(update)
    assert str(other) == str(update)
    for name, value in update.sent.items():
        assert torch.equal(other.sent[name], value)
    assert torch.equal(other.statistics["1"][1], torch.ones(16))
    with pytest.raises(TypeError):
        other.facts["lr"] = 1.0


def test_any_fact_can_be_told(two_layers, tiny):
    update = dataclasses.replace(gleak.fedsgd(two_layers, tiny), facts={"weight_decay": 0.01})
    assert update.told("weight_decay") == [0.01]
    assert "weight_decay = 0.01" in str(update)
    with pytest.raises(gleak.MissingKnowledge, match="needs lr, which"):
        update.told("lr", "weight_decay")


def test_facts_that_leave_no_step_are_refused(two_layers, tiny):
    update = gleak.fedavg(two_layers, tiny)
    facts = {"epochs": 1, "batch_size": 4, "drop_last": True}
    with pytest.raises(ValueError, match="drop_last leaves no step of 4 from 3"):
        dataclasses.replace(update, facts=facts)
    assert dataclasses.replace(update, facts=facts | {"drop_last": False}).local_steps == 1


def test_the_short_form_is_short(batch):
    model = gleak.build_model("resnet18", batch)
    for update in (gleak.fedsgd(model, batch), gleak.fedavg(model, batch)):
        assert len(repr(update)) < 200
        assert "\n" not in repr(update)
        assert "4 samples of 3x32x32, 10 classes" in repr(update)


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        (torch.float64, 2**-53),
        (torch.float32, 2**-24),
        (torch.float16, 2**-11),
        (torch.bfloat16, 2**-8),
    ],
)
@pytest.mark.parametrize("carried", [False, True], ids=["own", "carried"])
def test_the_precision_shows_in_the_digits(batch, dtype, precision, carried):
    update = gleak.fedsgd(gleak.build_model("lenet", batch).double(), batch)
    assert update.precision == 2**-53
    rounded = {name: value.to(dtype) for name, value in update.gradient.items()}
    if carried:  # in a wider format, as a server may keep it
        rounded = {name: value.double() for name, value in rounded.items()}
    short = dataclasses.replace(update, gradient=rounded)
    assert short.precision == precision
    exact, found = (
        torch.cat([value.double().flatten() for value in sent.gradient.values()])
        for sent in (update, short)
    )
    clear = exact.abs() > 1e-4  # float16 has fewer digits below 6e-5
    worst = ((found - exact) / exact)[clear].abs().max()
    assert precision == 2**-53 or precision / 2 < worst <= precision
    assert ("precision" in str(short)) == (precision > 2**-24)
    assert defences.prune(short, 0.5).precision == precision  # zeros tell nothing
    # read anew when other values take its place, unless it was said
    assert dataclasses.replace(short, gradient=update.gradient).precision == 2**-53
    said = dataclasses.replace(short, precision=0.5)
    assert dataclasses.replace(said, gradient=update.gradient).precision == 0.5


def test_few_sizes_are_no_evidence_of_rounding(batch):
    update = gleak.fedsgd(gleak.build_model("lenet", batch), batch)
    few = {
        "zeros": torch.zeros_like,
        "signs": torch.sign,
        "one value": lambda g: torch.full_like(g, 0.5),
        "a grid of 8 bits": lambda g: (g / g.abs().max() * 127).round(),
    }
    for name, change in few.items():
        sent = {n: change(g) for n, g in update.gradient.items()}
        assert dataclasses.replace(update, gradient=sent).precision == 2**-24, name
        sent = {n: g.half() for n, g in sent.items()}
        assert dataclasses.replace(update, gradient=sent).precision == 2**-11, name
    alone = {"1.7.bias": update.gradient["1.7.bias"].bfloat16()}  # ten values in a short format
    assert dataclasses.replace(update, gradient=alone).precision == 2**-8
    assert defences.cast(update, torch.bfloat16).precision == 2**-8


def test_the_precision_of_weights_is_theirs_and_stays_with_their_gradient(batch):
    model = gleak.build_model("lenet", batch)
    update = gleak.fedavg(model, batch, lr=0.1)
    assert update.precision == update.as_gradient().precision == 2**-24
    after = {name: value.bfloat16() for name, value in update.weights_after.items()}
    known = {"num_samples": 4, "input_shape": (3, 32, 32)} | dict(update.facts)
    short = gleak.Update.from_weights(None, after, model, **known)
    assert short.weights_after["1.7.bias"].dtype == torch.float32
    assert short.precision == short.as_gradient().precision == 2**-8
    exact, found = update.equivalent_gradient(), short.equivalent_gradient()
    for name, value in update.weights_after.items():  # the bound of the docstring
        assert ((found[name] - exact[name]).abs() <= 2**-8 * value.abs() / 0.1 + 1e-6).all()


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"2": (torch.ones(16), torch.ones(16))}, "no batch norm layer 2"),
        ({"1": (torch.ones(15), torch.ones(16))}, "a mean and a variance of 16"),
        ({"1": (torch.ones(16), -torch.ones(16))}, "finite, the variance >= 0"),
        ({"1": (torch.ones(16) * torch.nan, torch.ones(16))}, "finite, the variance >= 0"),
        ({"1": (torch.ones(16),)}, "a mean and a variance of 16"),
    ],
)
def test_statistics_of_batch_norm(tiny, statistics, message):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3))
    update = gleak.fedsgd(model, tiny)
    assert "statistics  " not in str(update)
    known = dataclasses.replace(update, statistics={"1": (torch.zeros(16), torch.ones(16))})
    assert "statistics  of what entered 1 batch norm layers" in str(known)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(update, statistics=statistics)
