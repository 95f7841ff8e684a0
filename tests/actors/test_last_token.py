"""The one-pass self-reward without an engine: which tokens may be sampled, and how outputs are read."""

import math
from types import SimpleNamespace

import pytest
import torch
from vllm import SamplingParams
from vllm.logprobs import FlatLogprobs
from vllm.outputs import CompletionOutput, WeightVersionSpan
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from actors.last_token import LastTokenProcessor, awaits_score, sampling_extra_args
from actors.sampling import read_output
from orchestrator.messages.requests import EngineSettings

VOCABULARY, Z, EOS, OTHER_EOS = 8, 7, 5, 6
INF = float("inf")


@pytest.fixture
def processor():
    return LastTokenProcessor(SimpleNamespace(), torch.device("cpu"), False)


def scored(z_token=Z, eos_tokens=(EOS, OTHER_EOS)):
    return SamplingParams(extra_args=sampling_extra_args(z_token, list(eos_tokens)))


def update(processor, added=(), removed=(), moved=()):
    added = [(row, params, [1, 2], output_ids) for row, params, output_ids in added]
    processor.update_state(BatchUpdate(batch_size=4, added=added, removed=list(removed), moved=list(moved)))


def allowed(processor, rows=3):
    """For each row the tokens that can still be sampled."""
    logits = processor.apply(torch.arange(rows * VOCABULARY, dtype=torch.float32).reshape(rows, VOCABULARY))
    return [set(torch.nonzero(row > -INF).flatten().tolist()) for row in logits]


EVERY = set(range(VOCABULARY))
BEFORE_EOS, AFTER_EOS = EVERY - {Z}, {Z}


@pytest.mark.parametrize("output_ids", [[], [1], [EOS, 1], [1, 2, 3]])
def test_before_eos_only_z_c_is_barred(processor, output_ids):
    update(processor, added=[(0, scored(), output_ids)])
    logits = torch.randn(1, VOCABULARY)
    before = logits.clone()
    after = processor.apply(logits)
    assert after[0, Z] == -INF
    assert torch.equal(after[0, :Z], before[0, :Z])


@pytest.mark.parametrize("eos", [EOS, OTHER_EOS])
def test_after_any_eos_only_z_c_is_left(processor, eos):
    update(processor, added=[(0, scored(), [1, eos])])
    assert allowed(processor, 1) == [AFTER_EOS]


def test_after_a_given_response_only_z_c_is_left_at_the_first_token(processor):
    given = SamplingParams(extra_args=sampling_extra_args(Z, [EOS], response_given=True))
    update(processor, added=[(0, given, []), (1, scored(), [])])
    assert allowed(processor, 2) == [AFTER_EOS, BEFORE_EOS]


def test_z_c_is_left_even_where_another_processor_barred_it(processor):
    update(processor, added=[(0, scored(), [EOS])])
    logits = torch.full((1, VOCABULARY), -INF)
    assert torch.softmax(processor.apply(logits), dim=-1)[0, Z] == 1


def test_requests_without_a_score_are_untouched(processor):
    update(
        processor,
        added=[
            (0, SamplingParams(), [1, EOS]),
            (1, scored(), [EOS]),
            (2, SamplingParams(extra_args={"other": 1}), [EOS]),
        ],
    )
    logits = torch.randn(3, VOCABULARY)
    before = logits.clone()
    after = processor.apply(logits)
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert torch.isinf(after[1]).sum() == VOCABULARY - 1


def test_the_running_output_is_read_at_every_step(processor):
    output_ids = [1]
    update(processor, added=[(0, scored(), output_ids)])
    assert allowed(processor, 1) == [BEFORE_EOS]
    output_ids.append(EOS)
    processor.update_state(None)  # what vLLM calls while the batch stays the same
    assert allowed(processor, 1) == [AFTER_EOS]


def test_each_request_has_its_own_tokens(processor):
    update(processor, added=[(0, scored(z_token=3, eos_tokens=[2]), [2]), (1, scored(), [2])])
    assert allowed(processor, 2) == [{3}, BEFORE_EOS]


def test_requests_keep_their_rows_when_the_batch_is_compacted(processor):
    update(processor, added=[(0, scored(), [1]), (1, SamplingParams(), [EOS]), (2, scored(), [EOS])])
    assert allowed(processor) == [BEFORE_EOS, EVERY, AFTER_EOS]
    update(processor, removed=[0], moved=[(2, 0, MoveDirectionality.UNIDIRECTIONAL)])
    assert allowed(processor) == [AFTER_EOS, EVERY, EVERY]
    update(processor, moved=[(0, 1, MoveDirectionality.SWAP)])
    assert allowed(processor) == [EVERY, AFTER_EOS, EVERY]
    update(processor, added=[(1, SamplingParams(), [])])  # another request takes over the row
    assert allowed(processor) == [EVERY, EVERY, EVERY]


@pytest.mark.parametrize(
    ("params", "output_ids", "due"),
    [
        (scored(), [], False),
        (scored(), [EOS, 1], False),
        (scored(), [1, OTHER_EOS], True),
        (scored(), [1, EOS, Z], False),
        (SamplingParams(), [1, EOS], False),
    ],
)
def test_a_score_is_awaited_right_after_eos(params, output_ids, due):
    assert awaits_score(params, output_ids) is due


def test_it_takes_part_in_greedy_decoding(processor):
    assert not processor.is_argmax_invariant()


LIMIT = 4


@pytest.fixture
def settings():
    return EngineSettings(
        "model", (EOS, OTHER_EOS), Z, max_prompt_tokens=8, max_response_tokens=LIMIT, dtype="float32"
    )


def output(token_ids, *spans):
    """What vLLM returns: the n-th token has log-prob -n; `spans` are versions with their first tokens."""
    logprobs = FlatLogprobs()
    for number, token in enumerate(token_ids, 1):
        logprobs.append_fast([token], [-float(number)], [1], [None])
    ends = [start for _, start in spans[1:]] + [len(token_ids)]
    named = [WeightVersionSpan(name, start, end) for (name, start), end in zip(spans, ends, strict=False)]
    return CompletionOutput(0, "", token_ids, None, logprobs, weight_versions=named or None)


def read(token_ids, settings):
    sample = read_output(output(token_ids), settings, settings.max_response_tokens)
    assert sample.logprobs == [-float(number) for number in range(1, len(sample.response_ids) + 1)]
    return sample.response_ids, sample.finished, sample.z_logprob


def test_a_finished_response_ends_with_eos_and_z_c_is_only_its_score(settings):
    assert read([1, 2, EOS, Z], settings) == ([1, 2, EOS], True, -4.0)


def test_the_second_eos_ends_a_response_too(settings):
    assert read([1, OTHER_EOS, Z], settings) == ([1, OTHER_EOS], True, -3.0)


def test_eos_as_the_last_token_allowed_still_has_a_score(settings):
    assert read([1, 2, 3, EOS, Z], settings) == ([1, 2, 3, EOS], True, -5.0)


def test_eos_one_past_the_limit_is_cut_and_the_response_unfinished(settings):
    token_ids, finished, z_logprob = read([1, 2, 3, 4, EOS], settings)
    assert (token_ids, finished) == ([1, 2, 3, 4], False)
    assert math.isnan(z_logprob)


def test_a_truncated_response_has_no_score(settings):
    token_ids, finished, z_logprob = read([1, 2, 3, 4, 1], settings)
    assert (token_ids, finished) == ([1, 2, 3, 4], False)
    assert math.isnan(z_logprob)


def test_a_response_in_pieces_is_read_like_a_whole_one(settings):
    """In a stream z_c may come alone: it is the score of the response that ended in the piece before."""
    last = read_output(output([Z]), settings, room=4, last_token=EOS)
    assert (last.response_ids, last.finished, last.z_logprob) == ([], True, -1.0)
    cut = read_output(output([EOS]), settings, room=0, last_token=1)
    assert (cut.response_ids, cut.finished, math.isnan(cut.z_logprob)) == ([], False, True)
    nothing = read_output(output([]), settings, room=4, last_token=1)
    assert (nothing.response_ids, nothing.finished) == ([], False)


@pytest.mark.parametrize(
    ("token_ids", "finished"),
    [([1, EOS], True), ([1, 2, 3, 4], False), ([1, 2, 3, EOS], True), ([Z, EOS], True)],
)
def test_without_self_rewarding_every_token_is_the_responses(settings, token_ids, finished):
    plain = EngineSettings(**{**vars(settings), "z_token": None})
    found = read(token_ids, plain)
    assert found[:2] == (token_ids, finished)
    assert math.isnan(found[2])


@pytest.mark.parametrize(
    ("spans", "versions"),
    [
        ([("3", 0)], [3, 3, 3]),
        ([("3", 0), ("4", 1)], [3, 4, 4]),
        ([("9", 0), ("10", 1), ("11", 2)], [9, 10, 11]),
        ([("default", 0), ("0", 2)], [-1, -1, 0]),
        ([], [-1, -1, -1]),
    ],
)
def test_each_token_of_the_response_has_its_version(settings, spans, versions):
    assert read_output(output([1, 2, EOS, Z], *spans), settings, room=4).versions == versions
    assert read_output(output([1, 2, 3, 4, EOS], *spans), settings, room=3).versions == versions


def test_the_last_piece_of_a_stream_has_the_last_versions(settings):
    """vLLM names versions once, for all tokens of the request."""
    whole = [WeightVersionSpan("6", 0, 2), WeightVersionSpan("7", 2, 5)]
    last = output([EOS, Z])
    last.weight_versions = whole
    assert read_output(last, settings, room=4, last_token=1).versions == [7]
    assert read_output(output([1, 2]), settings, room=4).versions == [-1, -1]
