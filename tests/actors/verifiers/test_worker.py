"""A worker with several verifiers: of the problem, weighted, `async`, and one that hangs."""

import threading
import time
from contextlib import closing

import pytest

from actors.verification import VerificationWorker, can_vote
from orchestrator.config.verifiers import verifier_text
from orchestrator.errors import ConfigError
from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import Status
from tests.actors.verifiers.made import verdict_of

WEIGHTED = verifier_text(
    {
        "name": "weighted",
        "parts": {
            "answer": {"verifier": "number", "weight": 3},
            "form": {"verifier": {"name": "pattern", "pattern": r"\\boxed"}},
        },
    }
)


def about(reference, verifier=None, **others):
    return Problem.from_text("p", "?", reference, verifier=verifier, **others)


def test_each_problem_has_its_own_verifier_and_a_cache_of_its_own():
    others = [verifier_text("choice"), verifier_text({"name": "number", "tolerance": 0.5}), WEIGHTED]
    with closing(VerificationWorker("text", others=others)) as worker:
        (plain,) = worker.verify(["B"], [True], about("B"))
        (letter,) = worker.verify(["(B)"], [True], about("B", others[0]))
        near, same = worker.verify([r"\boxed{1.4}", r"\boxed{1.4}"], [True, True], about("1", others[1]))
        (exact,) = worker.verify([r"\boxed{1.4}"], [True], about("1", verifier_text("number")))
        (form,) = worker.verify([r"\boxed{2}"], [True], about("1", WEIGHTED))
        (elsewhere,) = worker.verify(["(B)"], [True], about("C", others[0], source="another"))
    statuses = [verdict.status for verdict in (plain, letter, near, same, exact, form, elsewhere)]
    assert statuses == [Status.CORRECT] * 4 + [Status.WRONG] * 3
    assert same.seconds is None, "equal responses share a check"
    assert (form.reward, dict(form.parts)) == (0.25, {"answer": 0.0, "form": 1.0})


def test_the_bound_of_what_is_correct_is_the_runs():
    texts = ["the cat sat", "a dog"]
    for bound, statuses in ((0.9, [Status.WRONG, Status.WRONG]), (0.3, [Status.CORRECT, Status.WRONG])):
        with closing(VerificationWorker("token_f1", correct_above=bound)) as worker:
            verdicts = worker.verify(texts, [True, True], about("cat sat on mat"))
            assert [verdict.status for verdict in verdicts] == statuses
            assert [verdict.reward for verdict in verdicts] == [pytest.approx(2 / 3), 0]


def test_a_row_without_a_reference_is_never_a_wrong_answer():
    for name in ("math", "math_verify_plain", "number", "choice", "text"):
        verdict = verdict_of(name, r"\boxed{1}", None)
        assert (verdict.status, verdict.reward) == (Status.ERROR, None), name


def test_groups_of_an_async_verifier_are_checked_at_the_same_time():
    """Four threads call the worker, as a pool with several groups in flight does."""
    with closing(VerificationWorker("own_verifiers:slow", timeout_s=30.0)) as worker:
        worker.verify(["0"], [True], about(None))
        found = []

        def check(number):
            responses = [f"{10 + number}.{n}" for n in range(8)]
            found.extend(worker.verify(responses, [True] * 8, about(None, source=str(number))))

        threads = [threading.Thread(target=check, args=(number,)) for number in range(4)]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {verdict.status for verdict in found} == {Status.CORRECT}
        assert len(found) == 32
        assert time.monotonic() - started < 20, "one after another they would take 40 s"
        assert all(0.9 < verdict.seconds < 15 for verdict in found)


def test_a_hanging_verifier_and_an_impossible_reward():
    with closing(VerificationWorker("own_verifiers:hang", timeout_s=0.5)) as worker:
        hung, fine = worker.verify(["hang", "x"], [True, True], about(None))
        assert (hung.status, hung.reward, fine.status) == (Status.TIMEOUT, None, Status.CORRECT)
    with closing(VerificationWorker("own_verifiers:too_large")) as worker:
        (verdict,) = worker.verify(["x"], [True], about(None))
        assert (verdict.status, verdict.reward) == (Status.ERROR, None)
        assert "between 0 and 1, not 1.5" in verdict.detail


def test_an_expression_that_backtracks_for_ever_ends_at_the_deadline():
    text = verifier_text({"name": "pattern", "pattern": "(a|a)*b", "timeout_s": 0.5})
    with closing(VerificationWorker(text)) as worker:
        bad, good = worker.verify(["a" * 40, "aab"], [True, True], about(None))
    assert (bad.status, good.status) == (Status.TIMEOUT, Status.CORRECT)


def test_votes():
    assert can_vote(WEIGHTED)
    assert not can_vote(verifier_text("token_f1"))
    with closing(VerificationWorker("math")) as worker:
        assert worker.pool_answers(["1,000", "1000.0", "7"], WEIGHTED) == [0, 0, 1]
        assert worker.pool_answers(["1/2", "0.5"]) == [0, 0]
        assert worker.pooling_stats()["comparisons"] == 4


def test_a_verifier_that_cannot_be_used_is_refused_at_the_start():
    with pytest.raises(ConfigError, match="is no regular expression"):
        VerificationWorker("math", others=[verifier_text({"name": "pattern", "pattern": "("})])
