"""How far closed forms reach: by counting, and where several poolings are opened in turns."""

import pytest
import torch
from torch import nn

import gleak
from gleak.inversion.closed import count_equations, ends_at, peel
from gleak.inversion.closed.chain import Spread
from gleak.inversion.closed.layers import inverse_spread
from gleak.study import chapters, recorded
from gleak.study.displays import reach as display
from gleak.study.experiments import reach


def counts_and_peels(net, batch, *, training=True):
    rows = count_equations(net, batch.image_shape, len(batch), training=training)
    return ends_at(rows), peel(gleak.fedsgd(net, batch, training=training), batch.label_counts)


@pytest.mark.parametrize("width", [1, 16])
def test_counting_says_where_a_chain_ends(width):
    torch.manual_seed(1)
    net = nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(width, 32, 3, padding=1), nn.Sigmoid()),
        *(nn.Flatten(), nn.Linear(32 * 64, 5)),
    ).double()
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    batch = gleak.Batch(images, torch.tensor([1, 3]), list("abcde"))
    end, peeled = counts_and_peels(net, batch)
    # 9 x width equations and half of 128 x width outputs, for 128 unknowns
    assert (end is None) == peeled.is_image == (width == 16)
    if end:
        assert peeled.ended_at == end.index == 0


def test_counting_needs_more_classes_than_images():
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    for size, ends in ((2, False), (3, True)):
        end = ends_at(count_equations(net, (1, 4, 4), size))
        assert (end is not None and end.index == 3) == ends


@pytest.mark.parametrize("training", [False, True])
def test_counting_knows_residual_blocks(training):
    batch = gleak.load_batch("cifar10-samples", indices=[0, 1])
    net = gleak.build_model("resnet18", batch)
    rows = count_equations(net, batch.image_shape, 2, training=training)
    patches = next(row for row in rows if row.kind.endswith("patches"))
    assert (patches.equations, patches.unknowns) == (512, 2 * 16 - training)
    first = next(row for row in rows if row.shape == (64, 32, 32))
    # 128 x 9 of the branch, 128 of the shortcut; outputs tell nothing in train mode
    assert (first.equations, first.unknowns) == (1280, 2048)
    assert first.outputs == (0 if training else 2 * 128 * 256 * 2 * 0.5 / 64)


def test_a_layer_without_a_closed_form_has_no_equations():
    layers = nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5)
    end = ends_at(count_equations(nn.Sequential(*layers), (1, 4, 4), 1))
    assert end is not None and (end.kind, end.equations) == ("GroupNorm", 0)


@pytest.mark.parametrize("before", [(1, 2), (3, 4), (5, 7), (6, 6)])
def test_averages_that_are_as_many_are_undone(before):
    pool, values = Spread((7, 7)), torch.rand(2, 3, *before, dtype=torch.float64)
    found, known = inverse_spread(pool, pool(values), (3, *before), 1e-7)
    assert known is None
    assert (found - values).abs().max() < 1e-12


def test_a_pooling_that_spreads_is_peeled():
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 64, 3, padding=1), nn.Sigmoid(), nn.AdaptiveAvgPool2d(6), nn.Flatten()),
        nn.Linear(64 * 36, 5),
    )
    batch = gleak.Batch(torch.rand(2, 1, 4, 4), torch.tensor([1, 3]), list("abcde"))
    end, peeled = counts_and_peels(net, batch)
    assert end is None and peeled.is_image
    assert (peeled.activations - batch.images).abs().max() < 1e-3


def test_several_poolings_are_opened_in_turns():
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128 * 4, 5)),
    )
    batch = gleak.Batch(torch.rand(1, 1, 8, 8), torch.tensor([2]), list("abcde"))
    update = gleak.fedsgd(net, batch)
    found = gleak.invert(update, batch.label_counts, "gleak", iterations=300, progress=False)
    assert found.way == "closed form" and not found.fell_back
    assert gleak.score(found.images, batch.images)["psnr"][0] > 60


@pytest.fixture(scope="module")
def stored():
    return recorded.read(chapters.root() / "book/results/04_reach.csv")


@pytest.mark.parametrize(("network", "pixels", "mode"), [("convnet", 32, "eval")])
def test_recorded_counts_are_those_of_today(stored, network, pixels, mode):
    rows = display.of_part(stored, "count").set_index(["network", "pixels", "mode", "K"])
    for row in reach.counted(network, pixels, [1, 4], mode):
        kept = rows.loc[network, pixels, mode, row["K"]]
        for name in ("limit", "layer", "index", "equations", "unknowns", "next_unknowns"):
            assert kept[name] == row[name], name


def test_what_is_claimed_of_the_recorded_rows_can_fail(stored):
    assert all(display.claims(stored).values())
    runs = stored.part != "count"
    worse = stored.assign(error=stored.error.where(~runs, 0.1), known_at=0, psnr=30.0)
    worse.loc[worse.pixels == 224, "limit"] = "image"
    assert not any(display.claims(worse).values())


def test_why_a_peeling_ends_follows_from_the_count():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5))
    rows = count_equations(net, (1, 4, 4), 3)
    assert reach.at_end(rows, ends_at(rows))["limit"] == "equations"
    assert reach.at_end(rows, rows[0])["limit"] == "digits"  # equations enough
    assert reach.at_end(rows, None)["limit"] == "image"
    many = count_equations(net, (1, 4, 4), 5)
    assert reach.at_end(many, ends_at(many))["limit"] == "start"
