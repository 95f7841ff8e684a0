"""Bodies of requests: JSON that is read once and strictly, and paths to the values in it."""

import json
import math
from collections.abc import Sequence
from typing import Any

from orchestrator.serving.errors import malformed

LONGEST_SHOWN = 80
"""Characters of a client's text that a message repeats."""


def path_text(path: Sequence[str | int]) -> str:
    """Keys and indices as OpenAI writes them, such as `messages[1].content[0].image_url`."""
    text = ""
    for part in path:
        key = f"[{part}]" if isinstance(part, int) else part[:LONGEST_SHOWN] or '""'
        text += f".{key}" if text and isinstance(part, str) else key
    return text


def read_json(body: bytes) -> Any:
    """The JSON of a body.

    A number that no float holds becomes infinite, so that the check of its field can refuse it by name.

    Raises:
        ApiError: 400; it is no JSON, or an object holds a key twice.
    """
    try:
        return json.loads(body.decode("utf-8-sig"), parse_int=_integer, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise malformed(f"the body is no JSON: byte {error.start} is no UTF-8") from None
    except json.JSONDecodeError as error:
        raise malformed(f"the body is no JSON: {error}") from None
    except RecursionError:
        raise malformed("the body is nested too deeply") from None


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold a text; JSON may spell half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 300 else math.copysign(math.inf, float(digits))


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in tree if keys.count(key) > 1)[:LONGEST_SHOWN]
        raise malformed(f"the key {twice!r} stands twice in one object; leave one out", twice)
    for key in tree:
        if not is_unicode(key):
            raise malformed(
                f"the key {key[:LONGEST_SHOWN]!r} is no Unicode text: it has half of a surrogate pair"
            )
    return tree
