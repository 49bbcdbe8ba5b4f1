"""`gleak attack`: from a server's files to labels, images and a report, without the truth."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

import gleak
from gleak.inversion import journal, search
from gleak.study import attack as attacks
from gleak.study import attack_report, cli
from gleak.study.served import normalisation, read_update

SHAPE = (3, 32, 32)
FACTS = {"lr": 0.01, "epochs": 1, "batch_size": 4}
TOLD = ["--lr", 0.01, "--epochs", 1, "--batch-size", 4]


@pytest.fixture
def net(batch):
    return gleak.build_model("lenet", batch, seed=1)


@pytest.fixture
def files(net, batch, tmp_path):
    """What a server has of a round, in all the formats."""
    update, gradient = gleak.fedavg(net, batch, lr=0.01), gleak.fedsgd(net, batch)
    before, after = net.state_dict(), {**net.state_dict(), **update.weights_after}
    save_file(before, tmp_path / "before.safetensors")
    torch.save({f"_orig_mod.{n}": value for n, value in before.items()}, tmp_path / "before.pt")
    torch.save({"state_dict": {f"module.{n}": v for n, v in after.items()}}, tmp_path / "after.pt")
    np.savez(tmp_path / "after.npz", *[value.numpy() for value in after.values()])
    inner = {name.removeprefix("1."): v for name, v in after.items() if name.startswith("1.")}
    np.savez(tmp_path / "inner.npz", *[value.numpy() for value in inner.values()])
    save_file({f"_module.{n}": v for n, v in inner.items()}, tmp_path / "after.safetensors")
    np.savez(tmp_path / "gradient.npz", **{n: g.numpy() for n, g in gradient.gradient.items()})
    change = {name: after[name] - before[name] for name in update.weights_after}
    save_file(change, tmp_path / "change.safetensors")
    update.save(tmp_path / "update.safetensors")
    kept = tmp_path / "kept" / "round-1"
    kept.mkdir(parents=True)
    save_file(before, kept / "sent.safetensors")
    save_file(after, kept / "client-7-4.safetensors")
    (kept / "told.json").write_text(json.dumps(FACTS))
    return tmp_path


def run(folder, *arguments):
    command = ["attack", "--model", "lenet", "--shape", "3x32x32", "--out", folder / "out"]
    result = CliRunner().invoke(cli.main, [str(part) for part in (*command, *arguments)])
    return result, folder / "out"


def counts_in(out):
    rows = json.loads((out / "report.json").read_text())["labels"]["counts"]
    return {row["class"]: row["count"] for row in rows if row["count"]}


SOURCES = {
    "prefixed": ["--before", "before.pt", "--after", "after.pt", *TOLD],
    "numbered": ["--before", "before.safetensors", "--after", "after.npz", *TOLD],
    "numbered, without normalisation": ["--before", "before.pt", "--after", "inner.npz", *TOLD],
    "without normalisation": ["--before", "before.pt", "--after", "after.safetensors", *TOLD],
    "a gradient": ["--before", "before.safetensors", "--gradient", "gradient.npz"],
    "a difference": ["--before", "before.pt", "--after", "change.safetensors", "--delta", *TOLD],
    "saved": ["--update", "update.safetensors"],
    "a message": ["--before", "before.safetensors", "--after", "message.pb", *TOLD],
    "kept": ["--flower", "kept"],
}


@pytest.mark.parametrize("source", SOURCES)
def test_labels_of_every_kind_of_file(source, files, net, batch):
    if source == "a message":
        write_message(files / "message.pb", gleak.fedavg(net, batch, lr=0.01))
    named = [files / part if (files / str(part)).exists() else part for part in SOURCES[source]]
    result, out = run(files, *named, "--labels-only")
    assert result.exit_code == 0, result.output
    assert counts_in(out) == {0: 1, 3: 1, 6: 1, 8: 1}
    known = json.loads((out / "report.json").read_text())["about"]
    assert known["samples"] == 4
    assert (known["samples_known"] == "told") == (source in ("saved", "a message", "kept"))


def write_message(path, update):
    from flwr.app import ArrayRecord, MetricRecord, RecordDict
    from flwr.common.serde import recorddict_to_proto
    from flwr.proto.message_pb2 import Message

    arrays = ArrayRecord(dict(update.weights_after))
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 4})})
    path.write_bytes(Message(content=recorddict_to_proto(content)).SerializeToString())


def test_images_a_page_and_json(files):
    names = ["<img src=x onerror=alert(1)>", "../../x", *(f"class {n}" for n in range(8))]
    (files / "names.txt").write_text("\n".join(names))
    weights = ["--before", files / "before.pt", "--after", files / "after.pt", *TOLD]
    result, out = run(files, *weights, "--class-names", files / "names.txt", "--iterations", 6)
    assert result.exit_code == 0, result.output
    facts = json.loads((out / "report.json").read_text())
    assert facts["labels"]["counts"][0]["name"] == names[0]
    assert facts["labels"]["certain"] == 4
    images = facts["images"]
    assert images["finished"] and images["way"] and images["not_attacked"] is None
    assert images["labels"] == [0, 3, 6, 8]
    assert images["gray"] > 0.1 and images["unexplained"] > 0
    for file in images["files"]:
        with Image.open(out / file) as opened:
            assert opened.size == (32, 32)
    soup = BeautifulSoup((out / "index.html").read_text(), "html.parser")
    shown = soup.find_all("img")
    assert len(shown) == 4 and all(image["src"].startswith("data:") for image in shown)
    assert names[0] in shown[0]["alt"]
    assert not soup.find("script") and "onerror" not in str(shown[1])
    assert sorted(path.name for path in files.iterdir() if path.is_dir()) == ["kept", "out"]
    assert {path.suffix for path in out.iterdir()} == {".png", ".json", ".html"}
    # a later report leaves none of the images of this one
    result, out = run(files, *weights, "--labels-only")
    assert result.exit_code == 0 and not list(out.glob("*.png"))


def test_the_status_that_ci_looks_at(files):
    sources = ["--update", files / "update.safetensors"]
    for fails, status in (([], 0), (["labels"], 1), (["images"], 1), (["labels", "images"], 1)):
        asked = [part for subject in fails for part in ("--fail-on", subject)]
        result, _ = run(files, *sources, "--labels-only", *asked)
        assert result.exit_code == status, result.output
        assert f"--fail-on: {', '.join(fails)}" in result.output or not fails
    report = attack_report.Report(None, {"images": {"verdict": "not found", "not_attacked": None}})
    assert not report.fails("images")
    report.facts["images"] = {"verdict": "cannot leak", "not_attacked": "zero"}
    assert not report.fails("images")


def test_all_that_the_json_holds_is_described(files):
    _, out = run(files, "--update", files / "update.safetensors", "--labels-only")
    facts = json.loads((out / "report.json").read_text())
    groups = [facts, *(value for value in facts.values() if isinstance(value, dict))]
    names = {name for group in groups for name in group} - set(facts["about"]["facts"])
    names |= {name for row in facts["labels"]["counts"] for name in row}
    missing = [name for name in names if name not in attack_report.__doc__]
    assert not missing


REFUSED = {
    "nothing": ([], "name one of weights after training"),
    "no file": (["--after", "nowhere.pt"], "does not exist"),
    "a shape": (["--shape", "32"], "'32' is not CxHxW"),
    "a loss": (["--gradient", "gradient.npz", "--loss", "label-smoothing"], "without smoothing"),
    "weights of classes": (["--gradient", "gradient.npz", "--loss", "class-weights"], "equal weig"),
    "Adam": (["--gradient", "gradient.npz", "--optimiser", "adam"], "do not show the size"),
    "a word": (["--gradient", "gradient.npz", "--loss", "hinge"], "known: mean, sum"),
    "a normalisation": (["--gradient", "gradient.npz", "--normalise", "x"], "such as 0.5/0.25"),
    "a difference": (["--before", "before.pt", "--after", "change.safetensors"], "delta=True"),
    "many epochs": (
        ["--before", "before.pt", "--after", "after.pt", "--lr", 0.01, "--epochs", 2],
        "how many samples it used has to be told",
    ),
    "another network": (["--model", "convnet", "--gradient", "gradient.npz"], "does not fit"),
    "a lr": (
        ["--before", "before.pt", "--after", "after.pt", *TOLD[2:], "--lr", 1e-4, "--samples", 4],
        "times as large as that of any mean cross-entropy",
    ),
    "a pickle": (["--gradient", "code.pt"], "can run code; refused"),
    "no message": (["--before", "before.pt", "--after", "no.pb"], "not a message of Flower"),
    "a client": (["--flower", "kept", "--client", "x"], "no client 'x'; known: client-7-4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_attacked_is_one_line_before_anything_is_written(case, files):
    torch.save({"0.bias": np.ones(3)}, files / "code.pt")
    (files / "no.pb").write_bytes(b"\x00\x01 no message")
    arguments, words = REFUSED[case]
    named = [files / part if (files / str(part)).exists() else part for part in arguments]
    result, out = run(files, *named)
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output and not out.exists()
    assert len([line for line in result.output.splitlines() if "Error" in line]) == 1


LOSSES = {
    "smoothing": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1),
    "weights of classes": lambda z, y: F.cross_entropy(z, y, weight=torch.linspace(0.3, 2, 10)),
    "squares": lambda z, y: F.mse_loss(z.softmax(1), F.one_hot(y, 10).float()),
    "each class for itself": lambda z, y: F.binary_cross_entropy_with_logits(
        z, F.one_hot(y, 10).float()
    ),
    "cross-entropy": F.cross_entropy,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_that_was_not_told_is_doubted(loss, net, batch, files):
    trained = copy.deepcopy(net)
    optimiser = torch.optim.SGD(trained.parameters(), lr=0.01)
    LOSSES[loss](trained(batch.images), batch.labels).backward()
    optimiser.step()
    torch.save(trained.state_dict(), files / "lost.pt")
    found = read_update(
        "lenet", SHAPE, before=files / "before.pt", after=files / "lost.pt", samples=4, **FACTS
    )
    assert ("fits the cross-entropy of one label each" in str(found.assumed)) == (
        loss != "cross-entropy"
    )


WRONG = {
    "K is too small": ({"samples": 3}, "sum of 4 single images, and those told are 3"),
    "K is too large": ({"samples": 8, "batch_size": 8}, "leave --samples out, or say 4"),
    "swapped": ({"before": "after.pt", "after": "before.pt"}, "swap --before and --after"),
    "the same": ({"after": "before.pt"}, "the weights after training are those before"),
    "no start": ({"before": None}, "say nothing without those before"),
    "K of two epochs": ({"epochs": 2}, r"\(--samples\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_an_update_itself_contradicts(case, files):
    change, words = WRONG[case]
    told = {**FACTS, "before": "before.pt", "after": "after.pt", **change}
    for name in ("before", "after"):
        told[name] = told[name] and files / told[name]
    with pytest.raises(ValueError, match=words):
        read_update("lenet", SHAPE, **told)


def test_what_was_not_told_is_asked_for(files):
    weights = {"before": files / "before.pt", "after": files / "after.pt"}
    found = read_update("lenet", SHAPE, **weights, samples=4)
    assert "say --lr, --epochs and --batch-size" in str(found.assumed)


def test_a_summed_loss_that_is_told(net, batch, files):
    F.cross_entropy(net(batch.images), batch.labels, reduction="sum").backward()
    save_file({name: p.grad for name, p in net.named_parameters()}, files / "sum.safetensors")
    sources = ["--before", files / "before.pt", "--gradient", files / "sum.safetensors"]
    result, out = run(files, *sources, "--samples", 4)
    assert result.exit_code == 2 and "sums the loss" in result.output
    result, out = run(files, *sources, "--loss", "sum", "--labels-only")
    assert result.exit_code == 0, result.output
    assert counts_in(out) == {0: 1, 3: 1, 6: 1, 8: 1}


def test_what_ends_the_search_takes_no_labels_with_it(net, batch, files, monkeypatch):
    served = read_update("lenet", SHAPE, saved=files / "update.safetensors")

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(attacks, "invert", stop)
    report = attacks.attack(served, files / "out", progress=False)
    assert report.images is None
    assert "interrupted" in report.facts["images"]["not_attacked"]

    def killed(*_):
        raise SystemExit

    monkeypatch.setattr(attacks, "find_images", killed)
    with pytest.raises(SystemExit):
        attacks.attack(served, files / "killed", progress=False)
    facts = json.loads((files / "killed" / "report.json").read_text())
    assert counts_in(files / "killed") == {0: 1, 3: 1, 6: 1, 8: 1}
    assert not facts["images"]["finished"]
    assert "Labels: leak" in (files / "killed" / "index.html").read_text()


def test_ctrl_c_in_the_search_keeps_the_best_images(files, monkeypatch):
    served = read_update("lenet", SHAPE, saved=files / "update.safetensors")
    invert = attacks.invert

    def cut_short(*arguments, **settings):
        return replace(invert(*arguments, **settings), finished=False)

    monkeypatch.setattr(attacks, "invert", cut_short)
    report = attacks.attack(served, files / "out", iterations=2, progress=False)
    assert len(list((files / "out").glob("*.png"))) == 4
    assert not report.facts["images"]["finished"]
    assert "cut short" in (files / "out" / "index.html").read_text()


def test_a_killed_search_goes_on_where_it_was(files, monkeypatch):
    weights = ["--before", files / "before.pt", "--after", files / "after.pt", *TOLD]
    asked = [*weights, "--iterations", 40, "--seed", 1]
    whole, out = run(files, *asked)
    images = [(out / name).read_bytes() for name in sorted(p.name for p in out.glob("*.png"))]
    monkeypatch.setattr(journal, "SECONDS", 0.0)
    monkeypatch.setattr(journal, "SHARE", 0.0)
    evaluate, calls = search.Search.evaluate, []

    def counted(self, *arguments):
        calls.append(1)
        if len(calls) == killed_at:
            raise SystemExit  # as a kill: nothing catches it
        return evaluate(self, *arguments)

    monkeypatch.setattr(search.Search, "evaluate", counted)
    killed_at = 25
    run(files, *asked)
    assert (out / "search").is_dir() and not list(out.glob("*.png"))
    killed_at = 0
    again, out = run(files, *asked)
    assert "goes on where it was interrupted" in again.output and again.exit_code == 0
    assert "goes on" not in whole.output
    assert [(out / p.name).read_bytes() for p in sorted(out.glob("*.png"))] == images
    assert not (out / "search").exists()
    facts = json.loads((out / "report.json").read_text())
    assert len(calls) - 25 < facts["images"]["iterations"]  # not from the beginning


def test_a_classifier_that_stays_at_home(net, batch, files):
    update = gleak.fedsgd(net, batch)
    body = {name: g for name, g in update.gradient.items() if not name.startswith("1.7")}
    save_file(body, files / "body.safetensors")
    sources = ["--before", files / "before.pt", "--gradient", files / "body.safetensors"]
    result, _ = run(files, *sources)
    assert result.exit_code == 2 and "has to be told" in result.output
    result, out = run(files, *sources, "--samples", 4, "--iterations", 2)
    assert result.exit_code == 0, result.output
    facts = json.loads((out / "report.json").read_text())
    assert "no gradient of the classifier" in facts["labels"]["not_attacked"]
    assert any("labels are guessed" in reason for reason in facts["images"]["fell_back"])
    assert facts["images"]["verdict"] == "not found" and len(facts["images"]["files"]) == 4


def test_an_update_of_nothing_and_evidence(net, batch, tmp_path):
    zero = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    save_file(zero, tmp_path / "zero.safetensors")
    served = read_update("lenet", SHAPE, gradient=tmp_path / "zero.safetensors", samples=2)
    assert "weights before training were not given" in str(served.assumed)
    report = attacks.attack(served, tmp_path / "out", progress=False)
    assert report.facts["images"]["verdict"] == "cannot leak"
    assert report.facts["labels"]["verdict"] == "cannot leak"
    assert not (report.fails("labels") or report.fails("images"))

    one = gleak.Batch(batch.images[:1], batch.labels[:1], batch.class_names)
    gray = torch.full_like(one.images, 0.5)
    update = gleak.fedsgd(net, one)
    assert attacks.unexplained(update, one.images, one.labels, 0) < 1e-3
    assert attacks.unexplained(update, gray, one.labels, 0) > 0.1
    weights = gleak.fedavg(net, one, epochs=2)
    assert attacks.unexplained(weights, one.images, one.labels, 0) < 1e-3
    matching = gleak.inversion.GradientMatching("none")
    found = gleak.inversion.Inversion(gray, one.labels, None, matching)
    assert attacks.evidence(found, 0.05, 0.5) == "gradient"
    assert attacks.evidence(found, 0.05, 0.06) is attacks.evidence(found, 0.2, 0.9) is None
    assert attacks.evidence(found, None, None) is None


def test_normalisations():
    assert normalisation("none", 1) == ([0.0], [1.0])
    assert normalisation("cifar10", 3)[0] == [0.4914, 0.4822, 0.4465]
    assert normalisation("mnist", 3)[1] == [0.3081] * 3
    assert normalisation("0.1,0.2,0.3/1", 3) == ([0.1, 0.2, 0.3], [1.0, 1.0, 1.0])
    for wrong in ("", "1", "0.5/0", "0.5,0.5/1", "a/b", "1/2/3", "nan/nan"):
        with pytest.raises(ValueError, match="means/deviations"):
            normalisation(wrong, 3)
