"""Many runs of chapters: planned from a file, run by Snakemake, gathered into one table.

A sweep lives in a folder. Each run has a folder in it, named by a digest of all that decides its
outputs: the chapter's code, its parameters, the package's code and the pinned versions. So a run
that is there is a run that is done, and a change of the package makes new runs beside the old.
"""

import ast
import fcntl
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import nbformat
import pandas as pd
import yaml

from gleak.storage import whole
from gleak.study import chapters
from gleak.study.chapters import ChapterError, Run
from gleak.study.summary import combined
from gleak.study.verdicts import stored_verdicts

# Snakemake's own arguments that say how many runs at a time, and where.
PLACES = ("--cores", "-c", "--jobs", "-j", "--profile", "--workflow-profile", "--executor", "-e")
# And those with which it runs nothing.
ASIDE = {"--unlock", "--report", "--summary", "--dag", "--rulegraph"}


def read_sweep(file: Path) -> list[tuple[str, dict]]:
    """The runs that a sweep file lists, each a chapter and its parameters.

    runs: a list of entries with `chapter`, `parameters` (the same in all its runs) and `grid`
    (name -> list of values; all combinations are run). Paths of data sets are relative to the file.

    Raises ChapterError, before anything runs, for a file that is not such a list, a chapter that
    does not exist, or parameters that do not fit it.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ChapterError(f"{file} cannot be read: {error}") from None
    if not isinstance(content, Mapping) or set(content) != {"runs"} or not content["runs"]:
        raise ChapterError(f"{file} must hold one list, runs")
    runs = []
    for number, entry in enumerate(content["runs"], start=1):
        fields = {"chapter", "parameters", "grid"}
        if not isinstance(entry, Mapping) or "chapter" not in entry or set(entry) - fields:
            raise ChapterError(f"{file}, entry {number}: chapter, parameters and grid, no others")
        name = entry["chapter"]
        chapter = chapters.resolve(f"{name:02d}" if isinstance(name, int) else str(name))
        fixed, grid = entry.get("parameters") or {}, entry.get("grid") or {}
        for name, values in grid.items():
            if not isinstance(values, list) or not values or name in fixed:
                raise ChapterError(
                    f"{file}, entry {number}: {name} in grid must be a list, and not be in "
                    "parameters too"
                )
        for chosen in itertools.product(*grid.values()):
            parameters = {**fixed, **dict(zip(grid, chosen, strict=True))}
            parameters = chapters.located(parameters, file.parent)
            chapters.check_parameters(chapter, parameters)
            runs.append((chapter, parameters))
    return runs


def plan(runs: Iterable[tuple[str, dict]], folder: Path) -> dict[str, dict]:
    """Write the plan of a sweep into its folder: key -> chapter and parameters."""
    keyed = {}
    for chapter, parameters in runs:
        key = chapters.freshness_key(Run(chapter, parameters, folder / "x.ipynb", "run"))[:16]
        keyed[key] = {"chapter": chapter, "parameters": parameters}
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "root": str(chapters.root()),
        "here": str(Path.cwd()),
        "python": sys.executable,
        "runs": keyed,
    }
    write_json(folder / "plan.json", content)
    return keyed


def run_all(folder: Path, arguments: Iterable[str], dry_run: bool = False) -> int:
    """Run what the plan lists and is not done, by Snakemake; its exit status.

    arguments: handed on to Snakemake as they are, so that its executors, retries, locks and reports
    are at hand. By default it uses the cores of this machine. A sweep that was killed leaves
    Snakemake's lock behind: `--unlock` takes it away, and the sweep goes on with what is missing.
    """
    arguments = list(arguments)
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        Path(__file__).with_suffix(".smk"),
    ]
    command += ["--quiet", "rules", "host", "reason", "--rerun-triggers", "mtime"]
    command += ["--directory", folder, "--rerun-incomplete", "--keep-going"]
    command += ["--dry-run"] * dry_run
    if not any(a.split("=")[0] in PLACES or a[:2] in ("-c", "-j") for a in arguments):
        command += ["--cores", str(os.cpu_count())]
    return subprocess.run([*command, *arguments], check=False).returncode


def work(folder: Path, key: str) -> None:
    """Do one run of a plan: its notebook, then its record; or else a note of why it failed."""
    folder = folder.resolve()
    content = json.loads((folder / "plan.json").read_text())
    os.environ["GLEAK_ROOT"] = content["root"]
    os.chdir(content["here"])  # where one's own modules are
    about, own = content["runs"][key], folder / key
    own.mkdir(exist_ok=True)
    with (own / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a worker of a killed sweep may still be at it
        if (own / "record.json").exists():
            return
        run = Run(about["chapter"], about["parameters"], own / f"{about['chapter']}.ipynb", "run")
        failed = own / "failed.json"
        try:
            if chapters.freshness_key(run)[:16] != key:
                raise ChapterError(
                    "the chapter, its data or the package has changed since the plan"
                )
            seconds = chapters.execute(run)
            record = {**about, "seconds": seconds, "results": results(run.output)}
            write_json(own / "record.json", record)
        except BaseException as error:
            write_json(failed, {**about, "error": f"{type(error).__name__}: {error}"})
            raise
        failed.unlink(missing_ok=True)


def results(notebook: Path) -> dict:
    """Name -> value of what a notebook glued, and its verdicts as verdict.CLAIM.COLUMN."""
    found = {}
    for cell in nbformat.read(notebook, as_version=4).cells:
        for output in cell.get("outputs", []):
            about = output.get("metadata", {}).get("scrapbook")
            if about:
                text = output["data"].get(about["mime_prefix"] + "text/plain", "")
                found[about["name"]] = value_of(text)
    rows = pd.DataFrame(stored_verdicts([notebook]))
    if len(rows):
        for (claim, column), judged in rows.groupby(["claim", "column"]):
            found[f"verdict.{claim}.{column}"] = combined(judged).grade
    return found


def value_of(text: str):
    """The value that a record's text says; the text itself where it is not a plain value."""
    for read in (ast.literal_eval, float):  # float also reads nan and inf
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text


def gather(folder: Path):
    """One table of the plan's finished runs and one of the others, written beside the plan.

    The first has a row for each run: key, chapter, param.NAME, seconds, and what the chapter glued;
    as results.parquet and results.csv. The second has key, chapter, param.NAME and error, as
    failures.csv. Runs of an earlier state of the package are in neither. Returns both as frames.
    """
    import pandas as pd  # not for planning, which the command line should not wait for

    done, failed = [], []
    for key, about in json.loads((folder / "plan.json").read_text())["runs"].items():
        row = {"key": key, "chapter": about["chapter"]}
        row |= {f"param.{name}": cell(value) for name, value in about["parameters"].items()}
        record, failure = folder / key / "record.json", folder / key / "failed.json"
        if record.exists():
            content = json.loads(record.read_text())
            row["seconds"] = content["seconds"]
            done.append(row | {name: cell(value) for name, value in content["results"].items()})
        elif failure.exists():
            failed.append(row | {"error": json.loads(failure.read_text())["error"]})
        else:
            failed.append(
                row | {"error": f"no result yet: not started, or killed; see {key}/log.txt"}
            )
    done, failed = pd.DataFrame(done), pd.DataFrame(failed)
    for table, name in ((done, "results.csv"), (failed, "failures.csv")):
        with whole(folder / name) as partial:
            table.to_csv(partial, index=False)
    plain = done.copy()
    for name in plain.columns:  # parquet takes one type a column
        if len(set(plain[name].dropna().map(type))) > 1:
            plain[name] = plain[name].map(lambda v: v if pd.isna(v) else str(v))
    with whole(folder / "results.parquet") as partial:
        plain.to_parquet(partial, index=False)
    return done, failed


def cell(value):
    """A value that a cell of a table can hold: lists and the like as JSON."""
    return value if isinstance(value, str | int | float | None) else json.dumps(value, default=str)


def write_json(path: Path, content) -> None:
    with whole(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    try:
        work(Path(sys.argv[1]), sys.argv[2])
    except ChapterError as error:
        sys.exit(f"error: {error}")
