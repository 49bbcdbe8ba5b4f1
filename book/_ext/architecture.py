"""The `architecture` directive: modules and what each imports, drawn at every build.

Its argument is a folder of the package, by default the whole of it. Subpackages are one box. Arrows
point to what is imported; one that follows from others is left out, and so are imports inside
functions.
"""

import ast
import os
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

import gleak

PACKAGE = Path(gleak.__file__).parent
FLOW = ("data", "client", "update", "labels", "inversion", "metrics", "figures")
WIDTH, ROW, BOX, GAP = 760, 84, 30, 16


def imports(folder: str = "") -> dict[str, set[str]]:
    """Module or subpackage of a folder of gleak -> those of the same folder that it imports."""
    found, home = {}, PACKAGE / folder
    package = ".".join(["gleak", *Path(folder).parts])
    for file in sorted(home.rglob("*.py")):
        parts = file.relative_to(home).parts
        name = parts[0].removesuffix(".py")
        if name.startswith("__"):
            continue
        found.setdefault(name, set())
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            module = getattr(node, "module", None) or ""
            if isinstance(node, ast.ImportFrom) and f"{module}.".startswith(f"{package}."):
                below = module.removeprefix(package).split(".")[1:2]
                found[name] |= set(below or [alias.name for alias in node.names])
    return {name: {n for n in needs if n in found and n != name} for name, needs in found.items()}


def reaches(graph, start) -> set[str]:
    """All that a module imports, directly or through others."""
    return graph[start].union(*(reaches(graph, needed) for needed in graph[start]))


def draw(graph: dict[str, set[str]]) -> str:
    """The picture: what imports nothing on top, each other module below all that it imports."""
    level = {}

    def depth(name):
        level[name] = level.get(name) or 1 + max((depth(n) for n in graph[name]), default=0)
        return level[name]

    rows = {}
    for name in sorted(graph, key=depth):
        rows.setdefault(level[name], []).append(name)
    boxes = {}
    for number, names in sorted(rows.items()):
        # below the middle of what they import
        names.sort(key=lambda n: (sum(boxes[m][0] for m in graph[n]) / max(len(graph[n]), 1), n))
        sizes = [9 * len(name) + 24 for name in names]
        left = (WIDTH - sum(sizes) - GAP * (len(names) - 1)) / 2
        for name, size in zip(names, sizes, strict=True):
            boxes[name] = (left + size / 2, 24 + (number - 1) * ROW, size)
            left += size + GAP
    height = 24 + (len(rows) - 1) * ROW + BOX + 16
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="ui-monospace, monospace" font-size="15" text-anchor="middle">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#666"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for name in boxes:
        direct = {m for m in graph[name] if not any(m in reaches(graph, o) for o in graph[name])}
        x, y, _ = boxes[name]
        for needed in sorted(direct):
            to_x, to_y, _ = boxes[needed]
            bottom = to_y + BOX + 2
            lines.append(
                f'<path d="M{x:.0f} {y:.0f} C{x:.0f} {y - 34:.0f} {to_x:.0f} {bottom + 34:.0f} '
                f'{to_x:.0f} {bottom:.0f}" fill="none" stroke="#666" marker-end="url(#tip)"/>'
            )
    for name, (x, y, size) in boxes.items():
        fill, ink = ("#0072b2", "white") if name in FLOW else ("#eef2f5", "#222")
        lines.append(
            f'<rect x="{x - size / 2:.0f}" y="{y:.0f}" width="{size}" height="{BOX}" rx="5" '
            f'fill="{fill}" stroke="#8899a6"/>'
            f'<text x="{x:.0f}" y="{y + 20:.0f}" fill="{ink}">{name}</text>'
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


class Architecture(SphinxDirective):
    """The picture as a figure; its caption is the content."""

    has_content = True
    optional_arguments = 1

    def run(self):
        folder = self.arguments[0] if self.arguments else ""
        graph, name = imports(folder), "-".join(["architecture", *Path(folder).parts])
        file = Path(self.env.app.outdir).parent / "chapter-figures" / f"{name}.svg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(draw(graph), encoding="utf-8")
        needs = (f"{name} imports {', '.join(sorted(m))}" for name, m in graph.items() if m)
        alt = f"Boxes for {len(graph)} modules with arrows between them: {'; '.join(needs)}."
        image = nodes.image(uri="/" + os.path.relpath(file, self.env.srcdir), alt=alt)
        text = nodes.container()
        self.state.nested_parse(self.content, self.content_offset, text)
        return [nodes.figure("", image, nodes.caption("", "", *text[0].children))]


def setup(app):
    app.add_directive("architecture", Architecture)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
