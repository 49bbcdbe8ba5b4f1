"""A page of one file: what comes from outside is text, and everything can be read by ear."""

import base64
import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup
from PIL import Image

from gleak.study import page

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style></table>",
    "$\\frac$ & &lt;",
    "x" * 5000,
    "\u202egnp.exe\x00",
]


def every_part(name):
    """A page on which a name from outside stands wherever one can."""
    frame = pd.DataFrame({name: [name, name]}, index=pd.Index([name, name], name=name))
    drawn, _ = plt.subplots()
    plt.close(drawn)
    picture = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    return page.page(
        name,
        page.section(name, page.paragraph(name, page.strong(name)), page.preformatted(name)),
        page.verdict("leaks", name, name, page.bullets([name])),
        page.table(frame, name),
        page.facts({name: name}, name),
        page.folded(name, page.image(picture, name, name)),
        page.gallery([picture, picture[:1]], [name, name], [name, name]),
        page.figure(drawn, name, name),
        name,
        footer=name,
    )


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_name_is_text_wherever_it_stands(name):
    tags = BeautifulSoup(every_part("name"), "html.parser").find_all(True)
    soup = BeautifulSoup(every_part(name), "html.parser")
    found = soup.find_all(True)
    assert [(tag.name, sorted(tag.attrs)) for tag in found] == [
        (tag.name, sorted(tag.attrs)) for tag in tags
    ]
    shown = "".join("\N{REPLACEMENT CHARACTER}" if c in "\u202e\x00" else c for c in name)
    assert soup.title.string == shown
    assert soup.img["alt"] == shown


def test_the_page_loads_nothing_and_is_read_by_ear():
    soup = BeautifulSoup(every_part("name"), "html.parser")
    assert soup.html["lang"] == "en"
    assert len(soup.find_all("h1")) == 1
    assert not soup.find_all(["script", "link", "iframe"])
    sources = [tag[a] for tag in soup.find_all(True) for a in ("src", "href") if a in tag.attrs]
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert all(tag["alt"] for tag in soup.find_all("img"))
    for table in soup.find_all("table"):
        assert table.caption.string
        assert all(tag["scope"] in ("row", "col") for tag in table.find_all("th"))
    assert "prefers-color-scheme: dark" in soup.style.string
    assert "default-src 'none'" in str(soup.find("meta", {"http-equiv": True}))


def test_cells_show_numbers_and_what_is_unknown():
    frame = pd.DataFrame({"a": [0.5, float("nan"), 3.0], "b": [True, False, True]})
    soup = BeautifulSoup(page.table(frame, "c"), "html.parser")
    assert [cell.text for cell in soup.tbody.find_all("td")] == [
        "0.5",
        "yes",
        "–",
        "no",
        "3",
        "yes",
    ]


def test_a_picture_keeps_its_pixels():
    pixels = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(1))
    address, width = page.png(pixels)
    data = base64.b64decode(address.partition(",")[2])
    shown = torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).permute(2, 0, 1)
    assert torch.equal(shown, (pixels * 255).round().byte())
    assert width == 6 * 32
    assert page.png(torch.rand(2, 1, 97, 131))[1] == 262


def test_a_page_is_written_whole(tmp_path):
    file = page.write(tmp_path / "new" / "index.html", "title", "words")
    assert file.read_text().startswith("<!DOCTYPE html>\n<html lang")
    assert [path.name for path in file.parent.iterdir()] == ["index.html"]
