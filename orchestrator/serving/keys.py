"""API keys: reads them and checks the `Authorization` header. Only their SHA-256 hashes are kept."""

import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path

from orchestrator.config.texts import read_text
from orchestrator.errors import ConfigError

KEY_VARIABLE = "LASER_API_KEY"


class Keys:
    """The keys that open the service. Without any key every request is admitted."""

    def __init__(self, hashes: Iterable[str]) -> None:
        self.hashes = sorted(set(hashes))

    @classmethod
    def load(cls, file: Path | None, hashes: Iterable[str] = ()) -> "Keys":
        """The keys in `file`, one a line, the key in LASER_API_KEY, and keys by their SHA-256 in hex.

        Raises:
            ConfigError: The file cannot be read or holds no key, or LASER_API_KEY is empty.
        """
        found = [os.environ[KEY_VARIABLE]] if KEY_VARIABLE in os.environ else []
        if found and not found[0].strip():
            raise ConfigError(f"{KEY_VARIABLE} is empty; unset it, or put a key into it")
        if file is not None:
            text = read_text(file, "`keys_file` names a text file with an API key a line.")
            lines = [line.strip() for line in text.splitlines()]
            keys = [line for line in lines if line and not line.startswith("#")]
            if not keys:
                raise ConfigError(f"keys_file: {file} holds no key; write one a line")
            found += keys
        return cls([*hashes, *(_digest(key.strip()) for key in found)])

    def admit(self, authorization: str | None) -> bool:
        """Whether the value of an `Authorization` header holds one of the keys, compared in constant time."""
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        matches = [hmac.compare_digest(given, known) for known in self.hashes]
        return not self.hashes or (scheme.lower() == "bearer" and any(matches))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
