"""From a chapter's source to its executed notebook: jupytext, papermill, and a key of freshness.

`notebooks/NN_name.md` is what people edit; `notebooks/NN_name.ipynb` beside it is generated here,
with outputs. Runs with other parameters go to `runs/` and leave the committed notebooks alone.
"""

import ast
import itertools
import json
import os
import platform
import re
import shutil
import time
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import lazy_loader
import yaml

from gleak.folders import folder_name, folder_stamp
from gleak.provenance import digest_of, package_digest, study_code
from gleak.storage import whole
from gleak.study.verdicts import FOLDER, stored_verdicts

if TYPE_CHECKING:
    import jupytext
    import nbformat
    import papermill
else:  # seconds that a command which needs no notebook does without
    jupytext = lazy_loader.load("jupytext")
    nbformat = lazy_loader.load("nbformat")
    papermill = lazy_loader.load("papermill")

PACKAGE = Path(__file__).parents[1]
PROFILES = ("smoke", "reference", "full")

# What chapters run with. Small networks are faster on one thread, and one thread gives one result.
# Large ones spend half their time on getting zeroed pages from the system, unless glibc keeps them.
KERNEL = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
}


class ChapterError(ValueError):
    """A chapter that cannot be run as asked, or whose run failed."""


@cache
def root() -> Path:
    """The project's folder: GLEAK_ROOT, the one around this package, or where the caller stands."""
    named = [Path(os.environ["GLEAK_ROOT"])] if "GLEAK_ROOT" in os.environ else []
    for folder in (*named, Path(__file__).parents[2], Path.cwd(), *Path.cwd().parents):
        if (folder / "notebooks").is_dir() and (folder / "_config.yml").exists():
            return folder
    raise ChapterError("not in a checkout of gleak: no notebooks/ and _config.yml here")


def chapters() -> list[str]:
    """The names of all chapters, in order."""
    return sorted(file.stem for file in (root() / "notebooks").glob("*.md"))


def resolve(name: str) -> str:
    """The chapter's full name from its name, its number (`01`) or the path of one of its files."""
    stem = Path(name).stem
    found = [chapter for chapter in chapters() if stem in (chapter, chapter.split("_")[0])]
    if not found:
        raise ChapterError(f"no chapter {name!r}; known: {', '.join(chapters())}")
    return found[0]


@dataclass(frozen=True)
class Run:
    """One chapter with one set of parameters, and where its notebook goes."""

    chapter: str
    parameters: Mapping
    output: Path
    label: str  # what the notebook's metadata call it: a profile, or "run"


def profile_run(chapter: str, profile: str) -> Run:
    """The run of a chapter in a profile; the reference profile is the committed notebook."""
    if profile not in PROFILES:
        raise ChapterError(f"unknown profile {profile!r}; known: {', '.join(PROFILES)}")
    profiles = yaml.safe_load((root() / "notebooks" / "profiles.yml").read_text()) or {}
    folder = root() / ("notebooks" if profile == "reference" else f"runs/{profile}")
    parameters = (profiles.get(profile) or {}).get(chapter) or {}
    return Run(chapter, parameters, folder / f"{chapter}.ipynb", profile)


def own_run(chapter: str, parameters: Mapping, folder: Path | None = None) -> Run:
    """The run of a chapter with one's own parameters, in a folder named after them."""
    parameters = located(parameters, Path.cwd())
    if folder is None:
        folder = root() / "runs" / f"{chapter}-{digest_of(parameters)[:8]}"
    return Run(chapter, parameters, Path(folder) / f"{chapter}.ipynb", "run")


def located(parameters: Mapping, base: Path) -> dict:
    """The parameters with paths of data and weights made absolute, as chapters run elsewhere."""

    def placed(name, value):
        if isinstance(value, list):
            return [placed(name, entry) for entry in value]
        if not isinstance(value, str):
            return value
        named = folder_name(value, base)
        if named is not None:
            return str(named._replace(path=named.path.resolve()))
        if name == "weights" and (base / value).is_file():  # else it is a name
            return str((base / value).resolve())
        return value

    return {name: placed(name, value) for name, value in parameters.items()}


def execute(run: Run) -> float:
    """Execute a run, replace its notebook, and return the seconds it took.

    Raises ChapterError for parameters that the chapter does not have or that are of another type,
    and when a cell fails; the failed notebook then lies beside the good one, which stays. Raises it
    too when the disk is full or cannot be written to; nothing half-written is left then.
    """
    notebook = read_source(run.chapter)
    check_parameters(run.chapter, run.parameters)
    run.output.parent.mkdir(parents=True, exist_ok=True)
    failed = (root() / "runs" / "failed" if run.label == "reference" else run.output.parent) / (
        f"{run.chapter}.failed.ipynb"
    )
    failed.parent.mkdir(parents=True, exist_ok=True)
    for name, value in KERNEL.items():
        os.environ.setdefault(name, value)
    os.environ[FOLDER] = str(run.output.parent)
    if any(str(value).startswith("module:") for value in run.parameters.values()):
        path = [str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(path)  # one's own module, from where one stands
    started = time.perf_counter()
    try:
        executed = papermill.execute_notebook(
            notebook,
            failed,  # papermill writes here as it goes, so nothing computed is lost
            parameters=dict(run.parameters),
            kernel_name="python3",
            cwd=root() / "notebooks",
            progress_bar=False,
            extra_arguments=["--log-level=CRITICAL"],  # else it warns of TCP on this machine
        )
    except papermill.exceptions.PapermillExecutionError as error:
        raise ChapterError(
            f"{run.chapter} failed: {error.ename}: {error.evalue}\n"
            f"  the notebook up to there: {failed}"
        ) from None
    except OSError as error:
        failed.unlink(missing_ok=True)
        raise ChapterError(f"{run.chapter} cannot be written: {error}") from error
    seconds = time.perf_counter() - started
    normalise(executed)
    executed.metadata["gleak"] = {"profile": run.label, "key": freshness_key(run)}
    try:
        write(executed, run.output)
    except OSError as error:
        raise ChapterError(f"{run.chapter} cannot be written: {error}") from error
    finally:
        failed.unlink()
    if run.label == "run":
        about = {"chapter": run.chapter, "parameters": dict(run.parameters), "seconds": seconds}
        with whole(run.output.parent / "parameters.json") as partial:
            partial.write_text(json.dumps(about, indent=2) + "\n")
    else:
        note_runtime(run, seconds)
    return seconds


def read_source(chapter: str) -> "nbformat.NotebookNode":
    """The chapter's MyST source as a notebook without outputs, its cells numbered."""
    notebook = jupytext.read(root() / "notebooks" / f"{chapter}.md")
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # jupytext's own ids are random
    return notebook


def known_parameters(chapter: str) -> dict:
    """Name -> default value of the chapter's parameters, from its cell tagged `parameters`."""
    cells = [c for c in read_source(chapter).cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ChapterError(f"{chapter} has {len(cells)} cells tagged 'parameters', not one")
    return {
        target.id: ast.literal_eval(node.value)
        for node in ast.parse(cells[0].source).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def check_parameters(chapter: str, parameters: Mapping) -> None:
    """Raise ChapterError for an unknown name or a value of another type than the default's."""
    known = known_parameters(chapter)
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ChapterError(
            f"{chapter} has no parameter {', '.join(unknown)}; known: {', '.join(known)}"
        )
    for name, value in parameters.items():
        default = known[name]
        fits = default is None or type(value) is type(default)
        if not fits and not (isinstance(default, float) and type(value) is int):
            raise ChapterError(
                f"{chapter}: {name} must be of type {type(default).__name__} "
                f"(as its default {default!r}); got {value!r}"
            )


def normalise(notebook: "nbformat.NotebookNode") -> None:
    """Take out what differs from run to run: times, paths, random ids, the Python version."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        for entry in ("papermill", "execution"):
            cell.metadata.pop(entry, None)
        if not cell.metadata.get("tags"):
            cell.metadata.pop("tags", None)  # papermill gives every cell a list of them


def write(notebook: "nbformat.NotebookNode", path: Path) -> None:
    """Write in one go: a full disk or a kill leaves the old file as it was."""
    with whole(path) as partial:
        partial.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def runtimes(profile: str) -> Path:
    """Where the times of a profile's runs lie: those of the committed notebooks with the book."""
    return root() / (
        "book/results/runtimes" if profile == "reference" else f"runs/{profile}/runtimes"
    )


def note_runtime(run: Run, seconds: float) -> None:
    """Keep how long the last run of each chapter took, and on what, for the chapter's page.

    Not in the notebook: two runs of a chapter on one machine write the same notebook.
    """
    folder = runtimes(run.label)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"seconds": round(seconds), "hardware": hardware(), "date": f"{date.today()}"}
    with whole(folder / f"{run.chapter}.json") as partial:
        partial.write_text(json.dumps(about, indent=2) + "\n")


def hardware() -> str:
    """The processor that chapters run on, by the name that the system gives it."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        named = re.search(r"^model name\s*: (.+)", information.read_text(), flags=re.MULTILINE)
        name = named[1] if named else name
    threads = os.environ.get("OMP_NUM_THREADS", KERNEL["OMP_NUM_THREADS"])
    return f"{name}, {threads} thread{'s' if threads != '1' else ''}"


def is_fresh(run: Run) -> bool:
    """Whether the run's notebook was made from the sources, parameters and packages of today."""
    if not run.output.exists():
        return False
    stored = nbformat.read(run.output, as_version=4).metadata.get("gleak", {})
    return stored.get("key") == freshness_key(run)


def renew_prose(run: Run) -> bool:
    """Bring a fresh notebook's prose and cell metadata up to its source; True if they differed.

    Prose makes nothing stale, so this is all that an edit of it needs. Inserted or removed cells
    of prose are carried over too, as outputs belong to the cells of code, which are the same.
    """
    source, notebook = read_source(run.chapter), nbformat.read(run.output, as_version=4)
    executed = (
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", [])
    )
    for cell in source.cells:
        if cell.cell_type == "code":
            done = next(executed)
            cell.outputs, cell.execution_count = done.outputs, done.execution_count
    if run.label != "reference" or source.cells == notebook.cells:
        return False
    notebook.cells = source.cells
    write(notebook, run.output)
    return True


def freshness_key(run: Run) -> str:
    """A digest of all that decides the run's outputs."""
    code = [cell.source for cell in read_source(run.chapter).cells if cell.cell_type == "code"]
    look = [
        (PACKAGE / name).read_text(encoding="utf-8") for name in ("figures.py", "figures.mplstyle")
    ]
    content: list[object] = [
        code,
        sorted(run.parameters.items()),
        package_digest(),
        look,
        direct_pins(),
    ]
    content.append(study_code("\n".join(code)))
    content += [file.read_text(encoding="utf-8") for file in recorded_tables(code)]
    for value in run.parameters.values():
        named = value if isinstance(value, list) else [value]
        content += [folder_stamp(name) for name in named if isinstance(name, str)]
    if reads_verdicts(run.chapter):
        others = [f for f in run.output.parent.glob("[0-9]*.ipynb") if f != run.output]
        content.append(stored_verdicts(sorted(others)))
    return digest_of(content)


def recorded_tables(code: Iterable[str]) -> list[Path]:
    """The recorded tables that code of a chapter names, as far as they are there."""
    named = re.findall(r'"\.\./(book/results/[\w./-]+\.csv)"', "\n".join(code))
    return [file for name in dict.fromkeys(named) if (file := root() / name).exists()]


def reads_verdicts(chapter: str) -> bool:
    """Whether a chapter sums up what the others recorded, so that it has to come last."""
    code = (cell.source for cell in read_source(chapter).cells if cell.cell_type == "code")
    return any("verdicts()" in source for source in code)


@cache
def direct_pins() -> list[str]:
    """The locked versions of the packages that pyproject.toml names (not of what those need)."""
    project = tomllib.loads((root() / "pyproject.toml").read_text())["project"]
    names = {re.findall(r"[\w.-]+", entry)[0].lower() for entry in requirements(project, "study")}
    lock = (root() / "requirements.lock").read_text()
    pins = re.findall(r"^([\w.-]+)==(\S+)(.*?) ?\\?$", lock, flags=re.MULTILINE)
    return [f"{name}=={pin}{marker}" for name, pin, marker in pins if name in names]


def requirements(project: Mapping, extra: str) -> list[str]:
    """What the core and an extra of pyproject.toml ask for, with the extras that it includes."""
    found = list(project["dependencies"])
    for entry in project["optional-dependencies"][extra]:
        included = re.fullmatch(r"gleak\[(.+)\]", entry)
        parts = [requirements(project, name) for name in included[1].split(",")] if included else []
        found += itertools.chain([] if included else [entry], *parts)
    return list(dict.fromkeys(found))


def stage(profile: str) -> Path:
    """A folder that holds just the book's sources, with the notebooks of the profile."""
    folder = root() / "_build" / "source" / profile
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md"):
        if (root() / name).exists():
            shutil.copy(root() / name, folder)
    for tree in (root() / "book", PACKAGE):  # pages quote from the package
        shutil.copytree(tree, folder / tree.name, ignore=shutil.ignore_patterns("__pycache__"))
    printed = root() / "_build" / "gleak.pdf"
    if printed.exists():
        shutil.copy(printed, folder / "book" / "_static")
    (folder / "notebooks").mkdir()
    for chapter in chapters():
        notebook = profile_run(chapter, profile).output
        if not notebook.exists():
            raise ChapterError(
                f"{chapter} has not been executed: gleak execute {chapter} --profile {profile}"
            )
        shutil.copy(notebook, folder / "notebooks")
    if profile != "reference":
        times = folder / "book" / "results" / "runtimes"
        shutil.rmtree(times, ignore_errors=True)
        if runtimes(profile).exists():
            shutil.copytree(runtimes(profile), times)
    return folder
