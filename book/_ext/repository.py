"""Buttons that need to know where the repository is, from one place.

That place is `repository-code` in CITATION.cff, or the environment's GLEAK_REPOSITORY (and
GLEAK_BRANCH). Without an address there are no such buttons, and `if-repository` shows nothing.
"""

import os
from pathlib import Path

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

LAUNCH = {
    "notebook_interface": "jupyterlab",
    "binderhub_url": "https://mybinder.org",
    "colab_url": "https://colab.research.google.com",
}


def address(srcdir) -> str | None:
    """The repository's address, where one is known."""
    citation = yaml.safe_load((Path(srcdir) / "CITATION.cff").read_text("utf-8"))
    found = os.environ.get("GLEAK_REPOSITORY") or citation.get("repository-code") or ""
    return found.rstrip("/").removesuffix(".git") or None


def configure(app, config) -> None:
    """Switch the theme's buttons on."""
    found = address(app.srcdir)
    if found:
        config.html_theme_options |= {
            "repository_url": found,
            "repository_branch": os.environ.get("GLEAK_BRANCH", "main"),
            "use_repository_button": True,
            "use_edit_page_button": True,
            "use_issues_button": True,
            "launch_buttons": LAUNCH,
        }


def point_at_sources(app, pagename, templatename, context, doctree) -> None:
    """People edit a chapter's .md; the .ipynb beside it is generated."""
    for button in context.get("header_buttons", []):
        for one in button.get("buttons", [button]):
            if one.get("label") == "source-edit-button":
                one["url"] = one["url"].replace(".ipynb", ".md")


class IfRepository(SphinxDirective):
    """Content that names the repository, as REPOSITORY, shown where there is one."""

    has_content = True

    def run(self):
        found = address(self.env.srcdir)
        if not found:
            return []
        lines = [line.replace("REPOSITORY", found) for line in self.content]
        inside = nodes.container()
        self.state.nested_parse(StringList(lines, self.content.source(0)), 0, inside)
        return inside.children


def setup(app):
    app.add_directive("if-repository", IfRepository)
    app.connect("config-inited", configure)
    app.connect("html-page-context", point_at_sources, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
