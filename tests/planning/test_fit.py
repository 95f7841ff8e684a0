"""Whether a run fits, from a plan and the machine's memory; and the settings that `laser check` proposes."""

from pathlib import Path

import pytest

from experiments.quickstart.task import write_untrained
from orchestrator.cluster.machine import GIB, MainMemory
from orchestrator.config.schema import apply_overrides, validate, with_settings
from orchestrator.config.training import RunConfig
from orchestrator.planning.fit import memory_notes
from orchestrator.pools.memory import model_size, plan_memory
from tests.settings import configure


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("model") / "untrained"
    write_untrained(folder, seed=0)
    return configure(
        model={"path": str(folder)},
        rollout={"max_prompt_tokens": 100, "max_response_tokens": 400, "kv_cache_gib": 3.0},
        learning={"tokens_per_micro_batch": 4000},
    )


def room_for(size: int) -> MainMemory:
    """A machine of 100 GiB on which a run can take exactly so many bytes: Ray keeps 5 GiB free."""
    return MainMemory(100 * GIB, size + 5 * GIB)


def test_a_run_may_take_what_is_free_up_to_rays_threshold(monkeypatch):
    monkeypatch.delenv("RAY_memory_usage_threshold", raising=False)
    assert MainMemory(total=100 * GIB, available=60 * GIB).for_run == 55 * GIB
    assert MainMemory(total=100 * GIB, available=3 * GIB).for_run == 0
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.8")
    assert MainMemory(total=100 * GIB, available=60 * GIB).for_run == pytest.approx(40 * GIB, abs=1)


def test_a_run_that_fits_to_the_byte_gets_no_note(config):
    size = model_size(config.model.path)
    plan = plan_memory(config, size)
    assert memory_notes(config, size, plan, room_for(plan.host_total), None) == []


def test_a_run_that_does_not_fit_gets_settings_that_do(config):
    size = model_size(config.model.path)
    plan = plan_memory(config, size)
    room = room_for(plan.host_total - GIB)
    [note] = memory_notes(config, size, plan, room, None)
    assert note.startswith(
        f"does not fit: all pools together need {plan.host_total / GIB:.1f} GiB (when they"
    )
    overrides = note.rsplit(": ", 1)[1].split()
    tree = config.model_dump(mode="json")
    apply_overrides(tree, overrides, RunConfig)
    proposed = validate(tree, RunConfig, "proposed")
    assert memory_notes(proposed, size, plan_memory(proposed, size), room, None) == []


def test_a_machine_that_is_too_small_for_the_libraries(config):
    size = model_size(config.model.path)
    [note] = memory_notes(config, size, plan_memory(config, size), room_for(GIB), None)
    assert note.endswith("No settings of this model fit: use a machine with more memory, or a smaller model")


def test_an_actor_that_reserves_half_a_gpu_gets_half_its_memory(config):
    changed = with_settings(
        config, {"learning.gpus_per_rank": 1, "rollout.gpus": 0.5, "rollout.kv_cache_gib": 1.0}
    )
    size = model_size(config.model.path)
    plan = plan_memory(changed, size)
    room = room_for(plan.host_total)
    assert memory_notes(changed, size, plan, room, gpu=8 * GIB) == []
    notes = memory_notes(changed, size, plan, room, gpu=GIB)
    assert len(notes) == 2
    assert "KV cache: 1.0 GiB, but it gets 0.5 GiB of" in notes[1]
