"""Fields of OpenAI's API that the service does not have, and the values of them that ask for nothing.

Clients send many fields at their defaults. A value that asks for nothing is accepted, and any other one is
refused by name, so that nobody believes in an effect that is not there. Null asks for nothing in any field.
The tables follow the types of the `openai` package; a test goes through them.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

AsksNothing = Callable[[Any], bool]
"""Whether a value, which is not null, asks for nothing."""


def _only_null(value: Any) -> bool:
    return False


def _any_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _false(value: Any) -> bool:
    return value is False


def _boolean(value: Any) -> bool:
    return isinstance(value, bool)


def _string(value: Any) -> bool:
    return isinstance(value, str)


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _empty(value: Any) -> bool:
    return isinstance(value, str | list | dict) and not value


def _number(*numbers: int) -> AsksNothing:
    return lambda value: _any_number(value) and value in numbers


def _word(*words: str) -> AsksNothing:
    return lambda value: isinstance(value, str) and value in words


def _text_format(value: Any) -> bool:
    return isinstance(value, dict) and _without_nulls(value) in ({"type": "text"}, {})


def _text_only(value: Any) -> bool:
    return value in (["text"], [])


def _no_bias(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_number(0), _without_nulls(value).values()))


def _without_nulls(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if value is not None}


CHAT: Mapping[str, AsksNothing] = {
    # Sampling
    "frequency_penalty": _number(0),
    "presence_penalty": _number(0),
    "logit_bias": _no_bias,
    "top_logprobs": _number(0),
    # Tools: without any, the other fields say nothing
    "tools": _empty,
    "tool_choice": _word("none", "auto"),
    "parallel_tool_calls": _boolean,
    "functions": _empty,
    "function_call": _word("none", "auto"),
    "web_search_options": _only_null,
    # Form of the answer
    "response_format": _text_format,
    "modalities": _text_only,
    "audio": _only_null,
    "verbosity": _word("medium"),
    "reasoning_effort": _word("none", "medium"),
    "prediction": _only_null,
    "moderation": _only_null,
    # OpenAI's books: who asks, and what OpenAI keeps
    "user": _string,
    "safety_identifier": _string,
    "metadata": _object,
    "store": _false,
    "service_tier": _word("auto", "default"),
    "prompt_cache_key": _string,
    "prompt_cache_options": _object,
    "prompt_cache_retention": _string,
    # Not OpenAI's: the sampling of vLLM and others, which frameworks send at these values
    "top_k": _number(-1, 0),
    "min_p": _number(0),
    "repetition_penalty": _number(1),
}
"""Of the body of `/v1/chat/completions`."""

STREAM_OPTIONS: Mapping[str, AsksNothing] = {"include_obfuscation": _false}

MESSAGE: Mapping[str, AsksNothing] = {
    "name": _string,  # No chat template that we know renders it.
    "refusal": _empty,
    "audio": _only_null,
    "function_call": _empty,
    "tool_calls": _empty,
    "tool_call_id": _empty,
    # What answers hold beyond OpenAI's input types: OpenAI's own, ours, vLLM's and LiteLLM's
    "annotations": _empty,
    "self_reward": _any_number,
    "reasoning_content": _empty,
    "reasoning": _empty,
    "thinking_blocks": _empty,
    "images": _empty,
    "provider_specific_fields": _object,
}
"""Of a message; an answer is sent back as the next request's history."""

TEXT_PART: Mapping[str, AsksNothing] = {"prompt_cache_breakpoint": _object, "cache_control": _object}
"""Of a text part of a message's content."""


def said(tree: Any, lacking: Mapping[str, AsksNothing], known: Collection[str]) -> Any:
    """An object without its nulls and without what `lacking` says asks for nothing.

    Args:
        tree: Any JSON; what is no object is returned as it is.
        lacking: Fields that the service does not have.
        known: Fields that it has, whose values stay unless they are null.
    """
    if not isinstance(tree, dict):
        return tree
    return {
        key: value
        for key, value in _without_nulls(tree).items()
        if key in known or not lacking.get(key, _only_null)(value)
    }
