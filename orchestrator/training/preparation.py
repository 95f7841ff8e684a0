"""A run's tokenizer, token ids and problems, loaded and checked before anything starts.

In: a configuration. Out: `PreparedRun`, or a `ConfigError` or `DataError` that says what to correct. Starts
neither Ray nor an engine.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from orchestrator.config.sources import Source
from orchestrator.config.training import RunConfig
from orchestrator.data.fingerprints import Sources, model_print
from orchestrator.data.problems import ProblemSource
from orchestrator.data.prompts import ProblemSet, PromptSet
from orchestrator.data.tokens import (
    ModelTokens,
    check_round_trip,
    refuse_attention_windows,
    refuse_uneven_heads,
    tokens_of,
)
from orchestrator.data.training_prompts import PromptSample, TrainingPrompts
from orchestrator.errors import ConfigError
from orchestrator.measures import AVERAGE


@dataclass(frozen=True)
class PreparedRun:
    """What a run reads before it starts its pools."""

    tokens: ModelTokens
    train: TrainingPrompts
    sample: PromptSample
    """What the first training prompts tell."""
    eval: tuple[ProblemSet, ...]
    """The held-out sets."""
    sources: Sources
    """Fingerprints of all that the run reads."""

    @property
    def eval_name(self) -> str:
        """Name in metrics of what a run is judged by: its held-out set, or the average of several."""
        names = [held_out.name for held_out in self.eval]
        return AVERAGE if names[1:] else "".join(names)

    def too_long(self) -> Iterator[str]:
        """A line for each part of the data with prompts that are too long."""
        reason = "longer than rollout.max_prompt_tokens"
        if self.sample.too_long:
            first = f"{self.sample.too_long} of the first {self.sample.prompts:,} training problems"
            yield f"{first} are {reason}; such problems are skipped"
        for held_out in self.eval:
            if held_out.prompts.dropped:
                yield f"{held_out.prompts.dropped} problems of {held_out.name} are {reason}: left out"


def prepare(config: RunConfig) -> PreparedRun:
    """Load and check what a run of `config` reads before it starts its pools.

    Raises:
        ConfigError, DataError: As `load_tokens`, `refuse_uneven_heads`, `ProblemSource`, `PromptSet` and
            `TrainingPrompts.check`.
    """
    data, limit = config.data, config.rollout.max_prompt_tokens
    training = [ProblemSource(source, "data.train") for source in data.train_sources(config.verification)]
    held_out = [
        ProblemSource(fewer(source, config.evaluation.max_problems), "data.eval")
        for source in data.eval_sources(config.verification)
    ]
    tokens = tokens_of(config)
    refuse_uneven_heads(config.model.path, config.rollout.tensor_parallel, "rollout.tensor_parallel")
    if config.learning.share_prefixes:
        refuse_attention_windows(config.model.path, "learning.share_prefixes")
    train = TrainingPrompts(tokens.chat, training, limit)
    texts = [message["content"] for problem in train.first(100) for message in problem.messages]
    check_round_trip(tokens.tokenizer, texts)
    sample = train.check()
    sets = tuple(
        ProblemSet(
            source.settings.name,
            PromptSet(tokens.chat, list(source), source.settings.instruction, limit),
            config.evaluation.samples_per_problem,
        )
        for source in held_out
    )
    fitting = len(train) - sample.too_long
    if fitting < config.rollout.prompts_per_step:
        paths = ", ".join(source.settings.path for source in training)
        raise ConfigError(
            f"rollout.prompts_per_step={config.rollout.prompts_per_step}, but {paths} holds only {fitting} "
            f"problems of at most {limit} tokens: use at most that many a step"
        )
    sources: Sources = {_key("data.train", source, training): source.fingerprint for source in training}
    sources |= {_key("data.eval", source, held_out): source.fingerprint for source in held_out}
    sources["model.path"] = model_print(config.model.path)
    return PreparedRun(tokens, train, sample, sets, sources)


def fewer(source: Source, most: int | None) -> Source:
    """The source with at most this many problems; None changes nothing."""
    if most is None or (source.max_problems is not None and source.max_problems <= most):
        return source
    return replace(source, max_problems=most)


def _key(key: str, source: ProblemSource, sources: Sequence[ProblemSource]) -> str:
    """The setting of a source's fingerprint; with its name where there are several."""
    return f"{key}: {source.settings.name}" if sources[1:] else key
