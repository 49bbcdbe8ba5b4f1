"""What the book on one page needs, which is printed into the PDF."""


def add_handlers(app) -> None:
    """Some extension writes its own HTML for the builder `singlehtml` by name.

    Sphinx then forgets what all others do for HTML, so they are put beside it.
    """
    handlers = app.registry.translation_handlers
    if app.builder.name == "singlehtml" and "singlehtml" in handlers:
        handlers["singlehtml"] = {**handlers.get("html", {}), **handlers["singlehtml"]}


def setup(app):
    app.connect("builder-inited", add_handlers)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
