"""Learning of a step's first mini-batch before it is complete, in one rank.

In: rounds of micro-batches, each of one term of the loss. Out, once the counts of the mini-batch are known:
gradients as if its samples had been learned at once, and sums for the metrics.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from actors.accumulators import TermGradients
from actors.passes import Passes, compare_with_engine, find_faults
from actors.progress import advance
from orchestrator.algorithm.importance import ImportanceSettings
from orchestrator.algorithm.loss import LossInputs, LossOutputs, laser_loss
from orchestrator.messages.batches import StepSums, StreamedPart, StreamedRound, Term, TrainBatch
from orchestrator.messages.spans import SpanList
from orchestrator.messages.trajectories import Trajectories


class StreamedStep:
    """The rounds of one step at a time.

    The factors of the terms are unknown during the rounds: the tokens and finished samples of the mini-batch,
    and the class weights. So each term has its own gradient, and a sample costs a forward and a backward pass
    for each term that it is part of.
    """

    def __init__(self, passes: Passes) -> None:
        self.passes = passes
        self.gradients = TermGradients(passes.learner.engine)
        self.step: int | None = None
        """The step of the rounds; None before its first round."""
        self.rounds = 0
        self.seconds = 0.0
        self.spans = SpanList()
        self.sums: dict[Term, StepSums] = {}
        self.faults = passes.no_faults()

    def learn(self, part: StreamedRound, groups: Mapping[int, Trajectories]) -> None:
        """Add the gradients of a round to those of its term.

        The first round of a step drops what an abandoned step has left.

        Raises:
            RuntimeError: A round is missing.
        """
        started = time.perf_counter()
        if part.number == 0:
            self.discard()
            self.step = part.batch.step
        if (part.batch.step, part.number) != (self.step, self.rounds):
            raise RuntimeError(
                f"round {part.number} of step {part.batch.step} follows {self.rounds} rounds of step "
                f"{self.step}"
            )
        self.rounds += 1
        self.gradients.turn_to(part.term)
        for micro in part.batch.mini_batches[0].plan[self.passes.rank]:
            with self.spans("micro-batch", samples=len(micro), term=part.term.value, streamed=True):
                self._learn_micro_batch(part, micro, groups)
            advance(f"a micro-batch of round {part.number} in step {part.batch.step}")
        self.seconds += time.perf_counter() - started

    def finish(self, batch: TrainBatch, sums: StepSums) -> Bool[Tensor, "faults"]:
        """Leave the gradients of all rounds with the learner, and add up their sums.

        Returns:
            Which of `FAULTS` the rounds have had.

        Raises:
            RuntimeError: The batch's rounds are not those that this rank has learned.
        """
        part = batch.streamed or StreamedPart(0, {})
        if part.rounds == 0:
            self.discard()
        elif (batch.step, part.rounds) != (self.step, self.rounds):
            raise RuntimeError(
                f"step {batch.step} has {part.rounds} streamed rounds, but this rank has learned "
                f"{self.rounds} of step {self.step}"
            )
        else:
            weights = {Term.POLICY: 1.0, Term.CORRECT: batch.alpha, Term.WRONG: batch.alpha}
            self.gradients.combine({term: weights[term] * part.factors[term] for term in part.factors})
            self._add_sums(batch, part, sums)
        faults = self.faults
        self.discard_sums()
        return faults

    def discard(self) -> None:
        """Drop the gradients and sums of a step that is abandoned."""
        self.gradients.discard()
        self.discard_sums()

    def discard_sums(self) -> None:
        """Drop everything but the gradients."""
        self.step, self.rounds, self.seconds, self.sums, self.spans = None, 0, 0.0, {}, SpanList()
        self.faults = self.passes.no_faults()

    def _learn_micro_batch(
        self, part: StreamedRound, micro: Sequence[int], groups: Mapping[int, Trajectories]
    ) -> None:
        passes, is_policy = self.passes, part.term is Term.POLICY
        rows = passes.rows(micro, groups, ends_only=not is_policy)
        logprobs, entropy = passes.learner.engine(rows.input_ids, rows.read, rows.targets)
        if not micro:
            # The peers wait for this rank's backward pass.
            passes.learner.backward(logprobs.sum() * 0.0, last=False)
            return
        z_mass = passes.z_mass(rows)
        inputs = passes.loss_inputs(part.batch, part.batch.mini_batches[0], micro, rows, logprobs)
        if is_policy:
            inputs = replace(inputs, ref_logprobs=passes.reference_logprobs(rows))
            settings = replace(passes.settings.loss, alpha=0.0)
        else:
            settings = replace(passes.settings.loss, alpha=1.0, kl_coef=0.0, importance=ImportanceSettings())
        outputs = laser_loss(inputs, settings)
        passes.learner.backward(outputs.total, last=False)
        self.faults |= find_faults(inputs, rows, outputs)
        sums = self._sums(part.term)
        sums.add(outputs, entropy[rows.is_token], mini_batches=1)
        sums.z_mass += z_mass
        compare_with_engine(inputs, rows, sums)
        if is_policy:
            sums.self_reward_loss = 0.0
            if part.batch.alpha == 0:
                self._measure_scores(inputs, outputs, torch.from_numpy(part.correct[micro]))

    def _measure_scores(
        self, inputs: LossInputs, outputs: LossOutputs, correct: Bool[Tensor, "batch"]
    ) -> None:
        """Add the self-reward loss of the policy's samples, where no rounds of its own do."""
        if outputs.scores is None or inputs.rewards is None:
            return
        errors = torch.nan_to_num((outputs.scores - inputs.rewards) ** 2) / max(inputs.total_finished, 1)
        correct = correct.to(errors.device)
        self._sums(Term.CORRECT).self_reward_loss += errors[correct].sum().item()
        self._sums(Term.WRONG).self_reward_loss += errors[~correct].sum().item()

    def _sums(self, term: Term) -> StepSums:
        return self.sums.setdefault(term, StepSums())

    def _add_sums(self, batch: TrainBatch, part: StreamedPart, sums: StepSums) -> None:
        for term, mine in self.sums.items():
            sums.add_streamed(mine, part.factors.get(term, 0.0) / len(batch.mini_batches))
        kl_coef = self.passes.settings.loss.kl_coef
        sums.total_loss = sums.policy_loss + kl_coef * sums.kl + batch.alpha * sums.self_reward_loss
        sums.seconds += self.seconds
        sums.streamed_seconds = self.seconds
        sums.spans += self.spans
