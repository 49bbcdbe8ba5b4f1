"""The files around the package agree with each other."""

import re
import tomllib
import types
from importlib.metadata import version

import yaml

import gleak
from gleak.study import chapters

ROOT = chapters.root()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONDA_NAMES = {"torch": "pytorch", "lazy-loader": "lazy_loader"}


def split(requirement):
    name = re.match(r"[\w.-]+", requirement)[0]
    return CONDA_NAMES.get(name, name), requirement[len(name) :]


def test_conda_environment_has_the_names_and_bounds_of_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PYPROJECT["project"]["name"] == "gleak"
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    found = dict(split(entry) for entry in [*plain, *pip] if entry not in ("pip", "--editable ."))
    assert found.pop("python") == PYPROJECT["project"]["requires-python"]
    wanted = chapters.requirements(PYPROJECT["project"], "study")
    assert found == dict(split(entry) for entry in wanted)


def test_lock_pins_everything_with_hashes_and_names_no_address():
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    pins = re.findall(r"^[\w.-]+==.*(?:\n    --hash=sha256:[0-9a-f]{64}.*)+", lock, re.MULTILINE)
    assert len(pins) == len(re.findall(r"^[\w.-]+==", lock, re.MULTILINE)) > 50
    for entry in chapters.requirements(PYPROJECT["project"], "dev"):
        name = re.match(r"[\w.-]+", entry)[0]
        assert re.search(rf"^{name}==", lock, re.MULTILINE), f"{name} is not locked: make lock"


def test_one_version_everywhere():
    assert gleak.__version__ == PYPROJECT["project"]["version"] == version("gleak")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == gleak.__version__


def test_the_book_is_built_with_jupyter_book_1():
    """Version 2 takes the same command, says little and builds nothing."""
    assert version("jupyter-book").startswith("1.")


def test_every_extra_is_a_part_of_dev():
    """So that the lock and the tests have all of them."""
    project = PYPROJECT["project"]
    tested = set(chapters.requirements(project, "dev"))
    for name in project["optional-dependencies"]:
        assert set(chapters.requirements(project, name)) <= tested, name


def test_public_names_are_what_they_say():
    for name in gleak.__all__:
        first, second = getattr(gleak, name), getattr(gleak, name)
        assert first is second
        assert isinstance(first, types.ModuleType) == (first.__name__ == f"gleak.{name}")
        assert first.__doc__


def test_a_function_with_the_name_of_its_module_is_not_hidden_by_it():
    from gleak.provenance import digest_of

    assert digest_of([]) and gleak.provenance()["gleak"] == gleak.__version__


def test_citation_is_complete():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    for key in ("cff-version", "message", "title", "authors", "license", "references"):
        assert citation[key]
