"""The token index: positions and targets by hand, and log-probs of a real model."""

import math

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from actors.rows import as_prompt, rollout_rows
from orchestrator.messages.trajectories import Sample

Z, EOS, PAD = 30, 2, 0
CPU = torch.device("cpu")


def sample(prompt_ids, response_ids, finished=True):
    logprobs = -np.arange(1, len(response_ids) + 1, dtype=np.float32)
    z_logprob = -20.0 - len(response_ids) if finished else math.nan
    return Sample(
        np.array(prompt_ids, np.int32), np.array(response_ids, np.int32), logprobs, finished, z_logprob
    )


SHORT = sample([4, 5], [6, EOS])
LONG = sample([7, 8, 9], [10, 11, 12, EOS])
TRUNCATED = sample([4], [13, 14, 15], finished=False)


@pytest.mark.parametrize("pad", [PAD, EOS])
def test_positions_and_targets_by_hand(pad):
    rows = rollout_rows([SHORT, LONG], Z, pad, CPU)
    assert rows.input_ids.tolist() == [[4, 5, 6, EOS, pad, pad, pad], [7, 8, 9, 10, 11, 12, EOS]]
    # From the last prompt token, which predicts the first response token, to EOS, which z_c follows.
    assert rows.read.int().tolist() == [[0, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1]]
    assert rows.targets.tolist() == [6, EOS, Z, 10, 11, 12, EOS, Z]
    assert rows.is_token.int().tolist() == [1, 1, 0, 1, 1, 1, 1, 0]
    assert rows.sample.tolist() == [0, 0, 1, 1, 1, 1]
    assert rows.behaviour_logprobs.tolist() == [-1, -2, -1, -2, -3, -4]
    assert rows.behaviour_z_logprobs.tolist() == [-22, -24]


def test_a_truncated_sample_is_read_alike_and_its_engine_score_is_nan():
    rows = rollout_rows([TRUNCATED, SHORT], Z, PAD, CPU)
    assert rows.read.int().tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    assert rows.targets.tolist() == [13, 14, 15, Z, 6, EOS, Z]
    assert rows.behaviour_z_logprobs.isnan().tolist() == [True, False]


def test_without_self_rewarding_the_same_positions_are_read():
    with_z, without_z = rollout_rows([SHORT, LONG], Z, PAD, CPU), rollout_rows([SHORT, LONG], None, PAD, CPU)
    assert torch.equal(with_z.read, without_z.read)
    assert torch.equal(with_z.targets[with_z.is_token], without_z.targets[without_z.is_token])
    assert Z not in without_z.targets


def test_as_prompt_a_sample_is_read_at_its_end_alone():
    rows = rollout_rows([as_prompt(SHORT), as_prompt(LONG)], Z, PAD, CPU)
    whole = rollout_rows([SHORT, LONG], Z, PAD, CPU)
    assert torch.equal(rows.input_ids, whole.input_ids)
    assert rows.read.int().tolist() == [[0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1]]
    assert (rows.targets.tolist(), rows.is_token.tolist()) == ([Z, Z], [False, False])
    assert rows.behaviour_z_logprobs.tolist() == [-22, -24]
    assert len(rows.sample) == len(rows.behaviour_logprobs) == 0


def test_an_empty_micro_batch_has_no_tokens_but_runs_through_the_model():
    rows = rollout_rows([], Z, PAD, CPU)
    assert rows.input_ids.shape == rows.read.shape
    assert len(rows.targets) == rows.read.sum()
    assert len(rows.sample) == len(rows.behaviour_logprobs) == rows.is_token.sum() == 0


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return Qwen2ForCausalLM(config).eval()


@torch.no_grad()
def read(model, samples, pad=PAD):
    """Log-probs of the response tokens and of z_c, a sample each."""
    rows = rollout_rows(samples, Z, pad, CPU)
    logprobs = model(rows.input_ids).logits.log_softmax(-1)[rows.read]
    chosen = logprobs.gather(1, rows.targets[:, None]).squeeze(1)
    return list(chosen[rows.is_token].split([len(s.response_ids) for s in samples])), chosen[~rows.is_token]


@torch.no_grad()
def expected(model, sample):
    """The same by hand, from the sample's own sequence alone."""
    prompt, response = sample.prompt_ids.tolist(), sample.response_ids.tolist()
    logprobs = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    return torch.stack([logprobs[len(prompt) - 1 + i, token] for i, token in enumerate(response)]), logprobs[
        -1, Z
    ]


def test_reference_fault_1_the_score_is_read_after_eos_of_its_own_sample(model):
    """The reference takes the next packed row's first token, or padding, for z_c."""
    _, z_logprobs = read(model, [SHORT, LONG])
    for sample, z_logprob in zip([SHORT, LONG], z_logprobs, strict=True):
        torch.testing.assert_close(z_logprob, expected(model, sample)[1])


def test_reference_fault_3_padding_with_another_token_than_eos_changes_nothing(model):
    """The reference reads z_c one slot late unless pad and EOS are the same id."""
    tokens, z_logprobs = read(model, [SHORT, LONG, TRUNCATED], pad=PAD)
    tokens_eos, z_logprobs_eos = read(model, [SHORT, LONG, TRUNCATED], pad=EOS)
    torch.testing.assert_close(z_logprobs, z_logprobs_eos)
    torch.testing.assert_close(torch.cat(tokens), torch.cat(tokens_eos))


def test_samples_of_unlike_length_do_not_see_each_others_tokens(model):
    together, z_logprobs = read(model, [LONG, SHORT, TRUNCATED])
    for sample, tokens, z_logprob in zip([LONG, SHORT, TRUNCATED], together, z_logprobs, strict=True):
        by_hand, z_by_hand = expected(model, sample)
        torch.testing.assert_close(tokens, by_hand)
        torch.testing.assert_close(z_logprob, z_by_hand)
