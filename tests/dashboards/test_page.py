"""The report: what it reads from folders, its figures against hand-worked numbers, and the page in a browser."""

import json
import math
import os
import re
import shutil
import subprocess
from dataclasses import fields
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dashboards.report import write_report
from dashboards.report.figures import (
    band,
    cell,
    choose_samples,
    differing_settings,
    histograms,
    is_continuous,
    objective,
    off_by,
    points,
    reliability,
    thinned,
)
from dashboards.report.load import Scores, join, load_runs, newest_scores
from orchestrator.cli import main
from orchestrator.errors import ConfigError, RunError
from orchestrator.evaluations.results import EvalResults, Figures

NASTY = '</script><script>document.title="broken out"</script><img src="https://example.com/x.png" onerror="alert(1)"> <b>&amp;'
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


# Folders as the driver writes them -----------------------------------------------------------------


def write_journal(folder, name, training=None, evaluations=None, status="FINISHED", set_name="test"):
    """`training` and `evaluations` are values by step."""
    folder.mkdir(parents=True, exist_ok=True)
    events = [{"event": "start", "time": 0, "run_name": name}]
    events += [{"event": "step", "time": step, "step": step, "values": values} for step, values in (training or {}).items()]
    for step, values in (evaluations or {}).items():
        values = {f"eval/{set_name}/{key}": value for key, value in values.items()}
        events.append({"event": "evaluation", "time": step, "step": step, "set": set_name, "values": values, "table": "", "figure": None})
    events += [{"event": "status", "time": 9, "status": status}] if status else []
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def write_config(folder, **settings):
    """A config.yaml of dotted settings."""
    tree: dict = {"run": {"name": folder.name, "dir": str(folder.parent), "steps": 60}, "tracking": {"uri": None}}
    for key, value in settings.items():
        section, leaf = key.split("__")
        tree.setdefault(section, {})[leaf] = value
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))


def write_samples(folder, rows, set_name="test", step=60):
    """`rows` of (status, score, finished), or whole dictionaries of columns."""
    defaults = {"problem": "1+1=", "reference": "2", "response": "\\boxed{2}", "answer": "2", "kind": None, "tokens": 7}
    table = []
    for number, row in enumerate(rows):
        row = row if isinstance(row, dict) else dict(zip(("status", "score", "finished"), row, strict=True))
        table.append(defaults | {"problem_id": str(number // 8), "sample": number % 8} | row)
    (folder / "evaluations").mkdir(parents=True, exist_ok=True)
    types = {"sample": pa.int32(), "score": pa.float32(), "finished": pa.bool_(), "tokens": pa.int32()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in table[0]])
    pq.write_table(pa.Table.from_pylist(table, schema), folder / "evaluations" / f"{set_name}-{step:06d}.parquet")


def training_values(random, step, skill, score_skill):
    """One step's metrics of a made-up run that learns; no scores where `score_skill` is None."""
    noise = lambda size: float(random.normal(0, size))  # noqa: E731
    values = {
        "train/accuracy": 0.25 + skill * (1 - math.exp(-step / 25)) + noise(0.03), "train/response_tokens": 44 + 0.2 * step + noise(2),
        "train/finished_share": 0.97 + noise(0.01), "loss/policy": noise(0.01), "loss/total": 0.25 * math.exp(-step / 30) + noise(0.015),
        "policy/kl": 0.0, "policy/mismatch_kl": abs(noise(2e-5)), "policy/mismatch_mean": 1e-3 + abs(noise(1e-4)),
        "policy/mismatch_max": 0.05 + abs(noise(0.02)), "policy/entropy": 0.6 * math.exp(-step / 80) + noise(0.01),
        "policy/clip_share": 0.01, "policy/grad_norm": 0.4 + abs(noise(0.1)),
        "time/rollout": 1.1 + abs(noise(0.1)), "time/verify": 0.1, "time/learn": 0.7 + abs(noise(0.05)), "time/sync": 0.08,
        "time/step": 2.05 + abs(noise(0.1)), "throughput/samples_per_s": 65 + noise(3), "throughput/tokens_per_s": 3300 + noise(90),
    }  # fmt: skip
    if score_skill is not None:
        rise = 1 - math.exp(-max(step - 30, 0) / 15)
        values |= {"self_reward/f1": 0.45 + score_skill * rise + noise(0.03), "loss/self_reward": 0.4 - 0.2 * rise + noise(0.02)}
    return values


def evaluation_values(accuracy, f1):
    return {
        "accuracy": accuracy, "finished_share": 0.98, "self_verification_f1": f1, "accuracy_correct": f1, "accuracy_wrong": f1,
        "auroc": f1 + 0.1, "auroc_within_problem": f1 + 0.05, "auroc_problem_only": 0.6, "mixed_problems": 20.0, "ece": 0.08,
        "maj_at_k": accuracy + 0.05, "weighted_at_k": accuracy + 0.08, "response_tokens": 50.0, "unverified": 1.0,
    }  # fmt: skip


def made_up_samples(random, count, accuracy, spread):
    rows = []
    for number in range(count):
        a, b = (int(value) for value in random.integers(11, 49, 2))
        right = random.random() < accuracy
        finished = random.random() > 0.03
        answer = str(min(a, b) if right else min(a, b) + 1)
        tries = ";".join(f"{int(x)}+{int(y)}={int(x + y)}>{a + b}" for x, y in random.integers(11, 49, (int(random.integers(0, 5)), 2)))
        response = NASTY if number == 3 else f"{tries};{answer}+{max(a, b)}={a + b};\\boxed{{{answer}}}" if finished else tries * 3
        status = "timeout" if number == 5 else "no_answer" if not finished else "correct" if right else "wrong"
        score = float(random.normal(0.5 + spread * (1 if right else -1), 0.22)) if finished else math.nan
        rows.append({
            "problem": f"a<b in {{{a},{b},{a + 3},{b + 5}}}, a+b={a + b}; a=?", "reference": str(min(a, b)), "response": response,
            "status": status, "answer": answer if finished else None, "score": score, "finished": finished, "tokens": len(response) // 2,
        })  # fmt: skip
    return rows


def write_sweep(folder, betas=(0.05, 0.1, 0.2), alphas=(0.1, 0.5, 1.0), seeds=(0, 1), steps=60, branch=30, samples=240):
    """A sweep in which a trial failed, one was pruned, one is running and one has not begun; a trunk a seed."""
    random = np.random.default_rng(7)
    trials, objectives = [], {}
    for seed in seeds:
        trunk = folder / "trunks" / f"t{seed}"
        values = {step: training_values(random, step, 0.4, None) for step in range(1, branch + 1)}
        base = {"accuracy": 0.25 + 0.01 * seed, "response_tokens": 44.0, "maj_at_k": 0.3}
        write_journal(trunk, trunk.name, values, {0: base})
        write_config(trunk, run__seed=seed, loss__beta_v=0.1, loss__alpha=0.5)
    for beta in betas:
        for alpha in alphas:
            for seed in seeds:
                place = (betas.index(beta), alphas.index(alpha), seed)
                status = {(0, 2, 1): "failed", (2, 2, 0): "failed", (2, 2, 1): "pending", (0, 0, 1): "pruned", (2, 0, 1): "running"}.get(
                    place, "finished"
                )
                name = f"beta_v={beta},alpha={alpha},seed={seed}"
                last = {"failed": 36, "pruned": 45, "running": 50, "pending": 0}.get(status, steps)
                quality = 0.1 - 0.5 * abs(math.log10(beta / 0.1)) * 0.4 + 0.06 * (alpha == 0.5) + float(random.normal(0, 0.01))
                figures = evaluation_values(0.55 + quality, 0.62 + quality) if last >= 45 else {}
                value = (figures["accuracy"] + figures["self_verification_f1"]) / 2 if figures else None
                error = "RunError: a learner rank died 3 times; see worker-<7>.err" if status == "failed" else None
                trials.append({
                    "name": name, "folder": f"trials/{name}", "point": {"loss.beta_v": beta, "loss.alpha": alpha}, "seed": seed,
                    "status": status, "step": last, "steps": steps, "objective": value, "error": error, "mlflow_run_id": None,
                    "trunk": f"t{seed}", "metrics": {key: figures.get(key) for key in evaluation_values(0, 0)} if figures else {},
                })  # fmt: skip
                if status == "pending":
                    continue
                if status == "finished":
                    objectives.setdefault((beta, alpha), []).append((value, name))
                trial = folder / "trials" / name
                curves = {step: training_values(random, step, 0.4 + quality, 0.2 + quality) for step in range(branch + 1, last + 1)}
                grown = {
                    step: evaluation_values(0.45 + (0.1 + quality) * (step - 30) / 30, 0.5 + (0.12 + quality) * (step - 30) / 30)
                    for step in range(40, last + 1, 10)
                }
                write_journal(trial, name, curves, grown, None if status == "running" else "FINISHED")
                write_config(trial, run__seed=seed, loss__beta_v=beta, loss__alpha=alpha)
                (trial / "branch.json").write_text(json.dumps({"trunk": f"../../trunks/t{seed}", "step": branch, "trunk_run_id": "x"}))
                if figures:
                    write_samples(trial, made_up_samples(random, samples, figures["accuracy"], 0.1 + quality), step=last // 10 * 10)
    means = {point: sum(value for value, _ in found) / len(found) for point, found in objectives.items()}
    best = max(means, key=means.__getitem__)
    results = {
        "name": folder.name, "metric": "(accuracy + self_verification_f1) / 2", "set": "test", "keys": ["loss.beta_v", "loss.alpha"],
        "trials": trials,
        "trunks": [
            {"name": f"t{seed}", "folder": f"trunks/t{seed}", "steps": branch, "status": "finished", "error": None} for seed in seeds
        ],
        "best": {
            "point": {"loss.beta_v": best[0], "loss.alpha": best[1]}, "objective": means[best], "seeds": len(objectives[best]),
            "trial": max(objectives[best])[1],
        },
        "work": {"steps_trained": 150, "steps_independent": 240, "share": 0.625}, "seconds": 512.0,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    return results


@pytest.fixture(scope="module")
def sweep_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "beta-alpha"
    write_sweep(folder, samples=80)
    return folder


@pytest.fixture
def run_folder(tmp_path):
    """A finished run with the least that a run has."""
    folder = tmp_path / "plain"
    steps = {1: {"train/accuracy": 0.25}, 2: {"train/accuracy": 0.5}}
    write_journal(folder, "plain", steps, {0: evaluation_values(0.2, 0.4), 2: evaluation_values(0.6, 0.8)})
    write_config(folder, run__seed=3, loss__alpha=0.5)
    return folder


def scores_of(*rows):
    """Samples from (status, score) pairs; a score of None is that of an unfinished one."""
    score = np.array([math.nan if value is None else value for _, value in rows], float)
    return Scores(None, "test", 1, [status for status, _ in rows], score, ~np.isnan(score))


def html_of(folders, tmp_path):
    write_report(folders, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text()


def embedded(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])


def visible_text(html):
    """The page's text without scripts and styles."""
    without = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", without))


# What is read --------------------------------------------------------------------------------------


def test_a_branched_trial_has_its_trunks_curve_up_to_the_branch(tmp_path):
    trunk = {step: {"train/accuracy": step / 100} for step in (1, 2, 3, 4)}  # the trunk went on beyond the branch
    write_journal(tmp_path / "trunks/t0", "t0", trunk, {0: {"accuracy": 0.25}, 4: {"accuracy": 0.9}})
    trial = tmp_path / "trials/a"
    write_journal(trial, "a", {step: {"train/accuracy": 0.5, "self_reward/f1": 0.7} for step in (3, 4)}, {4: {"accuracy": 0.5}})
    (trial / "branch.json").write_text('{"trunk": "../../trunks/t0", "step": 2, "trunk_run_id": "x"}')
    run = load_runs([trial]).runs[0]
    assert run.training["train/accuracy"] == {1: 0.01, 2: 0.02, 3: 0.5, 4: 0.5}
    assert run.training["self_reward/f1"] == {3: 0.7, 4: 0.7}
    assert run.evaluations["accuracy"] == {0: 0.25, 4: 0.5}
    assert (run.branch, run.trunk, run.base, run.evaluation) == (2, tmp_path / "trunks/t0", {"accuracy": 0.25}, {"accuracy": 0.5})


def test_at_the_branch_the_trials_own_value_counts():
    assert join({"a": {1: 0.1, 2: 0.2}}, {"a": {2: 0.7}}, 2) == {"a": {1: 0.1, 2: 0.7}}


def test_a_trial_whose_trunk_is_gone_is_shown_from_the_branch_on_and_the_page_says_so(run_folder, tmp_path):
    (run_folder / "branch.json").write_text('{"trunk": "../gone", "step": 1, "trunk_run_id": "x"}')
    report = load_runs([run_folder])
    assert report.runs[0].training["train/accuracy"] == {1: 0.25, 2: 0.5}
    assert report.notes == ["plain: its trunk ../gone is not there, so its curves begin after step 1."]
    assert report.notes[0] in visible_text(html_of([run_folder], tmp_path))


def test_a_last_line_that_a_kill_cut_off_is_left_out_but_no_other(run_folder):
    journal = run_folder / "metrics.jsonl"
    journal.write_text(journal.read_text() + '{"event":"step","step":3,"val')
    assert load_runs([run_folder]).runs[0].step == 2
    journal.write_text(journal.read_text() + "\n{}\n")
    with pytest.raises(RunError, match=r"metrics.jsonl: line 7 is no event"):
        load_runs([run_folder])


@pytest.mark.parametrize(("status", "shown"), [("RUNNING", "running"), ("FAILED", "failed"), ("FINISHED", "finished"), (None, "running")])
def test_the_state_of_a_run_is_that_of_its_last_status(tmp_path, status, shown):
    write_journal(tmp_path, "r", {1: {"train/accuracy": 0.1}}, status=status)
    assert load_runs([tmp_path]).runs[0].status == shown


def test_what_is_not_finite_is_no_point_of_a_curve(tmp_path):
    largest = 1.7976931348623157e308  # what the journal writes for infinity
    write_journal(tmp_path, "r", {1: {"loss/total": 0.5}, 2: {"loss/total": math.nan}, 3: {"loss/total": largest}, 4: {"loss/total": 0.25}})
    assert load_runs([tmp_path]).runs[0].training["loss/total"] == {1: 0.5, 4: 0.25}


def test_a_figure_that_the_newest_evaluation_leaves_undefined_is_not_taken_from_an_older_one(tmp_path):
    write_journal(tmp_path, "r", {}, {0: {"accuracy": 0.5, "auroc": 0.7}, 5: {"accuracy": 1.0}})
    assert load_runs([tmp_path]).runs[0].evaluation == {"accuracy": 1.0}


def test_a_sweep_is_read_with_trials_in_every_state(sweep_folder):
    report = load_runs([sweep_folder])
    by_status = {run.status: run for run in report.runs}
    assert set(by_status) == {"finished", "failed", "pruned", "running", "pending"}
    assert by_status["pending"].folder is None
    assert by_status["pending"].settings == {"run.seed": 1, "loss.beta_v": 0.2, "loss.alpha": 1.0}
    assert by_status["failed"].error == "RunError: a learner rank died 3 times; see worker-<7>.err"
    assert by_status["failed"].evaluation == {}  # its trunk's evaluation of the base model is not its own
    assert min(by_status["pruned"].training["train/accuracy"]) == 1
    assert max(by_status["pruned"].training["train/accuracy"]) == 45


def test_a_folder_named_twice_is_one_run(run_folder):
    assert len(load_runs([run_folder, run_folder / "." / ""]).runs) == 1


@pytest.mark.parametrize(("make", "message"), [
    (lambda path: None, "does not exist"),
    (lambda path: path.mkdir(), "holds neither"),
    (lambda path: path.write_text(""), "is not a folder"),
])  # fmt: skip
def test_another_folder_is_refused_with_what_is_expected(tmp_path, make, message):
    make(tmp_path / "x")
    with pytest.raises(ConfigError, match=rf"/x: {message}\. .*metrics\.jsonl.*results\.json"):
        write_report([tmp_path / "x"], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_the_folder_of_an_evaluation_is_refused_with_what_to_give_instead(tmp_path, capsys):
    folder = tmp_path / "evaluated"
    folder.mkdir()
    figures = Figures(**{field.name: 0.5 for field in fields(Figures)})
    results = EvalResults(folder, "runs/quickstart step-000100", None, [], figures, 0)
    (folder / "results.json").write_text(json.dumps(results.tree()))
    assert main(["report", str(folder), "-o", str(tmp_path / "report.html")]) == 2
    message = capsys.readouterr().err
    assert f"{folder}: is the folder of an evaluation (laser eval) of runs/quickstart step-000100" in message
    assert "Name the folder of the run or sweep instead" in message
    assert not (tmp_path / "report.html").exists()


def test_no_folder_at_all_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no run is given"):
        write_report([], tmp_path / "report.html")


def test_the_newest_evaluation_with_scores_is_the_one_that_is_looked_at(run_folder):
    assert newest_scores(load_runs([run_folder]).runs[0]) is None
    write_samples(run_folder, [("correct", 0.9, True)], step=1)
    write_samples(run_folder, [("correct", math.nan, True)], step=2)
    write_samples(run_folder, [("correct", 0.1, True)], step=9, set_name="another")
    found = newest_scores(load_runs([run_folder]).runs[0])
    assert (found.set_name, found.step, found.score.round(6).tolist()) == ("test", 1, [0.9])
    write_samples(run_folder, [("correct", math.nan, True)], step=1)
    assert newest_scores(load_runs([run_folder]).runs[0]).step == 2


# The figures' numbers ------------------------------------------------------------------------------


def test_a_band_is_over_the_seeds_that_got_there():
    found = band([{1: 0.2, 2: 0.4, 3: 0.9}, {1: 0.4, 2: 0.8}, {2: 0.6}])
    assert found.steps == [1, 2, 3]
    assert found.mean == pytest.approx([0.3, 0.6, 0.9])
    assert found.low == [0.2, 0.4, 0.9]
    assert found.high == [0.4, 0.8, 0.9]


def test_long_curves_are_thinned_to_means_or_maxima_over_the_same_windows():
    curves = [{1: 1.0, 2: 3.0, 3: 2.0, 4: 8.0}, {1: 4.0, 2: 5.0, 3: 6.0}]
    assert thinned(curves, largest=False, limit=2) == [{2: 2.0, 4: 5.0}, {2: 4.5, 4: 6.0}]
    assert thinned(curves, largest=True, limit=2) == [{2: 3.0, 4: 8.0}, {2: 5.0, 4: 6.0}]
    assert thinned(curves, largest=False, limit=4) == curves


def test_reliability_bins_and_calibration_error_by_hand():
    # Two in [0, 0.1): mean 0.05 with 0 right; two in [0.5, 0.6): mean 0.55, one right; -3 and 4 are clipped into the outermost bins.
    score = np.array([0.02, 0.08, 0.52, 0.58, -3.0, 4.0])
    bins, error = reliability(score, np.array([False, False, True, False, True, True]))
    assert [each.count for each in bins] == [3, 0, 0, 0, 0, 2, 0, 0, 0, 1]
    assert (bins[0].score, bins[0].correct) == pytest.approx((0.1 / 3, 1 / 3))
    assert (bins[5].low, bins[5].score, bins[5].correct) == pytest.approx((0.5, 0.55, 0.5))
    assert math.isnan(bins[1].score)
    assert error == pytest.approx((3 * abs(0.1 / 3 - 1 / 3) + 2 * 0.05 + 1 * 0.0) / 6)


def test_the_calibration_error_is_the_one_that_evaluations_log():
    from orchestrator.algorithm.metrics import expected_calibration_error

    random = np.random.default_rng(0)
    score, correct = random.normal(0.5, 0.5, 200), random.random(200) < 0.5
    assert reliability(score, correct)[1] == pytest.approx(expected_calibration_error(score, correct))
    assert math.isnan(reliability(score[:0], correct[:0])[1])


def test_histograms_count_each_class_and_what_lies_beyond():
    edges, right, wrong = histograms(scores_of(("correct", 0.51), ("correct", 9.0), ("wrong", -9.0), ("timeout", 0.5), ("wrong", None)))
    assert (edges[0], edges[-1], len(right)) == (-0.5, 1.5, 40)
    assert [number for number, count in enumerate(right) if count] == [20, 39]  # [0.5, 0.55) and the last
    assert [number for number, count in enumerate(wrong) if count] == [0]


def test_the_most_confident_mistakes_come_first_and_those_without_a_score_last():
    scores = scores_of(
        ("timeout", 0.99),  # 0: not verified
        ("correct", 0.9),  # 1: off by 0.1
        ("wrong", 1.2),  # 2: off by 1 when clipped
        ("correct", -0.1),  # 3: off by 1 when clipped, and nearer to 0 than 2 is to 1
        ("wrong", None),  # 4: unfinished
        ("wrong", 0.7),  # 5: off by 0.7
        ("no_answer", 0.75),  # 6: a wrong one too
    )
    assert off_by(scores).tolist() == pytest.approx([math.nan, 0.1, 1.0, 1.0, math.nan, 0.7, 0.75], nan_ok=True)
    assert choose_samples(scores).tolist() == [2, 3, 6, 5, 1, 0, 4]


def test_of_many_samples_the_worst_of_both_kinds_and_a_spread_of_the_rest_are_chosen():
    wrong = [("wrong", number / 100) for number in range(100)]
    right = [("correct", number / 100) for number in range(100)]
    unfinished = [("no_answer", None)] * 100
    scores = scores_of(*wrong, *right, *unfinished)
    rows = choose_samples(scores, limit=30).tolist()
    assert len(rows) == len(set(rows)) == 30
    assert set(range(90, 100)) <= set(rows)  # a third: wrong ones scored highest
    assert set(range(100, 110)) <= set(rows)  # a third: right ones scored lowest
    assert [row for row in rows if row >= 200] == rows[-3:] == [200, 250, 299]  # a tenth, spread
    gaps = off_by(scores)[rows[:-3]]
    assert (np.diff(gaps) <= 0).all()
    assert gaps.min() < 0.1  # the rest reaches down to the well scored


def test_without_scores_the_samples_are_spread_over_the_set():
    assert choose_samples(scores_of(*[("wrong", None)] * 11), limit=3).tolist() == [0, 5, 10]


def test_a_surface_cell_is_the_mean_of_finished_trials(sweep_folder):
    finished, other = load_runs([sweep_folder]).runs[2:4]
    values = {id(finished): 0.5, id(other): 0.7}
    both = cell([finished, other], lambda run: values[id(run)])
    assert (both.mean, both.deviation, both.count) == pytest.approx((0.6, math.sqrt(0.02), 2))
    failed = next(run for run in load_runs([sweep_folder]).runs if run.status == "failed")
    partly = cell([finished, failed], lambda run: 0.5)
    assert (partly.mean, partly.count, partly.runs) == (0.5, 1, 2)
    assert math.isnan(partly.deviation)
    assert cell([failed], lambda run: 0.5).state == "failed"
    assert (cell([], lambda run: 0.5).count, cell([], lambda run: 0.5).state) == (0, "")


def test_values_from_ranges_are_told_from_lists_of_values():
    grid = [{"a": a, "b": b} for a in (0.1, 0.2, 0.5, 1.0, 2.0) for b in (0.1, 0.2, 0.5, 1.0, 2.0)]
    drawn = [{"a": number / 7, "b": number / 11} for number in range(1, 9)]
    assert not is_continuous(grid, ["a", "b"])
    assert is_continuous(drawn, ["a", "b"])
    assert not is_continuous(drawn, ["a"])
    assert not is_continuous([{"a": "x", "b": number / 3} for number in range(20)], ["a", "b"])


def test_seeds_of_one_setting_are_one_point_and_only_what_differs_is_a_column(tmp_path):
    for name, seed, alpha in (("a", 0, 0.5), ("b", 1, 0.5), ("c", 0, 0.1)):
        write_journal(tmp_path / name, name, {1: {"train/accuracy": 0.1}}, {1: evaluation_values(alpha, 0.5)})
        write_config(tmp_path / name, run__seed=seed, loss__alpha=alpha, loss__tau=0.1)
    report = load_runs([tmp_path / name for name in "abc"])
    assert [(point.label, len(point.runs)) for point in points(report)] == [("a and 1 more seed", 2), ("c", 1)]
    assert differing_settings(report) == ["loss.alpha", "run.seed"]


def test_runs_are_compared_by_accuracy_and_f1_unless_one_has_no_f1(tmp_path):
    write_journal(tmp_path / "laser", "laser", {}, {1: evaluation_values(0.5, 0.9)})
    write_journal(tmp_path / "grpo", "grpo", {}, {1: {"accuracy": 0.6}})
    write_journal(tmp_path / "none", "none", {1: {"train/accuracy": 0.6}})
    alone = objective(load_runs([tmp_path / "laser", tmp_path / "none"]))
    assert (alone.metric, alone.values) == ("(accuracy + self_verification_f1) / 2", {0: pytest.approx(0.7)})
    both = objective(load_runs([tmp_path / "laser", tmp_path / "grpo"]))
    assert (both.metric, both.values, both.best) == ("accuracy", {0: 0.5, 1: 0.6}, {1})


def test_figures_of_different_sets_are_not_ranked(tmp_path):
    write_journal(tmp_path / "a", "a", {}, {1: {"accuracy": 0.5}}, set_name="easy")
    write_journal(tmp_path / "b", "b", {}, {1: {"accuracy": 0.6}}, set_name="hard")
    assert objective(load_runs([tmp_path / "a", tmp_path / "b"])).best == set()
    assert "The sets differ, so the figures do not compare." in visible_text(html_of([tmp_path / "a", tmp_path / "b"], tmp_path))


# The page ------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """Collects every tag with its attributes."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_the_page_loads_nothing_and_forbids_loading(sweep_folder, tmp_path):
    html = html_of([sweep_folder], tmp_path)
    tags = Tags(html).found
    assert [attributes for _, attributes in tags if attributes.keys() & {"src", "href", "srcset", "data"}] == []
    assert {tag for tag, _ in tags}.isdisjoint({"link", "img", "iframe", "object", "embed", "base"})
    style = re.search(r"<style>(.*?)</style>", html, re.S)[1]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(attributes["content"] for tag, attributes in tags if attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy.partition("style-src")[0]
    assert html.count("plotly.js v") == 1


def test_a_solution_cannot_break_out_of_the_page(run_folder, tmp_path):
    row = {"status": "wrong", "score": 0.9, "finished": True, "response": NASTY, "problem": NASTY, "reference": NASTY, "answer": NASTY}
    write_samples(run_folder, [row], step=2)
    html = html_of([run_folder], tmp_path)
    assert [tag for tag, _ in Tags(html).found].count("script") == 3
    assert "<script>document.title" not in html
    assert embedded(html)["samples"]["0"][0]["solution"] == NASTY


def test_names_and_errors_are_escaped(sweep_folder, tmp_path):
    shutil.copytree(sweep_folder, tmp_path / "copy")
    results = json.loads((tmp_path / "copy/results.json").read_text())
    results["name"] = results["trials"][0]["name"] = results["trials"][0]["error"] = results["trials"][0]["point"]["loss.alpha"] = NASTY
    results["trials"][0]["metrics"]["auroc"] = math.nan
    (tmp_path / "copy/results.json").write_text(json.dumps(results))
    tags = Tags(html_of([tmp_path / "copy"], tmp_path)).found
    assert [tag for tag, _ in tags].count("script") == 3
    assert "img" not in {tag for tag, _ in tags}


def test_a_sweeps_page_says_what_was_best_and_what_was_saved(sweep_folder, tmp_path):
    html = html_of([sweep_folder], tmp_path)
    text = visible_text(html)
    assert "beta_v 0.1, alpha 0.5" in text
    assert "150 of 240 steps (0.625)" in text
    assert "13 finished, 2 failed, 1 pruned, 1 running, 1 pending; 9 points of settings" in text
    assert "RunError: a learner rank died 3 times; see worker-&lt;7&gt;.err" in text
    assert "failed / pending" in text
    assert "1 of 2 trials" in text
    assert html.count("★ best") == 1
    assert html.count("<tr class=best>") == 2
    heads = [attributes for tag, attributes in Tags(html).found if tag == "th"]
    assert all("scope" in head or head["class"] == "axis" for head in heads)


def test_the_curves_of_a_sweep_begin_where_the_trunks_end(sweep_folder, tmp_path):
    data = embedded(html_of([sweep_folder], tmp_path))
    whole = [trunk for trunk in data["trunks"] if not trunk["part"]]
    assert [trunk["training"]["train/accuracy"]["steps"] for trunk in whole] == [list(range(1, 31))]
    assert "self_reward/f1" not in whole[0]["training"]
    own = data["training"][4]["train/accuracy"]
    assert (own["steps"][0], own["steps"][-1], len(own["low"])) == (31, 60, 30)
    assert {point["branches"][0] for point in data["points"]} == {30}
    assert data["scores"][data["selected"]]["name"] == "beta_v=0.1,alpha=0.5,seed=1"
    assert len(data["samples"]) == 12
    assert data["zero"] == ["KL to the reference"]


def test_a_single_run_says_from_where_to_where_it_came(run_folder, tmp_path):
    text = visible_text(html_of([run_folder], tmp_path))
    assert "0.200 → 0.600" in text
    assert "0.400 → 0.800" in text
    assert "No run has an evaluation with samples yet" in text


def test_a_run_without_a_score_shows_its_solutions(run_folder, tmp_path):
    write_samples(run_folder, [("correct", math.nan, True), ("wrong", math.nan, True)], step=2)
    data = embedded(html_of([run_folder], tmp_path))
    assert (data["scores"][0]["right"], data["scores"][0]["wrong"], data["scores"][0]["ece"]) == (0, 0, None)
    assert [(row["status"], row["score"]) for row in data["samples"]["0"]] == [("correct", None), ("wrong", None)]


def test_a_run_that_has_only_begun_is_a_page_too(tmp_path):
    write_journal(tmp_path / "new", "new", status=None)
    text = visible_text(html_of([tmp_path / "new"], tmp_path))
    assert "No run has finished a step or an evaluation yet." in text
    assert "not evaluated yet" in text


def test_long_solutions_lose_their_middle(run_folder, tmp_path):
    row = {"status": "wrong", "score": 0.9, "finished": True, "response": "a" * 50_000 + "z"}
    write_samples(run_folder, [row], step=2)
    solution = embedded(html_of([run_folder], tmp_path))["samples"]["0"][0]["solution"]
    assert len(solution) < 8100
    assert solution.endswith("az")
    assert "42,001 characters left out" in solution


def test_runs_and_a_sweep_can_be_mixed(sweep_folder, run_folder, tmp_path):
    data = embedded(html_of([sweep_folder, run_folder], tmp_path))
    assert len(data["points"]) == 10
    assert data["points"][-1]["label"] == "plain"


def test_more_than_two_searched_keys_are_averaged_over_and_drawn_in_parallel(tmp_path):
    trials = [
        {"name": f"{beta},{alpha},{mode}", "folder": f"trials/{beta}{alpha}{mode}", "seed": 0, "status": "finished", "step": 9, "steps": 9,
         "point": {"loss.c_ref": mode, "loss.beta_v": beta, "loss.alpha": alpha}, "objective": 0.5, "metrics": {"accuracy": accuracy}}
        for beta in (0.1, 0.2) for alpha in (0.1, 0.5) for mode, accuracy in (("exact", 0.25), ("calibrate", 0.75))
    ]  # fmt: skip
    results = {
        "name": "s",
        "metric": "accuracy",
        "set": "test",
        "keys": ["loss.c_ref", "loss.beta_v", "loss.alpha"],
        "trials": trials,
        "best": None,
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    html = html_of([tmp_path], tmp_path)
    assert "Averaged over c_ref." in visible_text(html)
    assert html.count('style="--heat:50%">0.500<small>± 0.354</small>') == 4
    assert [key["texts"] for key in embedded(html)["sweeps"][0]["keys"]] == [["exact", "calibrate"], ["0.1", "0.2"], ["0.1", "0.5"]]
    assert "data-parallel" in html


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to load the page with")
def test_a_browser_draws_every_plot_without_an_error(sweep_folder, tmp_path):
    html = html_of([sweep_folder], tmp_path)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
             "--disable-component-update", f"--user-data-dir={tmp_path}/profile", "--enable-logging=stderr",
             "--virtual-time-budget=8000"]  # fmt: skip
    done = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", f"file://{tmp_path}/report.html"],
        capture_output=True, text=True, timeout=120, env=os.environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    assert [line for line in done.stderr.splitlines() if ":CONSOLE" in line] == []
    plots = html.count("data-chart=") + 1 + 2  # the curves, the times by part, and the two of the scores
    assert f'data-drawn="{plots}"' in done.stdout
    assert done.stdout.count('class="main-svg"') >= plots
    assert "<title>beta-alpha" in done.stdout  # a solution in it would name the page otherwise
    assert NASTY.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in done.stdout
