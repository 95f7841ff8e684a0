"""Every setting of a run, typed and bounded; imports neither torch nor Ray.

In: a YAML file and `key.path=value` overrides. Out: a `RunConfig` (or `SFTConfig`), or a `ConfigError` that names
each wrong key, what is allowed there, and the nearest key that exists.
"""

import typing
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from orchestrator.algorithm.c_ref import check_c_ref
from orchestrator.config.schema import (
    C,
    CustomResources,
    Gpus,
    Mark,
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
    StepCount,
    Text,
    read_config,
    refuse_parts_of_gpus,
)


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

    num_engines: Annotated[PositiveInt, Mark.MAY_CHANGE, Mark.POOL_SIZE] = 1
    """vLLM engines, each an actor."""
    max_prompt_tokens: PositiveInt = 2048
    """Longer prompts are dropped and counted."""
    max_response_tokens: PositiveInt = 8192
    """A response that has not ended by then is unfinished: it has no score."""
    tensor_parallel: Annotated[PositiveInt, Mark.MAY_CHANGE] = 1
    """GPUs (or CPU processes) that share one engine's weights."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the engine; `auto` is that of `learning.dtype`, in an evaluation that of the model's folder."""
    kv_cache_gib: Annotated[PositiveFloat | None, Mark.MAY_CHANGE] = None
    """KV-cache of an engine in GiB. On CPU 0.5 unless set; on GPU vLLM's own share of the memory."""
    cpus: Annotated[Share, Mark.MAY_CHANGE, Mark.POOL_SIZE] = 1.0
    """CPUs an engine reserves; fractions share a CPU."""
    gpus: Annotated[Gpus, Mark.MAY_CHANGE] = 0.0
    """GPUs a tensor-parallel rank reserves; 0 runs the engine on CPU."""
    resources: Annotated[CustomResources, Mark.MAY_CHANGE, Mark.POOL_SIZE] = {}
    """Custom resources an engine reserves, such as {rollout: 1}: it runs only on nodes that were started with them."""
    engine_args: Annotated[dict[str, Any], Mark.MAY_CHANGE] = {}
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
    sync_chunk_mib: Annotated[PositiveInt, Mark.MAY_CHANGE] = 256
    """Weights travel through the object store in chunks of at most this size."""
    colocate: Annotated[bool, Mark.MAY_CHANGE, Mark.POOL_SIZE] = False
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
            raise ValueError(
                f"rollout.max_staleness: is {self.max_staleness}, but only 0 (on-policy) is supported by this version"
            )
        return self


class VerificationConfig(Section):
    num_workers: Annotated[PositiveInt, Mark.MAY_CHANGE] = 1
    """CPU actors that check answers."""
    timeout_s: Annotated[PositiveFloat, Mark.MAY_CHANGE] = 10.0
    """Seconds one check may take from when it starts; then its process is killed and the status is `timeout`."""
    cpus: Annotated[Share, Mark.MAY_CHANGE] = 1.0
    """CPUs a worker reserves; fractions share a CPU."""
    resources: Annotated[CustomResources, Mark.MAY_CHANGE] = {}
    """Custom resources a worker reserves."""
    verifier: Text = "actors.verification:verify_math"
    """Import path `package.module:function` of the check."""


class LearningConfig(Section):
    num_ranks: Annotated[PositiveInt, Mark.POOL_SIZE] = 1
    """DeepSpeed ZeRO-3 ranks, each an actor."""
    cpus_per_rank: Annotated[Share, Mark.MAY_CHANGE, Mark.POOL_SIZE] = 1.0
    """CPUs a rank reserves; fractions share a CPU."""
    gpus_per_rank: Annotated[Gpus, Mark.MAY_CHANGE] = 0.0
    """GPUs a rank reserves; 0 trains on CPU over gloo."""
    resources: Annotated[CustomResources, Mark.MAY_CHANGE, Mark.POOL_SIZE] = {}
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
    grad_clip: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm."""
    mini_batches: PositiveInt = 1
    """Optimiser steps made from one rollout batch."""
    tokens_per_micro_batch: Annotated[PositiveInt, Mark.MAY_CHANGE] = 16384
    """Prompt and response tokens, padding included, in one forward and backward pass of a rank."""
    gradient_checkpointing: Annotated[bool, Mark.MAY_CHANGE] = False
    """Recompute activations in the backward pass to save memory."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What ZeRO-3 keeps in CPU memory on a GPU run."""
    attention: Annotated[Literal["sdpa", "eager", "flash_attention_2"], Mark.MAY_CHANGE] = "sdpa"
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
    alpha: Annotated[float, Field(ge=0), Mark.AFTER_WARM_UP] = 0.1
    """Weight of the self-reward loss; 0 leaves plain GRPO."""
    beta_v: Annotated[PositiveFloat, Mark.AFTER_WARM_UP] = 0.1
    """The self-reward's KL coefficient: score = beta_v * (log pi(z_c) - c_ref)."""
    tau: Annotated[float, Field(ge=0, le=1), Mark.AFTER_WARM_UP] = 0.1
    """Share of the self-rewarding advantage in the mix."""
    filter_std: Annotated[float, Field(ge=0), Mark.AFTER_WARM_UP] = 0.1
    """Groups whose scores spread no more than this keep their verifier advantages."""
    c_ref: Literal["calibrate", "exact"] | Annotated[float, Field(lt=0)] = "calibrate"
    """log pi_ref(z_c): measured on the initial model's solutions (calibrate), by a reference model for each one (exact), or a number."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL penalty to the initial model; above 0 a reference model runs."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of that KL (Schulman's names)."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """PPO's lower clip of the probability ratio."""
    clip_high: PositiveFloat = 0.2
    """PPO's upper clip."""
    dual_clip: Annotated[float, Field(gt=1)] = 3.0
    """Bound of the loss where the advantage is negative."""
    importance_cap: PositiveFloat | None = None
    """Truncated importance sampling for engine-learner mismatch: the weights' cap, or none."""
    reasoning_warmup_steps: StepCount = 0
    """Steps of plain GRPO before the self-reward loss joins (w_r)."""
    self_reward_warmup_steps: Annotated[StepCount, Mark.AFTER_WARM_UP] = 200
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
    temperature: PositiveFloat = 1.0
    """Sampling temperature of evaluations; the score is read at temperature 1 whatever this is."""


class TrackingConfig(Section):
    uri: Annotated[Text | None, Mark.PLACE] = None
    """MLflow server; MLFLOW_TRACKING_URI, else sqlite in `run.dir`, when null."""
    experiment: Annotated[Text, Mark.PLACE] = "laser"
    """MLflow experiment."""
    sampled_solutions: PositiveInt = 32
    """Solutions in the table that each evaluation logs."""


class RunSection(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"), Mark.PLACE, Mark.SET_BY_SWEEP]
    """Name of the run: its folder under `run.dir` and its MLflow run name."""
    dir: Annotated[Path, Mark.MAY_CHANGE, Mark.PLACE, Mark.SET_BY_SWEEP] = Path("runs")
    """Folder of all runs."""
    steps: Annotated[StepCount, Mark.MAY_CHANGE, Mark.AFTER_WARM_UP]
    """Training steps; 0 only measures the initial model: its c_ref and its evaluation."""
    seed: Annotated[int, Field(ge=0, lt=2**31), Mark.SET_BY_SWEEP] = 0
    """Seed of problem order and sampling."""
    eval_every: Annotated[StepCount, Mark.MAY_CHANGE] = 0
    """Evaluate every so many steps; 0 only before the first step and after the last."""
    save_every: Annotated[StepCount, Mark.MAY_CHANGE] = 0
    """Checkpoint every so many steps; 0 only after the last."""
    save_rollouts_every: Annotated[StepCount, Mark.MAY_CHANGE] = 0
    """Keep the rollouts of every so many steps as parquet; 0 never."""
    keep_checkpoints: Annotated[PositiveInt, Mark.MAY_CHANGE] = 2
    """Older checkpoints are deleted; one that a service or an evaluation uses, only after that has ended."""
    remote: Annotated[Text | None, Mark.MAY_CHANGE, Mark.PLACE, Mark.SET_BY_SWEEP] = None
    """URL under which `<name>/` holds what any node needs to continue the run: s3://bucket/runs, gs://..., file:///mnt/runs.
    Nodes then need no shared `dir`. Credentials are those of each node's environment."""

    @field_validator("remote")
    @classmethod
    def _open_to_read(cls, remote: str | None) -> str | None:
        if remote is None:
            return None
        if "://" not in remote:
            raise ValueError(
                f"run.remote: {remote!r} is no URL: write s3://bucket/runs, gs://bucket/runs or file:///mnt/runs"
            )
        if urlsplit(remote).password is not None:
            raise ValueError(
                "run.remote: holds a secret, which config.yaml and MLflow would show: leave it to the nodes' environment"
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
    tracking: Annotated[TrackingConfig, Mark.MAY_CHANGE, Mark.SET_BY_SWEEP] = TrackingConfig()

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
            raise ValueError(
                "rollout.colocate: engines are where the ranks are: give learning.resources instead of rollout.resources"
            )
        if learning.offload != "none":
            raise ValueError(
                f"rollout.colocate: moves the learner's states itself; learning.offload={learning.offload} must be none"
            )


@typing.overload
def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> RunConfig: ...


@typing.overload
def load_config(path: str | Path, overrides: typing.Sequence[str], schema: type[C]) -> C: ...


def load_config(
    path: str | Path, overrides: typing.Sequence[str] = (), schema: type[Section] = RunConfig
) -> Section:
    """The settings of the YAML file at `path`: of a run, or of another command whose `schema` is given.

    Raises:
        ConfigError: As `read_config`.
    """
    return read_config(path, overrides, schema)
