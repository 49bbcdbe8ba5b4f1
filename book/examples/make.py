"""Make the reports that the book shows: `make examples`.

What the attacks found is kept here, in numbers and small pictures, and the pages are made from it:
new words need no new attack. `make.py --again` attacks anew, which takes a few minutes.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import save_file

import gleak
from gleak.study import attack, attack_report, audit
from gleak.study.served import Served, read_update

HERE = Path(__file__).parent
# gleak audit --dataset cifar10-samples --model lenet --batch-size 4 --effort quick
PLAN = audit.plan_of("quick", {"dataset": "cifar10-samples", "model": "lenet", "batch_size": 4})
IMAGES = [5, 10, 13, 16]  # of the client that is attacked without the truth
ITERATIONS = 600


def audited(again: bool = False) -> audit.Report:
    """The report of `gleak audit`; its rows are kept without pictures that no page shows."""
    file = HERE / "audit.rows.json"
    if again or not file.exists():
        rows = audit.run(PLAN).rows
        rows.loc[rows["setting"] != audit.YOURS, "picture"] = ""
        lines = [
            json.dumps({k: v for k, v in row.items() if v == v}) for row in rows.to_dict("records")
        ]
        file.write_text("[\n" + ",\n".join(lines) + "\n]\n", "utf-8")
    return audit.report_of(PLAN, pd.DataFrame(json.loads(file.read_text("utf-8"))))


def client(folder: Path) -> Served:
    """What a server has of a client that trained for an epoch, and nothing else."""
    batch = gleak.load_batch("cifar10-samples", indices=IMAGES)
    net = gleak.build_model("convnet", batch, seed=1)
    update = gleak.fedavg(net, batch, lr=0.01)
    save_file(net.state_dict(), folder / "sent.safetensors")
    save_file({**net.state_dict(), **update.weights_after}, folder / "client.safetensors")
    return read_update(
        "convnet",
        (3, 32, 32),
        before=folder / "sent.safetensors",
        after=folder / "client.safetensors",
        class_names=batch.class_names,
        lr=0.01,
        epochs=1,
        batch_size=4,
    )


def attacked(folder: Path, again: bool = False) -> attack_report.Report:
    """The report of `gleak attack` on it."""
    served, facts = client(folder), HERE / "attack.json"
    if again or not facts.exists():
        found = attack.attack(served, folder / "out", iterations=ITERATIONS, progress=False)
        assert found.images is not None
        attack_report.picture(torch.cat(list(found.images), dim=2)).save(HERE / "attack.png")
        facts.write_bytes((folder / "out" / "report.json").read_bytes())
    pixels = torch.from_numpy(np.array(Image.open(HERE / "attack.png"))).float() / 255
    images = torch.stack(pixels.permute(2, 0, 1).chunk(len(IMAGES), dim=2))
    return attack_report.Report(served, json.loads(facts.read_text("utf-8")), images)


def make(folder: Path, again: bool = False) -> None:
    """Leave audit.html, audit.json and attack.html in the folder."""
    with tempfile.TemporaryDirectory() as own:
        place = Path(own)
        audit.write(audited(again), place / "audit")
        report = attacked(place, again)
        attack_report.write_page(report, place)
        (place / "index.html").replace(folder / "attack.html")
        for name, kept in (("index.html", "audit.html"), ("report.json", "audit.json")):
            (place / "audit" / name).replace(folder / kept)


if __name__ == "__main__":
    make(HERE, again="--again" in sys.argv[1:])
