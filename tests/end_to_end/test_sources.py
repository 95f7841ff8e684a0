"""Training on two weighted sources with verifiers and instructions of their own, killed and resumed."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from orchestrator.config.training import load_config
from orchestrator.storage.journal import EvaluationEvent, StepEvent, read_events
from orchestrator.training.preparation import prepare
from orchestrator.training.step_problems import StepProblems

STEPS, PROMPTS = 4, 4

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def recipe(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    rows = [json.loads(line) for line in (task / "train.jsonl").read_text().splitlines()]
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "gold", "level"])
        writer.writeheader()
        for row in rows[:40]:
            writer.writerow({"question": row["problem"], "gold": f"it is #{row['answer']}", "level": "easy"})
    graded = {"name": "weighted", "parts": {
        "right": {"verifier": "number", "weight": 3},
        "form": {"verifier": {"name": "pattern", "pattern": r"\\boxed\{\d+\}"}},
    }}  # fmt: skip
    table = {
        "path": str(folder / "table.csv"), "problem_template": "{{ question }}", "answer_field": "gold",
        "answer_pattern": r"#(\d+)", "verifier": graded, "instruction": "=",
    }  # fmt: skip
    lines = {"path": str(task / "train.jsonl"), "name": "lines", "weight": 3}
    tree = {
        "run": {"name": "two", "dir": str(folder), "steps": STEPS, "save_every": 1, "save_rollouts_every": 1},
        "model": {"path": "experiments/quickstart/base"},
        "data": {
            "train": [lines, table],
            "eval": [
                {"path": str(task / "test.jsonl"), "max_problems": 8},
                {**table, "name": "held", "max_problems": 4},
            ],
            "instruction": "",
        },
        "rollout": {
            "samples_per_prompt": 4, "prompts_per_step": PROMPTS, "max_prompt_tokens": 80,
            "max_response_tokens": 40, "cpus": 0.5, "engine_args": {"enforce_eager": True},
        },
        "verification": {"cpus": 0.25},
        "learning": {"cpus_per_rank": 0.25, "lr": 1e-3, "tokens_per_micro_batch": 1024},
        "loss": {"alpha": 1.0, "reasoning_warmup_steps": 1, "self_reward_warmup_steps": 1},
        "self_reward": {"token": "<|self_reward|>", "calibration_samples": 40},
        "evaluation": {"samples_per_problem": 2},
    }  # fmt: skip
    path = folder / "two.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_it_resumes_at_the_same_problem_and_reports_by_source(laser, recipe: Path) -> None:
    folder = recipe.parent / "two"
    with laser.started("train", str(recipe)) as process:
        laser.wait_for(folder / "checkpoints" / "step-000002", process)
        laser.kill_all(process)
    assert not (folder / "summary.json").exists()
    done = laser.run("train", str(recipe))
    assert done.returncode == 0, done.stdout + done.stderr

    config = load_config(recipe)
    problems = StepProblems(prepare(config).train, config)
    sources: list[str] = []
    for step in range(1, STEPS + 1):
        table = pq.read_table(folder / "rollouts" / f"step-{step:06d}.parquet")
        expected = [group.problem for group in problems.draw(step)]
        assert list(dict.fromkeys(table["problem_id"].to_pylist())) == [each.id for each in expected]
        sources += [each.source for each in expected]
        for row in table.to_pylist():
            if row["source"] == "table":
                assert json.loads(row["fields"])["level"] == "easy"
                assert row["status"] in ("timeout", "error") or row["reward"] in (0.0, 0.25, 0.75, 1.0)
                assert row["parts"] is None or json.loads(row["parts"]).keys() == {"right", "form"}
            else:
                assert row["reward"] in (0.0, 1.0)
    assert (sources.count("lines"), sources.count("table")) == (
        3 * STEPS * PROMPTS // 4,
        STEPS * PROMPTS // 4,
    )

    events = list(read_events(folder))
    evaluated = [(event.set, event.step) for event in events if isinstance(event, EvaluationEvent)]
    assert evaluated == [(name, step) for step in (0, STEPS) for name in ("test", "held", "average")]
    steps = [event.values for event in events if isinstance(event, StepEvent)]
    assert all(values["source/lines/share"] == 0.75 for values in steps)
    assert all("source/table/accuracy" in values and "data/skipped" in values for values in steps)
    assert pq.read_table(folder / "evaluations" / f"held-{STEPS:06d}.parquet").num_rows == 8
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["problems"] == 12
    card = json.loads((folder / "export" / "self_reward.json").read_text())
    assert (card["instruction"], card["system"], card["answer_after"]) == ("", "", "")
