"""Which evaluation of a run the report shows the samples of."""

import math

from dashboards.report.load import load_runs
from dashboards.report.samples import newest_scores
from tests.dashboards.folders import write_samples


def test_the_newest_evaluation_with_scores_is_the_one_that_is_looked_at(run_folder):
    assert newest_scores(load_runs([run_folder]).runs[0]) is None
    write_samples(run_folder, [("correct", 0.9, True)], step=1)
    write_samples(run_folder, [("correct", math.nan, True)], step=2)
    write_samples(run_folder, [("correct", 0.1, True)], step=9, set_name="another")
    found = newest_scores(load_runs([run_folder]).runs[0])
    assert (found.set_name, found.step, found.score.round(6).tolist()) == ("test", 1, [0.9])
    write_samples(run_folder, [("correct", math.nan, True)], step=1)
    assert newest_scores(load_runs([run_folder]).runs[0]).step == 2
