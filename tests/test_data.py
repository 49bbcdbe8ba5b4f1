import pytest
import torch

import gleak


@pytest.mark.parametrize(
    ("name", "shape", "first_labels", "num_classes"),
    [
        ("cifar10-samples", (3, 32, 32), [3, 8, 8, 0, 6], 10),
        ("cifar100-samples", (3, 32, 32), [49, 33, 72, 51, 71], 100),
        ("imagenet-samples", (3, 224, 224), [243, 559, 438, 990, 949], 1000),
        ("mnist-samples", (1, 28, 28), [7, 2, 1, 0, 4], 10),
        ("fashion-mnist-samples", (1, 28, 28), [9, 2, 1, 1, 6], 10),
    ],
)
def test_samples_are_the_known_test_images(name, shape, first_labels, num_classes):
    batch = gleak.load_batch(name, indices=range(5))
    assert batch.images.shape == (5, *shape)
    assert batch.labels.tolist() == first_labels
    assert batch.num_classes == num_classes
    assert batch.images.std() > 0.1  # a picture, not a constant


def test_class_names_fit_the_labels():
    names = gleak.load_batch("cifar100-samples", indices=[0, 1, 2])
    assert [names.class_names[n] for n in names.labels] == ["mountain", "forest", "seal"]
    dogs = gleak.load_batch("imagenet-samples", indices=[0], image_size=32)
    assert dogs.class_names[dogs.labels[0]] == "bull mastiff"


def test_every_set_in_the_list_loads():
    for name in gleak.list_datasets():
        assert len(gleak.load_batch(name, size=2, image_size=16)) == 2
    assert "cifar10" in gleak.list_datasets(shipped=False)


def test_drawing_is_fixed_by_the_seed_and_can_avoid_repeated_labels():
    first = gleak.load_batch("cifar10-samples", size=8, seed=5, distinct_labels=True)
    again = gleak.load_batch("cifar10-samples", size=8, seed=5, distinct_labels=True)
    other = gleak.load_batch("cifar10-samples", size=8, seed=6, distinct_labels=True)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert len(set(first.labels.tolist())) == 8


def test_counts():
    batch = gleak.load_batch("cifar10-samples", indices=[0, 1, 2, 3])
    assert batch.label_counts.tolist() == [1, 0, 0, 1, 0, 0, 0, 0, 2, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "cifar11", "size": 1}, "unknown data set 'cifar11'; known: cifar10-samples"),
        ({"dataset": "mnist-samples", "indices": [3, 20]}, r"0\.\.19; there is no \[20\]"),
        ({"dataset": "mnist-samples", "indices": [-1]}, r"there is no \[-1\]"),
        ({"dataset": "mnist-samples", "indices": []}, "empty batch"),
        ({"dataset": "mnist-samples"}, "either indices"),
        ({"dataset": "mnist-samples", "indices": [0], "size": 1}, "either indices"),
        ({"dataset": "mnist-samples", "size": 0}, "size is 1..20; got 0"),
        ({"dataset": "mnist-samples", "size": 21}, "there are 20 images"),
        ({"dataset": "cifar10-samples", "size": 9, "distinct_labels": True}, "8 distinct labels"),
    ],
)
def test_load_batch_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        gleak.load_batch(**arguments)


IMAGES = torch.full((2, 3, 8, 8), 0.5)
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES * 3, LABELS, r"in \[0, 1\]"),
        (IMAGES - 1, LABELS, r"in \[0, 1\]"),
        (IMAGES * torch.nan, LABELS, r"in \[0, 1\]"),
        (IMAGES[0], LABELS, "shape"),
        ((IMAGES * 255).byte(), LABELS, "float tensor"),
        (IMAGES[:0], LABELS[:0], "empty batch"),
        (IMAGES, LABELS[:1], "labels must be a long tensor"),
        (IMAGES, LABELS.float(), "labels must be a long tensor"),
        (IMAGES, LABELS + 1, r"0\.\.1"),
        (IMAGES, LABELS - 1, r"0\.\.1"),
    ],
)
def test_batch_refuses(images, labels, message):
    with pytest.raises(ValueError, match=message):
        gleak.Batch(images, labels, ["cat", "dog"])
