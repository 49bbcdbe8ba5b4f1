"""The page to play with: what its cells hold, and what it says of them."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest
import torch

import gleak
from gleak.study.displays import play as display
from gleak.study.experiments import play as experiment


@pytest.fixture(scope="module")
def cells():
    return experiment.cells("digits", "lenet", [1, 4], [0], iterations=2, seed=0)


@pytest.fixture(scope="module")
def batch():
    return experiment.client_images("digits", 4, 4)


def cell_of(cells, defence, size):
    return next(c for c in cells if c.size == size and c.defence.startswith(defence))


def test_there_is_a_cell_for_every_setting(cells):
    assert len(cells) == 2 * len(experiment.DEFENCES)
    assert all(len(cell.images) == len(cell.scores) == cell.size for cell in cells)


def test_an_image_alone_comes_back_in_closed_form(cells, batch):
    cell = cell_of(cells, "none", 1)
    assert cell.leaks
    assert torch.allclose(cell.images, batch.images[:1], atol=0.02)


def test_a_secure_sum_is_the_update_of_all_its_images(cells):
    summed, whole = cell_of(cells, "secure sum", 1), cell_of(cells, "none", 4)
    assert torch.equal(summed.images, whole.images[:1])


def test_images_are_of_different_classes_as_long_as_there_are_some():
    first = experiment.client_images("digits", 8, 32)
    assert len(first) == 32
    assert len(set(first.labels[:8].tolist())) == 8
    more = experiment.client_images("digits", 12, 12)
    assert len(more) == 12
    pool = gleak.load_pool("digits")
    assert len(experiment.client_images("digits", 8, 10**6)) == len(pool)


def test_below_the_thumbnail_nothing_is_called_safe(cells, batch):
    cell = cell_of(cells, "none", 1)
    worse = dataclasses.replace(cell, scores=cell.scores.assign(psnr=cell.scores["thumb8"] - 1))
    assert not worse.leaks
    assert display.verdict(worse).startswith("No leak found by this attack with this effort")
    assert display.verdict(cell).startswith("A leak")
    page, alt = display.player([cell, worse], batch)
    assert "safe" not in page.lower() + alt.lower()


class Read(HTMLParser):
    """What a page has without a script."""

    def __init__(self):
        super().__init__()
        self.seen, self.hidden, self.alts, self.rows = 0, 0, [], 0

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "cell" in attrs.get("class", "").split():
            self.hidden += "hidden" in attrs
            self.seen += "hidden" not in attrs
        if tag == "img":
            assert attrs["src"].startswith("data:image/png")
            self.alts.append(attrs["alt"])
        self.rows += tag == "tr"


def test_without_a_script_there_is_one_cell_and_a_table_of_all(cells, batch):
    page, alt = display.player(cells, batch)
    read = Read()
    read.feed(page)
    assert (read.seen, read.hidden) == (1, len(cells) - 1)
    assert read.rows == 1 + len(experiment.DEFENCES)
    assert all(len(words) > 10 for words in read.alts)
    assert alt.endswith(".")
    for cell in cells:
        number = f"{cell.scores['psnr'].mean():.1f}"
        assert re.search(rf"<td>(<strong>)?{re.escape(number)}", page)


def test_the_figure_has_a_mark_for_each_cell(cells):
    figure, alt = display.leads(cells)
    marks = [line for line in figure.axes[0].lines if line.get_marker() in "os"]
    assert sum(len(line.get_xdata()) for line in marks) == len(cells)
    assert max(max(line.get_xdata()) for line in marks) <= display.SHOWN
    assert "Above zero is a leak" in alt
