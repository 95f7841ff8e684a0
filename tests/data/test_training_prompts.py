"""The order over several sources: shares, resumes, and prompts that are too long."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.sources import Source
from orchestrator.data.chat import ChatEncoder
from orchestrator.data.problems import ProblemSource
from orchestrator.data.training_prompts import PromptDraws, TrainingPrompts
from orchestrator.errors import ConfigError, DataError
from tests.small_tokenizers import qwen

CHAT = ChatEncoder(qwen())


class Rows(list):
    """Rows that lie in memory."""

    def place(self, number):
        return "made.jsonl", number + 1


def source(name, size, weight=1.0, length=lambda number: 1, **settings):
    rows = Rows(
        {"problem": f"{name} {number} {'x' * length(number)}", "answer": "1"} for number in range(size)
    )
    return ProblemSource(Source("made.jsonl", name, weight=weight, **settings), rows=rows)


def prompts_of(*sources, limit=10_000):
    return TrainingPrompts(CHAT, sources, limit)


def drawn(draws, count):
    return [prompt.problem.text for prompt in draws.next(count)]


@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.5]), min_size=1, max_size=4),
    before=st.integers(0, 60),
    after=st.integers(1, 60),
)
def test_each_source_has_its_share_and_a_resumed_order_continues(weights, before, after):
    prompts = prompts_of(*(source(f"s{number}", 5, weight) for number, weight in enumerate(weights)))
    draws = prompts.draws(3)
    first = drawn(draws, before)
    state = json.loads(json.dumps(draws.state_dict()))
    whole = first + drawn(draws, after)
    resumed = prompts.draws(3)
    resumed.load_state_dict(state)
    assert first + drawn(resumed, after) == whole
    assert resumed.state_dict() == draws.state_dict()
    for number, weight in enumerate(weights):
        own = [text for text in whole if text.startswith(f"s{number} ")]
        assert abs(len(own) - len(whole) * weight / sum(weights)) < len(weights)
        for start in range(0, len(own) - 4, 5):
            assert len({*own[start : start + 5]}) == 5, "each problem of a source comes once in its epoch"


def test_sources_of_one_size_have_orders_of_their_own():
    texts = drawn(prompts_of(source("a", 30), source("b", 30)).draws(0), 60)
    orders = [[text.split()[1] for text in texts if text.startswith(name)] for name in "ab"]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


def test_a_prompt_that_is_too_long_is_skipped_and_the_next_takes_its_place():
    lengths = {number: 400 if number % 3 == 0 else 1 for number in range(9)}
    prompts = prompts_of(source("a", 9, length=lengths.get), limit=100)
    draws = prompts.draws(0)
    epoch = drawn(draws, 6)
    assert {int(text.split()[1]) for text in epoch} == {1, 2, 4, 5, 7, 8}
    state = draws.state_dict()
    more = drawn(draws, 30)
    resumed = prompts.draws(0)
    resumed.load_state_dict(state)
    assert drawn(resumed, 30) == more
    assert resumed.skipped == draws.skipped >= 3 * 5
    sample = prompts.check()
    assert (sample.prompts, sample.too_long) == (9, 3)
    assert sample.longest <= 100


def test_sources_without_any_prompt_that_fits_are_refused_before_and_while_drawing():
    prompts = prompts_of(source("a", 3), source("b", 3, length=lambda number: 400), limit=100)
    message = r"made\.jsonl: none of the 3 problems fits rollout\.max_prompt_tokens=100"
    with pytest.raises(DataError, match=message):
        prompts.check()
    with pytest.raises(DataError, match=message):
        prompts.draws(0).next(4)


def test_each_source_has_its_own_instruction():
    prompts = prompts_of(source("a", 1, instruction="Think."), source("b", 1))
    texts = [CHAT.tokenizer.decode(prompt.token_ids) for prompt in prompts.draws(0).next(2)]
    assert [text.count("Think.") for text in sorted(texts, key=lambda text: "b 0" in text)] == [1, 0]


def test_the_state_of_other_sources_is_refused():
    one, two = prompts_of(source("a", 3)), prompts_of(source("a", 3), source("b", 3))
    with pytest.raises(ConfigError, match=r"sources a, b, but this configuration has a:"):
        one.draws(0).load_state_dict(two.draws(0).state_dict())
    with pytest.raises(ConfigError, match=r"made with 3 problems, but this configuration has 4"):
        prompts_of(source("a", 4)).draws(0).load_state_dict(one.draws(0).state_dict())


def test_a_state_of_an_earlier_version_is_read():
    draws = prompts_of(source("a", 7)).draws(2)
    draws.load_state_dict({"seed": 2, "size": 7, "epoch": 0, "position": 3})
    assert isinstance(draws, PromptDraws)
    assert drawn(draws, 4) == drawn(prompts_of(source("a", 7)).draws(2), 7)[3:]
