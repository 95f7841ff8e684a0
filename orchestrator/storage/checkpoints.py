"""Checkpoints: complete, atomic and pruned. A folder with its final name is complete.

`checkpoints/step-000100/` holds the learner's shards, `state.json` (step, problem order, c_ref, MLflow run)
and `export/`, the weights as a Hugging Face folder with `self_reward.json`. `export` beside `checkpoints`
links to the newest `export/`.
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

    def text(self) -> str:
        """The content of `state.json`, where null stands for NaN.

        Two attempts at a step differ in `seconds`.
        """
        tree = asdict(self)
        if self.base is not None:
            tree["base"] = {
                name: value if math.isfinite(value) else None for name, value in self.base.items()
            }
        return json.dumps(tree, indent=2, allow_nan=False) + "\n"

    @staticmethod
    def parse(text: str | bytes) -> "TrainingState":
        """The state in the content of a `state.json`. Earlier versions wrote NaN.

        Raises:
            ValueError, TypeError: The content is no state.
        """
        state = TrainingState(**json.loads(text))
        if state.base is None:
            return state
        return replace(
            state, base={name: math.nan if value is None else value for name, value in state.base.items()}
        )


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
        keep: How many checkpoints remain after a save.
    """

    def __init__(self, run_folder: Path, keep: int) -> None:
        self.run_folder = run_folder
        self.keep = keep
        self.folder = run_folder / "checkpoints"

    def newest(self) -> tuple[Path, TrainingState] | None:
        """The folder and state of the newest complete checkpoint; None if there is none.

        Raises:
            ConfigError: Its state cannot be read.
        """
        complete = self._complete()
        if not complete:
            return None
        path = complete[-1] / STATE
        try:
            return complete[-1], TrainingState.parse(path.read_text())
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{path}: is not a state this version can read ({error}); delete {complete[-1]} to resume "
                f"from the checkpoint before it, or rename {self.run_folder} to start a new run"
            ) from error

    def save(
        self,
        state: TrainingState,
        write: Callable[[Path], None],
        upload: Callable[[Path], None] | None = None,
    ) -> Path:
        """Write a checkpoint and delete older ones. It gets its final name only when it is complete.

        Args:
            write: Called with the folder; adds the learner's shards and `export/`.
            upload: Called with the folder; copies it elsewhere before it is complete here, so that each
                checkpoint that counts here counts there.

        Returns:
            The checkpoint's folder.

        Raises:
            RunError: It could not be uploaded. It still counts here if all ranks wrote to this folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".partial-{state.step:06d}"
        final = self.folder / step_name(state.step)
        for leftover in self.folder.glob(".partial-*"):
            shutil.rmtree(leftover)
        partial.mkdir()
        write(partial)
        (partial / STATE).write_text(state.text())
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
        """Make `export` link to the newest checkpoint's.

        A crash right after a save may have left an older link.
        """
        with atomically(self.run_folder / "export") as link:
            link.symlink_to(os.path.relpath(self._complete()[-1] / "export", self.run_folder))

    def _complete_partial(self, partial: Path, final: Path) -> None:
        """Give a checkpoint its final name, and delete the older ones that no process uses."""
        if final.exists():
            shutil.rmtree(self._retire(final))
        partial.rename(final)
        self.link_export()
        for old in self._complete()[: -self.keep]:
            # A service or an evaluation reads its weights again whenever an engine restarts, so it holds a
            # lease on them. It makes no copy, because a copy would stay behind when the process is killed.
            # The next save tries again.
            doomed = None
            with lease_free(old / "export" / LEASED) as free:
                if free:
                    doomed = self._retire(old)
            # After the lock's file is closed: NFS cannot remove the folder of an open file.
            if doomed is not None:
                shutil.rmtree(doomed)

    def _complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        steps = {path: _NAME.fullmatch(path.name) for path in self.folder.glob("step-*")}
        return sorted(
            (path for path, name in steps.items() if name),
            key=lambda path: int(path.name.removeprefix("step-")),
        )

    def _retire(self, checkpoint: Path) -> Path:
        """Rename a checkpoint to be deleted, so that a crash leaves no incomplete folder that counts."""
        doomed = self.folder / f".partial-old-{checkpoint.name}"
        checkpoint.rename(doomed)
        return doomed
