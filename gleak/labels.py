"""Label counts from the gradient of the last layer, without any data of the client's kind.

With mean cross-entropy over K samples, softmax outputs p_k, one-hot labels y_k and features o_k,

    grad b_n = 1/K sum_k (p_kn - y_kn),      grad W_n = 1/K sum_k (p_kn - y_kn) o_k,

so the counts lambda_n = sum_k y_kn stand in the gradient, less what the softmax puts there.
"""

import torch

from gleak.update import MissingKnowledge, Update


def restore_labels(update: Update, method: str = "zlg", *, seed: int = 0) -> torch.Tensor:
    """How often each class occurs in the client's batch: (N,) long, summing to K.

    method: one of `list_label_methods()`; `seed` fixes the random inputs of the zero-shot methods.

    Raises ValueError for an unknown method, MissingKnowledge for one that needs more than the
    update offers.

    >>> import gleak
    >>> batch = gleak.load_batch("cifar10-samples", indices=[0, 1, 2, 3])
    >>> update = gleak.fedsgd(gleak.build_model("convnet", batch), batch)
    >>> restore_labels(update, method="zlg-bias").tolist()
    [1, 0, 0, 1, 0, 0, 0, 0, 2, 0]
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    return METHODS[method](update, seed)


def list_label_methods() -> list[str]:
    """The names that `restore_labels` takes."""
    return list(METHODS)


def idlg(update: Update, seed: int = 0) -> torch.Tensor:
    """The sign rule: a class whose row of grad W sums below zero is in the batch.

    Zhao et al. 2020 (iDLG), exact for a batch of one and non-negative features. It finds classes,
    not counts; what K leaves over is dealt out evenly among them, the most negative first.
    """
    row_sum = update.classifier_gradient()[0].double().sum(1)
    order = row_sum.argsort()
    present = order[: max(1, int((row_sum < 0).sum()))]
    dealt = present[torch.arange(update.num_samples) % len(present)]
    return torch.bincount(dealt, minlength=update.num_classes)


def zlg(update: Update, seed: int = 0) -> torch.Tensor:
    """Zero-shot restoration from the weight gradient: lambda_n = K p_n - K g_n / O.

    g_n is the sum of row n of grad W. The mean softmax p_n and the mean feature sum O are those of
    random inputs. Geng et al. 2021, arXiv 2110.09074. Needs features whose sum is not near zero.
    """
    weight_gradient, _ = update.classifier_gradient()
    softmax, features = zero_shot(update, seed)
    feature_sum = features.sum(1).mean()
    if feature_sum.abs() < 1e-6 * features.abs().sum(1).mean().clamp_min(1e-12):
        raise ValueError("zlg divides by the mean feature sum, which is zero for this model")
    k = update.num_samples
    counts = k * softmax.mean(0) - k * weight_gradient.double().sum(1) / feature_sum
    return largest_remainder(counts, k)


def zlg_bias(update: Update, seed: int = 0) -> torch.Tensor:
    """Zero-shot restoration from the bias gradient: lambda_n = K (p_n - grad b_n).

    The same estimate as `zlg` without its assumption on the features: exact when p_n is the mean
    softmax of the client's batch; p_n here is that of random inputs.
    """
    _, bias_gradient = update.classifier_gradient()
    if bias_gradient is None:
        raise MissingKnowledge(
            "zlg-bias needs the gradient of the classifier's bias, which this update does not "
            "hold; zlg works from the weight gradient"
        )
    softmax, _ = zero_shot(update, seed)
    k = update.num_samples
    return largest_remainder(k * (softmax.mean(0) - bias_gradient.double()), k)


METHODS = {"zlg": zlg, "zlg-bias": zlg_bias, "idlg": idlg}


def zero_shot(update: Update, seed: int, num_inputs: int = 1000) -> tuple[torch.Tensor, ...]:
    """Softmax (num_inputs, N) and features (num_inputs, M) of random inputs, in float64.

    Pixels are Gaussian with mean 1/2 and deviation 1/4: about N(0, 1) after the normalisation.
    """
    generator = torch.Generator().manual_seed(seed)
    parameter = next(update.model.parameters())
    softmax, features = [], []
    for size in torch.arange(num_inputs).split(125):  # in pieces, for the memory's sake
        noise = torch.randn(len(size), *update.input_shape, generator=generator)
        out, logits = update.forward((0.5 + 0.25 * noise).to(parameter))
        features.append(out.double())
        softmax.append(logits.double().softmax(1))
    return torch.cat(softmax), torch.cat(features)


def largest_remainder(counts: torch.Tensor, total: int) -> torch.Tensor:
    """Non-negative integers (N,) that sum to `total`, nearest to the real-valued `counts` (N,).

    Negative counts become 0 and the rest is scaled down when it is too much; then each class gets
    its whole part, and those with the largest remainders get one more (Hamilton's method).

    >>> largest_remainder(torch.tensor([1.6, -0.3, 2.3, 0.4]), 4).tolist()
    [2, 0, 2, 0]
    """
    counts = counts.double().clamp_min(0)
    if not torch.isfinite(counts).all():
        raise ValueError("the label counts are not finite")
    if counts.sum() == 0:
        counts = torch.ones_like(counts)
    if counts.sum() > total or counts.floor().sum() + len(counts) < total:
        counts = counts / counts.max()  # first to 1, as the smallest floats have no reciprocal
        counts = counts * (total / counts.sum())
    whole = counts.floor()
    left = total - int(whole.sum())
    order = (counts - whole).argsort(descending=True, stable=True)
    whole[order[:left]] += 1
    return whole.long()
