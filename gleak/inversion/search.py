"""The search for the minimum of an Objective: starts, optimisers, and the record of the way."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch.nn import functional as F
from tqdm import tqdm

from gleak.inversion.journal import Page
from gleak.inversion.objective import Inputs, Objective
from gleak.inversion.update_models import merge_epochs

if TYPE_CHECKING:
    from gleak.inversion.attack import GradientMatching, Options

ARMIJO = 1e-4  # of the fall that its slope promises, what torch's line search asks of a step
# Steps from which L-BFGS knows the curvature: 100 in the code of its papers. Older ones are worth
# keeping where rounding does not hide what they tell.
MEMORY = {torch.float32: 100, torch.float64: 200}
# Relative loss below which float32's rounding hides from a line search which of two is lower.
CLOSE = (2 * torch.finfo(torch.float32).eps / ARMIJO) ** 2
# torch's L-BFGS learns nothing from a step along which the gradient changed by less than 1e-10, an
# absolute number. Relative losses in float32 end near (2^-23)^2 = 1.4e-14: times this, above it.
STEEPER = 2.0**20


@dataclass(frozen=True, eq=False)
class Inversion:
    """Restored images, and how the search went.

    Parameters
    ----------
    images : (K, C, H, W)
        In [0, 1].
    labels : (K,)
        Of the images, in ascending order.
    history
        A frame with a row for each evaluation: loss, distance, and the terms of the loss. That is
        one for each iteration, but for L-BFGS (see `evaluations` of the attack).
    attack
        The settings that were used, None where nothing was searched.
    learnt
        What the update model learnt of its own, such as the point of `sme`.
    snapshots
        Row of the history to images as they were then, where `invert` was asked for them.
    finished
        False where Ctrl-C ended the search.
    way
        In words, which way the attack went.
    fell_back
        What it could not do, and why.
    """

    images: torch.Tensor
    labels: torch.Tensor
    history: pd.DataFrame
    attack: GradientMatching | None
    learnt: tuple[torch.Tensor, ...] = ()
    snapshots: Mapping[int, torch.Tensor] = field(default_factory=dict)
    finished: bool = True
    way: str = ""
    fell_back: tuple[str, ...] = ()


class InversionFailed(RuntimeError):
    """The loss is not finite any more; `best` holds the Inversion up to the last good images."""

    def __init__(self, message: str, best: Inversion):
        super().__init__(message)
        self.best = best


_INTERRUPTS_PASS: ContextVar[bool] = ContextVar("interrupts_pass", default=False)


@contextmanager
def interrupts_pass() -> Iterator[None]:
    """Within it, Ctrl-C ends everything; without it, a search ends and keeps its best images."""
    token = _INTERRUPTS_PASS.set(True)
    try:
        yield
    finally:
        _INTERRUPTS_PASS.reset(token)


def search(
    objective_of: Callable[[GradientMatching], Objective],
    attack: GradientMatching,
    options: Options,
) -> Inversion:
    """The search of all stages, each from the images of the one before."""
    histories: list[pd.DataFrame] = []
    kept: dict[int, torch.Tensor] = {}
    start = options.start
    learnt: tuple[torch.Tensor, ...] = ()
    for stage in attack.stages:
        before = sum(map(len, histories))
        wanted = [step - before for step in options.snapshots]
        best = Search(objective_of(stage)).run(
            options.seed, start, learnt, options.name, options.progress, wanted
        )
        kept |= {before + step: images for step, images in best.snapshots.items()}
        histories.append(best.history)
        start, learnt = best.images, best.learnt
        if not best.finished:
            break
    return dataclasses.replace(best, history=joined(histories), attack=attack, snapshots=kept)


def joined(histories: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Histories one after the other, iterations counted through."""
    history = pd.concat(histories, ignore_index=True)
    history.index.name = "iteration"
    return history


class Search:
    """Restarts side by side; `inputs` as in Objective, each with a first axis over restarts."""

    def __init__(self, objective: Objective):
        self.objective, self.attack = objective, objective.attack
        self.page = Page()

    def run(
        self,
        seed: int,
        start: torch.Tensor | None,
        learnt: Sequence[torch.Tensor],
        name: str,
        progress: bool,
        snapshots: Sequence[int] = (),
    ) -> Inversion:
        """The best of all restarts, also where Ctrl-C ended them: see `interrupts_pass`.

        Goes on where it was cut short, see `journal`.
        """
        attack, objective = self.attack, self.objective
        inputs = self.start(seed, start, learnt)
        size = attack.iterations * (
            attack.evaluations * attack.restarts if attack.quasi_newton else 1
        )
        record = Record(size, objective.columns, inputs, snapshots)
        kept = self.page.read()
        if kept:
            record.restore(kept["record"])
        bar = tqdm(total=size, disable=not progress, desc=name, leave=False, initial=record.done)
        finished = True
        try:
            if not kept.get("ended"):
                way = self.lbfgs if attack.quasi_newton else self.descend
                way(inputs, record, bar, torch.Generator().manual_seed(seed + 1), kept)
                self.page.write(record=record.state(), ended=True)
        except KeyboardInterrupt:
            if _INTERRUPTS_PASS.get():
                raise
            finished = False
            print(f"stopped after {record.done} of {size} iterations; the best images are kept")
        finally:
            bar.close()
        winner = record.best_loss.argmin()
        images, *rest = [tensor[winner] for tensor in record.best]
        labels = rest.pop(0).argmax(1) if attack.joint_labels else objective.labels
        result = Inversion(
            self.finish(images, labels),
            labels.sort()[0].cpu(),
            record.frame(),
            attack,
            tuple(rest),
            {step: self.finish(images, labels) for step, images in record.kept.items()},
            finished,
        )
        if record.failed_at is not None:
            raise InversionFailed(
                f"{name}: the loss is not finite at iteration {record.failed_at} "
                "(error.best holds the last good images)",
                result,
            )
        return result

    def finish(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Searched images (copies x K, C, h, w) as results (K, C, H, W), by ascending labels."""
        images = self.objective.enlarge(images)
        if self.objective.simulation.copies > 1:
            images = merge_epochs(images, self.objective.simulation.copies, labels)
        return images.clamp(0, 1)[labels.argsort(stable=True)].cpu()

    def start(
        self, seed: int, given: torch.Tensor | None, learnt: Sequence[torch.Tensor]
    ) -> Inputs:
        """What to begin with: images (R, copies x K, C, h, w), soft labels, the learnt."""
        attack, simulation = self.attack, self.objective.simulation
        update, labels = self.objective.update, self.objective.labels
        full = (len(labels), *update.input_shape)
        side = [max(round(length * attack.resolution), 1) for length in full[2:]]
        shape = (simulation.copies * full[0], full[1], *side)
        draws = torch.Generator().manual_seed(seed)
        if given is not None:
            given = torch.as_tensor(given)
            if given.shape != full:
                raise ValueError(f"start must have shape {full}; got {tuple(given.shape)}")
            given = given.repeat(simulation.copies, 1, 1, 1)
            if given.shape != shape:
                given = F.interpolate(given, size=side, mode="area")
            images = given.expand(attack.restarts, *shape).clone()
        elif attack.start == "uniform":
            images = torch.rand(attack.restarts, *shape, generator=draws)
        elif attack.start == "gray":
            images = 0.5 + 0.01 * torch.randn(attack.restarts, *shape, generator=draws)
        elif attack.start == "patterned":  # a 4x4 tile of noise, repeated
            tile = 0.5 + 0.25 * torch.randn(attack.restarts, *shape[:2], 4, 4, generator=draws)
            repeats = [-(-side // 4) for side in shape[2:]]
            images = tile.repeat(1, 1, 1, *repeats)[..., : shape[2], : shape[3]]
        else:
            images = 0.5 + 0.25 * torch.randn(attack.restarts, *shape, generator=draws)
        if attack.box:
            images = images.clamp(0, 1)
        inputs = [images.to(update.classifier.weight).contiguous().requires_grad_()]
        if attack.joint_labels:
            draws = torch.Generator().manual_seed(seed)
            soft = torch.randn(attack.restarts, len(labels), update.num_classes, generator=draws)
            inputs.append(soft.to(images).requires_grad_())
        for tensor in learnt or simulation.learnt:
            copies = tensor.detach().expand(attack.restarts, *tensor.shape).clone()
            inputs.append(copies.requires_grad_())
        return inputs

    def descend(
        self,
        inputs: Inputs,
        record: Record,
        bar: tqdm,
        draws: torch.Generator,
        kept: Mapping[str, Any],
    ) -> None:
        """A step after each evaluation, all restarts side by side, by Adam in its kinds or an
        optimiser of one's own; no step waits for a number from a GPU.
        """
        attack, rates = self.attack, self.objective.simulation.rates
        images, searched = inputs[0], len(inputs) - len(rates)
        optimizer = self.optimizer(
            [
                {"params": inputs[:searched]},
                *({"params": [t], "lr": r} for t, r in zip(inputs[searched:], rates, strict=True)),
            ]
        )
        full_rates = [group["lr"] for group in optimizer.param_groups]
        if kept:
            put(kept["inputs"], inputs)
            optimizer.load_state_dict(kept["optimizer"])
            draws.set_state(kept["draws"])
        for step in range(record.done, attack.iterations):
            done = step / attack.iterations
            losses, gradients = self.evaluate(inputs, attack.tv_end**done)
            record.add(*losses, inputs)
            for index, (tensor, gradient) in enumerate(zip(inputs, gradients, strict=True)):
                signed = attack.optimizer == "signed-adam" and index < searched
                tensor.grad = gradient.sign() if signed else gradient
            left = decay(attack.schedule, done)
            for group, rate in zip(optimizer.param_groups, full_rates, strict=True):
                group["lr"] = rate * left
            optimizer.step()
            with torch.no_grad():
                if attack.noise:
                    noise = torch.randn(images.shape, generator=draws)
                    images.add_(noise.to(images), alpha=full_rates[0] * left * attack.noise)
                if attack.box:
                    images.clamp_(0, 1)
            bar.update()
            if record.failed(bar):
                break
            if self.page.due():
                self.page.write(
                    record=record.state(),
                    inputs=[tensor.detach() for tensor in inputs],
                    optimizer=optimizer.state_dict(),
                    draws=draws.get_state(),
                )

    def optimizer(self, groups: list[dict]) -> torch.optim.Optimizer:
        """That of the attack, for groups of parameters, of which some have their own step size."""
        if callable(self.attack.optimizer):
            return self.attack.optimizer(groups)
        kind = torch.optim.AdamW if self.attack.optimizer == "adamw" else torch.optim.Adam
        return kind(groups, lr=self.attack.lr)

    def lbfgs(
        self,
        inputs: Inputs,
        record: Record,
        bar: tqdm,
        draws: torch.Generator,
        kept: Mapping[str, Any],
    ) -> None:
        """L-BFGS: iterations x evaluations for each restart; one restart after the other.

        Each step is looked for along a line, until it is close; then full steps go on. It ends
        where as many evaluations as it remembers find nothing lower.
        """
        attack = self.attack
        budget = attack.iterations * attack.evaluations
        memory = MEMORY.get(inputs[0].dtype, 100)
        for restart in range(kept.get("restart", 0), len(inputs[0])):
            one = [t[restart : restart + 1].detach().clone().requires_grad_() for t in inputs]
            optimizer = torch.optim.LBFGS(
                one,
                lr=attack.lr,
                max_eval=budget,
                history_size=memory,
                tolerance_grad=0,
                tolerance_change=0,
                line_search_fn="strong_wolfe",
            )
            losses: list[float] = []
            if restart == kept.get("restart"):
                put(kept["inputs"], one)
                optimizer.load_state_dict(kept["optimizer"])
                losses = list(kept["losses"])
            group = optimizer.param_groups[0]

            def closure(
                restart: int = restart,
                one: Inputs = one,
                losses: list[float] = losses,
                group: dict = group,
            ) -> torch.Tensor:
                if len(losses) == budget:
                    raise SearchEnds
                found, gradients = self.evaluate(one, attack.tv_end ** (len(losses) / budget))
                record.add(*found, one, restart)
                for tensor, gradient in zip(one, gradients, strict=True):
                    tensor.grad = STEEPER * gradient
                losses.append(found[1].item())
                bar.update()
                leapt = group["line_search_fn"] is None and not math.isfinite(losses[-1])
                if leapt or record.failed(bar):
                    raise SearchEnds
                return STEEPER * found[0].sum()

            try:
                while not losses or len(losses) - losses.index(min(losses)) <= memory:
                    optimizer.step(closure)  # of up to twenty iterations
                    if min(losses) < CLOSE:
                        group["line_search_fn"] = None
                    if self.page.due():
                        self.page.write(
                            record=record.state(),
                            inputs=[tensor.detach() for tensor in one],
                            optimizer=optimizer.state_dict(),
                            losses=losses,
                            restart=restart,
                        )
            except SearchEnds:
                if record.failed_at is not None:
                    break

    def evaluate(
        self, inputs: Inputs, fade: float
    ) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], Inputs]:
        """(Losses (R,), losses at the end weights (R,), terms (R, T)) and gradients."""
        images = inputs[0]
        fading = images.new_full((), fade)  # filled in place: a copy would make a GPU wait
        rows = [
            self.objective.step([t[restart].detach().requires_grad_() for t in inputs], fading)
            for restart in range(len(images))
        ]
        losses = torch.stack([loss for loss, _, _ in rows])
        terms = torch.stack([term for _, term, _ in rows])
        gradients = [torch.stack(g) for g in zip(*(g for _, _, g in rows), strict=True)]
        for column, term in enumerate(self.objective.terms):
            if "restarts" in term.reads:
                away = term.function(images.detach())
                terms[:, column] = away.square().mean((1, 2, 3, 4))
                # where the restarts agree is held fixed
                gradients[0] += term.weight * 2 * away / away[0].numel()
                losses = losses + term.weight * terms[:, column]
        # Weights that fade make losses of different steps unlike: compare them as at the end.
        compared = losses
        for column, term in enumerate(self.objective.terms):
            if term.fades:
                faded = self.attack.tv_end - fading
                compared = compared + term.weight * faded * terms[:, column]
        return (losses, compared, terms), gradients


@torch.no_grad()
def put(kept: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]) -> None:
    """Copy kept values into tensors, one by one."""
    for value, tensor in zip(kept, tensors, strict=True):
        tensor.copy_(value)


class SearchEnds(Exception):  # noqa: N818
    """Ends L-BFGS in the middle of a line search."""


class Record:
    """Losses and the best inputs, kept on the device."""

    def __init__(self, size: int, columns: Sequence[str], inputs: Inputs, snapshots: Sequence[int]):
        images = inputs[0]
        self.columns = columns
        self.wanted = set(snapshots)
        self.kept: dict[int, torch.Tensor] = {}
        self.rows = images.new_full((size, len(columns)), torch.nan).detach()
        self.best_loss = images.new_full((len(images),), torch.inf).detach()
        self.best = [tensor.detach().clone() for tensor in inputs]
        self.done = 0
        self.failed_at: int | None = None

    @torch.no_grad()
    def add(
        self,
        losses: torch.Tensor,
        compared: torch.Tensor,
        terms: torch.Tensor,
        inputs: Inputs,
        restart: int | None = None,
    ) -> None:
        """One evaluation of all restarts, or of one."""
        which = slice(None) if restart is None else slice(restart, restart + 1)
        lowest = losses.argmin(0, keepdim=True)  # selected from, not indexed by, which would wait
        rows = torch.cat([losses[:, None], terms], 1)
        self.rows[self.done] = rows.index_select(0, lowest)[0]
        if self.done in self.wanted:
            self.kept[self.done] = inputs[0].detach().index_select(0, lowest)[0]
        better = compared < self.best_loss[which]
        self.best_loss[which] = torch.where(better, compared, self.best_loss[which])
        for best, tensor in zip(self.best, inputs, strict=True):
            mask = better.view(-1, *[1] * (tensor.ndim - 1))
            best[which] = torch.where(mask, tensor, best[which])
        self.done += 1

    def state(self) -> dict[str, Any]:
        """What `restore` puts back."""
        names = ("rows", "kept", "best_loss", "best", "done", "failed_at")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Be where a record was that gave this state, whose tensors may lie on another device."""
        put(
            [state["rows"], state["best_loss"], *state["best"]],
            [self.rows, self.best_loss, *self.best],
        )
        self.kept = dict(state["kept"])
        self.done, self.failed_at = state["done"], state["failed_at"]

    def failed(self, bar: tqdm) -> bool:
        """Now and then: show the loss, and see whether it is still finite."""
        if self.done % 25 and self.done != len(self.rows):
            return False
        loss = self.rows[self.done - 1, 0].item()
        bar.set_postfix(loss=f"{loss:.4f}")
        if not math.isfinite(loss):
            self.failed_at = self.done
        return self.failed_at is not None

    def frame(self) -> pd.DataFrame:
        """The history."""
        frame = pd.DataFrame(self.rows[: self.done].cpu().numpy(), columns=self.columns)
        frame.index.name = "iteration"
        return frame


def decay(schedule: str, done: float) -> float:
    """The share of the step size that is left when a share `done` of the search is.

    >>> decay("step", 0.5), decay("cosine", 0.5), decay("constant", 0.5)
    (0.1, 0.5, 1.0)
    """
    if schedule == "step":
        return 0.1 ** sum(done >= eighths / 8 for eighths in (3, 5, 7))
    return (1 + math.cos(math.pi * done)) / 2 if schedule == "cosine" else 1.0
