"""What the page's script is given to draw."""

import math

import pytest

from tests.dashboards.folders import payload_of, write_samples


def test_the_calibration_error_is_that_of_the_bins_beside_it(run_folder):
    # Two in [0, 0.1), of mean 0.05 and none right; two in [0.5, 0.6), of mean 0.55 and one right.
    # -3 and 4 are clipped into the outermost bins; the unverified sample counts nowhere.
    scores = [("wrong", 0.02), ("wrong", 0.08), ("correct", 0.52), ("wrong", 0.58)]
    scores += [("correct", -3.0), ("correct", 4.0), ("timeout", 0.3)]
    write_samples(run_folder, [(status, score, True) for status, score in scores], step=2)
    (entry,) = payload_of(run_folder)["scores"]
    assert entry["ece"] == pytest.approx((3 * abs(0.1 / 3 - 1 / 3) + 2 * 0.05 + 1 * 0.0) / 6)
    gaps = [abs(each["score"] - each["correct"]) * each["count"] for each in entry["bins"] if each["count"]]
    assert entry["ece"] == pytest.approx(sum(gaps) / 6)


def test_the_curves_of_a_sweep_begin_where_the_trunks_end(sweep_folder):
    data = payload_of(sweep_folder)
    whole = [trunk for trunk in data["trunks"] if not trunk["part"]]
    assert [trunk["training"]["train/accuracy"]["steps"] for trunk in whole] == [list(range(1, 31))]
    assert "self_reward/f1" not in whole[0]["training"]
    own = data["training"][4]["train/accuracy"]
    assert (own["steps"][0], own["steps"][-1], len(own["low"])) == (31, 60, 30)
    assert {point["branches"][0] for point in data["points"]} == {30}
    assert data["scores"][data["selected"]]["name"] == "beta_v=0.1,alpha=0.5,seed=1"
    assert len(data["samples"]) == 12
    assert data["zero"] == ["KL to the reference"]


def test_a_run_without_a_score_shows_its_solutions(run_folder):
    write_samples(run_folder, [("correct", math.nan, True), ("wrong", math.nan, True)], step=2)
    data = payload_of(run_folder)
    assert (data["scores"][0]["right"], data["scores"][0]["wrong"]) == (0, 0)
    assert math.isnan(data["scores"][0]["ece"])
    assert [row["status"] for row in data["samples"][0]] == ["correct", "wrong"]
    assert all(math.isnan(row["score"]) for row in data["samples"][0])


def test_the_verdict_of_a_solution_explains_itself(run_folder):
    row = {"status": "wrong", "score": 0.9, "finished": True}
    write_samples(
        run_folder, [row | {"detail": "reference: 2; answer: 3; not equal: different values"}], step=2
    )
    assert payload_of(run_folder)["samples"][0][0]["detail"].endswith("different values")
    write_samples(run_folder, [row], step=3)  # as earlier versions wrote it
    assert payload_of(run_folder)["samples"][0][0]["detail"] == ""


def test_long_solutions_lose_their_middle(run_folder):
    row = {"status": "wrong", "score": 0.9, "finished": True, "response": "a" * 50_000 + "z"}
    write_samples(run_folder, [row], step=2)
    solution = payload_of(run_folder)["samples"][0][0]["solution"]
    assert len(solution) < 8100
    assert solution.endswith("az")
    assert "42,001 characters left out" in solution


def test_runs_and_a_sweep_can_be_mixed(sweep_folder, run_folder):
    data = payload_of(sweep_folder, run_folder)
    assert len(data["points"]) == 10
    assert data["points"][-1]["label"] == "plain"
