"""Where problems come from: the sources of `data.train` and `data.eval`, each with settings of its own.

In: a path or name, a mapping, or a list of both. Out: `SourceConfig`s as written, and `Source`s with every
setting filled in. This module imports neither torch nor Ray.
"""

import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, field_validator, model_validator

from orchestrator.config.paths import LocalPath, PathOrName
from orchestrator.config.schema import PositiveFloat, PositiveInt, Section, Seed, Text
from orchestrator.config.verification import VerificationConfig
from orchestrator.config.verifiers import VerifierChoice, needs_reference, verifier_text

FORMATS = (".jsonl", ".json", ".csv", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""pyarrow's names of the compressions."""
FILE_SUFFIXES = (*FORMATS, *(f"{kind}{packed}" for kind in FORMATS for packed in COMPRESSIONS))
"""How the names of data files end."""
PROCEDURAL = "reasoning_gym:"
"""Begins the name of a source whose problems the library reasoning-gym makes."""

PROCEDURAL_VERIFIER = "actors.verifiers.procedural:score_entry"
"""The verifier of these problems, unless the source names another one."""


@dataclass(frozen=True)
class Source:
    """A source of problems with all of its settings; see `SourceConfig` for what they mean."""

    path: str
    name: str
    split: str = "train"
    weight: float = 1.0
    revision: str | None = None
    problem_field: str = "problem"
    answer_field: str | None = "answer"
    answer_pattern: str | None = None
    kind_field: str = "kind"
    verifier: str | None = None
    """The canonical text of its verifier; None takes the run's."""
    needs_answer: bool = True
    """Whether its verifier compares with a reference answer."""
    named_verifiers: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """`verification.named`."""
    instruction: str = ""
    answer_after: str = ""
    max_problems: int | None = None
    problem_template: str | None = None
    rows: str | None = None
    seed: int = 0


class SourceConfig(Section):
    """One source of problems."""

    path: PathOrName
    """A .jsonl, .json, .csv or .parquet file, also with .gz or .zst; a folder or pattern (`data/*.jsonl`) of
    them; a data set of the Hugging Face hub (`name` or `name:config`); or `reasoning_gym:TASK?size=2000`."""
    name: Text | None = None
    """Its name in metrics, samples and files; null takes the file's name without its ending."""
    weight: PositiveFloat = 1.0
    """Its share of the problems of a step, relative to the other sources of `data.train`."""
    split: Text | None = None
    """Split of a data set or folder; null means train in `data.train` and test in `data.eval`."""
    revision: Text | None = None
    """Commit, tag or branch of a data set of the hub."""
    problem_field: Text | None = None
    """Field that holds the problem: a text, or a list of chat messages. Dots lead into nested fields."""
    answer_field: Text | None = None
    """Field that holds the reference answer, such as `reward_model.ground_truth`. Verifiers that compare with
    no reference need none."""
    answer_pattern: Text | None = None
    """Regular expression with one group, which finds the reference in the answer's text; its last match
    counts. `####\\s*(.+)` is for GSM8K."""
    kind_field: Text = "kind"
    """Field that names the problem's kind; figures are reported by kind."""
    verifier: VerifierChoice | None = None
    """What checks its answers: a name, or a mapping of `name` and settings; null means
    `verification.verifier`. A row's own field `verifier` wins."""
    instruction: str | None = None
    """Text after each problem; may be empty; null means `data.instruction`."""
    max_problems: PositiveInt | None = None
    """Take only this many problems, the first ones; null takes all."""
    problem_template: Text | None = None
    """Jinja template that makes the problem from the row's fields. `shuffled(list)` shuffles by `seed`;
    `{% set answer = letters[options.index(right)] %}` sets the reference."""
    rows: Text | None = None
    """Function `package.module:function` that makes from each row, a mapping, the row to use."""
    seed: Seed = 0
    """Seed of `shuffled` in `problem_template`."""

    @field_validator("answer_pattern")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        return pattern if pattern is None else checked_pattern(pattern)

    @model_validator(mode="after")
    def _one_way(self) -> "SourceConfig":
        if self.problem_template is not None and self.problem_field is not None:
            raise ValueError(
                f"problem_template: {self.path} also has problem_field={self.problem_field}; the template "
                "makes the problem, so leave problem_field out"
            )
        if self.rows is not None and ":" not in self.rows:
            raise ValueError(f"rows: {self.rows!r} is no function: write package.module:function")
        return self

    def filled(
        self,
        split: str,
        problem_field: str,
        answer_field: str,
        answer_pattern: str | None = None,
        instruction: str = "",
        answer_after: str = "",
        max_problems: int | None = None,
        verification: VerificationConfig | None = None,
    ) -> Source:
        """All settings, with these in place of those that are null; `max_problems` replaces its own."""
        verification = verification or VerificationConfig()
        text = self.verifier_text
        if self.path.startswith(PROCEDURAL):
            problem_field, answer_field, answer_pattern = "problem", "answer", None
        return Source(
            path=self.path,
            name=self.title,
            split=self.split or split,
            weight=self.weight,
            revision=self.revision,
            problem_field=self.problem_field or problem_field,
            answer_field=self.answer_field or answer_field,
            answer_pattern=self.answer_pattern or answer_pattern,
            kind_field=self.kind_field,
            verifier=text,
            needs_answer=needs_reference(text or verification.verifier_text),
            named_verifiers=verification.named,
            instruction=instruction if self.instruction is None else self.instruction,
            answer_after=answer_after,
            max_problems=max_problems,
            problem_template=self.problem_template,
            rows=self.rows,
            seed=self.seed,
        )

    @property
    def verifier_text(self) -> str | None:
        """The canonical text of its verifier; None where it takes the run's."""
        choice = self.verifier
        if choice is None and self.path.startswith(PROCEDURAL):
            choice = PROCEDURAL_VERIFIER
        return None if choice is None else verifier_text(choice, f"verifier of {self.title}")

    @property
    def title(self) -> str:
        """Its name, as given or made from the path."""
        return self.name or source_name(self.path)


def source_name(path: str) -> str:
    """The name of a source without one: a file's or a pattern's without endings, a folder's, a data set's."""
    if path.startswith(PROCEDURAL):
        return path.removeprefix(PROCEDURAL).partition("?")[0]
    name = Path(path).name
    ending = next((suffix for suffix in sorted(FILE_SUFFIXES, key=len)[::-1] if name.endswith(suffix)), None)
    stem = Path(name).stem if ending is None else name.removesuffix(ending)
    return re.sub(r"[*?\[\]]", "", stem).replace(":", "-").strip("-_. ") or "data"


def checked_pattern(pattern: str) -> str:
    """The pattern itself, which finds one group.

    Raises:
        ValueError: It is no regular expression, or has no group or several.
    """
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"answer_pattern: {pattern!r} is no regular expression ({error})") from error
    if groups != 1:
        raise ValueError(
            f"answer_pattern: {pattern!r} has {groups} groups: put the reference, and nothing else, into "
            "one (...); (?:...) is no group"
        )
    return pattern


def refuse_equal_names(sources: Sequence[SourceConfig], key: str) -> None:
    """Refuse sources of one name, which metrics could not tell apart.

    Raises:
        ValueError: Two have the same name.
    """
    names = [source.title for source in sources]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{key}: two sources have the name {twice[0]}: give one of them another `name`")


def _as_list(value: Any) -> Any:
    """One source, or a list of them, as a list of mappings."""
    if isinstance(value, str | dict | SourceConfig):
        value = [value]
    if not isinstance(value, list | tuple):
        return value
    return [{"path": each} if isinstance(each, str) else each for each in value]


def verifiers_in_use(verification: VerificationConfig, sources: Iterable[Any]) -> list[str]:
    """The canonical texts of all verifiers that the settings name, the default one first.

    Args:
        sources: `SourceConfig`s; other entries name no verifier.
    """
    own = (source.verifier_text for source in sources if isinstance(source, SourceConfig))
    return list(dict.fromkeys([*verification.verifier_texts, *(text for text in own if text is not None)]))


def source_paths(value: Any) -> list[str]:
    """The paths and names of sources as a file has them: one source, or a list."""
    listed = _as_list(value)
    trees = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    return [tree["path"] for tree in trees if isinstance(tree.get("path"), str)]


def absolute_sources(sources: Sequence[SourceConfig]) -> Any:
    """Sources as a file has them, with absolute paths to what is on this machine."""

    def found(path: str) -> str:
        here = Path(path).exists() or (glob.has_magic(path) and any(glob.iglob(path, recursive=True)))
        return os.path.abspath(path) if here else path

    return _as_written([source.model_copy(update={"path": found(source.path)}) for source in sources])


def _as_written(sources: Sequence[SourceConfig] | None) -> Any:
    """Sources for a file: a path alone stays a text, and settings that have their defaults are left out."""
    if sources is None:
        return None
    trees = [source.model_dump(mode="json", exclude_defaults=True) for source in sources]
    written = [tree["path"] if tree.keys() == {"path"} else tree for tree in trees]
    return written[0] if len(written) == 1 else written


SourceList = Annotated[
    tuple[SourceConfig, ...],
    BeforeValidator(_as_list),
    PlainSerializer(_as_written),
]
"""One source, or a list of them; each is a path or name, or a mapping."""


class ChatConfig(Section):
    """How a conversation becomes the model's prompt."""

    system: str = ""
    """System message before each problem that has none of its own; empty for none."""
    chat_template: LocalPath | None = None
    """File with a chat template in place of the tokenizer's own; the exported model keeps it."""
    chat_template_kwargs: dict[str, Any] = {}
    """Values that the chat template takes, such as `enable_thinking: false`."""


class DataConfig(ChatConfig):
    """Training problems and held-out problems."""

    train: SourceList
    """Training problems: a path or name, a mapping with the keys below, or a list of both. The keys with the
    same names in `data` are the defaults of all sources."""
    eval: SourceList | None = None
    """Held-out problems, in the same way. A source's name is the set's name in metrics."""
    problem_field: Text = "problem"
    """Field that holds the problem: a text, or a list of chat messages. Dots lead into nested fields."""
    answer_field: Text = "answer"
    """Field that holds the reference answer (text or number)."""
    answer_pattern: Text | None = None
    """Regular expression with one group, which finds the reference in the answer's text."""
    eval_problem_field: Text | None = None
    """The field of the held-out problems' text; null means `problem_field`."""
    eval_answer_field: Text | None = None
    """The field of the held-out problems' answers; null means `answer_field`."""
    instruction: str = r"Please reason step by step, and put your final answer within \boxed{}."
    """Text after each problem in training, evaluation and service; may be empty."""
    answer_after: Text | None = None
    """The verifier sees what follows this text's last occurrence in a response, such as `</think>`; a
    response without it has no answer. null shows it all."""

    @field_validator("answer_pattern")
    @classmethod
    def _has_one_group(cls, pattern: str | None) -> str | None:
        return pattern if pattern is None else checked_pattern(pattern)

    @model_validator(mode="after")
    def _sources_agree(self) -> "DataConfig":
        for key, sources in (("data.train", self.train), ("data.eval", self.eval)):
            if sources is not None and not sources:
                raise ValueError(f"{key}: is an empty list; name a source of problems")
        refuse_equal_names(self.train, "data.train")
        refuse_equal_names(self.eval or (), "data.eval")
        if weighted := [source.title for source in self.eval or () if source.weight != 1]:
            raise ValueError(
                f"data.eval: {weighted[0]} has a weight, which only sources of data.train take; leave it out"
            )
        return self

    def train_sources(self, verification: VerificationConfig | None = None) -> tuple[Source, ...]:
        """The sources of the training problems, with all of their settings."""
        return tuple(self._filled(source, False, verification) for source in self.train)

    def eval_sources(self, verification: VerificationConfig | None = None) -> tuple[Source, ...]:
        """The sources of the held-out problems, with all of their settings."""
        return tuple(self._filled(source, True, verification) for source in self.eval or ())

    def _filled(
        self, source: SourceConfig, held_out: bool, verification: VerificationConfig | None
    ) -> Source:
        problem_field, answer_field = self.problem_field, self.answer_field
        if held_out:
            problem_field = self.eval_problem_field or problem_field
            answer_field = self.eval_answer_field or answer_field
        return source.filled(
            split="test" if held_out else "train",
            problem_field=problem_field,
            answer_field=answer_field,
            answer_pattern=self.answer_pattern,
            instruction=self.instruction,
            answer_after=self.answer_after or "",
            max_problems=source.max_problems,
            verification=verification,
        )
