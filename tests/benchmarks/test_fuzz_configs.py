"""Mutated configurations: a few of those of `python -m benchmarks.fuzz.configs`."""

from collections import Counter

from benchmarks.fuzz.configs import run_cases


def test_mutated_configurations_are_accepted_or_refused_in_one_clear_message():
    results = run_cases(cases=10, seed=11)
    assert [result for result in results if result.outcome == "failed"] == []
    found = Counter(result.outcome for result in results)
    assert found["accepted"] > 0
    assert found["refused"] > 3
