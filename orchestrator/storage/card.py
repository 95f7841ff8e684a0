"""`self_reward.json`: what reads a model's score, stored with its weights."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError

SELF_REWARD = "self_reward.json"


@dataclass(frozen=True)
class SelfRewardCard:
    """`self_reward.json`: all that evaluation and service need to read a model's score."""

    token: str
    token_id: int
    c_ref: float
    beta_v: float
    eos_token_ids: list[int]
    instruction: str
    chat_template_sha256: str

    def write(self, folder: Path) -> None:
        (folder / SELF_REWARD).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @staticmethod
    def read(path: Path) -> "SelfRewardCard":
        """The card in a file. Raises ConfigError when it is none."""
        try:
            return SelfRewardCard(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{path}: is no card of a self-reward ({error}); export the model again, or delete the file"
            ) from error


def template_hash(tokenizer: Any) -> str:
    """SHA-256 of the chat template, by which a service sees that it renders prompts as training did."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()
