"""The hour for a class: its table on a page, and its slides beside the pages.

hour    a table of what to show in which minute, from book/hour.yml
"""

from pathlib import Path

from docutils import nodes
from recorded import link_to, table
from sphinx.util.docutils import SphinxDirective

from gleak.study import slides

DECK = "slides.html"


class Hour(SphinxDirective):
    """Minute, page and what is shown."""

    def run(self):
        file = Path(self.env.srcdir) / "book" / "hour.yml"
        self.env.note_dependency(str(file))
        rows, begin = [], 0
        for stop in slides.stops(file):
            end = begin + stop.minutes
            rows.append([f"{begin} to {end}", stop.title, link_to(self.env, f"/{stop.about}")])
            begin = end
        return [table(("minutes", "what", "from"), rows)]


class Deck(SphinxDirective):
    """A link to the slides; its argument is the text."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self):
        up = "../" * self.env.docname.count("/")
        reference = nodes.reference("", self.arguments[0], refuri=f"{up}{DECK}")
        return [nodes.paragraph("", "", reference)]


def write(app, error) -> None:
    """Put the deck beside the pages, if the hour is one of them."""
    if error is None and app.builder.name == "html" and "book/teach" in app.env.found_docs:
        source = Path(app.srcdir)
        page = slides.deck(
            slides.stops(source / "book" / "hour.yml"),
            source / "notebooks",
            source / "book" / "_static",
            app.config.html_title or app.config.project,
        )
        (Path(app.outdir) / DECK).write_text(page, encoding="utf-8")


def setup(app):
    app.add_directive("hour", Hour)
    app.add_directive("deck", Deck)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
