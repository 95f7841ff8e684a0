"""An evaluation from its settings to its results: draw and check what is missing, pool answers, report.

In: `EvalConfig`. Out: `EvalResults`, and in the folder `samples.jsonl`, `results.json` and a figure; in MLflow one run. The same call goes
on with what a killed one has drawn.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.exceptions import RayError

from actors.verification import load_verifier
from orchestrator.cluster.bundles import bundles_without_learner
from orchestrator.cluster.nodes import connect, planned_nodes
from orchestrator.config.evaluation import EvalConfig
from orchestrator.config.schema import dump_config, flat_settings, validate, with_overrides, with_settings
from orchestrator.config.training import load_config
from orchestrator.errors import ConfigError, RunError
from orchestrator.evaluation.drawing import draw, missing, pool_answers, verify
from orchestrator.evaluation.figures import EvalResults, average, set_results
from orchestrator.evaluation.preparation import Prepared, prepare
from orchestrator.evaluation.samples import Sample, SampleFile, claim_protocol
from orchestrator.evaluation.scores import rescore
from orchestrator.evaluation.show import EvalProgress, save_cost_figure
from orchestrator.pools.evaluation import EvalPools
from orchestrator.pools.failures import LOGS
from orchestrator.storage.files import claimed, write_atomically
from orchestrator.tracking.address import tracking_uri
from orchestrator.tracking.parent_run import ParentRun
from orchestrator.tracking.server import Server

RESULTS = "results.json"
FIGURE = "accuracy-against-tokens.png"
DELIVERED = ".mlflow-sent"
"""Hash of the results that MLflow has."""


def load_eval(config_file: Path | None, settings: dict[str, Any], overrides: Sequence[str]) -> EvalConfig:
    """The file's settings, or the defaults, under `settings` (those of options), under `overrides` (see `apply_overrides`).

    Raises:
        ConfigError: The file is missing, or a key or value is refused.
    """
    config = (
        validate({}, EvalConfig, "defaults")
        if config_file is None
        else load_config(config_file, (), EvalConfig)
    )
    config = with_settings(config, settings, "options")
    return with_overrides(config, overrides, "overrides")


def evaluate(config: EvalConfig, progress: EvalProgress | None = None) -> EvalResults:
    """Evaluate a model, or stored samples; goes on with what the folder holds of the same evaluation.

    Args:
        progress: Where it is shown; the terminal unless given.

    Raises:
        ConfigError, DataError: Before anything is started.
        RunError: It had started and cannot go on; the same call continues.
    """
    progress = progress or EvalProgress()
    uri = tracking_uri(config.tracking.uri, config.dir)
    Server(uri)  # refuses an address that is none, before hours of work
    load_verifier(config.verification.verifier)
    with contextlib.ExitStack() as hold:  # an engine that restarts reads the model again
        return _evaluate(prepare(config, uri, progress.say, hold), uri, progress)


def _evaluate(prepared: Prepared, uri: str, progress: EvalProgress) -> EvalResults:
    config = prepared.config
    rollout = config.rollout if prepared.sets or prepared.needs_scoring else None
    bundles_without_learner(rollout, config.verification, planned_nodes())
    prepared.folder.mkdir(parents=True, exist_ok=True)
    with claimed(prepared.folder, work="evaluating into it", key="folder (-o)"):
        claim_protocol(prepared.folder, prepared.protocol())
        write_atomically(prepared.folder / "config.yaml", dump_config(config))
        try:
            with progress:
                samples, undecided = _Session(prepared, progress).samples()
            results = _conclude(prepared, samples, undecided)
        except ConfigError as error:
            raise RunError(str(error)) from error
        except RayError as error:
            raise RunError(
                f"{str(error).strip()}\nAn actor failed. Its log is in {LOGS}; the same command goes on"
            ) from error
        except OSError as error:
            raise RunError(f"{error}. Mend that (is the disk full?); the same command goes on") from error
        _deliver(prepared, results, uri, progress)
    return results


class _Session:
    """The part of an evaluation that may need the pools."""

    def __init__(self, prepared: Prepared, progress: EvalProgress) -> None:
        self.prepared, self.config, self.progress = prepared, prepared.config, progress

    def samples(self) -> tuple[list[Sample], int]:
        """All samples with verdicts, classes of answers and scores, as the file holds them in the end, and the undecided comparisons."""
        file = SampleFile(self.prepared.folder)
        if self.prepared.stored:
            samples, undecided = self._again()
        else:
            left = missing(self.prepared.sets, file.samples)
            if not left and all(
                sample.answer_class is not None for sample in file.samples if sample.has_vote
            ):
                self.progress.say(f"{self.prepared.folder} holds all {len(file.samples)} samples")
                return file.samples, _undecided_before(self.prepared.folder)
            samples, undecided = self._drawn(file, left)
        file.replace(sorted(self._scored(samples), key=self.prepared.order()))
        return file.samples, undecided

    def _drawn(self, file: SampleFile, left: int) -> tuple[list[Sample], int]:
        """Samples of the model: those of the file, and what is left to be drawn."""
        if file.samples:
            self.progress.say(f"going on: {len(file.samples)} samples are there")
        pools = self._start(engines=left > 0)
        try:
            self.progress.start("sampling", len(file.samples) + left, len(file.samples))
            config = self.config
            draw(
                pools,
                self.prepared.sets,
                file,
                config.seed,
                config.temperature,
                self.prepared.score,
                self.progress.advance,
            )
            return pool_answers(pools, file.samples), pools.undecided
        finally:
            pools.stop()

    def _again(self) -> tuple[list[Sample], int]:
        """Stored samples, checked anew, and scored anew by the model if one is given."""
        prepared = self.prepared
        pools = self._start(engines=prepared.needs_scoring)
        try:
            self.progress.start("checking", len(prepared.stored))
            samples = verify(pools, prepared.stored, self.progress.advance)
            if prepared.needs_scoring and prepared.score is not None:
                self.progress.start("scoring", len(prepared.stored_token_ids))
                samples = rescore(
                    pools, samples, prepared.stored_token_ids, prepared.score, self.progress.advance
                )
            return pool_answers(pools, samples), pools.undecided
        finally:
            pools.stop()

    def _start(self, engines: bool) -> EvalPools:
        self.progress.say(
            "starting the pools: "
            + ("rollout (vLLM), verification (math-verify)" if engines else "verification (math-verify)")
        )
        settings = self.prepared.engine_settings() if engines else None
        rollout = self.config.rollout if engines else None
        bundles = bundles_without_learner(rollout, self.config.verification, connect())
        pools = EvalPools(self.config, settings, bundles)
        try:
            pools.wait_ready()
        except BaseException:
            pools.stop()
            raise
        return pools

    def _scored(self, samples: list[Sample]) -> list[Sample]:
        """With `c_ref` measured, where it is to be; scores stay as stored only where neither a model nor a score is named."""
        score = self.prepared.score
        if score is not None:
            score = score.measured(samples)
            return [replace(sample, score=score.of(sample.z_logprob)) for sample in samples]
        if self.prepared.model is None and self.config.score == "auto":
            return samples
        return [replace(sample, score=math.nan) for sample in samples]


def _conclude(prepared: Prepared, samples: list[Sample], undecided: int) -> EvalResults:
    score = prepared.score.measured(samples) if prepared.score is not None else None
    scored = any(not math.isnan(sample.score) for sample in samples)
    names = dict.fromkeys(sample.set for sample in samples)
    found = [
        set_results(name, [sample for sample in samples if sample.set == name], scored) for name in names
    ]
    results = EvalResults(
        folder=prepared.folder,
        model=prepared.model.origin
        if prepared.model is not None
        else f"samples of {prepared.config.samples}",
        score=vars(score) if score is not None and scored else None,
        sets=found,
        average=average(found),
        undecided=undecided,
    )
    write_atomically(prepared.folder / RESULTS, json.dumps(results.tree(), indent=2, allow_nan=False) + "\n")
    save_cost_figure(found, prepared.folder / FIGURE)
    return results


def _deliver(prepared: Prepared, results: EvalResults, uri: str, progress: EvalProgress) -> None:
    """To MLflow, once. All is on disk by now: a server that is away is told, and no error."""
    folder, config = prepared.folder, prepared.config
    digest = hashlib.sha256((folder / RESULTS).read_bytes()).hexdigest()
    sent = folder / DELIVERED
    if sent.exists() and sent.read_text() == digest:
        return
    tags = {"laser.kind": "evaluation", "laser.model": results.model, "laser.folder": str(folder.resolve())}
    settings = flat_settings(config)
    try:
        tracker = ParentRun(
            uri,
            config.tracking.experiment,
            folder.name,
            folder,
            settings,
            tags,
            progress.say,
            kind="evaluation",
        )
    except ConfigError as error:
        progress.say(f"warning: {error}. The results are in {folder}; the same command sends them")
        return
    values = {
        f"eval/{found.name}/{key}": value for found in results.sets for key, value in found.metrics().items()
    }
    if len(results.sets) > 1:
        values |= {f"eval/average/{key}": value for key, value in vars(results.average).items()}
    tracker.log(values)
    for name in (RESULTS, FIGURE):
        tracker.log_artifact(folder / name)
    tracker.finish()
    write_atomically(sent, digest)


def _undecided_before(folder: Path) -> int:
    """Undecided comparisons when the samples were pooled; only the results tell."""
    path = folder / RESULTS
    return json.loads(path.read_text())["undecided"] if path.exists() else 0
