"""Problems in, prompts out, in an order that resumes.

In: a data file or data set, a tokenizer. Out: `Problem`s, their prompts as token ids (`PromptSet`), and the indices
of the next problems to sample (`PromptOrder`). Also here: what a tokenizer must be able to do, checked before a run.
"""

import hashlib
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from orchestrator.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """One verifiable problem. `source` is its line (JSON lines) or row, counted from 1."""

    id: str
    text: str
    answer: str
    kind: str | None
    source: int


def load_problems(path: str, problem_field: str, answer_field: str, split: str = "train", kind_field: str = "kind") -> list[Problem]:
    """The problems of a .jsonl, .json or .parquet file, or of a Hugging Face data set (folder, `name` or `name:config`).

    `split` is read of a data set and means nothing to a file. An id is the row's `id` field or else a hash of problem
    and answer; repeated ones get their line appended. A list of answers is joined by commas. Raises DataError that names the file, the line
    and what to do.
    """
    problems = []
    seen: set[str] = set()
    for source, row in data_rows(path, split):
        where = f"{path}, line {source}"
        text = field_text(row, problem_field, "data.problem_field", where)
        answers = row.get(answer_field)
        if isinstance(answers, list) and answers and all(isinstance(part, str) for part in answers):
            row = {**row, answer_field: ", ".join(part.strip() for part in answers)}
        answer = field_text(row, answer_field, "data.answer_field", where)
        id_ = row.get("id")
        if id_ is None or id_ == "":
            id_ = hashlib.sha256(f"{text}\0{answer}".encode(errors="surrogatepass")).hexdigest()[:16]
        kind = row.get(kind_field)
        problem = Problem(str(id_), text, answer, None if kind is None else str(kind), source)
        if problem.id in seen:
            problem = replace(problem, id=f"{problem.id}-{source}")
        seen.add(problem.id)
        problems.append(problem)
    if not problems:
        raise DataError(f"{path}: holds no problem")
    return problems


def data_rows(path: str, split: str) -> Iterator[tuple[int, Row]]:
    """(line or row number from 1, row) of whatever kind of data `path` names; `split` is read of a data set only.

    Raises DataError when it cannot be read, or a row is no object with fields.
    """
    for number, row in _rows(path, split):
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: is {type(row).__name__}, not an object with fields; write one JSON object a line")
        yield number, row


def _rows(path: str, split: str) -> Iterator[tuple[int, Any]]:
    file = Path(path)
    if file.suffix not in (".jsonl", ".json", ".parquet"):
        if file.is_file():
            raise DataError(f"{path}: '{file.suffix}' is not read; convert it to .jsonl, .json or .parquet")
        return enumerate(_data_set(path, split), 1)
    if not file.is_file():
        raise DataError(f"{path}: no such file (looked in {file.parent.resolve()})")
    if file.suffix == ".parquet":
        return enumerate(_parquet_rows(file), 1)
    return _json_rows(file)


def _json_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Rows of JSON lines, or of one JSON array, whatever the file is called."""
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start}; convert it") from error
    if content.lstrip().startswith("["):
        yield from enumerate(_json(content, str(file)), 1)
        return
    for number, line in enumerate(content.split("\n"), 1):  # not splitlines(): JSON text may hold other line separators
        if line.strip():
            yield number, _json(line, f"{file}, line {number}")


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        position = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise DataError(f"{where}: not JSON ({error.msg} at {position}); write one JSON object a line, or one array") from error


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches():
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{file}: cannot be read as parquet ({error})") from error


def _data_set(path: str, split: str) -> Iterable[Row]:
    import datasets

    folder = Path(path)
    name, _, config = path.partition(":")
    try:
        if (folder / "dataset_dict.json").exists():
            return datasets.load_from_disk(path)[split]
        if (folder / "state.json").exists():
            return datasets.load_from_disk(path)
        return datasets.load_dataset(path, split=split) if folder.is_dir() else datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # the library raises a dozen kinds, down to those of its HTTP client
        raise DataError(
            f"'{path}', split '{split}': is no file, and cannot be loaded as a Hugging Face data set "
            f"({type(error).__name__}: {error}); check the name and the network, or download it and give the path"
        ) from error


def field_text(row: Row, field: str, key: str, where: str) -> str:
    """The field as text; numbers are written out. `key` is the setting that names the field."""
    if field not in row:
        raise DataError(f"{where}: no field '{field}'; its fields are {', '.join(map(repr, row)) or 'none'}: set {key} to one of them")
    value = row[field]
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{where}: '{field}' is {value!r}, neither text nor a number; correct the line or set {key} to another field")
    if not value.strip():
        raise DataError(f"{where}: '{field}' is empty; complete the line or remove it")
    return value.strip()


def render_prompt(tokenizer: "PreTrainedTokenizerBase", problem_text: str, instruction: str) -> list[int]:
    """The prompt's token ids: one user message, the instruction on a line after the problem, and the assistant's turn opened."""
    content = f"{problem_text}\n{instruction}" if instruction else problem_text
    messages = [{"role": "user", "content": content}]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False))


class PromptSet:
    """Problems with their prompts. Those longer than `max_prompt_tokens` are left out and counted in `dropped`."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", problems: Sequence[Problem], instruction: str, max_prompt_tokens: int):
        """Raises DataError when no problem is left."""
        self.problems: list[Problem] = []
        self._token_ids: list[np.ndarray] = []  # int32: lists of Python ints would take ten times the memory
        shortest = math.inf
        for problem in problems:
            token_ids = render_prompt(tokenizer, problem.text, instruction)
            shortest = min(shortest, len(token_ids))
            if len(token_ids) <= max_prompt_tokens:
                self.problems.append(problem)
                self._token_ids.append(np.array(token_ids, dtype=np.int32))
        self.dropped = len(problems) - len(self.problems)
        if not self.problems:
            raise DataError(
                f"none of the {len(problems)} problems fits rollout.max_prompt_tokens={max_prompt_tokens}: "
                f"the shortest prompt, with instruction and chat template, has {shortest} tokens"
            )

    def __len__(self) -> int:
        return len(self.problems)

    def token_ids(self, index: int) -> list[int]:
        return self._token_ids[index].tolist()


class PromptOrderState(TypedDict):
    """Where an order stands: JSON-ready, the same few bytes for any data set."""

    seed: int
    size: int
    epoch: int
    position: int


class PromptOrder:
    """An endless order of `size` problems: each epoch is its own shuffle, a function of seed and epoch alone."""

    def __init__(self, size: int, seed: int):
        if size < 1:
            raise ValueError(f"size is {size}; there must be a problem to order")
        self._size, self._seed = size, seed
        self._start_epoch(0)

    def next(self, n: int) -> list[int]:
        """The next `n` indices. One call may cross epochs, and only then hold an index twice."""
        indices: list[int] = []
        while len(indices) < n:
            if self._position == self._size:
                self._start_epoch(self._epoch + 1)
            taken = self._shuffled[self._position : self._position + n - len(indices)]
            self._position += len(taken)
            indices.extend(taken.tolist())
        return indices

    def state_dict(self) -> PromptOrderState:
        return {"seed": self._seed, "size": self._size, "epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: PromptOrderState) -> None:
        """Continues where the state was taken; raises ConfigError when it is of another data set or seed."""
        if state["size"] != self._size:
            raise ConfigError(
                f"the checkpoint was made with {state['size']} problems, now there are {self._size}: resume with the same data.train, "
                "data.instruction and rollout.max_prompt_tokens, or start a new run"
            )
        if state["seed"] != self._seed:
            raise ConfigError(
                f"the checkpoint was made with run.seed={state['seed']}, not {self._seed}: resume with it, or start a new run"
            )
        self._start_epoch(state["epoch"])
        self._position = state["position"]

    def _start_epoch(self, epoch: int) -> None:
        self._epoch, self._position = epoch, 0
        self._shuffled = np.random.default_rng((self._seed, epoch)).permutation(self._size)


def resolve_token(tokenizer: "PreTrainedTokenizerBase", token: str) -> int:
    """The id of `self_reward.token` (z_c): one entry of the vocabulary, or text that is exactly one token.

    Raises ConfigError with what the tokenizer makes of it, and with special tokens that could serve.
    """
    token_id = tokenizer.get_vocab().get(token)
    if token_id is None:
        pieces = tokenizer.encode(token, add_special_tokens=False)
        if len(pieces) != 1 or pieces[0] == tokenizer.unk_token_id or tokenizer.decode(pieces) != token:
            made = ", ".join(f"{piece!r} ({id_})" for piece, id_ in zip(tokenizer.convert_ids_to_tokens(pieces), pieces, strict=True))
            raise ConfigError(f"self_reward.token: '{token}' is no single token: it becomes {made or 'nothing'}. {_suggestion(tokenizer)}")
        token_id = pieces[0]
    if token_id in (tokenizer.eos_token_id, tokenizer.unk_token_id):
        raise ConfigError(
            f"self_reward.token: '{token}' ({token_id}) already ends responses or stands for unknown text. {_suggestion(tokenizer)}"
        )
    return token_id


def _suggestion(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Special tokens that neither the tokenizer's roles nor its chat template use, those reserved by name first."""
    roles = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    template = str(tokenizer.chat_template or "")
    added = (str(entry) for _, entry in sorted(tokenizer.added_tokens_decoder.items()) if entry.special)
    spare = [name for name in added if name not in roles and name not in template]
    if not spare:
        return "This tokenizer has no spare special token: add one to it, and a row for it to the model's embeddings"
    spare.sort(key=lambda name: not any(word in name for word in ("reserved", "unused", "extra")))
    return f"Special tokens of this tokenizer that nothing else uses: {', '.join(spare[:5])}"


def check_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raises ConfigError when the tokenizer cannot render a conversation of one user message."""
    folder = tokenizer.name_or_path or "the model's folder"
    if not tokenizer.chat_template:
        raise ConfigError(f"{folder}: its tokenizer has no chat template; put one there as chat_template.jinja")
    try:
        render_prompt(tokenizer, "1+1=", "")
    except Exception as error:  # a template is a program of its own: it raises what it likes
        raise ConfigError(
            f"{folder}: its chat template fails on a single user message ({type(error).__name__}: {error}); correct chat_template.jinja"
        ) from error


def check_round_trip(tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str]) -> None:
    """Raises ConfigError when a text does not survive encoding and decoding (up to Unicode's NFC and outer space)."""
    for text in texts:
        decoded = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), clean_up_tokenization_spaces=False)
        before, after = (unicodedata.normalize("NFC", version).strip() for version in (text, decoded))
        if before != after:
            lost = "".join(sorted((Counter(before) - Counter(after)).keys()))
            raise ConfigError(
                f"{tokenizer.name_or_path or 'the tokenizer'}: {before[:80]!r} comes back as {after[:80]!r}"
                f"{f', without {lost!r}' if lost else ''}; the model cannot read such problems: mend the tokenizer or the data"
            )


def eos_token_ids(tokenizer: "PreTrainedTokenizerBase", model_path: str) -> list[int]:
    """All tokens that end a response, ascending: those of the model's generation_config.json and the tokenizer's own.

    Raises ConfigError when there is none.
    """
    from transformers import GenerationConfig

    try:
        configured = GenerationConfig.from_pretrained(model_path).eos_token_id
    except OSError:  # the file is optional
        configured = None
    ids = {id_ for id_ in (*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id) if id_ is not None}
    if not ids:
        raise ConfigError(f"{model_path}: neither its generation_config.json nor its tokenizer names an EOS token; set eos_token_id")
    return sorted(ids)
