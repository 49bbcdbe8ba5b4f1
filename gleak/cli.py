"""The `gleak` command: execute chapters, run one with one's own parameters, build the book."""

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import click
import yaml

from gleak import chapters


@click.group()
@click.version_option(package_name="gleak")
def main():
    """Gradient leakage in federated learning: run the study."""


@main.command("chapters")
def list_chapters():
    """List the chapters, their parameters, and whether the committed notebook is up to date."""
    for chapter in chapters.chapters():
        fresh = chapters.is_fresh(chapters.profile_run(chapter, "reference"))
        parameters = ", ".join(f"{k}={v!r}" for k, v in chapters.known_parameters(chapter).items())
        click.echo(f"{chapter}  ({'fresh' if fresh else 'stale'})\n    {parameters}")


@main.command()
@click.argument("names", metavar="[CHAPTER]...", nargs=-1)
@click.option(
    "--profile", type=click.Choice(chapters.PROFILES), default="reference", show_default=True
)
@click.option("--force", is_flag=True, help="Also chapters that are fresh.")
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=os.cpu_count,
    show_default="one a core",
    help="Chapters at a time.",
)
def execute(names, profile, force, jobs):
    """Execute chapters (all of them by default) where their notebooks are stale."""
    names = [chapters.resolve(name) for name in names] or chapters.chapters()
    runs = [chapters.profile_run(name, profile) for name in names]
    stale = [run for run in runs if force or not chapters.is_fresh(run)]
    for run in runs:
        if run not in stale and chapters.renew_prose(run):
            click.echo(f"{run.chapter}: prose renewed, nothing to execute")
    if not stale:
        click.echo(f"all fresh ({profile}): {', '.join(names)}")
    # Chapters that sum up others wait for them.
    last = [run for run in stale if chapters.reads_verdicts(run.chapter)]
    first = [run for run in stale if run not in last]
    if not (execute_all(first, jobs) and execute_all(last, jobs)):
        sys.exit(1)


def execute_all(runs, jobs) -> bool:
    """Execute runs side by side; whether all of them succeeded."""
    failures = 0
    # Processes, since a working folder belongs to a process; fresh ones, since torch holds threads.
    with ProcessPoolExecutor(max(1, min(jobs, len(runs))), get_context("spawn")) as pool:
        running = {pool.submit(chapters.execute, run): run for run in runs}
        for future in as_completed(running):
            run = running[future]
            try:
                click.echo(f"{run.chapter}: {future.result():.0f} s -> {shown(run.output)}")
            except chapters.ChapterError as error:
                failures += 1
                click.echo(f"error: {error}", err=True)
    return failures == 0


@main.command()
@click.argument("chapter")
@click.option(
    "-p",
    "parameters",
    metavar="NAME VALUE",
    type=(str, str),
    multiple=True,
    help="A parameter of the chapter; the value as in YAML. May be given many times.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder to write to.")
def run(chapter, parameters, out):
    """Run one chapter with your own parameters, into runs/ (or --out)."""
    values = {}
    for name, value in parameters:
        try:
            values[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise chapters.ChapterError(f"{name}: {value!r} is not YAML") from None
    job = chapters.own_run(chapters.resolve(chapter), values, out)
    seconds = chapters.execute(job)
    click.echo(f"{job.chapter}: {seconds:.0f} s -> {shown(job.output)}")


@main.command()
@click.option(
    "--profile", type=click.Choice(chapters.PROFILES), default="reference", show_default=True
)
def book(profile):
    """Build the book from executed notebooks; a warning is an error."""
    source = chapters.stage(profile)
    target = chapters.root() if profile == "reference" else chapters.root() / "runs" / profile
    command = [Path(sys.executable).with_name("jupyter-book"), "build", source]
    # all pages and all warnings, each an error: a page that is not re-read hides its own
    command += ["--path-output", target, "--all", "-W", "-n", "--keep-going", "--quiet"]
    built = subprocess.run(command, check=False)
    page = target / "_build" / "html" / "index.html"
    if built.returncode or not page.exists():
        raise click.ClickException("the book was not built; see the messages above")
    click.echo(f"the book: {page}")


def shown(path: Path) -> str:
    """The path as seen from here, where that is shorter."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def entry():
    """Run the command; a chapter's error is a message, not a traceback."""
    try:
        main(standalone_mode=True)
    except chapters.ChapterError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    entry()
