"""The samples of a run's evaluations, for the report.

In: `evaluations/SET-STEP.parquet` in the run's folder. Out: `Scores`, and texts on demand.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int

from dashboards.report.load import Run
from orchestrator.config.paths import SET_NAME_BYTES, short_name
from orchestrator.errors import ConfigError
from orchestrator.messages.verdicts import UNJUDGED


@dataclass(frozen=True)
class Scores:
    """The samples of one evaluation without their texts; `score` is NaN where there is none."""

    path: Path
    set_name: str
    step: int
    status: list[str]
    score: Float[np.ndarray, "samples"]
    finished: Bool[np.ndarray, "samples"]

    @property
    def correct(self) -> Bool[np.ndarray, "samples"]:
        return np.array([status == "correct" for status in self.status], bool)

    @property
    def verified(self) -> Bool[np.ndarray, "samples"]:
        return np.array([status not in UNJUDGED for status in self.status], bool)

    @property
    def usable(self) -> Bool[np.ndarray, "samples"]:
        """Samples with both a score and a verdict."""
        return self.verified & self.finished & ~np.isnan(self.score)

    def solutions(self, rows: Int[np.ndarray, "chosen"]) -> list[dict[str, Any]]:
        """Problem, reference, response, answer, length in tokens, and the verdict's explanation of some rows.

        Files of earlier versions hold no explanation.
        """
        columns = ["problem", "reference", "response", "answer", "tokens", "detail"]
        known = set(pq.read_schema(self.path).names)
        table = pq.read_table(self.path, columns=[name for name in columns if name in known])
        return [{"detail": "", **row} for row in table.take(rows).to_pylist()]


def newest_scores(run: Run) -> Scores | None:
    """The newest evaluation on the run's set that has scores, else the newest one; None without any samples.

    Raises:
        ConfigError: A file cannot be read.
    """
    if run.folder is None:
        return None
    paths = (run.folder / "evaluations").glob("*.parquet")
    files = sorted((found for path in paths if (found := _set_and_step(path))), reverse=True)
    newest: Scores | None = None
    for step, set_name, path in files:
        if run.set_name is not None and short_name(run.set_name, SET_NAME_BYTES) != set_name:
            continue
        scores = _read_scores(path, set_name, step)
        if scores.usable.any():
            return scores
        newest = newest or scores
    return newest


def _set_and_step(path: Path) -> tuple[int, str, Path] | None:
    found = re.fullmatch(r"(.+)-(\d{6,})", path.stem)
    return (int(found[2]), found[1], path) if found else None


def _read_scores(path: Path, set_name: str, step: int) -> Scores:
    try:
        table = pq.read_table(path, columns=["status", "score", "finished"])
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot be read as an evaluation's samples ({error}). Delete it to leave it out."
        ) from error
    # A null score and NaN mean the same: there is none.
    score = table["score"].to_numpy(zero_copy_only=False).astype(np.float64)
    finished = table["finished"].to_numpy(zero_copy_only=False).astype(bool)
    return Scores(path, set_name, step, table["status"].to_pylist(), score, finished)
