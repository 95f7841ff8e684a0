"""The rounds of a mini-batch that is not complete: which samples, which term, and what is left, by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from orchestrator.messages.batches import Term
from orchestrator.messages.problems import Problem
from orchestrator.messages.trajectories import Generated, pack
from orchestrator.messages.verdicts import Status, Verdict
from orchestrator.pools.collect import CheckedGroup, to_batch
from orchestrator.training.stream_plan import StreamPlan
from orchestrator.training.train_batch import make_train_batch
from tests import settings

C, W = Status.CORRECT, Status.WRONG
GROUPS, SAMPLES, LENGTH = 24, 4, 8
REFERENCE = np.full(SAMPLES, -20.0, np.float32)


def configure(alpha=0.5, ranks=1, mini_batches=1, budget=400, groups=GROUPS, **loss):
    """Steps of 24 x 4 samples of 10 tokens, prompt included: four are the share of a round."""
    return settings.configure(
        rollout={
            "prompts_per_step": groups,
            "samples_per_prompt": SAMPLES,
            "max_prompt_tokens": 2,
            "max_response_tokens": LENGTH,
        },
        learning={"num_ranks": ranks, "mini_batches": mini_batches, "tokens_per_micro_batch": budget},
        loss={"alpha": alpha, "tau": 0.0, **loss},
    )


def group(number, statuses, truncated=()):
    samples = [
        Generated(
            [7] * LENGTH, [-1.0] * LENGTH, i not in truncated, math.nan if i in truncated else -5.0, (0, 0)
        )
        for i in range(SAMPLES)
    ]
    packed = pack([1, 1], samples)
    verdicts = [Verdict(status) for status in statuses]
    return CheckedGroup(
        Problem.from_text(str(number), "p", "1"), f"ref {number}", "texts", packed.summary(), verdicts
    )


def land(plan, number, statuses, truncated=(), advantages=(1, -1, 1, -1)):
    landed = to_batch([group(number, statuses, truncated)])
    plan.add(number, landed, np.array(advantages, np.float32), REFERENCE)


def rounds_of(plan):
    """(term, samples by rank) of all rounds that the plan has now."""
    found = []
    while part := plan.next_round():
        (mini,) = part.batch.mini_batches
        found.append((part.term, mini.plan))
    return found


def test_grpo_streams_the_policy_alone():
    plan = StreamPlan(configure(alpha=0.0), step=1)
    land(plan, 2, (C, W, C, W))
    assert rounds_of(plan) == [(Term.POLICY, [[[8, 9, 10, 11]]])]
    assert plan.streamed.learned.nonzero()[0].tolist() == [8, 9, 10, 11]
    assert plan.remaining_rounds() == []


def test_self_rewards_follow_the_policy_class_by_class():
    plan = StreamPlan(configure(), step=1)
    land(plan, 0, (C, W, C, W), truncated=(3,))
    assert rounds_of(plan) == [(Term.POLICY, [[[0, 1, 2, 3]]]), (Term.CORRECT, [[[0, 2]]])]
    assert plan.streamed.learned.nonzero()[0].tolist() == [0, 2, 3], "3 is unfinished: it has one term"
    (last,) = plan.remaining_rounds()
    assert (last.term, last.batch.mini_batches[0].plan) == (Term.WRONG, [[[1]]])
    assert last.number == 2
    assert plan.streamed.learned[:4].all()


def test_a_group_without_advantage_has_its_self_reward_alone():
    plan = StreamPlan(configure(), step=1)
    land(plan, 1, (W, W, W, W), advantages=(0, 0, 0, 0))
    assert rounds_of(plan) == [(Term.WRONG, [[[4, 5, 6, 7]]])]
    with_kl = StreamPlan(configure(kl_coef=0.1), step=1)
    land(with_kl, 1, (W, W, W, W), advantages=(0, 0, 0, 0))
    assert [term for term, _ in rounds_of(with_kl)] == [Term.POLICY, Term.WRONG]


def test_every_rank_has_its_micro_batches_in_each_round():
    plan = StreamPlan(configure(alpha=0.0, ranks=2, budget=20), step=1)
    land(plan, 0, (C, W, C, W))
    land(plan, 1, (C, W, C, W))
    rounds = rounds_of(plan)
    assert [[len(micro) for rank in by_rank for micro in rank] for _, by_rank in rounds] == [[2, 2], [2, 2]]


def test_a_few_samples_wait_for_others():
    plan = StreamPlan(configure(alpha=0.0), step=1)
    land(plan, 0, (C, W, C, W), advantages=(1, 0, 1, 1))
    assert plan.next_round() is None, "3 of 96 samples"
    land(plan, 1, (C, W, C, W))
    assert rounds_of(plan) == [(Term.POLICY, [[[0, 2, 3, 4]]])], "three are left again"
    full = StreamPlan(configure(alpha=0.0, budget=20), step=1)
    land(full, 0, (C, W, C, W), advantages=(1, 0, 1, 1))
    assert rounds_of(full) == [(Term.POLICY, [[[0, 2]]])], "a full micro-batch is enough"


def test_only_the_first_mini_batch_streams():
    plan = StreamPlan(configure(alpha=0.0, mini_batches=2), step=1)
    land(plan, 12, (C, W, C, W))
    assert plan.next_round() is None
    land(plan, 11, (C, W, C, W))
    assert plan.next_round() is not None


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_the_rest_of_the_batch_and_the_factors(alpha):
    config = configure(alpha=alpha, groups=4)
    statuses = [(C, W, C, W), (W, W, W, W), (C, W, W, W), (C, C, C, W)]
    advantages = np.array([1, -1, 1, -1, 0, 0, 0, 0, 1, -1, 1, -1, 1, -1, 1, -1], np.float32)
    batch = to_batch([group(number, each) for number, each in enumerate(statuses)])
    plan = StreamPlan(config, step=1)
    for number in (0, 1):
        land(plan, number, statuses[number], advantages=advantages[4 * number : 4 * number + 4])
    rounds_of(plan)
    plan.remaining_rounds()
    made = make_train_batch(config, batch, advantages, np.full(16, -20, np.float32), 1, plan.streamed)
    (mini,) = made.mini_batches
    rest = sorted(sample for rank in mini.plan for micro in rank for sample in micro)
    assert rest == list(range(8, 16)), (
        "without self-reward group 1 has nothing to learn; with it, it was streamed"
    )
    assert mini.total_tokens == 16 * LENGTH
    # The rounds divided by 16 samples of full length, and here all samples are that long.
    assert made.streamed.factors[Term.POLICY] == 1
    # Without alpha the self-reward loss is a mean over the 12 samples that are learned.
    finished = 16 if alpha else 12
    assert mini.total_finished == finished
    assert made.streamed.factors[Term.CORRECT] == pytest.approx(16 / finished * 16 / (2 * 6))
    assert made.streamed.factors[Term.WRONG] == pytest.approx(16 / finished * 16 / (2 * 10))


def test_without_rounds_the_batch_is_the_unstreamed_one():
    config = configure(groups=4)
    batch = to_batch([group(number, (C, W, C, W)) for number in range(4)])
    advantages = np.ones(16, np.float32)
    arguments = config, batch, advantages, np.full(16, -20, np.float32), 1
    made = make_train_batch(*arguments, StreamPlan(config, step=1).streamed)
    assert made.streamed is None
    assert made.mini_batches == make_train_batch(*arguments).mini_batches


def test_graded_rewards_are_streamed_in_the_class_of_their_verdicts():
    """The verdict's class counts, and not the reward: 0.75 is wrong where `correct_above` is higher."""
    plan = StreamPlan(configure(), step=1)
    verdicts = [Verdict(C), Verdict(W, reward=0.25), Verdict(C, reward=0.75), Verdict(W, reward=0.75)]
    checked = replace(group(0, (W,) * SAMPLES), verdicts=verdicts)
    plan.add(0, to_batch([checked]), np.zeros(SAMPLES, np.float32), REFERENCE)
    assert rounds_of(plan) == [(Term.CORRECT, [[[0, 2]]]), (Term.WRONG, [[[1, 3]]])]
    assert plan.rewards[:SAMPLES].tolist() == [1.0, 0.25, 0.75, 0.75]
