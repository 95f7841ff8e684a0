"""A few of the damaged files of `python -m benchmarks.fuzz.problems`."""

from benchmarks.fuzz.problems import run


def test_damaged_files_are_accepted_or_refused_with_their_place():
    counts, failures = run(cases=30, seed=1)
    assert not failures, "\n".join(failures)
    assert {"train accepted", "train refused", "sft accepted", "sft refused"} == {*counts}
