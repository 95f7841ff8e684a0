"""Which settings lower a run's memory, on a small model whose memory is scaled up by its batch."""

from pathlib import Path

import pytest

from experiments.quickstart.task import write_untrained
from orchestrator.config.schema import with_settings
from orchestrator.pools.memory import model_size, plan_memory
from orchestrator.pools.memory_kill import MemoryKill
from orchestrator.pools.savings import as_overrides, kill_advice, proposal, savings
from tests.settings import configure


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("model") / "untrained"
    write_untrained(folder, seed=0)
    return configure(
        model={"path": str(folder)},
        rollout={"max_prompt_tokens": 100, "max_response_tokens": 900, "num_engines": 2, "kv_cache_gib": 2.0},
        learning={"tokens_per_micro_batch": 4000},
    )


@pytest.fixture(scope="module")
def size(config):
    return model_size(config.model.path)


def total(plan):
    return plan.host_total


def test_savings_are_differences_of_plans_and_the_cheapest_come_first(config, size):
    found = savings(config, size, total, worth=2**20)
    keys = [next(iter(saving.settings)) for saving in found]
    assert keys[:2] == ["learning.tokens_per_micro_batch", "learning.gradient_checkpointing"]
    assert keys.index("rollout.num_engines") < keys.index("learning.dtype")
    before = plan_memory(config, size).host_total
    for saving in found:
        assert saving.saved == before - plan_memory(with_settings(config, saving.settings), size).host_total
    assert found[0].settings == {"learning.tokens_per_micro_batch": 1000}, "the longest sample still fits"


def test_streaming_is_given_up_before_anything_that_costs_more(config, size):
    streaming = with_settings(config, {"learning.stream": True})
    limit = plan_memory(config, size).host_total
    assert proposal(streaming, size, lambda plan: plan.host_total <= limit)[0] == {"learning.stream": False}


def test_what_fits_already_needs_no_setting(config, size):
    settings, plan = proposal(config, size, lambda plan: True)
    assert settings == {}
    assert plan == plan_memory(config, size)


def test_the_proposal_fits_and_holds_nothing_that_it_can_do_without(config, size):
    limit = plan_memory(config, size).host_total - int(1.2 * 2**30)
    settings, plan = proposal(config, size, lambda plan: plan.host_total <= limit)
    assert plan == plan_memory(with_settings(config, settings), size)
    assert plan.host_total <= limit
    for key in settings:
        fewer = {other: value for other, value in settings.items() if other != key}
        assert plan_memory(with_settings(config, fewer), size).host_total > limit


def test_no_setting_makes_room_for_the_libraries(config, size):
    assert proposal(config, size, lambda plan: plan.host_total < 2**30) is None


def test_the_smallest_kv_cache_holds_four_of_the_longest_samples(config, size):
    settings, _ = proposal(config, size, lambda plan: plan.engine.kv_cache < 2**30)
    # 4 x 1001 tokens of 2 x 4 layers x 2 heads x 32 x 4 bytes are 0.0076 GiB.
    assert settings == {"rollout.kv_cache_gib": 0.01}


def test_overrides_read_as_the_command_line_takes_them():
    settings = {"learning.gradient_checkpointing": True, "learning.tokens_per_micro_batch": 512}
    assert (
        as_overrides(settings) == "learning.gradient_checkpointing=true learning.tokens_per_micro_batch=512"
    )


def test_advice_after_a_kill_names_the_plan_of_the_actor_and_its_settings(config):
    planned, lower = kill_advice(config)(MemoryKill("learner rank 0", "Ray's memory monitor"))
    assert planned.startswith("planned were: a learner rank ")
    assert "all pools together" in planned
    assert "learning.tokens_per_micro_batch=1000 (saves" in lower
    assert "rollout.kv_cache_gib" not in lower
    _, lower = kill_advice(config)(MemoryKill("an engine", "Ray's memory monitor"))
    assert "rollout.kv_cache_gib=0.01 (saves 2.0 GiB)" in lower


def test_advice_needs_no_model_folder(config, tmp_path):
    gone = with_settings(config, {"model.path": str(tmp_path / "gone")})
    assert kill_advice(gone)(MemoryKill("an engine", "SIGKILL"))[0].startswith("to lower it: ")
