"""The file of dropped problems."""

import pytest

from orchestrator.config.sources import Source
from orchestrator.data.problems import ProblemSource
from orchestrator.errors import ConfigError
from orchestrator.storage.dropped import DROPPED, add_dropped, dropped_problems
from orchestrator.storage.journal import forget


def test_what_is_added_is_there_when_the_run_resumes(tmp_path):
    assert dropped_problems(tmp_path) == set()
    add_dropped(tmp_path, {"id": "a", "source": "gsm"})
    add_dropped(tmp_path, {"id": "b", "source": "gsm", "problem": "ünïcode"})
    assert dropped_problems(tmp_path) == {("gsm", "a"), ("gsm", "b")}
    forget(tmp_path)
    assert dropped_problems(tmp_path) == set(), "another attempt meets them again"


def test_the_file_is_a_source_of_problems(tmp_path):
    path = add_dropped(tmp_path, {"id": "a", "source": "gsm", "problem": "1+1", "answer": "2", "deaths": 2})
    [problem] = ProblemSource(Source(str(path), "dropped"))
    assert (problem.id, problem.text, problem.reference) == ("a", "1+1", "2")


def test_a_damaged_file_is_refused_with_what_to_do(tmp_path):
    (tmp_path / DROPPED).write_text("{")
    with pytest.raises(ConfigError, match=r"dropped.jsonl: is damaged .*Delete it"):
        dropped_problems(tmp_path)
