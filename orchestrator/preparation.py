"""What a run needs before anything starts: its tokenizer, token ids and problems, checked.

In: a configuration. Out: `Prepared`, or a `ConfigError` or `DataError` that says what to mend. Starts neither Ray nor an engine.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.prompts import PromptSet, check_round_trip, check_template, eos_token_ids, load_problems, resolve_token


@dataclass(frozen=True)
class ModelTokens:
    """A model folder's tokenizer and the ids that a run uses."""

    tokenizer: Any
    z_token: int | None
    eos_tokens: tuple[int, ...]


@dataclass(frozen=True)
class Prepared:
    tokens: ModelTokens
    train: PromptSet
    eval: PromptSet | None
    eval_name: str
    """Name of the held-out set in metrics: its file's stem."""


def load_tokens(model_path: str, z_token: str | None) -> ModelTokens:
    """The tokenizer of a model folder or hub name, with its template and tokens checked.

    Raises:
        ConfigError: There is no such model, it has no chat template, or `z_token` is no single token of it.
    """
    if looks_local(model_path) and not (Path(model_path) / "config.json").is_file():
        raise ConfigError(f"model.path: {model_path} is no model folder (it has no config.json)")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: no tokenizer could be loaded from {model_path}: {str(error).splitlines()[0]}") from error
    check_template(tokenizer)
    return ModelTokens(
        tokenizer,
        None if z_token is None else resolve_token(tokenizer, z_token),
        tuple(eos_token_ids(tokenizer, model_path)),
    )


def prepare(config: RunConfig) -> Prepared:
    """Load and check everything that a run of `config` reads before it starts its pools.

    Raises:
        ConfigError, DataError: As `load_tokens` and `load_problems`; also when z_c is one of the EOS tokens.
    """
    data = config.data
    problems = load_problems(data.train, data.problem_field, data.answer_field)
    eval_problems = None
    if data.eval is not None:
        eval_problems = load_problems(data.eval, *data.eval_fields, split="test")
    tokens = load_tokens(config.model.path, config.self_reward.token)
    if tokens.z_token in tokens.eos_tokens:
        raise ConfigError(
            f"self_reward.token: {config.self_reward.token!r} is one of the model's EOS tokens; choose one that it never uses"
        )
    check_round_trip(tokens.tokenizer, [problem.text for problem in problems[:100]])

    limit = config.rollout.max_prompt_tokens
    train = PromptSet(tokens.tokenizer, problems, data.instruction, limit)
    held_out = None
    if eval_problems is not None:
        held_out = PromptSet(tokens.tokenizer, eval_problems[: config.evaluation.max_problems], data.instruction, limit)
    if len(train) < config.rollout.prompts_per_step:
        raise ConfigError(
            f"rollout.prompts_per_step={config.rollout.prompts_per_step}, but {data.train} holds only {len(train)} problems of at most "
            f"{limit} tokens: use at most that many a step"
        )
    return Prepared(tokens, train, held_out, Path(data.eval).stem if data.eval else "")


def looks_local(model_path: str) -> bool:
    """Whether a model path means a folder and not a hub name: it exists, or no hub name could look so."""
    return Path(model_path).exists() or model_path.startswith((".", "/", "~")) or model_path.count("/") != 1


def absolute_path(model_path: str) -> str:
    """A model path for actors, whose working directory may be another one; hub names stay as they are."""
    return str(Path(model_path).expanduser().resolve()) if looks_local(model_path) else model_path
