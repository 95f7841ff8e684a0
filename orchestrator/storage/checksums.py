"""Checksums of the files of a checkpoint or an exported model, and the comparison before they are loaded.

In: a folder, or the text of a JSON object that holds the checksums. Out: `Checksums`, or what is wrong in
words. XXH3 finds damage, not forgery, and is faster than any disk.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from orchestrator.errors import ConfigError

STATE = "state.json"
"""A checkpoint's file with the driver's state and the checksums of all other files."""
EXPORT = "export"
"""A checkpoint's folder with the exported model."""
CHECKSUMS = "checksums.json"
"""An exported model's file with the checksums of its other files, which copies of the model keep."""

_BLOCK_BYTES = 8 * 2**20
_THREADS = 8
_SEAL = "checksum"
_FILES = "files"


@dataclass(frozen=True)
class FileSum:
    """Size and XXH3 (128 bits, hexadecimal) of a file's content."""

    size: int
    digest: str


Checksums = dict[str, FileSum]
"""By the file's path within the folder, with slashes."""

_Signature = tuple[tuple[str, int, int, int, int], ...]
_whole: dict[Path, _Signature] = {}
"""Folders whose content this process has compared, and their files' sizes and times then.

They are not read again while these stay the same.
"""


class NoChecksums(Exception):
    """An earlier version wrote the file, without checksums."""


def file_sum(path: Path, flush: bool = False) -> FileSum:
    """Size and digest of a file.

    Args:
        flush: Also flush the file to the disk.

    Raises:
        OSError: It cannot be read.
    """
    digest, size = xxhash.xxh3_128(), 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
        if flush:
            os.fsync(file.fileno())
    return FileSum(size, digest.hexdigest())


def sum_files(folder: Path, paths: Iterable[str], flush: bool = False) -> Checksums:
    """The checksums of these files of a folder, computed in several threads.

    Raises:
        OSError: One cannot be read.
    """
    paths = list(paths)
    with ThreadPoolExecutor(_THREADS) as threads:
        sums = threads.map(lambda path: file_sum(folder / path, flush), paths)
        return dict(zip(paths, sums, strict=True))


def files_of(folder: Path) -> list[str]:
    """The paths of all files in a folder and below, with slashes, sorted.

    NFS keeps a deleted file that is still open as `.nfs...`; such files are left out.
    """
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if not path.is_dir() and not path.name.startswith(".nfs")
    )


def sealed(tree: Mapping[str, Any], sums: Checksums) -> str:
    """A JSON object as text, with checksums of files and, at its end, a checksum of this text itself."""
    files = {path: [found.size, found.digest] for path, found in sorted(sums.items())}
    whole = {**tree, _FILES: files}
    return _text({**whole, _SEAL: xxhash.xxh3_128(_text(whole).encode()).hexdigest()})


def unsealed(text: str | bytes) -> tuple[dict[str, Any], Checksums]:
    """The object and the checksums in a text of `sealed`.

    Raises:
        NoChecksums: It is a JSON object without any checksum.
        ValueError: It is not the text that was written.
    """
    text = text.decode() if isinstance(text, bytes) else text
    tree = json.loads(text)
    if not isinstance(tree, dict):
        raise ValueError("it is not a JSON object")
    if _SEAL not in tree and _FILES not in tree:
        raise NoChecksums
    seal, files = tree.pop(_SEAL, None), tree.pop(_FILES, None)
    try:
        sums = {path: FileSum(int(size), str(digest)) for path, (size, digest) in files.items()}
    except (AttributeError, TypeError) as error:
        raise ValueError("its checksums cannot be read") from error
    if seal is None or text != sealed(tree, sums):
        raise ValueError("its content is not what was written")
    return tree, sums


def damage(
    folder: Path, sums: Checksums, may_lack: Callable[[str], bool] = lambda path: False, only: str = ""
) -> str | None:
    """The first difference between a folder and its checksums, in words; None if there is none.

    Args:
        may_lack: Says of a file's path whether it may be missing, because it is kept elsewhere.
        only: Look only at the paths that begin with this, for example `export/`.
    """
    present = [path for path in files_of(folder) if path.startswith(only) and path != STATE]
    expected = {path: found for path, found in sums.items() if path.startswith(only)}
    for path in expected:
        if path not in present and not may_lack(path):
            return f"{path} is missing"
    for path in present:
        if path not in expected:
            return f"{path} does not belong to it"
        size = (folder / path).stat().st_size
        if size != expected[path].size:
            return f"{path} has {size:,} bytes, and had {expected[path].size:,} when it was written"
    signature = _signature(folder, present)
    if _whole.get(folder / only) == signature:
        return None
    try:
        found = sum_files(folder, present)
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    for path in present:
        if found[path] != expected[path]:
            return f"{path} has other content than when it was written"
    _whole[folder / only] = signature
    return None


def seal_export(export: Path, sums: Checksums) -> None:
    """Write the checksums of an exported model into it, for any who load a copy of it.

    Args:
        sums: Of the files in it that are summed already.
    """
    others = [path for path in files_of(export) if path not in sums and path != CHECKSUMS]
    (export / CHECKSUMS).write_text(sealed({}, sums | sum_files(export, others, flush=True)))


def trust(folder: Path) -> None:
    """Take a folder for whole that this process has just summed, until one of its files changes."""
    _whole[folder] = _signature(folder, [path for path in files_of(folder) if path != STATE])


def refuse_damaged_model(folder: Path) -> None:
    """Compare an exported model with its checksums. A model that has none, such as a base model, passes.

    Raises:
        ConfigError: A file was changed, is missing or, in a checkpoint, does not belong to it.
    """
    problem = model_damage(folder)
    if problem is not None:
        raise ConfigError(
            f"model {folder}: is damaged: {problem}. Restore the file, name another checkpoint's export, or, "
            f"if you changed the model on purpose, copy it to a folder of its own without {CHECKSUMS}"
        )


def model_damage(folder: Path) -> str | None:
    """What is wrong with an exported model, in words; None if nothing is, or if it has no checksums."""
    folder = folder.resolve()
    state, own = folder.parent / STATE, folder / CHECKSUMS
    try:
        if folder.name == EXPORT and state.is_file():
            return damage(folder.parent, unsealed(state.read_bytes())[1], only=f"{EXPORT}/")
        if own.is_file():
            sums = unsealed(own.read_bytes())[1]
            present = set(files_of(folder))
            absent = [path for path in sums if path not in present]
            return f"{absent[0]} is missing" if absent else _changed(folder, sums)
    except NoChecksums:
        return None
    except (OSError, ValueError) as error:
        return f"{state if state.is_file() else own} is not the file that was written ({error})"
    return None


def _changed(folder: Path, sums: Checksums) -> str | None:
    signature = _signature(folder, sorted(sums))
    if _whole.get(folder) == signature:
        return None
    found = sum_files(folder, sums)
    for path, expected in sums.items():
        if found[path] != expected:
            return f"{path} has other content than when it was written"
    _whole[folder] = signature
    return None


def _signature(folder: Path, paths: Iterable[str]) -> _Signature:
    stats = ((path, (folder / path).stat()) for path in paths)
    return tuple(
        (path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for path, stat in stats
    )


def _text(tree: Mapping[str, Any]) -> str:
    return json.dumps(tree, indent=2, allow_nan=False) + "\n"
