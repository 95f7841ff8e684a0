"""A run's tokenizer, token ids and problems, loaded and checked before anything starts.

In: a configuration. Out: `PreparedRun`, or a `ConfigError` or `DataError` that says what to correct. Starts
neither Ray nor an engine.
"""

from dataclasses import dataclass
from pathlib import Path

from orchestrator.config.training import RunConfig
from orchestrator.data.fingerprints import Sources, model_print, rows_print
from orchestrator.data.problems import load_problems
from orchestrator.data.prompts import PromptSet
from orchestrator.data.tokens import (
    ModelTokens,
    check_round_trip,
    refuse_attention_windows,
    refuse_uneven_heads,
    tokens_of,
)
from orchestrator.errors import ConfigError


@dataclass(frozen=True)
class PreparedRun:
    """What a run reads before it starts its pools."""

    tokens: ModelTokens
    train: PromptSet
    eval: PromptSet | None
    eval_name: str
    """Name of the held-out set in metrics: its file's stem."""
    sources: Sources
    """Fingerprints of all that the run reads."""


def prepare(config: RunConfig) -> PreparedRun:
    """Load and check what a run of `config` reads before it starts its pools.

    Raises:
        ConfigError, DataError: As `load_tokens`, `refuse_uneven_heads`, `load_problems` and `PromptSet`.
    """
    data = config.data
    problems = load_problems(data.train, data.problem_field, data.answer_field)
    eval_problems = None
    if data.eval is not None:
        eval_problems = load_problems(data.eval, *data.eval_fields, split="test")
    tokens = tokens_of(config)
    refuse_uneven_heads(config.model.path, config.rollout.tensor_parallel, "rollout.tensor_parallel")
    if config.learning.share_prefixes:
        refuse_attention_windows(config.model.path, "learning.share_prefixes")
    check_round_trip(tokens.tokenizer, [problem.text for problem in problems[:100]])

    limit = config.rollout.max_prompt_tokens
    train = PromptSet(tokens.chat, problems, data.instruction, limit)
    held_out = None
    if eval_problems is not None:
        held_out = PromptSet(
            tokens.chat, eval_problems[: config.evaluation.max_problems], data.instruction, limit
        )
    if len(train) < config.rollout.prompts_per_step:
        raise ConfigError(
            f"rollout.prompts_per_step={config.rollout.prompts_per_step}, but {data.train} holds "
            f"only {len(train)} problems of at most "
            f"{limit} tokens: use at most that many a step"
        )
    sources: Sources = {"data.train": rows_print(data.train, problems)}
    if data.eval is not None and eval_problems is not None:
        sources["data.eval"] = rows_print(data.eval, eval_problems[: config.evaluation.max_problems])
    sources["model.path"] = model_print(config.model.path)
    return PreparedRun(tokens, train, held_out, Path(data.eval).stem if data.eval else "", sources)
