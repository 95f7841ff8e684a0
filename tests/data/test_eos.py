"""Which tokens end a response, and a template that ends its turns with another one."""

import json

import pytest
from transformers import LlamaConfig, Qwen2Config

from orchestrator.data.chat import ChatEncoder
from orchestrator.data.eos import (
    chosen_eos_ids,
    eos_token_ids,
    response_end,
    template_turn_end,
    turn_end_warning,
)
from orchestrator.data.tokens import load_tokens, refuse_uneven_heads
from orchestrator.errors import ConfigError
from tests.small_tokenizers import CHATML, REPEATING, byte_level, gemma, llama_3, mistral, qwen, tokenizer_of

VOCABULARY = 400


def model(folder, tokenizer, **shape):
    """A model's folder without weights."""
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 8,
        "num_attention_heads": 4,
        "eos_token_id": None,
    } | shape
    LlamaConfig(**shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def generation_config(folder, **keys):
    (folder / "generation_config.json").write_text(json.dumps(keys))


@pytest.fixture
def tokenizer():
    return qwen()


@pytest.fixture
def eos(tokenizer):
    return tokenizer.eos_token_id


@pytest.mark.parametrize(("configured", "more"), [(None, []), (3, [3]), ([9, 3], [3, 9])])
def test_they_are_those_of_generation_config_and_the_tokenizers(tokenizer, eos, tmp_path, configured, more):
    model(tmp_path, tokenizer, eos_token_id=7)
    generation_config(tmp_path, eos_token_id=configured)
    assert eos_token_ids(tokenizer, str(tmp_path)) == [*more, eos], "config.json does not count"


@pytest.mark.parametrize(("configured", "more"), [(None, []), (3, [3]), ([9, 3], [3, 9])])
def test_without_generation_config_they_are_those_of_config(tokenizer, eos, tmp_path, configured, more):
    model(tmp_path, tokenizer, eos_token_id=configured)
    assert eos_token_ids(tokenizer, str(tmp_path)) == [*more, eos]
    assert load_tokens(str(tmp_path), None).eos_tokens == (*more, eos)


def test_those_of_a_nested_text_config_count(tokenizer, eos, tmp_path):
    text = Qwen2Config(vocab_size=VOCABULARY, eos_token_id=[5, 6]).to_dict()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text}))
    assert eos_token_ids(tokenizer, str(tmp_path)) == [5, 6, eos]


def test_without_any_file_they_are_the_tokenizers(tokenizer, eos, tmp_path):
    assert eos_token_ids(tokenizer, str(tmp_path)) == [eos]
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match=r"names an EOS token; set model\.eos_tokens"):
        eos_token_ids(tokenizer, str(tmp_path))


@pytest.mark.parametrize(
    "content", ["{", '{"eos_token_id": "</s>"}', '{"eos_token_id": [-1]}', '{"eos_token_id": [[1]]}']
)
def test_a_generation_config_that_names_no_ids_is_refused(tokenizer, tmp_path, content):
    model(tmp_path, tokenizer)
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"generation_config\.json cannot be read|which is no token id"):
        load_tokens(str(tmp_path), None)


def test_a_setting_replaces_them(tokenizer, eos, tmp_path):
    folder = model(tmp_path, tokenizer, eos_token_id=3)
    ids = tokenizer.convert_tokens_to_ids
    assert load_tokens(folder, None, ["<|endoftext|>", 5]).eos_tokens == (5, ids("<|endoftext|>"))
    assert chosen_eos_ids(tokenizer, ["<|im_end|>", eos], "k") == [eos]
    for wrong in ("<|nothing|>", "ab", "", VOCABULARY, len(tokenizer)):
        with pytest.raises(ConfigError, match=r"model\.eos_tokens: .* is no single token"):
            load_tokens(folder, None, [wrong])


@pytest.mark.parametrize(
    ("tokenizer", "end"),
    [
        (qwen(), "<|im_end|>"),
        (qwen(template=REPEATING), None),
        (llama_3(), "<|eot_id|>"),
        (gemma(), "<end_of_turn>"),
        (mistral(), "</s>"),
        (qwen(template="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"), None),
        (qwen(template="{{ messages[0].content }}"), None),
        (qwen(template="{% if messages[1:] %}{{ raise_exception('one') }}{% endif %}x"), None),
    ],
)
def test_the_templates_own_end_of_a_turn(tokenizer, end):
    expected = None if end is None else tokenizer.convert_tokens_to_ids(end)
    assert template_turn_end(ChatEncoder(tokenizer)) == expected


def test_a_turn_end_that_is_no_eos_is_told_with_its_cure(tmp_path):
    tokenizer = byte_level(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], eos_token="<|endoftext|>", chat_template=CHATML
    )
    folder = model(tmp_path, tokenizer)
    tokens = load_tokens(folder, None)
    warning = turn_end_warning(tokens.chat, tokens.eos_tokens)
    assert "ends an assistant's turn with <|im_end|>" in warning
    assert warning.endswith("set model.eos_tokens to ['<|im_end|>', '<|endoftext|>']")
    mended = load_tokens(folder, None, ["<|im_end|>", "<|endoftext|>"])
    assert turn_end_warning(mended.chat, mended.eos_tokens) is None
    (tmp_path / "config.json").write_text(
        (tmp_path / "config.json")
        .read_text()
        .replace('"eos_token_id": null', f'"eos_token_id": {mended.eos_tokens[1]}')
    )
    mended = load_tokens(folder, None)
    assert turn_end_warning(mended.chat, mended.eos_tokens) is None


@pytest.mark.parametrize(
    ("eos", "end"),
    [
        (["<|endoftext|>", "<|im_end|>"], "<|im_end|>"),
        (["<|endoftext|>", "<|vision_start|>"], "<|endoftext|>"),
        (["<|vision_start|>"], "<|vision_start|>"),
    ],
)
def test_a_given_response_ends_as_the_model_ends_one(eos, end):
    tokenizer = qwen()
    tokenizer.eos_token = "<|endoftext|>"
    ids = tokenizer.convert_tokens_to_ids
    assert response_end(ChatEncoder(tokenizer), ids(eos)) == ids(end)


def test_tokens_without_a_row_in_the_embedding_are_refused(tmp_path):
    tokenizer, z_token = tokenizer_of("qwen")
    rows = tokenizer.convert_tokens_to_ids(z_token)
    for vocabulary, message in (
        (rows, rf"self_reward\.token: .* has id {rows}, but the model's last embedding has id {rows - 1}"),
        (rows - 1, r"self_reward\.token"),
    ):
        folder = model(tmp_path, tokenizer, vocab_size=vocabulary)
        with pytest.raises(ConfigError, match=message):
            load_tokens(folder, z_token)
    with pytest.raises(ConfigError, match=r"the EOS token '<\|im_end\|>' has id .*; add rows"):
        load_tokens(folder, None)
    turn = tokenizer.convert_tokens_to_ids("<|im_start|>")
    folder = model(tmp_path, tokenizer, vocab_size=turn)
    with pytest.raises(ConfigError, match=r"the chat template's token '<\|im_start\|>' has id"):
        load_tokens(folder, None, [1])


def test_z_is_no_eos_token(tokenizer, tmp_path):
    folder = model(tmp_path, tokenizer, eos_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"))
    with pytest.raises(ConfigError, match="is one of the model's EOS tokens"):
        load_tokens(folder, "<|vision_start|>")


def test_heads_must_be_divisible(tokenizer, tmp_path):
    folder = model(tmp_path, tokenizer)
    refuse_uneven_heads(folder, 2, "k")
    with pytest.raises(ConfigError, match="k=3 does not divide the model's 4 attention heads"):
        refuse_uneven_heads(folder, 3, "k")
