"""Settings, stored samples and figures of `laser eval`, without engines: expectations worked out by hand."""

import json
import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from actors.verification import VerificationWorker
from orchestrator.config.evaluation import EvalConfig, default_folder, requested_sets
from orchestrator.config.training import load_config
from orchestrator.data.problems import Problem, load_problems
from orchestrator.errors import ConfigError, DataError
from orchestrator.evaluation.answers import NO_VOTE, number_answers, wrong_answers
from orchestrator.evaluation.drawing import ProblemSet, missing_parts
from orchestrator.evaluation.figures import EvalResults, average, columns_of, set_results
from orchestrator.evaluation.run import load_eval
from orchestrator.evaluation.samples import (
    EvalSample,
    SampleFile,
    claim_protocol,
    problem_seed,
    read_samples,
)
from orchestrator.evaluation.scores import ScoreRule
from orchestrator.evaluation.show import EvalProgress, save_cost_figure, show_results

NAN = math.nan


def sample(
    number=0,
    status="correct",
    answer="4",
    answer_class=0,
    score=0.9,
    problem="p",
    set_name="s",
    finished=True,
    tokens=10,
):
    z_logprob = NAN if math.isnan(score) else score * 10 - 20
    return EvalSample(
        set_name, problem, "2+2", "4", None, number, 7 + number, "four", tokens, finished, status, answer,
        answer_class, z_logprob, score
    )  # fmt: skip


def configure(**settings):
    return load_eval(None, settings, [])


def entries(*data, **settings):
    requests = requested_sets(configure(model="m", data=list(data), **settings))
    return [(request.name, request.source.source, request.samples_per_problem) for request in requests]


def test_a_set_is_a_name_a_file_or_a_data_set_with_its_samples():
    assert entries("math500", "aime24", "data/mine.jsonl", "owner/name") == [
        ("math500", "HuggingFaceH4/MATH-500", 2),
        ("aime24", "HuggingFaceH4/aime_2024", 32),
        ("mine", "data/mine.jsonl", 8),
        ("name", "owner/name", 8),
    ]
    assert entries("aime24:4", "mine.jsonl:16", "owner/name:config", samples_per_problem=3) == [
        ("aime24", "HuggingFaceH4/aime_2024", 4),
        ("mine", "mine.jsonl", 16),
        ("name-config", "owner/name:config", 3),
    ]


def test_a_problem_with_several_answers_has_them_all_in_its_reference(tmp_path):
    path = tmp_path / "olympiad.jsonl"
    path.write_text(json.dumps({"question": "x^2=1", "final_answer": ["1 ", "-1"]}) + "\n")
    assert [problem.answer for problem in load_problems(str(path), "question", "final_answer")] == ["1, -1"]
    path.write_text(json.dumps({"question": "x^2=1", "final_answer": [["1"]]}) + "\n")
    with pytest.raises(DataError, match="neither text nor a number"):
        load_problems(str(path), "question", "final_answer")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "m"}, "needs --model and --data"),
        ({"data": ["math500"]}, "needs --model and --data"),
        ({"model": "m", "data": ["a/t.jsonl", "b/t.jsonl"]}, "two sets are called t"),
        ({"samples": "s.jsonl", "data": ["math500"]}, "give one of them"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        requested_sets(configure(**settings))


def test_overrides_go_over_options_over_the_file(tmp_path):
    path = tmp_path / "eval.yaml"
    path.write_text("seed: 1\ntemperature: 0.5\nrollout: {num_engines: 2}\n")
    config = load_eval(path, {"temperature": 0.7}, ["rollout.cpus=0.5", "temperature=0.9"])
    assert (config.seed, config.temperature, config.rollout.num_engines, config.rollout.cpus) == (
        1,
        0.9,
        2,
        0.5,
    )
    assert load_config(path, [], EvalConfig).temperature == 0.5
    assert load_eval(path, {}, ["instruction="]).instruction == "", "none, and not the default"
    with pytest.raises(ConfigError, match=r"rollout\.engines: unknown key"):
        load_eval(path, {}, ["rollout.engines=1"])
    with pytest.raises(ConfigError, match=r"write key.path=value"):
        load_eval(path, {}, ["seed"])


def test_the_default_folder_names_model_and_sets():
    assert default_folder(configure(model="runs/mine/export"), ["a", "b"]) == Path(
        "runs/evaluations/mine-a-b"
    )
    assert default_folder(configure(model="models:/lasers@best"), ["a"]) == Path(
        "runs/evaluations/lasers-best-a"
    )


def test_a_seed_is_the_problems_own():
    first = problem_seed(0, "s", "p")
    assert first == problem_seed(0, "s", "p")
    assert len({first, problem_seed(1, "s", "p"), problem_seed(0, "t", "p"), problem_seed(0, "s", "q")}) == 4
    assert 0 <= first < 2**48


class Prompts:
    """As much of a PromptSet as drawing looks at."""

    def __init__(self, *ids):
        self.problems = [Problem(id_, "2+2", "4", None, 1) for id_ in ids]

    def __len__(self):
        return len(self.problems)


def test_what_is_missing_is_drawn_in_parts_with_the_seeds_it_would_have_had():
    sets = [ProblemSet("s", Prompts("p", "q"), 10)]
    drawn = [sample(number, problem="p") for number in (0, 1, 2, 5)]
    parts = [
        (part.problem.id, part.first, part.count, part.seed - problem_seed(3, "s", part.problem.id))
        for part in missing_parts(sets, drawn, 3)
    ]
    assert parts == [("p", 3, 2, 3), ("p", 6, 4, 6), ("q", 0, 8, 0), ("q", 8, 2, 8)]


def test_a_cut_off_last_line_is_dropped_and_another_bad_line_refused(tmp_path):
    file = SampleFile(tmp_path)
    file.append([sample(0), sample(1, "no_answer", None, None, NAN, finished=False)])
    whole = file.path.read_bytes()
    for cut in (whole + sample(2).line().encode()[:-1], whole + b'{"set"', whole + b"\n"):
        file.path.write_bytes(cut)
        again = SampleFile(tmp_path)
        assert [found.sample for found in again.samples] == [0, 1]
        assert file.path.read_bytes() == whole
    assert math.isnan(again.samples[1].score)
    assert json.loads(whole.splitlines()[1])["score"] is None
    again.append([sample(2)])
    assert [found.sample for found in read_samples(file.path)] == [0, 1, 2]
    file.path.write_bytes(b"{}\n" + whole)
    with pytest.raises(DataError, match="line 1: is not a sample of an evaluation"):
        SampleFile(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_samples(tmp_path / "none.jsonl")


def test_a_folder_belongs_to_one_evaluation(tmp_path):
    claim_protocol(tmp_path, {"seed": 0, "sets": {"s": {"problems": 3}}})
    claim_protocol(tmp_path, {"seed": 1, "sets": {"s": {"problems": 3}}})  # nothing has been drawn yet
    SampleFile(tmp_path).append([sample()])
    claim_protocol(tmp_path, {"seed": 1, "sets": {"s": {"problems": 3}}})
    with pytest.raises(
        ConfigError, match=r"sets.s.problems: 3 before, 4 now\n  sets.t.problems: None before, 1 now"
    ):
        claim_protocol(tmp_path, {"seed": 1, "sets": {"s": {"problems": 4}, "t": {"problems": 1}}})


def test_right_answers_are_one_class_and_what_is_no_single_answer_has_no_vote():
    group = [
        sample(0, "wrong", "5", None), sample(1, "correct", "4", None), sample(2, "wrong", "6", None),
        sample(3, "format", "4", None), sample(4, "correct", "4.0", None), sample(5, "timeout", "9^9", None),
        sample(6, "no_answer", None, None),
    ]  # fmt: skip
    assert wrong_answers(group) == ["5", "6"]
    assert number_answers(group, [0, 1]) == [1, 0, 2, NO_VOTE, 0, NO_VOTE, NO_VOTE]


def test_a_measured_c_ref_makes_the_mean_score_zero():
    score = ScoreRule("z", 3, None, 0.1, "baseline")
    assert math.isnan(score.of(-18.0))
    samples = [replace(sample(), z_logprob=value) for value in (-18.0, -22.0, NAN)]
    measured = score.measured(samples)
    assert measured.c_ref == -20.0
    assert [measured.of(found.z_logprob) for found in samples[:2]] == pytest.approx([0.2, -0.2])
    assert replace(score, c_ref=-19.0).measured(samples).c_ref == -19.0


def samples_of_two_problems():
    """p: right .9, wrong .6, wrong .2, unfinished; q: right .4, wrong .3 twice (one without an answer), timed
    out .8."""
    return [
        sample(0, "correct", "4", 0, 0.9, "p", tokens=10),
        sample(1, "wrong", "5", 1, 0.6, "p", tokens=20),
        sample(2, "wrong", "5", 1, 0.2, "p", tokens=30),
        sample(3, "no_answer", None, None, NAN, "p", finished=False, tokens=40),
        sample(0, "correct", "4", 0, 0.4, "q", tokens=10),
        sample(1, "wrong", "7", 1, 0.3, "q", tokens=10),
        sample(2, "no_answer", None, None, 0.3, "q", tokens=10),
        sample(3, "timeout", "9^9", None, 0.8, "q", tokens=10),
    ]


def test_figures_by_hand():
    found = set_results("s", columns_of(samples_of_two_problems()))
    figures = found.figures
    # Over samples; the timed-out one is neither right nor wrong.
    assert figures.accuracy == pytest.approx(2 / 7)
    assert (figures.accuracy_low, figures.accuracy_high) == (pytest.approx(1 / 4), pytest.approx(1 / 3))
    assert figures.finished_share == 7 / 8
    assert (found.unfinished, found.unverified, found.mixed_problems) == (1, 1, 2)
    assert figures.accuracy_correct == 1 / 2  # .9, .4
    assert figures.accuracy_wrong == 3 / 4  # .6, .2, .3, .3
    assert figures.self_verification_f1 == pytest.approx(2 * 0.5 * 0.75 / 1.25)
    assert figures.accuracy_wrong_answered == pytest.approx(2 / 3)  # without the .3 that has no answer
    assert figures.f1_answered == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))
    assert figures.auroc == pytest.approx(7 / 8)  # of 8 pairs only .4 < .6 is the wrong way round
    assert figures.auroc_within_problem == 1.0
    # Bins .9: gap .1; .6: .6; .4: .6; .3 twice: .6; .2: .2, over 6 samples.
    assert figures.ece == pytest.approx((0.1 + 0.6 + 0.6 + 0.6 + 0.2) / 6)
    assert figures.response_tokens == 17.5


def test_votes_by_hand():
    found = set_results("s", columns_of(samples_of_two_problems()))
    assert [row.k for row in found.at_k] == [1, 2, 4]
    first, _, last = found.at_k
    assert first.pass_at_k == first.maj_at_k == 1 / 4
    # p: 5 has two votes of three; q: 4 and 7 tie, a fair half.
    assert last.maj_at_k == pytest.approx((0 + 1 / 2) / 2)
    # p: .9 against .8; q: .4 against .3.
    assert last.weighted_at_k == 1.0
    # p: .9 is right; q: the timed-out .8 is not.
    assert last.best_of_k == 0.5
    assert last.pass_at_k == 1.0
    assert found.metrics()["weighted_at_k"] == 1.0
    assert found.metrics()["maj_at_2"] == found.at_k[1].maj_at_k
    assert found.metrics()["maj_at_k"] == last.maj_at_k
    by_rule = {(point.rule, point.parameter): point for point in found.cost}
    assert by_rule["weighted", 4].accuracy == 1.0
    assert by_rule["weighted", 4].tokens == (100 + 40) / 2
    assert by_rule["adaptive", 0.6].samples < 4


def test_a_vote_over_all_samples_whatever_their_number():
    """Of 3 samples the two wrong ones win; over any 2 of them they would not always."""
    samples = [sample(0), sample(1, "wrong", "5", 1, 0.1), sample(2, "wrong", "5", 1, 0.1)]
    found = set_results("s", columns_of(samples))
    assert [row.k for row in found.at_k] == [1, 2, 3]
    assert found.figures.maj_at_k == 0
    assert found.figures.weighted_at_k == 1
    plain = set_results("s", columns_of(samples), tables=False)
    assert plain.figures == found.figures
    assert ([row.k for row in plain.at_k], plain.cost) == ([3], [])


def test_a_problem_that_nobody_could_check_is_left_out():
    checked = [sample(0), sample(1, "wrong", "5", 1, 0.1)]
    unchecked = [sample(number, "error", "5", None, 0.9, problem="q") for number in range(2)]
    found, alone = (set_results("s", columns_of(samples)) for samples in (checked + unchecked, checked))
    assert (found.problems, found.unverified) == (2, 2)
    assert found.at_k == alone.at_k
    assert found.figures.accuracy == alone.figures.accuracy == 1 / 2
    nothing = set_results("s", columns_of(unchecked))
    assert (nothing.at_k, nothing.cost) == ([], [])
    assert all(math.isnan(nothing.metrics()[name]) for name in ("accuracy", "maj_at_k", "weighted_at_k"))


def test_the_interval_weighs_problems_by_their_checked_samples():
    """a: 3 of 3; b: 0 of 1. Of the four draws of two problems one is right in 1, two in 3/4 and one in 0 of
    the samples."""
    samples = [*(sample(number, problem="a") for number in range(3)), sample(0, "wrong", "5", 1, problem="b")]
    figures = set_results("s", columns_of(samples)).figures
    assert figures.accuracy == 3 / 4
    assert (figures.accuracy_low, figures.accuracy_high) == (0, 1)


def test_without_a_score_there_are_accuracy_and_plain_votes():
    found = set_results("s", columns_of([replace(one, score=NAN) for one in samples_of_two_problems()]))
    assert found.figures.accuracy == pytest.approx(2 / 7)
    assert math.isnan(found.figures.self_verification_f1)
    assert math.isnan(found.at_k[-1].weighted_at_k)
    assert math.isnan(found.at_k[-1].best_of_k)
    assert {point.rule for point in found.cost} == {"majority", "adaptive majority"}


def test_the_average_weighs_sets_alike_and_a_figure_that_one_lacks_is_not_defined(tmp_path):
    one = set_results("one", columns_of(samples_of_two_problems()))
    other = set_results("other", columns_of([sample(0, problem=name) for name in "abc"]))
    mean = average([one, other])
    assert mean.accuracy == pytest.approx((2 / 7 + 1) / 2)
    assert (mean.accuracy_low, mean.accuracy_high) == (
        pytest.approx((1 / 4 + 1) / 2),
        pytest.approx((1 / 3 + 1) / 2),
    )
    assert math.isnan(other.figures.auroc)
    assert math.isnan(mean.auroc)
    results = EvalResults(tmp_path, "mine", None, [one, other], mean, undecided=1)
    tree = json.loads(json.dumps(results.tree(), allow_nan=False))
    assert tree["average"]["auroc"] is None
    assert tree["sets"][0]["figures"]["auroc"] == 7 / 8
    console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))
    show_results(results, console)
    text = console.export_text()
    assert "0.286" in text
    assert "[0.250, 0.333]" in text
    assert "the check of 1 samples timed out" in text
    save_cost_figure(results.sets, tmp_path / "cost.png")
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")


def test_progress_tells_samples_rate_and_time_left(monkeypatch, tmp_path):
    now = [100.0]
    monkeypatch.setattr("orchestrator.evaluation.show.time.monotonic", lambda: now[0])
    console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))
    with EvalProgress(console) as progress:
        progress.start("sampling", 100, done=20)
        progress.advance(10)
        now[0] += 20.0
        progress.advance(40)
    assert "sampling 70/100  2.0 samples/s  ETA 0:15" in console.export_text()


def test_equal_answers_are_pooled_and_what_hangs_is_counted():
    with closing(VerificationWorker(timeout_s=2.0)) as worker:
        assert worker.pool_answers(["7", "-7", "007", "+7", "0", "-0", "7" * 5000]) == [0, 1, 0, 0, 2, 2, 3]
        assert worker.pooling_stats() == {"comparisons": 0, "timeout": 0, "error": 0}, (
            "integers and equal texts need no check"
        )
        answers = [r"\frac12", "3", "0.5", "x=3", "1/2", "{1,2}", r"\{2,1\}"]
        assert worker.pool_answers(answers) == [0, 1, 0, 1, 0, 2, 2]
        order = np.random.default_rng(0).permutation(len(answers))
        shuffled = worker.pool_answers([answers[index] for index in order])
        original = [[0, 1, 0, 1, 0, 2, 2][index] for index in order]
        assert len(set(zip(shuffled, original, strict=True))) == 3, "the same classes in any order"
        assert worker.pool_answers(["9^{9^{9^9}}", "x+1", "1+x", "x+2", "x+3"]) == [0, 1, 1, 2, 3]
        assert worker.pooling_stats()["timeout"] == 2, "an answer that hangs is not compared on and on"
        assert worker.pool_answers([]) == []
