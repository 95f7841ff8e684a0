"""Settings of `laser eval`, and the problem sets that have a name.

This module imports neither torch nor Ray.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from orchestrator.config.engine import EngineConfig, EosTokens
from orchestrator.config.faults import FaultsConfig
from orchestrator.config.paths import LocalPath, PathOrName, short_name
from orchestrator.config.schema import PositiveFloat, PositiveInt, Section, Seed, Text
from orchestrator.config.sources import Source, SourceConfig, verifiers_in_use
from orchestrator.config.training import TrackingConfig, VerificationConfig
from orchestrator.errors import ConfigError

SAMPLES_PER_PROBLEM = 8
"""Solutions that are sampled for each problem of a set without a name."""


@dataclass(frozen=True)
class NamedSet:
    """A set of the Hugging Face hub, with the number of samples that the paper draws for each problem."""

    source: str
    split: str
    samples_per_problem: int
    problem_field: str = "problem"
    answer_field: str = "answer"


NAMED_SETS = {
    "math500": NamedSet("HuggingFaceH4/MATH-500", "test", 2),
    "amc23": NamedSet("math-ai/amc23", "test", 32, problem_field="question"),
    "aime24": NamedSet("HuggingFaceH4/aime_2024", "train", 32),
    "aime25": NamedSet("math-ai/aime25", "test", 32),
    "olympiadbench": NamedSet(
        "math-ai/olympiadbench", "test", 2, problem_field="question", answer_field="final_answer"
    ),
}
"""Source: LaSeR (arXiv 2510.14943), evaluation."""


class BaselineConfig(Section):
    """How `score: baseline` reads a score from a model that was not trained to give one."""

    token: Text | None = None
    """z_c: a single token that the model uses for nothing else; stored samples name their own."""
    beta_v: PositiveFloat = 0.1
    """Scale of the score."""
    c_ref: Annotated[float, Field(lt=0)] | None = None
    """log pi_ref(z_c); null measures it, as the mean over the finished samples of this evaluation."""


class EvalConfig(Section):
    """Settings of `laser eval`. Sampling is at top-p 1, as in the paper."""

    model: PathOrName | None = None
    """A Hugging Face folder or hub name, a run, a checkpoint, a sweep, or models:/NAME@ALIAS."""
    data: tuple[PathOrName | SourceConfig, ...] = ()
    """Problem sets: files, Hugging Face data sets, or math500, amc23, aime24, aime25, olympiadbench. `:16`
    after a set draws 16 samples a problem. A mapping has the keys of `data.eval` of `laser train`."""
    samples: LocalPath | None = None
    """A samples.jsonl to check and score again instead of generating; `model`, if given, scores them."""
    folder: LocalPath | None = None
    """Folder of the results; null means runs/evaluations/<model>-<sets>."""
    dir: LocalPath = Path("runs")
    """Folder of all runs, which holds the default `folder` and MLflow's database."""
    samples_per_problem: PositiveInt | None = None
    """Solutions sampled for each problem; null means the paper's number for named sets, 8 for others."""
    max_problems: PositiveInt | None = None
    """Evaluate only on this many problems of each set, the first ones; null evaluates on all."""
    problem_field: Text = "problem"
    """Field that holds the problem's text, in files and data sets without a name."""
    answer_field: Text = "answer"
    """Field that holds the reference answer, in files and data sets without a name."""
    split: Text = "test"
    """Split of data sets without a name."""
    answer_pattern: Text | None = None
    """Regular expression with one group, which finds the reference in the answer's text."""
    instruction: str | None = None
    """Text after each problem; may be empty; null means that of the score's training, else the paper's."""
    system: str | None = None
    """System message before each problem that has none; null means that of the score's training."""
    chat_template: LocalPath | None = None
    """File with a chat template in place of the tokenizer's own; a trained score keeps its own."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Values that the chat template takes; null means those of the score's training."""
    answer_after: str | None = None
    """The verifier sees what follows this text in a response, such as `</think>`; null means that of the
    score's training."""
    eos_tokens: EosTokens = ()
    """Tokens that end a response, as texts or ids; empty takes those of the score's training, else of the
    model's files."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature; the score is always read at temperature 1."""
    seed: Seed = 0
    """Seed of sampling."""
    score: Literal["auto", "none", "baseline"] = "auto"
    """auto: the model's trained score, if it has one; none: no score; baseline: as `baseline` says."""
    baseline: BaselineConfig = BaselineConfig()
    rollout: EngineConfig = EngineConfig()
    correct_above: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """A solution with a higher reward is called correct, as `loss.correct_above` does in training."""
    verification: VerificationConfig = VerificationConfig()
    faults: FaultsConfig = FaultsConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def verifier_texts(self) -> list[str]:
        """The canonical texts of all verifiers that the settings name, the default one first."""
        return verifiers_in_use(self.verification, self.data)


@dataclass(frozen=True)
class SetRequest:
    """One entry of `data`."""

    source: Source
    """Its instruction and `answer_after` are those of the model."""
    samples_per_problem: int
    """Solutions that are sampled for each problem."""
    has_instruction: bool = False
    """The entry itself names its instruction."""

    @property
    def name(self) -> str:
        """The set's name in figures and files."""
        return self.source.name


def requested_sets(config: EvalConfig) -> list[SetRequest]:
    """The sets that `data` names; none where `samples` are evaluated.

    Raises:
        ConfigError: Two sets have the same name, or the settings name no samples, or two sources of them.
    """
    if config.samples is not None:
        if config.data:
            raise ConfigError(
                "--samples evaluates stored samples, --data generates new ones: give one of them"
            )
        return []
    if config.model is None or not config.data:
        raise ConfigError(
            "an evaluation needs --model and --data (a file, a data set, or one of "
            f"{', '.join(NAMED_SETS)}), or --samples with the samples.jsonl of an earlier evaluation"
        )
    requests = [_request(entry, config) for entry in config.data]
    names = [request.name for request in requests]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"--data: two sets have the name {twice[0]}; rename one of the files")
    return requests


def _request(entry: str | SourceConfig, config: EvalConfig) -> SetRequest:
    if isinstance(entry, SourceConfig):
        samples = config.samples_per_problem or SAMPLES_PER_PROBLEM
        return SetRequest(_filled(entry, config), samples, entry.instruction is not None)
    path, _, number = entry.rpartition(":")
    override = int(number) if path and number.isascii() and number.isdigit() and int(number) else None
    path = entry if override is None else path
    samples = override or config.samples_per_problem or SAMPLES_PER_PROBLEM
    named = NAMED_SETS.get(path)
    if named is None:
        return SetRequest(_filled(SourceConfig(path=path), config), samples)
    source = Source(
        named.source,
        path,
        named.split,
        problem_field=named.problem_field,
        answer_field=named.answer_field,
        max_problems=config.max_problems,
        named_verifiers=config.verification.named,
    )
    return SetRequest(source, override or config.samples_per_problem or named.samples_per_problem)


def _filled(entry: SourceConfig, config: EvalConfig) -> Source:
    limits = [most for most in (entry.max_problems, config.max_problems) if most is not None]
    return entry.filled(
        split=config.split,
        problem_field=config.problem_field,
        answer_field=config.answer_field,
        answer_pattern=config.answer_pattern,
        max_problems=min(limits, default=None),
        verification=config.verification,
    )


def default_folder(config: EvalConfig, names: list[str]) -> Path:
    """`runs/evaluations/<model>-<sets>`; for stored samples the name of their folder with `-again`."""
    if config.samples is not None:
        return config.dir / "evaluations" / f"{config.samples.resolve().parent.name}-again"
    parts = [part for part in Path(config.model or "").parts if part not in ("export", "/")][-1:]
    name = "-".join([*parts, *names]).replace(":", "-").replace("@", "-")
    return config.dir / "evaluations" / short_name(name)
