import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gleak
from gleak.update import find_classifier

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
    known = {"model", "num_samples", "input_shape", "gradient", "weights_after", "facts"}
    assert fields == known | {"classifier"}
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
        ({"num_samples": 0}, "num_samples must be at least 1"),
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
    update = dataclasses.replace(update, facts={"lr": 0.1})
    update.save(tmp_path / "update.safetensors")
    loaded = gleak.Update.load(
        tmp_path / "update.safetensors", gleak.build_model("resnet18", batch, seed=2)
    )
    assert loaded.num_samples == 4
    assert loaded.input_shape == (3, 32, 32)
    assert loaded.facts == {"lr": 0.1}
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
