"""The appendix of chapter 02, how the authors' own code is shown beside ours."""

import pandas as pd

from gleak.study.book import glue_all
from gleak.study.words import name

SAME = ("ilrg", "llg", "llbg", "ebi")  # in all counts
ALIKE = ("llg-plus", "llg-star", "rlu")  # once one thing of theirs is changed
FREE = ("zlg", "gleak")  # compared with
UPDATE = ["network", "stage", "dataset", "update", "K", "labels", "seed"]
ENOUGH = 0.95  # of the counts, where both draw images of their own


def compared(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with code of authors, and what the paper's and the study's rule make of the same."""
    free = frame[frame.rule.isin(FREE)].pivot_table("ours", UPDATE, "rule")
    return frame.dropna(subset="authors").join(free, on=UPDATE)


def side_by_side(frame: pd.DataFrame) -> pd.DataFrame:
    """Labels right by each rule, on the updates that its authors' code runs on; equal counts."""
    groups = compared(frame).groupby(["rule", "stage"], sort=False)
    table = groups[["authors", "ours", *FREE, "agree", "mended"]].mean()
    table.insert(0, "updates", groups.size())
    heads = {
        "authors": "authors' code",
        "ours": "the same rule here",
        **{rule: name(rule, "rule") for rule in FREE},
        "agree": "counts alike",
        "mended": "alike, one thing changed",
    }
    rules = [rule for rule in [*SAME, *ALIKE] if rule in table.index]
    return table.rename(columns=heads).loc[rules]


def same(frame: pd.DataFrame) -> dict[str, int]:
    """Rule -> the updates on which both give the very same counts."""
    exact = frame[frame.rule.isin(SAME) & (frame.agree == 1)]
    return exact.groupby("rule").size().to_dict()


def glue_peers(frame: pd.DataFrame) -> None:
    """Keep what the prose says of the authors' code."""
    theirs = frame.dropna(subset="authors")
    of = theirs.groupby("rule")
    weights = theirs[(theirs.rule == "llg-plus") & (theirs["update"] == "weights")]
    trained = theirs[(theirs.rule == "rlu") & (theirs.stage == "trained")]
    many = theirs[theirs.rule == "ilrg"].returned
    glue_all(
        {
            "peers_updates": len(frame[frame.rule == "gleak"]),
            "peers_compared": int(theirs.rule.isin(SAME).sum()),
            "peers_same": sum(same(frame).values()),
            "star_theirs": of["authors"].mean()["llg-star"],
            "star_ours": of["ours"].mean()["llg-star"],
            "plus_theirs": weights["authors"].mean(),
            "plus_ours": weights["ours"].mean(),
            "rlu_theirs": trained["authors"].mean(),
            "rlu_ours": trained["ours"].mean(),
            "ilrg_most": many.max(),
            "ilrg_least": many.min(),
        }
    )


def claims_peers(frame: pd.DataFrame) -> dict[str, bool]:
    """Whether our rules are their authors' rules."""
    theirs = frame.dropna(subset="authors")
    agree = theirs[theirs.rule.isin(SAME)].groupby("rule")["agree"].min()
    changed = theirs[theirs.rule.isin(ALIKE)].groupby("rule")["mended"].mean()
    means = compared(frame).groupby("rule")[["authors", "ours", "gleak"]].mean()
    return {
        "iLRG (rounded alike), LLG, LLBG, EBI: on every update the counts of the authors": bool(
            (agree == 1).all()
        ),
        "LLG+, LLG* and RLU: so nearly, once one thing of theirs is changed": bool(
            (changed > ENOUGH).all()
        ),
        "on the same updates the study's rule restores at least as many labels as each": bool(
            (means[["authors", "ours"]].max(axis=1) <= means.gleak).all()
        ),
    }
