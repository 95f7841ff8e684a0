"""A model's tokenizer and special tokens, checked before anything starts."""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.data.prompts import render_prompt
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ModelTokens:
    """A model folder's tokenizer and the ids that a run uses."""

    tokenizer: Any
    z_token: int | None
    eos_tokens: tuple[int, ...]


def load_tokens(model_path: str, z_token: str | None) -> ModelTokens:
    """The tokenizer of a model folder or hub name, with its template and tokens checked.

    Raises:
        ConfigError: There is no such model, it has no chat template, or `z_token` is no single token of it.
    """
    if looks_local(model_path) and not (Path(model_path) / "config.json").is_file():
        raise ConfigError(f"model.path: {model_path} is no model folder (it has no config.json)")
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
    """Whether a model path means a folder and not a hub name: it exists, or no hub name could look so."""
    return Path(model_path).exists() or model_path.startswith((".", "/", "~")) or model_path.count("/") != 1


def absolute_path(model_path: str) -> str:
    """A model path for actors, whose working directory may be another one; hub names stay as they are."""
    return str(Path(model_path).expanduser().resolve()) if looks_local(model_path) else model_path


def resolve_token(tokenizer: "PreTrainedTokenizerBase", token: str) -> int:
    """The id of `self_reward.token` (z_c): one entry of the vocabulary, or text that is exactly one token.

    Raises ConfigError with what the tokenizer makes of it, and with special tokens that could serve.
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
                f"self_reward.token: '{token}' is no single token: it becomes {made or 'nothing'}. {_suggestion(tokenizer)}"
            )
        token_id = pieces[0]
    if token_id in (tokenizer.eos_token_id, tokenizer.unk_token_id):
        raise ConfigError(
            f"self_reward.token: '{token}' ({token_id}) already ends responses or stands for unknown text. {_suggestion(tokenizer)}"
        )
    return token_id


def _suggestion(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Special tokens that neither the tokenizer's roles nor its chat template use, those reserved by name first."""
    roles = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    template = str(tokenizer.chat_template or "")
    added = (str(entry) for _, entry in sorted(tokenizer.added_tokens_decoder.items()) if entry.special)
    spare = [name for name in added if name not in roles and name not in template]
    if not spare:
        return "This tokenizer has no spare special token: add one to it, and a row for it to the model's embeddings"
    spare.sort(key=lambda name: not any(word in name for word in ("reserved", "unused", "extra")))
    return f"Special tokens of this tokenizer that nothing else uses: {', '.join(spare[:5])}"


def check_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raises ConfigError when the tokenizer cannot render a conversation of one user message."""
    folder = tokenizer.name_or_path or "the model's folder"
    if not tokenizer.chat_template:
        raise ConfigError(
            f"{folder}: its tokenizer has no chat template; put one there as chat_template.jinja"
        )
    try:
        render_prompt(tokenizer, "1+1=", "")
    except Exception as error:  # a template is a program of its own: it raises what it likes
        raise ConfigError(
            f"{folder}: its chat template fails on a single user message ({type(error).__name__}: {error}); correct chat_template.jinja"
        ) from error


def check_round_trip(tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str]) -> None:
    """Raises ConfigError when a text does not survive encoding and decoding (up to Unicode's NFC and outer space)."""
    for text in texts:
        decoded = tokenizer.decode(
            tokenizer.encode(text, add_special_tokens=False), clean_up_tokenization_spaces=False
        )
        before, after = (unicodedata.normalize("NFC", version).strip() for version in (text, decoded))
        if before != after:
            lost = "".join(sorted((Counter(before) - Counter(after)).keys()))
            raise ConfigError(
                f"{tokenizer.name_or_path or 'the tokenizer'}: {before[:80]!r} comes back as {after[:80]!r}"
                f"{f', without {lost!r}' if lost else ''}; the model cannot read such problems: mend the tokenizer or the data"
            )


def eos_token_ids(tokenizer: "PreTrainedTokenizerBase", model_path: str) -> list[int]:
    """All tokens that end a response, ascending: those of the model's generation_config.json and the tokenizer's own.

    Raises ConfigError when there is none.
    """
    from transformers import GenerationConfig

    try:
        configured = GenerationConfig.from_pretrained(model_path).eos_token_id
    except OSError:  # the file is optional
        configured = None
    ids = {
        id_
        for id_ in (*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id)
        if id_ is not None
    }
    if not ids:
        raise ConfigError(
            f"{model_path}: neither its generation_config.json nor its tokenizer names an EOS token; set eos_token_id"
        )
    return sorted(ids)
