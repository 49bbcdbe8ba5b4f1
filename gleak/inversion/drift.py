"""`gleak` on weights: undo the drift of local training, then read the gradient in closed form.

A FedAvg client sends D, the mean of gradients along its way from W0 to WT. Where the way is
straight and the gradient changes evenly, that is the gradient g in its middle, a place that the
server knows. For what is left, take any guess x of the client's images: the server can simulate
both, D(x) and g(x). Their difference depends little on details of the images, so

    g  ~  D + g(x) - D(x),

exactly for the true images, and else with an error of the size of the drift times that of x. From
this gradient the features of single images follow in closed form, from those come better images,
and from those a better gradient: a few rounds find images whose simulated weights are the client's.
Every round costs one simulation and no second derivative.
"""

from dataclasses import replace
from functools import partial

import torch

from gleak.inversion.distances import l2
from gleak.inversion.gradients import local_gradient
from gleak.inversion.update_models import UpdateModel, equivalent
from gleak.update import GradientUpdate, Update, WeightsUpdate

ORDERS = 4  # draws of the unknown order of samples that a simulation is averaged over


def undrifted(
    update: WeightsUpdate,
    images: torch.Tensor,
    labels: torch.Tensor,
    update_model: UpdateModel,
    seed: int = 0,
) -> tuple[GradientUpdate, float]:
    """The update as one gradient (see `Update.as_gradient`), as far as a guess of its images tells.

    images (K, C, H, W), labels (K,): the guess. Returned along with the update is the relative
    distance of the weights that the guess would have led to; 0 for the client's own images.

    Raises MissingKnowledge when the client told no lr, epochs or batch size.
    """
    middle = update.as_gradient()
    sent = middle.gradient
    gradient = partial(local_gradient, update.model)
    images = images.to(update.classifier.weight)
    orders = ORDERS if update.facts["batch_size"] < update.num_samples else 1
    drifted = [torch.zeros_like(tensor) for tensor in sent.values()]
    for draw in range(orders):
        simulation = update_model(update, list(sent), seed + draw)
        repeated = images.repeat(simulation.copies, 1, 1, 1)
        learnt = [tensor.requires_grad_() for tensor in simulation.learnt]
        found = simulation.run(gradient, repeated, labels, *learnt)
        drifted = [mean + f.detach() / orders for mean, f in zip(drifted, found, strict=True)]
    at_middle = equivalent(middle, list(sent), seed).run(gradient, images, labels)
    corrected = {
        name: sent[name] + here.detach() - end
        for name, here, end in zip(sent, at_middle, drifted, strict=True)
    }
    distance = l2(drifted, list(sent.values())).sqrt().item()
    return replace(middle, gradient=corrected), distance


def classifier_drift(one: Update, other: Update) -> float:
    """The relative distance of the classifier's gradients, which tell the features of images."""
    gradients = [update.classifier_gradient()[0] for update in (one, other)]
    return l2(gradients[1:], gradients[:1]).sqrt().item()
