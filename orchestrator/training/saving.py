"""A run's checkpoints: the learner's shards, the exported weights with their card, and `run.remote`."""

from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.config.training import RunConfig
from orchestrator.data.tokens import ModelTokens
from orchestrator.errors import ConfigError, RunError
from orchestrator.pools.training import Pools
from orchestrator.storage.card import SelfRewardCard, template_hash
from orchestrator.storage.checkpoints import DRIVERS_FILES, Checkpoints, TrainingState
from orchestrator.storage.checksums import EXPORT, STATE, Checksums, seal_export
from orchestrator.storage.remote import RemoteStorage, fetch_checkpoint


class Saver:
    """Writes and restores the checkpoints of one run.

    Args:
        checkpoints: Those in the run's folder.
        has_score: Whether the exported model gets a self-reward card.
    """

    def __init__(
        self, config: RunConfig, tokens: ModelTokens, pools: Pools, checkpoints: Checkpoints, has_score: bool
    ) -> None:
        self.config = config
        self.tokens = tokens
        self.pools = pools
        self.has_score = has_score
        self.checkpoints = checkpoints
        self.remote = RemoteStorage(config.run.remote, config.run.name) if config.run.remote else None

    def newest(self) -> tuple[Path, TrainingState] | None:
        """The run's newest whole checkpoint."""
        return self.checkpoints.newest()

    def health(self) -> str | None:
        """What makes the learner's weights unfit for a checkpoint, in words; None for healthy ones."""
        problems = self.pools.on_all_ranks("health")
        return next((str(problem) for problem in problems if problem is not None), None)

    def save(self, state: TrainingState) -> None:
        """Write a checkpoint here and, where `run.remote` is set, there.

        Raises:
            RunError: It could not be uploaded.
        """
        upload = None if self.remote is None else partial(self._upload, self.remote, state)
        self.checkpoints.save(state, partial(self._write, state), upload)

    def load_newest(self) -> tuple[Path, TrainingState] | None:
        """Restore the learner's shards from the newest checkpoint whose files are whole on every rank.

        Returns:
            Its folder and state; None if the run has no checkpoint.

        Raises:
            ConfigError: The run has checkpoints, and all are damaged.
            RunError: A rank cannot have its shard.
        """
        while (newest := self.checkpoints.newest()) is not None:
            folder, state = newest
            problem = self.load(folder, state)
            if problem is None:
                return newest
            self.checkpoints.condemn(folder, problem)
            if self.remote is not None and (earlier := self.remote.newest(before=state.step)) is not None:
                fetch_checkpoint(self.checkpoints, self.remote, *earlier)
        return None

    def load(self, folder: Path, state: TrainingState) -> str | None:
        """Restore the learner's shards from a checkpoint; from `run.remote` where the folder lacks them.

        Returns:
            What is wrong with the files, in words, and then nothing is restored.

        Raises:
            RunError: A rank cannot have its shard.
        """
        if self.remote is not None:
            self._on_ranks("fetch", str(folder.resolve()), state)
        sums = self.checkpoints.checksums(folder)
        saved_by = state.num_ranks
        if sums is not None:
            problems = self.pools.on_all_ranks("verify", str(folder.resolve()), sums, saved_by)
        else:
            problems = []
        if problem := next(filter(None, problems), None):
            return str(problem)
        self.pools.on_all_ranks("load", str((folder / "learner").resolve()), saved_by)
        return None

    def _write(self, state: TrainingState, folder: Path) -> Checksums:
        export = (folder / EXPORT).resolve()
        self.pools.on_all_ranks("save", str((folder / "learner").resolve()))
        self.pools.on_all_ranks("export", str(export))
        sums: Checksums = {}
        for of_rank in self.pools.on_all_ranks("seal", str(folder.resolve())):
            sums |= of_rank
        export.mkdir(exist_ok=True)  # with run.remote, rank 0 may have written its own on another node
        config, tokens = self.config, self.tokens
        token, c_ref = config.self_reward.token, state.c_ref
        if self.has_score and token is not None and tokens.z_token is not None and c_ref is not None:
            SelfRewardCard(
                token=token,
                token_id=tokens.z_token,
                c_ref=c_ref,
                beta_v=config.loss.beta_v,
                eos_token_ids=list(tokens.eos_tokens),
                instruction=config.data.instruction,
                chat_template_sha256=template_hash(tokens.tokenizer),
                verifier=config.verification.verifier_text,
                system=config.data.system,
                chat_template_kwargs=config.data.chat_template_kwargs,
                answer_after=config.data.answer_after or "",
            ).write(export)
        of_export = [path for path in sums if path.startswith(f"{EXPORT}/")]
        seal_export(export, {path.removeprefix(f"{EXPORT}/"): sums[path] for path in of_export})
        return sums

    def _upload(self, remote: RemoteStorage, state: TrainingState, folder: Path) -> None:
        """Upload a checkpoint: each file by the process that wrote it."""

        def write(place: str) -> None:
            self._on_ranks("upload", str(folder.resolve()), place)
            mine = [folder / EXPORT / name for name in DRIVERS_FILES if (folder / EXPORT / name).exists()]
            remote.upload(mine, folder, place)
            remote.upload_records(self.config.folder)

        remote.save(state, self.config.run.keep_checkpoints, write, (folder / STATE).read_text())

    def _on_ranks(self, method: str, *arguments: Any) -> None:
        """Call a method of the ranks that returns its problem, if any, instead of raising it."""
        for problem in self.pools.on_all_ranks(method, *arguments):
            if problem is not None:
                raise RunError(problem)


def trunk_end(trunk: Path, step: int) -> tuple[Path, TrainingState]:
    """The checkpoint of `step`, with which the trunk in folder `trunk` ended.

    Raises:
        RunError: The trunk has no such checkpoint, or it is damaged.
    """
    checkpoints = Checkpoints(trunk, keep=1)
    try:
        end = checkpoints.newest()
    except ConfigError as error:
        raise RunError(f"{error}, or delete the trunk's folder: the sweep trains it again") from error
    if end is None or end[1].step != step:
        found = "".join(f" ({problem})" for problem in checkpoints.newer_damage())
        raise RunError(
            f"{trunk}: holds no checkpoint of step {step} to branch from{found}; delete the folder, "
            "and the sweep trains the trunk again"
        )
    return end
