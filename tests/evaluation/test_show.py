"""An evaluation as the user sees it."""

from rich.console import Console

from orchestrator.evaluation.figures import EvalResults, average, columns_of, set_results
from orchestrator.evaluation.show import EvalProgress, save_cost_figure, show_results
from tests.evaluation.made import sample, samples_of_two_problems


def test_tables_notes_and_picture_of_two_sets(tmp_path):
    one = set_results("one", columns_of(samples_of_two_problems()))
    unchecked = set_results("unchecked", columns_of([sample(0, "error", "5", None)]))
    results = EvalResults(tmp_path, "mine", None, [one, unchecked], average([one, unchecked]), undecided=1)
    console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))
    show_results(results, console)
    text = console.export_text()
    assert "0.286" in text
    assert "[0.250, 0.333]" in text
    assert "the check of 2 samples timed out" in text
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
