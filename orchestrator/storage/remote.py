"""A run's checkpoints on object storage (or any file system that has a URL), from which any node continues it.

In: files of a run's folder, each uploaded by the process that wrote it. Out: the same files, on whatever node they are needed. Under
`<run.remote>/<run.name>/` all lies as in the run's folder; `checkpoints/step-000100/` counts only with its `state.json`, written last.
"""

import contextlib
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pyarrow.fs import (
    FileInfo,
    FileSelector,
    FileSystem,
    FileType,
    FSSpecHandler,
    LocalFileSystem,
    PyFileSystem,
    copy_files,
)

from orchestrator.errors import ConfigError, RunError
from orchestrator.storage.checkpoints import STATE, TrainingState, step_name
from orchestrator.storage.files import write_atomically
from orchestrator.storage.journal import JOURNAL, RUN_ID, SENT

SMALL_FILES = (SENT, RUN_ID, JOURNAL, "config.yaml", "summary.json")
"""What the driver keeps beside the checkpoints. The count of events sent goes before the journal: one too small sends nothing twice."""
TABLES = ("samples", "scores", "evaluations")
"""Folders of what belongs to the journal's evaluations. A file in them is uploaded once, as its evaluation is logged once."""
COPY_CHUNK_BYTES = 64 * 2**20
ADVICE = "Look at run.remote, the credentials in this node's environment, and AWS_ENDPOINT_URL for a store of your own"


class RemoteStorage:
    """A run's folder at a URL. One driver writes it at a time. Places are paths within it.

    Args:
        url: `run.remote`, under which runs lie by name.
        name: The run's.

    Raises:
        ConfigError: Nothing installed can open the URL. The methods raise RunError, with the place, when that cannot be read or written.
    """

    def __init__(self, url: str, name: str) -> None:
        self.shown = f"{url.partition('?')[0].rstrip('/')}/{name}"
        self._files, base = _open(url)
        self._root = f"{base.rstrip('/')}/{name}"

    def try_out(self) -> None:
        """Write, read and delete a file: a bucket that does not exist reads as an empty one."""
        mark = f".try-{uuid.uuid4().hex}"
        self.write(mark, b"laser")
        self.read(mark)
        self.delete(mark)

    def newest(self) -> TrainingState | None:
        """The state of the newest complete checkpoint, or None."""
        complete = self._complete()
        text = self.read(f"{place_of(complete[-1])}/{STATE}") if complete else None
        if text is None:
            return None
        try:
            return TrainingState.parse(text)
        except (ValueError, TypeError) as error:
            place = f"{self.shown}/{place_of(complete[-1])}"
            raise RunError(
                f"{place}/{STATE}: is not a state this version can read ({error}); delete {place}"
            ) from error

    def save(self, state: TrainingState, keep: int, write: Callable[[str], None]) -> None:
        """Add a checkpoint: `write(place)` uploads all of it but the state. Of the others the newest `keep - 1` complete ones stay."""
        complete = self._complete()
        for step in self._steps():
            if step == state.step or step not in complete:
                self._delete_checkpoint(step)
        write(place_of(state.step))
        self.write(f"{place_of(state.step)}/{STATE}", state.text().encode())
        for old in self._complete()[:-keep]:
            self._delete_checkpoint(old)

    def holds(self, state: TrainingState) -> bool:
        """Whether the checkpoint of that state is complete here, and not another attempt's of the same step."""
        data = self.read(f"{place_of(state.step)}/{STATE}")
        try:
            return data is not None and TrainingState.parse(data).text() == state.text()
        except (ValueError, TypeError):
            return False

    def upload(self, files: Iterable[Path], folder: Path, place: str) -> None:
        """Copy files that are below `folder` to the same paths below `place`."""
        parents: set[str] = set()
        for file in files:
            target = f"{self._root}/{place}/{file.relative_to(folder).as_posix()}"
            with self._told(f"{place}/{file.relative_to(folder)}", "be written"):
                if (parent := target.rpartition("/")[0]) not in parents:
                    self._files.create_dir(parent)
                    parents.add(parent)
                _copy(str(file), target, LocalFileSystem(), self._files)

    def fetch(self, place: str, folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Copy the files below `place` whose names are `wanted` to the same paths below `folder`."""
        for info in self._list(place, recursive=True):
            if info.type == FileType.File and wanted(info.base_name):
                path = info.path.removeprefix(f"{self._root}/{place}/")
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                with self._told(f"{place}/{path}", "be read"):
                    _copy(info.path, str(folder / path), self._files, LocalFileSystem())

    def upload_records(self, folder: Path) -> None:
        """Bring the configuration, journal and summary up to those in the run's folder, and what the journal refers to."""
        for name in SMALL_FILES:
            if (folder / name).exists():
                self.write(name, (folder / name).read_bytes())
        for table in TABLES:
            there = {info.base_name for info in self._list(table)}
            for file in sorted((folder / table).glob("[!.]*")):
                if file.name not in there:
                    self.write(f"{table}/{file.name}", file.read_bytes())

    def fetch_records(self, folder: Path) -> None:
        """Undo `upload_records` on another node: what the folder has of another attempt is replaced."""
        for name in SMALL_FILES:
            data = self.read(name)
            if data is None:
                (folder / name).unlink(missing_ok=True)
            else:
                write_atomically(folder / name, data)
        for table in TABLES:
            self.fetch(table, folder / table)

    def read(self, place: str) -> bytes | None:
        """The content of a small file; None without it."""
        with self._told(place, "be read"):
            try:
                with self._files.open_input_stream(f"{self._root}/{place}") as stream:
                    return stream.read()
            except FileNotFoundError:
                return None

    def write(self, place: str, data: bytes) -> None:
        """Write a small file, of which a reader sees all or nothing."""
        path = f"{self._root}/{place}"
        with self._told(place, "be written"):
            self._files.create_dir(path.rpartition("/")[0])
            with self._files.open_output_stream(f"{path}.partial") as stream:
                stream.write(data)
            self._files.move(f"{path}.partial", path)

    def delete(self, place: str) -> None:
        with self._told(place, "be deleted"):
            self._files.delete_file(f"{self._root}/{place}")

    def _steps(self) -> list[int]:
        """Steps of all checkpoints, complete or not, oldest first."""
        found = (re.fullmatch(r"step-(\d+)", info.base_name) for info in self._list("checkpoints"))
        return sorted(int(name[1]) for name in found if name)

    def _complete(self) -> list[int]:
        steps = self._steps()
        with self._told("checkpoints", "be read"):
            states = self._files.get_file_info([f"{self._root}/{place_of(step)}/{STATE}" for step in steps])
        return [step for step, state in zip(steps, states, strict=True) if state.type == FileType.File]

    def _delete_checkpoint(self, step: int) -> None:
        """The state first, so that a crash in between leaves no half checkpoint that counts."""
        place = place_of(step)
        if self.read(f"{place}/{STATE}") is not None:
            self.delete(f"{place}/{STATE}")
        with self._told(place, "be deleted"):
            self._files.delete_dir(f"{self._root}/{place}")

    def _list(self, place: str, recursive: bool = False) -> list[FileInfo]:
        with self._told(place, "be read"):
            return self._files.get_file_info(
                FileSelector(f"{self._root}/{place}", allow_not_found=True, recursive=recursive)
            )

    @contextlib.contextmanager
    def _told(self, place: str, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # fsspec's file systems raise errors of their own kinds
            reason = str(error).partition(" (Request ID")[0].strip().splitlines()
            raise RunError(
                f"{self.shown}/{place}: cannot {what} ({reason[0] if reason else type(error).__name__}). {ADVICE}."
            ) from error


def place_of(step: int) -> str:
    """Where the checkpoint of a step lies."""
    return f"checkpoints/{step_name(step)}"


def _open(url: str) -> tuple[FileSystem, str]:
    """The file system of a URL, pyarrow's own or fsspec's, and the path there."""
    try:
        return FileSystem.from_uri(url)
    except OSError as error:  # S3 is asked for the bucket's region
        raise ConfigError(f"run.remote={url}: cannot be opened ({error}). {ADVICE}.") from error
    except ValueError as unknown:
        import fsspec  # type: ignore[import-untyped]

        try:
            files, path = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"run.remote={url}: cannot be opened ({unknown}; {error}). Name s3://, gs:// or file:///."
            ) from error
        return PyFileSystem(FSSpecHandler(files)), path


def _copy(source: str, target: str, source_files: FileSystem, target_files: FileSystem) -> None:
    # One thread: copying in several, pyarrow's upload to S3 can wait for itself (apache/arrow issue 32372).
    copy_files(
        source,
        target,
        source_filesystem=source_files,
        destination_filesystem=target_files,
        chunk_size=COPY_CHUNK_BYTES,
        use_threads=False,
    )
