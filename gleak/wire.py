"""Named tensors from files that anybody may have written: read as data, never run as code."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

FORMATS = (".safetensors", ".npz", ".pt", ".pth")


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Name -> tensor from safetensors, NumPy's .npz, or what torch.save wrote of a state dict.

    Raises FileNotFoundError; ValueError for another ending, a file that is damaged or of another
    format than its ending says, one that holds code (a pickle of more than tensors), or one that
    claims more data than it has.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: weights are read from {', '.join(FORMATS)}")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)  # checks its header against the size of the file
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from None
    return read_npz(path) if path.suffix == ".npz" else read_torch(path)


def read_npz(path: Path) -> dict[str, torch.Tensor]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as file:
                    check_claim(file, member.file_size, f"{path}: {member.filename}")
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > 100 * path.stat().st_size:
            raise ValueError(f"{path} would unpack to {unpacked:,} bytes; refused")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}
    except (zipfile.BadZipFile, EOFError, TypeError, OSError) as error:
        raise ValueError(f"{path} is not a file of plain NumPy arrays: {error}") from None


def check_claim(file, size: int, what: str) -> None:
    """Refuse an array of Python objects, or one larger than its bytes in the archive."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.hasobject:
        raise ValueError(f"{what} holds Python objects, which can run code; refused")
    claimed = dtype.itemsize
    for length in shape:
        claimed *= length
    if claimed > size:
        raise ValueError(f"{what} claims {claimed:,} bytes and has {size:,}; refused")


def read_torch(path: Path) -> dict[str, torch.Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # its message tells how to run the code all the same
        raise ValueError(
            f"{path} is no plain state dict: it is damaged, or holds more than tensors, which can "
            "run code; refused"
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a file of torch.save: {error}") from None
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]  # as many training scripts wrap it
    if not isinstance(found, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in found.values()
    ):
        raise ValueError(f"{path} holds no state dict (name -> tensor)")
    return dict(found)
