"""The reports that the book shows: made by the present code, whole, and of no place or person."""

import json
import re
from importlib.util import module_from_spec, spec_from_file_location

import pytest
from bs4 import BeautifulSoup

from gleak.study import page
from gleak.study.chapters import root

HERE = root() / "book" / "examples"
PAGES = ("audit", "attack")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The pages as the present code makes them from what the attacks found."""
    spec = spec_from_file_location("make_examples", HERE / "make.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("examples")
    module.make(folder)
    return folder


def skeleton(file):
    """Tags, classes and words, without pictures and what names versions."""
    soup = BeautifulSoup(file.read_text("utf-8"), "html.parser")
    for tag in soup.find_all(["footer", "style"]):
        tag.decompose()
    return [
        (tag.name, tag.get("class"), tag.get("alt"), tag.find(string=True, recursive=False))
        for tag in soup.find_all(True)
    ]


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_the_code_makes(name, made):
    """Else `make examples`, and where the attacks changed `book/examples/make.py --again`."""
    committed = HERE / f"{name}.html"
    assert skeleton(committed) == skeleton(made / f"{name}.html")
    assert page.STYLE.strip() in committed.read_text("utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_one_small_file_that_tells_of_nobody(name):
    text = (HERE / f"{name}.html").read_text("utf-8")
    assert len(text) < 400_000
    soup = BeautifulSoup(text, "html.parser")
    assert not soup.find_all(["script", "link", "iframe", "a"])
    assert all(image["src"].startswith("data:") and image["alt"] for image in soup.find_all("img"))
    words = soup.get_text() + (HERE / f"{name}.json").read_text("utf-8")
    assert not re.search(r"(/home|/root|/Users|/var|/mnt|C:\\\\|https?:|localhost|@\w)", words)
    assert not re.search(r"20\d\d-\d\d-\d\d", words)


def test_the_audit_shows_each_kind_of_answer(made):
    facts = json.loads((HERE / "audit.json").read_text("utf-8"))
    fresh = json.loads((made / "audit.json").read_text("utf-8"))
    assert facts["settings"] == fresh["settings"] and facts.keys() == fresh.keys()
    kinds = {answer["verdict"] for one in facts["settings"] for answer in one["answers"].values()}
    assert kinds == {"leaks", "not found", "cannot leak"}


def test_the_book_takes_them_along():
    config = (root() / "_config.yml").read_text("utf-8")
    for name in PAGES:
        assert f"book/examples/{name}.html" in config
        assert f"../{name}.html" in (root() / "notebooks" / "13_your_data.md").read_text("utf-8")
        assert f"../{name}.html" in (root() / "book" / "flower.md").read_text("utf-8")
        assert f"book/examples/{name}.html" in (root() / "README.md").read_text("utf-8")
