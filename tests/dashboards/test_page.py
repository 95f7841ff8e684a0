"""The report's page: what it says, that nothing breaks out of it, and how a browser draws it."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.dashboards.folders import NASTY, embedded, html_of, visible_text, write_journal, write_samples

ROOT = Path(__file__).parents[2]
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


class Tags(HTMLParser):
    """Collects every tag with its attributes."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_the_page_loads_nothing_and_forbids_loading(sweep_folder, tmp_path):
    html = html_of([sweep_folder], tmp_path)
    tags = Tags(html).found
    assert [
        attributes for _, attributes in tags if attributes.keys() & {"src", "href", "srcset", "data"}
    ] == []
    assert {tag for tag, _ in tags}.isdisjoint({"link", "img", "iframe", "object", "embed", "base"})
    style = re.search(r"<style>(.*?)</style>", html, re.S)[1]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(
        attributes["content"]
        for tag, attributes in tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy.partition("style-src")[0]
    assert html.count("plotly.js v") == 1


def test_a_solution_cannot_break_out_of_the_page(run_folder, tmp_path):
    row = {
        "status": "wrong",
        "score": 0.9,
        "finished": True,
        "response": NASTY,
        "problem": NASTY,
        "reference": NASTY,
        "answer": NASTY,
    }
    write_samples(run_folder, [row], step=2)
    html = html_of([run_folder], tmp_path)
    assert [tag for tag, _ in Tags(html).found].count("script") == 3
    assert "<script>document.title" not in html
    assert embedded(html)["samples"]["0"][0]["solution"] == NASTY


def test_names_and_errors_are_escaped(sweep_folder, tmp_path):
    shutil.copytree(sweep_folder, tmp_path / "copy")
    results = json.loads((tmp_path / "copy/results.json").read_text())
    results["name"] = results["trials"][0]["name"] = results["trials"][0]["error"] = results["trials"][0][
        "point"
    ]["loss.alpha"] = NASTY
    results["trials"][0]["metrics"]["auroc"] = math.nan
    (tmp_path / "copy/results.json").write_text(json.dumps(results))
    tags = Tags(html_of([tmp_path / "copy"], tmp_path)).found
    assert [tag for tag, _ in tags].count("script") == 3
    assert "img" not in {tag for tag, _ in tags}


def test_a_sweeps_page_says_what_was_best_and_what_was_saved(sweep_folder, tmp_path):
    html = html_of([sweep_folder], tmp_path)
    text = visible_text(html)
    assert "beta_v 0.1, alpha 0.5" in text
    assert "150 of 240 steps (0.625)" in text
    assert "13 finished, 2 failed, 1 pruned, 1 running, 1 pending; 9 points of settings" in text
    assert "RunError: a learner rank died 3 times; see worker-&lt;7&gt;.err" in text
    assert "failed / pending" in text
    assert "1 of 2 trials" in text
    assert html.count("★ best") == 1
    assert html.count('<tr class="best">') == 2
    heads = [attributes for tag, attributes in Tags(html).found if tag == "th"]
    assert all("scope" in head or head["class"] == "axis" for head in heads)


def test_the_page_says_what_could_not_be_shown_and_what_does_not_compare(run_folder, tmp_path):
    (run_folder / "branch.json").write_text('{"trunk": "../gone", "step": 1, "trunk_run_id": "x"}')
    write_journal(tmp_path / "hard", "hard", {}, {1: {"accuracy": 0.6}}, set_name="hard")
    text = visible_text(html_of([run_folder, tmp_path / "hard"], tmp_path))
    assert "plain: its trunk ../gone is not there, so its curves begin after step 1." in text
    assert "The sets differ, so the figures do not compare." in text


def test_undefined_numbers_are_null_in_the_page(run_folder, tmp_path):
    write_samples(run_folder, [("correct", math.nan, True), ("wrong", 0.123456, True)], step=2)
    rows = embedded(html_of([run_folder], tmp_path))["samples"]["0"]
    assert [row["score"] for row in rows] == [0.1235, None]


def test_the_report_starts_without_torch():
    code = "import sys, dashboards.report; print('torch' in sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert printed.strip() == "False", (
        "importing torch takes seconds, and a wrong folder is to be refused at once"
    )


def test_whatever_the_page_is_made_of_is_installed_with_the_package():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    files = {path.name for path in (ROOT / "dashboards" / "report").iterdir() if path.is_file()}
    assert "dashboards.report" in setup["packages"]
    assert set(setup["package-data"]["dashboards.report"]) == {
        name for name in files if not name.endswith(".py")
    }


def test_a_single_run_says_from_where_to_where_it_came(run_folder, tmp_path):
    text = visible_text(html_of([run_folder], tmp_path))
    assert "0.200 → 0.600" in text
    assert "0.400 → 0.800" in text
    assert "No run has an evaluation with samples yet" in text


def test_a_run_that_has_only_begun_is_a_page_too(tmp_path):
    write_journal(tmp_path / "new", "new", status=None)
    text = visible_text(html_of([tmp_path / "new"], tmp_path))
    assert "No run has finished a step or an evaluation yet." in text
    assert "not evaluated yet" in text


def test_more_than_two_searched_keys_are_averaged_over_and_drawn_in_parallel(tmp_path):
    trials = [
        {
            "name": f"{beta},{alpha},{mode}",
            "folder": f"trials/{beta}{alpha}{mode}",
            "seed": 0,
            "status": "finished",
            "step": 9,
            "steps": 9,
            "point": {"loss.c_ref": mode, "loss.beta_v": beta, "loss.alpha": alpha},
            "objective": 0.5,
            "metrics": {"accuracy": accuracy},
        }
        for beta in (0.1, 0.2)
        for alpha in (0.1, 0.5)
        for mode, accuracy in (("exact", 0.25), ("calibrate", 0.75))
    ]
    results = {
        "name": "s",
        "metric": "accuracy",
        "set": "test",
        "keys": ["loss.c_ref", "loss.beta_v", "loss.alpha"],
        "trials": trials,
        "best": None,
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    html = html_of([tmp_path], tmp_path)
    assert "Averaged over c_ref." in visible_text(html)
    assert html.count('style="--heat:50%">0.500<small>± 0.354</small>') == 4
    assert [key["texts"] for key in embedded(html)["sweeps"][0]["keys"]] == [
        ["exact", "calibrate"],
        ["0.1", "0.2"],
        ["0.1", "0.5"],
    ]
    assert "data-parallel" in html


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to load the page with")
def test_a_browser_draws_every_plot_without_an_error(sweep_folder, tmp_path):
    html = html_of([sweep_folder], tmp_path)
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-sync",
        "--disable-component-update",
        f"--user-data-dir={tmp_path}/profile",
        "--enable-logging=stderr",
        "--virtual-time-budget=8000",
    ]
    done = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", f"file://{tmp_path}/report.html"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    assert [line for line in done.stderr.splitlines() if ":CONSOLE" in line] == []
    plots = html.count("data-chart=") + 1 + 2  # the curves, the times by part, and the two of the scores
    assert f'data-drawn="{plots}"' in done.stdout
    assert done.stdout.count('class="main-svg"') >= plots
    assert "<title>beta-alpha" in done.stdout  # a solution in it would name the page otherwise
    assert NASTY.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in done.stdout
