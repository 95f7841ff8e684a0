"""From a verified batch to the learner's: which samples count where, by hand-worked values."""

import math

import numpy as np
import pytest

from orchestrator.messages.problems import Problem
from orchestrator.messages.trajectories import Generated, pack
from orchestrator.messages.verdicts import Status, Verdict
from orchestrator.pools.collect import CheckedGroup, to_batch
from orchestrator.training.train_batch import estimate_advantages, make_train_batch
from tests import settings

NAN = math.nan
CORRECT, WRONG, TIMEOUT = Status.CORRECT, Status.WRONG, Status.TIMEOUT


def configure(mini_batches=1, skip=True, **loss):
    """Steps of 2 x 4 samples; the self-reward loss joins at step 3, the advantage mix at step 6."""
    sizes = {"prompts_per_step": 2, "samples_per_prompt": 4, "max_prompt_tokens": 2, "max_response_tokens": 8}
    schedule = {"reasoning_warmup_steps": 2, "self_reward_warmup_steps": 3}
    return settings.configure(
        run={"steps": 9},
        rollout=sizes,
        learning={
            "mini_batches": mini_batches,
            "tokens_per_micro_batch": 20,
            "skip_zero_gradients": skip,
        },
        loss={"alpha": 0.5, "tau": 0.25, **schedule, **loss},
    )


@pytest.fixture
def batch():
    """Two problems of four samples: one of the first is truncated, one check of the second timed out."""
    groups = []
    for number, (statuses, lengths, truncated) in enumerate(
        [
            ((CORRECT, WRONG, WRONG, WRONG), (3, 4, 8, 5), 2),
            ((CORRECT, CORRECT, WRONG, TIMEOUT), (2, 3, 4, 5), None),
        ]
    ):
        samples = []
        for index, length in enumerate(lengths):
            finished = index != truncated
            samples.append(
                Generated([7] * length, [-1.0] * length, finished, -5.0 if finished else NAN, [0] * length)
            )
        packed = pack([1, 1], samples)
        problem, verdicts = Problem.from_text(str(number), "p", "1"), [Verdict(status) for status in statuses]
        groups.append(CheckedGroup(problem, f"ref {number}", "texts", packed.summary(), verdicts))
    return to_batch(groups)


SCORES = np.array([1.5, 0.0, NAN, 0.5, 0.52, 0.5, 0.48, 0.9], np.float32)
GRPO = [1.5, -0.5, -0.5, -0.5, 3**-0.5, 3**-0.5, -2 * 3**-0.5, 0.0]


def test_a_sample_whose_check_failed_is_left_out_of_its_group(batch):
    found = estimate_advantages(configure(), batch, SCORES, step=5)
    np.testing.assert_allclose(found, GRPO, atol=1e-5)


def test_reference_fault_1_and_2_the_mix_reads_the_score_at_eos_and_leaves_truncated_samples_out(batch):
    found = estimate_advantages(configure(), batch, SCORES, step=6)
    # Scores 1.5 (clipped to 1), 0, 0.5 of the finished: mean and unbiased std 0.5. The second group spreads
    # less than 0.1.
    mixed = [0.75 * 1.5 + 0.25 * 1, 0.75 * -0.5 - 0.25 * 1, -0.5, 0.75 * -0.5 + 0.25 * 0, *GRPO[4:]]
    np.testing.assert_allclose(found, mixed, atol=1e-5)


@pytest.mark.parametrize(("step", "alpha"), [(1, 0.0), (2, 0.0), (3, 0.5), (9, 0.5)])
def test_the_loss_term_joins_after_the_first_warm_up(batch, step, alpha):
    assert (
        make_train_batch(configure(), batch, np.zeros(8, np.float32), np.zeros(8, np.float32), step).alpha
        == alpha
    )


def test_class_weights_are_the_whole_batchs_and_counts_the_mini_batchs(batch):
    config = configure(mini_batches=2, skip=False)
    made = make_train_batch(config, batch, np.zeros(8, np.float32), np.zeros(8, np.float32), step=3)
    # Six samples are finished and checked: three correct, three wrong. Truncated and unchecked ones weigh
    # nothing.
    np.testing.assert_allclose(made.class_weights, [1, 1, 0, 1, 1, 1, 1, 0])
    assert [(mini.total_tokens, mini.total_finished) for mini in made.mini_batches] == [(20, 3), (14, 3)]
    assert dealt(made) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert made.groups == ["ref 0", "ref 1"]


def dealt(made):
    """The samples of each mini-batch."""
    return [
        sorted(index for rank in mini.plan for micro in rank for index in micro) for mini in made.mini_batches
    ]


@pytest.mark.parametrize(
    ("step", "kl_coef", "learned", "finished"),
    [
        # Before the self-reward loss only advantages count, of which the second problem has none.
        (2, 0.0, [[0, 1, 2, 3], []], [3, 0]),
        # Then the finished and checked samples of the second problem count too, for their scores.
        (3, 0.0, [[0, 1, 2, 3], [4, 5, 6]], [3, 3]),
        (2, 0.1, [[0, 1, 2, 3], [4, 5, 6, 7]], [3, 3]),
    ],
)
def test_a_sample_whose_every_term_has_gradient_0_is_not_learned_but_counts(
    batch, step, kl_coef, learned, finished
):
    advantages = np.array([*GRPO[:4], 0, 0, 0, 0], np.float32)
    config = configure(mini_batches=2, kl_coef=kl_coef)
    made = make_train_batch(config, batch, advantages, np.zeros(8, np.float32), step)
    assert dealt(made) == learned
    assert [mini.total_tokens for mini in made.mini_batches] == [20, 14]
    assert [mini.total_finished for mini in made.mini_batches] == finished
    for mini in made.mini_batches:
        assert all(mini.plan), "a rank without samples still takes its part in the optimiser step"


def test_without_weights_the_learner_is_handed_the_same_batch_as_with_self_rewarding_switched_off(batch):
    on = configure(alpha=0.0, tau=0.0)
    off = on.model_copy(update={"self_reward": on.self_reward.model_copy(update={"token": None})})
    c_ref = np.full(8, -20.0, np.float32)
    with_scores = make_train_batch(on, batch, estimate_advantages(on, batch, SCORES, step=9), c_ref, step=9)
    without = make_train_batch(
        off, batch, estimate_advantages(off, batch, None, step=9), np.zeros(8, np.float32), step=9
    )
    np.testing.assert_array_equal(with_scores.advantages, without.advantages)
    assert with_scores.mini_batches == without.mini_batches
    assert with_scores.alpha == without.alpha == 0.0


def test_graded_rewards_reach_the_learner_and_classes_follow_the_verdicts():
    """A reward of 0.25 is of the wrong class, and is the score's target; an unchecked sample has none."""
    found = [
        Verdict(WRONG, reward=0.25),
        Verdict(CORRECT, reward=0.75),
        Verdict(WRONG),
        Verdict(TIMEOUT),
    ]
    packed = pack([1, 1], [Generated([7], [-1.0], True, -5.0, [0]) for _ in found])
    problem = Problem.from_text("a", "p", "1")
    batch = to_batch([CheckedGroup(problem, "ref", "texts", packed.summary(), found)])
    assert batch.rewards.tolist() == [0.25, 0.75, 0.0, 0.0]
    assert batch.correct.tolist() == [False, True, False, False]
    assert batch.verified.tolist() == [True, True, True, False]
    advantages = estimate_advantages(configure(tau=0.0), batch, None, step=3)
    # Rewards 0.25, 0.75 and 0 of the checked ones: mean 1/3, unbiased variance 7/48.
    expected = [(value - 1 / 3) / (7 / 48) ** 0.5 for value in (0.25, 0.75, 0)]
    np.testing.assert_allclose(advantages, [*expected, 0], atol=1e-5)
    made = make_train_batch(configure(), batch, advantages, np.zeros(4, np.float32), step=3)
    np.testing.assert_allclose(made.rewards, [0.25, 0.75, 0, 0])
    np.testing.assert_allclose(made.class_weights, [0.75, 1.5, 0.75, 0])
