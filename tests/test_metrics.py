import pytest
import torch
import torchvision

import gleak
from gleak.metrics import ALEXNET, identified, lpips


def test_known_values(batch):
    darker = (batch.images * 0.5 + 0.2).clamp(0, 1)
    scores = gleak.score(darker, batch.images)
    error = ((darker - batch.images) ** 2).mean((1, 2, 3))
    expected = (-10 * error.log10()).tolist()
    assert scores["psnr"].tolist() == pytest.approx(expected, abs=1e-3)
    assert (scores["ssim"] < 1).all()
    same = gleak.score(batch.images, batch.images)
    assert same["psnr"].tolist() == [100.0] * 4
    assert same["ssim"].tolist() == pytest.approx([1.0] * 4)


def test_pictures_that_leak_nothing():
    """The baselines of the first CIFAR-10 test image."""
    cat = gleak.load_batch("cifar10-samples", indices=[0]).images
    scores = gleak.score(torch.zeros_like(cat), cat).iloc[0]
    assert scores["mean_colour"] == pytest.approx(14.8, abs=0.1)
    assert scores["thumb4"] == pytest.approx(17.9, abs=0.1)
    assert scores["thumb8"] == pytest.approx(20.1, abs=0.1)


@pytest.mark.parametrize("order", [[1, 2, 3, 0], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_the_order_of_the_restored_images_does_not_matter(batch, order):
    noise = 0.1 * torch.randn(batch.images.shape, generator=torch.Generator().manual_seed(0))
    restored = (batch.images + noise).clamp(0, 1)
    scores = gleak.score(restored, batch.images)
    shuffled = gleak.score(restored[order], batch.images)
    assert [order[match] for match in shuffled["match"]] == scores["match"].tolist()
    assert shuffled.drop(columns="match").equals(scores.drop(columns="match"))


def test_an_image_is_identified_where_no_other_is_nearer(batch):
    others = gleak.load_batch("cifar10-samples", indices=range(5, 20)).images
    draws = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(batch.images.shape, generator=draws)
    restored = (batch.images + noise).clamp(0, 1)
    assert identified(restored[[2, 0, 3, 1]], batch.images, others).all()
    mixed = torch.cat([restored[:3], others[:1]])  # one shows another image
    assert identified(mixed, batch.images, others).sum() == 3
    darkness = identified(
        restored, batch.images, others, lambda a, b: (a.mean((1, 2, 3)) - b.mean((1, 2, 3))).abs()
    )
    assert darkness.dtype == torch.bool and len(darkness) == 4
    with pytest.raises(ValueError, match="an original is among the others"):
        identified(restored, batch.images, batch.images[:1])
    with pytest.raises(ValueError, match=r"others must be \(M, 3, 32, 32\)"):
        identified(restored, batch.images, others[:, :1])


def test_matching_is_best_over_all_images_not_greedy():
    # Originals 0.0 and 0.5; restorations 0.4 and 0.9. The first is nearest to both; together it is
    # better to give it to the black one (8.0 + 8.0 dB) than 0.9 (0.9 + 20 dB)? 20.9 > 15.9, so not.
    originals = torch.stack([torch.full((1, 16, 16), value) for value in (0.0, 0.5)])
    restored = torch.stack([torch.full((1, 16, 16), value) for value in (0.4, 0.9)])
    assert gleak.score(restored, originals)["match"].tolist() == [1, 0]


@pytest.mark.parametrize("dataset", gleak.list_datasets())
def test_scores_of_every_kind_of_image(dataset):
    images = gleak.load_batch(dataset, size=1, image_size=28).images
    scores = gleak.score(images.flip(-1), images)
    assert scores.notna().all(axis=None)


def test_refusals(batch):
    with pytest.raises(ValueError, match=r"must both be \(K, C, H, W\)"):
        gleak.score(batch.images[:2], batch.images)
    with pytest.raises(ValueError, match=r"restored must lie in \[0, 1\]"):
        gleak.score(batch.images * 2, batch.images)
    with pytest.raises(ValueError, match=r"restored must lie in \[0, 1\]"):
        gleak.score(batch.images * torch.nan, batch.images)


def test_label_scores_worked_by_hand():
    # truth (3, 1, 0), restored (2, 1, 1): 2 + 1 of 4 right; all present, one falsely so
    scores = gleak.score_labels(torch.tensor([2, 1, 1]), torch.tensor([3, 1, 0]))
    assert scores["instance"] == 0.75
    assert scores["exact"] == 0
    assert scores["LeAcc"] == pytest.approx(2 / 3)
    assert scores["LnAcc"] == pytest.approx(1 / 3)
    # one label for each class and a fourth dealt out: 1 + 1, and the fourth is right 1 time in 3
    assert scores["even"] == pytest.approx((2 + 1 / 3) / 4)
    exact = gleak.score_labels(torch.tensor([3, 1, 0]), torch.tensor([3, 1, 0]))
    assert exact["instance"] == exact["corrected"] == exact["exact"] == 1


def test_chance_is_what_guessing_scores():
    truth = torch.tensor([5, 0, 2, 1])
    guesses = torch.randint(4, (20000, 8), generator=torch.Generator().manual_seed(0))
    counts = torch.stack([(guesses == n).sum(1) for n in range(4)], 1)
    simulated = torch.minimum(counts, truth).sum(1).double().mean().item() / 8
    assert gleak.score_labels(truth, truth)["chance"] == pytest.approx(simulated, abs=0.005)


def test_label_scores_refuse_other_sums():
    with pytest.raises(ValueError, match="summing to 2 against a truth"):
        gleak.score_labels(torch.tensor([1, 1]), torch.tensor([2, 1]))


def test_drift_of_one_step_worked_by_hand(tiny, two_layers):
    update, gradient = gleak.fedavg(two_layers, tiny, lr=2), gleak.fedsgd(two_layers, tiny)
    drift = gleak.score_drift(update, tiny)
    before = torch.cat([p.flatten() for p in two_layers.parameters()])
    assert drift["moved"] == pytest.approx(2 * gradient.norm() / before.norm().item(), rel=1e-4)
    for name, p in two_layers.named_parameters():
        p.data -= 2 * gradient.gradient[name]
    ends = [gradient, gleak.fedsgd(two_layers, tiny)]
    first, last = (torch.cat([t.flatten() for t in end.gradient.values()]) for end in ends)
    expected = (first @ last / (first.norm() * last.norm())).item()
    assert drift["cosine"] == pytest.approx(expected, abs=1e-5) and expected < 0.99
    with pytest.raises(gleak.MissingKnowledge, match="weights after local training"):
        gleak.score_drift(gradient, tiny)


def test_lpips_without_its_weights_is_a_note_not_a_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    frame = gleak.score(images, images, perceptual=True)
    assert frame["lpips"].isna().all() and "no LPIPS" in capsys.readouterr().out


def test_lpips_takes_weights_that_are_there(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    torch.manual_seed(0)
    torch.save(torchvision.models.alexnet().state_dict(), tmp_path / "checkpoints" / ALEXNET)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    same, other = lpips(images, images), lpips(images, images.flip(0))
    assert torch.equal(same, torch.zeros(2)) and (other > 0).all()
