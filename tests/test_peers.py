"""Other people's code beside ours: what is read from checkouts, and what is shown of it."""

import pandas as pd
import pytest
import torch

import gleak
from gleak.study import chapters, recorded
from gleak.study.displays import peers_labels as display
from gleak.study.experiments import peers_labels
from gleak.study.experiments.checkouts import load


def test_modules_of_one_name_stay_apart(tmp_path):
    for checkout in ("one", "other"):
        (tmp_path / checkout).mkdir()
        (tmp_path / checkout / "utils.py").write_text(f"whose = {checkout!r}\n")
        (tmp_path / checkout / "methods.py").write_text("from utils import whose\n")
    found = [load(tmp_path / checkout, "methods").whose for checkout in ("one", "other")]
    assert found == ["one", "other"]
    with pytest.raises(ModuleNotFoundError):
        load(tmp_path / "absent", "methods")


def test_labels_are_dealt_out_evenly_or_skewed():
    pool, aux = peers_labels.pool_of("cifar100-samples")
    assert aux is None
    even = peers_labels.drawn(pool, 64, "even", 3).label_counts
    present = pool.labels.unique()
    assert set(even[present].tolist()) == {3, 4} and even.sum() == 64
    skewed = peers_labels.drawn(pool, 64, "skewed", 3).label_counts
    assert skewed.max() > 10 and (skewed[present] == 0).any()


def test_one_update_by_authors_and_by_us(monkeypatch):
    """Theirs hands back one label too many, which counts as wrong, and ours is exact."""

    def one_more(case):
        counts = gleak.restore_labels(case.update, "ebi")
        counts[counts.argmin()] += 1
        return counts

    monkeypatch.setattr(peers_labels, "AUTHORS", {"ebi": one_more})
    network = {"network": "lenet", "stage": "untrained", "dataset": "cifar100-samples"}
    client = {"update": "gradient", "K": 8, "labels": "even", "seed": 0}
    rows = peers_labels.compared(**network, **client, folder=".")
    found = {row["rule"]: row for row in rows}
    assert list(found) == ["zlg", "gleak", "ebi"]
    assert found["gleak"]["authors"] is None and found["gleak"]["ours"] == 1
    row = found["ebi"]
    assert row["ours"] == 1 and row["returned"] == 1.125
    assert row["authors"] == row["agree"] == round(8 / 9, 4) and row["mended"] is None


def test_counts_that_need_not_sum_to_k():
    two, none = torch.tensor([1, 1]), torch.tensor([0, 0])
    assert peers_labels.alike(two, two) == peers_labels.alike(none, none) == 1
    assert peers_labels.alike(two, none) == 0


def peers(agree=1.0, mended=1.0, ours=0.9):
    """One update of each stage, with a row for each rule."""
    update = {"network": "lenet", "dataset": "a", "update": "gradient", "K": 8, "labels": "even"}
    rows = []
    for stage in ("untrained", "trained"):
        for rule in (*display.SAME, *display.ALIKE):
            scores = {"authors": 0.7, "ours": ours, "agree": agree, "mended": mended, "returned": 1}
            rows.append({**update, "seed": 0, "stage": stage, "rule": rule, **scores})
        for rule, share in (("zlg", 0.8), ("gleak", 0.95)):
            rows.append({**update, "seed": 0, "stage": stage, "rule": rule, "ours": share})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [({}, []), ({"agree": 0.99}, [0]), ({"mended": 0.9}, [1]), ({"ours": 1}, [2])],
)
def test_claims_on_the_authors_code_can_fail(change, wrong):
    claims = list(display.claims_peers(peers(**change)).values())
    assert [i for i, holds in enumerate(claims) if not holds] == wrong


def test_rules_side_by_side():
    table = display.side_by_side(peers())
    assert len(table) == 14
    row = table.loc[("rlu", "trained")]
    assert row["updates"] == 1 and row["authors' code"] == 0.7 and row["the study's rule"] == 0.95


def test_sme_of_its_authors_and_ours_end_alike():
    stored = recorded.read(chapters.root() / "book" / "results" / "06_peers_sme.csv")
    psnr = stored.pivot_table("psnr", "model", "attack")
    assert (
        psnr["sme-authors"] - psnr["sme-here"]
    ).abs().max() < 1  # as the page of other tools says
    assert set(stored.iterations[stored.attack != "gleak"]) == {1000}
