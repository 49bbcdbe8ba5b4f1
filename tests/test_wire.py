"""Weights and updates from files that come from outside, honest and malicious ones."""

import io
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import gleak
from gleak.wire import read_tensors


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def run(two_layers, tiny):
    """A model, the facts of a training, and its weights after it as the client has them."""
    facts = {"lr": 0.1, "epochs": 2, "batch_size": 2}
    update = gleak.fedavg(two_layers, tiny, **facts)
    return update, facts | {"num_samples": 3, "input_shape": (1, 4, 4)}


def write(path, tensors):
    if path.suffix == ".safetensors":
        save_file({name: value.detach().contiguous() for name, value in tensors.items()}, path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: value.detach().numpy() for name, value in tensors.items()})
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("ending", [".safetensors", ".npz", ".pt", ".pth"])
def test_an_update_from_files_is_the_clients_own(run, tmp_path, ending, two_layers):
    update, known = run
    before = write(tmp_path / f"before{ending}", dict(update.model.state_dict()))
    after = write(tmp_path / f"after{ending}", dict(update.weights_after))
    with torch.no_grad():
        two_layers[1].weight.zero_()  # the file's weights count, not the model's
    loaded = gleak.Update.from_weights(before, after, two_layers, **known)
    assert str(loaded) == str(update)
    for name, value in update.equivalent_gradient().items():
        torch.testing.assert_close(loaded.equivalent_gradient()[name], value)


def test_an_update_from_arrays_in_the_order_of_the_state_dict(batch):
    model = gleak.build_model("resnet18", batch)
    update = gleak.fedavg(model, batch, lr=0.1, training=False)
    after = model.state_dict() | dict(update.weights_after)
    arrays = [[v.numpy() for v in state.values()] for state in (model.state_dict(), after)]
    known = {"num_samples": 4, "input_shape": (3, 32, 32), "lr": 0.1, "epochs": 1}
    loaded = gleak.Update.from_weights(*arrays, model, training=False, batch_size=4, **known)
    assert loaded.weights_after.keys() == update.weights_after.keys()  # without buffers
    for name, value in update.weights_after.items():
        assert torch.equal(loaded.weights_after[name], value)
    assert loaded.facts == {"lr": 0.1, "epochs": 1, "batch_size": 4}
    names = [name for name, _ in model.named_parameters()]
    few = [[state[name].numpy() for name in names] for state in (model.state_dict(), after)]
    again = gleak.Update.from_weights(*few, model, training=False, batch_size=4, **known)
    for name, value in loaded.weights_after.items():
        assert torch.equal(again.weights_after[name], value)
    counts = gleak.restore_labels(loaded, "zlg-bias", inputs=50)
    assert torch.equal(counts, gleak.restore_labels(update, "zlg-bias", inputs=50))


def test_what_was_not_told_is_missing(run, two_layers):
    update, known = run
    known["lr"] = None
    loaded = gleak.Update.from_weights(None, update.weights_after, two_layers, **known)
    with pytest.raises(gleak.MissingKnowledge, match="lr"):
        loaded.equivalent_gradient()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w | {"1.bias": w["1.bias"] * torch.nan}, "`after` is not finite in 1.bias"),
        (lambda w: w | {"1.bias": w["1.bias"][:2]}, "1.bias has shape"),
        (lambda w: w | {"9.bias": w["1.bias"]}, "it has no 9.bias"),
        (lambda w: w | {"1.bias": "text"}, "not made of numbers"),
        (lambda w: {}, "`after` is empty"),
        (lambda w: list(w.values())[:3], "`after` has 3 arrays; the model has 4 parameters"),
    ],
)
def test_updates_that_do_not_fit_are_refused(run, two_layers, change, message):
    update, known = run
    with pytest.raises(ValueError, match=message):
        gleak.Update.from_weights(None, change(dict(update.weights_after)), two_layers, **known)


def test_before_must_be_whole_and_facts_known(run, two_layers):
    update, known = run
    part = {"1.bias": update.weights_after["1.bias"]}
    with pytest.raises(ValueError, match="`before` does not fit the model: 1.weight, 3.bias"):
        gleak.Update.from_weights(part, part, two_layers, **known)
    with pytest.raises(ValueError, match="facts are plain numbers"):
        gleak.Update.from_weights(None, part, two_layers, labels=[3], **known)


def huge_header(path):
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")


def more_than_it_has(path):
    entry = {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}
    header = json.dumps({"x": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))


def a_pickle(path):
    path.write_bytes(pickle.dumps(Evil(path.parent / "evil"), protocol=2))


def a_torch_file(path):
    torch.save({"x": torch.zeros(1)}, path)


def a_torch_file_with_code(path):
    torch.save({"x": Evil(path.parent / "evil")}, path)


def objects(path):
    np.savez(path, x=np.array([Evil(path.parent / "evil")]))


def npy(shape):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return header.getvalue()


def a_large_claim(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy((10**6, 10**6)) + bytes(64))


def a_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy((10**7,)) + bytes(4 * 10**7))


def no_dict(path):
    torch.save([torch.zeros(1)], path)


def nothing(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("ending", "make", "message"),
    [
        (".safetensors", huge_header, "not a safetensors file.*[Hh]eader"),
        (".safetensors", more_than_it_has, "not a safetensors file"),
        (".safetensors", a_pickle, "not a safetensors file"),
        (".safetensors", a_torch_file, "not a safetensors file"),
        (".safetensors", nothing, "not a safetensors file"),
        (".npz", objects, "holds Python objects"),
        (".npz", a_large_claim, "claims 4,000,000,000,000 bytes and has"),
        (".npz", a_bomb, "would unpack to"),
        (".npz", a_pickle, "not a file of plain NumPy arrays"),
        (".npz", nothing, "not a file of plain NumPy arrays"),
        (".npz", a_torch_file, "magic"),
        (".pt", a_torch_file_with_code, "more than tensors, which can run code; refused"),
        (".pth", a_pickle, "no plain state dict: it is damaged, or holds more than"),
        (".pt", no_dict, "holds no state dict"),
        (".pt", nothing, "not a file of torch.save"),
        (".pkl", a_pickle, "weights are read from .safetensors, .npz, .pt, .pth"),
    ],
)
def test_malicious_and_damaged_files(tmp_path, ending, make, message):
    path = tmp_path / f"x{ending}"
    make(path)
    with pytest.raises(ValueError, match=message):
        read_tensors(path)
    assert not (tmp_path / "evil").exists()


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        read_tensors(tmp_path / "x.npz")


def test_a_state_dict_in_a_wrapper(tmp_path):
    torch.save({"state_dict": {"x": torch.ones(2)}, "epoch": 3}, tmp_path / "x.pth")
    assert read_tensors(tmp_path / "x.pth")["x"].tolist() == [1, 1]
