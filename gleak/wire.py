"""Named tensors on their way: files, which anybody may have written, are read as data and never run
as code; what they hold is checked against the model; and how exact it is can be seen.
"""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from gleak.storage import whole

FORMATS = (".safetensors", ".npz", ".pt", ".pth")

# What wrappers of a network put before the names of its parameters: nn.DataParallel and
# DistributedDataParallel, torch.compile, and Opacus.
WRAPPERS = ("module.", "_orig_mod.", "_module.")

# Names that NumPy gives to arrays without one.
NUMBERED = re.compile(r"arr_\d+")

# Tensors as any client or server stored them: a file of one of FORMATS, a mapping of name to tensor
# or array, or arrays in the order of `model.state_dict()`.
Weights = str | Path | Mapping[str, Any] | Sequence[Any]

# The largest relative error of rounding to a format: half a digit of its significand.
ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-24}
ROUNDING[torch.float64] = 2**-53
# A float32 drawn at random is exact in bfloat16 with a chance of 2^-16, in float16 of 2^-13. But
# whole numbers, signs, an 8-bit grid (127 sizes) and numbers made by hand are so without having
# been rounded. Values of as many different sizes as this are none of these.
MANY = 128


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


def check_claim(file: IO[bytes], size: int, what: str) -> None:
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it looks at sparse tensors closely
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # its message tells how to run the code all the same
        raise ValueError(
            f"{path} is no plain state dict: it is damaged, or holds more than tensors, which can "
            "run code; refused"
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a file of torch.save: {error}") from None
    for key in ("state_dict", "model_state_dict", "model"):  # as many training scripts wrap it
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in found.values()
    ):
        raise ValueError(f"{path} holds no state dict (name -> tensor)")
    return dict(found)


def write_parts(
    path: str | Path, parts: Mapping[str, Mapping[str, torch.Tensor]], about: Mapping[str, Any]
) -> None:
    """One safetensors file of several sets of named tensors, with facts about them as JSON."""
    tensors = {
        f"{part}.{name}": value.detach().contiguous().clone()  # shared storage is refused
        for part, named in parts.items()
        for name, value in named.items()
    }
    with whole(path) as partial:
        save_file(tensors, partial, metadata={"gleak": json.dumps(about)})


def read_parts(
    path: str | Path, names: Iterable[str]
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """What `write_parts` wrote: the parts of these names, empty where the file has none, and facts.

    Raises FileNotFoundError, or ValueError for any other file.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no update at {path}")
    parts: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
    refused = ValueError(f"{path} is a safetensors file, but not one that Update.save wrote")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("gleak", "null"))
            for key in file.keys():  # noqa: SIM118
                part, _, name = key.partition(".")
                if part not in parts:
                    raise refused
                parts[part][name] = file.get_tensor(key)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from None
    except json.JSONDecodeError:
        raise refused from None
    if not isinstance(about, dict):
        raise refused
    return parts, about


def named_tensors(
    weights: Weights, own: Mapping[str, Any], parameters: Mapping[str, Any], what: str
) -> dict[str, torch.Tensor]:
    """Name -> tensor, from a file, a mapping, or a sequence in the order of a state dict.

    own, parameters: the model's state dict, and its parameters alone; what: a word for errors.

    A file of arrays without names is such a sequence.

    Raises ValueError for another number of arrays, or what is not made of numbers.
    """
    if isinstance(weights, str | Path):
        weights = read_tensors(weights)
    if isinstance(weights, Mapping) and numbered(weights):
        weights = [weights[name] for name in sorted(weights, key=lambda name: int(name[4:]))]
    if not isinstance(weights, Mapping):
        weights = list(weights)
        names = parameters if len(weights) == len(parameters) else own
        if len(weights) != len(names):
            raise ValueError(
                f"`{what}` has {len(weights)} arrays; the model has {len(parameters)} parameters, "
                f"{len(own)} with its buffers"
            )
        weights = dict(zip(names, weights, strict=True))
    try:
        tensors = {name: dense(torch.as_tensor(value)) for name, value in weights.items()}
        return without_prefix(tensors, own)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`{what}` is not made of numbers: {error}") from None


def numbered(names: Iterable[str]) -> bool:
    """Whether arrays came without names, by np.savez(file, *arrays), as servers of Flower do it.

    >>> numbered(["arr_0", "arr_1"]), numbered(["0.bias"])
    (True, False)
    """
    found = list(names)
    return bool(found) and all(map(NUMBERED.fullmatch, found))


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """A sparse tensor with its zeros; any other as it is."""
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def without_prefix(
    tensors: Mapping[str, torch.Tensor], own: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """The tensors by the names of one's own, where all that differs is the WRAPPERS before them.

    Unless all names fit without these, the tensors keep theirs.

    >>> list(without_prefix({"module.0.bias": torch.ones(1)}, {"0.bias": None, "0.weight": None}))
    ['0.bias']
    """
    known = {bare(name): name for name in own}
    if tensors.keys() <= own.keys() or not {bare(name) for name in tensors} <= known.keys():
        return dict(tensors)
    return {known[bare(name)]: value for name, value in tensors.items()}


def bare(name: str) -> str:
    """The name of a parameter without the WRAPPERS before it."""
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


def trained_weights(
    before: Weights | None, after: Weights, model: nn.Module, delta: bool = False
) -> dict[str, torch.Tensor]:
    """Put `before` into the model; the parameters in `after` that its client trains, name -> value.

    before: all parameters, with or without buffers; None leaves the model as it stands.
    delta: whether `after` holds what is to be added to those before.

    Raises ValueError where names, shapes or values do not fit.
    """
    own, parameters = model.state_dict(), dict(model.named_parameters())
    if before is not None:
        put_weights(model, before)
    end = named_tensors(after, own, parameters, "after")
    check_fits(end, own, what="`after`")
    trained = {name for name, p in parameters.items() if p.requires_grad}
    kept = {name: value.to(own[name]) for name, value in end.items() if name in trained}
    if not kept:
        raise ValueError("`after` holds no parameter of the model that is trained")
    if delta:
        return {name: parameters[name].detach() + change for name, change in kept.items()}
    return kept


def put_weights(model: nn.Module, weights: Weights) -> None:
    """Put the weights before training into the model: all parameters, with or without buffers.

    Raises ValueError where names, shapes or values do not fit.
    """
    own, parameters = model.state_dict(), dict(model.named_parameters())
    start = named_tensors(weights, own, parameters, "before")
    check_fits(start, own, what="`before`")
    sent = {name: value for name, value in start.items() if name in parameters}
    check_fits(sent, parameters, what="`before`", complete=True)
    model.load_state_dict(start, strict=False)


def check_fits(
    tensors: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    what: str = "the gradient",
    complete: bool = False,
) -> None:
    """Raise ValueError unless names and shapes agree and all values are finite."""
    if not tensors:
        raise ValueError(f"{what} is empty")
    unknown = sorted(set(tensors) - set(expected))
    if unknown:
        raise ValueError(f"{what} does not fit the model: it has no {', '.join(unknown[:5])}")
    missing = sorted(set(expected) - set(tensors))
    if complete and missing:
        raise ValueError(f"{what} does not fit the model: {', '.join(missing[:5])} is missing")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{what} does not fit the model: {name} has shape {tuple(tensor.shape)}, "
                f"the model's {tuple(expected[name].shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{what} is not finite in {name}")


def precision_of(tensors: Iterable[torch.Tensor]) -> float:
    """The relative error that rounding left in the values, as their digits tell.

    It is that of the coarsest of bfloat16 (2^-8), float16 (2^-11), float32 (2^-24) and float64
    (2^-53) in which all of them are exact, so a float32 tensor that carries bfloat16 values is
    noticed. Where the values have fewer than MANY different sizes, it is that of their dtype:
    zeros, signs and small whole numbers are exact in every format and tell nothing.

    What was computed with after rounding does not show it any more.

    >>> noise = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    >>> precision_of([noise]) == 2**-24, precision_of([noise.bfloat16().float()]) == 2**-8
    (True, True)
    >>> precision_of([torch.ones(1000)]) == 2**-24
    True
    """
    values = list(tensors)
    own = values[0].dtype
    for tensor in values[1:]:
        own = torch.promote_types(own, tensor.dtype)
    for coarser, error in ROUNDING.items():
        if error <= ROUNDING[own]:
            break
        if all(torch.equal(v.to(coarser).to(v.dtype), v) for v in values):
            sizes = torch.cat([v.detach().abs().flatten().double() for v in values]).unique()
            return error if (sizes > 0).sum() >= MANY else ROUNDING[own]
    return ROUNDING[own]
