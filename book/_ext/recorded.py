"""What was recorded when the chapters were executed, shown where a page asks for it.

Every chapter gets a card: its objectives, and what the reference run took and on what. Directives:

claim N           a sentence of the paper, and what the chapter of verdicts says of it
chapter-figure    a picture of a chapter, on another page: its NAME, the caption as content
chapter-table     a table of a chapter, on another page: NOTEBOOK and the label of its region
downloads         a table of files to take away
chapter-times     a table of what the chapters took
recorded-table    a file of book/results, as means over runs
"""

import ast
import base64
import json
import os
import re
from pathlib import Path

import pandas as pd
from docutils import nodes
from sphinx import addnodes
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from gleak.study.book import in_page
from gleak.study.criterion import BADGES
from gleak.study.words import readable

SUMMARY = "12_verdicts"  # the chapter that sums up the verdicts
SHORT = {"any": "Best method", "paper": "Paper's method"}  # columns of verdicts


def notebooks(env) -> dict[str, dict]:
    """Name -> notebook of each chapter, in order; read once for each build."""
    if not hasattr(env.app, "chapters_as_read"):
        files = sorted((Path(env.srcdir) / "notebooks").glob("*.ipynb"))
        env.app.chapters_as_read = {
            file.stem: json.loads(file.read_text("utf-8"))
            for file in files
            if f"notebooks/{file.stem}" in env.found_docs
        }
    return env.app.chapters_as_read


def outputs(notebook: dict):
    """Each output that holds data, with its cell."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if "data" in output:
                yield cell, output


def runtime(env, chapter: str) -> dict | None:
    """Seconds, hardware and date of the chapter's run, where there is a record."""
    file = Path(env.srcdir) / "book" / "results" / "runtimes" / f"{chapter}.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else None


def glued(env, name: str) -> str | None:
    """A text that some chapter glued under this name."""
    for notebook in notebooks(env).values():
        for _, output in outputs(notebook):
            if output.get("metadata", {}).get("scrapbook", {}).get("name") == name:
                (text,) = output["data"].values()
                return ast.literal_eval(text if isinstance(text, str) else "".join(text))
    return None


def link(env, chapter: str, text: str = "") -> nodes.Node:
    """A reference to a chapter, by its title where there is no text."""
    return link_to(env, f"/notebooks/{chapter}", text)


def link_to(env, page: str, text: str = "") -> nodes.Node:
    """A reference to a page of the book, as in the table of contents with a slash before it."""
    reference = addnodes.pending_xref(
        refdomain="std", reftype="doc", reftarget=page, refdoc=env.docname,
        refexplicit=bool(text), refwarn=True,
    )  # fmt: skip
    reference += nodes.inline("", text)
    return reference


class Claim(SphinxDirective):
    """A claim as content, its number as argument; what was found is taken from the chapters."""

    required_arguments = 1
    has_content = True

    def run(self):
        number = int(self.arguments[0])
        row = nodes.container(classes=["claim"])
        self.state.nested_parse(self.content, self.content_offset, row)
        row[0].insert(0, nodes.strong("", f"{number}. "))
        found = glued(self.env, f"headline_{number}")
        if found is None:
            text = "No chapter has recorded a verdict on it."
            row += nodes.paragraph("", text, classes=["claim-found"])
            return [row]
        row += nodes.paragraph("", found, classes=["claim-found"])
        line = nodes.paragraph("", classes=["claim-found"])
        for column, name in SHORT.items():
            grade = glued(self.env, f"grade_{number}_{column}")
            line += nodes.Text(f"{name}: ")
            badge = nodes.inline(classes=[f"badge-{BADGES[grade]}"])
            badge += link(self.env, SUMMARY, grade)
            line += [badge, nodes.Text(" ")]
        row += line
        return [row]


class ChapterFigure(SphinxDirective):
    """A figure of some chapter, by its name, with its alt text and a link to the chapter."""

    required_arguments = 1
    has_content = True

    def run(self):
        (name,) = self.arguments
        chapter, data = next(
            (
                (chapter, output)
                for chapter, notebook in notebooks(self.env).items()
                for cell, output in outputs(notebook)
                if cell["metadata"].get("mystnb", {}).get("figure", {}).get("name") == name
                and {"image/png", "text/html"} & set(output["data"])
            ),
            (None, None),
        )
        if data is None:  # a test sees to it that no such page is published
            return [nodes.paragraph("", f"{name} has not been executed.")]
        figure = nodes.figure(classes=["chapter-figure"])
        if "text/html" in data["data"]:
            figure += nodes.raw("", "".join(data["data"]["text/html"]), format="html")
        elif "image/svg+xml" in data["data"]:
            drawn = in_page("".join(data["data"]["image/svg+xml"]))
            figure += nodes.raw("", drawn, format="html")
        else:
            file = Path(self.env.app.outdir).parent / "chapter-figures" / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(base64.b64decode("".join(data["data"]["image/png"])))
            uri = "/" + os.path.relpath(file, self.env.srcdir)  # as MyST-NB does for its own
            figure += nodes.image(uri=uri, alt=data["metadata"]["image/png"]["alt"])
        text = nodes.container()
        self.state.nested_parse(self.content, self.content_offset, text)
        caption = nodes.caption("", "", *text[0].children)
        caption += [nodes.Text(" From "), link(self.env, chapter), nodes.Text(".")]
        figure += caption
        return [figure]


class ChapterTable(SphinxDirective):
    """A chapter's table, found by its `aria-label`, with its links made to fit this page."""

    required_arguments = 2
    final_argument_whitespace = True

    def run(self):
        chapter, label = self.arguments
        pages = (
            "".join(output["data"].get("text/html", ""))
            for _, output in outputs(notebooks(self.env)[chapter])
        )
        page = next((page for page in pages if f'aria-label="{label}"' in page), None)
        if page is None:
            return [nodes.paragraph("", f"{chapter} has not been executed.")]
        folder = "../" * self.env.docname.count("/") + "notebooks/"
        page = re.sub(r'href="(?=\d\d)', f'href="{folder}', page)
        return [nodes.raw("", page, format="html")]


class ChapterTimes(SphinxDirective):
    """A table: chapter, seconds, hardware and date of its run."""

    def run(self):
        head = ("chapter", "seconds", "on", "date")
        rows = [
            [link(self.env, chapter), str(about["seconds"]), about["hardware"], about["date"]]
            for chapter in notebooks(self.env)
            if (about := runtime(self.env, chapter))
        ]
        if not rows:
            return [nodes.paragraph("", "No times were recorded for these notebooks.")]
        total = sum(int(row[1]) for row in rows)
        return [table(head, [*rows, ["all", str(total), "", ""]])]


class Downloads(SphinxDirective):
    """A table of what can be taken away: notebooks, recorded results, the book as a PDF."""

    def run(self):
        folder = Path(self.env.srcdir) / "book"
        files = {
            "the whole book on paper (PDF)": folder / "_static" / "gleak.pdf",
            "how to cite it, for machines": folder.parent / "CITATION.cff",
            "references (BibTeX)": folder / "references.bib",
        }
        files |= {
            f"recorded results: {file.stem}": file
            for file in sorted((folder / "results").glob("*.csv"))
        }
        rows = []
        for title, file in files.items():
            if file.exists():
                path = "/" + file.relative_to(self.env.srcdir).as_posix()
                reference = addnodes.download_reference(
                    "", "", nodes.literal("", file.name), reftarget=path, refdoc=self.env.docname
                )
                rows.append([title, reference, size(file)])
        for chapter in notebooks(self.env):
            file = folder.parent / "notebooks" / f"{chapter}.ipynb"
            path = f"../_sources/notebooks/{file.name}"
            reference = nodes.reference("", "", nodes.literal("", file.name), refuri=path)
            rows.append([link(self.env, chapter), reference, size(file)])
        return [table(("what", "file", "size"), rows)]


def size(file: Path) -> str:
    """The size of a file in kB."""
    return f"{file.stat().st_size / 1000:,.0f} kB"


class RecordedTable(SphinxDirective):
    """A file of book/results: means of columns for each combination of others."""

    required_arguments = 1
    option_spec = {"by": str, "mean": str}

    def run(self):
        file = Path(self.env.srcdir) / "book" / "results" / self.arguments[0]
        by, mean = ([n.strip() for n in self.options[key].split(",")] for key in ("by", "mean"))
        groups = pd.read_csv(file, comment="#").groupby(by, sort=False)
        frame = groups[mean].mean()
        frame.insert(0, "runs", groups.size())
        frame = readable(frame, "attack")
        rows = [
            [*map(str, key), f"{values[0]:.0f}", *(f"{value:.1f}" for value in values[1:])]
            for key, values in zip(frame.index, frame.to_numpy(), strict=True)
        ]
        about = [
            line[1:].strip() for line in file.read_text("utf-8").splitlines() if line[0] == "#"
        ]
        note = nodes.paragraph("", "; ".join(about) + ".", classes=["table-source"])
        head = [*map(str, frame.index.names), *frame.columns.str.replace("_", " ")]
        return [table(head, rows), note]


def table(head, rows) -> nodes.table:
    """A table of texts and inline nodes."""
    group = nodes.tgroup("", *[nodes.colspec(colwidth=1) for _ in head], cols=len(head))
    for part, lines in ((nodes.thead(), [head]), (nodes.tbody(), rows)):
        for line in lines:
            part += nodes.row(
                "",
                *[
                    nodes.entry(
                        "",
                        nodes.paragraph(
                            "", "", nodes.Text(cell) if isinstance(cell, str) else cell
                        ),
                    )
                    for cell in line
                ],
            )
        group += part
    return nodes.table("", group)


def add_card(app, doctree) -> None:
    """Put a chapter's first paragraph, its objectives, into a card, with what its run took."""
    folder, _, chapter = app.env.docname.rpartition("/")
    if folder != "notebooks":
        return
    section = next(doctree.findall(nodes.section))
    objectives = next(node for node in section.children if isinstance(node, nodes.paragraph))
    if not any(isinstance(child, nodes.strong) for child in objectives.children):
        raise ExtensionError(f"{chapter} has to begin with **What you will see.**")
    # The index points at this paragraph: its anchor goes to the card.
    card = nodes.container(classes=["chapter-card"], ids=objectives["ids"])
    for child in objectives.children:
        if isinstance(child, nodes.strong):
            card += nodes.paragraph()
        if card.children:
            card[-1] += child.deepcopy()
    about = runtime(app.env, chapter)
    if about:
        number = chapter.split("_")[0]
        card += nodes.paragraph(
            "", "",
            nodes.strong("", "Time: "),
            nodes.Text("{seconds} s on {hardware}, {date}. Again with ".format(**about)),
            nodes.literal("", f"gleak execute {number} --force"),
            nodes.Text("."),
            classes=["chapter-time"],
        )  # fmt: skip
    section.replace(objectives, card)


def add_references(app, doctree, docname) -> None:
    """List what a chapter cites at its end; the page of references has all, with the links."""
    if not docname.startswith("notebooks/"):
        return
    domain = app.env.get_domain("cite")
    here = [ref for ref in domain.citation_refs if ref.docname == docname]
    keys = {target.key for ref in here for target in ref.targets}
    cited = [citation for citation in domain.citations if citation.key in keys]
    if not cited:
        return
    entries = nodes.bullet_list(classes=["chapter-references"])
    for citation in cited:
        entry = nodes.paragraph("", "", *citation.formatted_entry.text.render(domain.backend))
        entries += nodes.list_item("", entry)
    section = next(doctree.findall(nodes.section))
    section += [nodes.rubric("", "References"), entries]


def setup(app):
    app.add_directive("claim", Claim)
    app.add_directive("chapter-figure", ChapterFigure)
    app.add_directive("chapter-table", ChapterTable)
    app.add_directive("chapter-times", ChapterTimes)
    app.add_directive("downloads", Downloads)
    app.add_directive("recorded-table", RecordedTable)
    app.connect("doctree-read", add_card)
    app.connect("doctree-resolved", add_references)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
