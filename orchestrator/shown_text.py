"""Texts that others will read: no control sequence has an effect, and no secret stands in them.

In: any text, such as a model's answer or another program's message. Out: the same text, safe to show.
"""

import os
import re
from typing import Any

_COLOUR = re.compile(r"\x1b\[[\d;:]*m")
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters other than tab and newline, marks that reorder a line, and halves of surrogate pairs."""
_PASSWORD_IN_URL = re.compile(
    r"(?<=://)([^/\s:@]*):[^/\s]+(?=@)|(?<=[?&])(password|token|secret|key)=[^&\s]+", re.IGNORECASE
)
_SECRET_NAME = re.compile(r"KEY|TOKEN|PASSWORD|SECRET", re.IGNORECASE)
_SECRET_PARAMETERS = ("password", "token", "secret")
_SHORTEST_SECRET = 6
"""A shorter value of a variable is part of ordinary words."""


def is_secret_name(name: str) -> bool:
    """Whether the value of an environment variable of this name is hidden."""
    return _SECRET_NAME.search(name) is not None


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


def without_password(uri: str) -> str:
    """The URI with `***` for its password, and for parameters such as `password` and `token`."""
    head, password, tail = _around_password(uri)
    base, mark, query = (head if password is None else f"{head}***{tail}").partition("?")
    pairs = [f"{pair.partition('=')[0]}=***" if _names_secret(pair) else pair for pair in query.split("&")]
    return base + mark + "&".join(pairs)


def without_passwords(value: Any) -> Any:
    """A tree of settings whose addresses have no passwords."""
    if isinstance(value, dict):
        return {key: without_passwords(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_passwords(each) for each in value]
    is_address = isinstance(value, str) and "://" in value and len(value.split()) == 1
    return without_password(value) if is_address else value


def secrets_in(uri: str) -> list[str]:
    """What `without_password` hides, as it is written in the URI."""
    head, password, tail = _around_password(uri)
    pairs = (head if password is None else tail).partition("?")[2].split("&")
    found = [password, *(pair.partition("=")[2] for pair in pairs if _names_secret(pair))]
    return [secret for secret in found if secret]


def _environment_secrets() -> list[str]:
    """The longest ones first, because one may be a part of another."""
    found = set()
    for name, value in os.environ.items():
        if is_secret_name(name):
            found.add(value)
        elif "://" in value:
            found.update(secrets_in(value))
    return sorted((secret for secret in found if len(secret) >= _SHORTEST_SECRET), key=len, reverse=True)


def _around_password(uri: str) -> tuple[str, str | None, str]:
    """What stands before a URI's password, the password, and what stands after it.

    Without a password: the whole URI, None and "".

    The password is all that stands between the first ":" and the last "@". URL parsers would show a part of
    a password that was not percent-encoded: `urlsplit` ends the host at a "/", SQLAlchemy's `make_url` ends
    the password at its first "@".
    """
    scheme, separator, rest = uri.partition("://")
    credentials, _, place = rest.rpartition("@")
    user, colon, password = credentials.partition(":")
    if not colon or "/" in user:
        return uri, None, ""
    return f"{scheme}{separator}{user}:", password, f"@{place}"


def _names_secret(pair: str) -> bool:
    """Whether a `name=value` of a URI's query holds a secret."""
    name, _, value = pair.partition("=")
    return bool(value) and any(word in name.lower() for word in _SECRET_PARAMETERS)
