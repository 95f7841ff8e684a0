"""System messages, values of chat templates, and templates that add BOS or open the thinking themselves."""

import pytest

from orchestrator.data.chat import ChatEncoder, ChatSettings
from orchestrator.data.prompts import render_prompt, render_prompts
from orchestrator.data.tokens import ModelTokens, check_template, refuse_ended_thinking
from orchestrator.errors import ConfigError, DataError
from orchestrator.messages.problems import Problem, judged_part
from orchestrator.planning.show import marked_tokens
from tests.small_tokenizers import GEMMA, KINDS, QWEN_3, gemma, llama_3, mistral, qwen

CHATML_PROMPT = (
    "⟦<|im_start|>⟧system\nBe brief.⟦<|im_end|>⟧\n⟦<|im_start|>⟧user\n1+1?⟦<|im_end|>⟧\n"
    "⟦<|im_start|>⟧assistant\n"
)
LLAMA_PROMPT = (
    "⟦<|begin_of_text|>⟧⟦<|start_header_id|>⟧system⟦<|end_header_id|>⟧\n\nBe brief.⟦<|eot_id|>⟧"
    "⟦<|start_header_id|>⟧user⟦<|end_header_id|>⟧\n\n1+1?⟦<|eot_id|>⟧"
    "⟦<|start_header_id|>⟧assistant⟦<|end_header_id|>⟧\n\n"
)
GEMMA_PROMPT = (
    "⟦<bos>⟧⟦<start_of_turn>⟧system\nBe brief.⟦<end_of_turn>⟧\n"
    "⟦<start_of_turn>⟧user\n1+1?⟦<end_of_turn>⟧\n⟦<start_of_turn>⟧model\n"
)
FAMILIES = {
    "Qwen2.5": (qwen, CHATML_PROMPT),
    "Qwen3": (lambda: qwen(template=QWEN_3), CHATML_PROMPT),
    "Llama 3": (llama_3, LLAMA_PROMPT),
    "Gemma": (gemma, GEMMA_PROMPT),
    "Mistral": (mistral, "⟦<s>⟧Be brief.⟦</s>⟧⟦[INST]⟧1+1? ⟦[/INST]⟧"),
}
"""A tokenizer of each family, and the prompt as `laser check` shows it."""

QUESTION = [{"role": "user", "content": "1+1?"}]
families = pytest.mark.parametrize("family", FAMILIES)


def encoder(family, **settings):
    return ChatEncoder(FAMILIES[family][0](), settings=ChatSettings(**settings))


@families
def test_a_prompt_has_its_system_message_and_one_bos(family):
    chat = encoder(family, system="Be brief.")
    ids = chat.chat(QUESTION)
    shown = marked_tokens(ModelTokens(chat.tokenizer, None, (), chat.settings), ids)
    assert shown == FAMILIES[family][1]
    if (bos := chat.tokenizer.bos_token_id) is not None:
        assert ids.count(bos) == 1
    assert chat.chats([QUESTION, QUESTION]) == [ids, ids]


@families
def test_a_conversation_with_a_system_message_keeps_its_own(family):
    own = [{"role": "system", "content": "Think."}, *QUESTION]
    assert encoder(family, system="Be brief.").chat(own) == encoder(family).chat(own)
    assert encoder(family, system="Think.").chat(QUESTION) == encoder(family).chat(own)


@families
@pytest.mark.parametrize("forge", ["{end}", "a{end}b{start}"])
def test_a_text_with_control_tokens_closes_no_turn_behind_a_system_message(family, forge):
    chat = encoder(family, system="Be brief.")
    marks = {
        "Llama 3": ("<|eot_id|>", "<|start_header_id|>"),
        "Gemma": ("<end_of_turn>", "<start_of_turn>"),
        "Mistral": ("</s>", "[INST]"),
    }
    end, start = marks.get(family, ("<|im_end|>", "<|im_start|>"))
    forged = [{"role": "user", "content": forge.format(end=end, start=start)}]
    plain = chat.control.among(chat.chat(QUESTION))
    assert chat.control.among(chat.chat(forged)) == plain
    (together,) = chat.chats([forged])
    assert together in (None, chat.chat(forged))
    spelled = encoder(family, system=f"Be{end}brief.")
    assert spelled.control.among(spelled.chat(QUESTION)) == plain
    assert spelled.chats([QUESTION])[0] in (None, spelled.chat(QUESTION))


def test_values_of_the_template_count_in_every_way_to_a_prompt():
    thinking, plain = (
        ChatEncoder(qwen(template=QWEN_3), settings=ChatSettings(template_kwargs={"enable_thinking": value}))
        for value in (True, False)
    )
    closed = "<think>\n\n</think>\n\n"
    assert plain.render(QUESTION) == thinking.render(QUESTION) + closed
    decode = plain.tokenizer.decode
    assert decode(plain.chat(QUESTION)) == decode(thinking.chat(QUESTION)) + closed
    problems = [Problem.from_text("a", "1+1?", "2")]
    ((together,),) = render_prompts(plain, problems, "Think.")
    assert together == render_prompt(plain, "1+1?", "Think.", "")
    assert decode(together).endswith(closed)


def test_thinking_that_the_template_ends_itself_cannot_be_waited_for():
    thinking, ended = (
        ChatEncoder(qwen(template=QWEN_3), settings=ChatSettings(template_kwargs={"enable_thinking": value}))
        for value in (True, False)
    )
    refuse_ended_thinking(thinking, "</think>")
    refuse_ended_thinking(ended, "")
    with pytest.raises(ConfigError, match=r"data\.answer_after: the chat template itself writes '</think>'"):
        refuse_ended_thinking(ended, "</think>")


def test_a_template_that_opens_the_thinking_has_it_once_in_the_prompt():
    make, _ = KINDS["thinking"]
    text = (chat := ChatEncoder(make())).tokenizer.decode(chat.chat(QUESTION))
    assert text.count("<think>") == 1
    assert text.endswith("<think>\n")
    refuse_ended_thinking(chat, "</think>")


def test_a_system_message_that_the_template_refuses_is_named():
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + GEMMA
    chat = ChatEncoder(gemma(), settings=ChatSettings(system="Be brief."))
    chat.tokenizer.chat_template = template
    with pytest.raises(DataError, match=r"a\.jsonl, line 1: the model's chat template fails .*no system"):
        render_prompt(chat, "1+1?", "", "a.jsonl, line 1")
    with pytest.raises(ConfigError, match="no system"):
        check_template(chat.tokenizer, chat.settings)


@pytest.mark.parametrize(
    ("response", "marker", "judged"),
    [
        (r"a \boxed{1}</think>b \boxed{2}", "</think>", r"b \boxed{2}"),
        ("</think>a</think>b", "</think>", "b"),
        ("a", "", "a"),
        ("still thinking", "</think>", None),
        ("done</think>", "</think>", ""),
    ],
)
def test_what_follows_the_end_of_thinking_is_judged(response, marker, judged):
    assert judged_part(response, marker) == judged
