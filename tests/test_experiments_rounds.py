"""Chapter 11c: private training, late updates, and the same batch in several rounds."""

import pandas as pd
import pytest
import torch

import gleak
from gleak.study.displays import rounds as display
from gleak.study.experiments import rounds as experiment

CLIENT = {"pool": "digits", "model": "lenet", "expected": 16, "size": 4}


@pytest.fixture(scope="module")
def digits():
    return gleak.load_pool("digits", "server")


def weights(net):
    return torch.cat([p.detach().flatten().clone() for p in net.parameters()])


def test_a_step_without_noise_is_adam_on_the_mean_of_clipped_gradients(digits):
    first, second = (weights(net) for net in experiment.course(digits, "lenet", 0, 0, 1, 16))
    moved = (second - first).abs()
    assert moved.max() == pytest.approx(experiment.LR, rel=1e-3)  # Adam's first step is its rate
    noisy = [weights(net) for net in experiment.course(digits, "lenet", 1.0, 0, 1, 16)]
    assert torch.equal(noisy[0], first)
    assert not torch.equal(noisy[1], second)


def test_the_clip_is_undone_and_counts_are_not_rounded(digits):
    batch = gleak.draw_batch(digits, 4, seed=1)
    net = next(experiment.course(digits, "lenet", 0, 0, 1, 16))
    update = experiment.sent(net, batch, 0.0, 0)
    found = experiment.estimate(update, "zlg-bias", 0)
    assert found.sum() == pytest.approx(4, abs=1e-3)
    assert torch.equal(found.round().long(), batch.label_counts)
    assert experiment.share_right(found, batch) == 1
    clipped = gleak.restore_labels(update, "zlg-bias", seed=0)  # by who does not undo the clip
    assert not torch.equal(clipped, batch.label_counts)


def test_a_factor_that_noise_hides_is_not_undone(digits):
    batch = gleak.draw_batch(digits, 4, seed=1)
    net = next(experiment.course(digits, "lenet", 0, 0, 1, 16))
    for seed in range(5):
        assert (
            experiment.estimate(experiment.sent(net, batch, 5.0, seed), "gleak", 0).isfinite().all()
        )


def test_several_rounds_see_through_noise_that_one_does_not():
    rows = [
        row
        for seed in range(2)
        for row in experiment.repeated(4.0, seed, rounds=[1, 6], **CLIENT | {"size": 8})
    ]
    means = pd.DataFrame(rows).groupby("rounds").mean()
    assert means.loc[6, "labels by zlg-bias"] > means.loc[1, "labels by zlg-bias"]


def test_no_round_is_refused():
    with pytest.raises(ValueError, match="at least 1; got"):
        experiment.repeated(1.0, 0, rounds=[0, 4], **CLIENT)


def test_stages_has_a_row_for_each_step_and_its_baselines():
    rows = experiment.stages(0.1, 0, steps=[0, 2], batches=1, iterations=2, **CLIENT)
    assert [row["step"] for row in rows] == [0, 2]
    assert all(0 <= row["labels"] <= 1 and row["thumb8"] > row["mean_colour"] for row in rows)


def again(*shares):
    """Rows of one noise and network: the shares of labels right after 1, 4, 16 rounds."""
    return pd.DataFrame(
        {"z": 1.0, "seed": 0, "rounds": rounds, "labels by gleak": share, "labels by zlg-bias": 0.5}
        for rounds, share in zip([1, 4, 16], shares, strict=True)
    )


def test_what_further_rounds_are_worth():
    frame = again(0.5, 0.8, 0.6)
    assert display.gains(frame)[1.0, "labels by gleak"] == pytest.approx(0.3)
    numbers = display.rounds_numbers(frame)
    assert (numbers["again_one"], numbers["again_best"]) == pytest.approx((50, 80))
    assert numbers["again_rounds"] == 4
    assert all(display.rounds_claims(frame).values())
    assert not any(display.rounds_claims(again(0.8, 0.8, 0.6)).values())


def test_claims_on_stages_can_fail():
    rows = [
        {"z": z, "step": step, "labels": labels, "guess": 0.5, "psnr": 9.0, "mean_colour": 10.0}
        for z, step, labels in ((0.1, 0, 0.9), (0.1, 50, 0.5), (1.0, 0, 0.5), (1.0, 50, 0.5))
    ]
    frame = pd.DataFrame(rows)
    assert all(display.stages_claims(frame).values())
    late = frame.assign(labels=[0.5, 0.9, 0.5, 0.5], psnr=[9, 20, 9, 9])
    assert not any(display.stages_claims(late).values())
