"""One search for all attacks: images whose gradient is the one that the client sent."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from tqdm import tqdm

from gleak.inversion import attack as attacks
from gleak.inversion.attack import ATTACKS, Attack
from gleak.inversion.batch_norm import batch_norm_targets, listen, statistics_distance
from gleak.inversion.distances import DISTANCES
from gleak.inversion.exact import exact_images
from gleak.inversion.peel import peel
from gleak.inversion.priors import PRIORS
from gleak.update import MissingKnowledge, Update


@dataclass(frozen=True, eq=False)
class Inversion:
    """Restored images (K, C, H, W) in [0, 1], their labels (K,), and how the search went.

    history: a frame with a row for each iteration: loss, distance, and the terms of the loss.
    attack: the settings that were used, None for a closed form.
    snapshots: iteration -> images as they were when it began, where `invert` was asked for them.
    """

    images: torch.Tensor
    labels: torch.Tensor
    history: pd.DataFrame
    attack: Attack | None
    snapshots: Mapping[int, torch.Tensor] = field(default_factory=dict)


class InversionFailed(RuntimeError):
    """The loss is not finite any more; `best` holds the Inversion up to the last good images."""

    def __init__(self, message: str, best: Inversion):
        super().__init__(message)
        self.best = best


def list_attacks() -> list[str]:
    """The names that `invert` takes."""
    return [*ATTACKS, "exact"]


def invert(
    update: Update,
    counts: torch.Tensor | Sequence[int],
    attack: str = "inverting-gradients",
    *,
    iterations: int | None = None,
    seed: int = 0,
    progress: bool = True,
    start: torch.Tensor | str | None = None,
    statistics: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
    compile: bool = False,
    snapshots: Sequence[int] = (),
    **overrides: float | str,
) -> Inversion:
    """Images whose gradient, with labels as counted, is the update's gradient.

    counts: (N,) how often each class occurs, summing to K (see `restore_labels`).
    attack: a preset (see `list_attacks`); "gleak" picks by what the update gives away in closed
    form, "exact" is closed form alone.
    iterations: evaluations of the loss and its gradient; the attack's own number by default.
    start: images (K, C, H, W) to start from, in ascending order of their labels, or the name of a
    kind of start.
    statistics: name of a batch norm layer -> mean and variance of what entered it at the client,
    for attacks that use them; the model's running statistics by default.
    compile: run the step through torch.compile; without a compiler a note says so.
    snapshots: iterations whose images are kept beside the result, 0 for the start.
    overrides: single settings of the attack, such as `tv=1e-3` or `optimizer="lbfgs"`.

    The images with the smallest loss are returned, also when Ctrl-C ends the search early.

    A FedAvg update is treated as its equivalent gradient.

    Raises ValueError for an unknown attack or override, for counts that do not fit the update and
    for a gradient that is zero; MissingKnowledge where "exact" has no closed form; InversionFailed
    when the loss stops being finite.
    """
    labels = labels_of(counts, update)
    if not any(gradient.any() for gradient in update.equivalent_gradient().values()):
        raise ValueError("the update's gradient is zero: there is nothing to match")
    labels = labels.to(update.classifier.weight.device)
    counts = torch.bincount(labels, minlength=update.num_classes)
    if attack == "exact":
        if overrides:
            raise ValueError("exact is a closed form; it has nothing to override")
        return closed_form(exact_images(update, counts), labels)
    if isinstance(start, str):
        overrides["start"], start = start, None
    if iterations is not None:
        overrides["iterations"] = iterations
    settings = settings_of(attack, overrides)
    peeled = None
    if attack == "gleak" or settings.features:
        try:
            peeled = peel(update, counts)
        except MissingKnowledge:
            if settings.features:
                raise
    if attack == "gleak" and peeled and peeled.depth < len(peeled.layers) - 1:
        if peeled.depth == 0:
            return closed_form(peeled.activations, labels)
        pieces = peeled.layers[: peeled.depth]
        rough = any(isinstance(layer, nn.ReLU | nn.MaxPool2d) for layer in pieces)
        preset = attacks.GLEAK_FEATURES if rough else attacks.GLEAK_SMOOTH
        settings = replace_all(preset, overrides)

    histories, kept, stage, best = [], {}, settings, None
    while stage:
        search = Search(update, labels, stage, peeled, statistics, compile)
        first = start if best is None else best.images
        before = sum(map(len, histories))
        wanted = [step - before for step in snapshots]
        best, finished = search.run(seed, first, attack, progress, wanted)
        kept |= {before + step: images for step, images in best.snapshots.items()}
        histories.append(best.history)
        stage = stage.then if finished else None
    history = pd.concat(histories, ignore_index=True)
    history.index.name = "iteration"
    return dataclasses.replace(best, history=history, attack=settings, snapshots=kept)


class Search:
    """The loss of one attack on one update, and the search for its minimum."""

    def __init__(self, update, labels, attack, peeled, statistics, compile):
        self.update, self.labels, self.attack, self.peeled = update, labels, attack, peeled
        own, sent = dict(update.model.named_parameters()), update.equivalent_gradient()
        names = list(sent)
        if attack.features:  # what lies behind the peeled layers is used up
            below = {id(p) for layer in peeled.layers[: peeled.depth] for p in layer.parameters()}
            names = [name for name in names if id(own[name]) in below]
            self.trunk = nn.Sequential(*peeled.layers[: peeled.depth])
            with torch.no_grad():
                gray = self.trunk(torch.full((1, *update.input_shape), 0.5).to(peeled.activations))
            self.spread = (peeled.activations - gray).square().mean()
        self.parameters = {name: own[name] for name in names}
        self.observed = [sent[name] for name in names]
        self.norms = batch_norm_targets(update.model, statistics) if attack.batch_norm else {}
        self.columns = ["loss", "distance"] + [
            name for name in attacks.WEIGHTS if name != "match" and getattr(attack, name)
        ]
        self.step = self.eager_step
        if compile and not self.norms:  # hooks would break the compiled step apart
            self.step = compiled(self.functional_step, self.eager_step)

    # -- the loss ---------------------------------------------------------------------------

    def loss(self, images, soft_labels, fade, gradient) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of one restart (), and its terms (T,); `gradient` simulates the client's."""
        attack, zero = self.attack, images.new_zeros(())
        images = self.enlarge(images)
        targets = self.labels if soft_labels is None else soft_labels.softmax(1)
        distance, terms, entered = zero, [], {}
        if attack.match:
            if self.norms:
                with listen(self.update.model, self.norms) as entered:
                    simulated = gradient(images, targets)
            else:
                simulated = gradient(images, targets)
            distance = DISTANCES[attack.distance](simulated, self.observed)
        total = attack.match * distance
        for name in self.columns[2:]:
            if name == "features":
                error = self.trunk(images) - self.peeled.activations
                term = error.square().mean() / self.spread
            elif name == "batch_norm":
                term = statistics_distance(entered, self.norms) if self.norms else zero
            elif name == "group":
                term = zero  # lies between the restarts, see `group`
            else:
                term = PRIORS[name](images)
            terms.append(term)
            total = total + getattr(attack, name) * (fade if "tv" in name else 1.0) * term
        return total, torch.stack([distance, *terms]).detach()

    def simulate(self, images, targets):
        """What a client with these images and labels would send, through autograd: the fastest."""
        return simulate(self.update.model, list(self.parameters.values()), images, targets)

    def simulate_functional(self, images, targets):
        """The same through torch.func, which torch.compile can follow."""

        def client_loss(parameters):
            logits = functional_call(self.update.model, parameters, (images,))
            return F.cross_entropy(logits, targets)

        return list(torch.func.grad(client_loss)(self.parameters).values())

    def eager_step(self, images, soft_labels, fade):
        """Loss, terms and the loss's gradient with respect to the images (and soft labels)."""
        loss, terms = self.loss(images, soft_labels, fade, self.simulate)
        inputs = [images] if soft_labels is None else [images, soft_labels]
        return loss.detach(), terms, torch.autograd.grad(loss, inputs)

    def functional_step(self, images, soft_labels, fade):
        """`eager_step` in functional form."""

        def loss_of(*inputs):
            labels = inputs[1] if len(inputs) == 2 else None
            return self.loss(inputs[0], labels, fade, self.simulate_functional)

        inputs = (images,) if soft_labels is None else (images, soft_labels)
        which = tuple(range(len(inputs)))
        gradient, (loss, terms) = torch.func.grad_and_value(loss_of, which, has_aux=True)(*inputs)
        return loss, terms, gradient

    def enlarge(self, images):
        """Images of the search's resolution (K, C, h, w) at full size."""
        if self.attack.resolution == 1:
            return images
        size = self.update.input_shape[1:]
        return F.interpolate(images, size=size, mode="bilinear", align_corners=False)

    # -- the search -------------------------------------------------------------------------

    def run(self, seed, start, name, progress, snapshots=()) -> tuple[Inversion, bool]:
        """The best of all restarts; False when Ctrl-C ended it."""
        attack = self.attack
        images = self.start(seed, start)  # (R, K, C, H, W)
        soft = None
        if attack.joint_labels:
            draws = torch.Generator().manual_seed(seed)
            shape = (len(images), len(self.labels), self.update.num_classes)
            soft = torch.randn(shape, generator=draws).to(images).requires_grad_()
        size = attack.iterations * (attack.restarts if attack.optimizer == "lbfgs" else 1)
        record = Record(len(images), size, self.columns, images, soft, snapshots)
        bar = tqdm(total=size, disable=not progress, desc=name, leave=False)
        finished = True
        try:
            search = self.lbfgs if attack.optimizer == "lbfgs" else self.adam
            search(images, soft, record, bar, torch.Generator().manual_seed(seed + 1))
        except KeyboardInterrupt:
            finished = False
            print(f"stopped after {record.done} of {size} iterations; the best images are kept")
        finally:
            bar.close()
        winner = record.best_loss.argmin()
        labels = self.labels
        if soft is not None:
            labels = record.best_soft[winner].argmax(1)
        order = labels.argsort(stable=True)
        restored = self.enlarge(record.best_images[winner]).clamp(0, 1)
        kept = {step: self.enlarge(x).clamp(0, 1)[order].cpu() for step, x in record.kept.items()}
        result = Inversion(restored[order].cpu(), labels[order].cpu(), record.frame(), attack, kept)
        if record.failed_at is not None:
            raise InversionFailed(
                f"{name}: the loss is not finite at iteration {record.failed_at} "
                "(error.best holds the last good images)",
                result,
            )
        return result, finished

    def start(self, seed, given):
        """Images (R, K, C, H, W) to begin with."""
        attack, full = self.attack, (len(self.labels), *self.update.input_shape)
        side = [max(round(length * attack.resolution), 1) for length in full[2:]]
        shape = (*full[:2], *side)
        draws = torch.Generator().manual_seed(seed)
        if given is not None:
            given = torch.as_tensor(given)
            if given.shape != full:
                raise ValueError(f"start must have shape {full}; got {tuple(given.shape)}")
            if shape != full:
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
        return images.to(self.update.classifier.weight).contiguous().requires_grad_()

    def adam(self, images, soft, record, bar, draws) -> None:
        """Adam in its kinds, all restarts side by side; no step waits for a number from a GPU."""
        attack = self.attack
        inputs = [images] if soft is None else [images, soft]
        kind = torch.optim.AdamW if attack.optimizer == "adamw" else torch.optim.Adam
        optimizer = kind(inputs, lr=attack.lr)
        for step in range(attack.iterations):
            done = step / attack.iterations
            losses, gradients = self.evaluate(images, soft, attack.tv_end**done)
            record.add(*losses, images, soft)
            for tensor, gradient in zip(inputs, gradients, strict=True):
                tensor.grad = gradient.sign() if attack.optimizer == "signed-adam" else gradient
            rate = attack.lr * decay(attack.schedule, done)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            with torch.no_grad():
                if attack.noise:
                    noise = torch.randn(images.shape, generator=draws)
                    images.add_(noise.to(images), alpha=rate * attack.noise)
                if attack.box:
                    images.clamp_(0, 1)
            bar.update()
            if record.failed(bar):
                break

    def lbfgs(self, images, soft, record, bar, draws) -> None:
        """L-BFGS with line search; restarts one after the other."""
        attack = self.attack
        for restart in range(len(images)):
            one = images[restart : restart + 1].detach().clone().requires_grad_()
            one_soft = None
            if soft is not None:
                one_soft = soft[restart : restart + 1].detach().clone().requires_grad_()
            inputs = [one] if soft is None else [one, one_soft]
            optimizer = torch.optim.LBFGS(
                inputs,
                lr=attack.lr,
                max_iter=attack.iterations,
                max_eval=attack.iterations,
                history_size=50,
                tolerance_grad=0,
                tolerance_change=0,
                line_search_fn="strong_wolfe",
            )
            evaluations = 0

            def closure(restart=restart, one=one, one_soft=one_soft, inputs=inputs):
                nonlocal evaluations
                if evaluations == attack.iterations:
                    raise BudgetSpent
                done = evaluations / attack.iterations
                losses, gradients = self.evaluate(one, one_soft, attack.tv_end**done)
                record.add(*losses, one, one_soft, restart)
                for tensor, gradient in zip(inputs, gradients, strict=True):
                    tensor.grad = gradient
                evaluations += 1
                bar.update()
                if record.failed(bar):
                    raise BudgetSpent
                return losses[0].sum()

            try:
                optimizer.step(closure)
            except BudgetSpent:
                if record.failed_at is not None:
                    break

    def evaluate(self, images, soft, fade):
        """(Losses (R,), losses at the end weights (R,), terms (R, T)) and gradients."""
        fade = images.new_tensor(fade)
        rows = [
            self.step(
                image.detach().requires_grad_(),
                None if soft is None else soft[index].detach().requires_grad_(),
                fade,
            )
            for index, image in enumerate(images)
        ]
        losses = torch.stack([loss for loss, _, _ in rows])
        terms = torch.stack([term for _, term, _ in rows])
        gradients = [torch.stack(g) for g in zip(*(g for _, _, g in rows), strict=True)]
        if self.attack.group:
            away = images.detach() - images.detach().mean(0)
            column = self.columns.index("group") - 1
            terms[:, column] = away.square().mean((1, 2, 3, 4))
            # the mean is where the restarts agree, and is held fixed
            gradients[0] += self.attack.group * 2 * away / away[0].numel()
            losses = losses + self.attack.group * terms[:, column]
        # Weights that fade make losses of different steps unlike: compare them as at the end.
        compared = losses
        for column, name in enumerate(self.columns[1:]):
            if "tv" in name:
                weight = getattr(self.attack, name)
                compared = compared + weight * (self.attack.tv_end - fade) * terms[:, column]
        return (losses, compared, terms), gradients


class BudgetSpent(Exception):  # noqa: N818
    """Ends L-BFGS in the middle of a line search."""


class Record:
    """Losses and the best images, kept on the device."""

    def __init__(self, restarts, size, columns, images, soft, snapshots):
        self.columns = columns
        self.wanted, self.kept = set(snapshots), {}
        self.rows = images.new_full((size, len(columns)), torch.nan).detach()
        self.best_loss = images.new_full((restarts,), torch.inf).detach()
        self.best_images = images.detach().clone()
        self.best_soft = None if soft is None else soft.detach().clone()
        self.done, self.failed_at = 0, None

    @torch.no_grad()
    def add(self, losses, compared, terms, images, soft, restart=None) -> None:
        """One evaluation of all restarts, or of one."""
        which = slice(None) if restart is None else slice(restart, restart + 1)
        lowest = losses.argmin()
        self.rows[self.done] = torch.cat([losses[lowest, None], terms[lowest]])
        if self.done in self.wanted:
            self.kept[self.done] = images[lowest].detach().clone()
        better = compared < self.best_loss[which]
        self.best_loss[which] = torch.where(better, compared, self.best_loss[which])
        mask = better[:, None, None, None, None]
        self.best_images[which] = torch.where(mask, images, self.best_images[which])
        if soft is not None:
            self.best_soft[which] = torch.where(mask[..., 0, 0], soft, self.best_soft[which])
        self.done += 1

    def failed(self, bar) -> bool:
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


def simulate(model, parameters, images, labels) -> tuple[torch.Tensor, ...]:
    """The gradient that a client with these images and labels would send, differentiable."""
    loss = F.cross_entropy(model(images), labels)
    return torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)


def compiled(step, fallback):
    """The step through torch.compile; the fallback, with a note, where that does not work."""
    current = torch.compile(step)

    def call(*inputs):
        nonlocal current
        try:
            return current(*inputs)
        except Exception as error:  # no compiler, or a model that it cannot follow
            if current is fallback:
                raise
            reason = str(error).strip().splitlines()[0]
            print(f"torch.compile does not work here, so the step runs uncompiled: {reason}")
            current = fallback
            return current(*inputs)

    return call


def decay(schedule: str, done: float) -> float:
    """The share of the step size that is left when a share `done` of the search is."""
    if schedule == "step":
        return 0.1 ** sum(done >= eighths / 8 for eighths in (3, 5, 7))
    return (1 + math.cos(math.pi * done)) / 2 if schedule == "cosine" else 1.0


def closed_form(images: torch.Tensor, labels: torch.Tensor) -> Inversion:
    """An Inversion that needed no search."""
    history = pd.DataFrame({"loss": pd.Series(dtype=float), "distance": pd.Series(dtype=float)})
    history.index.name = "iteration"
    return Inversion(images.clamp(0, 1).float().cpu(), labels.cpu(), history, None)


def settings_of(attack: str, overrides: Mapping[str, float | str]) -> Attack:
    """The attack by name, with single settings replaced."""
    attacks.check_known("attack", attack, list_attacks())
    known = [f.name for f in dataclasses.fields(Attack) if f.name not in ("reference", "then")]
    unknown = sorted(set(overrides) - set(known))
    if unknown:
        raise ValueError(f"{attack} has no {', '.join(unknown)}; known: {', '.join(known)}")
    return replace_all(ATTACKS[attack], overrides)


def replace_all(attack: Attack, overrides: Mapping[str, float | str]) -> Attack:
    """The attack with settings replaced, in all its stages; iterations are shared out evenly."""
    stages = [attack]
    while stages[-1].then:
        stages.append(stages[-1].then)
    overrides = dict(overrides)
    if "iterations" in overrides:
        if overrides["iterations"] < 1:
            raise ValueError(f"iterations must be at least 1; got {overrides['iterations']}")
        overrides["iterations"] = max(overrides["iterations"] // len(stages), 1)
    result = None
    for stage in reversed(stages):
        result = dataclasses.replace(stage, then=result, **overrides)
    return result


def labels_of(counts: torch.Tensor | Sequence[int], update: Update) -> torch.Tensor:
    """Labels (K,) in ascending order from counts (N,); the order of a batch leaves no trace."""
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
