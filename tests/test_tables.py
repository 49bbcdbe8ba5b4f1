"""Small tables and claims as the book shows them, and the words in them."""

import pandas as pd
import pytest
from bs4 import BeautifulSoup

import gleak
from gleak.study import book
from gleak.study.tables import rendered
from gleak.study.words import ATTACKS, PROCEDURES, RULES, name, readable


@pytest.fixture
def shown(monkeypatch):
    """What was displayed, as dicts of mime types."""
    found = []
    monkeypatch.setattr(book, "display", lambda data, raw: found.append(data))
    return found


def plain(frame, **options):
    usual = {"best": {}, "best_of_row": None, "digits": 1, "kind": None}
    page, text = rendered(frame, **usual | options)
    return BeautifulSoup(page, "html.parser"), text


def test_a_name_has_its_kind():
    assert name("gleak", "rule") == "the study's rule"
    assert name("gleak", "attack") == "the study's attack"
    assert name("zlg-bias, end", "rule") == "the paper's rule, bias only, softmax at the end"
    assert name("my own", "rule") == "my own"
    with pytest.raises(ValueError, match="a kind is one of rule"):
        name("gleak", "book")


def test_every_method_of_the_package_has_words():
    assert set(gleak.list_label_methods(aux=True)) <= set(RULES)
    assert set(gleak.list_attacks()) <= set(ATTACKS)
    assert set(gleak.list_update_models()) < set(PROCEDURES)


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ("zlg", "the study's rule"),
        ("general", "the study's attack"),
        ("sme", "the study's procedure"),
    ],
)
def test_company_tells_the_kind(beside, words):
    assert words in readable(pd.DataFrame(columns=["gleak", beside]))
    assert words in readable(pd.DataFrame({"attack": ["gleak", beside]}))["attack"].tolist()


def test_where_nothing_tells_it_has_to_be_said():
    alone = pd.DataFrame({"psnr": [20.0]}, index=["gleak"])
    with pytest.raises(ValueError, match="say of which kind gleak"):
        readable(alone)
    assert readable(alone, "attack").index.tolist() == ["the study's attack"]
    with pytest.raises(ValueError, match="a kind of methods"):
        readable(alone, "network")


def test_readable_twice_is_once_and_the_frame_stays():
    frame = pd.DataFrame({"network": ["lenet"], "thumb8": [20.0], "exact": [1.0], "zlg": [1.0]})
    once = readable(frame)
    assert once.columns.tolist() == ["network", "8×8 thumbnail (dB)", "exact", "the paper's rule"]
    assert once.iloc[0, 0] == "LeNet"
    assert readable(once).equals(once)
    assert frame.columns[1] == "thumb8"


def test_a_table_marks_the_best_and_gives_units():
    frame = pd.DataFrame(
        {"attack": ["general", "gleak", "dlg"], "psnr": [20.04, 30.06, None], "seconds": [5, 7, 5]}
    )
    page, text = plain(frame, best={"psnr": "max", "time (s)": "min"})
    assert [cell.text for cell in page.thead.find_all("th")] == ["attack", "PSNR (dB)", "time (s)"]
    assert [cell.text for cell in page.find_all("strong")] == ["5", "30.1", "5"]
    assert [cell.text for cell in page.tbody.find_all("th")][0] == "the paper's attack"
    assert "30.1*" in text
    assert "–" in text


def test_a_table_of_levels():
    index = pd.MultiIndex.from_product(
        [["convnet", "lenet"], [0.001, 0.1]], names=["network", "lr"]
    )
    columns = pd.MultiIndex.from_product([["general", "gleak"], ["mean", "std"]])
    frame = pd.DataFrame([[1.0, 2.0, 3.0, 4.0]] * 4, index=index, columns=columns)
    page, _ = plain(frame, digits=0, best_of_row="max")
    first, last = page.thead.find_all("tr")
    assert [cell.get("colspan") for cell in first.find_all("th")] == ["2", "2"]
    assert [cell.text for cell in last.find_all("th")][:2] == ["network", "learning rate"]
    assert [len(row.find_all("th")) for row in page.tbody.find_all("tr")] == [2, 1, 2, 1]
    assert page.tbody.th["rowspan"] == "2"
    assert [cell.text for cell in page.find_all("strong")] == ["4"] * 4


def test_wrong_wishes_for_a_table():
    frame = pd.DataFrame({"psnr": [1.0]})
    with pytest.raises(ValueError, match="no column 'ssim'; there are psnr"):
        plain(frame, best={"ssim": "max"})
    with pytest.raises(ValueError, match='a "max" or a "min"; got \'most\''):
        plain(frame, best_of_row="most")


def test_claims_are_badges_that_colour_does_not_tell_apart(shown):
    book.claims({"it leaks <here>": True, "it does not": False, "best": "tv"})
    (data,) = shown
    assert data["text/plain"] == "it leaks <here>: True\nit does not: False\nbest: tv"
    badges = BeautifulSoup(data["text/html"], "html.parser").find_all("li")
    assert [badge.get_text() for badge in badges] == [
        "✓ it leaks <here>: holds",
        "✗ it does not: does not hold",
        "best: tv",
    ]


def test_no_claims_show_nothing(shown):
    book.claims({})
    assert shown == []


def test_table_is_displayed_with_its_text(shown):
    book.table(pd.DataFrame({"psnr": [1.0, 2.0]}), best={"psnr": "max"})
    assert set(shown[0]) == {"text/html", "text/plain"}
