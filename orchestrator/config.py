"""Every setting of a run, typed and bounded; imports neither torch nor Ray.

In: a YAML file and `key.path=value` overrides. Out: a `RunConfig` (or `SFTConfig`), or a `ConfigError` that names
each wrong key, what is allowed there, and the nearest key that exists.
"""

import difflib
import math
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from orchestrator.algorithm.c_ref import check_c_ref
from orchestrator.errors import ConfigError

Text = Annotated[str, Field(min_length=1)]
PositiveInt = Annotated[int, Field(ge=1)]
StepCount = Annotated[int, Field(ge=0)]
QUANTUM = 1e-4
"""The finest part of a resource that Ray counts."""
Share = Annotated[float, Field(gt=0, multiple_of=QUANTUM)]
Gpus = Annotated[float, Field(ge=0, multiple_of=QUANTUM)]
CustomResources = dict[str, Share]


class Section(BaseModel):
    """A group of settings: unknown keys are refused, the values cannot be changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


C = TypeVar("C", bound=Section)


@dataclass(frozen=True)
class SettingsOf:
    """Marks a dictionary whose keys are those of another schema: `Annotated[dict[str, Any], SettingsOf(RunConfig)]`."""

    schema: type[Section]


def refuse_parts_of_gpus(key: str, gpus: float, tensor_parallel: int = 1) -> None:
    """Raises ValueError for a number of GPUs that an actor cannot be given; `tensor_parallel` ranks of it share them.

    Ray gives an actor a part of one GPU, or whole ones. Ranks that share an engine's weights need a GPU each.
    """
    if gpus != int(gpus) and (gpus > 1 or tensor_parallel > 1):
        ranks = f" for each of {tensor_parallel} tensor-parallel ranks" if tensor_parallel > 1 else ""
        raise ValueError(f"{key}: is {gpus:g}{ranks}, but only a single GPU can be shared: use {math.ceil(gpus)}")


class ModelConfig(Section):
    path: Text
    """Hugging Face folder or hub name of the model to start from."""


class DataConfig(Section):
    train: Text
    """Training problems: a .jsonl, .json or .parquet file, a Hugging Face data set folder or name."""
    eval: Text | None = None
    """Held-out problems, same formats; the metrics' set name is the file's stem."""
    problem_field: Text = "problem"
    """Field that holds the problem's text."""
    answer_field: Text = "answer"
    """Field that holds the reference answer (text or number)."""
    eval_problem_field: Text | None = None
    """The same in the held-out problems; `problem_field` when null."""
    eval_answer_field: Text | None = None
    """The same in the held-out problems; `answer_field` when null."""
    instruction: str = r"Please reason step by step, and put your final answer within \boxed{}."
    """Text after each problem, in training, evaluation and service alike. Empty for none."""

    @property
    def eval_fields(self) -> tuple[str, str]:
        """Fields of problem and answer in the held-out problems."""
        return self.eval_problem_field or self.problem_field, self.eval_answer_field or self.answer_field


class EngineConfig(Section):
    """The vLLM engines of a training run or an evaluation."""

    num_engines: PositiveInt = 1
    """vLLM engines, each an actor."""
    max_prompt_tokens: PositiveInt = 2048
    """Longer prompts are dropped and counted."""
    max_response_tokens: PositiveInt = 8192
    """A response that has not ended by then is unfinished: it has no score."""
    tensor_parallel: PositiveInt = 1
    """GPUs (or CPU processes) that share one engine's weights."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the engine; `auto` is that of `learning.dtype`, in an evaluation that of the model's folder."""
    kv_cache_gib: Annotated[float, Field(gt=0)] | None = None
    """KV-cache of an engine in GiB. On CPU 0.5 unless set; on GPU vLLM's own share of the memory."""
    cpus: Share = 1.0
    """CPUs an engine reserves; fractions share a CPU."""
    gpus: Gpus = 0.0
    """GPUs a tensor-parallel rank reserves; 0 runs the engine on CPU."""
    resources: CustomResources = {}
    """Custom resources an engine reserves, such as {rollout: 1}: it runs only on nodes that were started with them."""
    engine_args: dict[str, Any] = {}
    """Passed through to vLLM's EngineArgs."""

    @model_validator(mode="after")
    def _whole_gpus(self) -> "EngineConfig":
        refuse_parts_of_gpus("rollout.gpus", self.gpus, self.tensor_parallel)
        return self


class RolloutConfig(EngineConfig):
    samples_per_prompt: Annotated[int, Field(ge=2)] = 8
    """Solutions sampled for each problem: the size of a group."""
    prompts_per_step: PositiveInt = 128
    """Problems a step."""
    temperature: float = 1.0
    """Sampling temperature of training rollouts; only 1 gives the policy's own log-probabilities."""
    max_staleness: Annotated[int, Field(ge=0)] = 0
    """Weight versions that generation may lag behind the learner; 0 is on-policy."""
    sync_chunk_mib: PositiveInt = 256
    """Weights travel through the object store in chunks of at most this size."""
    colocate: bool = False
    """Engines and learner take turns on the GPUs (on CPU, the CPUs) of the learner's ranks, and reserve none of their own."""

    @model_validator(mode="after")
    def _own_distribution(self) -> "RolloutConfig":
        if self.temperature != 1.0:
            raise ValueError(
                f"rollout.temperature: is {self.temperature}, but training needs 1: at another temperature the sampled "
                "tokens' log-probabilities are not the policy's, and the policy gradient and the self-reward would both be "
                "taken from the wrong distribution (set evaluation.temperature to sample differently when evaluating)"
            )
        if self.max_staleness != 0:
            raise ValueError(f"rollout.max_staleness: is {self.max_staleness}, but only 0 (on-policy) is supported by this version")
        return self


class VerificationConfig(Section):
    num_workers: PositiveInt = 1
    """CPU actors that check answers."""
    timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds one check may take from when it starts; then its process is killed and the status is `timeout`."""
    cpus: Share = 1.0
    """CPUs a worker reserves; fractions share a CPU."""
    resources: CustomResources = {}
    """Custom resources a worker reserves."""
    verifier: Text = "actors.verification:verify_math"
    """Import path `package.module:function` of the check."""


class LearningConfig(Section):
    num_ranks: PositiveInt = 1
    """DeepSpeed ZeRO-3 ranks, each an actor."""
    cpus_per_rank: Share = 1.0
    """CPUs a rank reserves; fractions share a CPU."""
    gpus_per_rank: Gpus = 0.0
    """GPUs a rank reserves; 0 trains on CPU over gloo."""
    resources: CustomResources = {}
    """Custom resources a rank reserves."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward and backward pass; optimiser states are float32 always."""
    lr: Annotated[float, Field(ge=0)] = 1e-6
    """AdamW's learning rate, constant after the warm-up."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """AdamW's momentum coefficients."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's decoupled weight decay."""
    warmup_steps: StepCount = 0
    """Steps over which the learning rate rises linearly."""
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this global norm."""
    mini_batches: PositiveInt = 1
    """Optimiser steps made from one rollout batch."""
    tokens_per_micro_batch: PositiveInt = 16384
    """Prompt and response tokens, padding included, in one forward and backward pass of a rank."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What ZeRO-3 keeps in CPU memory on a GPU run."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """transformers' attention implementation."""
    deepspeed: dict[str, Any] = {}
    """Merged over the DeepSpeed configuration that the other settings make."""

    @model_validator(mode="after")
    def _ranks_can_do_it(self) -> "LearningConfig":
        refuse_parts_of_gpus("learning.gpus_per_rank", self.gpus_per_rank)
        if self.attention == "flash_attention_2" and not (self.gpus_per_rank and self.dtype == "bfloat16"):
            raise ValueError(
                "learning.attention: flash_attention_2 runs on GPUs and in bfloat16 only, but "
                f"learning.gpus_per_rank={self.gpus_per_rank:g} and learning.dtype={self.dtype}: set them to 1 and "
                "bfloat16, or use sdpa"
            )
        return self


class LossConfig(Section):
    alpha: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the self-reward loss; 0 leaves plain GRPO."""
    beta_v: Annotated[float, Field(gt=0)] = 0.1
    """The self-reward's KL coefficient: score = beta_v * (log pi(z_c) - c_ref)."""
    tau: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the self-rewarding advantage in the mix."""
    filter_std: Annotated[float, Field(ge=0)] = 0.1
    """Groups whose scores spread no more than this keep their verifier advantages."""
    c_ref: Literal["calibrate", "exact"] | Annotated[float, Field(lt=0)] = "calibrate"
    """log pi_ref(z_c): measured on the initial model's solutions (calibrate), by a reference model for each one (exact), or a number."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL penalty to the initial model; above 0 a reference model runs."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of that KL (Schulman's names)."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """PPO's lower clip of the probability ratio."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    """PPO's upper clip."""
    dual_clip: Annotated[float, Field(gt=1)] = 3.0
    """Bound of the loss where the advantage is negative."""
    importance_cap: Annotated[float, Field(gt=0)] | None = None
    """Truncated importance sampling for engine-learner mismatch: the weights' cap, or none."""
    reasoning_warmup_steps: StepCount = 0
    """Steps of plain GRPO before the self-reward loss joins (w_r)."""
    self_reward_warmup_steps: StepCount = 200
    """Steps after those before the advantage mix joins (w_s)."""


class SelfRewardConfig(Section):
    token: Text | None
    """z_c: a single token that the model uses for nothing else. null switches self-rewarding off altogether."""
    calibration_samples: Annotated[int, Field(ge=16)] = 300
    """Solutions of the initial model that c_ref is measured on."""


class EvaluationConfig(Section):
    samples_per_problem: PositiveInt = 8
    """Solutions sampled for each held-out problem (K of Maj@K)."""
    max_problems: PositiveInt | None = None
    """Evaluate on the first so many problems only."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature of evaluations; the score is read at temperature 1 whatever this is."""


class TrackingConfig(Section):
    uri: Text | None = None
    """MLflow server; MLFLOW_TRACKING_URI, else sqlite in `run.dir`, when null."""
    experiment: Text = "laser"
    """MLflow experiment."""
    sampled_solutions: PositiveInt = 32
    """Solutions in the table that each evaluation logs."""


class RunSection(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run: its folder under `run.dir` and its MLflow run name."""
    dir: Path = Path("runs")
    """Folder of all runs."""
    steps: StepCount
    """Training steps; 0 only measures the initial model: its c_ref and its evaluation."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of problem order and sampling."""
    eval_every: StepCount = 0
    """Evaluate every so many steps; 0 only before the first step and after the last."""
    save_every: StepCount = 0
    """Checkpoint every so many steps; 0 only after the last."""
    save_rollouts_every: StepCount = 0
    """Keep the rollouts of every so many steps as parquet; 0 never."""
    keep_checkpoints: PositiveInt = 2
    """Older checkpoints are deleted; one that a service or an evaluation uses, only after that has ended."""
    remote: Text | None = None
    """URL under which `<name>/` holds what any node needs to continue the run: s3://bucket/runs, gs://..., file:///mnt/runs.
    Nodes then need no shared `dir`. Credentials are those of each node's environment."""

    @field_validator("remote")
    @classmethod
    def _open_to_read(cls, remote: str | None) -> str | None:
        if remote is None:
            return None
        if "://" not in remote:
            raise ValueError(f"run.remote: {remote!r} is no URL: write s3://bucket/runs, gs://bucket/runs or file:///mnt/runs")
        if urlsplit(remote).password is not None:
            raise ValueError("run.remote: holds a secret, which config.yaml and MLflow would show: leave it to the nodes' environment")
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
    tracking: TrackingConfig = TrackingConfig()

    @property
    def folder(self) -> Path:
        """Where this run lives."""
        return self.run.dir / self.run.name

    @property
    def samples_per_step(self) -> int:
        return self.rollout.prompts_per_step * self.rollout.samples_per_prompt

    @property
    def engine_dtype(self) -> str:
        return self.learning.dtype if self.rollout.dtype == "auto" else self.rollout.dtype

    @property
    def needs_reference(self) -> bool:
        """Whether a reference model has to be held beside the policy."""
        return self.loss.kl_coef > 0 or (self.loss.c_ref == "exact" and self.self_reward.token is not None)

    @model_validator(mode="after")
    def _settings_agree(self) -> "RunConfig":
        if self.self_reward.token is None and (self.loss.alpha > 0 or self.loss.tau > 0):
            raise ValueError(
                f"self_reward.token: is null, which switches self-rewarding off, but loss.alpha={self.loss.alpha} and "
                f"loss.tau={self.loss.tau} ask for it: set both to 0, or name a token"
            )
        if self.self_reward.token is not None and not isinstance(self.loss.c_ref, str):
            self._refuse_c_ref(self.loss.c_ref)
        if self.learning.mini_batches > self.rollout.prompts_per_step:
            raise ValueError(
                f"learning.mini_batches: {self.learning.mini_batches} is more than rollout.prompts_per_step="
                f"{self.rollout.prompts_per_step}; a mini-batch holds whole groups, so use at most as many"
            )
        longest = self.rollout.max_prompt_tokens + self.rollout.max_response_tokens
        if longest > self.learning.tokens_per_micro_batch:
            raise ValueError(
                f"learning.tokens_per_micro_batch: {self.learning.tokens_per_micro_batch} is less than the longest sample, "
                f"rollout.max_prompt_tokens + rollout.max_response_tokens = {longest}: use at least {longest}"
            )
        if self.rollout.colocate:
            self._refuse_unequal_turns()
        return self

    def _refuse_c_ref(self, c_ref: float) -> None:
        """A number can be checked before anything starts; a measured c_ref is checked when it is known."""
        check = check_c_ref(c_ref, self.loss.beta_v)
        if check.level == "refuse":
            raise ValueError(
                f"loss.c_ref: {' '.join(check.messages)} (above {-1 / c_ref:.3g}), or leave loss.c_ref=calibrate, which measures it"
            )

    def _refuse_unequal_turns(self) -> None:
        """An engine takes turns with as many ranks as it has tensor-parallel ranks, and has what they have."""
        rollout, learning = self.rollout, self.learning
        ranks = rollout.num_engines * rollout.tensor_parallel
        if ranks > learning.num_ranks:
            raise ValueError(
                f"rollout.colocate: {rollout.num_engines} engine(s) of {rollout.tensor_parallel} tensor-parallel rank(s) take turns with "
                f"{ranks} learner ranks, but learning.num_ranks={learning.num_ranks}"
            )
        if (rollout.gpus, learning.gpus_per_rank) not in ((0, 0), (1, 1)):
            raise ValueError(
                f"rollout.colocate: turns are taken on whole GPUs, or on CPUs alone, but rollout.gpus={rollout.gpus:g} and "
                f"learning.gpus_per_rank={learning.gpus_per_rank:g}: set both to 1, or both to 0"
            )
        there = rollout.tensor_parallel * learning.cpus_per_rank
        if rollout.cpus > there:
            raise ValueError(
                f"rollout.colocate: an engine has the CPUs of the {rollout.tensor_parallel} rank(s) it takes turns with, {there:g}, but "
                f"rollout.cpus={rollout.cpus:g}"
            )
        if rollout.resources:
            raise ValueError("rollout.colocate: engines are where the ranks are: give learning.resources instead of rollout.resources")
        if learning.offload != "none":
            raise ValueError(f"rollout.colocate: moves the learner's states itself; learning.offload={learning.offload} must be none")


class SFTDataConfig(Section):
    train: Text
    """Worked solutions: a .jsonl, .json or .parquet file, a Hugging Face data set folder or name."""
    problem_field: Text = "problem"
    """Field that holds the problem's text."""
    solution_field: Text = "solution"
    """Field that holds the worked solution."""
    instruction: str = DataConfig.model_fields["instruction"].default
    """Text after each problem; the same as in the training that follows."""
    max_tokens: PositiveInt = 2048
    """Longer samples are dropped and counted."""


class SFTLearningConfig(Section):
    num_ranks: PositiveInt = 1
    """Ray Train workers, each a DeepSpeed ZeRO-3 rank."""
    cpus_per_rank: Share = 1.0
    """CPUs a rank reserves."""
    gpus_per_rank: Gpus = 0.0
    """GPUs a rank reserves."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward and backward pass."""
    batch_size: PositiveInt = 64
    """Samples an optimiser step, over all ranks."""
    lr: Annotated[float, Field(gt=0)] = 1e-5
    """AdamW's peak learning rate."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    """AdamW's momentum coefficients."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    warmup_steps: StepCount = 50
    """Steps over which the learning rate rises; then it falls as a cosine."""
    final_lr_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of the peak learning rate that the cosine ends at."""
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this global norm."""
    tokens_per_micro_batch: PositiveInt = 16384
    """Tokens, padding included, in one forward and backward pass of a rank."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    deepspeed: dict[str, Any] = {}
    """Merged over the DeepSpeed configuration that the other settings make."""

    @model_validator(mode="after")
    def _whole_gpus(self) -> "SFTLearningConfig":
        refuse_parts_of_gpus("learning.gpus_per_rank", self.gpus_per_rank)
        return self


class SFTSelfRewardConfig(Section):
    token: Text | None = None
    """z_c; when given, the loss also covers one token after EOS, which makes log pi(z_c) there nearly uniform."""


class SFTRunSection(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run."""
    dir: Path = Path("runs")
    """Folder of all runs."""
    steps: PositiveInt
    """Optimiser steps."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the sample order."""


class SFTConfig(Section):
    """Settings of `laser sft`."""

    run: SFTRunSection
    model: ModelConfig
    data: SFTDataConfig
    learning: SFTLearningConfig = SFTLearningConfig()
    self_reward: SFTSelfRewardConfig = SFTSelfRewardConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def folder(self) -> Path:
        return self.run.dir / self.run.name

    @model_validator(mode="after")
    def _samples_fit(self) -> "SFTConfig":
        if self.data.max_tokens > self.learning.tokens_per_micro_batch:
            raise ValueError(
                f"learning.tokens_per_micro_batch: {self.learning.tokens_per_micro_batch} is less than the longest sample, "
                f"data.max_tokens = {self.data.max_tokens}: use at least that"
            )
        return self


@typing.overload
def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> RunConfig: ...


@typing.overload
def load_config(path: str | Path, overrides: typing.Sequence[str], schema: type[C]) -> C: ...


def load_config(path: str | Path, overrides: typing.Sequence[str] = (), schema: type[Section] = RunConfig) -> Section:
    """Read `path`, apply `overrides` as `apply_overrides` does, and validate.

    Raises:
        ConfigError: The file is missing or no YAML mapping, an override is malformed, or a key or value is refused.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Give the path of a YAML configuration.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold sections such as `run:` and `model:`, but is {type(tree).__name__}.")
    apply_overrides(tree, overrides, schema)
    return validate(tree, schema, str(path))


def validate(tree: dict[str, Any], schema: type[C], source: str) -> C:
    """Check a tree of settings; `source` names it in the error."""
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        problems: dict[str, list[dict[str, Any]]] = {}
        for number, problem in enumerate(error.errors()):
            # Each member of a union complains on its own of the one wrong value.
            problems.setdefault(_key(problem["loc"]) or str(number), []).append(dict(problem))
        lines = [_explain(schema, alternatives) for alternatives in problems.values()]
        count = "1 setting" if len(lines) == 1 else f"{len(lines)} settings"
        raise ConfigError(f"{source}: " + "\n  ".join([f"{count} refused", *lines])) from error


def apply_overrides(tree: dict[str, Any], overrides: typing.Sequence[str], schema: type[Section]) -> None:
    """Set `key.path=value` texts in a tree of the settings of `schema`, in order; all commands read theirs here.

    A value is YAML. Without one, `key=` is the empty text where the setting may be empty, such as `data.instruction`,
    and null everywhere else; `key=null` is null everywhere.

    Raises:
        ConfigError: An override has no key or no `=`, its value is no YAML, or its key goes through a value.
    """
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"override {override!r}: write key.path=value, with a key such as {known_keys(schema)[0]}")
        try:
            value = yaml.safe_load(text) if text.strip() else "" if _may_be_empty(schema, key) else None
        except yaml.YAMLError as error:
            raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from error
        _assign(tree, key, value, f"override {override!r}")


def with_overrides(config: C, overrides: typing.Sequence[str], source: str) -> C:
    """A copy with `overrides` applied as by `apply_overrides`, validated again; `source` names them in the error.

    Raises:
        ConfigError: An override is malformed, or a key or value is refused.
    """
    tree = config.model_dump(mode="json")
    apply_overrides(tree, overrides, type(config))
    return validate(tree, type(config), source)


def with_settings(config: C, settings: typing.Mapping[str, Any], source: str = "settings") -> C:
    """A copy with other values, `{"loss.alpha": 0.5}`, validated again; `source` names them in the error.

    Raises:
        ConfigError: A key is unknown or a value refused.
    """
    tree = config.model_dump(mode="json")
    for key, value in settings.items():
        _assign(tree, key, value, source)
    return validate(tree, type(config), source)


def dump_config(config: Section) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flat_settings(config: Section) -> dict[str, Any]:
    """`{"loss.alpha": 0.1, ...}`: every setting under its dotted key."""
    return flat_tree(config.model_dump(mode="json"))


def flat_tree(tree: typing.Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"loss": {"alpha": 0.1}}` as `{"loss.alpha": 0.1}`; an empty section keeps its key."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flat_tree(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def changed_settings(saved: Path, config: Section, source: str | None = None) -> dict[str, str]:
    """How the settings saved with a run differ from `config`: `{"loss.alpha": "0.1 before, 0.5 now"}`.

    Args:
        source: Names the saved settings in the error, where `saved` is a copy.

    Raises:
        ConfigError: The saved settings are of another command or version.
    """
    before, now = flat_settings(validate(yaml.safe_load(saved.read_text()), type(config), source or str(saved))), flat_settings(config)
    # Pass-through settings come and go: a key may be in either.
    changed = [key for key in now | before if before.get(key) != now.get(key)]
    return {key: f"{before.get(key)!r} before, {now.get(key)!r} now" for key in changed}


def _may_be_empty(schema: type[Section], key: str) -> bool:
    """Whether the setting at a dotted key takes the empty text."""
    name, _, rest = key.partition(".")
    field = schema.model_fields.get(name)
    if field is None:
        return False
    if rest:
        marks = (mark.schema for mark in field.metadata if isinstance(mark, SettingsOf))
        section = _section_of(field.annotation) or next(marks, None)
        return section is not None and _may_be_empty(section, rest)
    # Strict, because a path, which is no text, would take it for the current directory.
    allowed: Any = Annotated[field.annotation, field]
    try:
        TypeAdapter(allowed).validate_python("", strict=True)
    except ValidationError:
        return False
    return True


def _assign(tree: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Set the value at a dotted key."""
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise ConfigError(f"{source}: {parent} is a value, not a section")
    node[leaf] = value


def _key(location: typing.Sequence[int | str]) -> str:
    """The dotted key of an error's location, without pydantic's names of union members."""
    return ".".join(part for part in map(str, location) if not part.startswith(("literal[", "constrained-")))


def _explain(schema: type[Section], alternatives: list[dict[str, Any]]) -> str:
    """One line on one wrong key: `alternatives` are the complaints of each type that it could have had."""
    problem = alternatives[0]
    key = _key(problem["loc"])
    if problem["type"] == "value_error":  # our own, which names its keys
        return problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key. Nearest known key: {_nearest(key, schema)}"
    if problem["type"] == "missing":
        return f"{key}: missing. {_described(schema, key)}".rstrip()
    if problem["type"] == "model_type":
        example = next(known for known in known_keys(schema) if known.startswith(f"{key}."))
        return f"{key}: must be a section of keys such as {example}, got {problem['input']!r}. Leave it out for the defaults."
    # "Input should be a valid number, unable to parse string as a number": what follows the comma repeats what stands before it.
    messages = (alternative["msg"].replace(" is not ", " should be ") for alternative in alternatives)
    rules = dict.fromkeys(re.sub(r"^.* should |, (unable|got) .*$| for <class .*$", "", message) for message in messages)
    return f"{key}: must {', or '.join(rules)}, got {problem['input']!r}. {_described(schema, key)}".rstrip()


def _nearest(key: str, schema: type[Section]) -> str:
    """A key of the same name in another section, else the most similar one."""
    known = known_keys(schema)
    namesakes = [other for other in known if other.rpartition(".")[2] == key.rpartition(".")[2]]
    candidates = namesakes or (known if "." in key else [*schema.model_fields, *known])
    return difflib.get_close_matches(key, candidates, n=1, cutoff=0.0)[0]


def known_keys(schema: type[Section], prefix: str = "") -> list[str]:
    """All dotted keys of a schema."""
    keys = []
    for name, field in schema.model_fields.items():
        section = _section_of(field.annotation)
        keys += known_keys(section, f"{prefix}{name}.") if section else [f"{prefix}{name}"]
    return keys


def _section_of(annotation: Any) -> type[Section] | None:
    members = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return next((member for member in members if isinstance(member, type) and issubclass(member, Section)), None)


def _described(schema: type[Section], key: str) -> str:
    node: type[Section] | None = schema
    text = ""
    for part in key.split("."):
        field = node.model_fields.get(part) if node else None
        if field is None:
            return text
        text, node = field.description or "", _section_of(field.annotation)
    return text
