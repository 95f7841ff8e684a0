"""Names and values that MLflow accepts, for any name and value of ours.

MLflow refuses a metric, parameter or tag whose name has other characters than letters, digits and `_-.: /`,
is longer than 250 characters, or is no plain path (`a//b`, `../a`). One refused name would keep all later
events of a run undelivered.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping

from mlflow.entities import Param, RunTag
from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

TRUE_NAME_TAG = "laser.name."
"""Tag of an MLflow run with the true name of a part of a name that was changed, which follows the dot."""
TITLE_LIMIT = 250
"""Characters of the name of a run or an experiment that every database of MLflow holds."""
BATCH_BYTES = 500_000
"""The most bytes of parameters in one request; a server takes 1,000,000."""

_FOREIGN = re.compile(r"[^\w.\-: ]")
_MARKED = re.compile(r"--[0-9a-f]{8}$")
_LONGEST_CHANGED = 60
_LONGEST_CUT = 200


def legal_name(name: str) -> str:
    """The name of a metric, parameter or tag for MLflow: the name itself, where MLflow accepts it.

    Otherwise each part between slashes that is not acceptable gets `_` for its foreign characters, and a hash
    of what it was: `eval/a+b/accuracy` becomes `eval/a_b--300273da/accuracy`. The result depends on the name
    alone, and two names have different results.
    """
    return _legal(name)[0]


def true_name_tags(names: Iterable[str]) -> list[RunTag]:
    """Tags with the true names of all parts that `legal_name` changes in the names."""
    changed: dict[str, str] = {}
    for name in names:
        changed |= _legal(name)[1]
    return [RunTag(f"{TRUE_NAME_TAG}{legal}", legal_value(true)) for legal, true in changed.items()]


def legal_value(value: str, limit: int = MAX_TAG_VAL_LENGTH) -> str:
    """A value as MLflow can store it: without half characters and NUL, and cut with a mark where too long."""
    text = value.encode(errors="backslashreplace").decode().replace("\0", "\\0")
    mark = f" ... (cut: {len(text)} characters)"
    return text if len(text) <= limit else text[: limit - len(mark)] + mark


def legal_title(name: str) -> str:
    """The name of a run or an experiment, which may have any characters; a hash ends one that is too long."""
    text = legal_value(name)
    return text if len(text) <= TITLE_LIMIT else f"{text[:_LONGEST_CUT]}--{_digest(name)}"


def legal_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags by legal names, with legal values, and the tags of their true names."""
    legal = {legal_name(key): legal_value(value) for key, value in tags.items()}
    return legal | {tag.key: tag.value for tag in true_name_tags(tags)}


def legal_params(params: Mapping[str, str]) -> list[Param]:
    """Parameters with legal names and values. `config.yaml` has the whole values."""
    return [Param(legal_name(key), legal_value(value, MAX_PARAM_VAL_LENGTH)) for key, value in params.items()]


def in_batches(params: Iterable[Param]) -> Iterator[list[Param]]:
    """The parameters in lists that one request each can hold."""
    batch: list[Param] = []
    size = 0
    for param in params:
        bytes_ = len(json.dumps([param.key, param.value]))
        if batch and size + bytes_ > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(param)
        size += bytes_
    if batch:
        yield batch


def _legal(name: str) -> tuple[str, dict[str, str]]:
    """The legal name, and the true names of what was changed in it."""
    for longest in (MAX_ENTITY_KEY_LENGTH, _LONGEST_CHANGED):
        parts = [(_legal_part(part, longest), part) for part in name.split("/")]
        legal = "/".join(part for part, _ in parts)
        if len(legal) <= MAX_ENTITY_KEY_LENGTH:
            return legal, {part: true for part, true in parts if part != true}
    cut = f"{legal[:_LONGEST_CUT].rstrip('/. ')}--{_digest(name)}"
    return cut, {cut: name}


def _legal_part(part: str, longest: int) -> str:
    """A part of a name between slashes. One that looks like a changed one is changed, to stay different."""
    is_plain = part not in ("", ".") and not part.startswith("..") and len(part) <= longest
    if is_plain and not _FOREIGN.search(part) and not _MARKED.search(part):
        return part
    return f"{_FOREIGN.sub('_', part).lstrip('.')[:_LONGEST_CHANGED]}--{_digest(part)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
