"""The reference from the docstrings: `.. public:: MODULE` documents what gleak exports of it."""

import re

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

import gleak


class Public(SphinxDirective):
    """What `gleak` shows of one module or package; used inside `{eval-rst}`."""

    required_arguments = 1

    def run(self):
        (module,) = self.arguments
        public = {name: getattr(gleak, name) for name in gleak.__all__}
        home = f"gleak.{module}"
        names = [
            name
            for name, thing in public.items()
            if f"{getattr(thing, '__module__', '')}.".startswith(f"{home}.")
        ]
        if not names:
            raise self.error(f"gleak exports nothing of {module}")
        lines = []
        for name in names:
            kind = "autofunction" if callable(getattr(gleak, name)) else "autodata"
            if isinstance(getattr(gleak, name), type):
                kind = "autoclass"
            lines += [f".. {kind}:: gleak.{name}"]
            lines += ["   :members:"] if kind == "autoclass" else []
            lines += [""]
        node = nodes.container()
        self.state.nested_parse(StringList(lines, source=module), 0, node)
        return node.children


def escape(app, what, name, thing, options, lines) -> None:
    """Stars and bars outside of code and examples are meant as they stand."""
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = line.split("`")
            parts[::2] = [re.sub(r"([*|])", r"\\\1", part) for part in parts[::2]]
            lines[number] = "`".join(parts)
    if what == "property":
        # a comment: napoleon takes what stands before a colon in the first line for a type
        lines[:0] = ["..", ""]


def short_path(app, env, node, content):
    """Annotations name the module that a class was written in; the reference has a shorter path."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("gleak."):
        return None
    domain, name = env.get_domain("py"), target.split(".")[-1]
    found = [path for path in domain.objects if path.split(".")[-1] == name]
    if len(found) != 1:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, content)


def setup(app):
    app.add_directive("public", Public)
    app.connect("autodoc-process-docstring", escape, priority=400)  # before napoleon
    app.connect("missing-reference", short_path)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
