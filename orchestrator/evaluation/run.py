"""An evaluation from its settings to its results: draw and check missing samples, pool answers, report.

In: `EvalConfig`. Out: `EvalResults`; in the folder `samples.jsonl`, `results.json` and a figure; in MLflow
one run. The same call resumes a killed evaluation.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.checking import refuse_unusable
from actors.verification import can_vote
from orchestrator.cluster.bundles import bundles_without_learner
from orchestrator.cluster.nodes import connect, planned_nodes
from orchestrator.config.evaluation import EvalConfig, default_folder, requested_sets
from orchestrator.config.schema import dump_config, public_settings, validate, with_overrides, with_settings
from orchestrator.config.training import load_config
from orchestrator.errors import ConfigError
from orchestrator.evaluation.drawing import ProblemPart, classify, draw, missing_parts, verify
from orchestrator.evaluation.figures import EvalResults, average, columns_of, set_results
from orchestrator.evaluation.preparation import PreparedEvaluation, prepare
from orchestrator.evaluation.samples import EvalSample, SampleFile, claim_protocol
from orchestrator.evaluation.scores import rescore
from orchestrator.evaluation.show import EvalProgress, save_cost_figure
from orchestrator.pools.evaluation import EvalPools
from orchestrator.pools.failures import translated_failures
from orchestrator.storage.files import claimed, read_record, write_atomically
from orchestrator.storage.folders import RESULTS, make_folder, refuse_unusable_folder
from orchestrator.storage.run_log import logged_to
from orchestrator.tracking.address import tracking_uri
from orchestrator.tracking.parent_run import ParentRun
from orchestrator.tracking.server import Server

COST_FIGURE = "accuracy-against-tokens.png"
DELIVERED = ".mlflow-sent"
"""File with the hash of the results that MLflow has."""


def load_eval(config_file: Path | None, settings: dict[str, Any], overrides: Sequence[str]) -> EvalConfig:
    """Settings of an evaluation. `overrides` replace `settings`, and both replace those of the file.

    Args:
        config_file: None for the defaults.
        settings: By key; the options of the command line.
        overrides: As `key.path=value` (see `apply_overrides`).

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
    """Evaluate a model, or stored samples. Samples of the same evaluation in the folder are kept.

    Args:
        progress: Where progress is shown; the terminal unless given.

    Raises:
        ConfigError: A setting is refused; nothing has started.
        DataError: Problems or stored samples cannot be read; nothing has started.
        RunError: The evaluation failed after its start; the same call resumes it.
        PoolError: Engines or verifiers died too often; the same call resumes the evaluation.
    """
    progress = progress or EvalProgress()
    folder = config.folder or default_folder(config, [request.name for request in requested_sets(config)])
    refuse_unusable_folder(folder, "folder (-o) or dir")
    uri = tracking_uri(config.tracking.uri, config.dir)
    Server(uri)  # refuses an unusable address before hours of work
    refuse_unusable(config.verifier_texts)
    with contextlib.ExitStack() as hold:  # an engine that restarts reads the model again
        return _evaluate(prepare(config, uri, progress.say, hold), uri, progress)


def _evaluate(prepared: PreparedEvaluation, uri: str, progress: EvalProgress) -> EvalResults:
    config = prepared.config
    rollout = config.rollout if prepared.sets or prepared.needs_scoring else None
    bundles_without_learner(
        rollout, config.verification, planned_nodes()
    )  # refuses what the nodes cannot hold
    make_folder(prepared.folder, "folder (-o) or dir")
    with (
        claimed(prepared.folder, work="evaluating into it", key="folder (-o)"),
        logged_to(prepared.folder),
    ):
        claim_protocol(prepared.folder, prepared.protocol())
        write_atomically(prepared.folder / "config.yaml", dump_config(config))
        with translated_failures("the same command resumes the evaluation"):
            with progress:
                samples, undecided = EvalSession(prepared, progress).samples()
            results = _conclude(prepared, samples, undecided)
        _deliver(prepared, results, uri, progress)
    return results


class EvalSession:
    """The part of an evaluation that may need pools."""

    def __init__(self, prepared: PreparedEvaluation, progress: EvalProgress) -> None:
        self.prepared = prepared
        self.config = prepared.config
        self.progress = progress

    def samples(self) -> tuple[list[EvalSample], int]:
        """All samples with verdicts, classes of answers and scores, and the number of undecided comparisons.

        At the end the folder's file holds the same samples, sorted.
        """
        prepared = self.prepared
        file = SampleFile(prepared.folder)
        if prepared.stored:
            samples, undecided = self._check_stored()
        else:
            parts = list(missing_parts(prepared.sets, file.samples, self.config.seed))
            classified = all(sample.answer_class is not None for sample in file.samples if sample.has_vote)
            if not parts and classified:
                self.progress.say(f"{prepared.folder} holds all {len(file.samples)} samples")
                return file.samples, _undecided_before(prepared.folder)
            samples, undecided = self._draw(file, parts)
        file.replace(sorted(self._with_scores(samples), key=prepared.order()))
        return file.samples, undecided

    def _draw(self, file: SampleFile, parts: Sequence[ProblemPart]) -> tuple[list[EvalSample], int]:
        """The samples of the file and the missing ones, drawn with the model."""
        if file.samples:
            self.progress.say(f"resuming: {len(file.samples)} samples are drawn")
        pools = self._start(engines=bool(parts))
        try:
            drawn, left = len(file.samples), sum(part.count for part in parts)
            self.progress.start("sampling", drawn + left, drawn)
            score, temperature = self.prepared.score, self.config.temperature
            draw(pools, parts, file, temperature, score, self.progress.advance)
            return self._classified(pools, file.samples)
        finally:
            pools.stop()

    def _check_stored(self) -> tuple[list[EvalSample], int]:
        """Stored samples with new verdicts and, where a model is given, with its scores."""
        prepared = self.prepared
        pools = self._start(engines=prepared.needs_scoring)
        try:
            self.progress.start("checking", len(prepared.stored))
            samples = verify(pools.verifiers, prepared.stored, self.progress.advance, prepared.answer_after)
            if prepared.needs_scoring and prepared.score is not None:
                token_ids = prepared.stored_token_ids
                self.progress.start("scoring", len(token_ids))
                samples = rescore(pools, samples, token_ids, prepared.score, self.progress.advance)
            return self._classified(pools, samples)
        finally:
            pools.stop()

    def _classified(self, pools: EvalPools, samples: Sequence[EvalSample]) -> tuple[list[EvalSample], int]:
        """Samples with the classes of their answers, and the comparisons that timed out or failed."""
        samples = classify(pools.verifiers, samples, self.config.verification.verifier_text)
        return samples, pools.undecided

    def _start(self, engines: bool) -> EvalPools:
        names = ["rollout (vLLM)"] * engines + [f"verification ({self.config.verification.verifier_name})"]
        self.progress.say(f"starting the pools: {', '.join(names)}")
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

    def _with_scores(self, samples: list[EvalSample]) -> list[EvalSample]:
        """Samples with their scores, by a measured `c_ref` where none is given.

        Stored samples keep their scores where neither a model nor a score is named.
        """
        score = self.prepared.score
        if score is not None:
            broken = sum(sample.finished and not math.isfinite(sample.z_logprob) for sample in samples)
            if broken:
                self.progress.say(
                    f"warning: {broken} finished samples have no finite log-prob of {score.token}, and count "
                    "in no figure of the score: look at the model's weights and at rollout.dtype"
                )
            score = score.measured(samples)
            return [replace(sample, score=score.of(sample.z_logprob)) for sample in samples]
        if self.prepared.model is None and self.config.score == "auto":
            return samples
        return [replace(sample, score=math.nan) for sample in samples]


def _conclude(prepared: PreparedEvaluation, samples: list[EvalSample], undecided: int) -> EvalResults:
    """The figures, as files in the folder too."""
    score = prepared.score.measured(samples) if prepared.score is not None else None
    scored = any(not math.isnan(sample.score) for sample in samples)
    by_set: dict[str, list[EvalSample]] = {}
    for sample in samples:
        by_set.setdefault(sample.set, []).append(sample)
    votes = can_vote(prepared.config.verification.verifier_text)
    found = [set_results(name, columns_of(group, votes)) for name, group in by_set.items()]
    model = prepared.model
    results = EvalResults(
        folder=prepared.folder,
        model=f"samples of {prepared.config.samples}" if model is None else model.origin,
        score=vars(score) if score is not None and scored else None,
        sets=found,
        average=average(found),
        undecided=undecided,
    )
    write_atomically(prepared.folder / RESULTS, json.dumps(results.tree(), indent=2, allow_nan=False) + "\n")
    save_cost_figure(found, prepared.folder / COST_FIGURE)
    return results


def _deliver(prepared: PreparedEvaluation, results: EvalResults, uri: str, progress: EvalProgress) -> None:
    """Send the results to MLflow, once. They are on disk, so an unavailable server gives a warning, not an
    error."""
    folder, config = prepared.folder, prepared.config
    digest = hashlib.sha256((folder / RESULTS).read_bytes()).hexdigest()
    sent = folder / DELIVERED
    if sent.exists() and sent.read_bytes() == digest.encode():
        return
    tags = {"laser.kind": "evaluation", "laser.model": results.model, "laser.folder": str(folder.resolve())}
    try:
        tracker = ParentRun(
            uri,
            config.tracking.experiment,
            folder.name,
            folder,
            public_settings(config),
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
    for name in (RESULTS, COST_FIGURE):
        tracker.log_artifact(folder / name)
    tracker.finish()
    write_atomically(sent, digest)


def _undecided_before(folder: Path) -> int:
    """Undecided comparisons when the samples were pooled; only results.json holds the number."""
    path = folder / RESULTS
    if not path.exists():
        return 0
    undecided = read_record(path, dict, "Delete it: the same command writes it again").get("undecided", 0)
    return undecided if isinstance(undecided, int) else 0
