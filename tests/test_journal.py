"""A search that was cut short goes on to the same images, by every optimiser."""

from dataclasses import replace

import pytest
import torch

import gleak
from gleak.inversion import journal, search
from gleak.inversion.presets import PAPERS


class Cut(Exception):
    """As if the process had been killed."""


ATTACKS = {
    "adam": replace(PAPERS["inverting-gradients"], noise=0.1, restarts=2),
    "lbfgs": replace(PAPERS["dlg"], evaluations=30, restarts=2, joint_labels=False),
    "stages": replace(PAPERS["general"], then=replace(PAPERS["general"], resolution=1.0)),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("part", [0.3, 0.7])
def test_what_was_cut_short_goes_on_to_the_same_images(
    name, part, tiny, two_layers, tmp_path, monkeypatch
):
    update = gleak.fedsgd(two_layers, tiny)
    counts, attack = tiny.label_counts, ATTACKS[name].override(iterations=20)
    whole = gleak.invert(update, counts, attack, progress=False)
    monkeypatch.setattr(journal, "SECONDS", 0.0)
    monkeypatch.setattr(journal, "SHARE", 0.0)
    evaluate, calls = search.Search.evaluate, []

    def counted(self, *arguments):
        calls.append(1)
        if limit and len(calls) > limit:
            raise Cut
        return evaluate(self, *arguments)

    monkeypatch.setattr(search.Search, "evaluate", counted)
    limit = int(part * len(whole.history))
    with pytest.raises(Cut), journal.keeping(tmp_path, "key"):
        gleak.invert(update, counts, attack, progress=False)
    assert journal.begun(tmp_path, "key") and not journal.begun(tmp_path, "another")
    limit = 0
    with journal.keeping(tmp_path, "key"):
        again = gleak.invert(update, counts, attack, progress=False)
    assert torch.equal(again.images, whole.images)
    assert again.history.equals(whole.history)
    assert len(calls) < 2 * len(whole.history)
    calls.clear()
    with journal.keeping(tmp_path, "key"):  # what has ended is not done again
        assert torch.equal(
            gleak.invert(update, counts, attack, progress=False).images, whole.images
        )
    assert not calls
    journal.forget(tmp_path)
    assert not tmp_path.exists()


def test_a_search_of_another_attack_or_a_damaged_file_is_not_taken(tiny, two_layers, tmp_path):
    update, counts = gleak.fedsgd(two_layers, tiny), tiny.label_counts
    with journal.keeping(tmp_path, "one"):
        first = gleak.invert(update, counts, iterations=5, seed=1, progress=False)
    with journal.keeping(tmp_path, "two"):
        second = gleak.invert(update, counts, iterations=5, seed=2, progress=False)
    assert not torch.equal(first.images, second.images)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"PK\x03\x04 half a file")
    with journal.keeping(tmp_path, "two"):
        again = gleak.invert(update, counts, iterations=5, seed=2, progress=False)
    assert torch.equal(again.images, second.images)


def test_nothing_is_written_without_a_journal(tiny, two_layers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(journal, "SECONDS", 0.0)
    gleak.invert(gleak.fedsgd(two_layers, tiny), tiny.label_counts, iterations=3, progress=False)
    assert not list(tmp_path.iterdir())
