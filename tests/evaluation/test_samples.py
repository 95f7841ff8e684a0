"""Samples on disk: their seeds, a file that a kill cut off, and a folder that belongs to one evaluation."""

import json
import math

import pytest

from orchestrator.errors import ConfigError, DataError
from orchestrator.evaluation.samples import SampleFile, claim_protocol, problem_seed, read_samples
from tests.evaluation.made import NAN, sample


def test_a_seed_is_the_problems_own():
    first = problem_seed(0, "s", "p")
    assert first == problem_seed(0, "s", "p")
    assert len({first, problem_seed(1, "s", "p"), problem_seed(0, "t", "p"), problem_seed(0, "s", "q")}) == 4
    assert 0 <= first < 2**48


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


@pytest.mark.parametrize("field", ["problem", "reference", "response", "problem_id", "kind"])
def test_a_sample_whose_text_nothing_can_read_is_refused(field, tmp_path):
    path = tmp_path / "samples.jsonl"
    broken = json.loads(sample(0).line()) | {field: "a\ud83d"}
    path.write_text(sample(0).line() + json.dumps(broken) + "\n")
    with pytest.raises(DataError, match=rf"line 2: '{field}' holds the lone surrogate U\+D83D"):
        read_samples(path)
    path.write_text(json.dumps(broken | {field: ["a"]}) + "\n" + sample(0).line())
    with pytest.raises(DataError, match=rf"line 1: is not a sample .*'{field}' is no text"):
        read_samples(path)


def test_a_folder_belongs_to_one_evaluation(tmp_path):
    claim_protocol(tmp_path, {"seed": 0, "sets": {"s": {"problems": 3}}})
    claim_protocol(tmp_path, {"seed": 1, "sets": {"s": {"problems": 3}}})  # nothing has been drawn yet
    SampleFile(tmp_path).append([sample()])
    claim_protocol(tmp_path, {"seed": 1, "sets": {"s": {"problems": 3}}})
    claim_protocol(tmp_path, {"seed": 1, "sets": {"s": {"problems": 3}}, "weights": {"a.safetensors": "1"}})
    with pytest.raises(
        ConfigError, match=r"sets.s.problems: 3 before, 4 now\n  sets.t.problems: None before, 1 now"
    ):
        claim_protocol(tmp_path, {"seed": 1, "sets": {"s": {"problems": 4}, "t": {"problems": 1}}})


def test_samples_of_other_weights_under_the_same_path_are_refused(tmp_path):
    (tmp_path / "samples.jsonl").write_text("")
    claim = {"model": "m", "weights": {"model.safetensors": "1"}}
    claim_protocol(tmp_path, claim)  # writes it: the folder has no protocol yet
    claim_protocol(tmp_path, claim)
    with pytest.raises(ConfigError, match=r"weights\.model\.safetensors: '1' before, '2' now"):
        claim_protocol(tmp_path, {"model": "m", "weights": {"model.safetensors": "2"}})
