"""Learning pool: DeepSpeed ZeRO-3 ranks in Ray actors that take one policy update from a batch of trajectories.

In: a `TrainBatch`, which refers to trajectories in the object store and holds per-sample scalars and the plan of micro-batches.
Out: sums for the metrics, and the new weights as chunks in the object store.
"""

import contextlib
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from jaxtyping import Float, Float32
from ray.exceptions import GetTimeoutError, RayTaskError
from torch import Tensor
from torch.distributed import TCPStore

from actors import zero3
from actors.rows import _Rows, make_rows
from orchestrator.algorithm.loss import LossInputs, LossSettings, laser_loss
from orchestrator.algorithm.micro_batches import Plan
from orchestrator.config.training import RunConfig
from orchestrator.errors import LaserError
from orchestrator.messages.batches import MiniBatch, StepSums, TrainBatch
from orchestrator.messages.trajectories import Trajectories
from orchestrator.messages.weights import pack_chunks
from orchestrator.storage.card import SELF_REWARD
from orchestrator.storage.checkpoints import STATE, TrainingState, random_state
from orchestrator.storage.remote import RemoteStorage, place_of

PING_TIMEOUT_S = 5.0


class LearnerRank:
    """One ZeRO-3 rank. Every method is a collective: the pool calls it on all ranks, in the same order.

    Args:
        config: The run's configuration.
        model_path: Where the policy starts from.
        z_token: Id of z_c, or None when self-rewarding is off.
        rank, world_size: This rank's place in the pool.
    """

    def __init__(
        self, config: RunConfig, model_path: str, z_token: int | None, rank: int, world_size: int
    ) -> None:
        self.config, self.model_path, self.z_token = config, model_path, z_token
        self.rank, self.world_size = rank, world_size
        self.fetched: Path | None = None
        self.store: TCPStore | None = None
        self.on_gpu = config.learning.gpus_per_rank > 0
        self.device = torch.device("cuda" if self.on_gpu else "cpu")
        if not self.on_gpu:
            torch.set_num_threads(max(1, int(config.learning.cpus_per_rank)))

    def open_store(self) -> tuple[str, int]:
        """Start the store at which the ranks meet, on rank 0's node; returns its host and port."""
        host = ray.util.get_node_ip_address()
        self.store = zero3.open_store(host)
        return host, self.store.port

    def ping(self) -> int:
        return self.rank

    def gpu_ids(self) -> list[int]:
        """The node's numbers of this rank's GPUs."""
        return [int(gpu) for gpu in ray.get_gpu_ids()]

    def setup(self, address: str, port: int) -> int:
        """Join the process group and load the model into shards. Returns the number of parameters."""
        zero3.join_process_group(self.rank, self.world_size, address, port, self.on_gpu, self.store)
        import deepspeed
        from transformers import AutoTokenizer

        settings = self.config.learning
        ds_config = zero3.zero3_config(
            dtype=settings.dtype,
            grad_clip=settings.grad_clip,
            offload=settings.offload,
            on_gpu=self.on_gpu,
            extra=settings.deepspeed,
        )
        torch.manual_seed(self.config.run.seed)
        self.tokenizer = AutoTokenizer.from_pretrained(self.model_path)
        self.pad_token = (
            self.tokenizer.pad_token_id
            if self.tokenizer.pad_token_id is not None
            else self.tokenizer.eos_token_id
        )
        self.model = zero3.load_model(
            self.model_path,
            ds_config,
            dtype=settings.dtype,
            attention=settings.attention,
            gradient_checkpointing=settings.gradient_checkpointing,
        )
        optimizer = _adamw(self.model, settings)
        self.engine, self.optimizer, *_ = deepspeed.initialize(
            model=self.model, optimizer=optimizer, config=ds_config
        )
        self.engine.train()
        self.reference = None
        if self.config.needs_reference:
            reference = zero3.load_model(
                self.model_path, ds_config, dtype=settings.dtype, attention=settings.attention
            )
            self.reference, *_ = deepspeed.initialize(model=reference, config=ds_config)
            self.reference.eval()
        return zero3.parameter_count(self.model)

    def step(self, batch: TrainBatch) -> StepSums:
        """One optimiser step a mini-batch."""
        started = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(batch.step)
        groups = self._fetch(batch)
        several = len(batch.mini_batches) > 1
        # Later mini-batches are clipped against the policy before the first one; a single one is on-policy.
        old = [self._logprobs(mini, groups) if several else None for mini in batch.mini_batches]
        sums = StepSums()
        for number, (mini, old_logprobs) in enumerate(zip(batch.mini_batches, old, strict=True)):
            self._accumulate(batch, mini, groups, old_logprobs, sums, compare=number == 0)
            self.engine.step()
        sums.grad_norm = float(self.engine.get_global_grad_norm())
        sums.seconds = time.perf_counter() - started
        return sums

    @torch.no_grad()
    def reference_z_logprobs(
        self, refs: Sequence[Any], plan: Plan, samples_per_group: int
    ) -> dict[int, float]:
        """log pi_ref(z_c | x, y, EOS) of this rank's finished samples, by sample, for `loss.c_ref: exact`."""
        assert self.reference is not None
        groups = self._fetch_groups(
            refs, sorted({index // samples_per_group for micro in plan[self.rank] for index in micro})
        )
        found: dict[int, float] = {}
        for micro in plan[self.rank]:
            rows = self._rows(micro, groups)
            logprobs, _ = self.reference(rows.input_ids, rows.read, rows.targets)
            at_end = logprobs[~rows.is_token].tolist()
            found |= {
                index: value
                for index, value in zip(micro, at_end, strict=False)
                if groups[index // samples_per_group].finished[index % samples_per_group]
            }
        return found

    def publish(self, dtype: str, chunk_bytes: int) -> list[Any]:
        """Gather the weights, cast them to the engines' `dtype` and put them in the object store; refs on rank 0, [] elsewhere."""
        parameters = zero3.gathered_parameters(self.model, chunk_bytes, is_sender=self.rank == 0)
        return [ray.put(chunk) for chunk in pack_chunks(parameters, getattr(torch, dtype), chunk_bytes)]

    def release_device(self) -> None:
        """Move shards, gradients and optimiser states to the CPU's memory, for an engine that takes its turn on this rank's GPU."""
        zero3.offload_states(self.engine)

    def take_device(self) -> None:
        """Undo `release_device`."""
        zero3.reload_states(self.engine)

    def save(self, folder: str) -> None:
        """Model and optimiser shards and random state, restorable at the same number of ranks."""
        self.engine.save_checkpoint(folder, tag="zero3", save_latest=False)
        torch.save({"torch": torch.get_rng_state()}, Path(folder) / random_state(self.rank))

    def upload(self, checkpoint: str, place: str) -> str | None:
        """Copy what this rank has written of a checkpoint to `place` in `run.remote`; where the driver does not see it, nothing stays.

        Returns why it could not, if so: an error would end the others' uploads, and Ray would print each rank's.
        """
        folder = Path(checkpoint)
        files = [
            path
            for path in folder.glob("learner/**/*")
            if path.is_file() and _is_of_rank(path.name, self.rank)
        ]
        if self.rank == 0:
            files += [
                path for path in folder.glob("export/**/*") if path.is_file() and path.name != SELF_REWARD
            ]
        try:
            self._storage().upload(files, folder, place)
            return None
        except LaserError as error:
            return str(error)
        finally:
            if not (folder / STATE).exists():
                for path in files:
                    path.unlink()

    def fetch(self, checkpoint: str, state: TrainingState) -> str | None:
        """Have `load` find this rank's files of a checkpoint, from `run.remote` if they are not here. Returns why it could not, if so."""
        folder, self.fetched = Path(checkpoint), None
        with contextlib.suppress(FileNotFoundError):
            # The same folder on this node may be from another attempt, which the driver knows nothing of.
            if (folder / STATE).read_text() == state.text() and (
                folder / "learner" / random_state(self.rank)
            ).exists():
                return None
        try:
            remote = self._storage()
            if not remote.holds(state):
                return (
                    f"{folder}: holds nothing of learner rank {self.rank} on node {ray.util.get_node_ip_address()}, and {remote.shown} "
                    "has no such checkpoint. Start it where its ranks were, or delete that folder to continue from the checkpoint before"
                )
            self.fetched = folder.with_name(f".partial-fetched-{self.rank}")
            shutil.rmtree(self.fetched, ignore_errors=True)
            remote.fetch(
                f"{place_of(state.step)}/learner", self.fetched, lambda name: _is_of_rank(name, self.rank)
            )
        except LaserError as error:
            return str(error)
        return None

    def load(self, folder: str) -> None:
        """Restore what `save` wrote, or what `fetch` has brought instead."""
        source = self.fetched or Path(folder)
        path, _ = self.engine.load_checkpoint(str(source), tag="zero3")
        if path is None:
            raise RuntimeError(f"{source}: DeepSpeed found no checkpoint there")
        torch.set_rng_state(torch.load(source / random_state(self.rank))["torch"])
        if self.fetched is not None:
            shutil.rmtree(self.fetched)
            self.fetched = None

    def export(self, folder: str) -> None:
        """Write the weights as a Hugging Face folder (rank 0 writes)."""
        zero3.export_model(self.model, Path(folder), self.tokenizer, is_sender=self.rank == 0)

    def gradients(self, batch: TrainBatch) -> tuple[StepSums, dict[str, np.ndarray]]:
        """Losses and full gradients of a batch of one mini-batch, without an optimiser step: to replay a step and look into it."""
        from deepspeed.utils import safe_get_full_grad

        sums = StepSums()
        self._accumulate(batch, batch.mini_batches[0], self._fetch(batch), None, sums, compare=True)
        gradients = {
            name: safe_get_full_grad(p).cpu().numpy() for name, p in self.model.model.named_parameters()
        }
        self.engine.optimizer.zero_grad()
        return sums, gradients

    def _accumulate(
        self,
        batch: TrainBatch,
        mini: MiniBatch,
        groups: dict[int, Trajectories],
        old_logprobs: list[Tensor] | None,
        sums: StepSums,
        compare: bool,
    ) -> None:
        """Forward and backward passes of a mini-batch. The same number on every rank, since ranks gather weights together."""
        micro_batches = mini.plan[self.rank]
        for number, micro in enumerate(micro_batches):
            self.engine.set_gradient_accumulation_boundary(number == len(micro_batches) - 1)
            rows = self._rows(micro, groups)
            logprobs, entropy = self.engine(rows.input_ids, rows.read, rows.targets)
            if not micro:
                # Nothing to learn from, but the peers wait for this rank's backward pass.
                self.engine.backward(logprobs.sum() * 0.0)
                continue
            token_logprobs, z_logprobs = logprobs[rows.is_token], logprobs[~rows.is_token]
            scored = self.z_token is not None
            outputs = laser_loss(
                LossInputs(
                    logprobs=token_logprobs,
                    advantages=self._tensor(batch.advantages[micro])[rows.sample],
                    total_tokens=mini.total_tokens,
                    total_finished=mini.total_finished,
                    old_logprobs=None if old_logprobs is None else old_logprobs[number],
                    behaviour_logprobs=rows.behaviour_logprobs,
                    ref_logprobs=self._reference_logprobs(rows),
                    z_logprobs=z_logprobs if scored else None,
                    c_ref=self._tensor(batch.c_ref[micro]) if scored else None,
                    rewards=self._tensor(batch.rewards[micro]) if scored else None,
                    weights=self._tensor(batch.class_weights[micro]) if scored else None,
                ),
                self._loss_settings(batch.alpha),
            )
            # ZeRO averages gradients over ranks, and the loss is already divided by counts over all of them.
            self.engine.backward(outputs.total * self.world_size)
            sums.add(outputs, entropy[rows.is_token], len(batch.mini_batches))
            if compare:
                sums.compare(token_logprobs, rows.behaviour_logprobs)
                if scored:
                    gaps = (z_logprobs.detach() - rows.behaviour_z_logprobs).abs().nan_to_num()
                    sums.z_mismatch_max = max(sums.z_mismatch_max, gaps.max().item())

    @torch.no_grad()
    def _logprobs(self, mini: MiniBatch, groups: dict[int, Trajectories]) -> list[Tensor]:
        """Log-probs of the response tokens under the current policy, by micro-batch."""
        found = []
        for micro in mini.plan[self.rank]:
            rows = self._rows(micro, groups)
            logprobs, _ = self.engine(rows.input_ids, rows.read, rows.targets)
            found.append(logprobs[rows.is_token])
        return found

    @torch.no_grad()
    def _reference_logprobs(self, rows: _Rows) -> Tensor | None:
        if self.reference is None or self.config.loss.kl_coef == 0:
            return None
        logprobs, _ = self.reference(rows.input_ids, rows.read, rows.targets)
        return logprobs[rows.is_token]

    def _fetch(self, batch: TrainBatch) -> dict[int, Trajectories]:
        """The groups that this rank's micro-batches touch, by number."""
        touched = {
            index // batch.samples_per_group
            for mini in batch.mini_batches
            for micro in mini.plan[self.rank]
            for index in micro
        }
        return self._fetch_groups(batch.groups, sorted(touched))

    @staticmethod
    def _fetch_groups(refs: Sequence[Any], numbers: Sequence[int]) -> dict[int, Trajectories]:
        return dict(zip(numbers, ray.get([refs[number] for number in numbers]), strict=True))

    def _rows(self, micro: Sequence[int], groups: dict[int, Trajectories]) -> _Rows:
        places = [divmod(index, len(next(iter(groups.values())))) for index in micro]
        samples = [groups[number].sample(position) for number, position in places]
        return make_rows(samples, self.z_token, self.pad_token, self.device)

    def _tensor(self, values: Float32[np.ndarray, "batch"]) -> Float[Tensor, "batch"]:
        return torch.from_numpy(values).to(self.device)

    def _loss_settings(self, alpha: float) -> LossSettings:
        loss = self.config.loss
        return LossSettings(
            alpha=alpha,
            beta_v=loss.beta_v,
            kl_coef=loss.kl_coef,
            kl_estimator=loss.kl_estimator,
            clip_low=loss.clip_low,
            clip_high=loss.clip_high,
            dual_clip=loss.dual_clip,
            tis_cap=loss.importance_cap,
        )

    def _storage(self) -> RemoteStorage:
        assert self.config.run.remote is not None
        return RemoteStorage(self.config.run.remote, self.config.run.name)

    def _lr(self, step: int) -> float:
        settings = self.config.learning
        return settings.lr * min(1.0, step / settings.warmup_steps if settings.warmup_steps else 1.0)


def start_ranks(
    config: RunConfig, model_path: str, z_token: int | None, spawn: Any, timeout_s: float | None = None
) -> list[Any]:
    """Start all ranks and wait until they hold the model. `spawn(cls, rank, *arguments)` makes an actor.

    Raises:
        ray.exceptions.GetTimeoutError: They have not started within `timeout_s`.
        ray.exceptions.RayActorError: A rank died while it started.
    """
    world_size = config.learning.num_ranks
    ranks = [
        spawn(LearnerRank, rank, config, model_path, z_token, rank, world_size) for rank in range(world_size)
    ]
    address, port = ray.get(ranks[0].open_store.remote(), timeout=timeout_s)
    call_ranks(ranks, "setup", address, port, timeout_s=timeout_s)
    return ranks


def call_ranks(
    ranks: Sequence[Any], method: str, *arguments: Any, timeout_s: float | None = None
) -> list[Any]:
    """Call a collective of all ranks; returns what each returned.

    Raises:
        ray.exceptions.RayActorError: A rank died.
        ray.exceptions.RayTaskError: A rank failed, and all of them live.
        ray.exceptions.GetTimeoutError: They have not returned within `timeout_s`.
    """
    try:
        return ray.get([getattr(rank, method).remote(*arguments) for rank in ranks], timeout=timeout_s)
    except RayTaskError:
        # A rank fails in a collective when its peer has died: report the death, from which the run can recover.
        check_alive(ranks)
        raise


def check_alive(ranks: Sequence[Any]) -> None:
    """Raises RayActorError when a rank has died; one that is busy passes."""
    for rank in ranks:
        with contextlib.suppress(GetTimeoutError):
            ray.get(rank.ping.remote(), timeout=PING_TIMEOUT_S)


def _is_of_rank(name: str, rank: int) -> bool:
    """Whether a rank writes the file of this name in a checkpoint: its own shards and random state; rank 0 also what is there once."""
    named = re.match(r"(?:bf16_)?(?:zero_pp_rank|random_state)_(\d+)", name)
    return rank == (int(named[1]) if named else 0)


def _adamw(model: torch.nn.Module, settings: Any) -> torch.optim.Optimizer:
    arguments = {"lr": settings.lr, "betas": tuple(settings.betas), "weight_decay": settings.weight_decay}
    if settings.offload != "none":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(model.parameters(), adamw_mode=True, **arguments)
    return torch.optim.AdamW(model.parameters(), fused=settings.gpus_per_rank > 0, **arguments)
