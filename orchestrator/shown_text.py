"""Texts that others will read: no control sequence has an effect, and no secret stands in them.

In: any text, such as a model's answer or another program's message. Out: the same text, safe to show.
"""

import os
import re

_COLOUR = re.compile(r"\x1b\[[\d;:]*m")
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters other than tab and newline, marks that reorder a line, and halves of surrogate pairs."""
_PASSWORD_IN_URL = re.compile(
    r"(?<=://)([^/\s:@]*):[^/\s]+(?=@)|(?<=[?&])(password|token|secret|key)=[^&\s]+", re.IGNORECASE
)
_PASSWORD_OF_URL = re.compile(r"[\w+.-]+://[^/\s:@]*:(.+)@[^@]*")
_SECRET_NAME = re.compile(r"KEY|TOKEN|PASSWORD|SECRET", re.IGNORECASE)
_SHORTEST_SECRET = 6
"""A shorter value of a variable is part of ordinary words."""


def printable(text: str) -> str:
    r"""`text` with its control characters spelt out, such as `\x1b`; a colour is left out."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], _COLOUR.sub("", text))


def without_secrets(text: str) -> str:
    """`text` with `***` for passwords in URLs and for the secrets of the environment.

    A variable is secret if its name holds KEY, TOKEN, PASSWORD or SECRET; of any other one, the password in
    its URL is.
    """
    for secret in _environment_secrets():
        text = text.replace(secret, "***")
    return _PASSWORD_IN_URL.sub(
        lambda found: f"{found[1]}:***" if found[1] is not None else f"{found[2]}=***", text
    )


def safe_to_show(text: str) -> str:
    """`text` as a terminal or a log may show it: `printable` and `without_secrets`."""
    return printable(without_secrets(text))


def _environment_secrets() -> list[str]:
    """The longest ones first, because one may be a part of another."""
    found = set()
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name):
            found.add(value)
        elif url := _PASSWORD_OF_URL.fullmatch(value):
            found.add(url[1])
    return sorted((secret for secret in found if len(secret) >= _SHORTEST_SECRET), key=len, reverse=True)
