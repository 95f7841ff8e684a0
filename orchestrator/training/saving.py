"""A run's checkpoints: the learner's shards, the exported weights with their card, and `run.remote`."""

from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.config.training import RunConfig
from orchestrator.data.tokens import ModelTokens
from orchestrator.errors import RunError
from orchestrator.pools.training import Pools
from orchestrator.storage.card import SELF_REWARD, SelfRewardCard, template_hash
from orchestrator.storage.checkpoints import Checkpoints, TrainingState
from orchestrator.storage.remote import RemoteStorage


class Saver:
    """Writes and restores the checkpoints of one run.

    Args:
        has_score: Whether the exported model gets a self-reward card.
    """

    def __init__(self, config: RunConfig, tokens: ModelTokens, pools: Pools, has_score: bool) -> None:
        self.config = config
        self.tokens = tokens
        self.pools = pools
        self.has_score = has_score
        self.checkpoints = Checkpoints(config.folder, config.run.keep_checkpoints)
        self.remote = RemoteStorage(config.run.remote, config.run.name) if config.run.remote else None

    def newest(self) -> tuple[Path, TrainingState] | None:
        """The run's newest complete checkpoint."""
        return self.checkpoints.newest()

    def save(self, state: TrainingState) -> None:
        """Write a checkpoint here and, where `run.remote` is set, there.

        Raises:
            RunError: It could not be uploaded.
        """
        upload = None if self.remote is None else partial(self._upload, self.remote, state)
        self.checkpoints.save(state, partial(self._write, state), upload)

    def load(self, folder: Path, state: TrainingState) -> None:
        """Restore the learner's shards from a checkpoint; from `run.remote` where the folder lacks them.

        Raises:
            RunError: A rank cannot have its shard.
        """
        if self.remote is not None:
            self._on_ranks("fetch", str(folder.resolve()), state)
        self.pools.on_all_ranks("load", str((folder / "learner").resolve()))

    def _write(self, state: TrainingState, folder: Path) -> None:
        export = (folder / "export").resolve()
        self.pools.on_all_ranks("save", str((folder / "learner").resolve()))
        self.pools.on_all_ranks("export", str(export))
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
            ).write(export)

    def _upload(self, remote: RemoteStorage, state: TrainingState, folder: Path) -> None:
        """Upload a checkpoint: each file by the process that wrote it."""

        def write(place: str) -> None:
            self._on_ranks("upload", str(folder.resolve()), place)
            if (card := folder / "export" / SELF_REWARD).exists():
                remote.upload([card], folder, place)
            remote.upload_records(self.config.folder)

        remote.save(state, self.config.run.keep_checkpoints, write)

    def _on_ranks(self, method: str, *arguments: Any) -> None:
        """Call a method of the ranks that returns its problem, if any, instead of raising it."""
        for problem in self.pools.on_all_ranks(method, *arguments):
            if problem is not None:
                raise RunError(problem)


def trunk_end(trunk: Path, step: int) -> tuple[Path, TrainingState]:
    """The checkpoint of `step`, with which the trunk in folder `trunk` ended.

    Raises:
        RunError: The trunk has no such checkpoint.
    """
    end = Checkpoints(trunk, keep=1).newest()
    if end is None or end[1].step != step:
        raise RunError(
            f"{trunk}: holds no checkpoint of step {step} to branch from; delete the folder, "
            "and the sweep trains the trunk again"
        )
    return end
