import numpy as np
import pytest
from sklearn.utils.extmath import randomized_svd

from gleak.labels.low_rank import first_parts


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
