"""What a result depends on besides its parameters: the package's code, as one digest."""

import ast
import hashlib
import json
from functools import cache
from pathlib import Path

from gleak.names import folder_name

# What starts the runs, but cannot change what they find.
MACHINERY = (
    "changes.py",
    "audit.py",
    "chapters.py",
    "cli.py",
    "flower.py",
    "identity.py",
    "sweep.py",
)


@cache
def package_digest() -> str:
    """A digest of the package's modules, without their comments and docstrings.

    Modules in MACHINERY are left out: an edit of the command line makes no result stale.
    """
    package = Path(__file__).parent
    files = sorted(package.rglob("*.py"))
    content = [
        (file.relative_to(package).as_posix(), syntax(ast.parse(file.read_text(encoding="utf-8"))))
        for file in files
        if file.name not in MACHINERY
    ]
    return digest_of(content)


def folder_stamp(name: str) -> str:
    """What tells a data set of one's own (`folder:PATH`, `images:PATH`) from what it was before.

    A digest of the names, sizes and times of its files; empty for all other names, and for a folder
    that is not there.
    """
    named = folder_name(name)
    if named is None:
        return ""
    path = named.path
    path = path.parent if path.is_file() else path  # a table of labels lies beside its images
    files = sorted(file for file in path.rglob("*") if file.is_file())
    about = [(file, file.stat()) for file in files]
    content = [(f.relative_to(path), s.st_size, s.st_mtime_ns) for f, s in about]
    return digest_of(content) if content else ""


def digest_of(content) -> str:
    """SHA-256, in hex, of anything that JSON can hold; of other values their `str`."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def syntax(node):
    """A syntax tree as nested lists, without docstrings and alike in all versions of Python."""
    if isinstance(node, ast.AST):
        fields = dict(ast.iter_fields(node))
        if isinstance(fields.get("body"), list) and ast_docstring(node):
            fields["body"] = fields["body"][1:]
        kept = {name: syntax(value) for name, value in fields.items() if value not in (None, [])}
        return [type(node).__name__, kept]
    if isinstance(node, list):
        return [syntax(entry) for entry in node]
    return repr(node)


def ast_docstring(node: ast.AST) -> str | None:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return ast.get_docstring(node) if isinstance(node, kinds) else None
