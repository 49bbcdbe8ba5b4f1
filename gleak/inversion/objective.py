"""The loss of one attack on one update, and its gradient by all that the attack searches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from gleak.inversion.batch_norm import Targets, batch_norm_targets, listen
from gleak.inversion.finite_difference import (
    difference_fits,
    differenced_gradient,
    functional_slopes,
    slopes,
)
from gleak.inversion.gradients import GradientOf, functional_gradient, local_gradient
from gleak.inversion.terms import label
from gleak.inversion.update_models import UpdateModel, equivalent, observed
from gleak.update import MissingKnowledge, Update

if TYPE_CHECKING:
    from gleak.inversion.attack import Distance, GradientMatching
    from gleak.inversion.closed import Peeled

Inputs = list[torch.Tensor]
Step = tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]


class Objective:
    """What is searched, `inputs`, is a list: images (copies x K, C, h, w), soft labels (K, N) if
    the attack optimises labels, and what the update model learns, if anything.

    step(inputs, fade) -> loss (), its terms (T,), its gradient by each of the inputs.
    """

    def __init__(
        self,
        update: Update,
        labels: torch.Tensor,
        attack: GradientMatching,
        peeled: Peeled | None = None,
        *,
        compile: bool = False,
        update_model: UpdateModel = equivalent,
        seed: int = 0,
    ):
        self.update, self.labels, self.attack = update, labels, attack
        self.terms = attack.terms
        self.columns = ["loss", *(term.name for term in self.terms)]
        weighted = {name for term in self.terms if term.weight for name in term.reads}
        self.simulates = bool(weighted & {"simulated", "entered"})
        sent, scaled = observed(update)
        names = list(sent)
        self.known: dict[str, Any] = {}  # what terms read that the images do not change
        self.trunk: nn.Module | None = None
        if "features" in weighted:
            assert peeled is not None
            self.trunk = peeled.trunk
            names = [name for name in names if name in peeled.parameters]  # the rest is used up
            self.known |= {"peeled": peeled.activations, "spread": spread_of(peeled, update)}
        if not scaled and needs_scale(attack.distance_function, list(sent.values())):
            raise MissingKnowledge(
                f"the distance {label(attack.distance)} needs the scale of a gradient, for which "
                "the client would have to tell lr, epochs, batch_size; cosine needs none"
            )
        self.names, self.observed = names, [sent[name] for name in names]
        self.known["observed"] = self.observed
        self.simulation = update_model(update, names, seed)
        self.norms: Targets = {}
        if "entered" in weighted:
            self.norms = batch_norm_targets(update)
            self.known["norms"] = self.norms
        self.gradient: GradientOf = partial(local_gradient, update.model)
        self.step: Callable[[Inputs, torch.Tensor], Step] = self.eager_step
        if self.simulates and self.takes_differences():
            passes: Callable = partial(slopes, update.model)
            if compile:  # which leaves partials alone
                passes = compiled(lambda *which: functional_slopes(update.model, *which), passes)
            self.gradient = partial(differenced_gradient, passes)
        elif compile and not self.norms and self.simulation.compiles:  # hooks would break it apart
            self.step = compiled(self.functional_step, self.eager_step)

    def loss(
        self, inputs: Inputs, fade: torch.Tensor, gradient: GradientOf
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of one restart (), and its terms (T,)."""
        images, targets, learnt = self.parts(inputs)
        zero = images.new_zeros(())
        seen = {**self.known, "images": self.enlarge(images)}
        images = seen["images"]
        if self.norms:
            with listen(self.norms) as seen["entered"]:
                seen["simulated"] = self.simulation.run(gradient, images, targets, *learnt)
        elif self.simulates:
            seen["simulated"] = self.simulation.run(gradient, images, targets, *learnt)
        if self.trunk is not None:
            seen["features"] = self.trunk(images)
        total, values = zero, []
        for term in self.terms:
            # zero where nothing is known to compare with, or the search itself evaluates it
            there = all(name in seen for name in term.reads)
            value = term.function(*(seen[name] for name in term.reads)) if there else zero
            values.append(value)
            total = total + term.weight * (fade if term.fades else 1.0) * value
        if self.simulation.penalty:
            total = total + self.attack.match * self.simulation.penalty(images, *learnt)
        return total, torch.stack(values).detach()

    def takes_differences(self) -> bool:
        """Whether the derivative of the gradient can be a difference, which is cheaper.

        L-BFGS needs all digits, hooks on batch norm a graph, and graphics cards
        round convolutions too much.
        """
        if self.attack.derivative == "exact" or self.attack.quasi_newton or self.norms:
            return False
        sent = dict(zip(self.names, self.observed, strict=True))
        distance = self.attack.distance_function
        return self.observed[0].is_cpu and difference_fits(self.update, sent, self.labels, distance)

    def parts(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor, Inputs]:
        """Images, targets for the cross-entropy, and what the update model learns."""
        images, *learnt = inputs
        targets = learnt.pop(0).softmax(1) if self.attack.joint_labels else self.labels
        return images, targets, learnt

    def eager_step(self, inputs: Inputs, fade: torch.Tensor) -> Step:
        """The step through autograd: the fastest without a compiler."""
        loss, terms = self.loss(inputs, fade, self.gradient)
        found = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
        return loss.detach(), terms, found

    def functional_step(self, inputs: Inputs, fade: torch.Tensor) -> Step:
        """`eager_step` in functional form."""
        gradient = partial(functional_gradient, self.update.model)

        def loss_of(*inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.loss(list(inputs), fade, gradient)

        which = tuple(range(len(inputs)))
        found, (loss, terms) = torch.func.grad_and_value(loss_of, which, has_aux=True)(*inputs)
        return loss, terms, found

    def enlarge(self, images: torch.Tensor) -> torch.Tensor:
        """Images of the search's resolution (K, C, h, w) at full size."""
        if self.attack.resolution == 1:
            return images
        size = self.update.input_shape[1:]
        return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def spread_of(peeled: Peeled, update: Update) -> torch.Tensor:
    """How far each image's activations (K, ...) are from those of gray: (K, 1, ...).

    Images that a trained network answers faintly must not drown beside the others.
    """
    known = peeled.activations
    with torch.no_grad():
        # as many as the client had: batch norm in train mode takes no single value
        gray = peeled.trunk(torch.full((len(known), *update.input_shape), 0.5).to(known))
        away = (known - gray).square().flatten(1).mean(1)
    return away.view(-1, *[1] * (known.ndim - 1))


def needs_scale(distance: Distance, observed: list[torch.Tensor]) -> bool:
    """Whether a distance changes when the simulated gradient is made twice as long.

    >>> from gleak.inversion.distances import cosine, l2
    >>> needs_scale(l2, [torch.ones(3)]), needs_scale(cosine, [torch.ones(3)])
    (True, False)
    """
    draws = torch.Generator().manual_seed(0)
    noise = [torch.rand(t.shape, generator=draws).to(t) * t.abs().max() for t in observed]
    once = distance(noise, observed)
    return not torch.isclose(once, distance([2 * t for t in noise], observed), rtol=1e-3).item()


def compiled(function: Callable, fallback: Callable) -> Callable:
    """The function through torch.compile; the fallback, with a note, where that does not work."""
    current = torch.compile(function)

    def call(*inputs: Any) -> Any:
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
