"""Settings of `laser eval`, and the problem sets that have a name; imports neither torch nor Ray."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from orchestrator.config.schema import PositiveFloat, PositiveInt, Section, Text
from orchestrator.config.training import EngineConfig, TrackingConfig, VerificationConfig
from orchestrator.errors import ConfigError

SAMPLES_PER_PROBLEM = 8
"""Of sets without a name."""


@dataclass(frozen=True)
class NamedSet:
    """A set of the Hugging Face hub, with the samples a problem that the paper draws."""

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
    """How `score: baseline` reads a score out of a model that was not trained to give one."""

    token: Text | None = None
    """z_c: a single token that the model uses for nothing else. Of stored samples it is known."""
    beta_v: PositiveFloat = 0.1
    """Scale of the score."""
    c_ref: Annotated[float, Field(lt=0)] | None = None
    """log pi_ref(z_c); null measures it as the mean over this evaluation's finished samples, as training does for its initial model."""


class EvalConfig(Section):
    """Settings of `laser eval`. Sampling is at top-p 1, as in the paper."""

    model: Text | None = None
    """A Hugging Face folder or hub name, a run, a checkpoint, a sweep, or models:/NAME@ALIAS."""
    data: tuple[Text, ...] = ()
    """Problem sets: files, Hugging Face data sets, or math500, amc23, aime24, aime25, olympiadbench; `:16` after one sets its samples."""
    samples: Path | None = None
    """Stored samples.jsonl: checked and scored again instead of generated; with `model`, that model scores them."""
    folder: Path | None = None
    """Where results go; runs/evaluations/<model>-<sets> when null."""
    dir: Path = Path("runs")
    """Folder of all runs: of the default folder and of MLflow's database."""
    samples_per_problem: PositiveInt | None = None
    """Solutions a problem; the paper's for sets with a name and 8 for others when null."""
    max_problems: PositiveInt | None = None
    """Only the first so many problems of each set."""
    problem_field: Text = "problem"
    """Field that holds the problem's text, in files and data sets without a name."""
    answer_field: Text = "answer"
    """Field that holds the reference answer there."""
    split: Text = "test"
    """Split of data sets without a name."""
    instruction: str | None = None
    """Text after each problem; the one that the score was trained with, else the paper's, when null. Empty for none."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature; the score is read at temperature 1 whatever this is."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of sampling."""
    score: Literal["auto", "none", "baseline"] = "auto"
    """auto: the trained score, if the model has one; none: no score; baseline: that of a model that was not trained to give one."""
    baseline: BaselineConfig = BaselineConfig()
    rollout: EngineConfig = EngineConfig()
    verification: VerificationConfig = VerificationConfig()
    tracking: TrackingConfig = TrackingConfig()


@dataclass(frozen=True)
class SetRequest:
    """One entry of `data`."""

    name: str
    """In figures and files."""
    source: NamedSet

    @property
    def samples_per_problem(self) -> int:
        return self.source.samples_per_problem


def requested_sets(config: EvalConfig) -> list[SetRequest]:
    """What each entry of `data` means. Raises ConfigError when two have the same name, or `samples` says something else."""
    if config.samples is not None:
        if config.data:
            raise ConfigError("--samples evaluates what is stored, --data generates anew: give one of them")
        return []
    if config.model is None or not config.data:
        raise ConfigError(
            "an evaluation needs --model and --data (a file, a data set, or one of "
            f"{', '.join(NAMED_SETS)}), or --samples with the samples.jsonl of an earlier one"
        )
    requests = [_request(entry, config) for entry in config.data]
    names = [request.name for request in requests]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"--data: two sets are called {twice[0]}; rename one of the files")
    return requests


def _request(entry: str, config: EvalConfig) -> SetRequest:
    source, _, number = entry.rpartition(":")
    override = int(number) if source and number.isascii() and number.isdigit() and int(number) else None
    source = entry if override is None else source
    samples = override or config.samples_per_problem
    if named := NAMED_SETS.get(source):
        fields = (
            named.source,
            named.split,
            samples or named.samples_per_problem,
            named.problem_field,
            named.answer_field,
        )
        return SetRequest(source, NamedSet(*fields))
    fields = (source, config.split, samples or SAMPLES_PER_PROBLEM, config.problem_field, config.answer_field)
    path = Path(source)
    return SetRequest((path.stem if path.suffix else path.name).replace(":", "-"), NamedSet(*fields))


def default_folder(config: EvalConfig, names: list[str]) -> Path:
    """`runs/evaluations/<model>-<sets>`, or that of the stored samples with `-again`."""
    if config.samples is not None:
        return config.dir / "evaluations" / f"{config.samples.resolve().parent.name}-again"
    parts = [part for part in Path(config.model or "").parts if part not in ("export", "/")][-1:]
    return config.dir / "evaluations" / "-".join([*parts, *names]).replace(":", "-").replace("@", "-")
