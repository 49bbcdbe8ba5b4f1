"""The patch embedding of vision transformers: exact where it holds, refused where it does not."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import gleak
from gleak.inversion.closed import embedded_image, exact_images
from gleak.inversion.closed.embedding import Embedding, find_embedding, solved
from gleak.models import Normalise

SIDE, PATCH, WIDTH = 16, 4, 24  # 16 patches of 48 values, behind layer norm 23 numbers for each
POSITIONS = (SIDE // PATCH) ** 2


class Transformer(nn.Module):
    """A vision transformer written by hand, with one of several ways to embed patches."""

    def __init__(self, projection="conv", positions="rows", width=WIDTH, pooled=False):
        super().__init__()
        self.projection, self.positions, self.pooled = projection, positions, pooled
        values = 3 * PATCH**2
        self.embed = (
            nn.Conv2d(3, width, PATCH, PATCH) if projection == "conv" else nn.Linear(values, width)
        )
        shapes = {"rows": (1, POSITIONS + 1, width), "planes": (1, width, 4, 4)}
        shape = shapes.get(positions, (POSITIONS + 1, width))
        if positions == "table":
            self.where = nn.Embedding(POSITIONS + 1, width)
        else:
            self.where = nn.Parameter(0.02 * torch.randn(shape), requires_grad=positions != "fixed")
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.block = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, images):
        if self.projection == "conv":
            tokens = self.embed(images)
            if self.positions == "planes":
                tokens = tokens + self.where
            tokens = tokens.flatten(2).transpose(1, 2)
        else:  # channels last, as many people unfold
            cut = images.unflatten(2, (4, PATCH)).unflatten(4, (4, PATCH))
            tokens = self.embed(cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2))
        # behind the patches, so that rows do not begin with it
        tokens = torch.cat([tokens, self.token.expand(len(tokens), -1, -1)], dim=1)
        if self.positions in ("rows", "fixed"):
            tokens = tokens + self.where
        if self.positions == "table":
            tokens = tokens + self.where(torch.arange(POSITIONS + 1))
        seen = self.norm(self.block(tokens))
        return self.head(seen.mean(1) if self.pooled else seen[:, -1])


def batch_of(count):
    return gleak.Batch(
        torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5)).double(),
        torch.arange(count) % 5,
        list("abcde"),
    )


def network(seed=0, **how):
    torch.manual_seed(seed)
    return nn.Sequential(Normalise((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)), Transformer(**how)).double()


def error(found, batch):
    return (found.image - batch.images).abs().max().item()


@pytest.mark.parametrize("projection", ["conv", "linear"])
@pytest.mark.parametrize("positions", ["rows", "table"])
@pytest.mark.parametrize("pooled", [False, True])
def test_however_patches_are_embedded_the_image_comes_back(projection, positions, pooled):
    batch = batch_of(1)
    net = network(projection=projection, positions=positions, pooled=pooled)
    found = embedded_image(gleak.fedsgd(net, batch))
    assert error(found, batch) < 1e-8
    assert found.restored.all()
    assert "16 of 16 patches" in str(found)


def test_positions_may_be_planes():
    batch = batch_of(1)
    found = embedded_image(gleak.fedsgd(network(positions="planes"), batch))
    assert error(found, batch) < 1e-8
    assert found.embedding.position == "1.where"


def test_two_patches_worked_by_hand():
    # slopes (1, 0, 0) and (1, 2, 0); patches (0.5, 0.1) and (0.2, 0.3), seen as twice of it less 1
    slopes = torch.tensor([[1.0, 0, 0], [1, 2, 0]]).double()
    patches = torch.tensor([[0.5, 0.1], [0.2, 0.3]]).double()
    one = torch.ones(2).double()
    embedding = Embedding(
        "v", "e", torch.arange(6).view(2, 3), torch.tensor([[0, 1], [2, 3]]), 2 * one, -one
    )
    observed = torch.tensor([[0.0 - 0.6, -0.8 - 0.4], [-1.2, -0.8], [0, 0]]).double()
    found = solved(embedding, slopes, observed, 1e-16, (1, 2, 2))
    assert torch.allclose(found.image.view(2, 2), patches)
    assert found.misfit < 1e-15


def test_torchvision_and_the_whole_attack_and_what_it_says():
    torch.manual_seed(1)
    net = torchvision.models.VisionTransformer(32, 8, 2, 4, 64, 64, num_classes=10)
    batch = gleak.load_batch("cifar10-samples", indices=[3])
    with pytest.raises(gleak.MissingKnowledge, match="weights are zero"):
        embedded_image(gleak.fedsgd(net, batch))  # as torchvision makes its head
    nn.init.normal_(net.heads.head.weight, std=0.02)
    update = gleak.fedsgd(net, batch)
    counts = gleak.restore_labels(update, "zlg-bias")
    assert torch.equal(counts, batch.label_counts)
    result = gleak.invert(update, counts, "gleak", progress=False)
    assert gleak.score(result.images, batch.images)["psnr"].item() > 80
    assert result.way.startswith("closed form: patch embedding (conv_proj and encoder.pos_embed")
    assert result.fell_back == ()
    exact = gleak.invert(update, counts, "exact", progress=False)
    assert torch.allclose(exact.images, result.images)
    wrong = gleak.invert(update, counts.roll(1), "gleak", progress=False)  # needs no label
    assert torch.equal(wrong.images, result.images)
    assert "check" in wrong.fell_back[0]


def test_local_steps_take_nothing_away():
    batch, net = batch_of(1), network()
    update = gleak.fedavg(net, batch, epochs=5, lr=0.05, momentum=0.9, reveal=[])
    found = embedded_image(update)
    assert error(found, batch) < 1e-7


def test_an_error_that_is_told_is_the_one_that_is_made():
    batch, net = batch_of(1), network()
    update = gleak.fedsgd(net, batch)
    coarse = update.resent({name: part.float() for name, part in update.gradient.items()})
    found = embedded_image(coarse)
    off = F.unfold(found.image - batch.images, PATCH, stride=PATCH)[0].square().mean(0).sqrt()
    assert 0.2 < (off / found.deviation).median() < 5
    assert off.max() > 1e-7  # there is an error


def test_fewer_numbers_than_patches_leave_the_smoothest():
    smooth = F.interpolate(torch.rand(1, 3, 3, 3), size=SIDE, mode="bicubic").clamp(0, 1).double()
    batch = gleak.Batch(smooth, torch.tensor([2]), list("abcde"))
    update = gleak.fedsgd(network(width=12), batch)  # 11 numbers for 16 patches
    found = embedded_image(update)
    assert abs(found.told.sum().item() - 11) < 1e-6
    flat = (batch.images - batch.images.mean((2, 3), keepdim=True)).square().mean()
    assert (found.image - batch.images).square().mean() < 0.25 * flat
    with pytest.raises(gleak.MissingKnowledge, match="no closed form for all"):
        exact_images(update, batch.label_counts)


def refused(update, words):
    with pytest.raises(gleak.MissingKnowledge, match=words):
        embedded_image(update)


def test_what_it_refuses():
    batch, net = batch_of(1), network()
    refused(gleak.fedsgd(network(positions="fixed"), batch), "not learnt")
    # two images: 2 x 16 slopes, of which the gradient shows 23 directions
    refused(gleak.fedsgd(net, batch_of(2)), "sum of their slopes.* 23 directions")
    update = gleak.fedsgd(net, batch)
    kept = {name: part for name, part in update.gradient.items() if name != "1.where"}
    refused(update.resent(kept), "1.where, which the client did not send")
    noise = torch.Generator().manual_seed(0)
    spoilt = dict(update.gradient)
    spoilt["1.where"] = torch.randn(spoilt["1.where"].shape, generator=noise).double()
    refused(update.resent(spoilt), "misses the sum")
    del spoilt["1.embed.bias"]
    refused(update.resent(spoilt), "misses what one image")


def test_networks_without_patches_are_none_of_its_business():
    batch = gleak.load_batch("cifar10-samples", indices=[0])
    for model in ("lenet", "convnet"):
        assert find_embedding(gleak.fedsgd(gleak.build_model(model, batch), batch)) is None
    strided = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
    assert find_embedding(gleak.fedsgd(strided, batch)) is None
