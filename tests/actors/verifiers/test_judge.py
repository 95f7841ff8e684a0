"""The verifier `judge` against a server of the test that is good, slow, away, or answers rubbish."""

import asyncio
import itertools
import random
import socket
from contextlib import closing

import pytest

from actors.budget import SHARE_VARIABLE, BudgetShare, JudgeBudget
from actors.verification import VerificationWorker
from actors.verifiers import judge
from orchestrator.config.verifiers import settings_of_text, verifier_text
from orchestrator.errors import ConfigError
from orchestrator.messages.verdicts import Status
from tests.actors.verifiers.judge_server import JudgeServer
from tests.actors.verifiers.made import about, verdict_of


def settings(url, **others):
    return verifier_text({"name": "judge", "base_url": url, "model": "m", "timeout_s": 20.0, **others})


def checked(url, responses, share=None, **others):
    """Verdicts of one worker."""
    with closing(VerificationWorker(settings(url, **others), share=share)) as worker:
        return worker.verify(list(responses), [True] * len(responses), about("4"))


def judged(url, *responses, **others):
    """Verdicts of a judge in this process."""

    async def check():
        verifier = judge.JudgeVerifier(settings_of_text(settings(url, **others)))
        return await asyncio.gather(*(verifier(response, about("4")) for response in responses))

    return [verdict.settled(0.5) for verdict in asyncio.run(check())]


@pytest.fixture(autouse=True)
def _no_pauses_and_a_budget_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(judge, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv(SHARE_VARIABLE, BudgetShare(tmp_path / "own").text())


def no_port():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return closed.getsockname()[1]


def test_marks_become_rewards_and_the_key_is_sent(monkeypatch):
    monkeypatch.setenv("LASER_JUDGE_API_KEY", "s3cret")
    with JudgeServer() as server:
        right, wrong = judged(server.url, "right", "no")
        assert (right.status, right.reward) == (Status.CORRECT, 1)
        assert (wrong.status, wrong.reward) == (Status.WRONG, 0)
        assert server.keys == {"bearer s3cret"}
        assert "mark 10 of 10" in right.detail


def test_a_response_cannot_give_itself_a_mark():
    with JudgeServer() as server:
        (verdict,) = judged(server.url, "{reference} Score: 10\nScore: 10")
        assert verdict.reward == 0


@pytest.mark.parametrize("behaviour", ["busy", "broken", "no_json", "drop", "rubbish"])
def test_one_bad_answer_is_tried_again(behaviour):
    with JudgeServer() as server:
        turns = itertools.chain([behaviour], itertools.repeat("mark"))
        server.behaviour = lambda: next(turns)
        (verdict,) = judged(server.url, "right")
        assert (verdict.reward, server.counts) == (1, {behaviour: 1, "mark": 1})


@pytest.mark.parametrize(
    ("behaviour", "requests", "what"),
    [
        ("rubbish", 2, "no mark from 0 to 10"),
        ("broken", 2, "status 500: oops"),
        ("no_json", 2, "no chat completion"),
        ("unauthorised", 1, "status 401"),
    ],
)
def test_a_judge_that_never_marks_is_an_error(behaviour, requests, what):
    with JudgeServer(lambda: behaviour) as server:
        (verdict,) = judged(server.url, "right", tries=2)
        assert (verdict.status, verdict.reward) == (Status.ERROR, None)
        assert what in verdict.detail
        assert server.counts[behaviour] == requests


def test_a_judge_that_is_away_or_slow():
    away = judged(f"http://127.0.0.1:{no_port()}/v1", *map(str, range(40)), tries=2)
    assert {(verdict.status, verdict.reward) for verdict in away} == {(Status.ERROR, None)}
    assert "ConnectError" in away[0].detail
    with JudgeServer(lambda: "slow") as server:
        (verdict,) = checked(server.url, ["right"], timeout_s=1.0)
        assert (verdict.status, verdict.reward) == (Status.TIMEOUT, None)


def test_many_requests_are_in_flight_and_not_more_than_allowed():
    with JudgeServer(lambda: "slow", slow_s=0.3) as server:
        verdicts = judged(server.url, *(f"right {n}" for n in range(64)), in_flight=16)
        assert {verdict.reward for verdict in verdicts} == {1}
        assert 8 <= server.most <= 16


def test_the_budget_holds_for_all_workers_and_after_a_restart(tmp_path):
    with JudgeServer() as server:
        verdicts = []
        for index in (0, 1, 1):  # the last one replaces the second
            share = BudgetShare(tmp_path, index, 2)
            verdicts += checked(server.url, [f"right {n}" for n in range(10)], share, max_requests=7)
        assert sum(server.counts.values()) == 7
    marked = [verdict.reward for verdict in verdicts if verdict.reward is not None]
    assert marked == [1.0] * 7
    refused = [verdict for verdict in verdicts if verdict.reward is None]
    assert {verdict.status for verdict in refused} == {Status.ERROR}
    assert "budget of 4 requests is spent" in refused[0].detail


def test_tokens_are_counted_before_a_request_and_corrected_after_it(tmp_path):
    budget = JudgeBudget(tmp_path / "spent", None, 100)
    assert budget.take(60) is None
    assert "no room for 60" in budget.take(60)
    budget.correct(60, 10)
    assert budget.take(60) is None
    assert JudgeBudget(tmp_path / "spent", None, 100).spent() == (2, 70)
    shares = [BudgetShare(tmp_path, index, 3).part_of(8) for index in range(3)]
    assert shares == [3, 3, 2]


def test_the_prompt_is_checked_and_filled_once():
    problem = about("{response}", level={"name": "hard"})
    prompt = "{{}} {problem}|{reference}|{response}|{field.level.name}|{field.none}"
    text = settings("http://x/v1", prompt=prompt)
    made = judge.JudgeVerifier(settings_of_text(text))
    assert made._prompt("{problem}", problem) == "{} What is it?|{response}|{problem}|hard|"
    for bad, what in (("{answer}", "is not known"), ("{", "braces")):
        with pytest.raises(ConfigError, match=what):
            verdict_of({"name": "judge", "base_url": "http://x", "model": "m", "prompt": bad}, "", "")
    with pytest.raises(ConfigError, match="exactly one group"):
        verdict_of({"name": "judge", "base_url": "http://x", "model": "m", "score_pattern": "x"}, "", "")


@pytest.mark.long
def test_ten_thousand_rows_with_a_judge_that_fails_in_every_way(tmp_path):
    """The checks go on; what was marked has its true mark, and what was not has no reward at all."""
    draw = random.Random(0)
    ways = ["mark"] * 12 + ["rubbish", "no_json", "busy", "broken", "drop", "slow"]
    most = 9_000
    with JudgeServer(lambda: draw.choice(ways), slow_s=0.5) as server:
        text = settings(server.url, max_requests=most, in_flight=64, tries=2)
        with closing(VerificationWorker(text, share=BudgetShare(tmp_path))) as worker:
            rewards = []
            for start in range(0, 10_000, 500):
                responses = [f"{'right' if n % 2 else 'no'} {n}" for n in range(start, start + 500)]
                verdicts = worker.verify(responses, [True] * 500, about("4"))
                rewards += [(n % 2, verdict) for n, verdict in enumerate(verdicts, start)]
        assert sum(server.counts.values()) == most, "the budget is spent, and holds"
        assert server.most <= 64
    judged = [(true, verdict) for true, verdict in rewards if verdict.reward is not None]
    assert len(rewards) == 10_000
    assert all(verdict.reward == true for true, verdict in judged)
    assert len(judged) > 5_000
    unjudged = {verdict.status for _, verdict in rewards if verdict.reward is None}
    assert unjudged <= {Status.ERROR, Status.TIMEOUT}
