"""The audit of one's own training: a client's rounds, played and attacked; a page and a JSON file.

A `Plan` says what is asked, `run` attacks it case by case and loses none that is finished, and
`write` leaves the report. Nothing here needs a notebook, a kernel or a checkout.

`report.json` holds, with `schema` = 1:

gleak, made_with   the version, and those of what it stands on
asked              the plan: data (of a path the last folder alone), network, training, effort
overlap            whether batches share images, as the data have too few
settings           one entry for each way of training and each defence:
  name, kind       "training" (the first is the one that was asked for) or "defence"
  kept             of a defence: the cosine to the plain update, the mean over batches
  answers          labels, images, pixels -> verdict ("leaks", "not found", "cannot leak"), attacked
                   (false: nothing is known), because, stronger
  labels           rule, right, of, low, high (95 % interval of the share), chance; null where no
                   rule could read them
  images           better_than_4x4, better_than_8x8, exact, of, low, high, and psnr: mean, low,
                   high, best (dB); null where they were not attacked
  known            sentences on what is known without any picture
  tried            for each search its iterations and starts, for how many images it came nearest,
                   its way, and what it fell back from
  seconds          of all attacks on it
fails              labels, images -> whether the training that was asked for leaks them or could not
                   be attacked, which is what `--fail-on` looks at
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import bootstrap
from torch import nn

import gleak
from gleak import risk
from gleak.answers import EXACT, SURE, Answer, Share, answered, best_rule, known_words, text
from gleak.data import Batch
from gleak.datasets import open_source
from gleak.defended import DEFENCES, UNDEFENDED, kept
from gleak.folders import folder_name
from gleak.provenance import digest_of, provenance
from gleak.storage import whole
from gleak.study import page
from gleak.study.runner import product, run_grid
from gleak.update import Update

SCHEMA = 1
YOURS = "your training"
SETTINGS = (YOURS, "one step on all images", "5 times the epochs")


@dataclass(frozen=True)
class Effort:
    """How much is attacked. minutes: of one core, for four CIFAR images on the ConvNet."""

    batches: int
    iterations: int
    starts: int
    minutes: float


EFFORTS = {
    "quick": Effort(batches=2, iterations=100, starts=1, minutes=2),
    "usual": Effort(batches=4, iterations=400, starts=1, minutes=14),
    "long": Effort(batches=8, iterations=1500, starts=2, minutes=190),
}


@dataclass(frozen=True)
class Plan:
    """What is asked. The words are those of `load_batch`, `build_model` and `fedavg`.

    indices: the images of the first batch; the others are drawn. size: images of a client.
    settings, defences: names, of SETTINGS and `risk.DEFENCES`; your training is always there.

    Raises ValueError for numbers out of range and unknown names.
    """

    dataset: str
    indices: Sequence[int] = ()
    size: int = 4
    image_size: int = 0
    channels: int = 0
    model: str = "convnet"
    weights: str = ""
    epochs: int = 1
    batch_size: int = 0
    lr: float = 0.01
    training: bool = True
    seed: int = 1
    batches: int = EFFORTS["quick"].batches
    iterations: int = EFFORTS["quick"].iterations
    starts: int = 1
    settings: Sequence[str] = SETTINGS
    defences: Sequence[str] = tuple(DEFENCES)

    def __post_init__(self) -> None:
        for name in ("size", "epochs", "batches", "iterations", "starts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.batch_size < 0 or not 0 < self.lr < math.inf:
            raise ValueError(
                f"needs batch_size >= 0 (0: all) and lr > 0; got {self.batch_size} and {self.lr}"
            )
        for names, known in ((self.settings, SETTINGS), (self.defences, tuple(DEFENCES))):
            unknown = [name for name in names if name not in known]
            if unknown:
                raise ValueError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        if self.indices:
            object.__setattr__(self, "size", len(self.indices))

    @property
    def all_settings(self) -> list[str]:
        """Ways of training, yours first, then defences."""
        return list(dict.fromkeys([YOURS, *self.settings, *self.defences]))

    @property
    def options(self) -> dict[str, Any]:
        """What decides a case, besides its batch and setting, as plain values."""
        chosen = asdict(self)
        for name in ("batches", "settings", "defences"):
            del chosen[name]
        return chosen | {"indices": list(self.indices), "stamp": stamp(self)}

    def draws(self) -> tuple[list[list[int]], bool]:
        """The indices of each batch, and whether batches had to share images.

        No image is drawn twice while they last. Raises ValueError for a size that cannot be met.
        """
        count = len(open_source(self.dataset).labels)
        if self.size > count:
            raise ValueError(f"{self.dataset} has {count} images; a batch needs {self.size}")
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(count, generator=generator).tolist()
        first = list(self.indices)
        order = first + [index for index in order if index not in set(first)]
        drawn = [order[i * self.size : (i + 1) * self.size] for i in range(self.batches)]
        overlap = any(len(indices) < self.size for indices in drawn)
        for number, indices in enumerate(drawn):
            if len(indices) < self.size:
                again = torch.randperm(count, generator=generator).tolist()
                drawn[number] = again[: self.size]
        return drawn, overlap

    def batch(self, number: int) -> Batch:
        """The images of one client."""
        indices = self.draws()[0][number]
        return gleak.load_batch(
            self.dataset,
            indices,
            image_size=self.image_size or None,
            channels=self.channels or None,
        )

    def network(self, batch: Batch, number: int) -> nn.Module:
        """The network that the server sends; new weights for each batch, unless some are named."""
        return gleak.build_model(
            self.model, batch, seed=self.seed + number, weights=self.weights or None
        )

    def update(self, setting: str, batch: Batch, number: int) -> Update:
        """What a client sends that trains in this way (or, with a defence, before it)."""
        net = self.network(batch, number)
        if setting == "one step on all images":
            return gleak.fedsgd(net, batch, training=self.training)
        return gleak.fedavg(
            net,
            batch,
            epochs=self.epochs * (5 if setting == "5 times the epochs" else 1),
            batch_size=self.batch_size or None,
            lr=self.lr,
            shuffle_seed=self.seed + number,
            training=self.training,
            buffers=True,  # as state dicts have them
        )


def stamp(plan: Plan) -> str:
    """What tells the files that a plan names from what they were before: weights, and a module."""
    files = [plan.weights] if plan.weights else []
    kind, _, rest = plan.model.partition(":")
    if kind == "module":
        found = find_spec(rest.partition(":")[0])
        files += [found.origin] if found and found.origin else []
    contents = [Path(file).read_bytes().hex() for file in files if Path(file).is_file()]
    return digest_of(contents) if contents else ""


def case(setting: str, batch: int, *, stamp: str = "", **options: Any) -> list[dict]:
    """The attacks on one update: a plain row for each image, see `risk.rows_of`.

    options: as of a Plan; stamp: tells files from what they were before.
    """
    plan = Plan(**options, batches=batch + 1)  # the same images, however many batches there are
    truth = plan.batch(batch)
    seed = plan.seed + batch
    effort: dict[str, Any] = {
        "iterations": plan.iterations,
        "starts": plan.starts,
        "seed": seed,
    }
    if setting in SETTINGS:
        update = plan.update(setting, truth, batch)
        leak, left = risk.assess(update, truth, **effort), math.nan
    else:
        defence, plain = DEFENCES[setting], plan.update(YOURS, truth, batch)
        sent = defence.change(plain, seed)
        left = kept(sent, plain)
        leak = risk.assess(
            sent,
            truth,
            searches=defence.searches,
            cannot=defence.cannot(sent),
            **effort,
        )
    rows = risk.rows_of(leak)
    for index, row in enumerate(rows):
        found = leak.images.get(row["search"])
        shown = found.images[row["match"]] if found else None
        row |= {"kept": left, "image": index}
        row["picture"] = "" if shown is None else page.png(shown)[0]
        row["class read"] = "" if found is None else int(found.labels[row["match"]])
    return rows


@dataclass(frozen=True, eq=False)
class Report:
    """What was asked and what was found. rows: one for each image in each setting and batch."""

    plan: Plan
    rows: pd.DataFrame
    batches: Sequence[Batch]
    overlap: bool
    about: str

    def of(self, setting: str) -> pd.DataFrame:
        """The rows of one setting."""
        return self.rows[self.rows["setting"] == setting]

    @cached_property
    def answers(self) -> dict[str, dict[str, Answer]]:
        """Setting -> subject -> answer."""
        return {name: answered(self.of(name)) for name in self.plan.all_settings}

    @property
    def kept(self) -> dict[str, float]:
        """Defence -> how much of the update's direction is left, the mean over batches."""
        return {name: self.of(name)["kept"].mean() for name in self.plan.defences}

    def fails(self, subject: str) -> bool:
        """Whether the training that was asked for leaks labels or images, or was not attacked."""
        return self.answers[YOURS][subject].fails


def run(plan: Plan, folder: Path | None = None) -> Report:
    """Attack all that the plan asks for. Finished cases are kept in the folder and not done again.

    Raises ValueError, FileNotFoundError or ModuleNotFoundError before anything is attacked, for
    data, a network or training that do not fit together.
    """
    empty = report_of(plan, pd.DataFrame())  # what cannot work ends here, and not after hours
    cases = product(batch=range(plan.batches), setting=plan.all_settings)
    rows = run_grid(case, cases, common=plan.options, label="attacks", folder=folder)
    return replace(empty, rows=rows)


def report_of(plan: Plan, rows: pd.DataFrame) -> Report:
    """The report on rows that were found before; raises what `run` raises."""
    _, overlap = plan.draws()
    batches = [plan.batch(number) for number in range(plan.batches)]
    first = plan.update(YOURS, batches[0], 0)
    about = (
        f"{batches[0]}\nnetwork: {plan.model}{' with trained weights' if plan.weights else ''}"
        f"\n\n{first}"
    )
    return Report(plan, rows, batches, overlap, about)


# -- numbers --------------------------------------------------------------------------------------


def mean_psnr(rows: pd.DataFrame, seed: int = 0) -> dict[str, float]:
    """Mean PSNR with its 95 % interval, by the bootstrap over images, and the best; in dB."""
    values = rows["psnr"].dropna().to_numpy()
    if not len(values):
        return {}
    low = high = values.mean()
    if len(values) > 1 and values.std() > 0:
        found = bootstrap((values,), np.mean, confidence_level=SURE, method="percentile", rng=seed)
        low, high = found.confidence_interval
    return {
        "mean": float(values.mean()),
        "low": float(low),
        "high": float(high),
        "best": float(values.max()),
    }


def numbers(rows: pd.DataFrame) -> dict[str, Any]:
    """The figures of one setting, as `report.json` has them."""
    labels: dict[str, Any] | None = None
    try:
        rule, share = best_rule(rows)
    except KeyError:
        pass
    else:
        low, high = share.interval
        labels = {"rule": rule, "right": share.found, "of": share.of, "low": low, "high": high}
        labels["chance"] = float(rows["chance"].mean())
    seen, images = rows[rows["psnr"].notna()], None
    if len(seen):
        share = Share(int((seen["grade"] > 0).sum()), len(seen))
        low, high = share.interval
        images = {
            "better_than_4x4": share.found,
            "better_than_8x8": int((seen["grade"] == 2).sum()),
            "exact": int((seen["psnr"] >= EXACT).sum()),
            "of": share.of,
            "low": low,
            "high": high,
            "psnr": mean_psnr(seen),
        }
    return {"labels": labels, "images": images}


def tried(setting: str, rows: pd.DataFrame, plan: Plan) -> list[dict[str, Any]]:
    """What was run on a setting: which way it went, what it fell back from, how often it won."""
    searches = UNDEFENDED if setting in SETTINGS else DEFENCES[setting].searches
    won = rows["search"].str.partition(", start ")[0]
    return [
        {
            "search": name,
            "attack": search["attack"]
            if isinstance(search["attack"], str)
            else "gradient matching",
            "iterations": plan.iterations,
            "starts": plan.starts,
            "best_for": int((won == name).sum()),
            "way": text(rows, f"way {name}"),
            "fell_back": text(rows, f"fell back {name}"),
        }
        for name, search in searches.items()
    ]


def as_json(report: Report) -> dict[str, Any]:
    """The report for machines; the schema stands at the top of this module."""
    plan, answers, left = report.plan, report.answers, report.kept
    settings = []
    for name in plan.all_settings:
        rows = report.of(name)
        settings.append(
            {
                "name": name,
                "kind": "training" if name in SETTINGS else "defence",
                "kept": left.get(name),
                "answers": {subject: asdict(answer) for subject, answer in answers[name].items()},
                **numbers(rows),
                "known": known_words(rows, report.batches[0].num_classes),
                "tried": tried(name, rows, plan),
                "seconds": round(float(rows.groupby("batch")["seconds"].first().sum()), 1),
            }
        )
    asked = asdict(plan) | {"dataset": report.batches[0].dataset, "indices": list(plan.indices)}
    if plan.weights:
        asked["weights"] = Path(plan.weights).name
    return {
        "schema": SCHEMA,
        "gleak": gleak.__version__,
        "made_with": provenance(),
        "asked": asked,
        "overlap": report.overlap,
        "settings": settings,
        "fails": {subject: report.fails(subject) for subject in ("labels", "images")},
    }


def write(report: Report, folder: Path) -> Path:
    """Leave `index.html` and `report.json` in the folder; the page."""
    from gleak.study.displays import your_data  # draws, so it is late

    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / "report.json") as partial:
        # NaN is no JSON
        content = json.loads(json.dumps(as_json(report)), parse_constant=lambda _: None)
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return page.write(
        folder / "index.html",
        "What your training would leak",
        *your_data.parts(report),
        footer=your_data.footer(),
    )


def summary(report: Report) -> list[str]:
    """The answers on the training that was asked for, a line each."""
    from gleak.study.displays import your_data

    return your_data.conclusions(report)


def plan_of(effort: str, options: Mapping[str, Any]) -> Plan:
    """The plan that the command line asks for: an effort by name, and what was said besides."""
    chosen = EFFORTS[effort]
    given = {name: value for name, value in options.items() if value is not None}
    plan = Plan(
        **{"batches": chosen.batches, "iterations": chosen.iterations, "starts": chosen.starts}
        | given
    )
    named = folder_name(plan.dataset)
    if named is not None:
        plan = replace(plan, dataset=str(named._replace(path=named.path.resolve())))
    return plan
