"""Real clients against the real service, as a table.

    python -m benchmarks.clients [--only openai litellm] [--environments FOLDER]

It makes an environment for each client and installs it from PyPI, starts `laser serve` on the quick-start's
base model with a card, and runs each client's script in its environment. Status 1 when a check fails.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoTokenizer

from benchmarks.chaos.nodes import free_port
from orchestrator.storage.card import SelfRewardCard, template_hash

HERE = Path(__file__).parent
BASE = HERE.parents[1] / "experiments/quickstart/base"
KEY, MODEL = "sk-a-key", "tiny"
C_REF, BETA_V = -22.0, 0.1
START_S, INSTALL_S, CLIENT_S = 240, 900, 600


@dataclass
class Client:
    """A client: what pip installs, and the script that uses it."""

    name: str
    requirement: str
    script: str
    version: str = ""
    outcomes: list[dict] = field(default_factory=list)


def all_clients() -> list[Client]:
    return [
        Client("openai", "openai", "openai_dialogue.py"),
        Client("LangChain ChatOpenAI", "langchain-openai", "langchain_dialogue.py"),
        Client("LiteLLM", "litellm", "litellm_dialogue.py"),
        Client("lm-eval local-chat-completions", "lm-eval[api]", "lm_eval_task.py"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="clients whose name has one of these words")
    parser.add_argument("--environments", type=Path, default=Path("runs/clients"))
    options = parser.parse_args()
    wanted = [word.lower() for word in options.only or [""]]
    clients = [client for client in all_clients() if any(word in client.name.lower() for word in wanted)]
    with running_service() as url:
        for client in clients:
            try_client(client, options.environments, url)
    for line in table(clients):
        print(line)
    outcomes = [outcome for client in clients for outcome in client.outcomes]
    return 0 if outcomes and all(outcome["passed"] for outcome in outcomes) else 1


def try_client(client: Client, environments: Path, url: str) -> None:
    """Install a client and run its script; whatever fails becomes an outcome."""
    try:
        python = installed(client, environments)
        command = [python, HERE / client.script, "--url", url, "--key", KEY, "--model", MODEL]
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=CLIENT_S, env=own)
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        client.version = next((row["version"] for row in rows if "version" in row), "")
        client.outcomes = [row for row in rows if "check" in row]
        if done.returncode:
            client.outcomes.append(failure("script", done.stderr))
    except subprocess.CalledProcessError as error:
        client.outcomes = [failure("installation", error.stderr or str(error))]
    except subprocess.TimeoutExpired as error:
        client.outcomes.append(failure("script", f"not done after {error.timeout:g} s"))


def failure(check: str, text: str) -> dict:
    return {"check": check, "passed": False, "remark": text.strip().splitlines()[-1][:300]}


def installed(client: Client, environments: Path) -> Path:
    """The Python of a client's environment, which is made if it does not exist."""
    folder = environments.absolute() / client.requirement.partition("[")[0]
    python = folder / "bin/python"
    if not (folder / "installed").exists():
        run = {"check": True, "capture_output": True, "text": True, "timeout": INSTALL_S}
        subprocess.run([sys.executable, "-m", "venv", folder], **run)
        subprocess.run([python, "-m", "pip", "install", "-q", client.requirement], **run)
        (folder / "installed").touch()
    return python


@contextlib.contextmanager
def running_service() -> Iterator[str]:
    """`laser serve` on the base model with a card; yields its URL."""
    port = free_port()
    with tempfile.TemporaryDirectory() as scratch:
        export = Path(scratch, "export")
        shutil.copytree(BASE, export)
        tokenizer = AutoTokenizer.from_pretrained(export)
        z_token = tokenizer.get_vocab()["<|self_reward|>"]
        eos = [tokenizer.eos_token_id]
        SelfRewardCard("<|self_reward|>", z_token, C_REF, BETA_V, eos, "", template_hash(tokenizer)).write(
            export
        )
        command = [sys.executable, "-m", "orchestrator.cli", "serve", "--model", f"{MODEL}={export}"]
        command += ["--port", str(port), "engine.cpus=0.5", "engine.max_prompt_tokens=380"]
        command += ["engine.max_response_tokens=120", "engine.engine_args={enforce_eager: true}"]
        log = Path(scratch, "log")
        with log.open("w") as output:
            server = subprocess.Popen(
                command, env=os.environ | {"LASER_API_KEY": KEY}, stdout=output, stderr=output
            )
        try:
            wait_until_ready(server, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=120)


def wait_until_ready(server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while "ready: " not in log.read_text():
        if server.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"laser serve did not start:\n{log.read_text()}")
        time.sleep(0.2)


def table(clients: Sequence[Client]) -> list[str]:
    """The outcomes as a Markdown table."""
    lines = ["| client | version | check | outcome |", "|---|---|---|---|"]
    for client in clients:
        for outcome in client.outcomes:
            words = "passes" if outcome["passed"] else "**fails**"
            remark = " ".join(outcome["remark"].replace("|", "\\|").split())
            said = f"{words}: {remark}" if remark else words
            lines.append(f"| {client.name} | {client.version} | {outcome['check']} | {said} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
