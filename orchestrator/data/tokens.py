"""A model's tokenizer and special tokens, checked before anything starts.

In: a model folder or hub name, and `self_reward.token`. Out: `ModelTokens`, or a `ConfigError` that says what
    the tokenizer lacks.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config.cold_start import SFTConfig
from orchestrator.config.sources import ChatConfig
from orchestrator.config.texts import read_text
from orchestrator.config.training import RunConfig
from orchestrator.data.chat import ChatEncoder, ChatSettings
from orchestrator.data.control_tokens import NEUTRAL_TEXT
from orchestrator.data.eos import chosen_eos_ids, eos_token_ids
from orchestrator.data.model_files import load_model_config, load_tokenizer, refuse_pickled_weights
from orchestrator.errors import ConfigError
from orchestrator.storage.card import SelfRewardCard
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
    settings: ChatSettings = field(default_factory=ChatSettings)
    """The system message and the values of the chat template."""

    @cached_property
    def chat(self) -> ChatEncoder:
        """Encodes prompts and responses."""
        return ChatEncoder(self.tokenizer, self.z_token, self.eos_tokens, self.settings)


def load_tokens(
    model_path: str,
    z_token: str | None,
    eos_tokens: Sequence[str | int] = (),
    eos_key: str = "model.eos_tokens",
    chat: ChatSettings | None = None,
) -> ModelTokens:
    """Load the tokenizer of a model folder or hub name, and check its chat template and tokens.

    Args:
        z_token: z_c as text; None where self-rewarding is off.
        eos_tokens: Tokens that end a response, as texts or ids, in place of the model's own.
        eos_key: The setting that names these, for messages.
        chat: The system message, the values of the chat template, and perhaps another template.

    Raises:
        ConfigError: The model does not exist, has no usable chat template or no EOS token. Or `z_token` is
            not one token of its vocabulary, or ends responses. Or a token has no row in the embedding.
    """
    if looks_local(model_path) and not (Path(model_path) / "config.json").is_file():
        raise ConfigError(f"model.path: {model_path} is no model folder (it has no config.json)")
    if looks_local(model_path):
        refuse_pickled_weights(Path(model_path))
        refuse_damaged_model(Path(model_path))
    try:
        tokenizer = load_tokenizer(model_path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.path: no tokenizer could be loaded from {model_path}: {str(error).splitlines()[0]}"
        ) from error
    chat = chat or ChatSettings()
    if chat.template is not None:
        tokenizer.chat_template = chat.template
    check_template(tokenizer, chat)
    z_id = None if z_token is None else resolve_token(tokenizer, z_token)
    eos = (
        chosen_eos_ids(tokenizer, eos_tokens, eos_key) if eos_tokens else eos_token_ids(tokenizer, model_path)
    )
    if z_id in eos:
        raise ConfigError(
            f"self_reward.token: {z_token!r} is one of the model's EOS tokens; choose a token that the model "
            "never uses"
        )
    tokens = ModelTokens(tokenizer, z_id, tuple(eos), chat)
    _refuse_tokens_without_rows(tokens, model_path, z_token)
    return tokens


def tokens_of(config: RunConfig | SFTConfig) -> ModelTokens:
    """The tokens of a training run or a cold start. Raises as `load_tokens`."""
    chat = chat_settings(config.data)
    tokens = load_tokens(config.model.path, config.self_reward.token, config.model.eos_tokens, chat=chat)
    if isinstance(config, RunConfig):
        refuse_ended_thinking(tokens.chat, config.data.answer_after or "")
    return tokens


def chat_settings(data: ChatConfig) -> ChatSettings:
    """The settings of the chat template, with the text of its file.

    Raises:
        ConfigError: The file cannot be read.
    """
    file, template = data.chat_template, None
    if file is not None:
        template = read_text(file, "data.chat_template names a file with a Jinja chat template.")
    return ChatSettings(data.system, data.chat_template_kwargs, template)


def settings_of_card(card: SelfRewardCard | None) -> ChatSettings:
    """The settings of the chat template with which a model's score was trained; plain ones without a card."""
    return ChatSettings() if card is None else ChatSettings(card.system, card.chat_template_kwargs)


def refuse_ended_thinking(chat: ChatEncoder, answer_after: str) -> None:
    """Refuse to judge what follows the end of thinking where the chat template itself ends it.

    Raises:
        ConfigError: The prompt holds `answer_after` behind the problem, so no response does.
    """
    prompt = chat.render([{"role": "user", "content": NEUTRAL_TEXT}])
    if answer_after and answer_after in prompt.rpartition(NEUTRAL_TEXT)[2]:
        raise ConfigError(
            f"data.answer_after: the chat template itself writes {answer_after!r} before the response, so no "
            "response holds it; leave data.answer_after out, or let the model think "
            "(data.chat_template_kwargs)"
        )


def refuse_unfit_model(config: RunConfig) -> None:
    """Refuse a run whose model and settings do not fit together.

    Raises:
        ConfigError: As `load_tokens` and `refuse_uneven_heads`.
    """
    token, chat = config.self_reward.token, chat_settings(config.data)
    _refuse_unfit(config.model.path, token, config.model.eos_tokens, config.rollout.tensor_parallel, chat)


@lru_cache(maxsize=64)  # a sweep's trials are many, and most differ in other settings
def _refuse_unfit(
    model_path: str,
    z_token: str | None,
    eos_tokens: tuple[str | int, ...],
    tensor_parallel: int,
    chat: ChatSettings,
) -> None:
    load_tokens(model_path, z_token, eos_tokens, chat=chat)
    refuse_uneven_heads(model_path, tensor_parallel, "rollout.tensor_parallel")


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


def check_template(tokenizer: "PreTrainedTokenizerBase", chat: ChatSettings | None = None) -> None:
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
        ChatEncoder(tokenizer, settings=chat).chat([{"role": "user", "content": NEUTRAL_TEXT}])
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


def refuse_uneven_heads(model_path: str, tensor_parallel: int, key: str) -> None:
    """Refuse to split an engine over a number of ranks that does not divide the model's attention heads.

    Args:
        key: The setting, for the message.

    Raises:
        ConfigError: It does not.
    """
    heads = getattr(_text_config(model_path), "num_attention_heads", None)
    if heads is not None and heads % tensor_parallel:
        raise ConfigError(
            f"{key}={tensor_parallel} does not divide the model's {heads} attention heads, so vLLM cannot "
            "split them; choose a divisor"
        )


def refuse_attention_windows(model_path: str, key: str) -> None:
    """Refuse a model with a layer whose tokens attend to a window, and not to all tokens before them.

    Args:
        key: The setting that needs the other kind, for the message.

    Raises:
        ConfigError: It has one.
    """
    config = _text_config(model_path)
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    if any(kind != "full_attention" for kind in kinds) if kinds else window:
        raise ConfigError(
            f"{key}: a layer of this {config.model_type} model does not attend to all tokens before one; set "
            f"{key}=false"
        )


def _refuse_tokens_without_rows(tokens: ModelTokens, model_path: str, z_token: str | None) -> None:
    """Refuse tokens that were added to the tokenizer and not to the model's embedding."""
    rows = getattr(_text_config(model_path), "vocab_size", None)
    if rows is None:
        return
    last = f"but the model's last embedding has id {rows - 1}"
    if tokens.z_token is not None and tokens.z_token >= rows:
        raise ConfigError(
            f"self_reward.token: {z_token!r} has id {tokens.z_token}, {last}; choose another token, or add "
            "rows to the embedding"
        )
    prompt = tokens.chat.chat([{"role": "user", "content": NEUTRAL_TEXT}])
    for id_ in (*tokens.eos_tokens, *prompt):
        if id_ >= rows:
            name = tokens.tokenizer.convert_ids_to_tokens(id_)
            what = "EOS token" if id_ in tokens.eos_tokens else "chat template's token"
            raise ConfigError(f"{model_path}: the {what} {name!r} has id {id_}, {last}; add rows to it")


def _text_config(model_path: str) -> Any:
    try:
        return load_model_config(model_path).get_text_config()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.path: the config.json of {model_path} cannot be read: {str(error).splitlines()[0]}"
        ) from error


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
