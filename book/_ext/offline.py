"""Pages that load nothing from another host, with no more of MathJax than they use."""

from pathlib import Path

# The bundle that pages load, its fonts, what it fetches for rare commands, and its reader aloud.
MATHJAX = (
    "tex-chtml.js",
    "output/chtml",
    "input/tex",
    "a11y",
    "sre/mathmaps/base.json",
    "sre/mathmaps/en.json",
)


def without_thebe(app, pagename, templatename, context, doctree):
    """Drop the loader of Thebe: it names a CDN on every page, and the book runs no kernels."""
    context["script_files"] = [
        file
        for file in context.get("script_files", [])
        if "thebe" not in str(getattr(file, "filename", file)).lower()
        and "thebe" not in str(getattr(file, "attributes", {}).get("body", "")).lower()
    ]


def prune_mathjax(app, exception) -> None:
    """Leave only what `MATHJAX` names; the extension that brings it copies all of it."""
    folder = Path(app.outdir) / "_static" / "mathjax"
    kept = tuple(folder / name for name in MATHJAX)
    for file in folder.rglob("*") if exception is None else ():
        if file.is_file() and not any(file.is_relative_to(path) for path in kept):
            file.unlink()


def setup(app):
    app.connect("html-page-context", without_thebe, priority=900)
    app.connect("build-finished", prune_mathjax, priority=900)  # after the copy
    return {"parallel_read_safe": True, "parallel_write_safe": True}
