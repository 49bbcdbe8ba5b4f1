"""The built pages, as files: nothing from elsewhere, no dead link, words for every picture."""

import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest
from bs4 import BeautifulSoup

from gleak import chapters


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Path -> parsed page of the book, built for this test from the committed notebooks."""
    target = tmp_path_factory.mktemp("the book")
    source = chapters.stage("reference")
    subprocess.run(
        [Path(sys.executable).with_name("jupyter-book"), "build", source, "--path-output", target]
        + ["--all", "-W", "-n", "--keep-going", "--quiet"],
        check=True,
        capture_output=True,
    )
    html = target / "_build" / "html"
    return {
        file: BeautifulSoup(file.read_text(), "html.parser")
        for file in html.rglob("*.html")
        if "_static" not in file.parts
    }


def named(pages, name):
    return next(page for file, page in pages.items() if file.as_posix().endswith(name))


def test_every_page_of_the_contents_is_there(pages):
    names = {file.stem for file in pages}
    assert {"index", "reproduce", "bibliography", *chapters.chapters()} <= names


def test_no_page_loads_anything_from_another_host(pages):
    for file, page in pages.items():
        for tag, attribute in (("script", "src"), ("img", "src"), ("link", "href")):
            for element in page.find_all(tag):
                if tag == "link" and "stylesheet" not in element.get("rel", []):
                    continue
                assert not urlparse(element.get(attribute, "")).netloc, (file, element)
        assert not any("http" in script.text for script in page.find_all("script")), file


def test_every_link_inside_the_book_arrives(pages):
    checked = 0
    for file, page in pages.items():
        for link in page.find_all("a", href=True):
            address, anchor = urldefrag(link["href"])
            if urlparse(address).scheme:
                continue
            target = (file.parent / unquote(address)).resolve() if address else file
            assert target.exists(), (file, link)
            if anchor and target in pages:
                assert pages[target].find(id=unquote(anchor)), (file, link)
            checked += 1
    assert checked > 20


def test_pictures_are_there_and_have_words(pages):
    for chapter in chapters.chapters():
        images = named(pages, f"{chapter}.html").select("article figure img")
        assert images
        for image in images:
            assert image["alt"].endswith("."), image["alt"]
            assert len(image["alt"].split()) > 8


def test_glued_numbers_are_in_the_text(pages):
    for page in pages.values():
        assert "glue:" not in page.get_text()
    text = named(pages, "01_first_leak.html").get_text()
    assert " dB on average" in text
    assert "nan" not in text.split("Is that a leak?")[-1].split("Provenance")[0]


def test_size(pages):
    html = next(iter(pages)).parents[0]
    while html.name != "html":
        html = html.parent
    total = sum(file.stat().st_size for file in html.rglob("*") if file.is_file())
    assert total < 60e6
