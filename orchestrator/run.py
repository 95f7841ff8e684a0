"""A training run from its configuration to its summary: prepare, claim its folder, start or resume, train, clean up."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import RayError

from actors.verification import load_verifier
from orchestrator.checkpoints import Checkpoints, TrainingState
from orchestrator.cluster import bundles_for, connect, local_nodes
from orchestrator.config import RunConfig, changed_settings, dump_config
from orchestrator.errors import ConfigError, RunError
from orchestrator.preparation import prepare
from orchestrator.progress import RunProgress

MAY_CHANGE = ("run.steps", "run.eval_every", "run.save_every", "run.save_rollouts_every", "run.keep_checkpoints", "run.dir", "rollout.cpus",
              "rollout.num_engines", "learning.cpus_per_rank", "verification.", "evaluation.", "tracking.")  # fmt: skip
"""Settings that a resumed run may have changed: none of them changes what has been learnt so far."""


LOGS = "/tmp/ray/session_latest/logs"


@dataclass(frozen=True)
class Outcome:
    """What `train` did: the summary, and whether the run had been finished before."""

    summary: dict[str, Any]
    already_finished: bool


def train(config: RunConfig, progress: RunProgress | None = None) -> Outcome:
    """Train, or go on training, the run that `config` names.

    Raises:
        ConfigError, DataError: Before anything is started.
        RunError: The run had started and cannot go on; the same call continues from its last checkpoint.
    """
    checkpoints = Checkpoints(config.folder, config.run.keep_checkpoints)
    newest = checkpoints.newest()
    _refuse_other_settings(config)
    if newest and (summary := _summary_of_finished(config, newest[1])):
        return Outcome(summary, already_finished=True)
    if newest and newest[1].num_ranks != config.learning.num_ranks:
        raise ConfigError(
            f"learning.num_ranks={config.learning.num_ranks}, but {newest[0]} was written by {newest[1].num_ranks} rank(s), and ZeRO-3 "
            "checkpoints load at that number only: use it, or start another run.name from this run's export/"
        )
    load_verifier(config.verification.verifier)
    prepared = prepare(config)
    if not os.environ.get("RAY_ADDRESS"):
        bundles_for(config, local_nodes())
    else:
        bundles_for(config, connect())

    # Seconds of imports that no refusal above has to wait for.
    from orchestrator.pools import Pools
    from orchestrator.tracking import Tracker
    from orchestrator.trainer import Trainer

    config.folder.mkdir(parents=True, exist_ok=True)
    (config.folder / "config.yaml").write_text(dump_config(config))
    tracker = Tracker(config, newest[1].mlflow_run_id if newest else None)
    progress = progress or RunProgress(config.run.name, config.run.steps, newest[1].step if newest else 0)
    if prepared.train.dropped:
        progress.say(f"{prepared.train.dropped} training problems are longer than rollout.max_prompt_tokens and were left out")
    pools: Pools | None = None
    complete = False
    try:
        with progress:
            progress.say("starting the pools: rollout (vLLM), verification (math-verify), learning (DeepSpeed ZeRO-3)")
            pools = Pools(config, prepared.tokens, connect())
            trainer = Trainer(config, prepared, pools, tracker, progress)
            if newest:
                trainer.restore(*newest)
                progress.say(f"continuing from {newest[0]}")
            summary = trainer.run()
            complete = True
    except ConfigError as error:
        raise RunError(str(error)) from error
    except RayError as error:
        raise RunError(
            f"{str(error).strip()}\nAn actor failed after step {_last_step(checkpoints)} was saved. Its log is in {LOGS}; the same "
            "command continues from the last checkpoint."
        ) from error
    finally:
        if not complete:
            tracker.finish(failed=True)
        if pools is not None:
            pools.stop()
    return Outcome(summary, already_finished=False)


def _last_step(checkpoints: Checkpoints) -> int:
    newest = checkpoints.newest()
    return newest[1].step if newest else 0


def _summary_of_finished(config: RunConfig, state: TrainingState) -> dict[str, Any] | None:
    path = config.folder / "summary.json"
    if state.step < config.run.steps or not path.exists():
        return None
    summary = json.loads(path.read_text())
    return summary if summary["steps"] >= config.run.steps else None


def _refuse_other_settings(config: RunConfig) -> None:
    """A run's folder belongs to one set of settings: others would train something that no configuration describes."""
    path: Path = config.folder / "config.yaml"
    if not path.exists() or not any((config.folder / kept).exists() for kept in ("checkpoints", "export")):
        return
    changed = [f"{key}: {change}" for key, change in changed_settings(path, config).items() if not key.startswith(MAY_CHANGE)]
    if changed:
        raise ConfigError(
            f"{config.folder} holds a run with other settings:\n  " + "\n  ".join(changed) + "\n"
            "Choose another run.name, restore these settings, or delete the folder."
        )
