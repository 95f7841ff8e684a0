"""The marks on the settings' fields: which settings may change, and which count for what."""

from typing import Annotated

import pytest
from pydantic import Field

from orchestrator.config.cold_start import SFTConfig
from orchestrator.config.schema import Mark, Section, has_mark, keys_marked
from orchestrator.config.training import RunConfig

TRACKING = {"tracking.uri", "tracking.experiment", "tracking.sampled_solutions"}


class Inner(Section):
    one: Annotated[int, Mark.PLACE] = 1
    two: int = 2
    table: Annotated[dict[str, int], Mark.PLACE] = Field(default={})


class Outer(Section):
    inner: Inner = Inner()
    marked: Annotated[Inner, Mark.POOL_SIZE] = Inner()


def test_a_mark_on_a_section_or_a_dictionary_holds_for_all_keys_in_it():
    assert keys_marked(Outer, Mark.PLACE) == ("inner.one", "inner.table", "marked.one", "marked.table")
    assert keys_marked(Outer, Mark.POOL_SIZE) == ("marked.one", "marked.two", "marked.table")
    assert has_mark(Outer, "inner.table.row.cell", Mark.PLACE)
    assert has_mark(Outer, "marked", Mark.POOL_SIZE)
    assert not has_mark(Outer, "inner", Mark.PLACE)
    assert not has_mark(Outer, "inner.two.three", Mark.PLACE)
    assert not has_mark(Outer, "unknown.one", Mark.PLACE)


@pytest.mark.parametrize(
    ("schema", "mark", "keys"),
    [
        (
            RunConfig,
            Mark.MAY_CHANGE,
            {
                *("run.dir", "run.remote", "run.steps", "run.eval_every", "run.save_every"),
                *(
                    "run.save_rollouts_every",
                    "run.keep_checkpoints",
                    "run.trace",
                    "run.node_wait_s",
                    *TRACKING,
                ),
                *("rollout.num_engines", "rollout.cpus", "rollout.gpus", "rollout.resources"),
                *("rollout.colocate", "rollout.tensor_parallel", "rollout.kv_cache_gib"),
                *("rollout.sync_chunk_mib", "rollout.engine_args", "verification.num_workers"),
                *("verification.cpus", "verification.resources", "verification.timeout_s"),
                "verification.memory_mib",
                *("learning.cpus_per_rank", "learning.gpus_per_rank", "learning.resources"),
                *("learning.tokens_per_micro_batch", "learning.gradient_checkpointing"),
                *("learning.attention", "learning.max_skipped_steps", "learning.skip_zero_gradients"),
                *("learning.share_prefixes", "learning.stream", "learning.num_ranks"),
                *("faults.max_deaths", "faults.max_attempts"),
                *("faults.deadline_s", "faults.first_deadline_s"),
                *("health.window", "health.accuracy", "health.entropy", "health.length", "health.score"),
                *("health.z_mass", "health.mismatch", "health.stop"),
            },
        ),
        (
            SFTConfig,
            Mark.MAY_CHANGE,
            {
                *("run.dir", *TRACKING, "learning.num_ranks", "learning.cpus_per_rank"),
                *("learning.gpus_per_rank", "learning.tokens_per_micro_batch"),
                "learning.gradient_checkpointing",
            },
        ),
        (
            RunConfig,
            Mark.AFTER_WARM_UP,
            {
                *("loss.alpha", "loss.beta_v", "loss.tau", "loss.filter_std"),
                *("loss.self_reward_warmup_steps", "run.steps"),
            },
        ),
        (RunConfig, Mark.SET_BY_SWEEP, {"run.name", "run.dir", "run.remote", "run.seed", *TRACKING}),
        (
            RunConfig,
            Mark.POOL_SIZE,
            {
                *("rollout.num_engines", "rollout.colocate", "rollout.cpus", "rollout.resources"),
                *("learning.num_ranks", "learning.cpus_per_rank", "learning.resources"),
            },
        ),
        (RunConfig, Mark.PLACE, {"run.name", "run.dir", "run.remote", "tracking.uri", "tracking.experiment"}),
    ],
)
def test_the_settings_of_each_mark(schema, mark, keys):
    assert set(keys_marked(schema, mark)) == keys
