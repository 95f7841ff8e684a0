"""Which rounds of micro-batches the ranks learn while a step's first mini-batch is still being generated.

In: checked groups as they land, with their advantages. Out: rounds, and which samples they have covered.
"""

import numpy as np
from jaxtyping import Float32

from orchestrator.algorithm.micro_batches import MicroBatchPlan, plan_micro_batches, split_mini_batches
from orchestrator.config.training import RunConfig
from orchestrator.messages.batches import MiniBatch, StreamedRound, Term, TrainBatch
from orchestrator.pools.collect import Batch
from orchestrator.training.train_batch import StreamedSamples, has_policy_term, self_reward_weight

ROUND_SHARE = 1 / 24
"""Part of the mini-batch that a round holds, or one full micro-batch a rank if that is less. The ranks still
learn their last round when the mini-batch is complete, so it must be short; a smaller one has little to do
between the ranks' gathering of weights."""


class StreamPlan:
    """The rounds of one step.

    A round learns one term of its samples: the policy's, or the self-reward of one class. A sample waits for
    its policy term first and then for its self-reward, so that what a round begins the next ones complete.
    """

    def __init__(self, config: RunConfig, step: int) -> None:
        rollout, self.config, self.step = config.rollout, config, step
        self.ranks, self.budget = config.learning.num_ranks, config.learning.tokens_per_micro_batch
        self.per_group = rollout.samples_per_prompt
        samples = rollout.prompts_per_step * self.per_group
        sizes = [self.per_group] * rollout.prompts_per_step
        self.first = len(split_mini_batches(sizes, config.learning.mini_batches)[0])
        """The first mini-batch is the batch's samples before this number."""
        self.alpha = self_reward_weight(config, step)
        self.rounds = 0
        self.learned = np.zeros(samples, bool)
        self.begun = np.zeros(samples, bool)
        """Samples of which a term is learned, and others may be missing."""
        self.waiting: dict[Term, list[int]] = {term: [] for term in Term}
        """Samples whose next term this is, in the order in which they landed."""
        self.of_class: dict[int, Term] = {}
        """The self-reward term of a sample that has one."""
        self.correct = np.zeros(samples, bool)
        self.lengths = np.zeros(samples, np.int64)
        self.refs: list = [None] * rollout.prompts_per_step
        self.advantages, self.rewards, self.weights, self.c_ref = np.zeros((4, samples), np.float32)

    def add(
        self,
        number: int,
        group: Batch,
        advantages: Float32[np.ndarray, "group"],
        c_ref: Float32[np.ndarray, "group"],
    ) -> None:
        """A group has landed.

        Args:
            number: Its place in the batch.
            group: It alone.
        """
        start = number * self.per_group
        if start >= self.first:
            return
        mine = slice(start, start + self.per_group)
        self.refs[number] = group.groups[0].trajectories
        self.lengths[mine] = group.total_lengths
        self.advantages[mine], self.rewards[mine], self.c_ref[mine] = advantages, group.rewards, c_ref
        self.weights[mine], self.correct[mine] = group.scored, group.correct
        has_policy = has_policy_term(self.config, advantages)
        for position in range(self.per_group):
            sample = start + position
            if group.scored[position] and self.alpha > 0:
                self.of_class[sample] = Term.CORRECT if self.correct[sample] else Term.WRONG
            if has_policy[position]:
                self.waiting[Term.POLICY].append(sample)
            elif sample in self.of_class:
                self.waiting[self.of_class[sample]].append(sample)

    def next_round(self) -> StreamedRound | None:
        """The round that the ranks should learn now; None while no term has enough samples.

        Self-rewards come first: they complete samples that are begun.
        """
        tokens = self._round_tokens()
        enough = ROUND_SHARE * self.first
        for term, least in ((Term.CORRECT, enough / 2), (Term.WRONG, enough / 2), (Term.POLICY, enough)):
            samples = self.waiting[term]
            plan = self._plan(samples, tokens)
            if len(plan[0]) > 1 or len(samples) >= max(1, least):
                return self._round(term, [rank[:1] for rank in plan])
        return None

    def _round_tokens(self) -> int:
        """Tokens of a rank's micro-batch, padding included, that make a round `ROUND_SHARE`."""
        landed = self.lengths[self.lengths > 0]
        if not len(landed):
            return self.budget
        share = ROUND_SHARE * self.first * float(landed.mean()) / self.ranks
        return min(self.budget, max(int(share), int(landed.max())))

    def remaining_rounds(self) -> list[StreamedRound]:
        """The rounds that complete the samples that others have begun, once the last group has landed."""
        rounds = []
        for term in Term:
            begun = [sample for sample in self.waiting[term] if self.begun[sample]]
            if begun:
                rounds.append(self._round(term, self._plan(begun, self.budget)))
        return rounds

    @property
    def streamed(self) -> StreamedSamples:
        """What the rounds have covered so far."""
        tokens = self.first * self.config.rollout.max_response_tokens
        return StreamedSamples(self.rounds, self.learned, tokens, self.first)

    def _plan(self, samples: list[int], tokens: int) -> MicroBatchPlan:
        plan = plan_micro_batches(self.lengths[samples].tolist(), self.ranks, tokens)
        return [[[samples[position] for position in micro] for micro in rank] for rank in plan]

    def _round(self, term: Term, plan: MicroBatchPlan) -> StreamedRound:
        """A round of `term`; its samples go on to their next one."""
        samples = sorted(sample for rank in plan for micro in rank for sample in micro)
        chosen = set(samples)
        self.waiting[term] = [sample for sample in self.waiting[term] if sample not in chosen]
        self.begun[samples] = True
        for sample in samples:
            if term is Term.POLICY and sample in self.of_class:
                self.waiting[self.of_class[sample]].append(sample)
            else:
                self.learned[sample] = True
        self.rounds += 1
        return StreamedRound(self.rounds - 1, term, self._batch(plan, samples), self.correct)

    def _batch(self, plan: MicroBatchPlan, samples: list[int]) -> TrainBatch:
        """A batch whose only mini-batch is the round."""
        touched = {sample // self.per_group for sample in samples}
        counts = self.streamed
        return TrainBatch(
            step=self.step,
            groups=[ref if number in touched else None for number, ref in enumerate(self.refs)],
            samples_per_group=self.per_group,
            advantages=self.advantages,
            rewards=self.rewards,
            class_weights=self.weights,
            c_ref=self.c_ref,
            mini_batches=[MiniBatch(plan, counts.expected_tokens, counts.expected_finished)],
            alpha=self.alpha,
        )
