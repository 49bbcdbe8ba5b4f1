"""Repairs of the pages' HTML for screen readers, where Sphinx and its extensions miss a rule."""

import re

PARAMETERS = re.compile(r"<dl>\s*((?:<dd>.*?</dd>\s*)+)</dl>", re.DOTALL)


def plain_parameters(match: re.Match) -> str:
    """A signature over several lines is no list of definitions."""
    lines = match[1].replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")
    return f"<span>{lines}</span>"


def repair(app, pagename, templatename, context, doctree):
    if "body" not in context:
        return
    body = PARAMETERS.sub(plain_parameters, context["body"])
    # a list by its role, but its children are no items by theirs
    context["body"] = body.replace('role="list" class="citation-list"', 'class="citation-list"')


def setup(app):
    app.connect("html-page-context", repair)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
