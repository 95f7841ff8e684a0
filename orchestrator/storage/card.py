"""`self_reward.json`: how to read a model's score, stored with its weights."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError

SELF_REWARD = "self_reward.json"


@dataclass(frozen=True)
class SelfRewardCard:
    """The content of `self_reward.json`: all that evaluation and service need to read a model's score."""

    token: str
    """The scoring token z_c."""
    token_id: int
    c_ref: float
    """The reference model's log-probability of z_c, in nats."""
    beta_v: float
    eos_token_ids: list[int]
    instruction: str
    """What training appended to each problem."""
    chat_template_sha256: str
    verifier: str | None = None
    """Canonical text of training's verifier; None in a card of an earlier version: answers are boxes."""
    system: str = ""
    """Training's system message; empty for none."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """The values that training gave the chat template."""
    answer_after: str = ""
    """Training judged what follows this text in a response; empty for all of it."""

    def write(self, folder: Path) -> None:
        """Write the card into a model's folder."""
        (folder / SELF_REWARD).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @staticmethod
    def read(path: Path) -> "SelfRewardCard":
        """The card in a file.

        Raises:
            ConfigError: The file cannot be read, or holds no card.
        """
        try:
            card = SelfRewardCard(**json.loads(path.read_bytes()))
            _check(card)
            return card
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{path}: is not a self-reward card ({error}); export the model again, or delete the file to "
                "use the model without its score"
            ) from error


def _check(card: SelfRewardCard) -> None:
    """Raise ValueError where a value is not of its kind, or not a finite number."""
    texts = (card.token, card.instruction, card.chat_template_sha256, card.system, card.answer_after)
    ids = (card.token_id, *card.eos_token_ids)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a text is missing")
    if not isinstance(card.verifier, str | None):
        raise ValueError("the verifier is no text")
    if not isinstance(card.chat_template_kwargs, dict):
        raise ValueError("chat_template_kwargs is no mapping")
    if not all(isinstance(number, int) for number in ids):
        raise ValueError("a token id is not a whole number")
    if not (math.isfinite(card.c_ref) and math.isfinite(card.beta_v) and card.beta_v > 0):
        raise ValueError("c_ref or beta_v is not a finite number")


def template_hash(tokenizer: Any) -> str:
    """SHA-256 of the tokenizer's chat template.

    A service compares it with the card, to render prompts as training did.
    """
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()
