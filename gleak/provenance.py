"""What a result was made with, and the digests that tell it from another."""

import ast
import hashlib
import json
import platform
from functools import cache
from pathlib import Path

# What starts the runs, or shows what they found, but cannot change it.
MACHINERY = ("study", "__main__.py", "figures.py", "flower.py", "kept.py")


@cache
def package_digest() -> str:
    """A digest of the package's modules, without their comments and docstrings.

    What is named in MACHINERY is left out: an edit of the command line makes no result stale.
    """
    package = Path(__file__).parent
    files = sorted(package.rglob("*.py"))
    content = [
        (file.relative_to(package).as_posix(), syntax(ast.parse(file.read_text(encoding="utf-8"))))
        for file in files
        if file.relative_to(package).parts[0] not in MACHINERY
    ]
    return digest_of(content)


def study_code(source: str, known: frozenset[str] = frozenset()) -> dict[str, str]:
    """Name -> digest of the modules of gleak.study that a source imports, directly or by others.

    Those that display or store results count as well, as far as the source names them.
    """
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(source)):
        module = getattr(node, "module", None) or ""
        if not isinstance(node, ast.ImportFrom) or not module.startswith("gleak.study"):
            continue
        for name in (module, *(f"{module}.{alias.name}" for alias in node.names)):
            file = Path(__file__).parent.joinpath(*name.split(".")[1:]).with_suffix(".py")
            if name not in known | found.keys() and file.is_file():
                text = file.read_text(encoding="utf-8")
                found[name] = digest_of(syntax(ast.parse(text)))
                found |= study_code(text, known | found.keys())
    return found


def digest_of(content: object) -> str:
    """SHA-256, in hex, of anything that JSON can hold; of other values their `str`."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def syntax(node: object) -> list | str:
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


def provenance() -> dict[str, str]:
    """Versions and settings that a figure in the book depends on; nothing that names a person."""
    from importlib.metadata import version  # here, as digests should wait for neither

    import torch

    packages = ("gleak", "torch", "torchvision", "numpy", "scipy")
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "threads": str(torch.get_num_threads()),
    }
