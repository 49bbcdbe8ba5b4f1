"""What the book needs of MyST-NB beyond what it does by itself."""

import myst_nb


def glue(name: str, value) -> None:
    """Keep a value of this cell for the prose, which names it; also one of torch or numpy."""
    value = value.item() if hasattr(value, "item") else value  # their repr cannot be formatted
    myst_nb.glue(name, value, display=False)


class AltText:
    """Gives a picture the alt text that `figures.show` stored with it (a MyST-NB mime plugin)."""

    mime_priority_overrides = ()

    @staticmethod
    def handle_mime(renderer, data, inline):
        alt = data.output_metadata.get("image/png", {}).get("alt")
        if data.mime_type != "image/png" or alt is None or inline:
            return None  # left to MyST-NB
        (image,) = renderer.render_image(data)
        image["alt"] = alt
        return [image]
