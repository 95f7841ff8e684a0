"""The LaSeR training loop: algorithm 1 of the paper (arXiv 2510.14943) over three pools of actors.

In: a configuration. Out: a trained model with its self-reward card, checkpoints, an MLflow run and `summary.json`. The driver holds
refs and per-sample scalars; tokens and weights go from pool to pool through the Ray object store.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float32
from ray.exceptions import ObjectLostError
from rich.markup import escape

from orchestrator.algorithm.c_ref import check_c_ref
from orchestrator.algorithm.metrics import self_verification
from orchestrator.algorithm.micro_batches import plan_micro_batches
from orchestrator.algorithm.self_reward import Calibration, calibrate_c_ref, self_reward_score
from orchestrator.config.training import RunConfig
from orchestrator.data.prompts import PromptOrder
from orchestrator.errors import RunError
from orchestrator.messages.batches import StepSums
from orchestrator.messages.requests import GroupRequest
from orchestrator.messages.verdicts import Status
from orchestrator.pools.collect import Batch, CollectTimes, Group, collect, save_rollouts, save_samples
from orchestrator.pools.training import Pools
from orchestrator.storage.card import SELF_REWARD, SelfRewardCard, template_hash
from orchestrator.storage.checkpoints import Checkpoints, TrainingState
from orchestrator.storage.remote import RemoteStorage
from orchestrator.terminal import RunProgress
from orchestrator.tracking.tracker import Tracker
from orchestrator.training.calibration import C_REF_TOLERANCE, CALIBRATION_SEED
from orchestrator.training.context import SweepRole
from orchestrator.training.evaluate import (
    EVALUATION_SEED,
    describe,
    evaluate,
    sampled_solutions,
    score_figure,
    summarise,
)
from orchestrator.training.live_metrics import LiveMetrics
from orchestrator.training.preparation import Prepared
from orchestrator.training.stopping import Stop, StopRequested
from orchestrator.training.train_batch import estimate_advantages, make_train_batch

T = TypeVar("T")


class Trainer:
    """One run, from its start or its newest checkpoint to its last step."""

    def __init__(
        self,
        config: RunConfig,
        prepared: Prepared,
        pools: Pools,
        tracker: Tracker,
        progress: RunProgress,
        live: LiveMetrics,
        stop: Stop,
        role: SweepRole | None = None,
    ) -> None:
        self.config, self.prepared, self.pools, self.tracker, self.progress = (
            config,
            prepared,
            pools,
            tracker,
            progress,
        )
        self.live, self.stop, self.role = live, stop, role
        self.is_trunk = role is not None and role.is_trunk
        self.order = PromptOrder(len(prepared.train), config.run.seed)
        self.next_problems = self.order.state_dict()
        """Where the order stood after the last step that is done."""
        self.checkpoints = Checkpoints(config.folder, config.run.keep_checkpoints)
        self.remote = RemoteStorage(config.run.remote, config.run.name) if config.run.remote else None
        self.step = 0
        self.at_start = True
        self.c_ref: float | None = None
        self.base: dict[str, float] | None = None
        self.seconds_before = 0.0
        self.started = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Train to the last step; returns the summary.

        Raises:
            StopRequested: After a checkpoint of the step that was reached.
        """
        try:
            return self._run()
        except StopRequested:
            newest = self.checkpoints.newest()
            if self.step > (newest[1].step if newest else 0):
                self._save()
            raise

    def _run(self) -> dict[str, Any]:
        self.pools.publish(self.step)
        with self.stop.interruptible():
            self.pools.wait_ready()
        if self.at_start:
            self.c_ref = self._choose_c_ref()
            self.base = self._evaluate()
        elif self._evaluation_is_due():
            self._evaluate()  # of the checkpoint's step, before which the run was asked to stop
        for step in range(self.step + 1, self.config.run.steps + 1):
            began = time.perf_counter()
            # Sample y ~ pi(. | x), verify r_v, and read log pi(z_c | x, y, EOS) in the same generation.
            batch, times = self._collect(step)
            c_ref = self._c_refs(batch)
            scores = self._scores(batch, c_ref)
            # A = (1 - tau) * A_v + tau * A_s
            advantages = estimate_advantages(self.config, batch, scores, step)
            # L = L_policy + alpha * mean(m * w * (score - r_v)^2)
            sums = self.pools.learn(make_train_batch(self.config, batch, advantages, c_ref, step))
            learned = time.perf_counter()
            staleness = float((self.pools.version - batch.versions).mean())
            self.pools.publish(step)
            synced = time.perf_counter()
            self.step, self.next_problems = step, self.order.state_dict()
            metrics = step_metrics(batch, scores, sums, times, synced - began, self.pools.restarts) | {
                "time/sync": synced - learned,
                "rollout/staleness": staleness,
                "sync/bytes": float(self.pools.published_bytes),
            }
            self.tracker.log_step(step, metrics)
            self.progress.step(step, metrics)
            self.live.step(step, metrics)
            self._keep(batch, scores, advantages)
        return self._finish()

    def rewind(self) -> None:
        """Go to the run's newest checkpoint, else to the end of the trunk that it branches from, else to the first step."""
        if newest := self.checkpoints.newest():
            self._restore(*newest)
            self.progress.say(f"continuing from {newest[0]}")
        elif self.role is not None and self.role.trunk is not None:
            folder, state = self._trunk_end(self.role.trunk)
            self._restore(folder, replace(state, seconds=0.0))
            self._check_c_ref(state.c_ref)  # the trunk has measured it, for any beta_v
            self.progress.say(f"branching from {folder}")
        else:
            self.order = PromptOrder(len(self.prepared.train), self.config.run.seed)
            self.step, self.at_start = 0, True
            self.next_problems = self.order.state_dict()

    def _restore(self, folder: Path, state: TrainingState) -> None:
        """Learner, problem order, c_ref and base evaluation of a checkpoint."""
        if self.remote is not None:
            self._on_ranks("fetch", str(folder.resolve()), state)
        self.pools.on_all_ranks("load", str((folder / "learner").resolve()))
        self.order.load_state_dict(state.prompt_order)  # type: ignore[arg-type]
        self.next_problems = self.order.state_dict()
        self.step, self.c_ref, self.base, self.seconds_before = (
            state.step,
            state.c_ref,
            state.base,
            state.seconds,
        )
        self.at_start, self.started = False, time.monotonic()

    def _trunk_end(self, trunk: Path) -> tuple[Path, TrainingState]:
        """The checkpoint that a trunk ended with."""
        end, steps = Checkpoints(trunk, keep=1).newest(), self.config.loss.reasoning_warmup_steps
        if end is None or end[1].step != steps:
            raise RunError(
                f"{trunk}: holds no checkpoint of step {steps} to branch from; delete it, and the sweep trains it again"
            )
        return end

    def _collect(self, step: int) -> tuple[Batch, CollectTimes]:
        rollout = self.config.rollout
        groups = []
        for position, index in enumerate(self.order.next(rollout.prompts_per_step)):
            # A seed a sample, so that a step is the same whichever engine makes it and however often the run is resumed.
            seed = (self.config.run.seed << 32) + (
                step * rollout.prompts_per_step + position
            ) * rollout.samples_per_prompt
            prompts = self.prepared.train
            groups.append(
                Group(
                    prompts.problems[index],
                    GroupRequest(prompts.token_ids(index), rollout.samples_per_prompt, seed),
                )
            )
        batch, times = self._generate(lambda: collect(self.pools.rollouts, self.pools.verifiers, groups))
        self.live.checked(batch.verdicts)
        return batch, times

    def _generate(self, work: Callable[[], T]) -> T:
        """Have the engines do something that may be given up."""
        with self.stop.interruptible():
            pass  # whoever was asked to stop does not hand over first
        self.pools.turn_to_engines()
        with self.stop.interruptible():
            return work()

    def _scores(
        self, batch: Batch, c_ref: Float32[np.ndarray, "samples"]
    ) -> Float32[np.ndarray, "samples"] | None:
        """Self-reward of each sample under the policy that generated it; NaN where unfinished, None when there is none."""
        if self.config.self_reward.token is None or self.is_trunk:
            return None
        return self_reward_score(
            torch.from_numpy(batch.z_logprobs), torch.from_numpy(c_ref), self.config.loss.beta_v
        ).numpy()

    def _c_refs(self, batch: Batch) -> Float32[np.ndarray, "samples"]:
        """log pi_ref(z_c) for each sample: one number for all, or the reference model's own; 0 when self-rewarding is off."""
        if self.config.loss.c_ref != "exact" or self.config.self_reward.token is None:
            return np.full(len(batch.rewards), self.c_ref or 0.0, np.float32)
        settings = self.config.learning
        plan = plan_micro_batches(
            batch.total_lengths.tolist(), settings.num_ranks, settings.tokens_per_micro_batch
        )
        refs = [group.trajectories for group in batch.groups]
        found = self.pools.on_all_ranks(
            "reference_z_logprobs", refs, plan, self.config.rollout.samples_per_prompt
        )
        exact = {index: value for rank in found for index, value in rank.items()}
        return np.array([exact.get(index, math.nan) for index in range(len(batch.rewards))], np.float32)

    def _keep(self, batch: Batch, scores: np.ndarray | None, advantages: np.ndarray) -> None:
        run, last = self.config.run, self.step == self.config.run.steps
        if run.save_rollouts_every and self.step % run.save_rollouts_every == 0:
            path = self.config.folder / "rollouts" / f"step-{self.step:06d}.parquet"
            try:
                save_rollouts(path, batch, scores, advantages)
            except ObjectLostError:
                self.progress.say(f"{path} is not kept: a node took its samples with it")
        if run.eval_every and self.step % run.eval_every == 0 and not last:
            self._evaluate()
        if (run.save_every and self.step % run.save_every == 0) or last:
            self._save()

    def _evaluation_is_due(self) -> bool:
        """Whether the step that a run continues from should have been evaluated, and was not."""
        every, evaluated = self.config.run.eval_every, self.tracker.journal.evaluations
        due = every > 0 and self.step % every == 0 and self.step < self.config.run.steps
        return due and self.role is None and (self.prepared.eval_name, self.step) not in evaluated

    def _choose_c_ref(self) -> float | None:
        loss, token = self.config.loss, self.config.self_reward.token
        if token is None:
            return None
        # Measured also for `exact` and for a number: the assumption is checked on it, a number is compared with it, and whoever uses
        # the model later has no reference model.
        calibration = self._calibrate()
        measured = f"log pi_ref({escape(token)}) = {calibration.c_ref:.3f} over {calibration.n} solutions of the initial model"
        if isinstance(loss.c_ref, float):
            c_ref = loss.c_ref
            if abs(c_ref - calibration.c_ref) > C_REF_TOLERANCE / loss.beta_v:
                self.progress.say(
                    f"[yellow]warning[/yellow] loss.c_ref={c_ref:g}, but {measured}: scores will be off; use calibrate"
                )
        else:
            c_ref = calibration.c_ref
            self.progress.say(f"c_ref: {measured}, spread {calibration.std:.3f}")
        if not self.is_trunk:
            self._check_c_ref(c_ref)
        return c_ref

    def _check_c_ref(self, c_ref: float | None) -> None:
        """The method's assumption, which depends on beta_v."""
        if c_ref is None:
            return
        check = check_c_ref(c_ref, self.config.loss.beta_v)
        if check.level == "refuse":
            raise RunError("loss.c_ref: " + " ".join(check.messages))
        for message in check.messages:
            self.progress.say(f"[yellow]warning[/yellow] loss.c_ref: {message}")

    def _calibrate(self) -> Calibration:
        """Mean log pi_ref(z_c) over the initial model's own solutions."""
        samples = self.config.rollout.samples_per_prompt
        prompts = self.prepared.train
        count = min(len(prompts), math.ceil(self.config.self_reward.calibration_samples / samples))
        groups = [
            Group(
                prompts.problems[index],
                GroupRequest(prompts.token_ids(index), samples, CALIBRATION_SEED + position * samples),
            )
            for position, index in enumerate(PromptOrder(len(prompts), self.config.run.seed).next(count))
        ]
        batch, _ = self._generate(lambda: collect(self.pools.rollouts, self.pools.verifiers, groups))
        self.live.checked(batch.verdicts)
        try:
            return calibrate_c_ref(torch.from_numpy(batch.z_logprobs))
        except ValueError as error:
            raise RunError(f"loss.c_ref: {error}") from error

    def _evaluate(self) -> dict[str, float] | None:
        if self.prepared.eval is None:
            return None
        name, settings = self.prepared.eval_name, self.config.evaluation
        problems, pools = self.prepared.eval, self.pools
        batch = self._generate(
            lambda: evaluate(
                pools.rollouts,
                pools.verifiers,
                problems,
                settings.samples_per_problem,
                settings.temperature,
                EVALUATION_SEED,
            )
        )
        self.live.checked(batch.verdicts)
        # As a service will score it: from the model and its one c_ref alone.
        scores = self._scores(batch, np.full(len(batch.rewards), self.c_ref or 0.0, np.float32))
        evaluation = summarise(batch, scores)
        figure = None
        if scores is not None and batch.scored.any():
            figure = score_figure(
                scores[batch.scored], batch.rewards[batch.scored] > 0, f"{name}, step {self.step}"
            )
        save_samples(self.config.folder / "evaluations" / f"{name}-{self.step:06d}.parquet", batch, scores)
        table = sampled_solutions(batch, scores, self.config.tracking.sampled_solutions)
        self.tracker.log_evaluation(name, self.step, evaluation.metrics(), table, figure)
        self.progress.say(describe(f"step {self.step} on {name}", evaluation))
        if self.role is not None and 0 < self.step < self.config.run.steps:
            self.role.report(self.step, evaluation.metrics())
        return evaluation.metrics()

    def _save(self) -> None:
        state = TrainingState(
            step=self.step,
            num_ranks=self.config.learning.num_ranks,
            prompt_order=dict(self.next_problems),
            c_ref=self.c_ref,
            mlflow_run_id=self.tracker.run_id,
            seconds=self._seconds(),
            base=self.base,
        )
        upload = None if self.remote is None else partial(self._upload, self.remote, state)
        self.checkpoints.save(state, self._write_checkpoint, upload)

    def _write_checkpoint(self, folder: Path) -> None:
        learner, export = str((folder / "learner").resolve()), (folder / "export").resolve()
        self.pools.on_all_ranks("save", learner)
        self.pools.on_all_ranks("export", str(export))
        export.mkdir(exist_ok=True)  # with run.remote rank 0 may have its own on another node
        config, tokens = self.config, self.prepared.tokens
        if self.is_trunk:
            return  # its score has no beta_v yet
        if config.self_reward.token is not None and tokens.z_token is not None and self.c_ref is not None:
            SelfRewardCard(
                token=config.self_reward.token,
                token_id=tokens.z_token,
                c_ref=self.c_ref,
                beta_v=config.loss.beta_v,
                eos_token_ids=list(tokens.eos_tokens),
                instruction=config.data.instruction,
                chat_template_sha256=template_hash(tokens.tokenizer),
            ).write(export)

    def _upload(self, remote: RemoteStorage, state: TrainingState, folder: Path) -> None:
        """A checkpoint to `run.remote`, each file by the process that wrote it."""

        def write(place: str) -> None:
            self._on_ranks("upload", str(folder.resolve()), place)
            if (card := folder / "export" / SELF_REWARD).exists():
                remote.upload([card], folder, place)
            remote.upload_records(self.config.folder)

        remote.save(state, self.config.run.keep_checkpoints, write)

    def _on_ranks(self, method: str, *arguments: Any) -> None:
        """Call a method of the ranks that returns what is wrong, if anything."""
        for problem in self.pools.on_all_ranks(method, *arguments):
            if problem is not None:
                raise RunError(problem)

    def _finish(self) -> dict[str, Any]:
        if self.step == 0:
            self._save()
        trained = self.base if self.step == 0 else self._evaluate()
        summary = {
            "base": _json_values(self.base),
            "trained": _json_values(trained),
            "problems": len(self.prepared.eval) if self.prepared.eval else 0,
            "samples_per_problem": self.config.evaluation.samples_per_problem,
            "c_ref": self.c_ref,
            "steps": self.step,
            "seconds": round(self._seconds(), 1),
            "mlflow_run_id": self.tracker.run_id,
        }
        self.tracker.log_summary(summary)
        return summary

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started


def step_metrics(
    batch: Batch,
    scores: Float32[np.ndarray, "samples"] | None,
    sums: Sequence[StepSums],
    times: CollectTimes,
    step_s: float,
    restarts: int,
) -> dict[str, float]:
    """Metrics of one training step.

    Args:
        scores: Self-reward of each sample, NaN where unfinished; None when self-rewarding is off.
        sums: Of each learner rank.
        step_s: Seconds of the whole step, from its first request to the last engine with new weights.
        restarts: Workers and ranks that have been replaced since the run started.
    """
    tokens = sum(rank.tokens for rank in sums)
    compared_tokens = sum(rank.compared_tokens for rank in sums)
    learning_s = max(rank.seconds for rank in sums)
    metrics = {
        "train/accuracy": batch.accuracy,
        "train/response_tokens": float(batch.lengths.mean()),
        "train/finished_share": float(batch.finished.mean()),
        "loss/policy": sum(rank.policy_loss for rank in sums),
        "loss/total": sum(rank.total_loss for rank in sums),
        "policy/clip_share": sum(rank.clipped_tokens for rank in sums) / tokens,
        "policy/entropy": sum(rank.entropy for rank in sums) / tokens,
        "policy/mismatch_kl": sum(rank.mismatch_kl for rank in sums) / compared_tokens,
        "policy/mismatch_mean": sum(rank.mismatch_abs for rank in sums) / compared_tokens,
        "policy/mismatch_max": max(rank.mismatch_max for rank in sums),
        "policy/grad_norm": sums[0].grad_norm,
        "policy/kl": sum(rank.kl for rank in sums),  # 0 without a reference model
        "time/rollout": times.rollout,
        "time/verify": times.verify,
        "time/learn": learning_s,
        "time/step": step_s,
        "throughput/samples_per_s": len(batch.rewards) / step_s,
        "throughput/tokens_per_s": float(batch.lengths.sum()) / step_s,
        "throughput/rollout_tokens_per_s": float(batch.lengths.sum()) / times.rollout,
        "throughput/learning_tokens_per_s": tokens / learning_s,
        "verify/timeouts": float(batch.count(Status.TIMEOUT)),
        "verify/errors": float(batch.count(Status.ERROR)),
        "pool/restarts": float(restarts),
    }
    if scores is None:
        return metrics
    correct, usable = batch.rewards > 0, batch.scored
    agreement = self_verification(
        scores[batch.verified], correct[batch.verified], batch.finished[batch.verified]
    )
    return metrics | {
        "loss/self_reward": sum(rank.self_reward_loss for rank in sums),
        "self_reward/f1": agreement.f1,
        "self_reward/accuracy_correct": agreement.accuracy_correct,
        "self_reward/accuracy_wrong": agreement.accuracy_wrong,
        "self_reward/score_correct": _mean(scores[usable & correct]),
        "self_reward/score_wrong": _mean(scores[usable & ~correct]),
        "self_reward/mismatch_max": max(rank.z_mismatch_max for rank in sums),
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def _json_values(figures: dict[str, float] | None) -> dict[str, float | None] | None:
    """JSON has no NaN: a figure that the samples do not define is null."""
    return (
        None
        if figures is None
        else {name: None if math.isnan(value) else value for name, value in figures.items()}
    )
