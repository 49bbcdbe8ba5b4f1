"""Chapters carry their number wherever a page names them by their title."""

from docutils import nodes


def number_of(env, docname: str) -> str | None:
    """The number of a chapter; None for other pages."""
    numbers = env.toc_secnumbers.get(docname, {}).get("")
    return ".".join(map(str, numbers)) if numbers else None


def add_numbers(app, doctree, docname) -> None:
    """Put the number before each title that is a link to its chapter."""
    builder = app.builder
    chapters = {
        builder.get_relative_uri(docname, name): (number, app.env.titles[name].astext())
        for name in app.env.found_docs
        if (number := number_of(app.env, name))
    }
    for reference in doctree.findall(nodes.reference):
        number, title = chapters.get(reference.get("refuri"), (None, None))
        if number and reference.astext() == title:
            reference[0].insert(0, nodes.Text(f"{number}. "))


def setup(app):
    app.connect("doctree-resolved", add_numbers)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
