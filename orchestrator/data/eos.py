"""The tokens that end a response, and the one with which a chat template ends a turn.

In: a tokenizer, a model folder or hub name, and perhaps the setting `model.eos_tokens`. Out: token ids.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.data.chat import ChatEncoder
from orchestrator.data.control_tokens import NEUTRAL_TEXT
from orchestrator.data.model_files import load_model_config
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION_CONFIG = "generation_config.json"


def eos_token_ids(tokenizer: "PreTrainedTokenizerBase", model_path: str) -> list[int]:
    """All tokens that end a response, ascending: those of the model's files and the tokenizer's EOS.

    As in transformers and vLLM, config.json counts where there is no generation_config.json.

    Raises:
        ConfigError: There is none, or a file cannot be read.
    """
    configured = _configured(model_path)
    candidates = [
        *(configured if isinstance(configured, list | tuple) else [configured]),
        tokenizer.eos_token_id,
    ]
    ids = [id_ for id_ in candidates if id_ is not None]
    if not ids:
        raise ConfigError(
            f"{model_path}: neither its {GENERATION_CONFIG}, its config.json nor its tokenizer names an EOS "
            "token; set model.eos_tokens, or eos_token_id in one of these files"
        )
    if wrong := [id_ for id_ in ids if not isinstance(id_, int) or isinstance(id_, bool) or id_ < 0]:
        raise ConfigError(
            f"{model_path}: its files name {wrong[0]!r} as EOS, which is no token id; correct them"
        )
    return sorted({*ids})


def chosen_eos_ids(tokenizer: "PreTrainedTokenizerBase", chosen: Sequence[str | int], key: str) -> list[int]:
    """The ids of the tokens that a setting names, ascending.

    Args:
        chosen: Texts that are one token each, or ids.
        key: The setting, for messages.

    Raises:
        ConfigError: One is no token of this tokenizer.
    """
    vocabulary = tokenizer.get_vocab()
    known = {*vocabulary.values()}
    ids: set[int] = set()
    for token in chosen:
        pieces = [token] if isinstance(token, int) else [vocabulary[token]] if token in vocabulary else None
        if pieces is None:
            pieces = tokenizer.encode(str(token), add_special_tokens=False)
        if len(pieces) != 1 or pieces[0] not in known or pieces[0] == tokenizer.unk_token_id:
            raise ConfigError(f"{key}: {token!r} is no single token of the model's tokenizer")
        ids.update(pieces)
    return sorted(ids)


def template_turn_end(chat: ChatEncoder) -> int | None:
    """The token with which the chat template ends an assistant's turn; None where it writes none."""
    answer = {"role": "assistant", "content": chat.control.mark("2", of_assistant=True)}
    dialogue = [{"role": "user", "content": NEUTRAL_TEXT}, answer]
    try:
        rendered = chat.render_answered(dialogue)
    except Exception:  # a template is a program: it may accept single questions only
        return None
    return chat.control.first_behind(rendered)


def response_end(chat: ChatEncoder, eos_tokens: Sequence[int]) -> int:
    """The EOS token for a response that is given as text: the chat template's, else the tokenizer's own."""
    likely = template_turn_end(chat), chat.tokenizer.eos_token_id
    return next((token for token in likely if token is not None and token in eos_tokens), eos_tokens[0])


def turn_end_warning(
    chat: ChatEncoder, eos_tokens: Sequence[int], key: str = "model.eos_tokens"
) -> str | None:
    """What to say where the template ends a turn with a token that is no EOS; None where it does not.

    Args:
        key: The setting that mends it.
    """
    end = template_turn_end(chat)
    if end is None or end in eos_tokens:
        return None
    names = chat.tokenizer.convert_ids_to_tokens([end, *eos_tokens])
    return (
        f"the chat template ends an assistant's turn with {names[0]} ({end}), but a response ends only at "
        f"{', '.join(names[1:])}: a model that was trained with this template goes on until it is cut off; "
        f"set {key} to {names}"
    )


def _configured(model_path: str) -> Any:
    """`eos_token_id` of the model's files: an id, a list or None."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(model_path).eos_token_id
    except (OSError, ValueError, TypeError) as error:  # the file is optional
        if os.path.exists(os.path.join(model_path, GENERATION_CONFIG)):
            raise ConfigError(
                f"{model_path}: its {GENERATION_CONFIG} cannot be read ({str(error).splitlines()[0]}); "
                "correct or delete it"
            ) from error
    try:
        return GenerationConfig.from_model_config(load_model_config(model_path)).eos_token_id
    except (OSError, ValueError):  # of another kind of model, which the tokenizer's EOS may still end
        return None
