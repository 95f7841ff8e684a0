import json
import math

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from orchestrator.data.chat import ChatEncoder
from orchestrator.data.problems import Problem, load_problems
from orchestrator.data.prompts import RENDERED_TOGETHER, PromptOrder, PromptSet, render_prompt
from orchestrator.data.tokens import check_round_trip, check_template, resolve_token
from orchestrator.errors import ConfigError, DataError

SPECIAL = ["<eos>", "<unk>", "<|user|>", "<|assistant|>", "<|vision|>", "<|reserved_0|>"]
TEMPLATE = (
    "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def tokenizer():
    """One token a character, and the special tokens above."""
    characters = "abcdefghijklmnopqrstuvwxyz0123456789+-= \n"
    vocabulary = {token: id_ for id_, token in enumerate([*SPECIAL, *characters])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<eos>", unk_token="<unk>", additional_special_tokens=SPECIAL[2:]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def write(path, *rows):
    path.write_text(
        "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    return str(path)


def load(path, **options):
    return load_problems(str(path), "problem", "answer", **options)


ROWS = [
    {"problem": "1+1=", "answer": 2, "kind": "sum"},
    {"problem": "Half of 1?", "answer": 0.5, "kind": None},
    {"problem": "x\u2028y", "answer": "\\frac12", "kind": "text"},
]


def as_json_lines(folder):
    return write(folder / "data.jsonl", *ROWS)


def as_json_array(folder):
    return write(folder / "data.json", json.dumps(ROWS, ensure_ascii=False, indent=1))


def as_parquet(folder):
    pq.write_table(
        pa.Table.from_pylist([{**row, "answer": str(row["answer"])} for row in ROWS]), folder / "data.parquet"
    )
    return str(folder / "data.parquet")


def as_saved_data_set(folder):
    data = datasets.Dataset.from_list([{**row, "answer": str(row["answer"])} for row in ROWS])
    datasets.DatasetDict({"train": data}).save_to_disk(str(folder / "saved"))
    return str(folder / "saved")


def as_data_set_folder(folder):
    (folder / "plain").mkdir()
    write(folder / "plain" / "train.jsonl", *({**row, "answer": str(row["answer"])} for row in ROWS))
    return str(folder / "plain")


@pytest.mark.parametrize(
    "form", [as_json_lines, as_json_array, as_parquet, as_saved_data_set, as_data_set_folder]
)
def test_the_same_problems_from_every_form(form, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    problems = load(form(tmp_path))
    assert [(problem.text, problem.reference, problem.kind, problem.line) for problem in problems] == [
        ("1+1=", "2", "sum", 1),
        ("Half of 1?", "0.5", None, 2),
        ("x\u2028y", "\\frac12", "text", 3),
    ]
    assert len({problem.id for problem in problems}) == 3


def test_ids_depend_on_content_alone_and_repeated_ones_on_their_line(tmp_path):
    first, second = {"problem": "1+1=", "answer": "2"}, {"problem": "2+2=", "answer": "4"}
    a, b, again = load(write(tmp_path / "a.jsonl", first, "\n", second, first))
    (alone,) = load(write(tmp_path / "b.jsonl", second))
    assert b.id == alone.id
    assert (b.line, again.id) == (3, f"{a.id}-4")


def test_an_id_of_the_data_is_kept(tmp_path):
    row = {"problem": "1+1=", "answer": "2", "id": 7}
    assert [problem.id for problem in load(write(tmp_path / "a.jsonl", row, row))] == ["7", "7-2"]


GOOD = {"problem": "1+1=", "answer": "2"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [GOOD, {"question": "1", "answer": "2"}],
            r"line 2: no field 'problem'; its fields are 'question', 'answer'.*data\.problem_field",
        ),
        ([GOOD, {"problem": "1"}], r"line 2: no field 'answer'.*data\.answer_field"),
        ([GOOD, "\n", {"problem": "1", "answer": " "}], "line 3: 'answer' is empty"),
        ([{"problem": "1", "answer": None}], "line 1: 'answer' is None"),
        ([{"problem": "1", "answer": True}], "line 1: 'answer' is True"),
        ([{"problem": "1", "answer": math.nan}], "line 1: 'answer' is nan"),
        ([{"problem": ["1"], "answer": "1"}], r"line 1: 'problem' is \['1'\]"),
        ([GOOD, '{"problem": \n'], r"data\.jsonl, line 2: is not JSON .* column"),
        ([GOOD, "5\n"], "line 2: is '5', not an object"),
        ([], "holds no problem"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(rows, message, tmp_path):
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "data.jsonl", *rows))


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(DataError, match=r"missing\.jsonl: no such file"):
        load(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match=r"'\.txt' files are not supported; convert it"):
        load(write(tmp_path / "data.txt", "a"))
    with pytest.raises(DataError, match=r"a data file whose name has no ending is not supported; convert it"):
        load(write(tmp_path / "data", "a"))
    with pytest.raises(DataError, match="cannot be read as parquet"):
        load(write(tmp_path / "data.parquet", "no parquet"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"problem": "\xe9"}')
    with pytest.raises(DataError, match="is not UTF-8 text \(at byte 13\)"):
        load(tmp_path / "latin.jsonl")
    with pytest.raises(DataError, match="split 'nope'"):
        load(as_saved_data_set(tmp_path), split="nope")


def test_prompt_is_problem_instruction_and_an_open_turn(tokenizer):
    with_instruction, without = (
        render_prompt(ChatEncoder(tokenizer), "1+1=", instruction, "a.jsonl") for instruction in ("think", "")
    )
    assert tokenizer.decode(with_instruction) == "<|user|>1+1=\nthink<|assistant|>"
    assert tokenizer.decode(without) == "<|user|>1+1=<|assistant|>"
    assert all(type(id_) is int for id_ in with_instruction)


def test_prompts_that_are_too_long_are_dropped_and_counted(tokenizer, tmp_path):
    problems = load(write(tmp_path / "a.jsonl", *({"problem": "a" * n, "answer": "1"} for n in (9, 3, 8))))
    chat = ChatEncoder(tokenizer)
    prompts = PromptSet(chat, problems, "", max_prompt_tokens=10)
    assert (len(prompts), prompts.dropped) == (2, 1)
    assert [len(problem.text) for problem in prompts.problems] == [3, 8]
    assert prompts.token_ids(1) == render_prompt(chat, "a" * 8, "", "")
    with pytest.raises(
        DataError, match=r"none of the 3 problems fits rollout\.max_prompt_tokens=4: .* has 5 tokens"
    ):
        PromptSet(chat, problems, "", max_prompt_tokens=4)


def test_a_problem_closes_no_turn(tokenizer, tmp_path):
    rows = [{"problem": f"1{text}", "answer": "1"} for text in ("", "<eos><|assistant|>2", "<|reserved_0|>")]
    problems = load(write(tmp_path / "a.jsonl", *rows))
    prompts = PromptSet(ChatEncoder(tokenizer), problems, "say <eos>", max_prompt_tokens=100)
    special = [*map(SPECIAL.index, ("<|user|>", "<|assistant|>"))]
    for index in range(3):
        ids = prompts.token_ids(index)
        assert [id_ for id_ in ids if id_ < len(SPECIAL) and id_ != SPECIAL.index("<unk>")] == special


def test_a_problem_that_becomes_control_tokens_is_named(tokenizer, tmp_path):
    problems = load(write(tmp_path / "a.jsonl", {"problem": "1", "answer": 1}, {"problem": "7", "answer": 1}))
    chat = ChatEncoder(tokenizer, z_token=tokenizer.get_vocab()["7"])
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: 'problem': the text becomes control tokens"):
        PromptSet(chat, problems, "", max_prompt_tokens=100)


def test_a_problem_that_the_template_refuses_is_named(tokenizer, tmp_path):
    problems = load(write(tmp_path / "a.jsonl", {"problem": "1", "answer": 1}, {"problem": "7", "answer": 1}))
    tokenizer.chat_template = (
        "{% if messages[0].content == '7' %}{{ raise_exception('no') }}{% endif %}<|user|>"
    )
    with pytest.raises(DataError, match=r"line 2: 'problem': the model's chat template fails on it .*no"):
        PromptSet(ChatEncoder(tokenizer), problems, "", max_prompt_tokens=100)


def made(*texts):
    return [
        Problem.from_text(f"{line}", text, "1", line=line, file="a.jsonl")
        for line, text in enumerate(texts, 1)
    ]


def test_prompts_of_several_batches_are_those_rendered_alone(tokenizer):
    chat = ChatEncoder(tokenizer)
    texts = [f"{n}+1=" + ("<eos>" if n % 700 == 0 else "") for n in range(2 * RENDERED_TOGETHER + 1)]
    prompts = PromptSet(chat, made(*texts), "think", max_prompt_tokens=100)
    assert [problem.text for problem in prompts.problems] == texts
    for index in (*range(0, len(texts), 97), 700, 1400, len(texts) - 1):
        alone = render_prompt(chat, texts[index], "think", "")
        assert prompts.token_ids(index) == alone


def test_the_first_bad_problem_of_a_batch_is_named(tokenizer):
    tokenizer.chat_template = "{% if messages[0].content == '7' %}{{ raise_exception('no') }}{% endif %}" + (
        "<|user|>{{ messages[0].content[:3] }}"
    )
    chat = ChatEncoder(tokenizer)
    fine = ["1"] * RENDERED_TOGETHER
    for texts, message in (
        ([*fine, "7", "abc\ud800"], "line 1001: 'problem': the model's chat template fails on it"),
        ([*fine, "2", "abc\ud800", "7"], "line 1002: 'problem' holds the lone surrogate"),
        ([*fine, "abc\ud800"], "line 1001: 'problem' holds the lone surrogate"),
    ):
        with pytest.raises(DataError, match=message):
            PromptSet(chat, made(*texts), "", max_prompt_tokens=100)


SIZES = st.integers(1, 30)


@given(size=SIZES, seed=st.integers(0, 2**32), epochs=st.integers(1, 3), n=SIZES)
def test_every_problem_comes_once_an_epoch(size, seed, epochs, n):
    order = PromptOrder(size, seed)
    drawn = []
    while len(drawn) < size * epochs:
        drawn += order.next(n)
    for epoch in range(epochs):
        assert sorted(drawn[epoch * size : (epoch + 1) * size]) == list(range(size))


@given(
    size=SIZES,
    seed=st.integers(0, 5),
    before=st.lists(st.integers(0, 40), max_size=5),
    after=st.integers(0, 70),
)
def test_a_resumed_order_continues_the_same(size, seed, before, after):
    order = PromptOrder(size, seed)
    for n in before:
        order.next(n)
    resumed = PromptOrder(size, seed)
    resumed.load_state_dict(json.loads(json.dumps(order.state_dict())))
    assert resumed.next(after) == order.next(after)
    assert resumed.state_dict() == order.state_dict()


def test_order_does_not_depend_on_how_it_is_cut():
    pieces, whole = PromptOrder(7, 3), PromptOrder(7, 3)
    assert [index for n in (1, 5, 0, 9) for index in pieces.next(n)] == whole.next(15)


def test_epochs_and_seeds_shuffle_differently():
    order = PromptOrder(50, 0)
    assert len({tuple(order.next(50)), tuple(order.next(50)), tuple(PromptOrder(50, 1).next(50))}) == 3


def test_the_state_of_another_data_set_or_seed_is_refused():
    state = PromptOrder(5, 0).state_dict()
    with pytest.raises(ConfigError, match=r"made with 5 problems, but this configuration has 6.*data\.train"):
        PromptOrder(6, 0).load_state_dict(state)
    with pytest.raises(ConfigError, match=r"run\.seed=0, not 1"):
        PromptOrder(5, 1).load_state_dict(state)


def test_a_single_token_resolves_special_or_not(tokenizer):
    assert resolve_token(tokenizer, "<|reserved_0|>") == SPECIAL.index("<|reserved_0|>")
    assert resolve_token(tokenizer, "7") == tokenizer.get_vocab()["7"]


def test_a_token_that_splits_is_refused_with_its_pieces_and_what_could_serve(tokenizer):
    with pytest.raises(
        ConfigError, match=r"'yes' is no single token: it becomes 'y' \(\d+\), 'e' \(\d+\), 's' \(\d+\)"
    ) as caught:
        resolve_token(tokenizer, "yes")
    assert str(caught.value).endswith("nothing else uses: <|reserved_0|>, <|vision|>")


@pytest.mark.parametrize("token", ["", "É", "<eos>", "<unk>"])
def test_a_token_that_is_nothing_unknown_or_taken_is_refused(tokenizer, token):
    with pytest.raises(ConfigError, match=r"self_reward\.token.*<\|reserved_0\|>"):
        resolve_token(tokenizer, token)


def test_a_tokenizer_without_spare_tokens_says_how_to_get_one(tokenizer):
    tokenizer.chat_template += "<|vision|><|reserved_0|>"
    with pytest.raises(ConfigError, match="no unused special token: add one"):
        resolve_token(tokenizer, "yes")


def test_template_is_needed_and_must_render(tokenizer):
    check_template(tokenizer)
    tokenizer.chat_template = "{{ raise_exception('system message needed') }}"
    with pytest.raises(ConfigError, match=r"system message needed.*chat_template\.jinja"):
        check_template(tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        check_template(tokenizer)


def test_round_trip_names_what_is_lost(tokenizer):
    check_round_trip(tokenizer, ["1+1=\nwhat", " a  b "])
    with pytest.raises(ConfigError, match="without 'É'"):
        check_round_trip(tokenizer, ["fine", "cafÉ"])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s|\S"), "removed")
    with pytest.raises(ConfigError, match="comes back as ''"):
        check_round_trip(tokenizer, ["a b"])


def test_a_problem_with_several_answers_has_them_all_in_its_reference(tmp_path):
    path = tmp_path / "olympiad.jsonl"
    path.write_text(json.dumps({"question": "x^2=1", "final_answer": ["1 ", "-1"]}) + "\n")
    assert [problem.reference for problem in load_problems(str(path), "question", "final_answer")] == [
        "1, -1"
    ]
    path.write_text(json.dumps({"question": "x^2=1", "final_answer": [["1"]]}) + "\n")
    with pytest.raises(DataError, match="neither text nor a number"):
        load_problems(str(path), "question", "final_answer")
