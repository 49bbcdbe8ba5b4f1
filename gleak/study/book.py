"""What the book needs of MyST-NB beyond what it does by itself."""

import html
from collections.abc import Mapping

import myst_nb
import pandas as pd
from IPython.display import display

from gleak.study.verdicts import MIME, VERDICTS, notebook_folder, stored_verdicts


def glue(name: str, value) -> None:
    """Keep a value of this cell for the prose, which names it.

    Parameters
    ----------
    name
        What the prose calls it.
    value
        Also one of torch or numpy.
    """
    value = value.item() if hasattr(value, "item") else value  # their repr cannot be formatted
    myst_nb.glue(name, value, display=False)


def glue_all(values: Mapping[str, object]) -> None:
    """Keep several values for the prose, each under its name."""
    for name, value in values.items():
        glue(name, value)


def claims(found: Mapping[str, object]) -> None:
    """Print claims, a line each, and whether they hold: what the tests of the book look for."""
    for claim, holds in found.items():
        print(f"{claim}: {holds}")


def verdict(*, claim: int, setting: str, measured: str, verdict: str, why: str) -> None:
    """Show a verdict on one of the paper's claims as a box, and record it in the notebook.

    Parameters
    ----------
    claim
        1 to 7.
    setting
        On what it was measured.
    measured
        The numbers, formatted from values of this run.
    verdict
        holds, holds partly, or does not hold.
    why
        One sentence.

    Raises
    ------
    ValueError
        For another claim or verdict, or an empty text.
    """
    if claim not in range(1, 8) or verdict not in VERDICTS:
        raise ValueError(
            f"a verdict is on claim 1 to 7 and one of {', '.join(VERDICTS)}; "
            f"got claim {claim!r}, {verdict!r}"
        )
    texts = {"setting": setting, "measured": measured, "why": why}
    empty = [name for name, text in texts.items() if not text.strip() or "nan" in text.split()]
    if empty:
        raise ValueError(f"a verdict needs words and numbers; look at {', '.join(empty)}")
    kind = {"holds": "holds", "holds partly": "partly", "does not hold": "not"}[verdict]
    rows = "".join(
        f"<dt>{title}</dt><dd>{html.escape(text)}</dd>"
        for title, text in (("Setting", setting), ("Measured", measured), ("Why", why))
    )
    box = (
        f'<div class="gleak-verdict {kind}"><p><strong>Claim {claim} {verdict}.</strong></p>'
        f"<dl>{rows}</dl></div>"
    )
    record = {"claim": claim, "verdict": verdict, **texts}
    words = f"Claim {claim} {verdict}. {setting}: {measured}. {why}"
    display({"text/html": box, "text/plain": words, MIME: record}, raw=True)


def verdicts() -> pd.DataFrame:
    """All verdicts that the chapters of this profile recorded.

    Returns
    -------
    DataFrame
        One row each, ordered by claim. Columns: claim, verdict, setting, measured, why, chapter.
    """
    files = sorted(notebook_folder().glob("[0-9]*.ipynb"))
    columns = ["claim", "verdict", "setting", "measured", "why", "chapter"]
    frame = pd.DataFrame(stored_verdicts(files), columns=columns)
    return frame.sort_values(["claim", "chapter"], kind="stable", ignore_index=True)


class AltText:
    """Gives a picture the alt text that `figures.show` stored with it (a MyST-NB mime plugin).

    It also passes over the records of verdicts.
    """

    mime_priority_overrides = ()

    @staticmethod
    def handle_mime(renderer, data, inline):
        if data.mime_type == MIME:
            return []  # a record is not for readers; the box beside it is
        alt = data.output_metadata.get("image/png", {}).get("alt")
        if data.mime_type != "image/png" or alt is None or inline:
            return None  # left to MyST-NB
        (image,) = renderer.render_image(data)
        image["alt"] = alt
        return [image]
