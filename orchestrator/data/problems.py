"""Problems of a source, made from its rows when they are asked for.

In: a `Source`. Out: a `ProblemSource`, whose rows are all read and checked once, which makes its fingerprint,
and then stay on disk.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

from orchestrator.config.sources import Source, source_name
from orchestrator.config.verifiers import needs_reference, row_verifier
from orchestrator.data.fingerprints import RowsDigest, RowsPrint
from orchestrator.data.json_rows import JsonNumber
from orchestrator.data.rows import Rows, iterate, open_rows, read_rows, row_of
from orchestrator.data.templates import ProblemTemplate, rows_function
from orchestrator.data.texts import Row, answer_text, check_text, field_text, field_value, shown
from orchestrator.errors import DataError
from orchestrator.messages.problems import ChatMessage, Problem

ROLES = ("system", "user", "assistant")
"""Who may speak in a conversation that asks a problem."""


class ProblemReader:
    """Makes problems of the rows of one source.

    Args:
        source: Its settings.
        key: The setting that names it, such as `data.train`, for messages.

    Raises:
        ConfigError: `problem_template` is no template, or `rows` no function.
    """

    def __init__(self, source: Source, key: str = "data.train") -> None:
        self.source = source
        self._section = key.partition(".")[0]
        self._template = None
        if source.problem_template is not None:
            self._template = ProblemTemplate(source.problem_template, source.seed)
            self._template.check(f"{key} ({source.name}): problem_template")
        self._own = None if source.rows is None else rows_function(source.rows, f"{key}: rows")
        self._pattern = None if source.answer_pattern is None else re.compile(source.answer_pattern)

    def problem(self, row: Row, file: str, line: int) -> Problem:
        """The problem of a row.

        Args:
            file: The file or data set of the row, and `line` its place there.

        Raises:
            DataError: A field is missing or has a wrong value.
        """
        where, source = f"{file}, line {line}", self.source
        row = row if self._own is None else self._own(row, where)
        used = {"id", source.kind_field, source.problem_field}
        messages, made = self._messages(row, where)
        verifier = None
        if (chosen := row.get("verifier")) is not None:
            used.add("verifier")
            verifier = row_verifier(json_value(chosen), source.named_verifiers, f"{where}: 'verifier'")
        reference = self._reference(row, made, verifier, where)
        if reference is not None and made is None and source.answer_field is not None:
            used.add(source.answer_field)
        id_ = _label(row, "id", where) or _hash_of(messages, reference)
        return Problem(
            id=id_,
            messages=messages,
            reference=reference,
            kind=_label(row, source.kind_field, where),
            fields={name: json_value(value) for name, value in row.items() if name not in used},
            source=source.name,
            verifier=verifier or source.verifier,
            line=line,
            file=file,
            field=source.problem_field if self._template is None else "problem_template",
            answer_after=source.answer_after,
        )

    def _messages(self, row: Row, where: str) -> tuple[tuple[ChatMessage, ...], Any]:
        """The conversation, and the answer that the template sets."""
        if self._template is not None:
            text, made = self._template.render(json_value(row), where)
            check_text(text, f"{where}: 'problem_template'")
            return ({"role": "user", "content": _not_empty(text, f"{where}: 'problem_template'")},), made
        return asked_messages(row, self.source.problem_field, f"{self._section}.problem_field", where), None

    def _reference(self, row: Row, made: Any, verifier: str | None, where: str) -> str | None:
        needed = self.source.needs_answer if verifier is None else needs_reference(verifier)
        field, key = self.source.answer_field, f"{self._section}.answer_field"
        if made is not None:
            return answer_text({"answer": made}, "answer", key, f"{where}: problem_template")
        if field is None or (not needed and field_value(row, field) is None):
            return None
        if self._pattern is None:
            return answer_text(row, field, key, where)
        text = field_text(row, field, key, where)
        found = [match[1] for match in self._pattern.finditer(text) if match[1] and match[1].strip()]
        if not found:
            raise DataError(
                f"{where}: answer_pattern {self._pattern.pattern!r} finds nothing in '{field}', "
                f"{shown(text)}; correct the line or the pattern"
            )
        return answer_text({field: found[-1]}, field, key, where)


class ProblemSource(Sequence[Problem]):
    """The problems of one source, in the order of their rows.

    All rows are read once, in bounded memory: every problem is checked, and its id is unique in the source.

    Attributes:
        settings: The source.
        fingerprint: Of all its problems.
        verifiers: The verifiers that its problems name.

    Raises:
        ConfigError: As `ProblemReader`.
        DataError: The data cannot be read, there is no row, or a row cannot be used. The message names the
            first such row and counts the others.
    """

    def __init__(self, source: Source, key: str = "data.train", rows: Rows | None = None) -> None:
        self.settings = source
        self._reader = ProblemReader(source, key)
        self._rows = open_rows(source.path, source.split, source.revision) if rows is None else rows
        total = len(self._rows)
        self._length = total if source.max_problems is None else min(total, source.max_problems)
        if not self._length:
            raise DataError(f"{source.path}: holds no problem")
        self._repeated: set[int] = set()
        self.verifiers: set[str | None] = set()
        self.fingerprint = self._read_all()

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, number: int) -> Problem: ...

    @overload
    def __getitem__(self, number: slice) -> list[Problem]: ...

    def __getitem__(self, number: int | slice) -> Problem | list[Problem]:
        """The problem of a row, which is read again."""
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(self._length))]
        if not -self._length <= number < self._length:
            raise IndexError(number)
        number %= self._length
        problem = self._reader.problem(row_of(self._rows, number), *self._rows.place(number))
        return self._with_own_id(number, problem)

    def __iter__(self) -> Iterator[Problem]:
        for number, row in iterate(self._rows):
            if number == self._length:
                return
            yield self._with_own_id(number, self._reader.problem(row, *self._rows.place(number)))

    def _with_own_id(self, number: int, problem: Problem) -> Problem:
        return problem if number not in self._repeated else with_line_in_id(problem)

    def _read_all(self) -> RowsPrint:
        digest = RowsDigest(self.settings.path, self._length)
        seen: set[int] = set()  # hashes take less memory than texts
        for number, problem in read_rows(self._rows, self._numbered, self._length):
            id_ = hash(problem.id)
            if id_ in seen:
                self._repeated.add(number)
                problem = with_line_in_id(problem)
                id_ = hash(problem.id)
            seen.add(id_)
            self.verifiers.add(problem.verifier)
            digest.add(problem)
        return digest.result()

    def _numbered(self, row: Row, number: int) -> tuple[int, Problem]:
        return number, self._reader.problem(row, *self._rows.place(number))


def load_problems(
    path: str, problem_field: str, answer_field: str, split: str = "train", key: str = "data.train"
) -> list[Problem]:
    """All problems of a source that has no other settings. Raises as `ProblemSource`."""
    source = Source(path, source_name(path), split, problem_field=problem_field, answer_field=answer_field)
    return list(ProblemSource(source, key))


def with_line_in_id(problem: Problem) -> Problem:
    """A problem whose id another one has too, with its line appended to the id."""
    return replace(problem, id=f"{problem.id}-{problem.line}")


def asked_messages(row: Row, field: str, key: str, where: str) -> tuple[ChatMessage, ...]:
    """The conversation that asks the problem of a field, which is a text or holds messages.

    Args:
        key: The setting that names the field, for messages.
        where: The file and line, for messages.

    Raises:
        DataError: As `field_text` and `conversation`.
    """
    value = field_value(row, field)
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return conversation(value, f"{where}: '{field}'")
    return ({"role": "user", "content": field_text(row, field, key, where)},)


def conversation(value: Sequence[Any], place: str) -> tuple[ChatMessage, ...]:
    """The messages of a field.

    Args:
        value: Mappings with `role` and `content`; a content may be a list of parts with `text`.
        place: File, line and field, for messages.

    Raises:
        DataError: It is no conversation that the user ends.
    """
    messages = []
    for number, message in enumerate(value):
        where = f"{place}[{number}]"
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise DataError(
                f"{place} is {shown(value)}, neither text nor a list of messages with role and content; set "
                "problem_field to another field"
            )
        if message["role"] not in ROLES:
            raise DataError(f"{where}: its role is {shown(message['role'])}, not {', '.join(ROLES)}")
        text = _content(message["content"])
        if text is None:
            raise DataError(f"{where}: its content is {shown(message['content'])}, which is no text")
        check_text(text, where)
        messages.append({"role": str(message["role"]), "content": text})
    if not messages or messages[-1]["role"] != "user":
        raise DataError(f"{place}: its last message is not the user's, so no problem is asked; shorten it")
    _not_empty(messages[-1]["content"], place)
    return tuple(messages)


def json_value(value: Any) -> Any:
    """A value of a row as JSON has it: numbers are numbers, and what JSON does not know is text."""
    if value is None or type(value) in (str, bool, int):
        return value
    if isinstance(value, JsonNumber):
        return value.value()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): json_value(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(inner) for inner in value]
    return str(value)


def _content(content: Any) -> str | None:
    """The text of a message; None where it is not only text."""
    if isinstance(content, str):
        return content
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in content or ()]
    found = [text for text in texts if isinstance(text, str)]
    return "".join(found) if found and len(found) == len(texts) else None


def _not_empty(text: str, place: str) -> str:
    if not text.strip():
        raise DataError(f"{place} is empty; complete the line or remove it")
    return text.strip()


def _label(row: Row, field: str, where: str) -> str | None:
    """An id or a kind as text; None where the row has none."""
    value = field_value(row, field)
    if value is None or value == "":
        return None
    check_text(str(value), f"{where}: '{field}'")
    return str(value)


def _hash_of(messages: tuple[ChatMessage, ...], reference: str | None) -> str:
    is_text = len(messages) == 1
    text = messages[0]["content"] if is_text else json.dumps(messages)
    return hashlib.sha256(f"{text}\0{reference or ''}".encode()).hexdigest()[:16]
