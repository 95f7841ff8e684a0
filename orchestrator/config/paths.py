"""Settings that are paths: `~` and `~user` mean home folders, in every command alike.

`$VAR` is left as it is: the shell replaces it on a command line, and nothing replaces it in a file.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

_homes_are_elsewhere = ContextVar("homes_are_elsewhere", default=False)

LONGEST_NAME = 255
"""Bytes of a file's name on the usual file systems."""
SET_NAME_BYTES = 200
"""Bytes of a set's name in the names of its files, behind which a step and an ending come."""
LONGEST_PATH = 4000
"""Bytes of a path; Linux takes 4095, and the names of our files come behind it."""


@contextlib.contextmanager
def homes_elsewhere() -> Iterator[None]:
    """Keep each `~` of the settings that are read in the block: another machine will read them too."""
    token = _homes_are_elsewhere.set(True)
    try:
        yield
    finally:
        _homes_are_elsewhere.reset(token)


def checked_path(path: str) -> str:
    """The path with the home folder in place of a `~` or `~user` at its start. A file `~` is `./~`.

    Raises:
        ValueError: There is no such user, or a name in the path is longer than any file's.
    """
    if any(len(part.encode(errors="surrogatepass")) > LONGEST_NAME for part in path.split("/")):
        raise ValueError(f"{path[:60]}...: a name in it has more than {LONGEST_NAME} bytes")
    if len(path.encode(errors="surrogatepass")) > LONGEST_PATH:
        raise ValueError(f"{path[:60]}...: it has more than {LONGEST_PATH} bytes")
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise ValueError(f"{path}: no home folder is known for it") from error


def short_name(name: str, longest: int = LONGEST_NAME, keep: int = 80) -> str:
    """A name for a file or folder: the name itself, or its start and a hash where it is too long.

    Args:
        longest: The most bytes of a name that stays as it is.
        keep: Bytes of a longer name that are kept.
    """
    if len(name.encode(errors="surrogatepass")) <= longest:
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:12]
    start = name.encode(errors="surrogatepass")[:keep].decode(errors="ignore")
    return f"{start.rstrip('-_. ')}-{digest}"


def _at_home(path: str | Path) -> str | Path:
    if _homes_are_elsewhere.get():
        return path
    try:
        return type(path)(checked_path(str(path)))
    except ValueError as error:
        raise PydanticCustomError("home", "a path ({reason})", {"reason": str(error)}) from error


LocalPath = Annotated[Path, AfterValidator(_at_home)]
"""A file or folder."""
PathOrName = Annotated[str, Field(min_length=1), AfterValidator(_at_home)]
"""A file or folder, or a name that is looked up elsewhere, such as one of the Hugging Face hub."""
