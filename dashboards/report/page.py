"""The report's page: one HTML file that needs no network.

In: folders of runs and sweeps. Out: a file that holds plotly.js, the figures' numbers and a few solutions.
The template `page.html.j2` makes the headline and the tables; `report.js` draws the rest from the numbers.
"""

import base64
import hashlib
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from dashboards.report import sections
from dashboards.report.figures import objective_text, ranking, seed_groups
from dashboards.report.load import Comparison, load_runs
from dashboards.report.payload import payload, shortened
from dashboards.report.samples import newest_scores
from orchestrator.errors import ConfigError
from orchestrator.measures import TIME_CHARTS
from orchestrator.storage.files import write_atomically
from orchestrator.storage.folders import make_folder, refuse_unusable_folder

HERE = Path(__file__).parent


def write_report(runs: Sequence[Path | str], out: Path | str, title: str | None = None) -> None:
    """Write one page on runs and sweeps, given as folders or by their names in `runs/`.

    Raises:
        ConfigError: A folder holds neither a run nor a sweep, something in it cannot be read, or the page
            cannot be written.
        RunError: A line of a journal is no event.
    """
    out = Path(out)
    refuse_unusable_folder(out.parent, "--output (-o)")
    if out.is_dir():
        raise ConfigError(f"{out}: is a folder; name the page to write, such as {out / 'report.html'}")
    comparison = load_runs([run_folder(run) for run in runs])
    make_folder(out.parent, "--output (-o)")
    try:
        write_atomically(out, page(comparison, title))
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror}). Choose another --output") from error


def run_folder(run: Path | str) -> Path:
    """The folder of a run or sweep: itself, or the one of that name in `runs/`."""
    named = Path("runs", run)
    return named if named.exists() and not Path(run).exists() else Path(run)


def page(comparison: Comparison, title: str | None = None) -> str:
    """The HTML of a report."""
    found = ranking(comparison)
    groups = seed_groups(comparison)
    each_newest = ((number, newest_scores(run)) for number, run in enumerate(comparison.runs))
    scores = {number: newest for number, newest in each_newest if newest is not None}
    data, notes = payload(comparison, groups, found, scores)
    # Trusted texts of this package and of plotly. All other values are escaped by the template.
    plotly, script, style = (
        Markup(text)
        for text in (get_plotlyjs(), (HERE / "report.js").read_text(), (HERE / "report.css").read_text())
    )
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=title or ", ".join(dict.fromkeys(sections.names_of(comparison))),
            # Only these two scripts run, and nothing is fetched, whatever the text of a solution holds.
            script_hashes=[_hash(plotly), _hash(script)],
            plotly=plotly,
            script=script,
            style=style,
            now=datetime.now().astimezone(),
            comparison=comparison,
            ranking=found,
            subjects=sections.subjects(comparison),
            headline=sections.headline(comparison, groups, found),
            table=sections.run_table(comparison, groups, found),
            surfaces=sections.surfaces(comparison),
            chart_groups=sections.chart_groups(data),
            data=_rounded(data),
            notes=comparison.notes + notes,
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shortened": shortened, "objective_text": objective_text}
    environment.globals |= {"CELL_WIDTH": sections.CELL_WIDTH, "TIME_CHARTS": TIME_CHARTS}
    # `tojson` writes `<` as \u003c, so that a solution cannot end the script that holds the numbers.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _rounded(value: Any) -> Any:
    """A tree with 4 significant digits. What is not finite becomes null, since JSON has no word for it."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value
