"""The samples of an evaluation on disk: one JSON object a line, appended as they come, so that a killed evaluation goes on.

In: samples and what they are drawn with. Out: `samples.jsonl`, in the end sorted, so that it is the same however many engines drew it.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError, DataError, RunError
from orchestrator.storage.files import write_atomically

SAMPLES = "samples.jsonl"
PROTOCOL = "protocol.json"


@dataclass(frozen=True)
class Sample:
    """One solution; a line of the file, where NaN is null."""

    set: str
    problem_id: str
    problem: str
    reference: str
    kind: str | None
    sample: int
    """Number among the problem's, from 0."""
    seed: int
    response: str
    tokens: int
    """Of the response, EOS included."""
    finished: bool
    status: str
    """Of `actors.verification.Status`."""
    answer: str | None
    answer_class: int | None
    """Equal answers to one problem share a class, 0 for those that match the reference; None for a sample that has no vote (see
    `has_vote`), and while the problem's other samples are not drawn yet."""
    z_logprob: float
    """log pi(z_c | x, y, EOS), NaN when unfinished or without a score."""
    score: float
    """NaN likewise."""

    @property
    def correct(self) -> bool:
        return self.status == "correct"

    @property
    def verified(self) -> bool:
        """False where the check timed out or failed: neither right nor wrong."""
        return self.status not in ("timeout", "error")

    @property
    def has_vote(self) -> bool:
        """Whether it has exactly one answer and that could be checked, as the reward asks for."""
        return self.status in ("correct", "wrong")

    def line(self) -> str:
        tree = {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in asdict(self).items()
        }
        return json.dumps(tree, allow_nan=False) + "\n"


def problem_seed(seed: int, set_name: str, problem_id: str) -> int:
    """Seed of a problem's first sample; sample i has this plus i. By problem, so that it depends on no order and on no other problem."""
    return int.from_bytes(
        hashlib.sha256(f"{seed}\0{set_name}\0{problem_id}".encode(errors="surrogatepass")).digest()[:6]
    )


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file; a last line that a kill has cut off is left out.

    Raises:
        DataError: The file is missing, or another line is no sample.
    """
    return [sample for sample, _ in _parse(path)]


class SampleFile:
    """The growing `samples.jsonl` of a folder. Opening drops a last line that a kill has cut off.

    Attributes:
        samples: What it holds.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / SAMPLES
        self.samples: list[Sample] = []
        self._end = 0
        if self.path.exists():
            for sample, size in _parse(self.path):
                self.samples.append(sample)
                self._end += size
            os.truncate(self.path, self._end)

    def append(self, samples: Sequence[Sample]) -> None:
        """Raises RunError when the disk does not take them."""
        text = "".join(sample.line() for sample in samples).encode()
        try:
            with self.path.open("ab") as file:
                file.write(text)
        except OSError as error:
            if self.path.exists():
                os.truncate(self.path, self._end)  # half a line in the middle would spoil the next one
            raise RunError(
                f"{self.path}: cannot be written ({error.strerror}). Mend that (is the disk full?); the same command goes on"
            ) from error
        self.samples += samples
        self._end += len(text)

    def replace(self, samples: Sequence[Sample]) -> None:
        """Write the file anew."""
        text = "".join(sample.line() for sample in samples)
        write_atomically(self.path, text)
        self.samples, self._end = list(samples), len(text.encode())


def claim_protocol(folder: Path, protocol: Mapping[str, Any]) -> None:
    """Note what a folder's samples are drawn with, or see that it is the same.

    Raises:
        ConfigError: It holds samples that were drawn otherwise; the message says what differs.
    """
    path = folder / PROTOCOL
    if (folder / SAMPLES).exists() and path.exists():
        before, now = _flat(json.loads(path.read_text())), _flat(json.loads(json.dumps(protocol)))
        if changed := [key for key in now | before if before.get(key) != now.get(key)]:
            lines = [f"{key}: {before.get(key)!r} before, {now.get(key)!r} now" for key in changed]
            raise ConfigError(
                f"{folder} holds samples of another evaluation:\n  " + "\n  ".join(lines) + "\n"
                "Choose another folder (-o), restore these settings, or delete the folder."
            )
        return
    write_atomically(path, json.dumps(protocol, indent=2) + "\n")


def by_problem(samples: Iterable[Sample]) -> dict[tuple[str, str], list[Sample]]:
    """The samples of each (set, problem id), in the order of their numbers."""
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.set, sample.problem_id), []).append(sample)
    return {key: sorted(group, key=lambda sample: sample.sample) for key, group in groups.items()}


def _parse(path: Path) -> Iterable[tuple[Sample, int]]:
    """Samples and the sizes of their lines in bytes, up to a last line that is not whole."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give the samples.jsonl of an evaluation"
        ) from error
    for number, line in enumerate(lines, 1):
        try:
            tree = json.loads(line) if line.endswith(b"\n") else None
            sample = (
                None
                if tree is None
                else Sample(**tree | {key: _number(tree[key]) for key in ("z_logprob", "score")})
            )
        except (ValueError, TypeError, KeyError) as error:
            if number < len(lines):
                names = ", ".join(field.name for field in fields(Sample))
                raise DataError(
                    f"{path}, line {number}: is no sample of an evaluation ({error}); its fields are {names}"
                ) from error
            return
        if sample is None:
            return
        yield sample, len(line)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
