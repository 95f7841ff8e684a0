"""A rank of the learning pool: a DeepSpeed ZeRO-3 rank in a Ray actor that updates the policy with its peers.

In: a `TrainBatch`: references to trajectories in the object store, scalars for each sample, and the plan of
micro-batches. Out: sums for the metrics, and the new weights as chunks in the object store.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from jaxtyping import Bool
from torch import Tensor
from torch.distributed import TCPStore

from actors import process_group, zero3
from actors.passes import Passes
from actors.progress import advance, report_progress
from actors.rank_files import RankFiles
from actors.resharding import load_resharded
from actors.rows import RolloutRows
from actors.streaming import StreamedStep
from orchestrator.algorithm.micro_batches import MicroBatchPlan
from orchestrator.cluster.waits import fetched
from orchestrator.messages.batches import (
    LearnerSettings,
    StepSums,
    StreamedRound,
    TrainBatch,
    TrajectoriesRef,
)
from orchestrator.messages.trajectories import Trajectories
from orchestrator.messages.weights import PublishedWeights, pack_chunks
from orchestrator.storage.checkpoints import random_state
from orchestrator.storage.files import without_patterns
from orchestrator.storage.shards import ShardFiles

SHARDS = "zero3"
"""The folder of DeepSpeed's files in a checkpoint's `learner/`."""


class LearnerRank(RankFiles):
    """One ZeRO-3 rank. After `open_store` (rank 0 only) and `setup` on all ranks it holds the policy.

    Every other method but `ping` and `gpu_ids` is a collective: the driver calls it on all ranks, in the same
    order.

    Args:
        settings: The same for all ranks.
        rank: This rank's number, from 0.
    """

    def __init__(self, settings: LearnerSettings, rank: int) -> None:
        report_progress()
        self.settings = settings
        self.rank = rank
        self.files = ShardFiles(rank, settings.num_ranks, settings.run_name, settings.remote)
        self.store: TCPStore | None = None
        self.reference: Any = None
        """The initial model's DeepSpeed engine, where `settings.needs_reference`."""
        self._learner: zero3.Learner | None = None
        self._passes: Passes | None = None
        self._streamed: StreamedStep | None = None
        """None before the first use of `streamed`."""
        self._probe: RolloutRows | None = None
        """A micro-batch of the last step that was taken, for `health`."""

    @property
    def learner(self) -> zero3.Learner:
        """The policy with its optimiser, which `setup` loads."""
        assert self._learner is not None, "setup comes first"
        return self._learner

    @property
    def passes(self) -> Passes:
        """Forward and backward passes of the policy, which `setup` loads."""
        assert self._passes is not None, "setup comes first"
        return self._passes

    def open_store(self) -> tuple[str, int]:
        """Start the store at which the ranks meet, on rank 0's node; returns its host and port."""
        host = ray.util.get_node_ip_address()
        self.store = process_group.open_store(host)
        return host, self.store.port

    def ping(self) -> int:
        return self.rank

    def gpu_ids(self) -> list[int]:
        """The node's numbers of this rank's GPUs."""
        return [int(gpu) for gpu in ray.get_gpu_ids()]

    def setup(self, address: str, port: int) -> int:
        """Join the process group and load the model into shards.

        Args:
            address: Where rank 0's store listens.
            port: The store's port.

        Returns:
            The number of the model's parameters.
        """
        settings = self.settings
        process_group.join_process_group(
            self.rank, settings.num_ranks, address, port, settings.policy.on_gpu, self.store
        )
        torch.manual_seed(settings.seed)
        self._learner = zero3.Learner(settings.policy)
        if settings.needs_reference:
            self.reference = zero3.load_reference(settings.policy)
        self._passes = Passes(self._learner, self.reference, settings)
        return zero3.parameter_count(self.learner.model)

    def stream(self, part: StreamedRound) -> None:
        """Learn a round of the next step's first mini-batch, which is not complete yet.

        Raises:
            RuntimeError: A round is missing.
            ValueError: ZeRO-3 offloads.
        """
        self.streamed.learn(part, self._fetch_groups(part.batch.groups, part.batch.groups_of(self.rank)))

    @property
    def streamed(self) -> StreamedStep:
        """What `stream` has learned.

        Raises:
            ValueError: ZeRO-3 offloads.
        """
        self._streamed = self._streamed or StreamedStep(self.passes)
        return self._streamed

    def reserve(self, copies: int) -> bool:
        """Allocate what `stream` needs; returns whether the device has the memory.

        Args:
            copies: Gradients beside the rank's own.
        """
        return self.streamed.gradients.reserve(copies)

    def step(self, batch: TrainBatch) -> StepSums:
        """Take one optimiser step for each mini-batch.

        Raises:
            RuntimeError: The ranks have streamed other rounds of the step than the batch says.
        """
        started, sums = time.perf_counter(), StepSums()
        with sums.spans("step"):
            self._take_steps(batch, sums)
        sums.seconds += time.perf_counter() - started
        return sums

    def _take_steps(self, batch: TrainBatch, sums: StepSums) -> None:
        warmup = self.settings.warmup_steps
        self.learner.set_learning_rate(
            self.settings.policy.lr * min(1.0, batch.step / warmup if warmup else 1.0)
        )
        groups = self._fetch_groups(batch.groups, batch.groups_of(self.rank))
        # Later mini-batches are clipped against the policy before the first one, which itself is on-policy.
        old = [None, *(self.passes.logprobs(mini, groups) for mini in batch.mini_batches[1:])]
        streamed = self._finish_streamed(batch, sums)
        for number, (mini, old_logprobs) in enumerate(zip(batch.mini_batches, old, strict=True)):
            faults = self.passes.accumulate(batch, mini, groups, old_logprobs, sums, compare=number == 0)
            if number == 0:
                faults |= streamed
            found = self.learner.update(faults)
            advance(f"the optimiser step of mini-batch {number}")
            if found:
                sums.skipped += 1
                sums.faults = tuple(dict.fromkeys([*sums.faults, *found]))
            elif (micro := mini.plan[self.rank][0]) or self._probe is None:
                self._probe = self.passes.rows(micro, groups)
        # DeepSpeed calls any norm that is not finite infinite, and has none where other values were not.
        sums.grad_norm = self.learner.grad_norm if not sums.skipped else math.inf
        sums.weights_finite = self.learner.weights_finite()

    def health(self) -> str | None:
        """What makes the weights unfit for a checkpoint, in words; None for healthy ones."""
        probe = self._probe
        return self.learner.health(None if probe is None else (probe.input_ids, probe.read, probe.targets))

    def gradients(self, batch: TrainBatch) -> tuple[StepSums, dict[str, np.ndarray]]:
        """Losses and gradients of a batch of one mini-batch, without an optimiser step.

        Returns:
            The sums, and each parameter's whole gradient by name.
        """
        from deepspeed.utils import safe_get_full_grad

        sums = StepSums()
        self._finish_streamed(batch, sums)
        self.passes.accumulate(
            batch,
            batch.mini_batches[0],
            self._fetch_groups(batch.groups, batch.groups_of(self.rank)),
            None,
            sums,
            compare=True,
        )
        gradients = {
            name: safe_get_full_grad(parameter).cpu().numpy()
            for name, parameter in self.learner.model.model.named_parameters()
        }
        self.learner.engine.optimizer.zero_grad()
        return sums, gradients

    @torch.no_grad()
    def reference_z_logprobs(
        self, refs: Sequence[TrajectoriesRef], plan: MicroBatchPlan, samples_per_group: int
    ) -> dict[int, float]:
        """log pi_ref(z_c | x, y, EOS) of this rank's finished samples, by sample, for `loss.c_ref: exact`."""
        assert self.reference is not None
        groups = self._fetch_groups(
            refs, sorted({index // samples_per_group for micro in plan[self.rank] for index in micro})
        )
        found: dict[int, float] = {}
        for micro in plan[self.rank]:
            advance("a micro-batch of the reference model")
            rows = self.passes.rows(micro, groups)
            logprobs, _ = self.reference(rows.input_ids, rows.read, rows.targets)
            at_end = logprobs[~rows.is_token].tolist()
            found |= {
                index: value
                for index, value in zip(micro, at_end, strict=False)
                if groups[index // samples_per_group].finished[index % samples_per_group]
            }
        return found

    def publish(self, dtype: str, chunk_bytes: int) -> PublishedWeights:
        """Gather the weights and put them in the object store.

        Args:
            dtype: The engines' precision, by torch's name, to which weights are cast.
            chunk_bytes: Largest size of a chunk of several parameters.

        Returns:
            All weights on rank 0, and none elsewhere.
        """
        model = self.learner.model
        parameters = zero3.gathered_parameters(model, is_sender=self.rank == 0)
        chunks = pack_chunks(parameters, getattr(torch, dtype), chunk_bytes, model.tied_names())
        refs, size = [], 0
        for chunk in chunks:
            refs.append(ray.put(chunk))
            size += chunk.data.nbytes
            advance(f"chunk {len(refs)} of the weights")
        return PublishedWeights(refs, size)

    def release_device(self) -> None:
        """Move everything to the CPU's memory, so that an engine can use this rank's GPU in its turn."""
        zero3.offload_states(self.learner.engine)

    def take_device(self) -> None:
        """Undo `release_device`."""
        zero3.reload_states(self.learner.engine)

    def save(self, folder: str) -> None:
        """Write model and optimiser shards and the random state."""
        self.learner.engine.save_checkpoint(folder, tag=SHARDS, save_latest=False)
        torch.save({"torch": torch.get_rng_state()}, Path(folder) / random_state(self.rank))

    def load(self, folder: str, saved_by: int) -> None:
        """Restore what `save` wrote there, or what `fetch` has downloaded in its place.

        Args:
            saved_by: How many ranks saved it. If that is another number than today's, a rank without a saved
                random state takes that of another rank.
        """
        engine = self.learner.engine
        with self.files.readable(Path(folder)) as source:
            if saved_by != self.settings.num_ranks:
                load_resharded(engine, source, SHARDS, saved_by)
            elif engine.load_checkpoint(without_patterns(str(source.absolute())), tag=SHARDS)[0] is None:
                raise RuntimeError(f"{source}: DeepSpeed found no checkpoint there")
            torch.set_rng_state(torch.load(source / random_state(self.rank % saved_by))["torch"])

    def export(self, folder: str) -> None:
        """Write the weights as a Hugging Face folder (rank 0 writes)."""
        self.learner.export(Path(folder), is_sender=self.rank == 0)

    def _finish_streamed(self, batch: TrainBatch, sums: StepSums) -> Bool[Tensor, "faults"]:
        """Begin the step with the gradients of its rounds; returns which of `FAULTS` they have had."""
        if self._streamed is None and batch.streamed is None:
            return self.passes.no_faults()
        return self.streamed.finish(batch, sums)

    @staticmethod
    def _fetch_groups(refs: Sequence[TrajectoriesRef], numbers: Sequence[int]) -> dict[int, Trajectories]:
        fetched_groups = fetched([refs[number] for number in numbers], "the trajectories")
        return dict(zip(numbers, fetched_groups, strict=True))
