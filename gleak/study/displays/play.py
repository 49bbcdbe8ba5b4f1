"""Chapter 11a, how it is shown: sliders over restorations, and the same as a table."""

import html
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from gleak import figures
from gleak.data import Batch
from gleak.metrics import thumbnail
from gleak.study.book import glue
from gleak.study.experiments.play import Cell

NO_LEAK = "no leak found by this attack with this effort"
SHOWN = 20.0  # dB; a closed form is far beyond
LABELS = {"size": "images in the batch, K", "steps": "steps of training", "defence": "defence"}


def verdict(cell: Cell) -> str:
    """One sentence on a cell: how far above or below a thumbnail."""
    reached, small = cell.scores["psnr"].mean(), cell.scores["thumb8"].mean()
    flat = cell.scores["mean_colour"].mean()
    beside = f"{reached:.1f} dB; 8×8 thumbnails have {small:.1f} dB, mean colours {flat:.1f} dB"
    return f"{'A leak' if cell.leaks else NO_LEAK.capitalize()}: {beside}."


def frame(cells: Sequence[Cell]) -> pd.DataFrame:
    """A row for each cell: its setting, PSNR, that of thumbnails, and the lead, in dB."""
    rows = [
        {
            "defence": cell.defence,
            "steps": cell.steps,
            "size": cell.size,
            "psnr": cell.scores["psnr"].mean(),
            "thumb8": cell.scores["thumb8"].mean(),
            "mean_colour": cell.scores["mean_colour"].mean(),
            "lead": cell.lead,
        }
        for cell in cells
    ]
    return pd.DataFrame(rows)


def player(cells: Sequence[Cell], batch: Batch) -> tuple[str, str]:
    """Sliders over all cells, and all cells as a table; HTML and its alt text.

    batch: the client's images, as many as the largest cell has.
    """
    sizes, stages, names = (
        list(dict.fromkeys(getattr(cell, name) for cell in cells)) for name in LABELS
    )
    controls = [choice("size", sizes), choice("steps", stages), buttons(names)]
    first = cells[0]
    body = "".join(shown(cell, batch, hidden=cell is not first) for cell in cells)
    page = (
        '<div class="gleak-play"><div class="choices" hidden>'
        f'{"".join(controls)}</div><p class="said" role="status" hidden></p>{body}'
        f"{all_cells(cells, sizes)}</div>"
    )
    alt = (
        f"Restorations of the same images in {len(cells)} settings: {len(sizes)} sizes of a batch, "
        f"{len(stages)} stages of training, {len(names)} defences. "
        f"{sum(cell.leaks for cell in cells)} of them are better than thumbnails of 8x8 pixels."
    )
    return page, alt


def choice(name: str, values: Sequence[int]) -> str:
    """A slider over numbers."""
    told = html.escape(" ".join(map(str, values)))
    return (
        f'<label class="slide"><span>{LABELS[name]}</span><input type="range" name="{name}" '
        f'min="0" max="{len(values) - 1}" value="0" step="1" data-values="{told}">'
        "<output></output></label>"
    )


def buttons(names: Sequence[str]) -> str:
    """A button for each defence, of which one is pressed."""
    made = "".join(
        f'<label><input type="radio" name="play-defence" value="{html.escape(name)}"'
        f"{' checked' * (number == 0)}><span>{html.escape(name)}</span></label>"
        for number, name in enumerate(names)
    )
    return f"<fieldset><legend>{LABELS['defence']}</legend>{made}</fieldset>"


def shown(cell: Cell, batch: Batch, *, hidden: bool) -> str:
    """One cell: originals, what came back, thumbnails, mean colours."""
    originals = batch.images[: cell.size]
    names = ", ".join(batch.names[: cell.size])
    rows = {
        "the client's": (originals, f"The images that the client holds: {names}."),
        "restored": (
            cell.images,
            f"What the attacker restored of them, {cell.scores['psnr'].mean():.1f} dB.",
        ),
        "8×8 thumbnails": (thumbnail(originals, 8), "The images as thumbnails of 8x8 pixels."),
        "mean colours": (thumbnail(originals, 1), "The images as one colour each."),
    }
    drawn = "".join(
        f'<p class="row-title">{title}</p>{figures.picture(images, words)}'
        for title, (images, words) in rows.items()
    )
    said, where = html.escape(verdict(cell)), html.escape(cell.defence)
    return (
        f'<div class="cell{" leak" * cell.leaks}" style="--k: {cell.size}" data-size="{cell.size}" '
        f'data-steps="{cell.steps}" data-defence="{where}"{" hidden" * hidden}>'
        f'<p class="verdict"><span aria-hidden="true">{"!" if cell.leaks else "–"}</span> '
        f"{said}</p>{drawn}</div>"
    )


def all_cells(cells: Sequence[Cell], sizes: Sequence[int]) -> str:
    """Every cell as a number in a table: PSNR, with a mark where it is a leak."""
    by_row: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        by_row.setdefault((cell.defence, cell.steps), []).append(cell)
    head = "".join(f'<th scope="col">K = {size}</th>' for size in sizes)
    body = ""
    for (defence, steps), row in by_row.items():
        numbers = "".join(
            f"<td>{'<strong>' * cell.leaks}{cell.scores['psnr'].mean():.1f}"
            f"{' (leak)</strong>' * cell.leaks}</td>"
            for cell in row
        )
        body += f'<tr><th scope="row">{html.escape(defence)}</th><td>{steps}</td>{numbers}</tr>'
    return (
        "<details><summary>All settings as a table</summary>"
        '<div class="gleak-scroll" tabindex="0" role="region" aria-label="PSNR in dB of all '
        f'settings"><table class="table"><thead><tr><th scope="col">defence</th>'
        f'<th scope="col">{LABELS["steps"]}</th>{head}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
        "<p>PSNR in dB. Bold, “leak”: above 8×8 thumbnails of the same images. "
        f"Else: {NO_LEAK}.</p>"
        "</details>"
    )


def leads(cells: Sequence[Cell]) -> tuple[Figure, str]:
    """How far each cell lies above the thumbnails; the figure and its alt text."""
    table = frame(cells)
    best = table.loc[table["lead"].idxmax()]
    lead = f"dB above 8×8 thumbnails, at most {SHOWN:g}"
    shown = pd.DataFrame(
        {
            "setting": [f"{cell.defence}, {cell.steps} steps" for cell in cells],
            "images": [f"K = {cell.size}" for cell in cells],
            lead: table["lead"].clip(upper=SHOWN),
        }
    )
    summary = (
        f"Above zero is a leak: {(table['lead'] > 0).sum()} of {len(table)} settings; most with "
        f"{best['defence']} as defence and K = {best['size']}."
    )
    lines = {"8×8 thumbnail": 0.0}
    return figures.dots(shown, summary, row="setting", value=lead, series="images", lines=lines)


def numbers(cells: Sequence[Cell], iterations: int) -> None:
    """Keep what the prose says."""
    table = frame(cells)
    small = table["size"] == table["size"].min()
    glue("iterations", iterations)
    glue("cells", len(table))
    glue("leaks", int((table["lead"] > 0).sum()))
    for name, key in (
        ("none", "none"),
        ("noise 0.03", "noise"),
        ("send 10 % of the values", "sparse"),
    ):
        part = table[table["defence"] == name]
        glue(f"{key}_leaks", int((part["lead"] > 0).sum()))
        glue(f"{key}_cells", len(part))
    glue("alone_none", table[small & (table["defence"] == "none")]["psnr"].max())
    summed = table[table["defence"].str.startswith("secure sum")]
    glue("sum_leaks", int((summed["lead"] > 0).sum()))
    glue("sum_cells", len(summed))


def claims(cells: Sequence[Cell]) -> dict[str, bool]:
    """What the chapter claims of its own images."""
    table = frame(cells)
    lead = table.set_index(["defence", "steps", "size"])["lead"]
    undefended, strong = lead["none"], lead["noise 0.03"]
    untrained = undefended.xs(0, level="steps")
    return {
        "without a defence an untrained network leaks one image by 5 dB or more": bool(
            untrained.iloc[0] > 5
        ),
        "the lead shrinks from one image to the largest batch": bool(
            untrained.iloc[0] > untrained.iloc[-1] + 5
        ),
        "noise of 0.03 takes 1 dB or more off the mean lead": bool(
            undefended.mean() > strong.mean() + 1
        ),
    }
