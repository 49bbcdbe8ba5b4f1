"""Many runs by Snakemake: killed, resumed, failed, gathered."""

import base64
import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import yaml
from conftest import HEADER

from gleak.study import chapters, sweep
from gleak.study.chapters import ChapterError

SOURCE = (
    HEADER
    + """```{code-cell} ipython3
:tags: [parameters]

size = 3
seed = 0
names = ["a"]
hold = ""
marker = ""
```

```{code-cell} ipython3
import os
import time

if hold:
    open(hold + ".begun", "w").close()
while os.path.exists(hold):
    time.sleep(0.05)
assert size < 10, "too large"
if marker and not os.path.exists(marker):
    open(marker, "w").close()
    raise RuntimeError("not the first time")
```

```{code-cell} ipython3
from IPython.display import display

def glue(name, value):  # as MyST-NB's, which takes a second to import
    about = {"scrapbook": {"name": name, "mime_prefix": "application/papermill.record/"}}
    data = {"application/papermill.record/text/plain": repr(value)}
    display(data, raw=True, metadata=about)

glue("area", size * size)
glue("share", float("nan") if seed else 0.5)
glue("word", "a" * size)
```
"""
)


@pytest.fixture
def sweeps(project, monkeypatch):
    """A project with one chapter, in which a sweep file can be run by the command line."""
    (project / "notebooks" / "01_small.md").write_text(SOURCE)
    monkeypatch.setenv("GLEAK_ROOT", str(project))
    return project


def start(project, runs, *arguments):
    file = project / "many.yaml"
    file.write_text(yaml.safe_dump({"runs": runs}))
    command = [sys.executable, "-m", "gleak.study.cli", "sweep", str(file), *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(project, runs, *arguments):
    process = start(project, runs, *arguments)
    output, _ = process.communicate()
    return process.returncode, output


def whole_records(folder):
    """The records of runs that Snakemake has noted as finished."""
    notes = folder / ".snakemake" / "incomplete"  # a file for each run under way
    under_way = [base64.b64decode(file.name).decode() for file in notes.glob("*")]
    records = folder.glob("*/record.json")
    return [file for file in records if str(file.relative_to(folder)) not in under_way]


def test_killed_in_the_middle_and_resumed(sweeps):
    hold = sweeps / "hold"
    hold.touch()
    runs = [
        {"chapter": "01", "grid": {"size": [4]}},
        {"chapter": 1, "grid": {"size": [2], "seed": [0], "hold": [str(hold)]}},
        {"chapter": "01_small", "parameters": {"size": 11}, "grid": {"seed": [1]}},
    ]
    folder = sweeps / "runs" / "many"
    process = start(sweeps, runs, "--cores", "2")
    limit = time.monotonic() + 120
    while not ((sweeps / "hold.begun").exists() and whole_records(folder)):
        assert process.poll() is None and time.monotonic() < limit, process.communicate()[0]
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = whole_records(folder)
    assert len(done) == 1
    times = {file: file.stat().st_mtime_ns for file in done}
    assert not (folder / "results.csv").exists()

    hold.unlink()
    status, output = finish(sweeps, runs, "--cores", "2")  # Snakemake's own lock is still there
    assert status == 1
    assert "--unlock" in output
    assert finish(sweeps, runs, "--unlock")[0] == 0
    status, output = finish(sweeps, runs, "--cores", "2")
    assert status == 1
    assert "3 runs: 2 done, 1 not" in output
    assert "01_small (size=11, seed=1): ChapterError: 01_small failed: AssertionError" in output
    assert {file: file.stat().st_mtime_ns for file in done} == times  # not done again

    table = pd.read_parquet(folder / "results.parquet")
    assert sorted(table["area"]) == [4, 16]
    assert sorted(table["word"]) == ["aa", "aaaa"]
    assert sorted(table["param.size"]) == [2, 4]
    assert (table["share"] == 0.5).all()
    assert (table["seconds"] > 0).all()
    assert len(pd.read_csv(folder / "results.csv")) == 2
    failures = pd.read_csv(folder / "failures.csv")
    assert failures["param.size"].tolist() == [11]
    assert "too large" in failures["error"][0]
    (failed,) = folder.glob("*/failed.json")
    assert not (failed.parent / "01_small.ipynb").exists()

    status, output = finish(sweeps, runs[:2])
    assert status == 0
    assert "2 runs: 2 done, 0 not" in output
    assert len(pd.read_csv(folder / "results.csv")) == 2
    assert not list(folder.rglob("*.partial"))


def test_a_run_that_fails_once_is_done_after_a_retry(sweeps):
    marker = sweeps / "marker"
    runs = [{"chapter": "01", "parameters": {"marker": str(marker)}}]
    status, output = finish(sweeps, runs, "--retries", "1", "--cores", "1")
    assert (status, marker.exists()) == (0, True), output
    assert "1 runs: 1 done, 0 not" in output
    folder = sweeps / "runs" / "many"
    assert len(pd.read_csv(folder / "results.csv")) == 1
    assert not list(folder.glob("*/failed.json"))


# In place of `python -m gleak.study.sweep . KEY`: fails once, then leaves a record.
FAILS_ONCE = """#!/bin/sh
test -e marker && touch "$4/record.json" && exit
touch marker
exit 1
"""


@pytest.mark.parametrize("way", ["--profile", "--workflow-profile"])
def test_retries_may_stand_in_a_profile(sweeps, way):
    profile, folder = sweeps / "patient", sweeps / "runs" / "s"
    profile.mkdir()
    (profile / "config.yaml").write_text("cores: 1\nretries: 1\n")
    (key,) = sweep.plan([("01_small", {"size": 1})], folder)
    worker = folder / "worker"
    worker.write_text(FAILS_ONCE)
    worker.chmod(0o755)
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"python": str(worker)}))
    assert sweep.run_all(folder, [way, str(profile)]) == 0
    assert (folder / "marker").exists() and (folder / key / "record.json").exists()


def test_a_dry_run_runs_nothing(sweeps):
    runs = [{"chapter": "01", "grid": {"seed": [1, 2]}}]
    status, output = finish(sweeps, runs, "--dry-run")
    assert status == 0
    assert "run" in output
    assert not list((sweeps / "runs" / "many").glob("*/record.json"))


def test_the_packages_code_is_part_of_a_runs_identity(sweeps, monkeypatch):
    runs, folder = [("01_small", {"size": 1}), ("01_small", {"size": 1})], sweeps / "runs" / "s"
    (before,) = sweep.plan(runs, folder)
    assert [before] == list(sweep.plan(runs, folder))
    monkeypatch.setattr(chapters, "package_digest", lambda: "another package")
    (after,) = sweep.plan(runs, folder)
    assert before != after
    # the table knows the runs of the plan alone
    (folder / before).mkdir()
    record = {"chapter": "01_small", "parameters": {}, "seconds": 1, "results": {"area": 9}}
    (folder / before / "record.json").write_text(json.dumps(record))
    done, failed = sweep.gather(folder)
    assert len(done) == 0
    assert "no result yet" in failed["error"][0]
    with pytest.raises(ChapterError, match="has changed since the plan"):
        monkeypatch.setattr(chapters, "package_digest", lambda: "a third")
        sweep.work(folder, after)
    assert "has changed" in sweep.gather(folder)[1]["error"][0]


def test_columns_of_mixed_types_can_be_stored(sweeps):
    folder = sweeps / "runs" / "s"
    keys = sweep.plan([("01_small", {"size": n, "names": ["x"]}) for n in (1, 2, 3)], folder)
    for key, value in zip(keys, ("text", 1, [1, 2]), strict=True):
        (folder / key).mkdir()
        record = {"seconds": 1, "results": {"value": value}}
        (folder / key / "record.json").write_text(json.dumps(record))
    sweep.gather(folder)
    assert pd.read_parquet(folder / "results.parquet")["value"].tolist() == ["text", "1", "[1, 2]"]
    assert pd.read_csv(folder / "results.csv")["param.names"].tolist() == ['["x"]'] * 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("runs: [", "cannot be read"),
        ("runs: []", "must hold one list, runs"),
        ("[1]", "must hold one list, runs"),
        ("runs: [{parameters: {size: 1}}]", "entry 1: chapter, parameters and grid"),
        ("runs: [{chapter: '01', seeds: [1]}]", "entry 1: chapter, parameters and grid"),
        ("runs: [{chapter: '02'}]", "no chapter '02'"),
        ("runs: [{chapter: '01', parameters: {sise: 1}}]", "no parameter sise"),
        ("runs: [{chapter: '01', grid: {size: [1, two]}}]", "size must be of type int"),
        ("runs: [{chapter: '01', grid: {size: 3}}]", "size in grid must be a list"),
    ],
)
def test_wrong_files_are_refused_before_anything_runs(sweeps, content, message):
    file = sweeps / "many.yaml"
    file.write_text(content)
    with pytest.raises(ChapterError, match=message):
        sweep.read_sweep(file)


def test_paths_of_data_are_relative_to_the_file(sweeps):
    (sweeps / "w.pth").touch()
    given = {"dataset": "folder:../x", "name": "a:b", "n": 1, "weights": "w.pth"}
    given |= {"pool": "images:../x@8", "pools": ["folder:.@8"]}
    found = chapters.located(given, sweeps)
    absolute = {"dataset": f"folder:{sweeps.parent / 'x'}", "weights": str(sweeps / "w.pth")}
    absolute |= {"pool": f"images:{sweeps.parent / 'x'}@8", "pools": [f"folder:{sweeps}@8"]}
    assert found == given | absolute
    assert chapters.located({"weights": "DEFAULT"}, sweeps) == {"weights": "DEFAULT"}


def test_snakemakes_own_arguments_reach_it_unchanged(sweeps, monkeypatch):
    commands = []
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command) or done)
    given = [
        ["--executor", "slurm", "--jobs", "5"],
        ["--profile=here"],
        ["-j4"],
        ["--retries", "2"],
    ]
    for arguments in given:
        assert sweep.run_all(sweeps, arguments) == 0
    assert [command[-len(a) :] for command, a in zip(commands, given, strict=True)] == given
    assert ["--cores" in command for command in commands] == [False, False, False, True]


SUBMIT = """#!/bin/sh
nohup sh "$1" > "$1.log" 2>&1 &
echo $!
"""


def test_a_cluster_by_an_executor_plugin(sweeps):
    """Jobs are handed to a command that only starts them, as sbatch or qsub do."""
    pytest.importorskip(
        "snakemake_executor_plugin_cluster_generic",
        reason="snakemake-executor-plugin-cluster-generic is not installed",
    )
    if " " in sys.executable:
        pytest.skip(f"Snakemake's job scripts do not quote Python's path, {sys.executable}")
    submit = sweeps.parent / "submit"
    submit.write_text(SUBMIT)
    submit.chmod(0o755)
    runs = [{"chapter": "01", "grid": {"size": [2, 4, 11]}}]
    arguments = ["--executor", "cluster-generic", "--jobs", "3", "--seconds-between-status-checks"]
    arguments += ["1", "--cluster-generic-submit-cmd", str(submit)]
    status, output = finish(sweeps, runs, *arguments)
    assert status == 1, output
    assert output.count("with external jobid") == 3
    assert "3 runs: 2 done, 1 not" in output
    assert "01_small (size=11): ChapterError: 01_small failed: AssertionError" in output
    table = pd.read_csv(sweeps / "runs" / "many" / "results.csv")
    assert sorted(table["area"]) == [4, 16]
