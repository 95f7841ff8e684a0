"""Every setting of `laser train`, typed and bounded. This module imports neither torch nor Ray."""

import typing
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from orchestrator.algorithm.c_ref import check_c_ref
from orchestrator.config.engine import EngineConfig, EosTokens
from orchestrator.config.faults import FaultsConfig
from orchestrator.config.health import HealthConfig
from orchestrator.config.learning import LearningConfig
from orchestrator.config.limits import MOST_SAMPLES
from orchestrator.config.loss import LossConfig
from orchestrator.config.paths import LocalPath, PathOrName
from orchestrator.config.schema import (
    C,
    Mark,
    PositiveFloat,
    PositiveInt,
    RunName,
    Section,
    Seed,
    StepCount,
    Text,
    read_config,
)
from orchestrator.config.sources import DataConfig, verifiers_in_use
from orchestrator.config.verification import VerificationConfig


class ModelConfig(Section):
    """The model to start from."""

    path: PathOrName
    """Hugging Face folder or hub name of the model."""
    eos_tokens: EosTokens = ()
    """Tokens that end a response, as texts or ids; empty takes those of the model's files."""


class RolloutConfig(EngineConfig):
    """Generation of the training batches."""

    samples_per_prompt: Annotated[int, Field(ge=2)] = 8
    """Solutions that are sampled for each problem: the size of a group."""
    prompts_per_step: PositiveInt = 128
    """Problems of a training step."""
    temperature: float = 1.0
    """Sampling temperature of training; only 1 gives the policy's own log-probabilities."""
    max_staleness: StepCount = 0
    """k: engines sample up to k batches ahead of the learner, so a token's weights are at most k versions
    older than those that learn from it. 0 is on-policy; with more, set `loss.importance_cap`."""
    sync_chunk_mib: Annotated[PositiveInt, Mark.MAY_CHANGE] = 16
    """Weights go to the engines in chunks of at most this size."""
    colocate: Annotated[bool, Mark.MAY_CHANGE, Mark.POOL_SIZE] = False
    """Engines reserve nothing: they take turns with the learner on the GPUs, or the CPUs, of its ranks."""

    @model_validator(mode="after")
    def _own_distribution(self) -> "RolloutConfig":
        if self.temperature != 1.0:
            raise ValueError(
                f"rollout.temperature: is {self.temperature}, but training needs 1: at another temperature "
                "the sampled tokens' log-probabilities are not the policy's, and the policy gradient and "
                "the self-reward would be wrong. evaluation.temperature sets the temperature of evaluations."
            )
        if self.max_staleness > 0 and self.colocate:
            raise ValueError(
                f"rollout.max_staleness: is {self.max_staleness}, but with rollout.colocate=true the engines "
                "sleep while the ranks learn, so they cannot sample ahead: set it to 0, or give the engines "
                "devices of their own (rollout.colocate=false)"
            )
        return self


class SelfRewardConfig(Section):
    """The token that the self-reward is read from."""

    token: Text | None
    """z_c: a single token that the model uses for nothing else; null switches self-rewarding off."""
    calibration_samples: Annotated[int, Field(ge=16)] = 300
    """Solutions of the initial model that c_ref is measured on."""


class EvaluationConfig(Section):
    """Evaluation on the held-out problems during training."""

    samples_per_problem: PositiveInt = 8
    """Solutions that are sampled for each held-out problem (K of Maj@K)."""
    max_problems: PositiveInt | None = None
    """Evaluate only on this many problems, the first ones; null evaluates on all."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature of evaluations; the score is always read at temperature 1."""


class TrackingConfig(Section):
    """MLflow."""

    uri: Annotated[Text | None, Mark.PLACE] = None
    """MLflow server; null means MLFLOW_TRACKING_URI, or without it a SQLite file in `run.dir`."""
    experiment: Annotated[Text, Mark.PLACE] = "laser"
    """MLflow experiment."""
    sampled_solutions: PositiveInt = 32
    """Solutions in the table that each evaluation logs to MLflow."""


class RunSection(Section):
    """Name, place and length of a run."""

    name: Annotated[RunName, Mark.PLACE, Mark.SET_BY_SWEEP]
    """Name of the run: its folder under `run.dir` and its MLflow run name."""
    dir: Annotated[LocalPath, Mark.MAY_CHANGE, Mark.PLACE, Mark.SET_BY_SWEEP] = Path("runs")
    """Folder of all runs."""
    steps: Annotated[StepCount, Mark.MAY_CHANGE, Mark.AFTER_WARM_UP]
    """Training steps; 0 only measures c_ref and evaluates the initial model."""
    seed: Annotated[Seed, Mark.SET_BY_SWEEP] = 0
    """Seed of the problem order and of sampling."""
    eval_every: Annotated[StepCount, Mark.MAY_CHANGE] = 0
    """Steps between evaluations; 0 evaluates only before the first step and after the last."""
    save_every: Annotated[StepCount, Mark.MAY_CHANGE] = 0
    """Steps between checkpoints; 0 makes only one, after the last step."""
    save_rollouts_every: Annotated[StepCount, Mark.MAY_CHANGE] = 0
    """Steps between rollouts that are kept as parquet; 0 keeps none."""
    keep_checkpoints: Annotated[PositiveInt, Mark.MAY_CHANGE] = 2
    """Checkpoints that are kept, the newest ones, and always one of a step with an update; a service or an
    evaluation keeps the one that it uses."""
    trace: Annotated[bool, Mark.MAY_CHANGE] = False
    """Writes `trace.json` to the run's folder, which Perfetto (ui.perfetto.dev) opens: when each engine,
    verifier and rank worked on what."""
    remote: Annotated[Text | None, Mark.MAY_CHANGE, Mark.PLACE, Mark.SET_BY_SWEEP] = None
    """URL of a folder for what any node needs to resume the run: s3://bucket/runs, gs://...,
    file:///mnt/runs. The nodes then need no shared `dir`. Each node's environment holds the credentials."""
    node_wait_s: Annotated[float, Field(ge=0), Mark.MAY_CHANGE] = 600.0
    """Seconds that a run which is started again waits for a node that its cluster lacks. A run that is new,
    or whose pools have other settings, is refused at once."""

    @field_validator("remote")
    @classmethod
    def _open_to_read(cls, remote: str | None) -> str | None:
        if remote is None:
            return None
        if "://" not in remote:
            raise ValueError(
                f"run.remote: {remote!r} is not a URL: write s3://bucket/runs, gs://bucket/runs or "
                "file:///mnt/runs"
            )
        if urlsplit(remote).password is not None:
            raise ValueError(
                "run.remote: holds a password, which config.yaml and MLflow would show: put it into the "
                "environment of the nodes"
            )
        return remote


class RunConfig(Section):
    """Settings of `laser train`."""

    run: RunSection
    model: ModelConfig
    data: DataConfig
    rollout: RolloutConfig = RolloutConfig()
    verification: VerificationConfig = VerificationConfig()
    learning: LearningConfig = LearningConfig()
    loss: LossConfig = LossConfig()
    self_reward: SelfRewardConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    faults: Annotated[FaultsConfig, Mark.MAY_CHANGE] = FaultsConfig()
    health: Annotated[HealthConfig, Mark.MAY_CHANGE] = HealthConfig()
    tracking: Annotated[TrackingConfig, Mark.MAY_CHANGE, Mark.SET_BY_SWEEP] = TrackingConfig()

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.run.dir / self.run.name

    @property
    def verifier_texts(self) -> list[str]:
        """The canonical texts of all verifiers that the settings name, the default one first."""
        return verifiers_in_use(self.verification, (*self.data.train, *(self.data.eval or ())))

    @property
    def samples_per_step(self) -> int:
        return self.rollout.prompts_per_step * self.rollout.samples_per_prompt

    @property
    def batches_in_flight(self) -> int:
        """Batches that are sampled or learned from at a time, at most."""
        return 1 + self.rollout.max_staleness

    @property
    def engine_dtype(self) -> str:
        return self.learning.dtype if self.rollout.dtype == "auto" else self.rollout.dtype

    @property
    def needs_reference(self) -> bool:
        """Whether a learner rank also holds a reference model."""
        return self.loss.kl_coef > 0 or (self.loss.c_ref == "exact" and self.self_reward.token is not None)

    @model_validator(mode="after")
    def _settings_agree(self) -> "RunConfig":
        if self.self_reward.token is None and (self.loss.alpha > 0 or self.loss.tau > 0):
            raise ValueError(
                "self_reward.token: is null, which switches self-rewarding off, but "
                f"loss.alpha={self.loss.alpha} and loss.tau={self.loss.tau} need it: set both to 0, or name "
                "a token"
            )
        if self.self_reward.token is not None and not isinstance(self.loss.c_ref, str):
            self._refuse_c_ref(self.loss.c_ref)
        if self.learning.mini_batches > self.rollout.prompts_per_step:
            raise ValueError(
                f"learning.mini_batches: {self.learning.mini_batches} is more than rollout.prompts_per_step="
                f"{self.rollout.prompts_per_step}; a mini-batch holds whole groups, so use at most that many"
            )
        if self.samples_per_step > MOST_SAMPLES:
            raise ValueError(
                f"rollout.prompts_per_step: {self.rollout.prompts_per_step} x rollout.samples_per_prompt="
                f"{self.rollout.samples_per_prompt} makes {self.samples_per_step} samples a step; use at "
                f"most {MOST_SAMPLES}"
            )
        if self.batches_in_flight * self.samples_per_step > MOST_SAMPLES:
            raise ValueError(
                f"rollout.max_staleness: {self.rollout.max_staleness} keeps {self.batches_in_flight} batches "
                f"of {self.samples_per_step} samples; use at most {MOST_SAMPLES} samples in all"
            )
        longest = self.rollout.max_prompt_tokens + self.rollout.max_response_tokens
        if longest > self.learning.tokens_per_micro_batch:
            raise ValueError(
                f"learning.tokens_per_micro_batch: {self.learning.tokens_per_micro_batch} is less than the "
                f"longest sample, rollout.max_prompt_tokens + rollout.max_response_tokens = {longest}: use "
                f"at least {longest}"
            )
        if self.learning.stream:
            self._refuse_streaming()
        if self.rollout.colocate:
            self._refuse_unequal_turns()
        return self

    def _refuse_streaming(self) -> None:
        """Refuse `learning.stream` where the ranks cannot learn while engines generate."""
        if self.rollout.colocate:
            raise ValueError(
                "learning.stream: ranks cannot learn while engines generate with rollout.colocate, "
                "where they take turns: set one of the two to false"
            )
        if self.loss.c_ref == "exact" and self.self_reward.token is not None:
            raise ValueError(
                "learning.stream: needs the reference log-probs of a sample when it lands, but with "
                "loss.c_ref=exact the ranks compute them for a whole batch: set learning.stream to false, or "
                "loss.c_ref to calibrate or a number"
            )

    def _refuse_c_ref(self, c_ref: float) -> None:
        """Check a configured c_ref. A measured one is checked after the measurement."""
        check = check_c_ref(c_ref, self.loss.beta_v)
        if check.level == "refuse":
            raise ValueError(
                f"loss.c_ref: {' '.join(check.messages)} (above {-1 / c_ref:.3g}), or leave "
                "loss.c_ref=calibrate, which measures it"
            )

    def _refuse_unequal_turns(self) -> None:
        """Each tensor-parallel rank of an engine takes turns with one learner rank and uses its resources."""
        rollout, learning = self.rollout, self.learning
        ranks = rollout.num_engines * rollout.tensor_parallel
        if ranks > learning.num_ranks:
            raise ValueError(
                f"rollout.colocate: {rollout.num_engines} engine(s) of {rollout.tensor_parallel} "
                f"tensor-parallel rank(s) take turns with {ranks} learner ranks, but "
                f"learning.num_ranks={learning.num_ranks}"
            )
        if (rollout.gpus, learning.gpus_per_rank) not in ((0, 0), (1, 1)):
            raise ValueError(
                f"rollout.colocate: engines and ranks share whole GPUs, or only CPUs, but rollout.gpus="
                f"{rollout.gpus:g} and learning.gpus_per_rank={learning.gpus_per_rank:g}: set both to 1, or "
                "both to 0"
            )
        cpus = rollout.tensor_parallel * learning.cpus_per_rank
        if rollout.cpus > cpus:
            raise ValueError(
                f"rollout.colocate: an engine uses the {cpus:g} CPUs of the {rollout.tensor_parallel} "
                f"rank(s) that it takes turns with, but rollout.cpus={rollout.cpus:g}: set it to at most "
                f"{cpus:g}"
            )
        if rollout.resources:
            raise ValueError(
                "rollout.colocate: engines run on the nodes of the ranks: set learning.resources instead of "
                "rollout.resources"
            )
        if learning.offload != "none":
            raise ValueError(
                "rollout.colocate: moves the learner's states itself, but "
                f"learning.offload={learning.offload}: set it to none"
            )


@typing.overload
def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> RunConfig: ...


@typing.overload
def load_config(path: str | Path, overrides: typing.Sequence[str], schema: type[C]) -> C: ...


def load_config(
    path: str | Path, overrides: typing.Sequence[str] = (), schema: type[Section] = RunConfig
) -> Section:
    """The settings of the YAML file at `path`, with `key.path=value` overrides.

    Args:
        schema: Of another command than `laser train`.

    Raises:
        ConfigError: As `read_config`.
    """
    return read_config(path, overrides, schema)
