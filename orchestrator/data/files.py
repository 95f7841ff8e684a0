"""Which files a path of the settings means, and their bytes.

In: a file, a folder or a pattern such as `data/*.jsonl.gz`. Out: its data files in order (`data_files`), and
their bytes without compression, mapped into memory (`open_bytes`): a large file takes no memory of its own.
"""

import glob
import mmap
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import IO

from orchestrator.config.sources import COMPRESSIONS, FILE_SUFFIXES, FORMATS, PROCEDURAL
from orchestrator.errors import DataError

_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
"""Words in the names of files that say to which split a file belongs."""


def has_data_suffix(path: str) -> bool:
    """Whether a path has the name of a data file."""
    return path.endswith(FILE_SUFFIXES)


def is_local_data(path: str) -> bool:
    """Whether a path means files of this machine, or problems that it makes, and no name on the hub."""
    is_file = os.path.exists(path) or has_data_suffix(path) or is_pattern(path)
    return is_file or path.startswith(PROCEDURAL)


def is_pattern(path: str) -> bool:
    """Whether a path stands for the files that match it."""
    return glob.has_magic(path) and not os.path.exists(path)


def is_hub_folder(folder: Path) -> bool:
    """Whether `datasets` must read a folder: it saved it, or it is the copy of a data set of the hub."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json", "README.md"))


def data_files(path: str, split: str) -> list[Path]:
    """The data files that a file's path, a folder or a pattern means, sorted by name.

    Of files whose names tell splits (`train-00000.parquet`, `test.jsonl`), those of `split` are taken.

    Raises:
        DataError: There is none.
    """
    if has_data_suffix(path) and not is_pattern(path) and not os.path.isdir(path):
        if not os.path.isfile(path):  # unlike Path's method it is False for a path that cannot be
            raise DataError(f"{path}: no such file (looked in {os.path.abspath(Path(path).parent)})")
        return [Path(path)]
    if is_pattern(path):
        found = sorted(filter(os.path.isfile, glob.glob(path, recursive=True)))
        if not found:
            raise DataError(f"{path}: no file matches (looked in {os.getcwd()})")
        if other := [name for name in found if not has_data_suffix(name)]:
            raise DataError(f"{path}: matches {other[0]}; {_supported(other[0])}")
        return [Path(name) for name in found]
    return _files_of_split(Path(path), split)


def refuse_other_file(path: str) -> None:
    """Refuse a file whose name has none of the known endings.

    Raises:
        DataError: It is such a file.
    """
    if os.path.isfile(path):
        raise DataError(f"{path}: {_supported(path)}")


def open_bytes(file: Path) -> "mmap.mmap | bytes":
    """The content of a file without its compression, mapped into memory.

    A compressed file is unpacked into a file without a name in the temporary folder (TMPDIR), which is gone
    when nobody reads it any more.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with open(file, "rb") as plain:
            if file.suffix not in COMPRESSIONS:
                return mapped(plain)
        return _unpacked(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error


def mapped(file: IO[bytes]) -> "mmap.mmap | bytes":
    """An open file, mapped into memory."""
    if os.fstat(file.fileno()).st_size == 0:  # nothing can be mapped
        return b""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _unpacked(file: Path) -> "mmap.mmap | bytes":
    import pyarrow

    with (
        tempfile.TemporaryFile() as plain,
        pyarrow.OSFile(str(file)) as packed,
        pyarrow.CompressedInputStream(packed, COMPRESSIONS[file.suffix]) as stream,
    ):
        shutil.copyfileobj(stream, plain, 2**20)
        plain.flush()
        return mapped(plain)


def _files_of_split(folder: Path, split: str) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and has_data_suffix(file.name))
    if not files:
        raise DataError(f"{folder}: holds no data file ({', '.join(FORMATS)}, also with .gz or .zst)")
    splits = {file: _split_of(str(file.relative_to(folder))) for file in files}
    if not any(splits.values()):
        return files
    wanted = _SPLITS.get(split, split)
    chosen = [file for file in files if splits[file] == wanted]
    if not chosen:
        names = ", ".join(sorted({name for name in splits.values() if name}))
        raise DataError(f"{folder}: has no split '{split}'; the names of its files tell {names}: set `split`")
    return chosen


def _split_of(name: str) -> str | None:
    words = re.split(r"[-_./\\]+", name.lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


def _supported(name: str) -> str:
    suffix = Path(name).suffix
    kind = f"'{suffix}' files are" if suffix else "a data file whose name has no ending is"
    return f"{kind} not supported; convert it to {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
