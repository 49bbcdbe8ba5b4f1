"""What of a chapter its checked cells need: nbval executes this much, and no figures."""

import ast
import symtable
from collections.abc import Iterator, Sequence

from nbformat import NotebookNode


def slices(cells: Sequence[NotebookNode]) -> list[str]:
    """Of each cell of code the statements that make what a checked cell reads; "" for none.

    Checked cells are left whole. A statement makes the names that it binds, those to a part of
    which it assigns, and those of which it calls a method, unless they are modules. What a function
    does to its arguments is not seen.
    """
    modules = {name for cell in cells for name in imported(ast.parse(cell.source))}
    wanted: set[str] = set()
    found = []
    for cell in reversed(cells):
        checked = "nbval-check-output" in cell.metadata.get("tags", [])
        kept = []
        for statement in reversed(ast.parse(cell.source).body):
            bound, read = names(statement)
            if checked or wanted & (bound | (changed(statement) - modules)):
                kept.append(ast.get_source_segment(cell.source, statement))
                if isinstance(statement, ast.Assign | ast.Import | ast.ImportFrom):
                    wanted -= bound
                wanted |= read
        found.append(cell.source if checked else "\n".join(reversed(kept)))
    return found[::-1]


def names(statement: ast.stmt) -> tuple[set[str], set[str]]:
    """The names of the notebook that a statement binds, and those that it reads."""
    table = symtable.symtable(ast.unparse(statement), "cell", "exec")
    symbols = table.get_symbols()
    bound = {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}
    read = {s.get_name() for s in symbols if s.is_referenced()}
    return bound, read | set(inner_reads(table))


def inner_reads(table: symtable.SymbolTable) -> Iterator[str]:
    """What functions and comprehensions read from outside of themselves."""
    for inner in table.get_children():
        yield from (s.get_name() for s in inner.get_symbols() if s.is_global())
        yield from inner_reads(inner)


def changed(statement: ast.stmt) -> set[str]:
    """The names whose objects a statement assigns to a part of, or calls a method of for itself."""
    ends = []
    for node in ast.walk(statement):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            ends.append(node.value.func)
        elif isinstance(getattr(node, "ctx", None), ast.Store):
            ends.append(node)
    return {base for end in ends if (base := base_of(end))}


def base_of(node: ast.expr) -> str | None:
    """`x` of `x.a[0].b`; None for the bare `x` and where no name stands first."""
    if not isinstance(node, ast.Attribute | ast.Subscript):
        return None
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def imported(tree: ast.Module) -> Iterator[str]:
    """The names that imports bind, at the top of a cell."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((name.asname or name.name).partition(".")[0] for name in node.names)
