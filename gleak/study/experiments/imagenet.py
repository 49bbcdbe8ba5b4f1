"""Photographs with a thousand possible classes: the labels that their gradients tell."""

import gleak
from gleak.study.experiments.searches import sent

CLASSES = 1000  # that a network trained on ImageNet knows
METHODS = ("zlg", "zlg-bias", "idlg", "gradinversion", "gleak")


def labels_read(
    dataset: str, size: int, image_size: int, model: str, inputs: int, seed: int
) -> list[dict[str, str | float]]:
    """A row for each method: how many labels of a batch it reads from a gradient in eval mode.

    inputs: how many random images the rules see; seed draws the batch and the weights.
    """
    batch = gleak.load_batch(dataset, size=size, seed=seed, image_size=image_size)
    told = sent(model, batch, seed, training=False)
    return [
        {"method": method, **gleak.score_labels(found, batch.label_counts)}
        for method, found in gleak.compare_labels(told, METHODS, inputs=inputs).items()
    ]
