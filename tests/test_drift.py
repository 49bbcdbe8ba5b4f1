import pytest
import torch

import gleak
from gleak.inversion import labels_of, sme, unrolled
from gleak.inversion.drift import as_gradient, undrifted
from gleak.inversion.peel import image_features


def error(found, truth) -> float:
    return ((found - truth).norm() / truth.norm()).item()


def test_the_true_images_undo_the_drift_exactly(batch):
    double = gleak.Batch(batch.images.double(), batch.labels, batch.class_names)
    net = gleak.build_model("convnet", batch, seed=1).double()
    update = gleak.fedavg(net, double, epochs=5, lr=0.05)
    flat, distance = undrifted(update, double.images, batch.labels, unrolled)
    assert distance < 1e-10
    for name, truth in gleak.fedsgd(net, double).gradient.items():
        assert error(flat.gradient[name], truth) < 1e-10


def test_a_rough_guess_of_the_images_brings_the_features_nearer(batch):
    net = gleak.build_model("convnet", batch, seed=1)
    update = gleak.fedavg(net, batch, epochs=5, lr=0.01)
    labels = labels_of(batch.label_counts, update)
    truth = batch.images[batch.labels.argsort()]
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    exact, _ = update.forward(truth)
    before = as_gradient(update, update.equivalent_gradient())
    after, distance = undrifted(update, truth + 0.1 * noise, labels, unrolled)
    half, _ = undrifted(update, truth + 0.1 * noise, labels, sme)
    errors = [
        error(image_features(flat, batch.label_counts, 0.05)[0], exact.double())
        for flat in (before, half, after)
    ]
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.5 * errors[0]
    assert 0.01 < distance < 0.5


@pytest.mark.parametrize("settings", [{"epochs": 5}, {"epochs": 2, "batch_size": 2}])
def test_gleak_undoes_the_drift_in_rounds(batch, settings):
    net = gleak.build_model("convnet", batch, seed=1)
    update = gleak.fedavg(net, batch, lr=0.01, **settings)
    options = {"iterations": 60, "update_model": "unrolled", "progress": False}
    result = gleak.invert(update, batch.label_counts, "gleak", **options)
    distances = result.history["distance_of_weights"]
    assert len(result.history) == 60
    assert distances.iloc[-1] < distances.iloc[0]
    assert result.images.shape == batch.images.shape
    again = gleak.invert(update, batch.label_counts, "gleak", **options)
    assert torch.equal(result.images, again.images)


def test_without_a_closed_form_the_update_model_is_matched(batch):
    net = gleak.build_model("lenet", batch, activation="relu", seed=1)
    update = gleak.fedavg(net, batch, epochs=2, lr=0.05, reveal=())  # no scale, no closed form
    result = gleak.invert(
        update, batch.label_counts, "gleak", iterations=8, update_model="sme", progress=False
    )
    assert "distance_of_weights" not in result.history
    assert len(result.history) == 8


def test_what_rounds_cannot_take_is_refused(batch):
    update = gleak.fedavg(gleak.build_model("convnet", batch), batch, epochs=2)
    with pytest.raises(ValueError, match="takes no snapshots, statistics or precision"):
        gleak.invert(update, batch.label_counts, "gleak", update_model="unrolled", snapshots=[0])
