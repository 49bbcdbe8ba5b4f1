import numpy as np
import pytest
import torch
from sklearn.utils.extmath import randomized_svd
from torch import nn

import gleak
from gleak.labels import features, low_rank, singles
from gleak.labels.features import image_features
from gleak.labels.last_layer import LastLayer
from gleak.labels.low_rank import first_parts
from gleak.labels.singles import single_images


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(300, 250), (250, 300), (210, 210)])
def test_recorded_numbers_stay_as_scikit_learn_gave_them(shape, kind):
    random = np.random.default_rng(0)
    matrix = random.normal(size=(shape[0], 7)) @ random.normal(size=(7, shape[1]))
    matrix = (matrix + 1e-6 * random.normal(size=shape)).astype(kind)
    expected = randomized_svd(matrix, 9, n_iter=2, random_state=0)
    for found, wanted in zip(first_parts(matrix, 9), expected, strict=True):
        assert found.dtype == kind
        np.testing.assert_array_equal(found, wanted)


def test_a_large_classifier_is_looked_at_without_a_copy(monkeypatch):
    """Features are those that the copy gives; no block in float64 is larger than allowed."""
    draws = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 60), nn.ReLU(), nn.Linear(60, 12))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2, generator=draws)
    images = torch.rand(3, 3, 4, 4, generator=draws)
    batch = gleak.Batch(images, torch.tensor([1, 4, 9]), [str(name) for name in range(12)])
    update = gleak.fedsgd(model, batch)
    copied = image_features(update, batch.label_counts)
    for module in (low_rank, singles, features):
        monkeypatch.setattr(module, "LARGE", 200)
    monkeypatch.setattr(LastLayer, "weight", property(lambda self: pytest.fail("a copy of W")))
    found = image_features(update, batch.label_counts)
    truth, _ = update.forward(images)
    for values, wanted in zip(found, copied, strict=True):
        assert torch.allclose(values, wanted, rtol=1e-6, atol=1e-7)
    assert (found[0] - truth).norm() < 1e-5 * truth.norm()
    assert single_images(update).labels.tolist() == [1, 4, 9]
