"""Requests: the schema, and refusals that name the field."""

import json

import pytest

from orchestrator.serving.errors import ApiError
from orchestrator.serving.requests import (
    ChatRequest,
    MessagesItem,
    ProblemItem,
    ScoreRequest,
    TokensItem,
    parse,
)

USER = [{"role": "user", "content": "1+1=?"}]


def chat(**more):
    return parse(json.dumps({"model": "m", "messages": USER} | more).encode(), ChatRequest)


def refused(body, schema):
    with pytest.raises(ApiError) as caught:
        parse(body if isinstance(body, bytes) else json.dumps(body).encode(), schema)
    assert caught.value.status == 400
    return caught.value


class TestRequests:
    def test_null_means_the_default_as_in_openais_schema(self):
        assert chat(temperature=None, stop=None, n=None) == chat()

    def test_a_stop_string_and_a_list_of_one_are_the_same(self):
        assert chat(stop="}").stop == chat(stop=["}"]).stop == ["}"]

    def test_text_parts_are_joined(self):
        parts = [{"type": "text", "text": "1+"}, {"type": "text", "text": "1"}]
        assert chat(messages=[{"role": "user", "content": parts}]).messages[0].content == "1+1"

    @pytest.mark.parametrize(
        ("more", "param", "message"),
        [
            ({"presence_penalty": 0.5}, "presence_penalty", "presence_penalty is not supported"),
            ({"n": 0}, "n", "greater than or equal to 1"),
            ({"top_p": 0}, "top_p", "greater than 0"),
            ({"messages": []}, "messages", "at least 1 item"),
            ({"messages": [USER]}, "messages[0]", "should be a JSON object"),
            ({"laser": []}, "laser", "should be a JSON object"),
            ({"<text>": 1}, "<text>", "<text> is not supported"),
            ({"messages": [{"role": [["user"]], "content": "x"}]}, "messages[0].role", "should be 'system'"),
            ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]", "a JSON object"),
            ({"messages": [{"role": "user", "content": "\ud83d"}]}, "messages[0].content", "surrogate"),
            ({"seed": 10**400}, "seed", "finite"),
            ({"stop": ["a", None]}, "stop[1]", "valid string"),
            (
                {"messages": [{"role": "tool", "content": "x"}]},
                "messages[0].role",
                "'system', 'developer', 'user' or 'assistant'",
            ),
            (
                {"messages": [*USER, {"role": "assistant", "content": "2"}]},
                "messages[1]",
                "continues no answer",
            ),
            ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "differ"),
            ({"laser": {}}, "laser", "either n"),
            ({"laser": {"n": 2, "adaptive": {}}}, "laser", "either n"),
            ({"laser": {"adaptive": {"confidence": 0.5}}}, "laser.adaptive.confidence", "greater than 0.5"),
            (
                {"laser": {"adaptive": {"min_samples": 5, "max_samples": 4}}},
                "laser.adaptive",
                "more than max_samples=4",
            ),
            ({"laser": {"n": 2}, "stream": True}, "laser", "leave out stream"),
        ],
    )
    def test_chat_refusals_name_the_field(self, more, param, message):
        error = refused({"model": "m", "messages": USER} | more, ChatRequest)
        assert error.param == param
        assert message in error.message

    def test_the_kind_of_an_item_follows_from_its_keys(self):
        items = [
            {"problem": "p", "solution": "s"},
            {"messages": [*USER, {"role": "assistant", "content": "2"}]},
            {"prompt_token_ids": [1], "response_token_ids": [2]},
        ]
        found = parse(json.dumps({"items": items}).encode(), ScoreRequest).items
        assert [type(item) for item in found] == [ProblemItem, MessagesItem, TokensItem]

    @pytest.mark.parametrize(
        ("item", "param", "message"),
        [
            ({"problem": "p"}, "items[1].solution", "required"),
            ({"question": "p"}, "items[1]", "give problem and solution"),
            ({"messages": [*USER, *USER]}, "items[1].messages", "must be the assistant's solution"),
            (
                {"prompt_token_ids": [1], "response_token_ids": []},
                "items[1].response_token_ids",
                "at least 1",
            ),
            (
                {"prompt_token_ids": [-1], "response_token_ids": [1]},
                "items[1].prompt_token_ids[0]",
                "greater than or equal to 0",
            ),
        ],
    )
    def test_score_refusals_name_the_item(self, item, param, message):
        error = refused({"items": [{"problem": "p", "solution": "s"}, item]}, ScoreRequest)
        assert error.param == param
        assert message in error.message

    @pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[1]", b'"text"', b"NaN"])
    def test_what_is_no_json_object(self, body):
        assert "JSON" in refused(body, ScoreRequest).message
