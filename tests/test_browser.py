"""The built book in a real browser: what a reader would run into, on every page."""

import os
import re
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

from gleak.study import chapters

PAGES = re.findall(r"(?:root|file): (\S+)", (chapters.root() / "_toc.yml").read_text())
CHROMIUM = os.environ.get("GLEAK_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]

# What a page that is open says of itself.
FACTS = """() => ({
  images: [...document.images].filter(i => i.complete && !i.naturalWidth && i.src).map(i => i.src),
  formulas: document.querySelectorAll("article .math:not(svg *)").length,
  rendered: document.querySelectorAll("article mjx-container").length,
  wrong: document.querySelectorAll("[data-mml-node=merror]").length,
  width: document.documentElement.scrollWidth,
  height: document.documentElement.scrollHeight,
  letters: [...document.querySelectorAll("article svg :is(text, tspan)")]
    .filter(t => t.checkVisibility() && !t.closest("mjx-container"))
    .map(t => [t, t.getScreenCTM()])  // which may turn it, too
    .map(([t, m]) => [parseFloat(getComputedStyle(t).fontSize) * Math.hypot(m.a, m.b),
      t.textContent]),
  clipped: [...document.querySelectorAll(".gleak-figure > svg")].filter(s => s.checkVisibility())
    .flatMap(s => {
      const frame = s.getBoundingClientRect();
      return [...s.querySelectorAll("text")].map(t => [t.getBoundingClientRect(), t.textContent])
        .filter(([t]) => t.left < frame.left - 1 || t.right > frame.right + 1).map(([, t]) => t);
    }),
  unsigned: [...document.querySelectorAll(
    ".gleak-scroll, .gleak-figure, .pst-scrollable-table-container, .highlight > pre")]
    .filter(b => b.scrollWidth - b.clientWidth >= 16 && b.checkVisibility())
    .filter(b => b.tabIndex !== 0 || !(b.matches("pre") ? b.nextElementSibling
      : b.previousElementSibling)?.matches(".gleak-more:not([hidden])"))
    .map(b => b.textContent.slice(0, 40)),
  needless: [...document.querySelectorAll(".gleak-more:not([hidden])")]
    .filter(s => s.checkVisibility()).filter(s => {
      const b = s.previousElementSibling?.matches("pre.more") ? s.previousElementSibling
        : s.nextElementSibling;
      return b.scrollWidth - b.clientWidth < 16;
    }).map(s => s.parentElement.textContent.slice(0, 40)),
  cut: [...document.querySelectorAll(".gleak-scroll.matrix")]
    .filter(b => b.scrollWidth > b.clientWidth + 1).length,
})"""


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        message = "no Chromium: apt install chromium, or name one in GLEAK_CHROMIUM"
        (pytest.fail if os.environ.get("GLEAK_BROWSER_REQUIRED") else pytest.skip)(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(html):
    """The address of the built book, served from this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=html)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def page(browser, site):
    """A page that keeps a list of what went wrong on it."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, base_url=site)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(f"error: {error}"))
    page.on(
        "console",
        lambda said: page.problems.append(said.text) if said.type == "error" else None,
    )
    page.on(
        "response",
        lambda got: page.problems.append(f"{got.status} {got.url}") if got.status >= 400 else None,
    )
    page.on(
        "request",
        lambda asked: (
            None
            if asked.url.startswith((site, "data:", "blob:"))
            else page.problems.append(f"leaves the host: {asked.url}")
        ),
    )
    yield page
    page.close()


def opened(page, name):
    """The page with its formulas rendered."""
    page.goto(f"/{name}.html")
    page.evaluate("window.MathJax?.startup?.promise")
    page.add_style_tag(content="* { transition: none !important; }")  # colours at rest
    return page


def violations(page, *rules):
    """What axe calls serious or critical, with the elements; by all rules or by some."""
    options = {"resultTypes": ["violations"]} | ({"runOnly": rules} if rules else {})
    found = Axe().run(page, options=options).response["violations"]
    return [
        (one["id"], [node["target"] for node in one["nodes"]][:3])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


# Appendices, the reference and what is looked up may be long.
MAY_BE_LONG = re.compile(r"notebooks/\d\da_|book/(api|changelog|comparison|[a-z]+-notes)$")
SCREENS = 12  # of 900 pixels


@pytest.mark.parametrize("name", PAGES)
def test_page(page, name):
    opened(page, name)
    facts = page.evaluate(FACTS)
    assert page.problems == []
    assert facts["images"] == []
    assert facts["wrong"] == 0
    assert facts["rendered"] >= facts["formulas"]
    assert facts["width"] <= 1280
    assert facts["unsigned"] == []
    page.set_viewport_size({"width": 1440, "height": 900})
    page.evaluate("() => new Promise(requestAnimationFrame)")  # the signs are there
    facts = page.evaluate(FACTS)
    assert facts["width"] <= 1440
    assert facts["unsigned"] == facts["needless"] == facts["clipped"] == []
    assert facts["cut"] == 0  # of the matrix of verdicts all columns show
    long = facts["height"] > SCREENS * 900
    assert MAY_BE_LONG.match(name) or not long, f"{facts['height'] / 900:.1f} screens"
    assert violations(page) == []
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert violations(page, "color-contrast") == []
    page.set_viewport_size({"width": 390, "height": 844})
    page.evaluate("() => new Promise(requestAnimationFrame)")  # the signs are there
    facts = page.evaluate(FACTS)
    assert facts["width"] <= 390
    assert facts["unsigned"] == facts["needless"] == []
    assert [words for size, words in facts["letters"] if size < 8.95] == []  # pixels, in figures


def test_formulas_are_rendered_somewhere(page):
    assert opened(page, "notebooks/01_first_leak").evaluate(FACTS)["rendered"] > 10


def test_search_finds(page):
    page.goto("/search.html?q=softmax")
    expect(page.locator("ul.search li").first).to_be_visible()
    assert page.problems == []


def test_folded_code_and_solutions_open(page):
    opened(page, "notebooks/01_first_leak")
    folded = page.locator("details.hide").first
    code = folded.locator("pre").first
    expect(code).to_be_hidden()
    folded.locator("summary").click()
    expect(code).to_be_visible()
    solution = page.locator("div.solution.dropdown").first
    answer = solution.locator("p").last
    expect(answer).not_to_be_in_viewport()
    solution.locator(".admonition-title").click()
    solution.scroll_into_view_if_needed()
    expect(answer).to_be_in_viewport()


def test_theme_switches(page):
    opened(page, "book/index")
    button = page.locator("button.theme-switch-button").first
    themes = set()
    for _ in range(3):
        themes.add(page.evaluate("document.documentElement.dataset.theme"))
        button.click()
    assert themes == {"light", "dark"}


def test_slider_moves_by_keyboard_through_the_iterations(page):
    opened(page, "notebooks/01_first_leak")
    slider = page.locator(".gleak-slider").first
    frames = slider.locator("[data-frame]")
    expect(frames.last).to_be_visible()
    slider.locator("input").focus()
    page.keyboard.press("Home")
    expect(frames.first).to_be_visible()
    expect(frames.last).to_be_hidden()
    expect(slider.locator("output")).to_contain_text("0 iterations")
    page.keyboard.press("ArrowRight")
    expect(frames.nth(1)).to_be_visible()


def test_wipe_uncovers(page):
    opened(page, "book/index")
    compare = page.locator(".gleak-compare").first
    compare.locator("input").focus()
    page.keyboard.press("End")
    assert compare.evaluate("e => e.style.getPropertyValue('--cut')") == "100%"


def test_notebook_can_be_downloaded(page, site):
    opened(page, "notebooks/01_first_leak")
    link = page.locator("a.btn-download-source-button, a[href$='.ipynb']").first
    answer = page.request.get(site + "/" + link.get_attribute("href").lstrip("./"))
    assert answer.ok
    assert yaml.safe_load(answer.text())["nbformat"] == 4
