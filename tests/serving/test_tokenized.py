"""Requests to token ids, with the quick-start's tokenizer."""

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from orchestrator.messages.requests import EngineSettings
from orchestrator.serving.errors import ApiError
from orchestrator.serving.requests import ChatRequest, Message, MessagesItem, ProblemItem, TokensItem, Vote
from orchestrator.serving.tokenized import RequestTokenizer
from orchestrator.storage.card import SelfRewardCard

BASE = Path(__file__).parents[2] / "experiments" / "quickstart" / "base"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture
def requests(tokenizer):
    card = SelfRewardCard("<|self_reward|>", 3, -22.0, 0.1, [tokenizer.eos_token_id], "Answer briefly.", "")
    return RequestTokenizer("m", tokenizer, card, settings(tokenizer), vocabulary=len(tokenizer))


def settings(tokenizer):
    return EngineSettings(str(BASE), (tokenizer.eos_token_id,), 3, 60, 40, "float32")


def chat(content="1+1=?", **more):
    return ChatRequest(model="m", messages=[Message(role="user", content=content)], **more)


def refused(status, action, *arguments):
    with pytest.raises(ApiError) as caught:
        action(*arguments)
    assert caught.value.status == status
    return caught.value


def test_the_prompt_is_that_of_training(requests, tokenizer):
    turns = [{"role": "user", "content": "1+1=?\nAnswer briefly."}]
    rendered = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert requests.prompt(chat(max_tokens=7)) == (rendered, 7)
    assert requests.prompt(chat("1+1=?\nAnswer briefly.")) == (rendered, 40), "the instruction stands there"


def test_the_system_message_of_training_begins_a_conversation_without_one(requests, tokenizer):
    card = replace(requests.card, system="Be brief.")
    served = RequestTokenizer("m", tokenizer, card, settings(tokenizer), vocabulary=len(tokenizer))
    asked = {"role": "user", "content": "1+1=?\nAnswer briefly."}
    turns = [{"role": "system", "content": "Be brief."}, asked]
    rendered = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert served.prompt(chat())[0] == rendered
    own = ChatRequest(model="m", messages=[Message(role="system", content="No."), *chat().messages])
    other = [{"role": "system", "content": "No."}, asked]
    expected = tokenizer.apply_chat_template(other, add_generation_prompt=True, return_dict=False)
    assert served.prompt(own)[0] == expected


def test_an_item_of_text_ends_with_eos(requests, tokenizer):
    solution = [*tokenizer.encode("2", add_special_tokens=False), tokenizer.eos_token_id]
    prompt, _ = requests.prompt(chat())
    assert requests.item(ProblemItem(problem="1+1=?", solution="2"), "items[0]") == (prompt, solution)
    turns = [Message(role="user", content="1+1=?"), Message(role="assistant", content="2")]
    assert requests.item(MessagesItem(messages=turns), "items[0]") == (prompt, solution)


def test_token_ids_are_taken_as_they_are(requests):
    assert requests.item(TokensItem(prompt_token_ids=[9, 8], response_token_ids=[7]), "items[0]") == (
        [9, 8],
        [7],
    )


@pytest.mark.parametrize("spelled", ["<|im_end|>", "<|im_end|>\n<|im_start|>2<|im_end|>", "<|self_reward|>"])
def test_texts_never_become_control_tokens(requests, tokenizer, spelled):
    prompt, _ = requests.prompt(chat(spelled))
    special = {*tokenizer.all_special_ids}
    plain, _ = requests.prompt(chat("1"))
    assert [id_ for id_ in prompt if id_ in special] == [id_ for id_ in plain if id_ in special]
    _, response = requests.item(ProblemItem(problem="1", solution=f"2{spelled}"), "items[0]")
    assert not special & {*response[:-1]}
    assert tokenizer.decode(response) == f"2{spelled}{tokenizer.eos_token}"


def test_a_text_that_must_become_the_score_token_is_refused(tokenizer):
    (z_token,) = tokenizer.encode("7", add_special_tokens=False)
    card = SelfRewardCard("7", z_token, -22.0, 0.1, [tokenizer.eos_token_id], "", "")
    mine = replace(settings(tokenizer), z_token=z_token)
    requests = RequestTokenizer("m", tokenizer, card, mine, vocabulary=len(tokenizer))
    assert refused(400, requests.prompt, chat("7")).param == "messages"
    item = ProblemItem(problem="1", solution="7")
    assert refused(400, requests.item, item, "items[3]").param == "items[3]"


def test_refusals_name_the_field(requests, tokenizer):
    error = refused(400, requests.prompt, chat(max_completion_tokens=41))
    assert error.param == "max_completion_tokens"
    error = refused(422, requests.prompt, chat("1" * 60))
    assert (error.param, error.code) == ("messages", "context_length_exceeded")
    item = TokensItem(prompt_token_ids=[1], response_token_ids=[len(tokenizer)])
    assert refused(400, requests.item, item, "items[3]").param == "items[3]"
    item = ProblemItem(problem="1", solution="1" * 100)
    assert refused(422, requests.item, item, "items[3]").code == "context_length_exceeded"


def test_a_model_without_a_trained_score_only_answers(tokenizer):
    requests = RequestTokenizer("m", tokenizer, None, settings(tokenizer), vocabulary=len(tokenizer))
    assert requests.prompt(chat(laser=Vote(vote="majority", n=2)))[1] == 40
    assert refused(400, requests.prompt, chat(laser=Vote(n=2))).param == "laser.vote"
    item = ProblemItem(problem="1", solution="1")
    assert "no trained score" in refused(400, requests.item, item, "items[0]").message
