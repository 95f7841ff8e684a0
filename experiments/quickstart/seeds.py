"""The quick-start over several seeds: the median and range of each figure, as a Markdown table.

In: a number of seeds and, for another table, settings and a name for its runs:

    python -m experiments.quickstart.seeds --name ahead rollout.max_staleness=1 loss.importance_cap=2

Out: the table on standard output. Each seed is a separate run, which resumes if it was begun before, and is
not trained again if it was finished.
"""

import argparse
import statistics
from typing import Any

from orchestrator.config.training import RunConfig, load_config
from orchestrator.measures import Place, shown_in
from orchestrator.training.run import train


def spread(summaries: list[dict[str, Any]], model: str, figure: str) -> str:
    """Median (lowest to highest) of a figure over the runs that define it, as text.

    Args:
        model: `base` or `trained`.
    """
    values = [summary[model][figure] for summary in summaries if summary[model][figure] is not None]
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else "-"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.quickstart.seeds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--config", default="experiments/quickstart.yaml")
    parser.add_argument("--name", default="quickstart-seed", help="runs are called NAME-0, NAME-1 ...")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    summaries = []
    for seed in range(arguments.seeds):
        overrides = [*arguments.overrides, f"run.seed={seed}", f"run.name={arguments.name}-{seed}"]
        summaries.append(train(load_config(arguments.config, overrides, RunConfig)).summary)
    first = summaries[0]
    size = f"{first['problems']} problems x {first['samples_per_problem']} samples, {first['steps']} steps"
    print(f"\n{arguments.seeds} seeds, {size}: median (range)\n")
    print("| figure | base | trained |\n|---|---|---|")
    for figure in (measure.key for measure in shown_in(Place.SUMMARY)):
        print(f"| {figure} | {spread(summaries, 'base', figure)} | {spread(summaries, 'trained', figure)} |")
    print(f"| seconds | | {statistics.median(s['seconds'] for s in summaries):.0f} |")


if __name__ == "__main__":
    main()
