"""lm-eval's `local-chat-completions`: one task of the quick-start's test problems, end to end."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import report, require, service

SERVICE = service()
FOLDER = Path(__file__).parent
PROBLEMS = 16


def evaluated(*options: str) -> str:
    """Run the task in a process of its own; returns its figure."""
    with tempfile.TemporaryDirectory() as scratch:
        problems = (FOLDER.parents[1] / "experiments/quickstart/test.jsonl").read_text().splitlines()
        Path(scratch, "problems.jsonl").write_text("\n".join(problems[:PROBLEMS]))
        task = (FOLDER / "task/sums.yaml").read_text().replace("PROBLEMS", f"{scratch}/problems.jsonl")
        Path(scratch, "sums.yaml").write_text(task)
        where = f"model={SERVICE.model},base_url={SERVICE.url}/chat/completions,num_concurrent=4"
        command = [sys.executable, "-m", "lm_eval", "--model", "local-chat-completions", "--tasks", "sums"]
        command += ["--model_args", where, "--include_path", scratch, "--output_path", f"{scratch}/out"]
        command += ["--log_samples", *options]
        environment = os.environ | {"OPENAI_API_KEY": SERVICE.key, "HF_HUB_OFFLINE": "1", "HF_HOME": scratch}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        require(done.returncode == 0, done.stderr.strip()[-280:])
        (samples,) = Path(scratch).rglob("samples_*.jsonl")
        answers = [json.loads(line)["resps"][0][0] for line in samples.read_text().splitlines()]
        require(len(answers) == PROBLEMS and all(answers), f"{len(answers)} answers, some of them empty")
        (results,) = Path(scratch).rglob("results_*.json")
        figures = json.loads(results.read_text())["results"]["sums"]
        return f"exact match {figures['exact_match,boxed']:.2f} of {PROBLEMS} problems"


report(
    "lm_eval",
    {
        "task": lambda: evaluated("--apply_chat_template"),
        "task with examples as turns": lambda: evaluated(
            "--apply_chat_template", "--fewshot_as_multiturn", "true", "--num_fewshot", "2"
        ),
    },
)
