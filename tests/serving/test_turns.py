"""Roles and texts against small copies of the kinds of chat templates that models have."""

import copy
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from orchestrator.data.chat import ChatEncoder
from orchestrator.serving.errors import ApiError
from orchestrator.serving.requests import Message
from orchestrator.serving.turns import rendered_turns

BASE = Path(__file__).parents[2] / "experiments" / "quickstart" / "base"
INSTRUCTION = "Answer briefly."

PLAIN = """{% for m in messages %}<s>{{ m['role'] }}:{{ m['content'] }}</s>{% endfor %}"""
QWEN = """{% if messages[0]['role'] == 'system' %}<s>system:{{ messages[0]['content'] }}</s>
{% else %}<s>system:You are helpful.</s>{% endif %}
{% for m in messages %}
{% if m.role == 'user' or (m.role == 'system' and not loop.first) or m.role == 'assistant' %}
<s>{{ m.role }}:{{ m.content }}</s>{% endif %}{% endfor %}"""
LLAMA = """{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] | trim %}
{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}<h>system</h>Date. {{ first }}
{% for m in messages %}<h>{{ m['role'] }}</h>{{ m['content'] | trim }}{% endfor %}"""
GEMMA = """{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}
{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}
<t>{{ m['role'] | replace('assistant', 'model') }}:{{ m['content'] | trim }}</t>{% endfor %}"""
MISTRAL = """{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}
{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}
{% for m in turns %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate') }}{% endif %}
{% if m['role'] == 'user' %}[INST]{% if loop.last and system is defined %}{{ system + '\n\n' }}{% endif %}
{{ m['content'] }}[/INST]{% else %}{{ m['content'] | trim }}</s>{% endif %}{% endfor %}"""
FIRST_SYSTEM_ONLY = """{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% endif %}
{% for m in messages %}{% if m['role'] != 'system' %}<s>{{ m['role'] }}:{{ m['content'] }}</s>{% endif %}
{% endfor %}"""
REASONING = """{% for m in messages %}<s>{{ m['role'] }}:
{% if m['role'] == 'assistant' %}{{ m['content'].split('</think>')[-1] | trim }}{% else %}{{ m['content'] }}
{% endif %}</s>{% endfor %}"""
DEVELOPER = """{% for m in messages %}{% if m['role'] in ('developer', 'user', 'assistant') %}
<s>{{ m['role'] }}:{{ m['content'] }}</s>{% endif %}{% endfor %}"""
DEVELOPER_DROPPED = """{# no developer here #}""" + QWEN
CUT = """{% for m in messages %}<s>{{ m['role'] }}:{{ m['content'].split('#')[0] }}</s>{% endfor %}"""

ASKED = [("user", "1+1=?")]
DIALOGUE = [*ASKED, ("assistant", " 2\n"), ("user", "and 2+2?")]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture
def turns(tokenizer):
    def call(template, said, instruction=""):
        changed = copy.copy(tokenizer)
        changed.chat_template = template
        messages = [Message(role=role, content=content) for role, content in said]
        found = rendered_turns(ChatEncoder(changed), messages, instruction, "messages")
        return [(turn["role"], turn["content"]) for turn in found]

    return call


@pytest.mark.parametrize("template", [PLAIN, QWEN, LLAMA, GEMMA, MISTRAL, FIRST_SYSTEM_ONLY, REASONING])
def test_a_dialogue_stays_as_it_is(turns, template):
    assert turns(template, DIALOGUE) == DIALOGUE


@pytest.mark.parametrize("template", [PLAIN, QWEN, LLAMA, MISTRAL, FIRST_SYSTEM_ONLY, DEVELOPER_DROPPED])
@pytest.mark.parametrize("said", [ASKED, DIALOGUE])
def test_a_developers_message_becomes_the_systems(turns, template, said):
    assert turns(template, [("developer", "Be brief."), *said]) == [("system", "Be brief."), *said]


def test_a_template_that_knows_the_developer_keeps_the_role(turns):
    said = [("developer", "Be brief."), *DIALOGUE]
    assert turns(DEVELOPER, said) == said


@pytest.mark.parametrize("template", [PLAIN, QWEN, LLAMA])
def test_system_messages_may_come_twice_and_later_where_the_template_renders_them(turns, template):
    said = [("system", "Be brief."), ("developer", "Be kind."), *ASKED, ("system", "In English.")]
    assert turns(template, said) == [(role.replace("developer", "system"), text) for role, text in said]


@pytest.mark.parametrize(
    ("template", "said", "param", "message"),
    [
        (FIRST_SYSTEM_ONLY, [("system", "A."), ("system", "B."), *ASKED], "messages[1]", "of the system"),
        (FIRST_SYSTEM_ONLY, [*DIALOGUE, ("developer", "B.")], "messages[3]", "leaves out"),
        (DEVELOPER, [("system", "Be brief."), *ASKED], "messages[0]", "put its text into"),
        # What is left out is in the prompt all the same, as a part of another text.
        (FIRST_SYSTEM_ONLY, [("user", "1+1=?"), ("system", "1+1")], "messages[1]", "leaves out"),
        (GEMMA, [("system", "Be brief."), *ASKED], "messages", "(system, user): System role not supported"),
        (GEMMA, [("developer", "Be brief."), *ASKED], "messages", "System role not supported"),
        (GEMMA, [*ASKED, *ASKED], "messages", "must alternate"),
        (MISTRAL, [*DIALOGUE[:2], ("system", "A."), *ASKED], "messages", "roles must alternate"),
        (CUT, [*DIALOGUE, ("user", "1 # 2")], "messages[3]", "changes this text"),
    ],
)
def test_what_a_template_leaves_out_is_refused(turns, template, said, param, message):
    with pytest.raises(ApiError) as caught:
        turns(template, said)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert message in caught.value.message


def test_old_reasoning_may_be_left_out_and_no_other_text(turns):
    said = [*ASKED, ("assistant", "<think>\n1+1 is 2\n</think>\n\n2"), ("user", "a</think>b")]
    assert turns(REASONING, said) == said
    with pytest.raises(ApiError, match="changes this text"):
        turns(CUT, [*ASKED, ("assistant", "<think>1+1</think> 2 # 3")])


@pytest.mark.parametrize("template", [PLAIN, QWEN, LLAMA, GEMMA, MISTRAL])
def test_an_empty_text_leaves_nothing_out(turns, template):
    said = [("user", ""), ("assistant", "  "), ("user", "\n1+1=?\n")]
    assert turns(template, said) == said


def test_the_instruction_follows_the_last_question(turns):
    assert turns(GEMMA, DIALOGUE, INSTRUCTION)[::2] == [
        ("user", "1+1=?"),
        ("user", "and 2+2?\nAnswer briefly."),
    ]
    said = [("user", "1+1=?\nAnswer briefly. ")]
    assert turns(GEMMA, said, INSTRUCTION) == said
