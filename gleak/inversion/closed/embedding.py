"""The image that a vision transformer saw, from its patch embedding and position embedding.

A token is z_p = V x_p + b + e_p: a projection of patch p, and a learnt embedding of its position.
Their gradients share the slopes d_p at the tokens: d_p is the gradient of e_p itself, that of b is
sum_p d_p, that of V is sum_p d_p x_p^T. With one image these are linear equations for its patches,
one for each entry of a token, and as many tokens as there may be to have a solution. No label is
needed. The sum over local steps has the same form, as the patches stay what they are.

That the position embedding gives the slopes away was seen by Lu et al. (APRIL, CVPR 2022); their
closed form takes the rest from the attention's weights, which needs a block without a residual way.

Which parameter is the position embedding, and which pixel a weight sees, is not guessed by names:
random images are sent through the network, and their derivatives tell.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from gleak.labels.tolerance import of_dtype
from gleak.update import MissingKnowledge, Update

MISFIT = 0.1  # relative error of the equations above which they are not those of one image
# Standard error, in units of a pixel's range, above which a mixture of patches counts as not told.
# A gradient of float16 (ViT-B, 224 pixels, one photograph): 0.02 leaves 27.9 dB, 0.05 31.3, 0.1
# 30.0; bfloat16 20.7, 23.4, 24.5. In float32 all are told.
UNTOLD = 0.05
WHOLE = 0.99  # share of a patch from which it counts as told
ROUNDINGS = 4  # a client's arithmetic in units of one rounding, where no equation is left to tell
STEPS = 500  # of conjugate gradients; 100 to 300 settle photographs of 224 pixels
SETTLED = 1e-5  # and the relative residual that ends them
SAME = 1e-3  # relative difference of two gradients that are one, up to rounding
TRANSFORMS = (nn.LayerNorm, nn.MultiheadAttention)  # what makes a network of patches a transformer
HOLD_NO_POSITIONS = (*TRANSFORMS, nn.Linear, _ConvNd, _BatchNorm)


@dataclass(frozen=True, eq=False)
class Embedding:
    """Where a network takes its patches apart, and where it adds their positions.

    projection: name of the layer. position: name of the parameter.
    where: (P, D) the entry of that parameter, flattened, that belongs to each entry of a token.
    pixels: (P, n) the pixel, of the flattened image, that each column of the projection sees; it
    sees scale (n,) times the pixel plus offset (n,).
    """

    projection: str
    position: str
    where: torch.Tensor
    pixels: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor

    def image(self, patches: torch.Tensor) -> torch.Tensor:
        """The flattened image (C H W,) of patches (P, n)."""
        flat = patches.new_empty(self.pixels.numel())
        flat[self.pixels.flatten()] = patches.flatten()
        return flat


@dataclass(frozen=True, eq=False)
class Patches:
    """An image from the patch embedding.

    image: (1, C, H, W), not clipped.
    told: (P,) how much of each patch the equations tell, 1 for all; what is left is as smooth as it
    can be.
    deviation: (P,) standard error of the pixels of a patch, in units of their range, from what the
    equations miss, in what they tell.
    misfit: relative error of the equations. conditioning: of the slopes, largest to smallest.
    """

    embedding: Embedding
    image: torch.Tensor
    told: torch.Tensor
    deviation: torch.Tensor
    misfit: float
    conditioning: float

    @property
    def restored(self) -> torch.Tensor:
        """(P,) whether a patch is told."""
        return self.told > WHOLE

    def __str__(self) -> str:
        made = f"{self.embedding.projection} and {self.embedding.position}"
        count = f"{int(self.restored.sum())} of {len(self.told)}"
        error = f"standard error up to {self.deviation.max():.0e}"
        return f"patch embedding ({made}), {count} patches told, {error}"


def embedded_image(update: Update) -> Patches | None:
    """The image of a batch of one from the patch embedding; None where the network has none.

    Raises MissingKnowledge where it has one that does not tell the image, with what it tells.

    >>> import gleak
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.patches, self.head = nn.Conv2d(1, 6, 2, 2), nn.Linear(6, 3)
    ...         self.position = nn.Parameter(torch.randn(4, 6))
    ...     def forward(self, images):
    ...         tokens = self.patches(images).flatten(2).transpose(1, 2) + self.position
    ...         return self.head(tokens.tanh().mean(1))
    >>> _ = torch.manual_seed(0)
    >>> batch = gleak.Batch(torch.rand(1, 1, 4, 4), torch.tensor([1]), list("abc"))
    >>> found = embedded_image(gleak.fedsgd(Net(), batch))
    >>> print(found)  # doctest: +ELLIPSIS
    patch embedding (patches and position), 4 of 4 patches told, standard error up to ...
    >>> bool((found.image - batch.images).abs().max() < 1e-5)
    True
    """
    embedding = find_embedding(update)
    if embedding is None:
        return None
    sent = update.message()
    if update.facts.get("weight_decay"):
        sent = update.equivalent_gradient()
    slopes, observed = gradients_of(embedding, sent)
    bias = sent.get(f"{embedding.projection}.bias")
    if bias is not None:
        missed = relative(slopes.sum(0), bias.double().cpu())
        if missed > MISFIT:
            raise MissingKnowledge(
                f"the gradient of {embedding.projection}.bias misses the sum of that of "
                f"{embedding.position} by {missed:.0%}: they are no sums of the same slopes"
            )
    if update.num_samples > 1:
        rank = int((torch.linalg.svdvals(observed) > 1e-6 * observed.norm()).sum())
        raise MissingKnowledge(
            f"it tells a batch of one; of {update.num_samples} images the gradient of "
            f"{embedding.position} is the sum of their slopes, and that of "
            f"{embedding.projection}.weight tells {rank} directions in which their patches lie"
        )
    return solved(embedding, slopes, observed, noise_of(update), update.input_shape)


def noise_of(update: Update) -> float:
    """Relative error of the entries of a gradient, where equations do not tell it themselves."""
    own = max(of_dtype(update.classifier.weight.dtype), update.precision)
    return ROUNDINGS * own


def gradients_of(
    embedding: Embedding, sent: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The slopes at the tokens (P, D), and the gradient of the projection (D, n), in float64.

    Raises MissingKnowledge where they were not sent or are zero.
    """
    names = embedding.position, f"{embedding.projection}.weight"
    for name in names:
        if name not in sent:
            raise MissingKnowledge(
                f"the patch embedding needs the gradient of {name}, which the client did not send"
            )
    position, weight = (sent[name].detach().cpu().double() for name in names)
    if not position.any() or not weight.any():
        raise MissingKnowledge(
            f"the gradient of {names[0]} is zero: nothing passes a classifier whose weights are "
            "zero, as torchvision makes them, so its own gradient is all that was sent"
        )
    return position.flatten()[embedding.where], weight.flatten(1)


def solved(
    embedding: Embedding,
    slopes: torch.Tensor,
    observed: torch.Tensor,
    rounding: float,
    shape: tuple[int, int, int],
) -> Patches:
    """The image whose patches X, as the projection sees them, solve slopes^T X = observed.

    slopes: (P, D). observed: (D, n). rounding: relative error of these, where there are too few
    equations to tell. Mixtures of patches that noise hides are as smooth as can be.

    Raises MissingKnowledge where the equations do not hold.
    """
    mixtures, sizes, tokens = torch.linalg.svd(slopes, full_matrices=False)  # (P, r), (r,), (r, D)
    missing = observed - tokens.T @ (tokens @ observed)
    missed = float(missing.norm() / observed.norm())
    if missed > MISFIT:
        raise MissingKnowledge(
            f"the gradient of {embedding.projection}.weight misses what one image can make of the "
            f"slopes by {missed:.0%}"
        )
    # as if the projection saw pixels, with mid gray as zero
    total = slopes.sum(0)[:, None]
    observed = (observed - total * embedding.offset) / embedding.scale - 0.5 * total
    read = tokens @ observed
    count, width = slopes.shape
    if count < width:
        spare = (width - count) * observed.shape[1]
        noise = float((missing / embedding.scale).norm()) / math.sqrt(spare)
    else:
        noise = rounding * float(observed.square().mean().sqrt())
    errors = noise / sizes.clamp_min(torch.finfo(sizes.dtype).tiny)
    told = errors < UNTOLD
    if not told.any():
        raise MissingKnowledge("noise hides every patch in its gradient")
    known = mixtures[:, told]
    image = embedding.image(known @ (read[told] / sizes[told, None]) + 0.5)
    if known.shape[1] < count:
        image = smoothest(embedding, image, known, shape)
    return Patches(
        embedding,
        image.view(1, *shape),
        known.square().sum(1),
        (known.square() @ errors[told].square()).sqrt(),
        missed,
        float(errors[-1] / errors[0]),
    )


def smoothest(
    embedding: Embedding, image: torch.Tensor, known: torch.Tensor, shape: tuple[int, int, int]
) -> torch.Tensor:
    """The smoothest image (C H W,) that has the told mixtures of patches in common with this one.

    known: (P, r) orthonormal mixtures that are told. Smooth is a small sum of squared differences
    between neighbours, which conjugate gradients minimise.
    """

    def free(flat: torch.Tensor) -> torch.Tensor:
        """The part of a direction that changes nothing told."""
        patches = flat[embedding.pixels]
        return embedding.image(patches - known @ (known.T @ patches))

    def slope(flat: torch.Tensor) -> torch.Tensor:
        """Of half the sum of squared differences."""
        planes = flat.view(shape)
        out = torch.zeros_like(planes)
        for dim in (1, 2):
            steps, length = planes.diff(dim=dim), planes.shape[dim]
            out.narrow(dim, 1, length - 1).add_(steps)
            out.narrow(dim, 0, length - 1).sub_(steps)
        return out.flatten()

    residual = -free(slope(image))
    direction, square = residual, residual.square().sum()
    enough = SETTLED**2 * square
    for _ in range(STEPS):
        if square <= enough:
            break
        curved = free(slope(direction))
        step = square / (direction @ curved)
        image, residual = image + step * direction, residual - step * curved
        before, square = square, residual.square().sum()
        direction = residual + square / before * direction
    return image


def missed_by(update: Update, found: Patches, labels: torch.Tensor) -> float:
    """By how much the gradient of the image that was found, with labels (1,), misses the sent one.

    Relative, of the position embedding and the projection, through the whole network.
    """
    names = found.embedding.position, f"{found.embedding.projection}.weight"
    parameters = [update.model.get_parameter(name) for name in names]
    sent = update.message()
    loss = F.cross_entropy(update.model(found.image.to(parameters[0])), labels)
    made = torch.autograd.grad(loss, parameters)
    return max(
        relative(one.double(), sent[name].double()) for one, name in zip(made, names, strict=True)
    )


class Reached(Exception):
    """Ends a forward pass at its first layer with weights."""

    def __init__(self, name: str, entering: torch.Tensor):
        super().__init__(name)
        self.name, self.entering = name, entering


def find_embedding(update: Update) -> Embedding | None:
    """How the update's network embeds patches and positions; None where it embeds no patches.

    Raises MissingKnowledge for patches whose positions are not learnt, and for any whose pixels
    cannot be told.
    """
    model, shape = update.model, update.input_shape
    like = next(model.parameters())
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(2, *shape, generator=draws).to(like)
    reached = first_layer(model, images.requires_grad_())
    if reached is None:
        return None
    layer, entering = model.get_submodule(reached.name), reached.entering
    pixels = disjoint_patches(layer, torch.arange(entering[0].numel()).view(entering[0].shape))
    if pixels is None:
        return None
    candidates = {
        name: parameter
        for owner, module in model.named_modules()
        if not isinstance(module, HOLD_NO_POSITIONS)
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.numel() >= len(pixels) * len(layer.get_parameter("weight"))
        for name in [f"{owner}.{own}" if owner else own]
    }
    if not candidates and not any(isinstance(m, TRANSFORMS) for m in model.modules()):
        return None  # patches alone make no transformer
    place, scale, offset = rearrangement(entering, images, reached.name)
    sees = place[pixels]  # (P, n)
    if not torch.allclose(scale[pixels], scale[pixels[:1]].expand_as(sees)):
        raise MissingKnowledge(f"{reached.name} sees each patch scaled in another way")
    slopes, gradients = slopes_of(update, layer, candidates, images[:1].detach())
    for name, gradient in gradients.items():
        where = rows_of(slopes, gradient)
        if where is not None:
            return Embedding(
                reached.name, name, where, sees, scale[pixels[0]], offset[pixels].mean(0)
            )
    raise MissingKnowledge(
        f"the positions of the patches of {reached.name} are not learnt one by one, so no gradient "
        f"tells the slope at each of them; that of {reached.name}.bias, if any, is their sum"
    )


def first_layer(model: nn.Module, images: torch.Tensor) -> Reached | None:
    """The first layer with weights that images (K, C, H, W) come to, and what enters it.

    None where the model has no linear or convolutional layer, or takes no such images.
    """

    def stop(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            raise Reached(name, inputs[0])

        return hook

    hooks = [
        module.register_forward_pre_hook(stop(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    try:
        model(images)
    except Reached as reached:
        return reached
    except (RuntimeError, ValueError, AssertionError, TypeError):  # a forward pass is anyone's code
        return None
    finally:
        for hook in hooks:
            hook.remove()
    return None


def disjoint_patches(layer: nn.Module, entries: torch.Tensor) -> torch.Tensor | None:
    """What each patch of a layer's input consists of, (P, n), in the order of the layer's weights.

    entries: numbers of the entries of the input of one image, in its shape. None where it has no
    patches, or such that overlap or leave something out.
    """
    if isinstance(layer, nn.Linear):
        return entries.flatten(0, -2) if entries.ndim > 1 else None
    assert isinstance(layer, nn.Conv2d)
    size = layer.kernel_size
    plain = layer.groups == 1 and layer.stride == size and max(size) > 1
    if not plain or layer.padding not in ("valid", (0, 0)) or layer.dilation != (1, 1):
        return None
    if any(side % part for side, part in zip(entries.shape[1:], size, strict=True)):
        return None
    return F.unfold(entries[None].double(), size, stride=size)[0].T.long()


def rearrangement(
    entering: torch.Tensor, images: torch.Tensor, name: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which pixel each entry of a layer's input is, how it is scaled and moved: (C H W,) each.

    entering: the input (2, ...) that two images (2, C, H, W) made. name: of the layer, for people.

    Raises MissingKnowledge unless each entry is one pixel, each image's in the same way.
    """
    made, pixels = entering.flatten(1), images.detach().flatten(1).double()
    numbers = torch.arange(1, made.shape[1] + 1).to(made)
    derivatives = [
        torch.autograd.grad(made, images, weight.expand_as(made), True, allow_unused=True)[0]
        for weight in (torch.ones_like(numbers), numbers)
    ]
    if made.shape == pixels.shape and derivatives[0] is not None:
        scales, numbered = (part.flatten(1).double() for part in derivatives)
        entry = (numbered / scales - 1).round()[0]
        if torch.equal(entry.sort().values, torch.arange(len(entry)).to(entry)):
            place = entry.long().argsort()
            scale = scales[:, place]
            offset = made.detach().double() - scale * pixels[:, place]
            if torch.allclose(offset[0], offset[1], atol=1e-4 * float(scale.abs().max())):
                return place.cpu(), scale[0].cpu(), offset.mean(0).cpu()
    raise MissingKnowledge(
        f"{name} sees no single pixels of the images, but something made of them"
    )


def slopes_of(
    update: Update, layer: nn.Module, candidates: Mapping[str, nn.Parameter], image: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The slopes at a layer's output (P, D), and the gradients of parameters, for one image.

    Of a loss that is a random mixture of what enters the classifier, whose weights may be zero.
    """
    noted: dict[str, torch.Tensor] = {}

    def output(_: nn.Module, __: Any, made: torch.Tensor) -> None:
        noted["tokens"] = made

    def features(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        noted["features"] = inputs[0]

    classifier = update.model.get_submodule(update.classifier_name)
    hooks = layer.register_forward_hook(output), classifier.register_forward_pre_hook(features)
    try:
        update.model(image)
    finally:
        for hook in hooks:
            hook.remove()
    draws = torch.Generator().manual_seed(1)
    seen = noted["features"]
    loss = (seen * torch.randn(seen.shape, generator=draws).to(seen)).sum()
    wanted = [noted["tokens"], *(p for p in candidates.values() if p.requires_grad)]
    names = [name for name, p in candidates.items() if p.requires_grad]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    slopes, *gradients = (None if part is None else part.cpu().double() for part in found)
    if slopes is None:
        raise MissingKnowledge("what enters the classifier does not depend on the patches")
    slopes = slopes[0].flatten(1).T if isinstance(layer, nn.Conv2d) else slopes[0].flatten(0, -2)
    named = zip(names, gradients, strict=True)
    return slopes, {name: gradient for name, gradient in named if gradient is not None}


def rows_of(slopes: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor | None:
    """Which entry of a parameter's gradient, flattened, is which of the slopes (P, D).

    The parameter holds a row of D for each position, or D planes of positions, and may hold rows
    for more, as a class token's. None where the slopes are not all in it.
    """
    count, width = slopes.shape
    entries = torch.arange(gradient.numel()).view([side for side in gradient.shape if side > 1])
    tables = []
    if entries.shape[-1] == width:
        tables.append(entries.flatten(0, -2))
    if entries.shape[0] == width:
        tables.append(entries.flatten(1).T)
    for table in tables:
        rows = gradient.flatten()[table]
        nearest = torch.cdist(slopes, rows, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        off = (rows[nearest] - slopes).norm(dim=1)
        if len(nearest.unique()) == count and bool((off <= SAME * slopes.norm(dim=1)).all()):
            return table[nearest]
    return None


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The relative distance of two tensors."""
    return float((found - wanted).norm() / wanted.norm().clamp_min(torch.finfo(wanted.dtype).tiny))
