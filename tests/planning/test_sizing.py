"""Pool sizes from measured times: the formula by hand-worked numbers, whole engines and ranks, and what a
run's folder must hold."""

import json
import math
from pathlib import Path

import pytest
import yaml

from orchestrator.cli import main
from orchestrator.config.schema import dump_config
from orchestrator.config.training import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.planning.sizing import (
    Devices,
    DeviceWork,
    best_split,
    enough_verifiers,
    measure_run,
    size_pools,
    taking_turns,
)
from tests import settings

ONE_GPU_EACH = Devices("GPU", engine=1, rank=1)


def configure(rollout=None, learning=None) -> RunConfig:
    """A run of 4 engines, 4 ranks and 16 verifiers on GPUs."""
    return settings.configure(
        rollout={"num_engines": 4, "gpus": 1} | (rollout or {}),
        learning={"num_ranks": 4, "gpus_per_rank": 1} | (learning or {}),
        verification={"num_workers": 16},
    )


def write_run(folder: Path, config: RunConfig, steps: list[tuple[float, float, float, float]]) -> Path:
    """A run's folder whose steps took (rollout, verify, learn, step) seconds."""
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(config))
    events = [{"event": "start", "time": 0, "run_name": "measured", "id": "1"}]
    for number, (rollout, verify, learn, step) in enumerate(steps, 1):
        times = {"time/rollout": rollout, "time/verify": verify, "time/learn": learn, "time/step": step}
        events.append({"event": "step", "time": 0, "step": number, "values": times})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def test_the_shortest_step_is_where_the_formula_says():
    # a = 360, b = 40: e / l = sqrt(360 / 40) = 3, so 6 engines and 2 ranks of 8 GPUs, and (sqrt(360) +
    # sqrt(40))^2 / 8 = 640 / 8 = 80 s.
    work = DeviceWork(rollout=360, learning=40, fixed=5)
    assert best_split(work, 8, ONE_GPU_EACH) == (6, 2)
    assert work.seconds(6, 2) == pytest.approx(85)
    assert work.seconds(6, 2) == pytest.approx((math.sqrt(360) + math.sqrt(40)) ** 2 / 8 + 5)
    assert work.seconds(8, 8) == pytest.approx(55)  # taking turns, without the hand-over


def test_where_phases_overlap_a_step_takes_as_long_as_the_longer_one():
    # 360 / 7 = 51.4 and 40 / 1 = 40: the engines need 7 of 8 GPUs, where alternating phases need 6.
    work = DeviceWork(rollout=360, learning=40, fixed=5, overlaps=True)
    assert best_split(work, 8, ONE_GPU_EACH) == (7, 1)
    assert work.seconds(7, 1) == pytest.approx(360 / 7 + 5)
    assert work.seconds(8, 8, in_turns=True) == pytest.approx(55)


def test_neighbours_of_the_best_split_are_slower():
    work = DeviceWork(rollout=200, learning=120, fixed=0)
    engines, ranks = best_split(work, 16, ONE_GPU_EACH)
    assert (engines, ranks) == (9, 7)  # e / l = 1.29: 9.01 of 16
    assert all(work.seconds(engines, ranks) < work.seconds(engines + move, ranks - move) for move in (-1, 1))


def test_tensor_parallel_engines_take_whole_steps_and_leave_the_rest_to_ranks():
    # Engines of 4 GPUs: 4 + 12 takes 200 / 4 + 120 / 12 = 60 s, 8 + 8 takes 40, 12 + 4 takes 46.7.
    assert best_split(DeviceWork(200, 120, 0), 16, Devices("GPU", engine=4, rank=1)) == (2, 8)


def test_ranks_of_two_devices_leave_none_half_used():
    assert best_split(DeviceWork(100, 100, 0), 7, Devices("GPU", engine=1, rank=2)) == (3, 2)


def test_fractions_of_a_cpu_that_add_up_only_up_to_rounding_count():
    assert taking_turns(0.3, Devices("CPU", engine=0.1, rank=0.1)) == (3, 3)


def test_no_split_where_not_one_of_each_fits():
    assert best_split(DeviceWork(1, 1, 0), 4, Devices("GPU", engine=4, rank=1)) is None
    assert taking_turns(4, Devices("GPU", engine=4, rank=1)) == (1, 4)
    assert taking_turns(4, Devices("GPU", engine=8, rank=1)) is None


@pytest.mark.parametrize(
    ("workers", "rollout", "verify", "then", "enough"),
    [
        (16, 100, 0.5, 100, 16),  # the last check ends a moment after the last sample: they keep up
        (16, 100, 0.5, 50, 32),  # generation twice as fast needs no more than twice as many
        (16, 100, 25, 100, 20),  # busy for 125 s at most
        (4, 100, 0, 400, 1),
    ],
)
def test_verifiers_that_keep_up(workers, rollout, verify, then, enough):
    assert enough_verifiers(workers, rollout, verify, then) == enough


def test_a_run_is_measured_by_the_medians_of_its_newest_steps(tmp_path):
    slow_start = [(500.0, 0.0, 500.0, 1000.0)] * 30
    folder = write_run(
        tmp_path / "run",
        configure(),
        [*slow_start, *[(90.0, 0.5, 10.0, 105.0)] * 19, (900.0, 0.5, 10.0, 915.0)],
    )
    measured = measure_run(folder)
    assert (measured.steps, measured.rollout, measured.verify, measured.learn, measured.fixed) == (
        20,
        90.0,
        0.5,
        10.0,
        5.0,
    )
    assert measured.work() == DeviceWork(rollout=360.0, learning=40.0, fixed=5.0)


def test_layouts_of_a_measured_run(tmp_path):
    folder = write_run(tmp_path / "run", configure(), [(90.0, 0.5, 10.0, 105.0)] * 5)
    sizing = size_pools(configure(), folder)
    shown = {
        layout.name: (layout.engines, layout.ranks, layout.devices, round(layout.step_s, 6), layout.verifiers)
        for layout in sizing.layouts
    }
    assert shown == {
        "measured": (4, 4, 8, 105, 16),
        "best split": (6, 2, 8, 85, 24),
        "taking turns": (8, 8, 8, 55, 32),
    }
    assert sizing.turn_budget_s == pytest.approx(30)  # 2 sqrt(a b) / G = 2 * sqrt(360 * 40) / 8
    assert sizing.turn_budget_s == pytest.approx(2 * math.sqrt(360 * 40) / 8)
    assert not sizing.warnings


def test_the_configuration_is_sized_for_its_own_devices(tmp_path):
    folder = write_run(tmp_path / "run", configure(), [(90.0, 0.5, 10.0, 105.0)] * 5)
    sizing = size_pools(configure(rollout={"num_engines": 8}, learning={"num_ranks": 8}), folder)
    assert [layout.name for layout in sizing.layouts] == [
        "measured",
        "this configuration",
        "best split",
        "taking turns",
    ]
    assert sizing.total == 16
    assert sizing.layouts[1].step_s == pytest.approx(360 / 8 + 40 / 8 + 5)
    assert (sizing.layouts[2].engines, sizing.layouts[2].ranks) == (12, 4)


def test_a_run_that_took_turns_has_its_handover_in_the_rest(tmp_path):
    turns = configure(rollout={"num_engines": 8, "colocate": True, "cpus": 1}, learning={"num_ranks": 8})
    folder = write_run(tmp_path / "run", turns, [(45.0, 0.5, 5.0, 75.0)] * 3)
    sizing = size_pools(turns, folder)
    assert sizing.total == 8  # the same GPUs, counted once
    assert {layout.name: round(layout.step_s, 6) for layout in sizing.layouts} == {
        "measured": 75,
        "best split": 105,
        "taking turns": 75,
    }
    assert sizing.turn_budget_s is None
    assert not any(layout.without_handover for layout in sizing.layouts)


def test_other_settings_than_the_measured_ones_are_named(tmp_path):
    folder = write_run(tmp_path / "run", configure(), [(90.0, 0.5, 10.0, 105.0)] * 3)
    (warning,) = size_pools(configure(rollout={"max_response_tokens": 4096}), folder).warnings
    assert "rollout.max_response_tokens (8192 before, 4096 now)" in warning


def test_what_cannot_be_sized_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        size_pools(configure(), tmp_path / "absent")
    short = write_run(tmp_path / "short", configure(), [(90.0, 0.5, 10.0, 105.0)] * 2)
    with pytest.raises(ConfigError, match="2 steps are measured, and 3 are needed"):
        size_pools(configure(), short)
    on_cpu = configure(rollout={"gpus": 0}, learning={"gpus_per_rank": 0})
    measured = write_run(tmp_path / "cpu", on_cpu, [(90.0, 0.5, 10.0, 105.0)] * 3)
    with pytest.raises(ConfigError, match="was measured on CPUs, which says nothing about GPUs"):
        size_pools(configure(), measured)
    with pytest.raises(ConfigError, match="share no kind of device"):
        size_pools(configure(rollout={"gpus": 0}), measured)


def test_laser_check_shows_the_sizes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = write_run(tmp_path / "run", configure(), [(90.0, 0.5, 10.0, 105.0)] * 5)
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    # A local path that is absent: the report needs no model.
    tree["model"]["path"], tree["data"]["train"] = str(tmp_path / "model"), str(tmp_path / "t.jsonl")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    assert main(["check", str(tmp_path / "config.yaml"), "--measured", str(folder)]) == 0
    printed = capsys.readouterr().out
    rows = {
        line.split("  ")[1].strip(): line.split()
        for line in printed.splitlines()
        if line.startswith("  ") and "  " in line.strip()
    }
    assert rows["best split"][2:] == ["6", "2", "8", "60.0", "20.0", "5.0", "85.0", "24"]
    assert rows["taking turns"][2:] == ["8", "8", "8", "45.0", "5.0", "5.0", "55.0", "+", "x", "32"]
    assert "under 30.0 s a step" in " ".join(printed.split())
    shown_in_docs = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
    for name in ("measured", "best split", "taking turns"):
        assert " ".join(rows[name]) in " ".join(shown_in_docs.split()), (
            "docs/cluster.md shows this very example"
        )
    assert main(["check", str(tmp_path / "config.yaml"), "--measured", str(tmp_path / "absent")]) == 2
    assert "holds no run" in capsys.readouterr().err
