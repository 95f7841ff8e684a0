"""A short `make chaos`: a real cluster and run, with a fault of another kind every few seconds."""

import json
from pathlib import Path

from benchmarks.chaos.__main__ import main

KINDS = ("engine-stop", "child-stop", "mlflow-kill", "rank-kill")
SETTINGS = (
    *("rollout.prompts_per_step=4", "rollout.samples_per_prompt=4", "rollout.max_response_tokens=40"),
    *("evaluation.max_problems=10", "evaluation.samples_per_problem=1", "loss.c_ref=-20"),
    "learning.num_ranks=1",
)


def test_a_run_under_faults_loses_nothing(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = ["--faults", str(len(KINDS)), "--every", "5", "--steps", "40", "--json", str(results)]
    status = main([*command, "--kinds", *KINDS, "--set", *SETTINGS, "--folder", str(tmp_path / "runs")])
    (result,) = json.loads(results.read_text())
    assert result["wrong"] == []
    assert status == 0
    assert {one["kind"] for one in result["struck"]} == set(KINDS)
    assert all(one["recovered_s"] is not None for one in result["struck"][:-1])
