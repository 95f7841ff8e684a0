"""Forward and backward passes of a learner rank over micro-batches of rollouts.

In: micro-batches as sample numbers, and the samples. Out: gradients in the learner's buffers, sums for the
metrics, and what was not finite. Every rank makes the same number of passes, because ranks gather weights
together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from actors import zero3
from actors.progress import advance
from actors.rows import RolloutRows, as_prompt, rollout_rows
from orchestrator.algorithm.loss import LossInputs, LossOutputs, laser_loss
from orchestrator.messages.batches import FAULTS, LearnerSettings, MiniBatch, StepSums, TrainBatch
from orchestrator.messages.trajectories import Trajectories


class Passes:
    """The passes of one rank.

    Args:
        learner: The policy.
        reference: The initial model, where a KL penalty or an exact c_ref needs it.
    """

    def __init__(self, learner: zero3.Learner, reference: Any, settings: LearnerSettings) -> None:
        self.learner = learner
        self.reference = reference
        self.settings = settings
        self.head = learner.model.head
        self.head.watched = settings.z_token

    def accumulate(
        self,
        batch: TrainBatch,
        mini: MiniBatch,
        groups: Mapping[int, Trajectories],
        old_logprobs: list[Tensor] | None,
        sums: StepSums,
        compare: bool,
    ) -> Bool[Tensor, "faults"]:
        """Add up the gradients of a mini-batch.

        Args:
            groups: By number, those that this rank's micro-batches touch.
            old_logprobs: What `logprobs` returned before the step's first update; None in the first
                mini-batch.
            compare: Whether engine and learner have the same weights.

        Returns:
            Which of `FAULTS` this rank found.
        """
        faults = self.no_faults()
        micro_batches = mini.plan[self.rank]
        for number, micro in enumerate(micro_batches):
            with sums.spans("micro-batch", samples=len(micro)):
                old = None if old_logprobs is None else old_logprobs[number]
                last = number == len(micro_batches) - 1
                faults |= self._micro_batch(batch, mini, micro, groups, old, sums, compare, last)
            advance(f"micro-batch {number + 1} of {len(micro_batches)} in step {batch.step}")
        return faults

    def _micro_batch(
        self,
        batch: TrainBatch,
        mini: MiniBatch,
        micro: Sequence[int],
        groups: Mapping[int, Trajectories],
        old_logprobs: Tensor | None,
        sums: StepSums,
        compare: bool,
        last: bool,
    ) -> Bool[Tensor, "faults"]:
        """Add the gradients of a micro-batch; see `accumulate`."""
        rows = self.rows(micro, groups)
        logprobs, entropy = self.learner.engine(rows.input_ids, rows.read, rows.targets)
        if not micro:
            # Nothing to learn from, but the peers wait for this rank's backward pass.
            self.learner.backward(logprobs.sum() * 0.0, last)
            return self.no_faults()
        inputs = replace(
            self.loss_inputs(batch, mini, micro, rows, logprobs),
            old_logprobs=old_logprobs,
            ref_logprobs=self.reference_logprobs(rows),
        )
        outputs = laser_loss(inputs, replace(self.settings.loss, alpha=batch.alpha))
        self.learner.backward(outputs.total, last)
        sums.add(outputs, entropy[rows.is_token], len(batch.mini_batches))
        sums.z_mass += self.z_mass(rows)
        if compare:
            compare_with_engine(inputs, rows, sums)
        return find_faults(inputs, rows, outputs)

    def z_mass(self, rows: RolloutRows) -> float:
        """Sum of z_c's probability at the places of the response tokens of the last pass; 0 without z_c."""
        probs = self.head.watched_probs
        return probs[rows.is_token].sum().item() if len(probs) else 0.0

    @torch.no_grad()
    def logprobs(self, mini: MiniBatch, groups: Mapping[int, Trajectories]) -> list[Float[Tensor, "tokens"]]:
        """Log-probs of the response tokens under the current policy, by micro-batch."""
        found = []
        for micro in mini.plan[self.rank]:
            rows = self.rows(micro, groups)
            logprobs, _ = self.learner.engine(rows.input_ids, rows.read, rows.targets)
            found.append(logprobs[rows.is_token])
            advance("log-probs of a micro-batch")
        return found

    @torch.no_grad()
    def reference_logprobs(self, rows: RolloutRows) -> Float[Tensor, "tokens"] | None:
        """The reference model's log-probs of the response tokens; None where no KL penalty needs them."""
        if self.reference is None or self.settings.loss.kl_coef == 0:
            return None
        logprobs, _ = self.reference(rows.input_ids, rows.read, rows.targets)
        return logprobs[rows.is_token]

    @property
    def rank(self) -> int:
        return torch.distributed.get_rank()

    def no_faults(self) -> Bool[Tensor, "faults"]:
        """One False for each of `FAULTS`."""
        return torch.zeros(len(FAULTS), dtype=torch.bool, device=self.learner.device)

    def rows(
        self, micro: Sequence[int], groups: Mapping[int, Trajectories], ends_only: bool = False
    ) -> RolloutRows:
        """A micro-batch, padded.

        Args:
            ends_only: Read only the position of each sample's score.
        """
        places = [divmod(index, len(next(iter(groups.values())))) for index in micro]
        samples = [groups[number].sample(position) for number, position in places]
        if ends_only:
            samples = [as_prompt(sample) for sample in samples]
        return rollout_rows(samples, self.settings.z_token, self.learner.pad_token, self.learner.device)

    def loss_inputs(
        self,
        batch: TrainBatch,
        mini: MiniBatch,
        micro: Sequence[int],
        rows: RolloutRows,
        logprobs: Float[Tensor, "read"],
    ) -> LossInputs:
        """Inputs of a micro-batch's loss, still without the old and the reference policy's log-probs.

        Args:
            micro: Numbers of the micro-batch's samples.
            logprobs: At the positions that `rows` reads.
        """

        def of_samples(values: Float32[np.ndarray, "samples"]) -> Float[Tensor, "batch"]:
            return torch.from_numpy(values[micro]).to(logprobs.device)

        inputs = LossInputs(
            logprobs=logprobs[rows.is_token],
            advantages=of_samples(batch.advantages)[rows.sample],
            total_tokens=mini.total_tokens,
            total_finished=mini.total_finished,
            behaviour_logprobs=rows.behaviour_logprobs,
            sample=rows.sample,
        )
        if self.settings.z_token is None:
            return inputs
        return replace(
            inputs,
            z_logprobs=logprobs[~rows.is_token],
            c_ref=of_samples(batch.c_ref),
            rewards=of_samples(batch.rewards),
            weights=of_samples(batch.class_weights),
        )


def compare_with_engine(inputs: LossInputs, rows: RolloutRows, sums: StepSums) -> None:
    """Add the differences between the engine's and the learner's log-probs to the sums."""
    if len(inputs.logprobs):
        sums.compare(inputs.logprobs, rows.behaviour_logprobs)
    if inputs.z_logprobs is not None:
        sums.compare_scores(inputs.z_logprobs, rows.behaviour_z_logprobs)


def find_faults(inputs: LossInputs, rows: RolloutRows, outputs: LossOutputs) -> Bool[Tensor, "faults"]:
    """Which of `FAULTS` a micro-batch has. A score counts only where the sample has a class weight."""
    policy, engine, reference = [inputs.logprobs], [rows.behaviour_logprobs], [inputs.ref_logprobs]
    if inputs.z_logprobs is not None and inputs.weights is not None:
        counted = inputs.weights > 0
        policy.append(inputs.z_logprobs[counted])
        engine.append(rows.behaviour_z_logprobs[counted])
        if isinstance(inputs.c_ref, Tensor):
            reference.append(inputs.c_ref[counted])
    loss = outputs.total
    found = [
        torch.stack([~torch.isfinite(values).all() for values in group if values is not None]).any()
        for group in (policy, engine, [*reference, loss.new_zeros(1)], [loss])
    ]
    return torch.stack([*found, torch.zeros_like(found[0])])
