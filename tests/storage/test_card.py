"""`self_reward.json`."""

import json

import pytest

from orchestrator.errors import ConfigError
from orchestrator.storage.card import SelfRewardCard


def test_the_card_holds_all_that_reading_the_score_needs(tmp_path):
    chat = {"system": "Be brief.", "chat_template_kwargs": {"think": False}, "answer_after": "</think>"}
    SelfRewardCard("<|z|>", 7, -23.0, 0.1, [2, 5], "Reason.", "ab12", **chat).write(tmp_path)
    assert json.loads((tmp_path / "self_reward.json").read_text()) == {
        "token": "<|z|>", "token_id": 7, "c_ref": -23.0, "beta_v": 0.1, "eos_token_ids": [2, 5],
        "instruction": "Reason.", "chat_template_sha256": "ab12", "verifier": None,
        **chat,
    }  # fmt: skip


def test_a_card_reads_back(tmp_path):
    card = SelfRewardCard("<|z|>", 7, -23.0, 0.1, [2, 5], "Reason.", "ab12")
    card.write(tmp_path)
    assert SelfRewardCard.read(tmp_path / "self_reward.json") == card


@pytest.mark.parametrize("content", [None, "{", '{"token": "x"}', "[]"])
def test_a_file_that_is_no_card_is_refused(tmp_path, content):
    path = tmp_path / "self_reward.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(
        ConfigError, match=r"self_reward.json: is not a self-reward card .* export the model again"
    ):
        SelfRewardCard.read(path)
