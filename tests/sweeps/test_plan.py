"""What a sweep trains: trials, their names, shared trunks, and what is refused."""

import math

import pytest

from orchestrator.config.schema import flat_settings
from orchestrator.errors import ConfigError
from orchestrator.sweeps.plan import member_name


def test_grids_are_crossed_with_each_other_and_with_the_seeds(plan):
    trials = plan(
        space={"loss.beta_v": {"grid": [0.1, 0.2]}, "loss.alpha": {"grid": [0.5, 1.0]}}, seeds=[3, 4]
    ).trials
    found = [(trial.point["loss.beta_v"], trial.point["loss.alpha"], trial.seed) for trial in trials]
    assert found == [(b, a, s) for b in (0.1, 0.2) for a in (0.5, 1.0) for s in (3, 4)]
    last = trials[-1].config
    assert (last.loss.beta_v, last.loss.alpha, last.run.seed, last.run.name) == (
        0.2,
        1.0,
        4,
        "beta_v-0.2_alpha-1_seed-4",
    )
    assert last.run.dir.parts[-2:] == ("sweep", "trials")


def test_trials_that_differ_only_after_the_warm_up_share_a_trunk_per_seed(plan):
    shared = plan(
        space={"loss.alpha": {"grid": [0.1, 1.0]}, "loss.beta_v": {"grid": [0.1, 0.2]}}, seeds=[0, 1]
    )
    assert [trunk.name for trunk in shared.trunks] == ["trunk_seed-0", "trunk_seed-1"]
    assert [trial.trunk for trial in shared.trials[:2]] == ["trunk_seed-0", "trunk_seed-1"]
    trunk = shared.trunks[1]
    assert (trunk.config.run.steps, trunk.config.run.seed, trunk.is_trunk) == (5, 1, True)
    alone = flat_settings(shared.trials[1].config)
    different = {key for key, value in flat_settings(trunk.config).items() if value != alone[key]}
    assert different <= {"run.name", "run.dir", "run.steps", "loss.alpha", "loss.beta_v"}


def test_trunks_are_planned_once(plan):
    grid = plan(space={"loss.alpha": {"grid": [0.1, 1.0]}})
    proposed = plan(
        space={"loss.alpha": {"uniform": [0, 1]}}, search={"algorithm": "optuna", "points": 4}, seeds=[0, 1]
    )
    for made, number in ((grid, 1), (proposed, 2)):
        assert len(made.trunks) == number
        assert made.trunks[0] is made.trunks[0], "not built and validated at each access"


def test_a_key_that_matters_from_the_first_step_has_a_trunk_for_each_value(plan):
    mixed = plan(space={"learning.lr": {"grid": [1e-4, 1e-3]}, "loss.alpha": {"grid": [0.1, 1.0]}})
    assert [(trunk.name, trunk.config.learning.lr) for trunk in mixed.trunks] == [
        ("trunk_lr-0.0001_seed-0", 1e-4),
        ("trunk_lr-0.001_seed-0", 1e-3),
    ]
    assert [trial.trunk for trial in mixed.trials] == ["trunk_lr-0.0001_seed-0"] * 2 + [
        "trunk_lr-0.001_seed-0"
    ] * 2


def test_a_trial_with_nobody_to_share_with_trains_its_first_steps_itself(plan):
    lone = plan(space={"learning.lr": {"grid": [1e-4, 1e-3]}})
    assert lone.trunks == []
    assert [trial.trunk for trial in lone.trials] == [None, None]


def test_without_warm_up_the_trunk_still_shares_c_ref_and_the_base_evaluation(plan):
    no_warm_up = plan(settings={"loss": {"reasoning_warmup_steps": 0}})
    assert [trunk.config.run.steps for trunk in no_warm_up.trunks] == [0]
    assert {trial.trunk for trial in no_warm_up.trials} == {"trunk_seed-0"}


def test_a_trunk_is_valid_whatever_beta_v_its_c_ref_needs(plan):
    space = {"loss.c_ref": {"grid": [-4.0, -20.0]}, "loss.beta_v": {"grid": [0.5, 1.0]}}
    trunks = plan(space=space).trunks
    # The base's beta_v, 0.1, does not go with -4.
    assert [(trunk.config.loss.c_ref, trunk.config.loss.beta_v) for trunk in trunks] == [
        (-4.0, 0.5),
        (-20.0, 0.1),
    ]


def test_optuna_plans_trunks_before_it_proposes_points(plan):
    search = {"algorithm": "optuna", "points": 4}
    neutral = plan(space={"loss.alpha": {"log_uniform": [0.1, 1]}}, search=search, seeds=[0, 1])
    assert neutral.trials == []
    assert [trunk.name for trunk in neutral.trunks] == ["trunk_seed-0", "trunk_seed-1"]
    assert neutral.trial({"loss.alpha": 0.3}, 1).trunk == "trunk_seed-1"
    mattering = plan(
        space={"loss.alpha": {"uniform": [0, 1]}, "learning.lr": {"log_uniform": [1e-5, 1e-3]}}, search=search
    )
    assert mattering.trunks == []
    assert mattering.trial({"loss.alpha": 0.3, "learning.lr": 1e-4}, 0).trunk is None


def named(point, seed=0):
    return member_name(point, seed, point)


def test_names_tell_points_apart(plan):
    assert named({"loss.beta_v": 0.1, "loss.alpha": 2.0}) == "beta_v-0.1_alpha-2_seed-0"
    assert named({"loss.c_ref": "calibrate", "learning.lr": 1e-06}, 3) == "c_ref-calibrate_lr-1e-06_seed-3"
    assert (
        named({"rollout.cpus": 1.0, "verification.cpus": 0.5})
        == "rollout.cpus-1_verification.cpus-0.5_seed-0"
    )
    assert named({"loss.alpha": 0.1}) != named({"loss.alpha": math.nextafter(0.1, 1)})
    # Two keys of one leaf, of which a point has only one in effect.
    assert (
        member_name({"rollout.cpus": 1.0}, 0, ["rollout.cpus", "verification.cpus"])
        == "rollout.cpus-1_seed-0"
    )
    with pytest.raises(ConfigError, match="two points would both be named enforce_eager-True_seed-0"):
        plan(space={"rollout.engine_args.enforce_eager": {"grid": [True, "True"]}})


def test_names_of_points_with_many_keys_fit_a_folder_and_tell_points_apart(plan, tmp_path):
    keys = [f"rollout.engine_args.an_argument_with_a_long_name_{number}" for number in range(9)]
    space = {key: {"grid": [0.1, 0.2] if key == keys[-1] else [1]} for key in keys}
    found = plan(space=space | {"loss.alpha": {"grid": [0.5, 1.0]}}, seeds=[0, 12])
    members = [*found.trials, *found.trunks]
    assert len(found.trunks) == 4
    assert len({member.name for member in members}) == len(members) == 12
    for member in members:
        start = "trunk_an_argument" if member.is_trunk else "an_argument_with_a_long_name_0-1_an_argument"
        assert member.name.startswith(start)
        assert member.name.endswith(f"_seed-{member.seed}")
        assert len(member.name) < 120
        (tmp_path / member.name).mkdir()
        assert member.config.run.name == member.name
    assert all(len(trial.point) == 10 for trial in found.trials), "the ledger has the whole point"
    assert {trial.trunk for trial in found.trials} == {trunk.name for trunk in found.trunks}
    again = plan(space=space | {"loss.alpha": {"grid": [0.5, 1.0]}}, seeds=[0, 12])
    assert [trial.name for trial in again.trials] == [trial.name for trial in found.trials]


@pytest.mark.parametrize("length", [245, 246, 255, 256, 400])
def test_a_name_that_was_possible_before_stays(length):
    key = f"rollout.engine_args.{'k' * (length - len('-1_seed-0'))}"
    name = member_name({key: 1}, 0, [key])
    whole = f"{key.rpartition('.')[2]}-1_seed-0"
    assert len(whole) == length
    assert (name == whole) is (length <= 255)
    assert len(name) <= 255


def test_keys_with_other_characters_make_names_too(plan):
    space = {"rollout.resources.node:10 (A)": {"grid": [0.5, 1.0]}, "rollout.engine_args._x": {"grid": [1]}}
    assert [trial.name for trial in plan(space=space).trials] == [
        "node-10--A--0.5_x-1_seed-0",
        "node-10--A--1_x-1_seed-0",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"space": {"loss.alfa": {"grid": [1.0]}}},
            r"space: loss.alfa: .*unknown key. Nearest known key: loss.alpha",
        ),
        (
            {"space": {"loss.alpha": {"grid": ["much"]}}},
            "space: loss.alpha: .*must be a number, got 'much'",
        ),
        (
            {"space": {"loss.alpha": {"grid": [1.0], "uniform": [0, 1]}}},
            r"exactly one of grid, choice, uniform and log_uniform",
        ),
        ({"space": {"loss.alpha": {"uniform": [1, 0]}}, "search": {"points": 1}}, "must rise"),
        ({"space": {"loss.alpha": {"uniform": [0, 1]}}}, "search.points: missing; loss.alpha are drawn"),
        ({"search": {"points": 3}}, "search.points: all keys of the space are grids"),
        (
            {"search": {"algorithm": "optuna"}},
            "optuna proposes values and cannot train the whole grids of loss.alpha",
        ),
        (
            {"space": {"run.seed": {"grid": [0, 1]}}},
            "the sweep itself sets run.seed: list the values as `seeds`",
        ),
        ({"metric": "accuracy + f2"}, "metric: 'accuracy \\+ f2' cannot be computed: 'f2' is not defined"),
        ({"metric": "accuracy > 0.5"}, "gives False, not a number"),
        (
            {"search": {"algorithm": "optuna", "points": 3}, "space": {"loss.alpha": {"choice": [0.1, -1]}}},
            "loss.alpha: .*must be at least",
        ),
        ({"where": ["loss.alpha >"]}, "where: 'loss.alpha >' is not a formula"),
        ({"where": ["loss.alpha > 5"]}, "none of the 2 points meets loss.alpha > 5"),
        ({"where": ["loss.alfa > 5"]}, "where: 'loss.alfa > 5' cannot be computed"),
        ({"seeds": [1, 1]}, "has a seed twice"),
        (
            {"settings": {"loss": {"reasoning_warmup_steps": 10}}},
            "loss.alpha have no effect up to step loss.reasoning_warmup_steps=10",
        ),
        ({"settings": {"data": {"eval": None}}}, "data.eval is missing"),
        ({"settings": {"loss": {"alfa": 1}}}, "loss.alfa: unknown key"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml: cannot be read .*`base` names"),
        (
            {"settings": {"loss": {"c_ref": -12.0}}, "space": {"loss.beta_v": {"grid": [0.1, 0.05]}}},
            "point loss.beta_v=0.05: .*loss.c_ref: .* larger loss.beta_v \\(above 0.0833\\)",
        ),
        (
            {"space": {"learning.mini_batches": {"grid": [1, 500]}}},
            "point learning.mini_batches=500: .*more than rollout.prompts_per_step",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_key_and_reason(plan, settings, message):
    with pytest.raises(ConfigError, match=rf"(?s){message}"):
        plan(**settings)
