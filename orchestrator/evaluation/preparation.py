"""Before an evaluation starts: its model, its score, and its problems or stored samples, loaded and checked.

In: `EvalConfig`. Out: `PreparedEvaluation`, or a `ConfigError` or `DataError` that says what to correct.
Starts neither Ray nor an engine.
"""

import contextlib
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.markup import escape

from orchestrator.config.evaluation import EvalConfig, SetRequest, default_folder, requested_sets
from orchestrator.config.sources import DataConfig
from orchestrator.config.texts import read_text
from orchestrator.data.chat import ChatSettings
from orchestrator.data.eos import response_end, turn_end_warning
from orchestrator.data.fingerprints import model_print
from orchestrator.data.model_files import load_model_config
from orchestrator.data.problems import ProblemSource
from orchestrator.data.prompts import ProblemSet, PromptSet, encode_response, render_prompt
from orchestrator.data.tokens import (
    ModelTokens,
    check_round_trip,
    check_template,
    refuse_ended_thinking,
    refuse_uneven_heads,
    resolve_token,
)
from orchestrator.errors import ConfigError, DataError
from orchestrator.evaluation.samples import EvalSample, by_problem, read_samples
from orchestrator.evaluation.scores import ScoreRule
from orchestrator.messages.requests import EngineSettings
from orchestrator.models.resolve import ResolvedModel, resolve_model
from orchestrator.pools.start import engine_settings


@dataclass(frozen=True)
class PreparedEvaluation:
    """An evaluation that can start.

    Attributes:
        config: The settings.
        folder: Where the results go.
        model: None where stored samples keep the scores that they have.
        score: None for an evaluation without a score.
        sets: The problems to draw samples of; empty with stored samples.
        stored: The samples of `config.samples`; empty when samples are drawn.
        instruction: Text after each problem.
        answer_after: The verifier sees what follows this text in a response; empty for all of it.
        longest_response: Tokens that a response may have: `rollout.max_response_tokens`, or fewer where the
            model's context leaves less room after the longest prompt.
    """

    config: EvalConfig
    folder: Path
    model: ResolvedModel | None
    score: ScoreRule | None
    sets: list[ProblemSet]
    stored: list[EvalSample]
    instruction: str
    answer_after: str
    longest_response: int

    @property
    def needs_scoring(self) -> bool:
        """Whether the model scores stored samples."""
        return bool(self.stored) and self.model is not None and self.score is not None

    @property
    def dtype(self) -> str:
        """Precision of the engine: for `auto` the one that the model is stored in.

        vLLM's own `auto` runs a float32 model in half precision, with errors of 0.1 in log pi(z_c).
        """
        if self.config.rollout.dtype != "auto" or self.model is None:
            return self.config.rollout.dtype
        return str(_model_config(self.model.path).dtype or "auto").removeprefix("torch.")

    def protocol(self) -> dict[str, Any]:
        """What the samples depend on, JSON-ready. A folder holds samples of one protocol."""
        config = self.config
        return {
            "model": None if self.model is None else self.model.path,
            "weights": {} if self.model is None else model_print(self.model.path).files,
            "sets": {problem_set.name: _identity(problem_set) for problem_set in self.sets},
            "samples": None if config.samples is None else str(config.samples.resolve()),
            "instruction": self.instruction,
            "temperature": config.temperature,
            "seed": config.seed,
            "max_response_tokens": self.longest_response,
            "dtype": self.dtype,
            "verifier": config.verification.verifier,
            "score": None if self.score is None else vars(self.score),
        } | self._chat_protocol()

    def _chat_protocol(self) -> dict[str, Any]:
        """Of the chat's settings those that are not the plain ones, which earlier versions did not know."""
        chat = ChatSettings() if self.model is None else self.model.tokens.settings
        settings = {
            "system": chat.system,
            "chat_template_kwargs": dict(chat.template_kwargs),
            "chat_template": chat.template,
            "answer_after": self.answer_after,
        }
        return {name: value for name, value in settings.items() if value}

    def engine_settings(self) -> EngineSettings:
        """The settings of an engine for this evaluation, which needs a model."""
        assert self.model is not None
        if self.stored:
            prompt_tokens, response_tokens = max(map(len, self.stored_token_ids.values()), default=1), 1
        else:
            prompt_tokens, response_tokens = _longest_prompt(self.sets), self.longest_response
        return engine_settings(
            self.config.rollout,
            model_path=self.model.path,
            dtype=self.dtype,
            eos_tokens=self.model.tokens.eos_tokens,
            z_token=None if self.score is None else self.score.token_id,
            max_prompt_tokens=prompt_tokens,
            max_response_tokens=response_tokens,
        )

    @cached_property
    def stored_token_ids(self) -> dict[tuple[str, str, int], list[int]]:
        """Prompt and response, EOS included, of each finished stored sample, by set, problem and number.

        Responses are tokenised again: another model, with other tokens, may have written them.
        """
        assert self.model is not None
        chat = self.model.tokens.chat
        end = response_end(chat, self.model.tokens.eos_tokens)
        found = {}
        for sample in self.stored:
            if sample.finished:
                where = f"{self.config.samples}: sample {sample.sample} of {sample.problem_id}"
                asked = sample.messages or sample.problem
                prompt = render_prompt(chat, asked, self.instruction, f"{where}: 'problem'")
                response = encode_response(chat, sample.response, f"{where}: 'response'")
                found[sample.set, sample.problem_id, sample.sample] = [*prompt, *response, end]
        return found

    def order(self) -> Callable[[EvalSample], tuple[int, int]]:
        """A sort key for samples: the given order of sets and problems, then the number of the sample."""
        if self.stored:
            keys = list(by_problem(self.stored))
        else:
            keys = [
                (problem_set.name, problem.id)
                for problem_set in self.sets
                for problem in problem_set.prompts.problems
            ]
        place = {key: number for number, key in enumerate(keys)}
        return lambda sample: (place[sample.set, sample.problem_id], sample.sample)


def prepare(
    config: EvalConfig,
    tracking_uri: str,
    say: Callable[[str], None],
    hold: contextlib.ExitStack | None = None,
) -> PreparedEvaluation:
    """Load and check everything that an evaluation reads before it starts its pools.

    Args:
        say: Called with each message for the user.
        hold: Until it is closed, the evaluated run does not delete the model.

    Raises:
        ConfigError: The model cannot be found, a setting is refused, or a score or prompt does not fit it.
        DataError: Problems or stored samples cannot be read.
    """
    requests = requested_sets(config)
    stored = read_samples(config.samples) if config.samples is not None else []
    if config.samples is not None and not stored:
        raise DataError(f"{config.samples}: holds no sample; give the samples.jsonl of an evaluation")
    model = (
        None if config.model is None else resolve_model(config.model, tracking_uri, hold, config.eos_tokens)
    )
    if model is not None:
        refuse_uneven_heads(model.path, config.rollout.tensor_parallel, "rollout.tensor_parallel")
        warning = turn_end_warning(model.tokens.chat, model.tokens.eos_tokens, "eos_tokens")
        if warning is not None and model.card is None:
            say(f"[yellow]warning[/yellow] {escape(warning)}")
    score = _score(config, model, stored, say)
    if model is not None:
        model = replace(model, tokens=_with_chat(config, model))
    if model is not None and score is not None:  # a baseline's z_c is a control token too
        model = replace(model, tokens=replace(model.tokens, z_token=score.token_id))
    instruction, answer_after = _instruction(config, model), _answer_after(config, model)
    sets = []
    if model is not None:
        refuse_ended_thinking(model.tokens.chat, answer_after)
        sets = [_problem_set(config, model, instruction, answer_after, request, say) for request in requests]
    prepared = PreparedEvaluation(
        config=config,
        folder=config.folder or default_folder(config, [request.name for request in requests]),
        model=model,
        score=score,
        sets=sets,
        stored=stored,
        instruction=instruction,
        answer_after=answer_after,
        longest_response=_longest_response(config, model, sets, say),
    )
    if prepared.needs_scoring and model is not None:
        longest, context = max(map(len, prepared.stored_token_ids.values()), default=0), _context(model.path)
        if longest >= context:
            raise ConfigError(
                f"{config.samples}: a sample has {longest} tokens, but {config.model} has a "
                f"context of {context}; score it with a model that has a longer context"
            )
    return prepared


def _score(
    config: EvalConfig, model: ResolvedModel | None, stored: Sequence[EvalSample], say: Callable[[str], None]
) -> ScoreRule | None:
    if config.score == "baseline":
        return _baseline(config, model, stored)
    if config.score == "none" or model is None:
        return None
    if model.card is not None:
        return ScoreRule(
            model.card.token, model.card.token_id, model.card.c_ref, model.card.beta_v, "trained"
        )
    say(
        f"{model.origin} has no self_reward.json and is evaluated without a score; "
        "set score=baseline and baseline.token=TOKEN to read a score from it nevertheless"
    )
    return None


def _baseline(config: EvalConfig, model: ResolvedModel | None, stored: Sequence[EvalSample]) -> ScoreRule:
    baseline = config.baseline
    if model is None:
        if all(math.isnan(sample.z_logprob) for sample in stored):
            raise ConfigError(
                f"score=baseline: {config.samples} holds no log pi(z_c); "
                "give the --model that scores the samples"
            )
        return ScoreRule(baseline.token or "z_c", -1, baseline.c_ref, baseline.beta_v, "baseline")
    if baseline.token is None:
        raise ConfigError(
            "score=baseline needs baseline.token: a single token that the model uses for nothing else"
        )
    token_id = resolve_token(model.tokens.tokenizer, baseline.token)
    if token_id in model.tokens.eos_tokens:
        raise ConfigError(
            f"baseline.token: {baseline.token!r} is one of the model's EOS tokens; "
            "choose a token that the model never uses"
        )
    return ScoreRule(baseline.token, token_id, baseline.c_ref, baseline.beta_v, "baseline")


def _instruction(config: EvalConfig, model: ResolvedModel | None) -> str:
    if config.instruction is not None:
        return config.instruction
    card = model.card if model is not None else None
    return card.instruction if card is not None else DataConfig.model_fields["instruction"].default


def _answer_after(config: EvalConfig, model: ResolvedModel | None) -> str:
    if config.answer_after is not None:
        return config.answer_after
    card = model.card if model is not None else None
    return "" if card is None else card.answer_after


def _with_chat(config: EvalConfig, model: ResolvedModel) -> ModelTokens:
    """The model's tokens with the chat's settings of `config` in place of those of the score's training."""
    tokens, own = model.tokens, model.tokens.settings
    template = None
    if config.chat_template is not None:
        if model.card is not None:
            raise ConfigError(
                f"chat_template: the score of {config.model} was trained with the model's own chat template, "
                "and would be wrong with another; leave the setting out"
            )
        template = read_text(config.chat_template, "chat_template names a file with a chat template.")
        tokens.tokenizer.chat_template = template
    kwargs = own.template_kwargs if config.chat_template_kwargs is None else config.chat_template_kwargs
    chat = ChatSettings(own.system if config.system is None else config.system, kwargs, template)
    check_template(tokens.tokenizer, chat)
    return replace(tokens, settings=chat)


def _problem_set(
    config: EvalConfig,
    model: ResolvedModel,
    instruction: str,
    answer_after: str,
    request: SetRequest,
    say: Callable[[str], None],
) -> ProblemSet:
    own = request.source.instruction if request.has_instruction else instruction
    source = replace(request.source, instruction=own, answer_after=answer_after)
    problems = list(ProblemSource(source, "data"))
    check_round_trip(model.tokens.tokenizer, [problem.text for problem in problems[:100]])
    prompts = PromptSet(model.tokens.chat, problems, source.instruction, config.rollout.max_prompt_tokens)
    if prompts.dropped:
        say(f"{source.name}: left out {prompts.dropped} problems longer than rollout.max_prompt_tokens")
    return ProblemSet(source.name, prompts, request.samples_per_problem)


def _longest_response(
    config: EvalConfig, model: ResolvedModel | None, sets: Sequence[ProblemSet], say: Callable[[str], None]
) -> int:
    wanted = config.rollout.max_response_tokens
    if model is None or not sets:
        return wanted
    context = _context(model.path)
    room = context - _longest_prompt(sets) - 1  # for z_c
    if room < 1:
        raise ConfigError(
            f"rollout.max_prompt_tokens={config.rollout.max_prompt_tokens}: the longest prompt "
            f"leaves no room for a response in the model's context of {context} tokens; lower it"
        )
    if room < wanted:
        say(f"responses may have {room} tokens and not {wanted}: the model's context is {context} tokens")
    return min(room, wanted)


def _longest_prompt(sets: Sequence[ProblemSet]) -> int:
    return max(
        len(problem_set.prompts.token_ids(index))
        for problem_set in sets
        for index in range(len(problem_set.prompts))
    )


def _context(path: str) -> int:
    """The longest sequence of the model, in tokens."""
    positions = getattr(_model_config(path), "max_position_embeddings", None)
    if positions is None:
        raise ConfigError(f"model {path}: its config.json names no max_position_embeddings; add it")
    return positions


def _model_config(path: str) -> Any:
    try:
        return load_model_config(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model {path}: its config.json cannot be read: {str(error).splitlines()[0]}"
        ) from error


def _identity(problem_set: ProblemSet) -> dict[str, Any]:
    """Size and content of a set."""
    total = hashlib.sha256()
    for problem in problem_set.prompts.problems:
        total.update(f"{problem.id}\0{problem.text}\0{problem.reference}\0".encode(errors="surrogatepass"))
    problems = len(problem_set.prompts)
    return {
        "samples_per_problem": problem_set.samples_per_problem,
        "problems": problems,
        "sha256": total.hexdigest(),
    }
