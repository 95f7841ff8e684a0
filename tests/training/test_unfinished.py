"""Why no sample of a step finished. The samples lie in Ray's object store; the session around them is a fake,
because a real one needs pools, which no test can make write what it wants.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import ray

from orchestrator.data.tokens import ModelTokens
from orchestrator.data.training_prompts import Prompt
from orchestrator.errors import RunError
from orchestrator.messages.trajectories import Generated, pack
from orchestrator.training.calibration import measure_c_ref
from orchestrator.training.unfinished import warn_if_unfinished
from tests.settings import configure
from tests.small_tokenizers import qwen

LIMIT = 6


def one_problem(count):
    return [Prompt("p", [1])]


def samples(*responses, eos):
    """A batch of one group of these responses."""
    generated = [
        Generated(ids, [0.0] * len(ids), ids[-1] in eos, float("nan"), [0] * len(ids)) for ids in responses
    ]
    group = SimpleNamespace(trajectories=ray.put(pack([1], generated)))
    return SimpleNamespace(
        groups=[group],
        finished=np.array([sample.finished for sample in generated]),
        lengths=np.array([len(ids) for ids in responses]),
        z_logprobs=np.full(len(responses), np.nan, np.float32),
    )


@pytest.fixture
def session(ray_cluster):
    def make(eos, *responses, token=None):
        tokenizer = qwen()
        ids = tuple(tokenizer.convert_tokens_to_ids(eos))
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        batch = samples(
            *([end if id_ == "end" else id_ for id_ in response] for response in responses), eos=ids
        )
        said = []
        loss = {} if token else {"alpha": 0, "tau": 0}
        return SimpleNamespace(
            config=configure(rollout={"max_response_tokens": LIMIT}, self_reward={"token": token}, loss=loss),
            prepared=SimpleNamespace(
                tokens=ModelTokens(tokenizer, None, ids),
            ),
            problems=SimpleNamespace(first=one_problem),
            said_unfinished=False,
            said=said,
            say=said.append,
            batch=batch,
        )

    return make


def test_a_turn_end_that_is_no_eos_is_named_once(session):
    mine = session(["<|endoftext|>"], [5, "end", 5, 5, 5, 5], [5] * LIMIT)
    warn_if_unfinished(mine, mine.batch)
    warn_if_unfinished(mine, mine.batch)
    (said,) = mine.said
    assert "none of 2 responses ended with an EOS token (<|endoftext|>); 2 were cut off" in said
    assert "max_response_tokens=6" in said
    assert "ends a turn with <|im_end|>, which is no EOS token, and 1 of 2 responses hold it" in said
    assert said.endswith("set model.eos_tokens to ['<|im_end|>', '<|endoftext|>']")


def test_both_causes_are_named_where_no_response_holds_the_turn_end(session):
    mine = session(["<|endoftext|>"], [5] * LIMIT)
    warn_if_unfinished(mine, mine.batch)
    assert "0 of 1 responses hold it" in mine.said[0]
    assert mine.said[0].endswith(", or raise rollout.max_response_tokens")


def test_too_low_a_limit_is_named_where_the_turn_end_is_an_eos(session):
    mine = session(["<|im_end|>"], [5] * LIMIT)
    warn_if_unfinished(mine, mine.batch)
    assert "Raise rollout.max_response_tokens" in mine.said[0]


def test_nothing_is_said_where_a_sample_finished(session):
    mine = session(["<|im_end|>"], [5] * LIMIT, [5, "end"])
    warn_if_unfinished(mine, mine.batch)
    assert not mine.said


def test_with_a_self_reward_the_run_stops_with_the_same_explanation(session):
    mine = session(["<|endoftext|>"], [5, "end", 5, 5, 5, 5], token="<|vision_start|>")
    mine.collect = lambda groups, labels: mine.batch
    with pytest.raises(RunError, match=r"c_ref cannot be measured: none of 1 responses .*<\|im_end\|>"):
        measure_c_ref(mine)
