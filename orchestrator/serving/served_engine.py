"""What an engine replica needs to know of its model before it starts."""

import hashlib
from pathlib import Path

from orchestrator.config.serving import ServedEngine
from orchestrator.data.model_files import load_model_config
from orchestrator.data.tokens import refuse_uneven_heads
from orchestrator.errors import ConfigError
from orchestrator.messages.requests import EngineSettings
from orchestrator.models.resolve import ResolvedModel

DEFAULT_PROMPT_TOKENS = 2048
DEFAULT_RESPONSE_TOKENS = 8192


def weights_name(model: ResolvedModel) -> str:
    """The name of the weights that clients see, without folders of the server.

    It is a registered version, a hub name, or the end of the path with a hash of the whole path.
    """
    path = Path(model.path)
    if model.origin.startswith("models:/") or not path.is_absolute():
        return model.origin
    parts = [part for part in path.parts if part not in ("/", "export", "checkpoints")]
    return f"{'/'.join(parts[-2:])}@{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def served_engine_settings(model: ResolvedModel, engine: ServedEngine) -> EngineSettings:
    """The engine's settings; lengths that the configuration leaves open follow from the model's positions.

    Raises:
        ConfigError: The configuration asks for more positions than the model has, or the model's tokenizer
            cannot decode token by token.
    """
    if not hasattr(model.tokens.tokenizer, "backend_tokenizer"):
        raise ConfigError(
            f"the tokenizer of {model.origin} cannot decode token by token, because it is not one of the "
            "tokenizers library; save the model with a tokenizer.json"
        )
    refuse_uneven_heads(model.path, engine.tensor_parallel, "engine.tensor_parallel")
    config = load_model_config(model.path).get_text_config()
    positions = config.max_position_embeddings
    prompt = engine.max_prompt_tokens or min(DEFAULT_PROMPT_TOKENS, positions // 4)
    response = engine.max_response_tokens or min(DEFAULT_RESPONSE_TOKENS, positions - prompt - 1)
    if response < 1 or prompt + response + 1 > positions:
        raise ConfigError(
            f"engine.max_prompt_tokens={prompt} + engine.max_response_tokens={response} + 1 for the score is "
            f"more than the {positions} positions of {model.origin}: lower them"
        )
    return EngineSettings(
        model.path,
        model.tokens.eos_tokens,
        model.tokens.z_token,
        max_prompt_tokens=prompt,
        max_response_tokens=response,
        # vLLM's own "auto" would round float32 weights to bfloat16.
        dtype=str(config.dtype or "auto").removeprefix("torch.") if engine.dtype == "auto" else engine.dtype,
        tensor_parallel=engine.tensor_parallel,
        threads=max(1, int(engine.cpus)),
        kv_cache_gib=engine.kv_cache_gib,
        on_gpu=engine.gpus > 0,
        engine_args=engine.engine_args,
    )
