# One target for each run of a sweep; gleak/study/sweep.py wrote plan.json and starts this in its folder.
import json
from pathlib import Path

PLAN = json.loads(Path("plan.json").read_text())


rule all:
    input:
        [f"{key}/record.json" for key in PLAN["runs"]],


rule run:
    output:
        report("{key}/record.json", category="runs"),
    log:
        "{key}/log.txt",
    params:
        python=PLAN["python"],
    shell:
        "{params.python:q} -m gleak.study.sweep . {wildcards.key} > {log:q} 2>&1"
