"""The points that Optuna proposes."""

import pytest
from ray.tune.search import Repeater, Searcher

from orchestrator.sweeps.optuna_search import PointSearch
from orchestrator.sweeps.results import Ledger, State
from orchestrator.sweeps.trial import TrialRunner


def proposals(search: PointSearch, number: int) -> list[dict]:
    """The next `number` points, each answered by its alpha as the metric."""
    found = []
    for index in range(number):
        proposal = search.suggest(f"trial-{index}")
        if proposal == Searcher.FINISHED:
            break
        found.append(proposal["point"])
        search.on_trial_complete(f"trial-{index}", {"objective": proposal["point"].get("loss.alpha", 0.0)})
    return found


def test_optuna_proposes_no_point_twice_and_stops_when_the_space_is_searched_through(plan, tmp_path):
    space = {
        "loss.alpha": {"choice": [0.1, 0.2, 0.3]},
        "loss.tau": {"choice": [0.1, 0.2], "when": "loss.alpha > 0.25"},
    }
    made = plan(space=space, search={"algorithm": "optuna", "points": 9})
    found = proposals(PointSearch(made, Ledger(tmp_path, "sweep", space, "accuracy", "test")), 9)
    assert sorted(found, key=str) == sorted(
        [
            {"loss.alpha": 0.1},
            {"loss.alpha": 0.2},
            {"loss.alpha": 0.3, "loss.tau": 0.1},
            {"loss.alpha": 0.3, "loss.tau": 0.2},
        ],
        key=str,
    )


def test_optuna_proposes_what_was_cut_off_first_and_never_what_is_over(plan, tmp_path):
    space = {"loss.alpha": {"choice": [0.1, 0.2, 0.3]}}
    made = plan(space=space, search={"algorithm": "optuna", "points": 3})
    ledger = Ledger(tmp_path, "sweep", space, "accuracy", "test")
    for alpha, status in ((0.3, State.FINISHED), (0.2, State.PENDING)):
        trial = ledger.add(made.trial({"loss.alpha": alpha}, 0))
        trial.status, trial.objective = status, 0.5
    search = PointSearch(made, ledger)
    assert search.left == 2
    assert proposals(search, 3) == [{"loss.alpha": 0.2}, {"loss.alpha": 0.1}]


def test_each_proposed_point_is_trained_with_every_seed_and_judged_by_their_mean(plan, tmp_path):
    space = {"loss.alpha": {"log_uniform": [0.1, 1.0]}}
    made = plan(space=space, search={"algorithm": "optuna", "points": 2}, seeds=[5, 7])
    search = PointSearch(made, Ledger(tmp_path, "sweep", space, "accuracy", "test"))
    repeated = Repeater(search, repeat=2)
    runner = TrialRunner(made, [{"CPU": 4.0}], {})
    members = [runner.member(repeated.suggest(f"trial-{number}")) for number in range(4)]
    assert [member.seed for member in members] == [5, 7, 5, 7]
    assert members[0].point == members[1].point != members[2].point
    assert [member.trunk for member in members[:2]] == ["trunk_seed-5", "trunk_seed-7"]
    assert runner.resources({"point": members[0].point}).bundles == [{"CPU": 1.0}] * 3, (
        "the driver reserves nothing: a learner, an engine, a verifier"
    )
    for number, objective in enumerate((0.2, 0.4)):
        repeated.on_trial_complete(f"trial-{number}", {"objective": objective})
    assert search.optuna._ot_study.best_value == pytest.approx(0.3)


def test_a_proposal_that_makes_no_configuration_is_not_trained(plan, tmp_path):
    space = {"learning.mini_batches": {"choice": [1, 500]}}  # more than there are prompts in a step
    made = plan(space=space, search={"algorithm": "optuna", "points": 2})
    assert proposals(PointSearch(made, Ledger(tmp_path, "sweep", space, "accuracy", "test")), 2) == [
        {"learning.mini_batches": 1}
    ]
