"""How many samples a client used, from the update alone: right, or asked for."""

from dataclasses import replace

import pytest
import torch

import gleak
from gleak import defences
from gleak.labels import guess_samples

HUNDRED = list(range(8))


def hidden(update):
    """The update without its K."""
    return replace(update, num_samples=1)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_gradient_shows_how_many_samples_it_is_of(size):
    batch = gleak.load_batch("cifar100-samples", indices=HUNDRED[:size])
    update = hidden(gleak.fedsgd(gleak.build_model("convnet", batch, width=8), batch))
    assert guess_samples(update) == size


def test_weights_of_one_epoch_show_it_too(batch):
    net = gleak.build_model("lenet", batch)
    pair = gleak.Batch(batch.images[:2], batch.labels[:2], batch.class_names)
    assert guess_samples(hidden(gleak.fedavg(net, pair, lr=0.01))) == 2


def test_a_summed_loss_that_was_told(batch):
    update = gleak.fedsgd(gleak.build_model("lenet", batch), batch)
    summed = update.resent({name: 4 * gradient for name, gradient in update.gradient.items()})
    assert guess_samples(hidden(summed), summed=True) == 4
    with pytest.raises(gleak.MissingKnowledge, match="rank 4"):
        guess_samples(hidden(summed))


def test_images_that_are_the_same_are_not_missed(batch):
    images, labels = batch.images[[0, 1, 1]], batch.labels[[0, 1, 1]]
    repeated = gleak.Batch(images, labels, batch.class_names)
    update = gleak.fedsgd(gleak.build_model("convnet", batch, width=8), repeated)
    with pytest.raises(gleak.MissingKnowledge, match="rank 2, as that of 2 samples or more"):
        guess_samples(hidden(update))
    twice = gleak.Batch(batch.images[[0, 0]], batch.labels[[0, 0]], batch.class_names)
    same = gleak.fedsgd(gleak.build_model("convnet", batch, width=8), twice)
    assert guess_samples(hidden(same)) == 1  # sends what one of them sends


def test_what_does_not_show_it_is_asked_for(batch):
    net = gleak.build_model("lenet", batch)
    update = gleak.fedsgd(net, batch)
    full = gleak.load_batch("cifar10-samples", indices=list(range(12)))
    for hides, words in (
        (gleak.fedavg(net, batch, epochs=2), "more than one epoch"),
        (gleak.fedavg(net, batch, reveal=("lr",)), "or an unknown number"),
        (gleak.fedsgd(net, full), "at least 9 samples"),
        (defences.add_noise(update, 1e-3, seed=0), "noise or rounding hides|at least 9 samples"),
        (defences.prune(update, 0.9), "were set to zero"),
        (defences.quantise(update, bits=4), "were set to zero|at least 9 samples"),
        (defences.sign(update), "have few sizes"),
        (update.resent({"1.7.bias": update.gradient["1.7.bias"]}), "nothing of the classifier"),
        (update.resent({n: torch.zeros_like(g) for n, g in update.gradient.items()}), "not change"),
    ):
        with pytest.raises(gleak.MissingKnowledge, match=words) as error:
            guess_samples(hidden(hides))
        assert "has to be told" in str(error.value)


def test_digits_that_are_few_do_not_mislead(batch):
    update = gleak.fedsgd(gleak.build_model("lenet", batch), batch)
    try:
        found = guess_samples(hidden(defences.cast(update, torch.bfloat16)))
    except gleak.MissingKnowledge:
        return
    assert found == 4
