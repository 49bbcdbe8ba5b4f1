"""The `gleak` command: execute chapters, run one with one's own parameters, build the book."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import click
import yaml

from gleak.study import chapters

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def writable(context: click.Context, option: click.Parameter, folder: Path) -> Path:
    """The folder; BadParameter unless it can be made, or be written to, before hours are spent."""
    there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise click.BadParameter(f"nothing can be written below {there}")
    return folder


def report_folder(default: str):
    """The option that names the folder of a report."""
    return click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        default=default,
        show_default=True,
        callback=writable,
        help="Folder of the report.",
    )


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
    # Chapters that sum up others come last: what those find may make them stale.
    last = [run for run in runs if chapters.reads_verdicts(run.chapter)]
    executed = 0
    for group in ([run for run in runs if run not in last], last):
        stale = [run for run in group if force or not chapters.is_fresh(run)]
        for run in group:
            if run not in stale and chapters.renew_prose(run):
                click.echo(f"{run.chapter}: prose renewed, nothing to execute")
        executed += len(stale)
        if not execute_all(stale, jobs):
            sys.exit(1)
    if not executed:
        click.echo(f"all fresh ({profile}): {', '.join(names)}")


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


SUBJECTS = ("labels", "images")  # what --fail-on looks at


@main.command()
@click.option("--dataset", required=True, help="folder:PATH, images:PATH (both @SIZE), or a name.")
@click.option("--model", help="convnet, torchvision:NAME or module:PACKAGE.MODULE:FUNCTION.")
@click.option("--weights", help="A file of weights, or a name of torchvision's.")
@click.option("--size", type=click.IntRange(1), help="Images that the client holds; 4 by default.")
@click.option("--image-size", type=click.IntRange(1), help="Cut images to squares, in pixels.")
@click.option("--channels", type=click.IntRange(1, 3), help="1: gray; 3: colour.")
@click.option("--epochs", type=click.IntRange(1), help="Local epochs.")
@click.option("--batch-size", type=click.IntRange(1), help="Images a step; all by default.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Local learning rate.")
@click.option("--training/--evaluation", default=None, help="Mode of batch norm at the client.")
@click.option("--seed", type=int)
@click.option(
    "--effort",
    type=click.Choice(["quick", "usual", "long"]),
    default="usual",
    show_default=True,
    help="How much is attacked; for four CIFAR images on the ConvNet one core takes about 2 "
    "minutes for quick, 14 for usual, 3 hours for long.",
)
@click.option(
    "--compare/--alone",
    default=True,
    show_default=True,
    help="Attack other ways of training and defences as well, or the training as it is alone.",
)
@click.option("--batches", type=click.IntRange(1), help="Rounds, in place of the effort's.")
@click.option(
    "--iterations", type=click.IntRange(1), help="Of each search, in place of the effort's."
)
@click.option(
    "--fail-on",
    type=click.Choice(SUBJECTS),
    multiple=True,
    help="Status 1 if these leak or could not be attacked. May be given twice.",
)
@report_folder("report")
def audit(out, effort, compare, fail_on, **options):
    """Attack what a client that trains on your own data would send; report what leaks.

    Leaves index.html, one file for people, and report.json, for machines, in --out. Finished
    attacks are kept in --out/cases: the same command goes on where it was interrupted.

    The status is 0; or 1 if --fail-on names something that leaks or that could not be attacked; or
    2 where the data, the network and the training do not fit together.
    """
    from gleak.study import audit as report

    if not compare:
        options |= {"settings": (), "defences": ()}
    try:
        found = report.run(report.plan_of(effort, options), out / "cases")
    except (ValueError, OSError, ImportError) as error:
        raise click.UsageError(f"{error}") from error
    index = report.write(found, out)
    for sentence in report.summary(found):
        click.echo(sentence)
    click.echo(f"the report: {shown(index.resolve())}")
    failed = [subject for subject in fail_on if found.fails(subject)]
    if failed:
        click.echo(f"--fail-on: {', '.join(failed)}", err=True)
        sys.exit(1)


@main.command()
@click.option(
    "--model", required=True, help="convnet, torchvision:NAME or module:PKG.MOD:FUNCTION."
)
@click.option("--shape", required=True, metavar="CxHxW", help="Of one image, such as 3x32x32.")
@click.option("--before", type=FILE, help="Weights that the server sent.")
@click.option("--after", type=FILE, help="Weights that came back, or a message of Flower (.pb).")
@click.option("--gradient", type=FILE, help="A gradient that came back, in place of weights.")
@click.option("--update", "saved", type=FILE, help="What Update.save wrote, in place of all these.")
@click.option(
    "--flower",
    "kept",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder that gleak.flower.KeepUpdates wrote.",
)
@click.option("--round", "server_round", type=click.IntRange(1), default=1, help="Of that folder.")
@click.option("--client", help="Of that round, where there are several.")
@click.option("--delta", is_flag=True, help="The client sent the difference of weights.")
@click.option("--samples", type=click.IntRange(1), help="K, unless the update shows it.")
@click.option("--classes", type=click.IntRange(2), help="How many; by default as the file shows.")
@click.option(
    "--class-names", "names_file", type=FILE, help="A text file, the name of a class on each line."
)
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Mean local learning rate.")
@click.option("--epochs", type=click.IntRange(1), help="Local epochs.")
@click.option("--batch-size", type=click.IntRange(1), help="Images in a local step.")
@click.option("--momentum", type=click.FloatRange(0, 1, max_open=True))
@click.option("--weight-decay", type=click.FloatRange(0))
@click.option(
    "--drop-last/--keep-last", default=None, help="Whether small last steps are left out."
)
@click.option("--loss", default="mean", show_default=True, help="mean or sum over the images.")
@click.option("--optimiser", default="sgd", show_default=True, help="sgd is what is attacked.")
@click.option("--normalise", help="none, cifar10 and so on, or MEANS/DEVIATIONS: 0.5/0.25.")
@click.option("--training/--evaluation", default=True, help="Mode of batch norm at the client.")
@click.option("--effort", type=click.Choice(["quick", "usual", "long"]), default="usual")
@click.option("--iterations", type=click.IntRange(1), help="Of the search, in place of an effort.")
@click.option(
    "--fail-on",
    type=click.Choice(["labels", "images"]),
    multiple=True,
    help="Status 1 if these leak or could not be attacked. May be given twice.",
)
@click.option("--labels-only", is_flag=True, help="Leave the images alone.")
@click.option("--seed", type=int, default=0, show_default=True)
@report_folder("attack")
def attack(model, shape, names_file, effort, iterations, fail_on, labels_only, seed, out, **given):
    """Attack what a server has: files, without the truth.

    Leaves one HTML page, report.json, and the images that were restored as PNG files. The same
    command goes on with a search that was interrupted.

    The status is 0; or 1 if --fail-on names something that leaks or that could not be attacked; or
    2 where nothing was attacked, as a sentence says.
    """
    from gleak.study import attack as attacks
    from gleak.study.served import read_update

    try:
        size = [int(part) for part in shape.lower().split("x")]
    except ValueError:
        size = []
    if len(size) != 3 or min(size) < 1:
        raise click.BadParameter(f"{shape!r} is not CxHxW, such as 3x32x32", param_hint="--shape")
    names = names_file.read_text(encoding="utf-8").splitlines() if names_file else ()
    sys.path.insert(0, os.getcwd())  # noqa: PTH109, where a network of one's own may lie
    try:
        found = read_update(
            model, (size[0], size[1], size[2]), class_names=names, seed=seed, **given
        )
        for sentence in (*found.assumed, *found.update.contradictions()):
            click.echo(f"note: {sentence}", err=True)
        report = attacks.attack(
            found,
            out,
            iterations=iterations or attacks.EFFORTS[effort],
            labels_only=labels_only,
            seed=seed,
            say=click.echo,
        )
    except (ValueError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    click.echo(f"the report: {shown((out / 'index.html').resolve())}")
    failed = [subject for subject in fail_on if report.fails(subject)]
    if failed:
        click.echo(f"--fail-on: {', '.join(failed)}", err=True)
        sys.exit(1)


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the sweep; runs/NAME-OF-THE-FILE by default.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be run.")
@click.argument("arguments", metavar="[SNAKEMAKE'S ARGUMENTS]...", nargs=-1, type=click.UNPROCESSED)
def sweep(file, out, dry_run, arguments):
    """Run what a sweep file lists, and gather the results in one table.

    Finished runs are not done again. What follows the file goes to Snakemake as it is: --cores 4,
    --retries 2, --executor slurm --jobs 100, --profile NAME and all its others.
    """
    from gleak.study import sweep as sweeps

    folder = (out or chapters.root() / "runs" / file.stem).resolve()
    runs = sweeps.plan(sweeps.read_sweep(file), folder)
    status = sweeps.run_all(folder, arguments, dry_run)
    if dry_run or sweeps.ASIDE & {argument.split("=")[0] for argument in arguments}:
        sys.exit(status)
    done, failed = sweeps.gather(folder)
    click.echo(f"{len(runs)} runs: {len(done)} done, {len(failed)} not")
    for row in failed.to_dict("records"):
        chosen = {k[6:]: v for k, v in row.items() if k.startswith("param.") and v == v}
        shown_as = ", ".join(f"{name}={value}" for name, value in chosen.items())
        click.echo(f"  {row['chapter']} ({shown_as}): {row['error'].splitlines()[0]}", err=True)
    click.echo(f"the table: {shown(folder / 'results.parquet')} and results.csv")
    if len(failed):
        sys.exit(1)


@main.command()
@click.option(
    "--profile", type=click.Choice(chapters.PROFILES), default="reference", show_default=True
)
def book(profile):
    """Build the book from executed notebooks; a warning is an error."""
    target = chapters.root() if profile == "reference" else chapters.root() / "runs" / profile
    page = build_pages(chapters.stage(profile), target, "html")
    click.echo(f"the book: {page}")


@main.command()
@click.option("--revision", default="HEAD", show_default=True, help="What to compare with.")
def changes(revision):
    """Say which verdicts and claims differ from the committed notebooks'; 1 if any do."""
    from gleak.study.changes import changes as find

    lines = find(chapters.root(), revision)
    for line in lines:
        click.echo(line)
    if lines:
        sys.exit(1)
    click.echo(f"all verdicts and claims as in {revision}")


@main.command()
def pdf():
    """Print the book into one PDF, by a Chromium browser; `gleak book` then links it."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = os.environ.get("GLEAK_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        raise click.ClickException("no Chromium: install one, or name it in GLEAK_CHROMIUM")
    page = build_pages(
        chapters.stage("reference"), chapters.root() / "_build" / "pdf", "singlehtml"
    )
    file = chapters.root() / "_build" / "gleak.pdf"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
    # time for the formulas, all of them on one page
    command += ["--virtual-time-budget=120000", f"--print-to-pdf={file}"]
    # written as if it lay one folder higher
    in_one = page.parent / "whole.html"
    shutil.copy(page.parent / "book" / "index.html", in_one)
    command.append(in_one.as_uri())
    printed = subprocess.run(command, check=False, capture_output=True, text=True)
    if printed.returncode or not file.exists():
        raise click.ClickException(f"nothing was printed: {printed.stderr.strip()[-500:]}")
    click.echo(f"the book: {shown(file)}")


@main.command()
def slides():
    """Make an hour's slides from the executed chapters, one HTML file."""
    from gleak.study import slides as hour

    root = chapters.root()
    file = root / "_build" / "slides.html"
    file.parent.mkdir(exist_ok=True)
    title = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))["title"]
    parts = hour.stops(root / "book" / "hour.yml")
    try:
        page = hour.deck(parts, root / "notebooks", root / "book" / "_static", title)
    except LookupError as error:
        raise click.ClickException(str(error)) from error
    file.write_text(page, encoding="utf-8")
    click.echo(f"the slides: {shown(file)}")


def build_pages(source: Path, target: Path, builder: str) -> Path:
    """Run Jupyter Book, and return the first page."""
    command: list[str | Path] = [Path(sys.executable).with_name("jupyter-book"), "build", source]
    command += ["--path-output", target, "--builder", builder]
    # all pages and all warnings, each an error: a page that is not re-read hides its own
    command += ["--all", "-W", "-n", "--keep-going", "--quiet"]
    built = subprocess.run(command, check=False)
    page = target / "_build" / builder / "index.html"
    if built.returncode or not page.exists():
        raise click.ClickException("the book was not built; see the messages above")
    return page


def shown(path: Path) -> str:
    """The path as seen from here, where that is shorter."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def entry():
    """Run the command; an error of a chapter or of the disk is a message, not a traceback."""
    try:
        main(standalone_mode=True)
    except (chapters.ChapterError, OSError) as error:  # OSError: a disk that is full, or locked
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    entry()
