"""Checkpoints: complete, atomic, compared with their checksums before use, and pruned.

`checkpoints/step-000100/` holds the learner's shards, `state.json` (step, problem order, c_ref, MLflow run,
checksums of all files) and `export/`, the weights as a Hugging Face folder with `self_reward.json`. `export`
beside `checkpoints` links to the newest `export/`. A folder with its final name was complete; it is whole
while its files are those that were written.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError, RunError
from orchestrator.storage.card import SELF_REWARD
from orchestrator.storage.checksums import (
    CHECKSUMS,
    EXPORT,
    STATE,
    Checksums,
    NoChecksums,
    damage,
    files_of,
    sealed,
    sum_files,
    trust,
    unsealed,
)
from orchestrator.storage.files import atomically, flush_to_disk, lease_free

DRIVERS_FILES = (SELF_REWARD, CHECKSUMS)
"""Files of an export that the driver writes; rank 0 writes the others."""
LEASED = "config.json"
"""The file of a model's folder on which processes hold a lease of the whole folder."""
_NAME = re.compile(r"step-\d+")


@dataclass(frozen=True)
class TrainingState:
    """What the driver needs to resume. The learner's own state is in files beside it."""

    step: int
    num_ranks: int
    prompt_order: dict[str, Any]
    c_ref: float | None
    mlflow_run_id: str | None
    """None until MLflow has created the run."""
    seconds: float
    """Training time of all sessions together."""
    base: dict[str, float] | None
    """Evaluation of the initial model; NaN for an undefined figure."""
    sources: dict[str, Any] | None = None
    """Fingerprints of the data and the model (data/fingerprints.py); None from an earlier version."""
    skipped_in_a_row: int = 0
    """The newest steps whose updates were skipped, because a number was not finite."""

    def tree(self) -> dict[str, Any]:
        """The state for JSON, where null stands for NaN. Two attempts at a step differ in `seconds`."""
        tree = asdict(self)
        if self.base is not None:
            tree["base"] = {
                name: value if math.isfinite(value) else None for name, value in self.base.items()
            }
        return tree

    def text(self, sums: Checksums) -> str:
        """The content of `state.json` beside files with these checksums."""
        return sealed(self.tree(), sums)

    def is_same(self, other: "TrainingState") -> bool:
        """Whether both are of the same attempt at the same step; NaN equals NaN here."""
        return self.tree() == other.tree()

    @staticmethod
    def parse(text: str | bytes) -> "TrainingState":
        """The state in the content of a `state.json`. Earlier versions wrote NaN, and no checksums.

        Raises:
            ValueError, TypeError: The content is no state, or is not what was written.
        """
        return parse_state(text)[0]


def parse_state(text: str | bytes) -> tuple[TrainingState, Checksums | None]:
    """The state in the content of a `state.json`, and the checksums; None where an earlier version wrote it.

    Raises:
        ValueError, TypeError: The content is no state, or is not what was written.
    """
    sums = None
    try:
        tree, sums = unsealed(text)
    except NoChecksums:
        tree = json.loads(text)
    state = TrainingState(**tree)
    if not isinstance(state.step, int) or not isinstance(state.prompt_order, dict):
        raise TypeError("it holds no step and no order")
    if not isinstance(state.base, dict | None):
        raise TypeError("its figures are not an object")
    if state.base is None:
        return state, sums
    base = {name: math.nan if value is None else value for name, value in state.base.items()}
    return replace(state, base=base), sums


def step_name(step: int) -> str:
    """The name of a checkpoint's folder."""
    return f"step-{step:06d}"


def random_state(rank: int) -> str:
    """The name of a learner rank's file with its random state, the last one that it writes."""
    return f"random_state_{rank}.pt"


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run_folder: The run's folder.
        keep: How many whole checkpoints remain after a save; more until one of them is of a step with an
            update.
        elsewhere: The learner's shards may lie elsewhere, on other nodes or at `run.remote`.

    Attributes:
        damaged: What is wrong with each damaged checkpoint that was found, in words.
        notes: What `take_notes` returns besides the damage in this folder.
    """

    def __init__(self, run_folder: Path, keep: int, elsewhere: bool = False) -> None:
        self.run_folder = run_folder
        self.keep = keep
        self.elsewhere = elsewhere
        self.folder = run_folder / "checkpoints"
        self.damaged: dict[Path, str] = {}
        self.notes: list[str] = []
        self._condemned: dict[Path, str] = {}

    def newest(self) -> tuple[Path, TrainingState] | None:
        """The folder and state of the newest whole checkpoint; None if the run has no checkpoint.

        Raises:
            ConfigError: The run has checkpoints, and all are damaged.
        """
        complete = self._complete()
        for path in reversed(complete):
            if (state := self._whole_state(path)) is not None:
                return path, state
        if not complete:
            return None
        problems = "\n  ".join(f"{path}: {self.damaged[path]}" for path in reversed(complete))
        raise ConfigError(
            f"{self.folder}: no checkpoint is whole; nothing was changed or deleted.\n  {problems}\n"
            f"Restore one of these files, or rename {self.run_folder} to start a new run"
        )

    def newer_damage(self) -> list[str]:
        """What is wrong with each checkpoint that is newer than the newest whole one, in words."""
        newest = self.newest()
        return [
            f"{path} is damaged: {self.damaged[path]}"
            for path in self._complete()
            if path in self.damaged and (newest is None or _step_of(path) > newest[1].step)
        ]

    def take_notes(self) -> list[str]:
        """What the user must know of the checkpoints that are not used, once: a line for each."""
        notes, self.notes = [*self.notes, *self.newer_damage()], []
        if (newest := self.newest()) and self.checksums(newest[0]) is None:
            notes.append(f"{newest[0]} has no checksums, since an earlier version wrote it: not checked")
        return notes

    def condemn(self, checkpoint: Path, problem: str) -> None:
        """Count a checkpoint as damaged from now on: a rank found that its files are not those written."""
        self._condemned[checkpoint] = problem

    def checksums(self, checkpoint: Path) -> Checksums | None:
        """The checksums of a whole checkpoint; None where an earlier version wrote it."""
        return parse_state((checkpoint / STATE).read_bytes())[1]

    def save(
        self,
        state: TrainingState,
        write: Callable[[Path], Checksums | None],
        upload: Callable[[Path], None] | None = None,
    ) -> Path:
        """Write a checkpoint and delete older ones. It gets its final name only when it is on the disk.

        Args:
            write: Called with the folder; adds the learner's shards and `export/`. Returns the checksums of
                the files that others wrote and flushed to the disk.
            upload: Called with the folder; copies it elsewhere before it is complete here, so that each
                checkpoint that counts here counts there.

        Returns:
            The checkpoint's folder.

        Raises:
            RunError: It could not be uploaded. It still counts here if all ranks wrote to this folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for parent in (self.run_folder, self.run_folder.parent):
            flush_to_disk(parent)
        partial = self.folder / f".partial-{state.step:06d}"
        final = self.folder / step_name(state.step)
        for leftover in self.folder.glob(".partial-*"):
            shutil.rmtree(leftover)
        partial.mkdir()
        sums = write(partial) or {}
        mine = [path for path in files_of(partial) if path not in sums]
        sums = sums | sum_files(partial, mine, flush=True)
        (partial / STATE).write_text(state.text(sums))
        sum_files(partial, [STATE], flush=True)
        for folder in [partial, *(path for path in partial.rglob("*") if path.is_dir())]:
            flush_to_disk(folder)
        if upload is not None:
            try:
                upload(partial)
            except RunError as error:
                shards = [partial / "learner" / random_state(rank) for rank in range(state.num_ranks)]
                if not all(shard.exists() for shard in shards):
                    raise RunError(
                        f"{error} The same command resumes from the checkpoint before it."
                    ) from error
                self._complete_partial(partial, final)
                raise RunError(
                    f"{error} {final} is complete and stays: the same command resumes from it."
                ) from error
        self._complete_partial(partial, final)
        return final

    def link_export(self) -> None:
        """Make `export` link to the newest whole checkpoint's.

        A crash right after a save may have left an older link.
        """
        newest = self.newest()
        assert newest is not None
        with atomically(self.run_folder / "export") as link:
            link.symlink_to(os.path.relpath(newest[0] / EXPORT, self.run_folder))

    def _complete_partial(self, partial: Path, final: Path) -> None:
        """Give a checkpoint its final name, and delete the older ones that no process uses."""
        replaced = self._retire(final) if final.exists() else None
        partial.rename(final)
        flush_to_disk(self.folder)
        if replaced is not None:
            shutil.rmtree(replaced)
        trust(final)
        self._condemned.pop(final, None)
        self.link_export()
        for old in self._surplus():
            # A service or an evaluation reads its weights again whenever an engine restarts, so it holds a
            # lease on them. It makes no copy, because a copy would stay behind when the process is killed.
            # The next save tries again.
            doomed = None
            with lease_free(old / EXPORT / LEASED) as free:
                if free:
                    doomed = self._retire(old)
            # After the lock's file is closed: NFS cannot remove the folder of an open file.
            if doomed is not None:
                shutil.rmtree(doomed)

    def _surplus(self) -> list[Path]:
        """The checkpoints that are older than the `keep` newest whole ones. A damaged one is not counted.

        The newest whole one whose step had an update, and so only finite numbers, is never among them.
        """
        left, has_update = self.keep, False
        complete = self._complete()
        for position in reversed(range(len(complete))):
            state = self._whole_state(complete[position])
            if state is not None:
                left, has_update = left - 1, has_update or not state.skipped_in_a_row
            if left <= 0 and has_update:
                return complete[:position]
        return []

    def _whole_state(self, checkpoint: Path) -> TrainingState | None:
        """The state of a checkpoint; None if the checkpoint is damaged, and then `damaged` says why."""
        self.damaged.pop(checkpoint, None)
        problem: str | None
        try:
            state, sums = parse_state((checkpoint / STATE).read_bytes())
        except FileNotFoundError:
            problem = f"{STATE} is missing"
        except (OSError, ValueError, TypeError) as error:
            problem = f"{STATE} is not a state this version can read ({error})"
        else:
            problem = self._condemned.get(checkpoint)
            if problem is None and sums is not None:
                problem = damage(checkpoint, sums, may_lack=self._may_lack)
            if problem is None:
                return state
        self.damaged[checkpoint] = problem
        return None

    def _may_lack(self, path: str) -> bool:
        return self.elsewhere and path not in (f"{EXPORT}/{name}" for name in DRIVERS_FILES)

    def _complete(self) -> list[Path]:
        """The checkpoints that have their final names, oldest first."""
        steps = {path: _NAME.fullmatch(path.name) for path in self.folder.glob("step-*")}
        return sorted((path for path, name in steps.items() if name), key=_step_of)

    def _retire(self, checkpoint: Path) -> Path:
        """Rename a checkpoint to be deleted, so that a crash leaves no incomplete folder that counts."""
        doomed = self.folder / f".partial-old-{checkpoint.name}"
        checkpoint.rename(doomed)
        return doomed


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))
