"""Starting the rollout and the verification pool, for training and evaluation alike."""

from orchestrator.config.training import RunConfig
from orchestrator.data.tokens import ModelTokens, absolute_path
from orchestrator.messages.requests import EngineSettings


def engine_settings(config: RunConfig, tokens: ModelTokens) -> EngineSettings:
    rollout = config.rollout
    return EngineSettings(
        model_path=absolute_path(config.model.path),
        eos_tokens=tokens.eos_tokens,
        z_token=tokens.z_token,
        max_prompt_tokens=rollout.max_prompt_tokens,
        max_response_tokens=rollout.max_response_tokens,
        dtype=config.engine_dtype,
        tensor_parallel=rollout.tensor_parallel,
        threads=max(1, int(rollout.cpus)),
        kv_cache_gib=rollout.kv_cache_gib,
        on_gpu=rollout.gpus > 0,
        sleeps=rollout.colocate,
        engine_args=rollout.engine_args,
    )
