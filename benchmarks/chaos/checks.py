"""What must hold after a run that faults have struck, beside a run that nobody disturbed."""

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from mlflow import MlflowClient

from orchestrator.storage.dropped import DROPPED
from orchestrator.storage.journal import StepEvent, read_events

NOISE = 3.0
"""Standard errors of a difference of two accuracies that are within noise."""
LOSS = "loss/total"


@dataclass(frozen=True)
class Found:
    """A finished run's records."""

    steps: list[int]
    sent: list[int]
    """Steps of the loss in MLflow."""
    problems: dict[int, list[str]]
    """Of each step, in their order."""
    responses: dict[int, str]
    """By step: a digest of all sampled tokens."""
    weights: str
    """A digest of the exported weights."""
    accuracy: float
    """On the held-out problems, after the last step."""
    held_out: int
    """Problems behind the accuracy."""
    dropped: list[str]
    seconds: float


def read(run: Path, tracking: str) -> Found:
    """The records of the run in this folder."""
    summary = json.loads((run / "summary.json").read_text())
    history = MlflowClient(tracking).get_metric_history(summary["mlflow_run_id"], LOSS)
    problems, responses = {}, {}
    for path in sorted((run / "rollouts").glob("step-*.parquet")):
        table = pq.read_table(path, columns=["group", "problem_id", "response_ids"])
        step = int(path.stem.removeprefix("step-"))
        problems[step] = table.column("problem_id").to_pylist()
        responses[step] = _digest(json.dumps(table.column("response_ids").to_pylist()).encode())
    dropped = run / DROPPED
    return Found(
        steps=[event.step for event in read_events(run) if isinstance(event, StepEvent)],
        sent=[point.step for point in history],
        problems=problems,
        responses=responses,
        weights=_digest((run / "export" / "model.safetensors").read_bytes()),
        accuracy=summary["trained"]["accuracy"],
        held_out=summary["problems"],
        dropped=dropped.read_text().splitlines() if dropped.exists() else [],
        seconds=summary["seconds"],
    )


def faults_of(found: Found, quiet: Found, steps: int) -> list[str]:
    """What does not hold; nothing if all is as it must be."""
    wrong = []
    expected = list(range(1, steps + 1))
    if found.steps != expected:
        wrong.append(f"steps in the journal: {_odd(found.steps, expected)}")
    if sorted(found.sent) != expected:
        wrong.append(f"steps in MLflow: {_odd(found.sent, expected)}")
    if other := [step for step in expected if found.problems.get(step) != quiet.problems.get(step)]:
        wrong.append(f"steps with other problems than the quiet run: {other}")
    if (step := first_other_step(found, quiet)) is not None:
        wrong.append(f"other samples than the quiet run from step {step} on")
    elif found.weights != quiet.weights:
        wrong.append("other weights than the quiet run")
    if found.dropped:
        wrong.append(f"{len(found.dropped)} innocent problems were dropped")
    if abs(found.accuracy - quiet.accuracy) > (most := noise(quiet.accuracy, quiet.held_out)):
        wrong.append(f"accuracy {found.accuracy:.3f}, quiet {quiet.accuracy:.3f}: more than {most:.3f} apart")
    return wrong


def noise(accuracy: float, problems: int) -> float:
    """How far two measured accuracies may lie apart by chance, with problems as the units that vary."""
    return NOISE * math.sqrt(2 * accuracy * (1 - accuracy) / problems)


def first_other_step(found: Found, quiet: Found) -> int | None:
    """The first step whose samples differ from the quiet run's; None if all are equal."""
    return next(
        (step for step in sorted(quiet.responses) if found.responses.get(step) != quiet.responses[step]), None
    )


def _odd(steps: list[int], expected: list[int]) -> str:
    count = Counter(steps)
    twice = [step for step, times in count.items() if times > 1]
    return f"missing {sorted(set(expected) - set(steps))}, more than once {sorted(twice)}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
