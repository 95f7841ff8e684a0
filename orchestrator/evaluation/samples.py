"""The samples of an evaluation on disk: one JSON object a line, appended as they are checked.

In: samples, and the settings that they are drawn with. Out: `samples.jsonl`, from which a killed evaluation
resumes. At the end it is sorted, so it is the same for any number of engines.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from orchestrator.data.texts import refuse_lone_surrogates
from orchestrator.errors import ConfigError, DataError, RunError
from orchestrator.evaluation.answers import has_vote
from orchestrator.messages.problems import ChatMessage, Problem
from orchestrator.storage.files import read_record, write_atomically

SAMPLES = "samples.jsonl"
PROTOCOL = "protocol.json"


@dataclass(frozen=True)
class EvalSample:
    """One solution: a line of the file, in which a number that is not finite is null."""

    set: str
    problem_id: str
    problem: str
    reference: str | None
    kind: str | None
    sample: int
    """Its number among the samples of the problem, from 0."""
    seed: int
    response: str
    tokens: int
    """Response tokens, EOS included."""
    finished: bool
    status: str
    """A `Status`."""
    answer: str | None
    answer_class: int | None
    """Equal answers to one problem share a class; 0 is the reference's. None for a sample without a vote, and
    until all samples of the problem are drawn."""
    z_logprob: float
    """log pi(z_c | x, y, EOS); NaN when unfinished or without a score."""
    score: float
    """NaN when unfinished or without a score."""
    detail: str = ""
    """Why it has its status: the verdict's explanation."""
    reward: float | None = None
    """0 to 1; None where the check timed out or failed, and in files of earlier versions."""
    parts: dict[str, float] | None = None
    """What the reward is made of."""
    messages: list[ChatMessage] | None = None
    """The conversation that asks the problem; None where it is one message, the problem's text."""
    fields: dict[str, Any] | None = None
    """The other fields of the problem's row."""

    @property
    def has_vote(self) -> bool:
        """See `answers.has_vote`."""
        return has_vote(self)

    def asked(self, answer_after: str = "") -> Problem:
        """The problem that it solves, as a verifier sees it."""
        messages = self.messages or [{"role": "user", "content": self.problem}]
        return Problem(
            id=self.problem_id,
            messages=tuple(messages),
            reference=self.reference,
            kind=self.kind,
            fields=self.fields or {},
            source=self.set,
            answer_after=answer_after,
        )

    def line(self) -> str:
        """The sample as a line of the file."""
        tree = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }
        return json.dumps(tree, allow_nan=False) + "\n"


def problem_seed(seed: int, set_name: str, problem_id: str) -> int:
    """Seed of a problem's first sample; sample i adds i.

    It depends on the problem alone: neither on the order of problems nor on the other problems.
    """
    text = f"{seed}\0{set_name}\0{problem_id}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:6])


def read_samples(path: Path) -> list[EvalSample]:
    """The samples of a file, without a last line that a kill cut off.

    Raises:
        DataError: The file cannot be read, or another line is not a sample.
    """
    return [sample for sample, _ in _parse(path)]


class SampleFile:
    """The growing `samples.jsonl` of a folder. Opening it removes a last line that a kill cut off.

    Attributes:
        path: The file.
        samples: The samples in it.

    Raises:
        DataError: The file cannot be read, or another line is not a sample.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / SAMPLES
        self.samples: list[EvalSample] = []
        self._end = 0
        if self.path.exists():
            for sample, size in _parse(self.path):
                self.samples.append(sample)
                self._end += size
            os.truncate(self.path, self._end)

    def append(self, samples: Sequence[EvalSample]) -> None:
        """Write samples at the end.

        Raises:
            RunError: The file cannot be written.
        """
        text = "".join(sample.line() for sample in samples).encode()
        try:
            with self.path.open("ab") as file:
                file.write(text)
        except OSError as error:
            if self.path.exists():
                os.truncate(self.path, self._end)  # the next sample must start a line
            raise RunError(
                f"{self.path}: cannot be written ({error.strerror}). Is the disk full? "
                "Once that is mended, the same command resumes the evaluation."
            ) from error
        self.samples += samples
        self._end += len(text)

    def replace(self, samples: Sequence[EvalSample]) -> None:
        """Replace the whole file."""
        text = "".join(sample.line() for sample in samples)
        write_atomically(self.path, text)
        self.samples, self._end = list(samples), len(text.encode())


def claim_protocol(folder: Path, protocol: Mapping[str, Any]) -> None:
    """Write down what a folder's samples depend on; if it has samples, check that they depend on the same.

    Raises:
        ConfigError: Its samples were drawn with other settings; the message lists them.
    """
    path = folder / PROTOCOL
    advice = f"Choose another folder (-o), or delete {folder} to draw its samples again"
    if (folder / SAMPLES).exists() and path.exists():
        before, now = _flat(read_record(path, dict, advice)), _flat(json.loads(json.dumps(protocol)))
        if not any(key.startswith("weights.") for key in before):  # an earlier version's
            now = {key: value for key, value in now.items() if not key.startswith("weights.")}
        if changed := [key for key in now | before if before.get(key) != now.get(key)]:
            lines = [f"{key}: {before.get(key)!r} before, {now.get(key)!r} now" for key in changed]
            raise ConfigError(
                f"{folder} holds samples of another evaluation:\n  " + "\n  ".join(lines) + "\n"
                "Choose another folder (-o), restore these settings, or delete the folder."
            )
        return
    write_atomically(path, json.dumps(protocol, indent=2) + "\n")


def by_problem(samples: Iterable[EvalSample]) -> dict[tuple[str, str], list[EvalSample]]:
    """The samples of each (set, problem id), in the order of their numbers."""
    groups: dict[tuple[str, str], list[EvalSample]] = {}
    for sample in samples:
        groups.setdefault((sample.set, sample.problem_id), []).append(sample)
    return {key: sorted(group, key=lambda sample: sample.sample) for key, group in groups.items()}


def _parse(path: Path) -> Iterable[tuple[EvalSample, int]]:
    """Samples, each with the size of its line in bytes, up to an incomplete last line."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give the samples.jsonl of an evaluation"
        ) from error
    for number, line in enumerate(lines, 1):
        try:
            sample = _sample(line)
        except (ValueError, TypeError, KeyError) as error:
            if number < len(lines):
                names = ", ".join(field.name for field in fields(EvalSample))
                raise DataError(
                    f"{path}, line {number}: is not a sample of an evaluation ({error}); "
                    f"a sample has the fields {names}"
                ) from error
            return
        if sample is None:
            return
        for name, value in vars(sample).items():
            if isinstance(value, str):
                refuse_lone_surrogates(value, f"{path}, line {number}: '{name}'")
        yield sample, len(line)


def _sample(line: bytes) -> EvalSample | None:
    """None for an incomplete line."""
    if not line.endswith(b"\n"):
        return None
    tree = json.loads(line)
    for field in fields(EvalSample):
        if field.type in (str, str | None) and not isinstance(tree[field.name], str | None):
            raise ValueError(f"'{field.name}' is no text")
    return EvalSample(**tree | {key: _number(tree[key]) for key in ("z_logprob", "score")})


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
