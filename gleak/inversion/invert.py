"""`invert`: one door for all attacks, on gradients and on weights."""

from collections.abc import Sequence
from typing import Any

import torch

from gleak.inversion.attack import Attack, ClosedForm, Options, check_known
from gleak.inversion.gradients import twice_differentiable
from gleak.inversion.own import Gleak
from gleak.inversion.presets import PAPERS
from gleak.inversion.search import Inversion
from gleak.inversion.update_models import UpdateModel, known_model
from gleak.update import Update

# Name -> attack. A name is a short-hand: `invert` takes the attack itself as well.
ATTACKS: dict[str, Attack] = {**PAPERS, "gleak": Gleak(), "exact": ClosedForm()}


def list_attacks() -> list[str]:
    """The names that `invert` takes.

    Examples
    --------
    >>> list_attacks()
    ['dlg', 'idlg', 'inverting-gradients', 'gradinversion', 'general', 'gleak', 'exact']
    """
    return list(ATTACKS)


def invert(
    update: Update,
    counts: torch.Tensor | Sequence[int],
    attack: str | Attack = "inverting-gradients",
    *,
    iterations: int | None = None,
    seed: int = 0,
    progress: bool = True,
    start: torch.Tensor | str | None = None,
    compile: bool = False,
    update_model: str | UpdateModel | None = None,
    snapshots: Sequence[int] = (),
    **overrides: Any,
) -> Inversion:
    """Images that, with labels as counted, make the client's update.

    Parameters
    ----------
    update
        What the client sent.
    counts : (N,), whole numbers
        How often each class occurs, summing to K (see `restore_labels`).
    attack
        A name (see `list_attacks`) or an `Attack`, also of one's own: anything with a `run`.
        "gleak" chooses the strongest way that the update offers, "exact" is closed form alone.
    iterations
        Steps of the optimiser; the attack's own number by default. Each is one evaluation of the
        loss and its gradient, but twenty for "dlg" and "idlg", as in their papers.
    seed
        Of all random draws.
    progress
        Whether to show a bar.
    start : (K, C, H, W)
        Images to start from, in ascending order of their labels, or the name of a kind of start.
    compile
        Run the step through torch.compile; without a compiler a note says so.
    update_model
        How a candidate batch is turned into what a FedAvg client sends (see `list_update_models`):
        a name, or one of the functions of `gleak.inversion.update_models` with settings of its own,
        such as `partial(path, points=5)`. By default the attack chooses: "gleak" as it says, all
        others take "equivalent", which is all that FedSGD knows.
    snapshots
        Evaluations whose images are kept beside the result, 0 for the start.
    overrides
        Single settings of the attack, such as `tv=1e-3`, `optimizer="lbfgs"`, or `priors=[function
        of images]`.

    Returns
    -------
    Inversion
        The images with the smallest loss, also when Ctrl-C ends the search early.

    Raises
    ------
    ValueError
        For an unknown attack, update model or override, for counts that do not fit the update and
        for an update of zero.
    Contradiction
        Where the update cannot be what the client is said to have sent.
    MissingKnowledge
        Where "exact" has no closed form or the client told less than the update model needs.
    InversionFailed
        When the loss stops being finite.

    References
    ----------
    Each attack names its paper: see `gleak.inversion.presets`.

    Examples
    --------
    >>> import gleak
    >>> batch = gleak.Batch(torch.rand(2, 1, 4, 4), torch.tensor([2, 0]), ["a", "b", "c"])
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> result = invert(gleak.fedsgd(model, batch), [1, 0, 1], iterations=5, progress=False)
    >>> result.images.shape, result.labels.tolist(), result.finished
    (torch.Size([2, 1, 4, 4]), [0, 2], True)
    """
    update.refuse_contradictions()
    labels = labels_of(counts, update).to(update.classifier.weight.device)
    model = None if update_model is None else known_model(update, update_model)
    if not any(tensor.any() for tensor in update.message().values()):
        raise ValueError("the update's gradient is zero: there is nothing to match")
    name = attack if isinstance(attack, str) else type(attack).__name__
    check_known("attack", getattr(attack, "run", attack), ATTACKS)
    chosen = ATTACKS[attack] if isinstance(attack, str) else attack
    if isinstance(start, str):
        overrides["start"], start = start, None
    if iterations is not None:
        overrides["iterations"] = iterations
    if overrides and not isinstance(chosen, Attack):
        raise ValueError(f"{name} has nothing to override; got {', '.join(overrides)}")
    if overrides:
        chosen = chosen.override(**overrides)
    options = Options(seed, progress, start, compile, model, snapshots, name)
    gray = torch.full((2, *update.input_shape), 0.5).to(update.classifier.weight)
    with twice_differentiable(update.model, gray):
        return chosen.run(update, labels, options)


def labels_of(counts: torch.Tensor | Sequence[int], update: Update) -> torch.Tensor:
    """Labels (K,) in ascending order from counts (N,); the order of a batch leaves no trace.

    Raises ValueError for counts that do not fit the update.
    """
    counts = torch.as_tensor(counts)
    if counts.shape != (update.num_classes,) or counts.is_floating_point() or counts.min() < 0:
        raise ValueError(
            f"counts must be {update.num_classes} whole numbers >= 0, one for each class; "
            f"got {counts.dtype} of shape {tuple(counts.shape)}"
        )
    if counts.sum() != update.num_samples:
        raise ValueError(
            f"counts sum to {counts.sum()}, but the update has {update.num_samples} samples"
        )
    return torch.repeat_interleave(torch.arange(len(counts)), counts.cpu())
