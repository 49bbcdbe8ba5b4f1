"""Figures that move: every frame is there, with words, and the last one is what shows."""

import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup
from matplotlib.text import Text

import gleak
from gleak import figures


@pytest.fixture
def result(batch):
    """A result that is the batch itself, in another order."""
    order = torch.tensor([1, 2, 3, 0])
    return gleak.inversion.Inversion(batch.images[order], batch.labels[order], None, None)


def test_slider(batch, result):
    scores = gleak.score(result.images, batch.images)
    assert scores["match"].tolist() == [3, 0, 1, 2]
    frames = {0: torch.zeros(4, 3, 32, 32), 5: result.images}
    html, alt = figures.slider(batch, frames, scores["match"])
    page = BeautifulSoup(html, "html.parser")
    first, last = page.select("[data-frame]")
    assert first.has_attr("hidden")
    assert not last.has_attr("hidden")
    assert last["data-frame"] == "5 iterations, 100.0 dB"
    assert last["src"] == page.img["src"]  # the same pixels in the same order as the originals
    assert page.input.parent == page.label
    assert page.input["max"] == page.input["value"] == "1"
    for image in page.find_all("img"):
        assert image["alt"].endswith(".")
    assert alt.endswith(".")


def test_wipe_shows_pairs(batch, result):
    html, alt = figures.wipe(batch, result, gleak.score(result.images, batch.images))
    page = BeautifulSoup(html, "html.parser")
    pairs = [[image["src"] for image in pair.find_all("img")] for pair in page.select(".pair")]
    assert len(pairs) == 4
    for before, after in pairs:
        assert before == after
    assert alt.startswith("4 images")


def test_a_picture_is_shown_in_whole_pixels():
    image = BeautifulSoup(figures.picture(torch.rand(2, 3, 8, 8), "A <b>."), "html.parser").img
    assert int(image["width"]) % (8 + 2 + 8) == 0
    assert image["alt"] == "A <b>."


def test_dots_show_means_and_ranges():
    frame = pd.DataFrame(
        {
            "name": ["a", "a", "b", "b"],
            "kind": ["one", "one", "two", "two"],
            "gain": [1.0, 3.0, 5.0, 5.0],
        }
    )
    figure, alt = figures.dots(
        frame, "b is ahead.", row="name", value="gain", series="kind", lines={"base": 0}
    )
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]
    points = [line for line in axis.lines if line.get_label() in ("one", "two")]
    assert [line.get_xdata().tolist() for line in points] == [[2.0], [5.0]]
    assert [line.get_ydata().tolist() for line in points] == [[0], [1]]
    assert axis.collections[0].get_segments()[0][:, 0].tolist() == [1.0, 3.0]
    assert alt == "Dots with ranges for a, b, by one, two: gain. b is ahead."
    figure, _ = figures.dots(
        frame, "", row="name", value="gain", series="kind", ends=lambda repeats: (0, len(repeats))
    )
    assert figure.axes[0].collections[0].get_segments()[0][:, 0].tolist() == [0, 2]


def test_heatmaps_show_every_number_in_its_place():
    table = pd.DataFrame([[1.0, 2.0], [3.0, 4.04]], index=[5, 10], columns=[0.1, 0.01])
    table = table.rename_axis(index="epochs", columns="lr")
    figure, alt = figures.heatmaps({"low": table, "high": table + 10}, "PSNR", "All rise.")
    low, high, bar = figure.axes
    assert [text.get_text() for text in high.texts] == ["11.0", "12.0", "13.0", "14.0"]
    assert [text.get_position() for text in low.texts] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert [label.get_text() for label in low.get_xticklabels()] == ["0.1", "0.01"]
    assert (low.get_xlabel(), low.get_ylabel(), bar.get_ylabel()) == ("lr", "epochs", "PSNR")
    assert low.images[0].get_clim() == high.images[0].get_clim() == (1, 14.04)
    assert alt == "Fields of numbers for low, high: PSNR. All rise."


def test_on_a_phone_all_text_is_nine_pixels_high_and_inside(batch, result):
    frame = pd.DataFrame({"name": list("abcd"), "gain": [1.0, 2.0, 3.0, 4.0]})
    frame["kind"] = [f"an attack with a long name, {number}" for number in range(4)]
    scores = gleak.score(result.images, batch.images)
    table = pd.DataFrame({"a": [1.0, 2.0]}, index=[1.0, 2.0])
    for figure, _ in (
        figures.gallery(batch, result, scores),
        figures.comparison(batch, {"attack": (result, scores)}),
        figures.curves(table, "x", "y", ""),
        figures.dots(frame, "", row="name", value="gain", series="kind", lines={"bar": 1}),
    ):
        figure.draw_without_rendering()
        assert figure.get_figwidth() <= figures.PAGE
        texts = [text for text in figure.findobj(Text) if text.get_text()]
        assert not any("^" in text.get_text() for text in texts)  # exponents are smaller
        smallest = min(text.get_fontsize() for text in texts)
        assert smallest * 342 / (72 * figures.PAGE) > 9  # a phone of 390 pixels has 342 for it
        for names in figure.legends:
            assert names.get_window_extent().width <= figure.bbox.width
