"""The verifier on pairs of a reference and an answer whose verdict is known.

`answers.jsonl` holds them by kind. A debatable pair is one about which careful people differ: it is not held
against the verifier.
"""

import json
from collections import defaultdict
from itertools import combinations, pairwise
from pathlib import Path

import pytest

from actors.answers.compare import accepts, same, unread_part
from actors.answers.verdict import verify_answer
from orchestrator.messages.verdicts import Status

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parent / "answers.jsonl").read_text(encoding="utf-8").splitlines()
]
CLEAR = [row for row in ROWS if not row.get("debatable")]
KINDS = sorted({row["kind"] for row in CLEAR})


def of_kind(kind):
    return [row for row in CLEAR if row["kind"] == kind]


@pytest.mark.parametrize("kind", KINDS)
def test_verdicts(kind):
    verdicts = [
        (row, verify_answer(rf"\boxed{{{row['answer']}}}", row["reference"])) for row in of_kind(kind)
    ]
    wrong = [
        f"{row['reference']}  <-  {row['answer']}: {verdict.status}, {verdict.detail}"
        for row, verdict in verdicts
        if verdict.status != row["expected"]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_corpus_is_balanced():
    right = sum(row["expected"] == "correct" for row in CLEAR)
    assert 0.45 < right / len(CLEAR) < 0.55
    assert len({(row["reference"], row["answer"]) for row in ROWS}) == len(ROWS)


def test_every_verdict_explains_itself():
    for row in CLEAR:
        verdict = verify_answer(rf"\boxed{{{row['answer']}}}", row["reference"])
        assert verdict.status in (Status.CORRECT, Status.WRONG)
        assert verdict.detail.startswith("reference: ")
        assert "; answer: " in verdict.detail
        assert ("; equal: " if verdict.status is Status.CORRECT else "; not equal: ") in verdict.detail


def test_every_text_that_is_read_equals_itself():
    texts = {row[side] for row in ROWS for side in ("reference", "answer")}
    assert [text for text in texts if not same(text, text) or not accepts(text, text).equal] == []


@pytest.mark.parametrize("kind", KINDS)
def test_same_is_symmetric_and_transitive(kind):
    groups = defaultdict(list)
    for row in of_kind(kind):
        groups[row["reference"]].append(row["answer"])
    for reference, answers in groups.items():
        texts = list(dict.fromkeys([reference, *answers]))
        equal = {pair: same(*pair) for pair in combinations(texts, 2)}
        assert [pair for pair in equal if same(*reversed(pair)) != equal[pair]] == []
        for first, second, third in combinations(texts, 3):
            votes = equal[first, second], equal[first, third], equal[second, third]
            assert sum(votes) != 2, (first, second, third, votes)


def test_same_is_transitive_across_kinds():
    """Whoever equals a member of a class equals all of it."""
    texts = [row["answer"] for row in CLEAR if unread_part(row["answer"]) is None][::8]
    classes = []
    for text in texts:
        home = next((found for found in classes if same(found[0], text)), None)
        if home is None:
            classes.append([text])
        else:
            home.append(text)
    for found in classes:
        assert all(same(first, second) for first, second in pairwise(found))
        assert same(found[-1], found[0])
