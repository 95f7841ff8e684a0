"""A model's tokenizer and special tokens, checked before anything starts.

In: a model folder or hub name, and `self_reward.token`. Out: `ModelTokens`, or a `ConfigError` that says what
    the tokenizer lacks.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.data.chat import ChatEncoder
from orchestrator.data.control_tokens import NEUTRAL_TEXT
from orchestrator.errors import ConfigError
from orchestrator.storage.checksums import refuse_damaged_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ModelTokens:
    """A model's tokenizer, and the token ids that a run uses."""

    tokenizer: Any
    z_token: int | None
    """z_c; None where self-rewarding is off."""
    eos_tokens: tuple[int, ...]
    """All tokens that end a response, ascending."""

    @cached_property
    def chat(self) -> ChatEncoder:
        """Encodes prompts and responses."""
        return ChatEncoder(self.tokenizer, self.z_token, self.eos_tokens)


def load_tokens(model_path: str, z_token: str | None) -> ModelTokens:
    """Load the tokenizer of a model folder or hub name, and check its chat template and tokens.

    Raises:
        ConfigError: The model does not exist, has no usable chat template or no EOS token, or `z_token` is
            not one token of its vocabulary.
    """
    if looks_local(model_path) and not (Path(model_path) / "config.json").is_file():
        raise ConfigError(f"model.path: {model_path} is no model folder (it has no config.json)")
    if looks_local(model_path):
        refuse_damaged_model(Path(model_path))
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.path: no tokenizer could be loaded from {model_path}: {str(error).splitlines()[0]}"
        ) from error
    check_template(tokenizer)
    return ModelTokens(
        tokenizer,
        None if z_token is None else resolve_token(tokenizer, z_token),
        tuple(eos_token_ids(tokenizer, model_path)),
    )


def looks_local(model_path: str) -> bool:
    """Whether a model path means a folder: it exists, or it cannot be a hub name (`owner/name`)."""
    return Path(model_path).exists() or model_path.startswith((".", "/", "~")) or model_path.count("/") != 1


def absolute_path(model_path: str) -> str:
    """A model path for actors, which may have another working directory; hub names stay unchanged."""
    return str(Path(model_path).expanduser().resolve()) if looks_local(model_path) else model_path


def resolve_token(tokenizer: "PreTrainedTokenizerBase", token: str) -> int:
    """The id of `self_reward.token` (z_c): an entry of the vocabulary, or text that is exactly one token.

    Raises:
        ConfigError: It is neither, or it is the EOS or unknown token. The message names special tokens that
            could serve.
    """
    token_id = tokenizer.get_vocab().get(token)
    if token_id is None:
        pieces = tokenizer.encode(token, add_special_tokens=False)
        if len(pieces) != 1 or pieces[0] == tokenizer.unk_token_id or tokenizer.decode(pieces) != token:
            made = ", ".join(
                f"{piece!r} ({id_})"
                for piece, id_ in zip(tokenizer.convert_ids_to_tokens(pieces), pieces, strict=True)
            )
            raise ConfigError(
                f"self_reward.token: '{token}' is no single token: it becomes {made or 'nothing'}. "
                f"{_suggestion(tokenizer)}"
            )
        token_id = pieces[0]
    if token_id in (tokenizer.eos_token_id, tokenizer.unk_token_id):
        raise ConfigError(
            f"self_reward.token: '{token}' ({token_id}) already ends responses or stands for unknown text. "
            f"{_suggestion(tokenizer)}"
        )
    return token_id


def check_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Check that the tokenizer can render one user message.

    Raises:
        ConfigError: It has no chat template, or the template fails.
    """
    folder = tokenizer.name_or_path or "the model's folder"
    if not tokenizer.chat_template:
        raise ConfigError(
            f"{folder}: its tokenizer has no chat template; write one to chat_template.jinja in that folder"
        )
    try:
        ChatEncoder(tokenizer).chat([{"role": "user", "content": NEUTRAL_TEXT}])
    except Exception as error:  # a template is a program and may raise any error
        raise ConfigError(
            f"{folder}: its chat template fails on a single user message ({type(error).__name__}: {error}); "
            "correct chat_template.jinja"
        ) from error


def check_round_trip(tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str]) -> None:
    """Check that encoding and decoding keep each text, up to Unicode normalisation (NFC) and outer space.

    Raises:
        ConfigError: A text is changed. The message names it and the lost characters.
    """
    for text in texts:
        decoded = tokenizer.decode(
            tokenizer.encode(text, add_special_tokens=False), clean_up_tokenization_spaces=False
        )
        before, after = (unicodedata.normalize("NFC", version).strip() for version in (text, decoded))
        if before != after:
            lost = "".join(sorted((Counter(before) - Counter(after)).keys()))
            raise ConfigError(
                f"{tokenizer.name_or_path or 'the tokenizer'}: {before[:80]!r} comes back as {after[:80]!r}"
                f"{f', without {lost!r}' if lost else ''}; the model cannot read such problems: "
                "correct the tokenizer or the data"
            )


def eos_token_ids(tokenizer: "PreTrainedTokenizerBase", model_path: str) -> list[int]:
    """All tokens that end a response, ascending: those of generation_config.json and the tokenizer's EOS.

    Raises:
        ConfigError: There is none.
    """
    from transformers import GenerationConfig

    try:
        configured = GenerationConfig.from_pretrained(model_path).eos_token_id
    except OSError:  # the file is optional
        configured = None
    candidates = [*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id]
    ids = {id_ for id_ in candidates if id_ is not None}
    if not ids:
        raise ConfigError(
            f"{model_path}: neither its generation_config.json nor its tokenizer names an EOS token; "
            "set eos_token_id in generation_config.json"
        )
    return sorted(ids)


def _suggestion(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A sentence that names unused special tokens, those with a name for reserved tokens first."""
    roles = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    template = str(tokenizer.chat_template or "")
    added = (str(entry) for _, entry in sorted(tokenizer.added_tokens_decoder.items()) if entry.special)
    spare = [name for name in added if name not in roles and name not in template]
    if not spare:
        return (
            "This tokenizer has no unused special token: add one, and a row for it to the model's embeddings"
        )
    spare.sort(key=lambda name: not any(word in name for word in ("reserved", "unused", "extra")))
    return f"Special tokens of this tokenizer that nothing else uses: {', '.join(spare[:5])}"
