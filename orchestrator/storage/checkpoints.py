"""Checkpoints: complete, atomic and pruned. A folder that carries its final name is whole.

`checkpoints/step-000100/` holds the learner's shards, `state.json` (step, problem order, c_ref, MLflow run) and `export/`, the
weights as a Hugging Face folder with its `self_reward.json`. `export` beside `checkpoints` links to the newest one.
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
from orchestrator.storage.files import atomically, lease_free

STATE = "state.json"
LEASED = "config.json"
"""The file of a model's folder that stands for all of it in a lease."""
_NAME = re.compile(r"step-\d+")


@dataclass(frozen=True)
class TrainingState:
    """What the driver needs to go on; the learner's own state lies beside it."""

    step: int
    num_ranks: int
    prompt_order: dict[str, Any]
    c_ref: float | None
    mlflow_run_id: str | None
    """None while MLflow has not been reached."""
    seconds: float
    """Training time so far, all sessions together."""
    base: dict[str, float] | None
    """Evaluation of the initial model; NaN for a figure that has no value."""

    def text(self) -> str:
        """`state.json`, in which NaN is null. No two attempts at a step have the same text: they took other times."""
        tree = asdict(self)
        if self.base is not None:
            tree["base"] = {
                name: value if math.isfinite(value) else None for name, value in self.base.items()
            }
        return json.dumps(tree, indent=2, allow_nan=False) + "\n"

    @staticmethod
    def parse(text: str | bytes) -> "TrainingState":
        """The state of a `state.json`; earlier versions wrote NaN itself. Raises ValueError or TypeError when it is none."""
        state = TrainingState(**json.loads(text))
        if state.base is None:
            return state
        return replace(
            state, base={name: math.nan if value is None else value for name, value in state.base.items()}
        )


def step_name(step: int) -> str:
    """A checkpoint's folder."""
    return f"step-{step:06d}"


def random_state(rank: int) -> str:
    """The file of a learner rank's random state, the last one that it writes."""
    return f"random_state_{rank}.pt"


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, run_folder: Path, keep: int) -> None:
        self.run_folder, self.keep = run_folder, keep
        self.folder = run_folder / "checkpoints"

    def newest(self) -> tuple[Path, TrainingState] | None:
        """The newest complete checkpoint, or None."""
        complete = self._complete()
        if not complete:
            return None
        path = complete[-1] / STATE
        try:
            return complete[-1], TrainingState.parse(path.read_text())
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{path}: is not a state this version can read ({error}); delete {complete[-1]} to go on from the checkpoint before it, "
                f"or move {self.run_folder} away to start anew"
            ) from error

    def save(
        self,
        state: TrainingState,
        write: Callable[[Path], None],
        upload: Callable[[Path], None] | None = None,
    ) -> Path:
        """Write a checkpoint: `write(folder)` adds the learner's shards and `export/`. It takes its name only when complete.

        `upload(folder)` takes it elsewhere before that, so that what counts here counts there.

        Raises:
            RunError: It could not be uploaded. It counts here all the same, if all ranks write to this folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        partial, final = self.folder / f".partial-{state.step:06d}", self.folder / step_name(state.step)
        for leftover in self.folder.glob(".partial-*"):
            shutil.rmtree(leftover)
        partial.mkdir()
        write(partial)
        (partial / STATE).write_text(state.text())
        if upload is not None:
            try:
                upload(partial)
            except RunError as error:
                if not all(
                    (partial / "learner" / random_state(rank)).exists() for rank in range(state.num_ranks)
                ):
                    raise RunError(
                        f"{error} The same command continues from the checkpoint before."
                    ) from error
                self._complete_partial(partial, final)
                raise RunError(
                    f"{error} {final} is complete and stays: the same command continues from it."
                ) from error
        self._complete_partial(partial, final)
        return final

    def _complete_partial(self, partial: Path, final: Path) -> None:
        if final.exists():
            self._delete(final)
        partial.rename(final)
        self.link_export()
        for old in self._complete()[: -self.keep]:
            # A service or an evaluation that uses these weights reads them again whenever an engine restarts. It leases
            # them, where a copy of its own would outlive it when it is killed. The next save looks again.
            with lease_free(old / "export" / LEASED) as free:
                if free:
                    self._delete(old)

    def link_export(self) -> None:
        """Let `export` lead to the newest checkpoint's, which a crash right after it was completed may have prevented."""
        with atomically(self.run_folder / "export") as link:
            link.symlink_to(os.path.relpath(self._complete()[-1] / "export", self.run_folder))

    def _complete(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        steps = {path: _NAME.fullmatch(path.name) for path in self.folder.glob("step-*")}
        return sorted(
            (path for path, name in steps.items() if name),
            key=lambda path: int(path.name.removeprefix("step-")),
        )

    def _delete(self, checkpoint: Path) -> None:
        """Take a checkpoint's name from it first, so that a crash in between leaves no half one under a final name."""
        doomed = self.folder / f".partial-old-{checkpoint.name}"
        checkpoint.rename(doomed)
        shutil.rmtree(doomed)
