import pytest
import torch
from PIL import Image

import gleak
from gleak import pools, training


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GLEAK_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "size", "shape", "classes"),
    [
        ("mnist-5k", 2500, (1, 28, 28), 10),
        ("digits", 899, (1, 32, 32), 10),
        ("imagenet-crops", 1000, (3, 32, 32), 20),
    ],
)
def test_pools_are_split_without_overlap(name, size, shape, classes):
    server, client = (gleak.load_pool(name, part) for part in ("server", "client"))
    assert len(client) == size
    assert server.images.shape[1:] == shape
    assert server.num_classes == len(set(client.labels.tolist())) == classes
    assert len(set(server.labels.tolist())) == classes  # both halves of these have all classes
    seen = {image.numpy().tobytes() for image in server.images}
    again = sum(image.numpy().tobytes() in seen for image in client.images)
    assert again <= 5  # crops of one plain surface are alike to the last bit


def test_no_pixel_of_a_photograph_is_on_both_sides(monkeypatch):
    side = pools.SIDE
    column = torch.arange(side).expand(side, -1)
    numbered = torch.stack([column, column.T, torch.zeros(side, side)]) / side
    photographs = gleak.Batch(numbered.repeat(20, 1, 1, 1), torch.arange(20), list("ab" * 10))
    monkeypatch.setattr(pools, "load_batch", lambda *_, **__: photographs)
    touched = {}
    for part in ("server", "client"):
        crops = pools.imagenet_crops.__wrapped__(part)
        touched[part] = torch.zeros(20, side, side, dtype=torch.bool)
        for image, label in zip(crops.images, crops.labels, strict=True):
            x, y = (image[:2] * side).round().long()
            touched[part][label, y, x] = True
    assert not (touched["server"] & touched["client"]).any()
    for part, pixels in touched.items():
        assert pixels.float().mean() > 0.4, part  # of 0.49; corners are in few crops
    columns = {part: pixels.any(1) for part, pixels in touched.items()}
    near = torch.nn.functional.max_pool1d(columns["server"].float(), 3, 1, 1).bool()
    assert not (near & columns["client"]).any()  # the gap: not even neighbours


def test_training_learns_and_the_checkpoint_is_the_model(cache):
    model = gleak.trained_model("lenet", "digits", steps=60, activation="relu")
    clients = gleak.load_pool("digits")
    assert training.accuracy(model, clients) > 0.6
    untrained = gleak.trained_model("lenet", "digits", steps=0, activation="relu")
    assert training.accuracy(untrained, clients) < 0.3
    (file,) = cache.glob("*.safetensors")
    written = file.stat().st_mtime_ns
    again = gleak.trained_model("lenet", "digits", steps=60, activation="relu")
    assert file.stat().st_mtime_ns == written
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_a_damaged_checkpoint_is_made_anew(cache):
    first = gleak.trained_model("lenet", "digits", steps=2)
    (file,) = cache.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-4] + b"oops")
    second = gleak.trained_model("lenet", "digits", steps=2)
    assert torch.equal(first[1][0].weight, second[1][0].weight)
    assert gleak.trained_model("lenet", "digits", steps=2)[1][0].weight.isfinite().all()


def test_stages_and_seeds_have_checkpoints_of_their_own(cache):
    gleak.trained_model("lenet", "digits", steps=1)
    gleak.trained_model("lenet", "digits", steps=2)
    gleak.trained_model("lenet", "digits", steps=2, seed=1)
    assert len(list(cache.glob("*.safetensors"))) == 3


def folder_of(root, colours):
    """Plain images, of two classes in turn."""
    for n, colour in enumerate(colours):
        file = root / "ab"[n % 2] / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(file)
    return f"folder:{root}"


def test_any_data_set_is_a_pool(tmp_path):
    server, client = (gleak.load_pool("fashion-mnist-samples", p) for p in ("server", "client"))
    assert len(server) == len(client) == 10
    seen = {image.numpy().tobytes() for image in server.images}
    assert not any(image.numpy().tobytes() in seen for image in client.images)
    drawn = gleak.draw_batch(client, 64, seed=1)  # of the classes that this half has
    assert set(drawn.labels.tolist()) <= set(client.labels.tolist())
    with pytest.raises(ValueError, match="has one image; a pool needs one for each half"):
        (tmp_path / "b").mkdir()
        gleak.load_pool(folder_of(tmp_path, ["red"]))


def test_a_pool_of_a_large_set_is_drawn_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(pools, "MOST", 4)
    pool = folder_of(tmp_path, ["red", "blue", "lime", "black", "white", "gray", "navy"])
    halves = [gleak.load_pool(pool, part) for part in ("server", "client")]
    assert [len(half) for half in halves] == [2, 2]
    assert len({tuple(image[:, 0, 0].tolist()) for half in halves for image in half.images}) == 4


def test_a_folder_that_changed_does_not_meet_an_old_checkpoint(cache, tmp_path):
    pool = folder_of(tmp_path / "data", ["red", "blue", "lime", "black"])
    first = gleak.trained_model("lenet", pool, steps=2)
    assert len(list(cache.glob("*.safetensors"))) == 1
    folder_of(tmp_path / "data", ["navy", "white", "pink", "gray"])
    second = gleak.trained_model("lenet", pool, steps=2)
    assert len(list(cache.glob("*.safetensors"))) == 2
    assert not torch.equal(first[1][0].weight, second[1][0].weight)
    assert torch.equal(first[0].mean, second[0].mean)


def test_refusals():
    with pytest.raises(ValueError, match="unknown pool 'svnh'; known: mnist-5k, digits.*svhn"):
        gleak.load_pool("svnh")
    with pytest.raises(FileNotFoundError, match="no folder"):
        gleak.load_pool("folder:nowhere")
    with pytest.raises(ValueError, match="unknown part 'test'"):
        gleak.load_pool("digits", "test")
    with pytest.raises(ValueError, match="steps must be at least 0"):
        gleak.trained_model("lenet", "digits", steps=-1)
