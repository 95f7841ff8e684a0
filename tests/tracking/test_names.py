"""Names that MLflow accepts: against MLflow's own rules and a real store."""

import random

import pytest
from mlflow.utils.validation import (
    MAX_PARAM_VAL_LENGTH,
    MAX_TAG_VAL_LENGTH,
    _validate_metric_name,
    _validate_param,
    _validate_tag,
)

from dashboards.report.load import read_curves
from orchestrator.storage.journal import Journal
from orchestrator.tracking.names import (
    BATCH_BYTES,
    in_batches,
    legal_name,
    legal_params,
    legal_tags,
    legal_title,
    legal_value,
    true_name_tags,
)
from orchestrator.tracking.parent_run import ParentRun
from orchestrator.tracking.tracker import deliver_leftovers
from tests.tracking.mlflow_view import TABLE, client_of, history, leave, run_of

FOREIGN = [
    "a+b", "a(b)", "a@b", "a=b", "a,b", "a#b", "a?b", "a%20b", "a&b;c", "quote'\"", "line\nbreak", "tab\t",
    "", ".", "..", "../a", "..a", "/a", "a/", "a//b", "a/./b", "a/../b", "//", "emoji \U0001f600",
    "half \ud83d", "nul\0", "x" * 251, "ü+" * 300, "a/" * 200, "+" * 300, "a--0123abcd", "$x", "[1]",
    "{}", "*", "~", "back\\slash",
]  # fmt: skip
PLAIN = [
    "loss/total",
    "eval/test/pass_at_2",
    "eval/name:config/auroc",
    "eval/größe 2/a-b.c",
    "x" * 250,
    "日本/a",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_mlflow_accepts_the_name_that_stands_for_any_other(name):
    legal = legal_name(name)
    assert legal != name
    _validate_metric_name(legal)
    _validate_param(legal, "1")
    assert legal_name(legal) != legal, "a name that looks like it is another one"
    (tag, *_) = true_name_tags([name])
    _validate_tag(tag.key, tag.value)


@pytest.mark.parametrize("name", PLAIN)
def test_a_name_that_mlflow_accepts_stays(name):
    _validate_metric_name(name)
    assert legal_name(name) == name
    assert true_name_tags([name]) == []


def test_names_stay_readable_and_their_true_ones_are_tags():
    legal = legal_name("eval/math (hard)+/accuracy")
    assert legal.startswith("eval/math _hard__--")
    assert legal.endswith("/accuracy")
    (tag,) = true_name_tags(["eval/math (hard)+/accuracy", "eval/math (hard)+/auroc", "loss/total"])
    assert (tag.key, tag.value) == (f"laser.name.{legal.split('/')[1]}", "math (hard)+")


def test_random_names_are_accepted_and_different():
    letters = random.Random(0)
    names = {"".join(letters.choices("ab+-_./ #:", k=letters.randrange(12))) for _ in range(5000)}
    names |= {legal_name(name) for name in sorted(names)[:500]}
    legal = {legal_name(name) for name in names}
    assert len(legal) == len(names) > 4000
    for name in legal:
        _validate_metric_name(name)


def test_values_are_cut_with_a_mark_and_hold_no_half_characters():
    long = legal_value("ü" * 10_000)
    assert len(long) == MAX_TAG_VAL_LENGTH
    assert long.endswith("ü ... (cut: 10000 characters)")
    assert legal_value("x" * MAX_TAG_VAL_LENGTH) == "x" * MAX_TAG_VAL_LENGTH
    assert legal_value("half \ud83d, nul \0") == "half \\ud83d, nul \\0"
    (param,) = legal_params({"rollout.engine_args.a": "y" * 7000})
    assert len(param.value) == MAX_PARAM_VAL_LENGTH
    assert param.value.endswith("y ... (cut: 7000 characters)")
    assert legal_tags({"a+b": "c" * 9000})["laser.name." + legal_name("a+b")] == "a+b"
    titles = {legal_title("n" * length) for length in (250, 251, 252)}
    assert len(titles) == 3
    assert all(len(title) <= 250 for title in titles)


def test_parameters_go_in_requests_that_a_server_takes():
    params = legal_params({f"key {number}": "ü" * 6000 for number in range(40)})
    batches = list(in_batches(params))
    assert [param for batch in batches for param in batch] == params
    assert all(sum(6 * len(param.value) for param in batch) < BATCH_BYTES for batch in batches)


@pytest.mark.parametrize("name", ["gsm8k (test)+", "a#b?c%20d", "x" * 250, "é\n", "half \udcff"])
def test_a_set_and_settings_of_any_name_are_delivered_and_found_by_the_report(
    configure, start, said, tmp_path, name
):
    engine_args = {
        "a=b": 1,
        "a+b": 2,
        "long" * 100: "v" * 7000,
        "": 3,
        "../x": None,
        "größe": [1],
        "#": {"?": 0},
    }
    config = configure(
        rollout={"engine_args": engine_args, "resources": {"node:10.0.0.1 (gpu)": 1, "A@B,C": 0.5}},
        tracking={"experiment": f"study #{name[:20].encode('ascii', 'replace').decode()}" * 30},
    )
    tracker = start(config, tags={"laser.kind+": "t" * 9000})
    tracker.log_evaluation(name, 0, {"accuracy": 0.25, "pass_at_2": 0.5}, TABLE, None)
    tracker.log_step(1, {"loss/total": 0.5, "odd (metric)": 1.0})
    tracker.log_evaluation(name, 1, {"accuracy": 0.75}, TABLE, None)
    leave(tracker)
    assert (tracker.undelivered, said) == (0, [])
    key = legal_name(f"eval/{name}/accuracy")
    assert history(tracker, key) == [(0, 0.25), (1, 0.75)]
    run = run_of(tracker)
    assert run.data.metrics[legal_name("odd (metric)")] == 1.0
    assert run.data.tags[f"laser.name.{key.split('/')[1]}"] == legal_value(name)
    assert run.data.params[legal_name("rollout.engine_args.a=b")] == "1"
    assert run.data.params[legal_name("rollout.engine_args.a+b")] == "2"
    assert run.data.params[legal_name("rollout.resources.A@B,C")] == "0.5"
    files = client_of(tracker).list_artifacts(tracker.run_id, "samples")
    assert len(files) == 2
    # The folder keeps the true names, by which the report reads the curves.
    curves = read_curves(config.folder)
    assert curves.newest_set == name
    assert curves.evaluations[name]["accuracy"] == {0: 0.25, 1: 0.75}


def test_a_journal_that_waited_with_such_names_is_sent_later(configure, start, said):
    """As of a run of an earlier version, whose server refused the names."""
    config = configure()
    journal = Journal(config.folder)
    journal.start("waiting")
    journal.evaluation("a+b", 1, {"eval/a+b/accuracy": 0.5}, None, None)
    assert deliver_leftovers(config, said.append) == 2
    assert history(start(config), legal_name("eval/a+b/accuracy")) == [(1, 0.5)]


def test_an_evaluation_of_sets_with_any_name_is_delivered(runs, tmp_path, work_folder):
    said = []
    uri = f"sqlite:///{runs}/mlflow.db"
    params = {"data": ["a+b.jsonl"] * 2000, "rollout.engine_args.x=y": 1}
    run = ParentRun(uri, "laser", "m-a+b" * 100, tmp_path, params, {"laser.model": "m" * 9000}, said.append)
    run.log({"eval/a+b/accuracy": 0.5, "eval/average/accuracy": 0.5, "eval/a-b/accuracy": 0.25})
    run.tag_child(run.run_id, {"laser.status (of trial)": "failed"})
    run.finish()
    assert said == []
    stored = run_of(run)
    assert stored.data.metrics[legal_name("eval/a+b/accuracy")] == 0.5
    assert stored.data.metrics["eval/a-b/accuracy"] == 0.25
    assert "a+b" in stored.data.tags.values()
    assert stored.info.status == "FINISHED"
