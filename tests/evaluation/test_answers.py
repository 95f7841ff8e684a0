"""Which samples have a vote, and the classes of their answers."""

from orchestrator.config.verifiers import verifier_text
from orchestrator.evaluation.answers import NO_VOTE, number_answers, pool_answers, wrong_answers
from orchestrator.messages.verdicts import Status, Verdict
from orchestrator.pools.pool import Pool
from tests.evaluation.made import sample


def test_correct_answers_share_a_class_and_only_single_answers_vote():
    group = [
        sample(0, "wrong", "5", None), sample(1, "correct", "4", None), sample(2, "wrong", "6", None),
        sample(3, "format", "4", None), sample(4, "correct", "4.0", None), sample(5, "timeout", "9^9", None),
        sample(6, "no_answer", None, None),
    ]  # fmt: skip
    assert wrong_answers(group) == ["5", "6"]
    assert number_answers(group, [0, 1]) == [1, 0, 2, NO_VOTE, 0, NO_VOTE, NO_VOTE]


def test_where_answers_cannot_be_compared_nobody_votes():
    verdicts = [Verdict(Status.CORRECT, "a"), Verdict(Status.WRONG, "b"), Verdict(Status.WRONG, "c")]

    nobody = Pool("verification", lambda index: None, 0, 1)
    found = pool_answers(nobody, [verdicts], [verifier_text("token_f1")])
    assert found == [[NO_VOTE] * 3]
