"""Fields that the service does not have, against the request types of the installed `openai` package."""

import json
import typing

import pytest
from openai.types import chat
from openai.types.chat import completion_create_params as params

from orchestrator.serving import unsupported
from orchestrator.serving.errors import ApiError
from orchestrator.serving.requests import ChatRequest, Message, ScoreRequest, StreamOptions, TextPart, parse

USER = {"role": "user", "content": "1+1=?"}
ANSWER = {"role": "assistant", "content": "2"}

MESSAGES = [kind for kind in typing.get_args(chat.ChatCompletionMessageParam) if isinstance(kind, type)]
SCHEMAS = [
    (params.CompletionCreateParamsNonStreaming, ChatRequest),
    (params.CompletionCreateParamsStreaming, ChatRequest),
    (chat.ChatCompletionStreamOptionsParam, StreamOptions),
    (chat.ChatCompletionContentPartTextParam, TextPart),
    *((kind, Message) for kind in MESSAGES),
]


def asked(**more):
    return parse(json.dumps({"model": "m", "messages": [USER], **more}).encode(), ChatRequest)


def refused(**more):
    with pytest.raises(ApiError) as caught:
        asked(**more)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(("openai_type", "ours"), SCHEMAS, ids=lambda kind: kind.__name__)
def test_every_field_of_openais_types_is_supported_or_listed(openai_type, ours):
    fields = set(typing.get_type_hints(openai_type))
    assert fields, "the type has been read"
    assert fields - set(ours.model_fields) - set(ours.lacking) == set(), "decide what these ask for"


def test_every_field_of_openais_answer_can_be_sent_back_empty():
    answer = chat.ChatCompletionMessage(role="assistant", content="2").model_dump()
    assert answer.keys() <= {*Message.model_fields, *Message.lacking}


def test_a_field_is_not_both_supported_and_listed():
    for body in (ChatRequest, StreamOptions, TextPart, Message):
        assert not set(body.model_fields) & set(body.lacking)


@pytest.mark.parametrize("field", [*unsupported.CHAT, *ChatRequest.model_fields, "no_field_of_openais"])
def test_null_asks_for_nothing_in_any_field(field):
    if field in ("model", "messages"):
        assert refused(**{field: None}).param == field
    else:
        assert asked(**{field: None}) == asked()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frequency_penalty", 0),
        ("presence_penalty", -0.0),
        ("logit_bias", {}),
        ("logit_bias", {"17": 0, "18": 0.0, "19": None}),
        ("top_logprobs", 0),
        ("tools", []),
        ("tool_choice", "none"),
        ("tool_choice", "auto"),
        ("parallel_tool_calls", True),
        ("functions", []),
        ("function_call", "auto"),
        ("response_format", {"type": "text"}),
        ("response_format", {"type": "text", "json_schema": None}),
        ("modalities", ["text"]),
        ("verbosity", "medium"),
        ("reasoning_effort", "none"),
        ("user", "somebody"),
        ("safety_identifier", "5f2b"),
        ("metadata", {"run": "7"}),
        ("store", False),
        ("service_tier", "default"),
        ("prompt_cache_key", "k"),
        ("prompt_cache_options", {"mode": "implicit"}),
        ("prompt_cache_retention", "24h"),
        ("top_k", -1),
        ("min_p", 0.0),
        ("repetition_penalty", 1.0),
        ("stop", []),
        ("stop", ""),
        ("stream_options", {"include_usage": None, "include_obfuscation": False}),
    ],
)
def test_a_value_that_asks_for_nothing_changes_nothing(field, value):
    assert asked(**{field: value}) == asked()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frequency_penalty", 0.1),
        ("presence_penalty", "0.5"),
        ("presence_penalty", float("nan")),
        ("logit_bias", {"17": 1}),
        ("logit_bias", [0]),
        ("top_logprobs", 3),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}),
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("web_search_options", {}),
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x"}}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("verbosity", "low"),
        ("reasoning_effort", "high"),
        ("prediction", {"type": "content", "content": "2"}),
        ("moderation", {"model": "omni-moderation-latest"}),
        ("store", True),
        ("store", 0),
        ("service_tier", "flex"),
        ("user", 7),
        ("metadata", "x"),
        ("top_k", 40),
        ("top_k", False),
        ("min_p", 0.1),
        ("repetition_penalty", 1.1),
        ("guided_json", {}),
        ("best_of", 1),
    ],
)
def test_a_value_that_asks_for_more_is_refused_by_name(field, value):
    error = refused(**{field: value})
    assert error.param == field
    assert error.message == f"{field} is not supported by this service; leave it out"


def test_what_is_refused_in_a_message_has_its_path():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    text = {"type": "text", "text": "1+1=?", "prompt_cache_breakpoint": {"mode": "explicit"}}
    error = refused(messages=[USER, {"role": "user", "content": [text, image]}])
    assert error.param == "messages[1].content[1].image_url"
    error = refused(messages=[USER, ANSWER | {"tool_calls": [{"id": "1"}]}, USER])
    assert error.param == "messages[1].tool_calls"
    error = refused(messages=[ANSWER | {"content": [{"type": "refusal", "refusal": "no"}]}, USER])
    assert error.param == "messages[0].content[0].refusal"
    assert refused(stream_options={"include_obfuscation": True}).param == "stream_options.include_obfuscation"
    assert refused(messages=[{"role": "user", "content": None}]).param == "messages[0].content"
    error = refused(messages=[USER, {"role": "tool", "content": "2", "tool_call_id": "1"}])
    assert error.param == "messages[1].role"
    assert "'tool'" in error.message


DUMPED = chat.ChatCompletionMessage.model_validate(ANSWER | {"refusal": None})
SENT_BACK = {
    "openai, model_dump": DUMPED.model_dump(),
    "openai, without nulls": DUMPED.model_dump(exclude_none=True),
    "openai, to_dict": DUMPED.to_dict(),
    "openai, empty lists": ANSWER | {"annotations": [], "tool_calls": []},
    "with our score": DUMPED.model_dump() | {"self_reward": 0.93},
    "with no score": DUMPED.model_dump() | {"self_reward": None},
    "LangChain": {"content": "2", "role": "assistant", "name": "solver"},
    "LiteLLM": DUMPED.model_dump()
    | {"provider_specific_fields": {"refusal": None}, "reasoning_content": None, "thinking_blocks": None},
    "vLLM": ANSWER | {"reasoning": None, "reasoning_content": "", "tool_calls": [], "function_call": None},
    "in parts": {"role": "assistant", "content": [{"type": "text", "text": "2"}]},
}


@pytest.mark.parametrize("answer", SENT_BACK.values(), ids=SENT_BACK)
def test_an_answer_is_accepted_as_history_and_as_a_solution(answer):
    said = [(message.role, message.content) for message in asked(messages=[USER, answer, USER]).messages]
    assert said == [("user", "1+1=?"), ("assistant", "2"), ("user", "1+1=?")]
    body = {"model": None, "items": [{"messages": [USER, answer, USER, answer], "problem": None}]}
    (item,) = parse(json.dumps(body).encode(), ScoreRequest).items
    assert [message.content for message in item.messages] == ["1+1=?", "2", "1+1=?", "2"]


def test_an_answer_of_no_text_is_an_empty_one():
    answer = DUMPED.model_dump() | {"content": None}
    assert asked(messages=[USER, answer, USER]).messages[1].content == ""
