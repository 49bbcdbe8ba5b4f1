"""The loss of one attack on one update, and its gradient by all that the attack searches."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from gleak.inversion import attack as attacks
from gleak.inversion.batch_norm import batch_norm_targets, listen, statistics_distance
from gleak.inversion.distances import DISTANCES
from gleak.inversion.finite_difference import (
    difference_fits,
    differenced_gradient,
    functional_slopes,
    slopes,
)
from gleak.inversion.gradients import functional_gradient, local_gradient
from gleak.inversion.priors import PRIORS
from gleak.inversion.update_models import equivalent, observed
from gleak.update import MissingKnowledge


class Objective:
    """What is searched, `inputs`, is a list: images (copies x K, C, h, w), soft labels (K, N) if
    the attack optimises labels, and what the update model learns, if anything.

    step(inputs, fade) -> loss (), its terms (T,), its gradient by each of the inputs.
    """

    def __init__(
        self,
        update,
        labels,
        attack,
        peeled=None,
        statistics=None,
        compile=False,
        update_model=equivalent,
        seed=0,
    ):
        self.update, self.labels, self.attack, self.peeled = update, labels, attack, peeled
        sent, scaled = observed(update)
        names = list(sent)
        if attack.features:  # what lies behind the peeled layers is used up
            own = dict(update.model.named_parameters())
            below = {id(p) for layer in peeled.layers[: peeled.depth] for p in layer.parameters()}
            names = [name for name in names if id(own[name]) in below]
            self.trunk = nn.Sequential(*peeled.layers[: peeled.depth])
            with torch.no_grad():
                gray = self.trunk(torch.full((1, *update.input_shape), 0.5).to(peeled.activations))
            # images that a trained network answers faintly must not drown beside the others
            away = (peeled.activations - gray).square().flatten(1).mean(1)
            self.spread = away.view(-1, *[1] * (gray.ndim - 1))
        if not scaled and "cosine" not in attack.distance:
            raise MissingKnowledge(
                f"the distance {attack.distance} needs the scale of a gradient, for which the "
                "client would have to tell lr, epochs, batch_size; cosine needs none"
            )
        self.names, self.observed = names, [sent[name] for name in names]
        self.simulation = update_model(update, names, seed)
        self.norms = batch_norm_targets(update.model, statistics) if attack.batch_norm else {}
        self.columns = ["loss", "distance"] + [
            name for name in attacks.WEIGHTS if name != "match" and getattr(attack, name)
        ]
        self.gradient = partial(local_gradient, update.model)
        self.step = self.eager_step
        if attack.match and self.takes_differences():
            passes = partial(slopes, update.model)
            if compile:  # which leaves partials alone
                passes = compiled(lambda *which: functional_slopes(update.model, *which), passes)
            self.gradient = partial(differenced_gradient, passes)
        elif compile and not self.norms and self.simulation.compiles:  # hooks would break it apart
            self.step = compiled(self.functional_step, self.eager_step)

    def loss(self, inputs, fade, gradient) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of one restart (), and its terms (T,)."""
        attack = self.attack
        images, targets, learnt = self.parts(inputs)
        zero = images.new_zeros(())
        images = self.enlarge(images)
        distance, terms, entered = zero, [], {}
        if attack.match:
            if self.norms:
                with listen(self.update.model, self.norms) as entered:
                    simulated = self.simulation.run(gradient, images, targets, *learnt)
            else:
                simulated = self.simulation.run(gradient, images, targets, *learnt)
            distance = DISTANCES[attack.distance](simulated, self.observed)
        total = attack.match * distance
        for name in self.columns[2:]:
            if name == "features":
                error = self.trunk(images) - self.peeled.activations
                term = (error.square() / self.spread).mean()
            elif name == "batch_norm":
                term = statistics_distance(entered, self.norms) if self.norms else zero
            elif name == "group":
                term = zero  # lies between the restarts, see `Search.evaluate`
            else:
                term = PRIORS[name](images)
            terms.append(term)
            total = total + getattr(attack, name) * (fade if "tv" in name else 1.0) * term
        if self.simulation.penalty:
            total = total + attack.match * self.simulation.penalty(images, *learnt)
        return total, torch.stack([distance, *terms]).detach()

    def takes_differences(self) -> bool:
        """Whether the derivative of the gradient can be a difference, which is cheaper.

        The line search of L-BFGS needs all digits, hooks on batch norm a graph, and graphics cards
        round convolutions too much.
        """
        if self.attack.derivative == "exact" or self.attack.optimizer == "lbfgs" or self.norms:
            return False
        sent = dict(zip(self.names, self.observed, strict=True))
        distance = DISTANCES[self.attack.distance]
        return self.observed[0].is_cpu and difference_fits(self.update, sent, self.labels, distance)

    def parts(self, inputs):
        """Images, targets for the cross-entropy, and what the update model learns."""
        images, *learnt = inputs
        targets = learnt.pop(0).softmax(1) if self.attack.joint_labels else self.labels
        return images, targets, learnt

    def eager_step(self, inputs, fade):
        """The step through autograd: the fastest without a compiler."""
        loss, terms = self.loss(inputs, fade, self.gradient)
        found = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
        return loss.detach(), terms, found

    def functional_step(self, inputs, fade):
        """`eager_step` in functional form."""
        gradient = partial(functional_gradient, self.update.model)

        def loss_of(*inputs):
            return self.loss(inputs, fade, gradient)

        which = tuple(range(len(inputs)))
        found, (loss, terms) = torch.func.grad_and_value(loss_of, which, has_aux=True)(*inputs)
        return loss, terms, found

    def enlarge(self, images):
        """Images of the search's resolution (K, C, h, w) at full size."""
        if self.attack.resolution == 1:
            return images
        size = self.update.input_shape[1:]
        return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def compiled(function, fallback):
    """The function through torch.compile; the fallback, with a note, where that does not work."""
    current = torch.compile(function)

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
