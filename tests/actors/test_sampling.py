"""A request's parameters, and the sinks that turn the engine's outputs into a group or into pieces."""

import asyncio
import math
from types import SimpleNamespace

import pytest
from vllm.logprobs import FlatLogprobs
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind

from actors.sampling import GroupSink, PendingGroup, PieceSink, sampling_params
from orchestrator.messages.requests import EngineSettings

EOS, Z = 8, 9
SETTINGS = EngineSettings("m", (EOS,), Z, max_prompt_tokens=4, max_response_tokens=3, dtype="float32")
WITHOUT_SCORE = EngineSettings("m", (EOS,), None, max_prompt_tokens=4, max_response_tokens=3, dtype="float32")


def output(token_ids, finished=True):
    """As vLLM's RequestOutput, of which a sink reads the outputs and `finished` alone."""
    logprobs = FlatLogprobs()
    for token in token_ids:
        logprobs.append_fast([token], [-float(token)], [1], [None])
    return SimpleNamespace(outputs=[CompletionOutput(0, "", token_ids, None, logprobs)], finished=finished)


def test_a_scored_request_stops_at_z_c_and_has_room_for_it():
    params = sampling_params(SETTINGS, seed=5, room=3)
    assert params.stop_token_ids == [Z]
    assert params.max_tokens == 4
    assert params.extra_args == {"self_reward_token": Z, "eos_token_ids": [EOS], "response_given": False}
    assert params.output_kind == RequestOutputKind.FINAL_ONLY


def test_without_a_score_a_request_stops_at_eos():
    params = sampling_params(WITHOUT_SCORE, seed=5, room=3)
    assert params.stop_token_ids == [EOS]
    assert params.max_tokens == 3
    assert params.extra_args is None


def test_the_score_of_a_given_response_is_one_token():
    params = sampling_params(SETTINGS, seed=0, room=0, response_given=True)
    assert params.max_tokens == 1
    assert params.extra_args["response_given"]


def test_the_caller_s_choices_reach_vllm():
    params = sampling_params(SETTINGS, seed=2**63 + 1, room=2, temperature=0.5, top_p=0.9, stream=True)
    assert (params.seed, params.temperature, params.top_p) == (1, 0.5, 0.9)
    assert params.output_kind == RequestOutputKind.DELTA


def test_a_group_is_done_with_its_last_sample_in_the_order_of_its_seeds():
    async def run():
        loop = asyncio.get_running_loop()
        group = PendingGroup(loop.create_future(), loop, [None, None])
        GroupSink(group, 1, SETTINGS).put(output([1, 2, 3, 4]))
        await asyncio.sleep(0)
        assert not group.done.done()
        GroupSink(group, 0, SETTINGS).put(output([5, EOS, Z]))
        return await group.done

    first, second = asyncio.run(run())
    assert (first.response_ids, first.finished, first.z_logprob) == ([5, EOS], True, -9.0)
    assert (second.response_ids, second.finished) == ([1, 2, 3], False)
    assert math.isnan(second.z_logprob)


@pytest.mark.parametrize(
    ("pieces", "response", "finished", "z_logprob"),
    [
        ([[1], [EOS], [Z]], [1, EOS], True, -9.0),
        ([[1, 2], [3], [4]], [1, 2, 3], False, math.nan),  # the place of z_c holds another token
    ],
)
def test_pieces_are_a_whole_response_and_end(pieces, response, finished, z_logprob):
    async def run():
        sink = PieceSink(asyncio.Queue(), asyncio.get_running_loop(), SETTINGS, room=3, last_token=-1)
        for number, token_ids in enumerate(pieces, 1):
            sink.put(output(token_ids, finished=number == len(pieces)))
        found = []
        while (piece := await asyncio.wait_for(sink.pieces.get(), 10)) is not None:
            found.append(piece)
        return found

    found = asyncio.run(run())
    assert [token for piece in found for token in piece.response_ids] == response
    assert found[-1].finished is finished
    assert found[-1].z_logprob == pytest.approx(z_logprob, nan_ok=True)
