"""What the learner trains on, and the sums that it returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32
from torch import Tensor

from orchestrator.algorithm.loss import LossOutputs
from orchestrator.algorithm.micro_batches import Plan
from orchestrator.algorithm.policy import kl_terms


@dataclass(frozen=True)
class MiniBatch:
    """The samples of one optimiser step, by rank and micro-batch, and its counts over all ranks."""

    plan: Plan
    total_tokens: int
    total_finished: int


@dataclass(frozen=True)
class TrainBatch:
    """One rollout batch. Samples are numbered group after group; every array has one entry a sample."""

    step: int
    groups: Sequence[Any]
    """ObjectRefs to `Trajectories`; a rank fetches those that its micro-batches touch."""
    samples_per_group: int
    advantages: Float32[np.ndarray, "samples"]
    rewards: Float32[np.ndarray, "samples"]
    class_weights: Float32[np.ndarray, "samples"]
    c_ref: Float32[np.ndarray, "samples"]
    mini_batches: Sequence[MiniBatch]
    alpha: float
    """Weight of the self-reward loss in this step: 0 while the schedule leaves it out."""


@dataclass
class StepSums:
    """What one rank saw in a step; added up over ranks it is the batch. KL divergences are in nats."""

    policy_loss: float = 0.0
    self_reward_loss: float = 0.0
    total_loss: float = 0.0
    kl: float = 0.0
    tokens: int = 0
    clipped_tokens: int = 0
    entropy: float = 0.0
    """Sum over tokens."""
    compared_tokens: int = 0
    """Tokens of the first mini-batch: there engine and learner have the same weights, and their log-probs are compared."""
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

    def add(self, outputs: LossOutputs, entropy: Float[Tensor, "tokens"], mini_batches: int) -> None:
        """Take in a micro-batch; losses become means over the step's mini-batches."""
        self.policy_loss += outputs.policy.item() / mini_batches
        self.self_reward_loss += outputs.self_reward.item() / mini_batches
        self.total_loss += outputs.total.item() / mini_batches
        self.kl += outputs.kl.item() / mini_batches
        self.clipped_tokens += int(outputs.clipped_tokens)
        self.entropy += entropy.sum().item()
        self.tokens += len(entropy)

    def compare(self, learner: Float[Tensor, "tokens"], engine: Float[Tensor, "tokens"]) -> None:
        """Take in how far the engine's log-probs are from the learner's."""
        learner = learner.detach()
        difference = (learner - engine).abs()
        self.compared_tokens += len(difference)
        self.mismatch_kl += kl_terms(engine, learner, "k3").sum().item()
        self.mismatch_abs += difference.sum().item()
        self.mismatch_max = max(self.mismatch_max, difference.max().item())
