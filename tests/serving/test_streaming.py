"""Text as it streams, with real tokenizers of the kinds that models have."""

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from orchestrator.serving.streaming import StreamedText

BASE = Path(__file__).parents[2] / "experiments" / "quickstart" / "base"
CHARACTERS = "ab é✓日𝒳 1\n"


@pytest.fixture(scope="module")
def by_bytes():
    """The quick-start's tokenizer, which has a token for each byte."""
    return AutoTokenizer.from_pretrained(BASE).backend_tokenizer


@pytest.fixture(scope="module")
def merged():
    """Byte-level BPE with merges that end inside of characters, as Qwen and Llama 3 have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<eos>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["日本語 ✓✔ 𝒳𝒴 éè hello hello"] * 20, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def with_fallback():
    """Pieces with ▁ for a space, and bytes for what has no piece, as Llama 2 and Gemma have."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "1", "▁a"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [("▁", "a")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def streamed(tokenizer, text, stops=()):
    """The new text at each token and at the end."""
    stream = StreamedText(tokenizer, list(stops))
    new = []
    for token_id in tokenizer.encode(text, add_special_tokens=False).ids:
        new.append(stream.add([token_id]))
        if stream.stopped:
            break
    return [*new, stream.end()], stream


def test_a_character_comes_when_it_is_complete(by_bytes):
    new, _ = streamed(by_bytes, "aé✓b")
    assert new == ["a", "", "é", "", "", "✓", "b", ""]


def test_what_may_begin_a_stop_string_is_held_back(by_bytes):
    new, stream = streamed(by_bytes, "12ab", ["abc"])
    assert new == ["", "", "1", "2", "ab"]
    assert not stream.stopped


def test_the_first_stop_string_ends_the_text_and_is_not_part_of_it(by_bytes):
    new, stream = streamed(by_bytes, "1+1=2;\n3", ["\n3", "=2;"])
    assert stream.stopped
    assert "".join(new) == stream.text == "1+1"


def test_a_stop_string_inside_one_piece(by_bytes):
    stream = StreamedText(by_bytes, ["="])
    assert (stream.add(by_bytes.encode("1+1=2=3").ids), stream.end(), stream.text) == ("1+1", "", "1+1")


def test_an_incomplete_character_at_the_end_becomes_a_replacement_character(by_bytes):
    stream = StreamedText(by_bytes, [])
    assert (stream.add(by_bytes.encode("a✓").ids[:-1]), stream.end()) == ("", "a\ufffd")


def test_one_piece_is_all_of_the_text(by_bytes):
    stream = StreamedText(by_bytes, [])
    assert (stream.add(by_bytes.encode("a✓").ids), stream.add([]), stream.end()) == ("a✓", "", "")


def test_special_tokens_are_left_out(by_bytes):
    eos = by_bytes.token_to_id("<|im_end|>")
    stream = StreamedText(by_bytes, [])
    assert [stream.add([*by_bytes.encode("a").ids, eos]), stream.add([eos]), stream.end()] == ["a", "", ""]


@pytest.mark.parametrize("name", ["by_bytes", "merged", "with_fallback"])
def test_the_text_of_a_text_is_that_of_all_tokens_at_once(name, request):
    tokenizer, rng = request.getfixturevalue(name), random.Random(0)
    for _ in range(300):
        text = "".join(rng.choice(CHARACTERS) for _ in range(20))
        if name == "with_fallback":
            text = text.replace(" ", "▁")
        new, stream = streamed(tokenizer, text)
        whole = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids)
        assert "".join(new) == stream.text == whole


@pytest.mark.parametrize("name", ["by_bytes", "merged"])
def test_the_text_of_any_tokens_is_that_of_all_tokens_at_once(name, request):
    """Also of bytes that are no UTF-8 and of special tokens in the middle."""
    tokenizer, rng = request.getfixturevalue(name), random.Random(0)
    for _ in range(300):
        token_ids = [rng.randrange(tokenizer.get_vocab_size()) for _ in range(rng.randrange(1, 30))]
        stream = StreamedText(tokenizer, [])
        new = [stream.add([token_id]) for token_id in token_ids]
        assert "".join([*new, stream.end()]) == tokenizer.decode(token_ids)


def test_bytes_that_are_no_text_do_not_fail_a_stream_with_byte_fallback(with_fallback):
    """Such a tokenizer decodes them differently once others follow, so a stream may differ from the whole."""
    rng = random.Random(0)
    for _ in range(300):
        token_ids = [rng.randrange(3, with_fallback.get_vocab_size()) for _ in range(rng.randrange(1, 30))]
        stream = StreamedText(with_fallback, [])
        new = [stream.add([token_id]) for token_id in token_ids]
        assert "".join([*new, stream.end()]) == stream.text
        at_once = StreamedText(with_fallback, [])
        assert at_once.add(token_ids) + at_once.end() == with_fallback.decode(token_ids)
