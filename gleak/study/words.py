"""Readers' words for what the code calls by short names: methods, columns, networks, data.

"gleak" alone names a rule, an attack and a procedure in the code, so a name goes with its kind.
"""

from collections.abc import Hashable, Iterable
from typing import Any

import pandas as pd

RULES = {
    "zlg": "the paper's rule",
    "zlg-bias": "the paper's rule, bias only",
    "gleak": "the study's rule",
    "idlg": "iDLG",
    "gradinversion": "GradInversion",
    "llg": "LLG",
    "llg-star": "LLG*",
    "llg-plus": "LLG+ (own data)",
    "ebi": "EBI",
    "llbg": "LLBG",
    "ilrg": "iLRG",
    "posterior": "posterior (own data)",
    "rlu": "RLU (own data)",
    "confusion": "confusion (own data)",
    "oracle": "the batch's own softmax",
    "even": "guess: all classes equal",
}
ATTACKS = {
    "general": "the paper's attack",
    "gleak": "the study's attack",
    "exact": "closed form alone",
    "inverting-gradients": "Inverting Gradients",
    "gradinversion": "GradInversion",
    "dlg": "DLG",
    "idlg": "iDLG",
    "sme-here": "SME, as written here",
    "sme-authors": "SME, its authors' code",
}
PROCEDURES = {
    "equivalent": "the paper's procedure",
    "middle": "matching in the middle",
    "gleak": "the study's procedure",
    "path": "gradients along the path",
    "sme": "SME",
    "nl-sme": "NL-SME",
    "unrolled": "simulated training",
}
NETWORKS = {
    "lenet": "LeNet",
    "lenet-relu": "LeNet with ReLU",
    "lenet, ReLU": "LeNet with ReLU",
    "lenet, sigmoid": "LeNet with sigmoids",
    "lenet, tanh": "LeNet with tanh",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "efficientnet-lite0": "EfficientNet-Lite0",
}
DATA = {
    "cifar10-samples": "CIFAR-10",
    "cifar100-samples": "CIFAR-100",
    "imagenet-samples": "ImageNet",
    "mnist-samples": "MNIST",
    "fashion-mnist-samples": "Fashion-MNIST",
    "mnist-5k": "5000 digits of MNIST",
    "digits": "digits of 8×8 pixels",
    "imagenet-crops": "crops of photographs",
}
COLUMNS = {
    "K": "images, K",
    "N": "classes, N",
    "E": "local epochs, E",
    "B": "local batch, B",
    "lr": "learning rate",
    "local_epochs": "local epochs, E",
    "steps": "steps of training",
    "step": "steps of training",
    "pool": "data",
    "method": "method",
    "update_model": "procedure",
    "instance": "labels right",
    "corrected": "labels right, above chance",
    "LnAcc": "labels right (LnAcc)",
    "LeAcc": "classes found (LeAcc)",
    "chance": "by chance",
    "at_least": "at least",
    "psnr": "PSNR (dB)",
    "PSNR": "PSNR (dB)",
    "ssim": "SSIM",
    "mean_colour": "mean colour (dB)",
    "flat": "mean colour (dB)",
    "flat colour": "mean colour (dB)",
    "thumb4": "4×4 thumbnail (dB)",
    "4×4": "4×4 thumbnail (dB)",
    "thumb8": "8×8 thumbnail (dB)",
    "8×8": "8×8 thumbnail (dB)",
    "thumbnail": "8×8 thumbnail (dB)",
    "lowest": "lowest (dB)",
    "highest": "highest (dB)",
    "exact": "exact",  # the score, not the attack
    "lowest_seed": "lowest seed (dB)",
    "above_20": "images above 20 dB",
    "above_20_dB": "images above 20 dB",
    "gain": "gain over the mean colour (dB)",
    "worth": "change of PSNR (dB)",
    "match": "restored image",
    "touched": "class with a wrong count",
    "untouched": "class with a right count",
    "others": "class with a right count",
    "moved": "change of the weights",
    "cosine": "cosine of first and last gradient",
    "seconds": "time (s)",
    "cpu_seconds": "CPU time (s)",
    "CPU_seconds": "CPU time (s)",
    "usual": "usual attack (dB)",
    "knowing": "attack that knows (dB)",
    "labels_usual": "labels right, usual attack",
    "labels_knowing": "labels right, attack that knows",
}
VARIANTS = {  # what stands behind a method's name and a comma
    "exact": "batches all right",
    "start": "softmax at the start",
    "average": "mean softmax",
    "end": "softmax at the end",
    "lr scanned": "rate scanned",
    "no lr": "rate not known",
}
METHODS = {"rule": RULES, "attack": ATTACKS, "procedure": PROCEDURES}
KINDS = METHODS | {"network": NETWORKS, "data": DATA, "column": COLUMNS}
# What the code calls a level or a column -> the kind of its values; of methods, the likely one.
HOLDS = {
    "method": "rule",
    "rule": "rule",
    "attack": "attack",
    "procedure": "procedure",
    "update_model": "procedure",
    "network": "network",
    "model": "network",
    "dataset": "data",
    "pool": "data",
}


def name(code: str, kind: str) -> str:
    """The words for a name of the code; one that nobody knows stays as it is.

    >>> name("gleak", "rule"), name("gleak", "attack"), name("zlg-bias, start", "rule")
    ("the study's rule", "the study's attack", "the paper's rule, bias only, softmax at the start")

    Parameters
    ----------
    code
        A name of `KINDS[kind]`; for a method also with a variant of it after a comma.
    kind
        "rule", "attack", "procedure", "network", "data" or "column".

    Raises
    ------
    ValueError
        For another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"a kind is one of {', '.join(KINDS)}; got {kind!r}")
    known = KINDS[kind]
    if code in known:
        return known[code]
    first, comma, variant = code.partition(", ")
    if kind in METHODS and comma and first in known:
        return f"{known[first]}, {VARIANTS.get(variant, variant)}"
    return code


def series(items: Iterable[object]) -> str:
    """Things as people list them; *nothing* for none.

    >>> series([8, 64, 512])
    '8, 64 and 512'
    """
    *most, last = [str(item) for item in items] or ["nothing"]
    return f"{', '.join(most)} and {last}" if most else last


def on(network: str) -> str:
    """On which network, as a condition.

    >>> on("resnet18")
    'on the ResNet-18'
    """
    return f"on the {name(network, 'network')}"


def readable(frame: pd.DataFrame, kind: str | None = None) -> pd.DataFrame:
    """A copy whose labels, and names of methods, networks and data, are readers' words.

    Parameters
    ----------
    frame
        Also with levels. Twice is once: what is readable stays as it is.
    kind
        What the methods in it are: "rule", "attack" or "procedure". By default those that stand
        beside them tell, or the name of the column or level.

    Raises
    ------
    ValueError
        Where "gleak" stands alone and nothing tells of which kind it is.
    """
    shown = frame.copy()
    for place, column in enumerate(frame.columns):
        last = column[-1] if isinstance(column, tuple) else column
        if last in HOLDS:
            shown.isetitem(place, words(frame.iloc[:, place], last, kind))
    shown.index = readable_axis(frame.index, kind)
    shown.columns = readable_axis(frame.columns, kind)
    return shown


def readable_axis(axis: pd.Index, kind: str | None) -> pd.Index:
    """The labels of an axis, and the names of its levels, in words."""
    levels = [
        words(axis.get_level_values(place), level, kind) for place, level in enumerate(axis.names)
    ]
    names = [name(level, "column") if isinstance(level, str) else level for level in axis.names]
    if isinstance(axis, pd.MultiIndex):
        return pd.MultiIndex.from_arrays(levels, names=names)
    return pd.Index(levels[0], name=names[0])


def words(values: Iterable[Any], where: Hashable, kind: str | None) -> list[Any]:
    """Values of a column or level called `where` in words; what is no text stays as it is."""
    values = list(values)
    held = HOLDS.get(where) if isinstance(where, str) else None
    labels = {} if held else COLUMNS | NETWORKS | DATA
    if held not in ("network", "data"):
        texts = {value for value in values if isinstance(value, str)} - labels.keys()
        held = method_kind({text.partition(", ")[0] for text in texts}, kind, held)

    def in_words(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return labels.get(value) or (name(value, held) if held else value)

    return [in_words(value) for value in values]


def method_kind(methods: set[str], said: str | None, likely: str | None) -> str | None:
    """The kind of methods that stand together; None where there is none among them.

    said: what the caller says of them; likely: what the name of their level does.
    """
    if said is not None and said not in METHODS:
        raise ValueError(f"a kind of methods is one of {', '.join(METHODS)}; got {said!r}")
    of = {kind: methods & known.keys() for kind, known in METHODS.items()}
    if said or not any(of.values()):
        return said if said and of[said] else None
    telling = [kind for kind in METHODS if of[kind] - {"gleak", "idlg", "gradinversion"}]
    if len(telling) == 1:
        return telling[0]
    if likely is None and "gleak" in methods:
        asked = ", ".join(sorted(methods))
        raise ValueError(f"say of which kind {asked} are: {', '.join(METHODS)}")
    return likely or next(kind for kind in METHODS if of[kind])
