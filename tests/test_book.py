"""The built pages, as files: nothing from elsewhere, no dead link, words for every picture."""

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest
from bs4 import BeautifulSoup

import gleak
from gleak.study import chapters


@pytest.fixture(scope="module")
def pages(html):
    """Path -> parsed page of the book."""
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


def test_the_reports_lie_beside_the_book(html):
    for name in ("audit.html", "audit.json", "attack.html", "attack.json"):
        assert (html / name).read_bytes() == (
            chapters.root() / "book" / "examples" / name
        ).read_bytes()


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


def described(page, drawing):
    """The words of the elements that label a drawing."""
    labels = drawing["aria-labelledby"].split()
    return " ".join(page.find(id=label).get_text(strip=True) for label in labels)


def test_pictures_are_there_and_have_words(pages):
    for chapter in chapters.chapters():
        assert named(pages, f"{chapter}.html").select("article figure :is(img, svg[role=img])")
    for file, page in pages.items():
        if file.stem == "py-modindex":  # Sphinx's own, its pictures are + and -
            continue
        for image in page.select("article img, article svg[role=img]"):
            words = image.get("alt") or image.get("aria-label") or described(page, image)
            assert words.endswith("."), (file, words)
            assert len(words.split()) > 5, (file, words)
            assert words[0].isupper(), (file, words)


def test_the_reference_is_complete(pages):
    page = named(pages, "book/api.html")
    public = [name for name in gleak.__all__ if not inspect.ismodule(getattr(gleak, name))]
    assert len(public) > 20
    for name in public:
        assert page.find(id=f"gleak.{name}"), f"{name} is missing from book/api.md"


def test_data_page_names_all_there_is(pages):
    text = named(pages, "book/data.html").get_text()
    for name in (*gleak.list_datasets(), *gleak.list_models(), *gleak.list_pools()):
        assert name in text, f"{name} is missing from book/data.md"


def test_citation_page_has_the_version(pages):
    assert f"version = {{{gleak.__version__}}}" in named(pages, "book/cite.html").get_text()


def test_front_page_shows_what_was_recorded(pages):
    page = named(pages, "book/index.html")
    assert len(page.select(".claim")) == 7
    assert len(page.select(".chapter-figure figcaption a:not(.headerlink)")) == 3
    assert len(page.select(".matrix tbody tr")) == 7
    assert "has not been executed" not in page.get_text(), "run: gleak execute"
    assert "No chapter has recorded" not in page.get_text(), "a claim has no verdict yet"


def test_chapters_say_how_long_they_take_and_what_they_cite(pages):
    for chapter in chapters.chapters():
        page = named(pages, f"{chapter}.html")
        assert "Time: " in page.select_one(".chapter-card").get_text(), f"gleak execute {chapter}"
        if page.select("article a.citation, article span[id^=id] a[href*=bibliography]"):
            assert page.select(".chapter-references li")


def test_glued_numbers_are_in_the_text(pages):
    for page in pages.values():
        assert "glue:" not in page.get_text()
    text = named(pages, "01_first_leak.html").get_text()
    assert " dB on average" in text
    assert "nan" not in text.split("Is that a leak?")[-1].split("Provenance")[0]


def test_chapters_carry_the_numbers_of_their_files(pages):
    sidebar = named(pages, "book/index.html").select_one(".bd-sidebar")
    for chapter in chapters.chapters():
        entry = sidebar.select_one(f"a[href$='{chapter}.html']").get_text(strip=True)
        number = chapter.partition("_")[0]
        if number.isdigit():
            assert entry.startswith(f"{int(number)}. "), entry
        else:
            assert not entry[0].isdigit(), entry
    links = named(pages, "book/reproduce.html").select("article a[href$='01_first_leak.html']")
    assert any(link.get_text().startswith("1. ") for link in links)


def test_size(html, pages):
    """What a reader loads at once, and the book as a whole, in bytes."""
    assert sum(file.stat().st_size for file in html.rglob("*") if file.is_file()) < 27e6
    assert sum(file.stat().st_size for file in (html / "_static").rglob("*.*")) < 9e6
    for file, page in pages.items():
        sources = {image["src"] for image in page.find_all("img") if image.get("src")}
        files = [file.parent / unquote(name) for name in sources if not name.startswith("data:")]
        loaded = [file, *files]  # pictures inside of a page are a part of its file
        assert sum(part.stat().st_size for part in loaded) < 2.5e6, file


@pytest.mark.parametrize("address", ["https://github.com/someone/gleak"])
def test_buttons_that_launch_come_with_a_repository(tmp_path, monkeypatch, address):
    """A page of its own, built with the book's settings, as if the address were known."""
    for name in ("_config.yml", "CITATION.cff"):
        shutil.copy(chapters.root() / name, tmp_path)
    shutil.copytree(chapters.root() / "book" / "_ext", tmp_path / "book" / "_ext")
    shutil.copytree(chapters.root() / "book" / "_static", tmp_path / "book" / "_static")
    shutil.copy(chapters.root() / "book" / "references.bib", tmp_path / "book")
    (tmp_path / "notebooks").mkdir()
    shutil.copy(chapters.root() / "notebooks" / "12_verdicts.ipynb", tmp_path / "notebooks")
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: notebooks/12_verdicts\n")
    command = [Path(sys.executable).with_name("jupyter-book"), "build", tmp_path, "--quiet"]
    known = {**os.environ, "GLEAK_REPOSITORY": address, "GLEAK_BRANCH": "main"}
    subprocess.run(command, env=known, capture_output=True, check=True)
    page = tmp_path / "_build" / "html" / "notebooks" / "12_verdicts.html"
    links = [a["href"] for a in BeautifulSoup(page.read_text(), "html.parser").select("a[href]")]
    owner = address.removeprefix("https://github.com/")
    notebook = "notebooks/12_verdicts.ipynb"
    assert f"https://mybinder.org/v2/gh/{owner}/main?urlpath=lab/tree/{notebook}" in links
    assert f"https://colab.research.google.com/github/{owner}/blob/main/{notebook}" in links
    assert f"{address}/edit/main/notebooks/12_verdicts.md" in links
