"""A learner rank's settings, the batches that it trains on, and the sums that it returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from orchestrator.algorithm.loss import LossOutputs, LossSettings
from orchestrator.algorithm.micro_batches import MicroBatchPlan
from orchestrator.algorithm.policy import kl_terms
from orchestrator.messages.spans import SpanList

FAULTS = (
    "the policy's log-probs",
    "the engine's log-probs",
    "the reference model's log-probs",
    "the loss",
    "the gradients",
)
"""What of an optimiser step may not be finite; then no rank takes it."""

TrajectoriesRef = Any
"""A Ray ObjectRef to `Trajectories`."""


@dataclass(frozen=True)
class PolicySettings:
    """How a ZeRO-3 rank holds a policy and its optimiser, in the cold start and in reinforcement learning."""

    model_path: str
    """Hugging Face folder or hub name that the weights come from."""
    on_gpu: bool
    threads: int
    """Of torch, in a rank on CPU."""
    dtype: str
    """Precision of the forward and backward pass, by torch's name."""
    lr: float
    """Peak learning rate of AdamW."""
    betas: tuple[float, float]
    weight_decay: float
    grad_clip: float
    """Largest global norm of the gradients; larger ones are scaled down to it."""
    gradient_checkpointing: bool
    offload: str = "none"
    """What ZeRO-3 keeps in CPU memory: `none`, `optimizer` or `all`."""
    attention: str = "sdpa"
    """transformers' attention implementation."""
    shares_prefixes: bool = False
    """Whether tokens that samples of a micro-batch have in common at their start are computed once."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Sections merged over the DeepSpeed configuration that the other settings make."""
    eos_tokens: tuple[int, ...] = ()
    """What the exported model names as its EOS tokens; empty keeps those of the model."""
    chat_template: str | None = None
    """The chat template of the exported model; None keeps the model's own."""


@dataclass(frozen=True)
class LearnerSettings:
    """Settings of a rank of the learning pool; all ranks have the same."""

    policy: PolicySettings
    num_ranks: int
    seed: int
    warmup_steps: int
    """Steps over which the learning rate rises linearly to its peak."""
    loss: LossSettings
    """Its `alpha` is replaced by each batch's."""
    z_token: int | None
    """Id of z_c; None switches self-rewarding off."""
    needs_reference: bool
    """Whether the rank also holds the initial model, for a KL penalty or an exact c_ref."""
    run_name: str
    remote: str | None
    """`run.remote`, the URL under which the run's checkpoints are kept too."""


@dataclass(frozen=True)
class MiniBatch:
    """The samples of one optimiser step, by rank and micro-batch, and its counts over all ranks."""

    plan: MicroBatchPlan
    total_tokens: int
    total_finished: int


class Term(StrEnum):
    """A part of the loss that a factor of its own multiplies, known once the mini-batch is complete."""

    POLICY = "policy"
    """Policy loss and KL penalty."""
    CORRECT = "correct"
    """Self-reward loss of the correct samples."""
    WRONG = "wrong"
    """Self-reward loss of the wrong samples."""


@dataclass(frozen=True)
class StreamedPart:
    """What the ranks have learned of a step's first mini-batch before it was complete."""

    rounds: int
    """Their number; a rank refuses a step whose rounds are not those that it has seen."""
    factors: Mapping[Term, float]
    """From each term's gradient in the rounds to that of the complete mini-batch, before `alpha`."""


@dataclass(frozen=True)
class TrainBatch:
    """One rollout batch. Samples are numbered group after group, and every array has one entry a sample."""

    step: int
    groups: Sequence[TrajectoriesRef]
    """A rank fetches the groups that its micro-batches touch."""
    samples_per_group: int
    advantages: Float32[np.ndarray, "samples"]
    rewards: Float32[np.ndarray, "samples"]
    class_weights: Float32[np.ndarray, "samples"]
    c_ref: Float32[np.ndarray, "samples"]
    mini_batches: Sequence[MiniBatch]
    alpha: float
    """Weight of the self-reward loss in this step: 0 while the schedule leaves it out."""
    streamed: StreamedPart | None = None
    """Of the first mini-batch, whose plan then holds the rest."""

    def groups_of(self, rank: int) -> list[int]:
        """Numbers of the groups that a rank's micro-batches touch."""
        return sorted(
            {
                index // self.samples_per_group
                for mini in self.mini_batches
                for micro in mini.plan[rank]
                for index in micro
            }
        )


@dataclass(frozen=True)
class StreamedRound:
    """Micro-batches of a step's first mini-batch that is not complete yet, and the term to learn of them."""

    number: int
    """Counts from 0 in each step."""
    term: Term
    batch: TrainBatch
    """Holds what is known so far. Its only mini-batch is the round, with provisional counts: those of a
    complete mini-batch whose every sample is finished and of full length. Samples have class weight 1, or 0
    where they have no score."""
    correct: Bool[np.ndarray, "samples"]
    """The class of each sample."""


@dataclass
class StepSums:
    """Sums of one rank over a step; added up over ranks they are the batch's. KL divergences are in nats."""

    policy_loss: float = 0.0
    self_reward_loss: float = 0.0
    total_loss: float = 0.0
    kl: float = 0.0
    tokens: int = 0
    clipped_tokens: int = 0
    truncated_tokens: int = 0
    masked_tokens: int = 0
    importance: float = 0.0
    """Sum over tokens of their importance weights."""
    importance_squares: float = 0.0
    """Sum of those weights' squares."""
    entropy: float = 0.0
    """Sum over tokens."""
    z_mass: float = 0.0
    """Sum over tokens of z_c's probability in their place."""
    compared_tokens: int = 0
    """Tokens of the first mini-batch, in which engine and learner have the same weights at staleness 0."""
    mismatch_kl: float = 0.0
    """Sum over the compared tokens of k3 estimates of KL(engine || learner)."""
    mismatch_abs: float = 0.0
    """Sum over the compared tokens of |engine - learner| log-prob."""
    mismatch_max: float = 0.0
    z_mismatch_max: float = 0.0
    """Largest |engine - learner| of log pi(z_c), over the same samples."""
    grad_norm: float = 0.0
    """Of the last optimiser step, before clipping; the same on every rank."""
    seconds: float = 0.0
    """Of the whole update."""
    streamed_seconds: float = 0.0
    """Of its rounds before the batch was complete."""
    spans: SpanList = field(default_factory=SpanList)
    """The step and its micro-batches' passes, for the run's trace."""
    skipped: int = 0
    """Optimiser steps that were not taken; the same on every rank."""
    faults: tuple[str, ...] = ()
    """What was not finite then, of `FAULTS`; the same on every rank."""
    weights_finite: bool = True
    """Whether the policy's weights are finite after the step, with a finite norm; the same on every rank."""

    def add(self, outputs: LossOutputs, entropy: Float[Tensor, "tokens"], mini_batches: int) -> None:
        """Add a micro-batch; losses become means over the step's mini-batches."""
        self.policy_loss += outputs.policy.item() / mini_batches
        self.self_reward_loss += outputs.self_reward.item() / mini_batches
        self.total_loss += outputs.total.item() / mini_batches
        self.kl += outputs.kl.item() / mini_batches
        self.clipped_tokens += int(outputs.clipped_tokens)
        self.truncated_tokens += int(outputs.importance.truncated)
        self.masked_tokens += int(outputs.importance.masked)
        self.importance += outputs.importance.weights.item()
        self.importance_squares += outputs.importance.squares.item()
        self.entropy += entropy.sum().item()
        self.tokens += len(entropy)

    def add_streamed(self, rounds: "StepSums", factor: float) -> None:
        """Add the rounds of a term, whose losses count `factor` times."""
        self.policy_loss += factor * rounds.policy_loss
        self.self_reward_loss += factor * rounds.self_reward_loss
        self.kl += factor * rounds.kl
        self.clipped_tokens += rounds.clipped_tokens
        self.truncated_tokens += rounds.truncated_tokens
        self.masked_tokens += rounds.masked_tokens
        self.importance += rounds.importance
        self.importance_squares += rounds.importance_squares
        self.entropy += rounds.entropy
        self.z_mass += rounds.z_mass
        self.tokens += rounds.tokens
        self.compared_tokens += rounds.compared_tokens
        self.mismatch_kl += rounds.mismatch_kl
        self.mismatch_abs += rounds.mismatch_abs
        self.mismatch_max = float(np.maximum(self.mismatch_max, rounds.mismatch_max))
        self.z_mismatch_max = float(np.maximum(self.z_mismatch_max, rounds.z_mismatch_max))

    def compare(self, learner: Float[Tensor, "tokens"], engine: Float[Tensor, "tokens"]) -> None:
        """Add the differences between the engine's and the learner's log-probs of the same tokens."""
        learner = learner.detach()
        difference = (learner - engine).abs()
        self.compared_tokens += len(difference)
        self.mismatch_kl += kl_terms(engine, learner, "k3").sum().item()
        self.mismatch_abs += difference.sum().item()
        self.mismatch_max = float(np.maximum(self.mismatch_max, difference.max().item()))

    def compare_scores(self, learner: Float[Tensor, "samples"], engine: Float[Tensor, "samples"]) -> None:
        """The same for log pi(z_c), which is NaN in `engine` where a sample is unfinished."""
        gaps = torch.where(engine.isnan(), 0.0, (learner.detach() - engine).abs())
        self.z_mismatch_max = float(np.maximum(self.z_mismatch_max, gaps.max().item()))
