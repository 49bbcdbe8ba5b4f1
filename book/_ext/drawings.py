"""The `drawing` directive: an explanation drawn in SVG, in the page itself, as a numbered figure.

Its argument is a name of `drawn.DRAWINGS`, its content the caption; the page refers to it by
`drawn-NAME`. The drawing takes its colours from the page's theme, loads nothing, and needs no
script: its steps are radio buttons, and a style sheet shows what belongs to the checked one.
"""

from docutils import nodes
from drawn import DRAWINGS
from sphinx.util.docutils import SphinxDirective


class Drawing(SphinxDirective):
    """A drawing as a figure; its caption is the content."""

    required_arguments = 1
    has_content = True

    def run(self):
        name = self.arguments[0]
        if name not in DRAWINGS:
            raise self.error(f"unknown drawing {name!r}; known: {', '.join(DRAWINGS)}")
        figure = nodes.figure("", nodes.raw("", DRAWINGS[name](), format="html"))
        text = nodes.container()
        self.state.nested_parse(self.content, self.content_offset, text)
        figure += nodes.caption("", "", *text[0].children)
        figure["names"].append(f"drawn-{name}")
        self.state.document.note_explicit_target(figure, figure)
        return [figure]


def setup(app):
    app.add_directive("drawing", Drawing)
    app.add_css_file("drawings.css")
    app.add_css_file("play.css")
    app.add_js_file("play.js")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
