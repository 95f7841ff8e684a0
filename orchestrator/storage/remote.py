"""A run's checkpoints at a URL, from which any node resumes the run.

In: files of a run's folder, each uploaded by the process that wrote it. Out: the same files, on the node
that needs them. Below `<run.remote>/<run.name>/` the paths are those of the run's folder.
`checkpoints/step-000100/` counts only when it has its `state.json`, which is written last.

pyarrow opens the URL: s3://, gs://, abfss:// (Azure), file:///, and hdfs:// where Hadoop's libraries are
installed.
"""

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from pyarrow import ArrowException
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem, copy_files

from orchestrator.errors import ConfigError, RunError
from orchestrator.storage.addresses import why_silent
from orchestrator.storage.checkpoints import Checkpoints, TrainingState, parse_state, step_name
from orchestrator.storage.checksums import EXPORT, STATE, Checksums, damage
from orchestrator.storage.dropped import DROPPED
from orchestrator.storage.files import write_atomically
from orchestrator.storage.journal import JOURNAL, RUN_ID, SENT

RECORDS = (SENT, RUN_ID, JOURNAL, DROPPED, "config.yaml", "summary.json")
"""Small files of a run.

The number of sent events is uploaded before the journal: if it is too low, nothing is sent twice.
"""
TABLES = ("samples", "scores", "evaluations")
"""Folders with one file for each evaluation.

A file is uploaded once, because an evaluation is logged once.
"""
COPY_CHUNK_BYTES = 64 * 2**20
ADVICE = (
    "Look at run.remote, the credentials in this node's environment, and AWS_ENDPOINT_URL for an S3 server "
    "of your own"
)


class DamagedCopy(RunError):
    """A file at `run.remote` is not what was uploaded."""


class RemoteStorage:
    """A run's folder at a URL. One driver writes it at a time. A `place` is a path within it.

    Args:
        url: `run.remote`, which has a folder for each run.
        name: The run's name.

    Attributes:
        shown: The folder's URL, without parameters, for messages.

    Raises:
        ConfigError: pyarrow cannot open the URL.
        RunError: From any method: a place cannot be read, written or deleted.
    """

    def __init__(self, url: str, name: str) -> None:
        self.shown = f"{url.partition('?')[0].rstrip('/')}/{name}"
        self._files, base = _open(url)
        self._root = f"{base.rstrip('/')}/{name}"

    def try_out(self) -> None:
        """Write, read and delete a file.

        To read alone proves nothing: a bucket that does not exist reads as an empty one.
        """
        mark = f".try-{uuid.uuid4().hex}"
        self.write(mark, b"laser")
        self.read(mark)
        self.delete(mark)

    def newest(self, before: int | None = None) -> tuple[TrainingState, Checksums | None] | None:
        """State and checksums of the newest checkpoint with all its files; None if the run has none here.

        The content of the files is compared when they are downloaded.

        Args:
            before: Look only at checkpoints of earlier steps than this.

        Raises:
            RunError: There are checkpoints, and all are damaged.
        """
        complete = [step for step in self._complete() if before is None or step < before]
        problems = []
        for step in reversed(complete):
            found = self._found(step)
            if not isinstance(found, str):
                return found
            problems.append(f"{self.shown}/{place_of(step)}: {found}")
        if not problems:
            return None
        raise RunError(
            f"{self.shown}: no checkpoint is whole; nothing was deleted.\n  " + "\n  ".join(problems)
        )

    def save(self, state: TrainingState, keep: int, write: Callable[[str], None], text: str) -> None:
        """Add a checkpoint, and delete older ones.

        Args:
            keep: How many complete checkpoints remain, with this one; more until one of them is of a step
                with an update.
            write: Called with the checkpoint's place; uploads all of it but the state.
            text: The content of its `state.json`.
        """
        complete = self._complete()
        for step in self._steps():
            if step == state.step or step not in complete:
                self._delete_checkpoint(step)
        write(place_of(state.step))
        self.write(f"{place_of(state.step)}/{STATE}", text.encode())
        left, has_update = keep, False
        for step in reversed(self._complete()):
            if left <= 0 and has_update:
                self._delete_checkpoint(step)
                continue
            found = (state, None) if step == state.step else self._found(step)
            if not isinstance(found, str):
                left, has_update = left - 1, has_update or not found[0].skipped_in_a_row

    def holds(self, state: TrainingState) -> bool:
        """Whether the checkpoint of that state is complete here, and is of the same attempt at the step."""
        data = self.read(f"{place_of(state.step)}/{STATE}")
        try:
            return data is not None and TrainingState.parse(data).is_same(state)
        except (ValueError, TypeError):
            return False

    def files(self, place: str = "") -> list[str]:
        """The paths of all files below `place`, relative to it, in alphabetical order."""
        root = f"{self._root}/{place}".rstrip("/")
        found = self._list(place, recursive=True)
        return sorted(info.path.removeprefix(f"{root}/") for info in found if info.is_file)

    def upload(self, files: Iterable[Path], folder: Path, place: str) -> None:
        """Copy files, all of them below `folder`, to the same paths below `place`."""
        parents: set[str] = set()
        for file in files:
            path = file.relative_to(folder).as_posix()
            target = f"{self._root}/{place}/{path}"
            with self._explained(f"{place}/{path}", "be written"):
                if (parent := target.rpartition("/")[0]) not in parents:
                    self._files.create_dir(parent)
                    parents.add(parent)
                _copy(str(file), target, LocalFileSystem(), self._files)

    def fetch(self, place: str, folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Copy the files below `place` to the same paths below `folder`.

        Args:
            wanted: Receives a file's name without its path; a file for which it returns False is left out.
        """
        for path in self.files(place):
            if wanted(Path(path).name):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                with self._explained(f"{place}/{path}", "be read"):
                    _copy(f"{self._root}/{place}/{path}", str(folder / path), self._files, LocalFileSystem())

    def upload_records(self, folder: Path) -> None:
        """Upload the configuration, the journal, the summary, and new files of evaluations."""
        for name in RECORDS:
            if (folder / name).exists():
                self.write(name, (folder / name).read_bytes())
        for table in TABLES:
            present = set(self.files(table))
            for file in sorted((folder / table).glob("[!.]*")):
                if file.name not in present:
                    self.write(f"{table}/{file.name}", file.read_bytes())

    def fetch_records(self, folder: Path) -> None:
        """Replace the records in `folder`, which may be those of another attempt, by the uploaded ones."""
        for name in RECORDS:
            data = self.read(name)
            if data is None:
                (folder / name).unlink(missing_ok=True)
            else:
                write_atomically(folder / name, data)
        for table in TABLES:
            self.fetch(table, folder / table)

    def read(self, place: str) -> bytes | None:
        """The content of a small file; None if it does not exist."""
        with self._explained(place, "be read"):
            try:
                with self._files.open_input_stream(f"{self._root}/{place}") as stream:
                    return stream.read()
            except FileNotFoundError:
                return None

    def write(self, place: str, data: bytes) -> None:
        """Write a small file. A reader sees all of it or nothing."""
        path = f"{self._root}/{place}"
        with self._explained(place, "be written"):
            self._files.create_dir(path.rpartition("/")[0])
            with self._files.open_output_stream(f"{path}.partial") as stream:
                stream.write(data)
            self._files.move(f"{path}.partial", path)

    def delete(self, place: str) -> None:
        """Delete a file."""
        with self._explained(place, "be deleted"):
            self._files.delete_file(f"{self._root}/{place}")

    def _found(self, step: int) -> tuple[TrainingState, Checksums | None] | str:
        """State and checksums of a checkpoint; or what is wrong with its names and sizes, in words."""
        try:
            state, sums = parse_state(self.read(f"{place_of(step)}/{STATE}") or b"")
        except (ValueError, TypeError) as error:
            return f"{STATE} is not a state this version can read ({error})"
        if sums is None:
            return state, None
        root = f"{self._root}/{place_of(step)}/"
        sizes = {
            info.path.removeprefix(root): info.size
            for info in self._list(place_of(step), recursive=True)
            if info.is_file and info.base_name != STATE
        }
        for path, expected in sums.items():
            if path not in sizes:
                return f"{path} is missing"
            if sizes[path] != expected.size:
                return f"{path} has {sizes[path]:,} bytes, and had {expected.size:,} when it was written"
        surplus = sorted(set(sizes) - set(sums))
        return f"{surplus[0]} does not belong to it" if surplus else (state, sums)

    def _steps(self) -> list[int]:
        """Steps of all checkpoints, complete or not, oldest first."""
        found = (re.fullmatch(r"step-(\d+)", info.base_name) for info in self._list("checkpoints"))
        return sorted(int(name[1]) for name in found if name)

    def _complete(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        steps = self._steps()
        with self._explained("checkpoints", "be read"):
            states = self._files.get_file_info([f"{self._root}/{place_of(step)}/{STATE}" for step in steps])
        return [step for step, state in zip(steps, states, strict=True) if state.type == FileType.File]

    def _delete_checkpoint(self, step: int) -> None:
        """Delete the state first, so that a crash in between leaves no incomplete checkpoint that counts."""
        place = place_of(step)
        if self.read(f"{place}/{STATE}") is not None:
            self.delete(f"{place}/{STATE}")
        with self._explained(place, "be deleted"):
            self._files.delete_dir(f"{self._root}/{place}")

    def _list(self, place: str, recursive: bool = False) -> list[FileInfo]:
        path = f"{self._root}/{place}".rstrip("/")
        with self._explained(place, "be read"):
            return self._files.get_file_info(FileSelector(path, allow_not_found=True, recursive=recursive))

    @contextlib.contextmanager
    def _explained(self, place: str, problem: str) -> Iterator[None]:
        """Raise errors of the file system as a RunError that names the place."""
        try:
            yield
        except (OSError, ArrowException) as error:
            reason = str(error).partition(" (Request ID")[0].strip().splitlines()
            raise RunError(
                f"{self.shown}/{place}: cannot {problem} ({reason[0] if reason else type(error).__name__}). "
                f"{ADVICE}."
            ) from error


def fetch_checkpoint(
    checkpoints: Checkpoints, remote: RemoteStorage, state: TrainingState, sums: Checksums | None
) -> None:
    """Download a checkpoint's export and state. The ranks fetch their own shards later.

    Raises:
        DamagedCopy: A file is not what was uploaded.
        RunError: The URL cannot be read.
    """

    def write(folder: Path) -> Checksums | None:
        remote.fetch(f"{place_of(state.step)}/{EXPORT}", folder / EXPORT)
        if sums is not None and (problem := damage(folder, sums, only=f"{EXPORT}/")) is not None:
            raise DamagedCopy(f"{remote.shown}/{place_of(state.step)} is damaged: {problem}")
        return sums

    checkpoints.save(state, write)


def place_of(step: int) -> str:
    """The place of a step's checkpoint."""
    return f"checkpoints/{step_name(step)}"


def _open(url: str) -> tuple[FileSystem, str]:
    """The file system of a URL, and the path in it."""
    _refuse_silent(url)
    try:
        return FileSystem.from_uri(url)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"run.remote={url}: cannot be opened ({error}). Name s3://, gs:// or file:///."
        ) from error
    except OSError as error:  # pyarrow asks S3 for the bucket's region
        raise ConfigError(f"run.remote={url}: cannot be opened ({error}). {ADVICE}.") from error


def _refuse_silent(url: str) -> None:
    """Refuse an S3 server of the user's own that does not answer: pyarrow would wait for it for ever."""
    parts = urlsplit(url)
    if parts.scheme != "s3":
        return
    query = parse_qs(parts.query)
    variables = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    found = {"endpoint_override": query.get("endpoint_override", [""])[0]}
    found |= {name: os.environ.get(name, "") for name in variables}
    for source, endpoint in found.items():
        if endpoint:
            scheme = query.get("scheme", ["https"])[0]
            reason = why_silent(endpoint if "://" in endpoint else f"{scheme}://{endpoint}")
            if reason is not None:
                raise ConfigError(
                    f"run.remote={url.partition('?')[0]}: nothing answers at {endpoint}, the address of "
                    f"{source} ({reason}). {ADVICE}."
                )
            return


def _copy(source: str, target: str, source_files: FileSystem, target_files: FileSystem) -> None:
    # One thread: pyarrow's upload to S3 in several threads can deadlock (apache/arrow issue 32372).
    copy_files(
        source,
        target,
        source_filesystem=source_files,
        destination_filesystem=target_files,
        chunk_size=COPY_CHUNK_BYTES,
        use_threads=False,
    )
