"""What one training run holds: its pools, its place in the order of problems, its scores and its records.

The loop asks the session for batches and hands it results. A stop interrupts generation only: everything else
runs to its end.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float32
from ray.exceptions import ObjectLostError
from rich.markup import escape

from orchestrator.algorithm.health import Health
from orchestrator.algorithm.micro_batches import plan_micro_batches
from orchestrator.algorithm.self_reward import self_reward_score
from orchestrator.config.training import RunConfig
from orchestrator.data.fingerprints import to_tree
from orchestrator.errors import RunError
from orchestrator.messages.batches import StepSums, TrainBatch
from orchestrator.messages.spans import Span
from orchestrator.pools.collect import NO_LABELS, Batch, Group, collect, save_rollouts
from orchestrator.pools.training import Pools
from orchestrator.storage.checkpoints import Checkpoints, TrainingState
from orchestrator.storage.dropped import dropped_problems
from orchestrator.terminal import RunProgress
from orchestrator.tracking.tracker import Tracker
from orchestrator.training.context import RunContext
from orchestrator.training.divergence import Diverged, diverged
from orchestrator.training.live_metrics import LiveMetrics
from orchestrator.training.preparation import PreparedRun
from orchestrator.training.run_health import health_up_to
from orchestrator.training.run_trace import RunTrace
from orchestrator.training.saving import Saver, trunk_end
from orchestrator.training.start_times import StartTimes
from orchestrator.training.step_problems import StepProblems
from orchestrator.training.stopping import Stop, StopRequested
from orchestrator.training.streaming import RankRounds
from orchestrator.training.train_batch import StreamedSamples

T = TypeVar("T")


class Clock:
    """Seconds that the parts of a step take, by name."""

    def __init__(self, trace: RunTrace | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self.trace = trace
        self._started: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time what runs here as `part`."""
        self.start(part)
        yield
        self.stop(part)

    def start(self, part: str) -> None:
        """Begin to time `part`, until `stop`."""
        self._started[part] = time.perf_counter()

    def stop(self, part: str) -> None:
        """`part` has ended."""
        self.seconds[part] = time.perf_counter() - self._started.pop(part)
        if self.trace is not None:
            ended = time.time()
            self.trace.driver(Span(part, ended - self.seconds[part], ended))


class Session:
    """A run between its start, or its newest checkpoint, and its last step."""

    def __init__(
        self,
        config: RunConfig,
        prepared: PreparedRun,
        pools: Pools,
        tracker: Tracker,
        progress: RunProgress,
        live: LiveMetrics,
        stop: Stop,
        context: RunContext,
        checkpoints: Checkpoints,
    ) -> None:
        self.config = config
        self.prepared = prepared
        self.pools = pools
        self.tracker = tracker
        self.progress = progress
        self.live = live
        self.stop = stop
        self.context = context
        self.has_score = config.self_reward.token is not None and not context.is_trunk
        self.saver = Saver(config, prepared.tokens, pools, checkpoints, self.has_score)
        self.start = StartTimes(context.started_at, self.say)
        self.trace = RunTrace(config.folder) if config.run.trace else None
        if self.trace is not None:
            pools.observe(self.trace.returned)
        self.clock = Clock(self.trace)
        pools.tell(self.note)
        self.problems = StepProblems(prepared.train, config, dropped_problems(config.folder))
        self.step = 0
        """The last finished step."""
        self.at_start = True
        """No step is done and nothing is measured yet."""
        self.said_unfinished = False
        """The user knows that no sample of a step finished."""
        self.branched = False
        """The session starts at the end of a trunk."""
        self.skipped_in_a_row = 0
        """The newest steps whose updates were skipped."""
        self.health = Health(config.health.thresholds, config.health.window)
        self.checkpoint_due = False
        self.rounds: RankRounds | None = None
        """What the ranks learn while the engines generate the batch."""
        self.c_ref: float | None = None
        self.base: dict[str, float] | None = None
        """Figures of the initial model."""
        self.seconds_before, self.started = 0.0, time.monotonic()

    def say(self, message: str) -> None:
        """Show a line that stays; rich markup counts."""
        self.progress.say(message)

    def note(self, message: str) -> None:
        """Show a warning that stays, and keep it in the run's journal."""
        self.say(f"[yellow]warning[/yellow] {escape(message)}")
        self.tracker.log_note(self.step, message)

    @property
    def seconds(self) -> float:
        """Training time so far, in all sessions of the run."""
        return self.seconds_before + time.monotonic() - self.started

    def rewind(self) -> None:
        """Go to the run's newest whole checkpoint, else to the end of its trunk, else to the first step."""
        trunk, self.checkpoint_due = self.context.trunk, False
        if newest := self.saver.load_newest():
            self._restore(newest[1])
            for problem in self.saver.checkpoints.take_notes():
                self.note(problem)
            self.branched = False
            self.say(f"continuing from {newest[0]}{_other_ranks(newest[1], self.config)}")
        elif trunk is not None:
            folder, state = trunk_end(trunk, self.config.loss.reasoning_warmup_steps)
            if (damage := self.saver.load(folder, state)) is not None:
                raise RunError(
                    f"{folder} is damaged: {damage}. Delete {trunk}, and the sweep trains the trunk again"
                )
            self._restore(replace(state, seconds=0.0))
            self.branched = True
            self.say(f"branching from {folder}")
        else:
            self.problems.restore(None)
            self.step, self.at_start, self.branched, self.skipped_in_a_row = 0, True, False, 0
        self.health = health_up_to(self.step, self.config)

    def _restore(self, state: TrainingState) -> None:
        self.problems.restore(state.prompt_order)
        self.step, self.c_ref, self.base = state.step, state.c_ref, state.base
        self.seconds_before, self.started = state.seconds, time.monotonic()
        self.at_start, self.skipped_in_a_row = False, state.skipped_in_a_row

    def steps(self) -> range:
        """The steps that are left."""
        return range(self.step + 1, self.config.run.steps + 1)

    def evaluation_is_due(self) -> bool:
        """Whether the schedule evaluates after the last finished step. The end of the run has its own."""
        every = self.config.run.eval_every
        return every > 0 and self.step % every == 0 and 0 < self.step < self.config.run.steps

    def collect(self, groups: Sequence[Group], labels: Mapping[str, Any] = NO_LABELS) -> Batch:
        """Sample and verify groups, and read each score's log pi(z_c) in the same generation.

        Raises:
            StopRequested: Someone asked the run to stop.
        """
        batch = self.generate(lambda: collect(self.pools.rollouts, self.pools.verifiers, groups, labels))
        self.live.checked(batch.verdicts)
        return batch

    def generate(self, work: Callable[[], T]) -> T:
        """Do `work` on the engines. A stop interrupts it.

        Raises:
            StopRequested: Someone asked the run to stop.
        """
        with self.stop.interruptible():
            pass  # raise before the hand-over to the engines, which is slow
        self.pools.turn_to_engines()
        with self.stop.interruptible():
            value = work()
        self.start.sampled(self.pools)
        return value

    def reference_logprobs(self, batch: Batch) -> Float32[np.ndarray, "samples"]:
        """log pi_ref(z_c | x, y, EOS) of each sample: c_ref for all, or the reference model's own with
        `loss.c_ref: exact` (NaN where unfinished); 0 when self-rewarding is off."""
        if self.config.loss.c_ref != "exact" or self.config.self_reward.token is None:
            return self.constant_reference(batch)
        learning = self.config.learning
        plan = plan_micro_batches(
            batch.total_lengths.tolist(), learning.num_ranks, learning.tokens_per_micro_batch
        )
        refs = [group.trajectories for group in batch.groups]
        samples = self.config.rollout.samples_per_prompt
        by_rank = self.pools.on_all_ranks("reference_z_logprobs", refs, plan, samples)
        found = {index: value for rank in by_rank for index, value in rank.items()}
        return np.array([found.get(index, math.nan) for index in range(len(batch.rewards))], np.float32)

    def constant_reference(self, batch: Batch) -> Float32[np.ndarray, "samples"]:
        """c_ref for each sample, as evaluation and service use it; 0 when self-rewarding is off."""
        return np.full(len(batch.rewards), self.c_ref or 0.0, np.float32)

    def scores(
        self, batch: Batch, c_ref: Float32[np.ndarray, "samples"]
    ) -> Float32[np.ndarray, "samples"] | None:
        """Self-reward of each sample under the policy that generated it; None if the run has no score.

        NaN where a sample is unfinished.
        """
        if not self.has_score:
            return None
        z_logprobs, reference = torch.from_numpy(batch.z_logprobs), torch.from_numpy(c_ref)
        return self_reward_score(z_logprobs, reference, self.config.loss.beta_v).numpy()

    def streamed(self) -> StreamedSamples | None:
        """What the ranks have learned of the step while the engines generated it; None without streaming."""
        return None if self.rounds is None else self.rounds.complete()

    def learn(self, batch: TrainBatch) -> list[StepSums]:
        """One policy update by all ranks: their sums.

        Raises:
            Diverged: It has made the weights useless; no engine gets them.
        """
        with self.clock("learn"):
            sums = self.pools.learn(batch)
        if self.trace is not None:
            self.trace.learned(batch.step, sums)
        if not sums[0].weights_finite:
            raise self.diverged(
                f"step {batch.step}: after the update the weights are not finite, or too large to be squared"
            )
        return sums

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Step `step` is done: journal and MLflow, the terminal and the live metrics get its metrics."""
        self.step = step
        self.problems.finish(step)
        self.start.sampled(self.pools)
        metrics = {
            **metrics,
            **self.start.take_metrics(),
            "pool/restarts": float(self.pools.restarts),
            "sync/bytes": float(self.pools.published_bytes),
            **self.problems.metrics(),
            **self.health.judge(metrics),
        }
        self.tracker.log_step(step, metrics)
        self.progress.step(step, metrics)
        self.live.step(step, metrics)

    def diverged(self, problem: str, faults: Sequence[str] = ()) -> Diverged:
        """The error that ends the run; see `diverged`."""
        newest = self.saver.newest()
        return diverged(problem, self.config, faults, newest[0] if newest else None)

    def keep(
        self,
        batch: Batch,
        scores: Float32[np.ndarray, "samples"] | None,
        advantages: Float32[np.ndarray, "samples"],
    ) -> None:
        """Write the step's rollouts and checkpoint, where they are due."""
        run = self.config.run
        if run.save_rollouts_every and self.step % run.save_rollouts_every == 0:
            keep_rollouts(self, batch, scores, advantages)
        # After a skipped update the weights are in doubt: a checkpoint waits for a step with an update.
        self.checkpoint_due |= bool(run.save_every and self.step % run.save_every == 0)
        if (self.checkpoint_due and not self.skipped_in_a_row) or self.step == run.steps:
            self.save()

    def save(self) -> None:
        """Write a checkpoint of the last finished step.

        Raises:
            Diverged: Its weights are of no use.
        """
        if (problem := self.saver.health()) is not None:
            raise self.diverged(f"step {self.step}: {problem}; no checkpoint is written")
        self.checkpoint_due = False
        state = TrainingState(
            step=self.step,
            num_ranks=self.config.learning.num_ranks,
            prompt_order=dict(self.problems.state),
            c_ref=self.c_ref,
            mlflow_run_id=self.tracker.run_id,
            seconds=self.seconds,
            base=self.base,
            sources=to_tree(self.prepared.sources),
            skipped_in_a_row=self.skipped_in_a_row,
        )
        with self.clock("save"):
            self.saver.save(state)

    @contextlib.contextmanager
    def saved_when_stopped(self) -> Iterator[None]:
        """Write a checkpoint of the last finished step before a stop leaves this context."""
        try:
            yield
        except StopRequested:
            self.pools.abandon_tasks()
            newest = self.saver.newest()
            if self.step > (newest[1].step if newest else 0):
                self.save()
            raise


def _other_ranks(state: TrainingState, config: RunConfig) -> str:
    """What to add to a line that names the checkpoint of `state`; nothing where as many ranks saved it."""
    saved_by, now = state.num_ranks, config.learning.num_ranks
    return "" if saved_by == now else f", which {saved_by} rank(s) saved, with {now}"


def keep_rollouts(
    session: Session,
    batch: Batch,
    scores: Float32[np.ndarray, "samples"] | None,
    advantages: Float32[np.ndarray, "samples"],
) -> Path:
    """Write the step's rollouts as parquet; returns the file."""
    path = session.config.folder / "rollouts" / f"step-{session.step:06d}.parquet"
    try:
        save_rollouts(path, batch, scores, advantages)
    except ObjectLostError:
        session.say(f"{path} is not written: a node died with its samples")
    return path
