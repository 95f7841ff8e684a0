"""From a verified batch to the learner's input: advantages, class weights and the plan of micro-batches.

In: one number a sample of each kind. Out: a `TrainBatch`. The loop and the replay of a stored step use it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int

from orchestrator.algorithm.advantages import group_advantages, mix_self_rewards
from orchestrator.algorithm.micro_batches import (
    plan_group_micro_batches,
    plan_micro_batches,
    split_mini_batches,
)
from orchestrator.algorithm.schedule import Schedule
from orchestrator.algorithm.self_reward import class_weights
from orchestrator.config.training import RunConfig
from orchestrator.messages.batches import MiniBatch, StreamedPart, Term, TrainBatch
from orchestrator.pools.collect import Batch


@dataclass(frozen=True)
class StreamedSamples:
    """What the ranks have learned of a step's first mini-batch before it was complete."""

    rounds: int
    learned: Bool[np.ndarray, "samples"]
    """Samples of the whole batch whose every term the rounds have had."""
    expected_tokens: int
    expected_finished: int
    """Counts of the mini-batch by which the rounds divided their losses."""

    def part(
        self,
        mini: MiniBatch,
        correct: Bool[np.ndarray, "samples"],
        weights: Float32[np.ndarray, "samples"],
    ) -> StreamedPart | None:
        """The factors that turn the rounds' losses into those of the complete mini-batch.

        Args:
            mini: The mini-batch with its true counts.
            weights: Class weights; the rounds had 1 in their place.
        """
        if not self.rounds:
            return None
        per_finished = self.expected_finished / max(mini.total_finished, 1)
        return StreamedPart(
            self.rounds,
            {
                Term.POLICY: self.expected_tokens / mini.total_tokens,
                Term.CORRECT: per_finished * float(weights[correct].max(initial=0.0)),
                Term.WRONG: per_finished * float(weights[~correct].max(initial=0.0)),
            },
        )


def schedule(config: RunConfig) -> Schedule:
    """When the self-reward loss and the advantage mix join."""
    return Schedule(config.loss.reasoning_warmup_steps, config.loss.self_reward_warmup_steps)


def estimate_advantages(
    config: RunConfig, batch: Batch, scores: Float32[np.ndarray, "samples"] | None, step: int
) -> Float32[np.ndarray, "samples"]:
    """GRPO's advantages, mixed with the self-rewarding ones once the schedule has reached the mix."""
    # A sample whose check failed forms a group alone, whose advantage is 0: nothing rewards or punishes it.
    alone = np.where(batch.verified, batch.group, len(batch.groups) + np.arange(len(batch.group)))
    group = torch.from_numpy(alone.astype(np.int64))
    advantages = group_advantages(torch.from_numpy(batch.rewards), group)
    if scores is not None and config.loss.tau > 0 and schedule(config).advantage_mix_active(step):
        scored = torch.from_numpy(batch.scored)
        advantages = mix_self_rewards(
            advantages, torch.from_numpy(scores), scored, group, config.loss.tau, config.loss.filter_std
        )
    return advantages.numpy().astype(np.float32)


def make_train_batch(
    config: RunConfig,
    batch: Batch,
    advantages: Float32[np.ndarray, "samples"],
    c_ref: Float32[np.ndarray, "samples"],
    step: int,
    streamed: StreamedSamples | None = None,
) -> TrainBatch:
    """Class weights over the whole batch, and the plan of mini-batches, ranks and micro-batches.

    Args:
        streamed: What the ranks have learned of the first mini-batch already.
    """
    weights = class_weights(torch.from_numpy(batch.correct).float(), torch.from_numpy(batch.scored)).numpy()
    alpha = self_reward_weight(config, step)
    learned = has_policy_term(config, advantages) | ((weights > 0) & (alpha > 0))
    done = np.zeros(len(learned), bool) if streamed is None else streamed.learned
    sizes = np.bincount(batch.group).tolist()
    mini_batches = [
        _mini_batch(config, batch, np.array(samples), learned, done, alpha)
        for samples in split_mini_batches(sizes, config.learning.mini_batches)
    ]
    return TrainBatch(
        step=step,
        groups=[group.trajectories for group in batch.groups],
        samples_per_group=sizes[0],
        advantages=advantages,
        rewards=batch.rewards,
        class_weights=weights.astype(np.float32),
        c_ref=c_ref,
        mini_batches=mini_batches,
        alpha=alpha,
        streamed=streamed.part(mini_batches[0], batch.correct, weights) if streamed else None,
    )


def self_reward_weight(config: RunConfig, step: int) -> float:
    """The self-reward loss's weight in a step: 0 while the schedule leaves it out."""
    self_rewarding = config.self_reward.token is not None and schedule(config).loss_term_active(step)
    return config.loss.alpha if self_rewarding else 0.0


def has_policy_term(
    config: RunConfig, advantages: Float32[np.ndarray, "samples"]
) -> Bool[np.ndarray, "samples"]:
    """Samples whose policy loss or KL penalty may have a gradient other than 0; all of them where samples
    without any gradient are learned too."""
    return (advantages != 0) | (config.loss.kl_coef > 0) | (not config.learning.skip_zero_gradients)


def _mini_batch(
    config: RunConfig,
    batch: Batch,
    samples: Int[np.ndarray, "mini_batch"],
    learned: Bool[np.ndarray, "samples"],
    done: Bool[np.ndarray, "samples"],
    alpha: float,
) -> MiniBatch:
    """The plan of a mini-batch's samples that are still to be learned. Its counts are those of all samples.

    Each rank makes one pass even where no sample is left: AdamW's step with a gradient of 0 moves weights.
    """
    settings = config.learning
    planned = samples[(learned & ~done)[samples]]
    lengths = batch.total_lengths[planned].tolist()
    limits = settings.num_ranks, settings.tokens_per_micro_batch
    if settings.share_prefixes:
        prompts = (batch.total_lengths - batch.lengths)[planned].tolist()
        plan = plan_group_micro_batches(lengths, prompts, batch.group[planned].tolist(), *limits)
    else:
        plan = plan_micro_batches(lengths, *limits)
    # Without weight the self-reward loss is a measure alone, a mean over what the learner reads.
    scored = samples if alpha > 0 else samples[learned[samples]]
    return MiniBatch(
        plan=[[planned[micro].tolist() for micro in rank] or [[]] for rank in plan],
        total_tokens=int(batch.lengths[samples].sum()),
        total_finished=int(batch.scored[scored].sum()),
    )
