"""Figures that take their colours from the page."""

from xml.etree import ElementTree as ET

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from gleak import figures
from gleak.themed import AS_IT_IS, SVG, themed


def drawn():
    with plt.rc_context(figures.STYLE):
        figure, axis = plt.subplots(figsize=(3, 2))
        axis.plot([0, 1], [1, 0], "o-", label="a <b>")
        axis.axhline(0.5, color="0.5")
        axis.text(0, 0, "on data", color="black", gid=AS_IT_IS)
        text = themed(figure, 'A line of "a" that falls.')
    plt.close(figure)
    return text


def test_the_same_numbers_make_the_same_bytes():
    assert drawn() == drawn()


def test_it_says_what_it_shows():
    root = ET.fromstring(drawn())
    assert (root.get("role"), root.get("aria-label")) == ("img", 'A line of "a" that falls.')
    assert root.get("viewBox") == "0 0 216 144"


def test_colours_come_from_the_page_but_not_on_data():
    text = drawn()
    assert "var(--mark-0, #0072b2)" in text
    assert "color-mix(in srgb, var(--ink, #000) 50%, var(--ground, #fff))" in text
    (kept,) = [e for e in ET.fromstring(text).iter() if e.text and e.text.strip() == "on data"]
    assert "var(" not in kept.get("style")
    assert "#0072b2" not in text.replace("var(--mark-0, #0072b2)", "")


def test_ids_are_of_one_figure_and_all_are_used():
    text = drawn()
    root = ET.fromstring(text)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert ids
    assert len({name.partition("-")[0] for name in ids}) == 1
    assert all(f"#{name}" in text for name in ids)
    assert not root.findall(f".//{{{SVG}}}metadata")


def test_show_stores_both_kinds_and_the_words(monkeypatch):
    shown = []
    monkeypatch.setattr(
        "IPython.display.display", lambda data, **about: shown.append((data, about))
    )
    frame = pd.DataFrame({"a": [1.0, 2.0]}, index=[1.0, 2.0])
    figures.show(figures.curves(frame, "x", "y", "It rises."))
    ((data, about),) = shown
    assert {"image/svg+xml", "image/png", "text/plain"} == set(data)
    assert about["metadata"]["image/png"]["alt"] == data["text/plain"]


@pytest.mark.parametrize("shared", [True, False])
def test_dots_of_one_line_lie_apart(shared):
    kinds = ["one", "two"]
    frame = pd.DataFrame(
        {"name": ["a", "a"] if shared else ["a", "b"], "kind": kinds, "x": [1.0, 1.0]}
    )
    figure, _ = figures.dots(frame, "", row="name", value="x", series="kind")
    heights = [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_label() in kinds]
    assert heights == ([-0.2, 0.2] if shared else [0, 1])
