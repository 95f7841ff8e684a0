"""What a job takes along, what is refused before anything is sent, and how a log is read. No cluster."""

import asyncio
import http.server
import importlib.metadata
import io
import json
import threading
from datetime import datetime
from pathlib import Path

import pytest
import ray
import yaml
from ray.job_submission import JobDetails, JobStatus
from rich.console import Console

from orchestrator import cli
from orchestrator.config.sweep import load_sweep
from orchestrator.config.training import RunConfig, load_config
from orchestrator.errors import ConfigError
from orchestrator.jobs import image
from orchestrator.jobs.client import Cluster
from orchestrator.jobs.following import _View, log_lines, readable
from orchestrator.jobs.probe import unmet, unmet_by_kind
from orchestrator.jobs.show import show_job, show_jobs
from orchestrator.jobs.staging import UPLOAD_LIMIT_MIB, load_job, stage
from orchestrator.jobs.submission import submit
from orchestrator.jobs.unpack import unpack
from orchestrator.terminal import SHOWN, RunProgress, StepLine


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to submit from: a run that names a model and data by relative path, a sweep of it, and an evaluation."""
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "no_token"))
    (tmp_path / "models" / "base").mkdir(parents=True)
    (tmp_path / "models" / "base" / "config.json").write_text("{}")
    (tmp_path / "models" / "base" / ".gitignore").write_text("*")
    (tmp_path / "train.jsonl").write_text("{}\n")
    (tmp_path / "test.jsonl").write_text("{}\n")
    run = {
        "run": {"name": "trial", "steps": 3},
        "model": {"path": "models/base"},
        "data": {"train": "train.jsonl", "eval": "test.jsonl"},
        "self_reward": {"token": "z"},
    }
    write("run.yaml", run)
    write(
        "sweep.yaml", {"name": "search", "base": "run.yaml", "space": {"learning.lr": {"grid": [0.1, 0.2]}}}
    )
    write("eval.yaml", {"model": "trained", "data": ["test.jsonl:4", "math500"], "folder": "scores"})
    (tmp_path / "runs" / "trained" / "export").mkdir(parents=True)
    (tmp_path / "runs" / "trained" / "export" / "config.json").write_text("{}")
    return tmp_path


def write(path, tree):
    Path(path).write_text(yaml.safe_dump(tree))


def staged(job, storage="~/laser"):
    stage(job, storage, Path("staged"))
    job = json.loads(Path("staged/job.json").read_text())
    return sorted(
        str(file.relative_to("staged")) for file in Path("staged").rglob("*") if file.is_file()
    ), job


def test_a_run_takes_its_code_and_what_it_names_by_relative_path(here):
    job = load_job(Path("run.yaml"), ["run.steps=7"])
    files, job = staged(job)
    assert job == {
        "kind": "train", "name": "trial", "storage": "~/laser", "results": {"run.dir": "runs"},
        "inputs": ["models/base", "train.jsonl", "test.jsonl"],
    }  # fmt: skip
    assert {"models/base/config.json", "train.jsonl", "test.jsonl", "job.yaml", "launch.sh"} <= set(files)
    assert {
        "orchestrator/jobs/unpack.py",
        "actors/rollout.py",
        "dashboards/report/report.css",
        "experiments/quickstart/task.py",
    } <= set(files)
    for unwanted in ("__pycache__", ".gitignore", "experiments/quickstart/base", "eval.yaml"):
        assert not any(unwanted in file for file in files), unwanted
    assert load_config("staged/job.yaml", (), RunConfig) == load_config(
        "run.yaml", ["run.steps=7"], RunConfig
    )
    (about,) = Path("staged").glob("*.dist-info")
    found = importlib.metadata.PathDistribution(about)
    assert found.requires == importlib.metadata.requires("laser-orchestrator")
    assert "laser_weight_transfer" in {point.name for point in found.entry_points}, (
        "vLLM finds its plugin there"
    )


def test_a_sweep_takes_its_base_and_what_its_points_name(here):
    (here / "models" / "other").mkdir()
    space = {"model.path": {"grid": ["models/base", "models/other"]}}
    write(
        "sweep.yaml",
        {"name": "search", "base": "run.yaml", "space": space, "settings": {"run": {"dir": "/shared"}}},
    )
    job = load_job(Path("sweep.yaml"), [])
    assert list(job.inputs) == ["models/base", "models/other", "train.jsonl", "test.jsonl", "run.yaml"]
    assert (job.kind, job.name, job.folder, job.results) == (
        "sweep",
        "search",
        Path("/shared/search"),
        {},
    )
    write(
        "sweep.yaml",
        {"name": "search", "base": str(here / "run.yaml"), "space": {"rollout.cpus": {"grid": [0.5, 100]}}},
    )
    job = load_job(Path("sweep.yaml"), [])
    assert job.inputs["base.yaml"] == here / "run.yaml", (
        "a base that is read here is taken along from wherever it is"
    )
    staged(job)
    assert load_sweep("staged/job.yaml").base == "base.yaml"
    job.refuse_too_large([{"CPU": 200.0}])
    with pytest.raises(ConfigError, match="the pools need 102 CPUs, but the cluster has 4"):
        job.refuse_too_large([{"CPU": 4.0}])


def test_an_evaluation_takes_the_model_of_a_run(here):
    job = load_job(Path("eval.yaml"), [])
    assert list(job.inputs) == ["test.jsonl", "runs/trained/export"], "named sets are the hub's"
    assert (job.kind, job.name, job.results) == ("eval", "scores", {"dir": "runs", "folder": "scores"})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.path=./none", "./none: not found (looked in "),
        ("data.train=none.jsonl", "none.jsonl: not found (looked in "),
        ("data.train=../train.jsonl", "../train.jsonl is outside of "),
    ],
)
def test_what_is_not_here_is_refused(here, override, message):
    (here.parent / "train.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError) as caught:
        load_job(Path("run.yaml"), [override])
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"trials": [], "best": None}, "is a sweep; name the folder of one of its trials"),
        (
            {"sets": [], "model": "owner/base"},
            "is the folder of an evaluation .* the evaluated model \\(owner/base\\)",
        ),
    ],
)
def test_what_is_named_as_the_model_and_holds_no_weights_is_refused_by_its_kind(here, results, message):
    (here / "runs" / "other").mkdir()
    (here / "runs" / "other" / "results.json").write_text(json.dumps(results))
    with pytest.raises(ConfigError, match=f"model other: .*{message}"):
        load_job(Path("eval.yaml"), ["model=other"])


def test_absolute_paths_are_the_clusters_and_names_the_hubs(here):
    assert list(
        load_job(Path("run.yaml"), ["model.path=/shared/model", "data.eval=owner/problems"]).inputs
    ) == ["train.jsonl"]


def test_more_than_ray_takes_is_refused_with_what_to_do(here):
    with (here / "models" / "base" / "model.safetensors").open("wb") as weights:
        weights.truncate((UPLOAD_LIMIT_MIB + 1) * 2**20)
    with pytest.raises(
        ConfigError,
        match=r"models/base is 101 MiB of 101 MiB .* at most 100 MiB: put it on storage .* absolute path",
    ):
        staged(load_job(Path("run.yaml"), []))


def test_the_driver_runs_the_command_of_its_kind_in_a_folder_of_the_run(here, monkeypatch):
    """The same folder after each submission: a sweep and an evaluation are known by the absolute paths of what they read."""
    monkeypatch.setenv("HOME", str(here / "home"))
    for name in ("LASER_STEP_RECORDS", "COLUMNS"):
        monkeypatch.setenv(name, "")  # to be put back
    expected = {
        "run.yaml": ("train", ["train", str(here / "staged/job.yaml"), f'run.dir="{here}/home/laser/runs"']),
        "sweep.yaml": (
            "sweep",
            ["sweep", str(here / "staged/job.yaml"), f'settings.run.dir="{here}/home/laser/runs"'],
        ),
        "eval.yaml": (
            "eval",
            [
                "eval",
                "--config",
                str(here / "staged/job.yaml"),
                f'dir="{here}/home/laser/runs"',
                f'folder="{here}/home/laser/scores"',
            ],
        ),
    }
    for file, (kind, arguments) in expected.items():
        monkeypatch.chdir(here)
        job = load_job(Path(file), [])
        if (here / "staged").exists():
            (here / "staged").rename(here / f"before-{kind}")
        staged(job)
        monkeypatch.chdir(here / "staged")
        assert unpack() == arguments
        assert Path.cwd() == here / "home/laser/inputs" / job.name
        assert Path("test.jsonl").is_file()


def test_storage_that_cannot_be_written_is_told(here, monkeypatch, capsys):
    staged(load_job(Path("run.yaml"), []), storage=str(here / "train.jsonl"))
    monkeypatch.chdir(here / "staged")
    assert cli.main(["job"]) == 2
    assert f"storage {here / 'train.jsonl'} cannot be used" in capsys.readouterr().err


def test_requirements_that_an_image_does_not_meet():
    assert unmet(["packaging>=20", "no-such-thing>=1", "packaging<20", 'never; extra == "dev"', 'never; python_version < "3"']) == [
        "no-such-thing>=1", "packaging<20",
    ]  # fmt: skip
    assert unmet(['no-such-thing; extra == "cpu"', "packaging<20"], "cpu") == [
        "no-such-thing",
        "packaging<20",
    ]
    assert unmet(["ray[tune]==2.60.0"]) == [], "with what its extra requires"
    found = unmet_by_kind("laser-orchestrator")
    assert found["all"] == []
    assert not (found["cpu"] and found["gpu"]), "one of vLLM's builds is installed"


def test_what_is_lacking_is_installed_at_the_version_of_the_lock(tmp_path, monkeypatch):
    (tmp_path / "requirements.lock").write_text("math-verify==0.9.0\nPyYAML==6.0.2\n")
    monkeypatch.setattr(image, "REPOSITORY", tmp_path)
    assert [image.pinned(name) for name in ("math_verify>=0.8", "pyyaml>=6", "other>=1")] == [
        "math-verify==0.9.0", "PyYAML==6.0.2", "other>=1",
    ]  # fmt: skip


def refusal(*arguments, **options):
    with pytest.raises(ConfigError) as caught:
        submit(*arguments, **options)
    return str(caught.value)


def test_a_password_is_never_sent(here, monkeypatch):
    found = refusal(Path("run.yaml"), ["tracking.uri=http://me:secret@host:5000"])
    assert found.startswith("tracking.uri: http://me:***@host:5000 holds a password")
    assert "MLFLOW_TRACKING_PASSWORD" in found
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@host/db")
    found = refusal(Path("run.yaml"), [])
    assert found.startswith("MLFLOW_TRACKING_URI: postgresql://me:***@host/db holds a password")
    assert "secret" not in found


def test_what_is_no_mapping_is_refused_by_the_loader(here):
    for text in ("", "- a list", "a: ["):
        (here / "odd.yaml").write_text(text)
        assert refusal(Path("odd.yaml"), []).startswith("odd.yaml: ")
    assert refusal(Path("nowhere.yaml"), []).startswith("nowhere.yaml: cannot be read")


def test_results_need_a_place_that_stays(here):
    for storage in ("runs", "s3://bucket/runs"):
        assert refusal(Path("run.yaml"), [], storage=storage).startswith(
            f"--storage: {storage} is no absolute path"
        )


def test_an_address_without_a_cluster(here):
    assert refusal(Path("run.yaml"), [], "http://127.0.0.1:9").startswith(
        "http://127.0.0.1:9: no Ray cluster answers there"
    )
    assert refusal(Path("run.yaml"), [], "ray://head:10001").startswith(
        "--address: ray://head:10001 is not the address of a dashboard"
    )


class Answers(http.server.BaseHTTPRequestHandler):
    """A dashboard of another version, which cannot be had here without installing one."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(self.server.answer).encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def dashboard():
    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        server.asked, server.answer = [], {}
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def test_another_version_of_ray_or_python_is_refused_and_an_explicit_address_wins(
    here, dashboard, monkeypatch
):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    address = f"127.0.0.1:{dashboard.server_port}"
    with pytest.raises(ConfigError, match="answers, but not as the dashboard of a Ray cluster"):
        Cluster(address)
    for ray_version, python in (("2.40.0", "3.11.7"), (ray.__version__, "3.99.1")):
        dashboard.answer = {"data": {"rayVersion": ray_version, "pythonVersion": python}}
        with pytest.raises(ConfigError) as caught:
            Cluster(address)
        assert str(caught.value).startswith(
            f"http://{address} runs Ray {ray_version} on Python {python}, and this environment Ray "
        )


@pytest.mark.parametrize(
    ("variables", "sent"),
    [
        ({}, None),
        ({"RAY_AUTH_TOKEN": "of-variable"}, "Bearer of-variable"),
        ({"RAY_AUTH_TOKEN_PATH": "token"}, "Bearer of-file"),
        ({"RAY_AUTH_TOKEN_PATH": "token", "RAY_AUTH_MODE": "disabled"}, None),
    ],
)
def test_the_token_is_sent_from_where_ray_looks_for_it(here, dashboard, monkeypatch, variables, sent):
    (here / "token").write_text("of-file\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError):
        Cluster(f"http://127.0.0.1:{dashboard.server_port}")
    assert dashboard.asked == [("/api/v0/cluster_metadata", sent)]


STEP = StepLine(
    5,
    23,
    {"train/accuracy": 0.5, "self_reward/f1": float("nan"), "time/step": 12.34, "not/shown": 1.0},
    "1:02:03",
)


def test_a_step_as_text_and_as_a_record():
    assert str(STEP) == "step 5/23  accuracy 0.500  F1 -  step s 12.3  ETA 1:02:03"
    read = StepLine.from_record(STEP.record())
    assert (read.step, read.total, read.eta) == (5, 23, "1:02:03")
    assert str(read) == str(STEP)
    assert set(read.values) == {"train/accuracy", "self_reward/f1", "time/step"}, "those that are shown"
    assert read.values["time/step"] == 12.34, "not rounded"
    assert json.loads(STEP.record())["values"]["self_reward/f1"] is None, "NaN is not JSON"


@pytest.mark.parametrize(
    "line",
    [
        "step 5 on test: accuracy 0.438  F1 0.246",
        str(STEP),
        "",
        '{"event": "evaluation"}',
        '{"event": "step", "step": 5}',
        STEP.record()[:-1],
    ],
)
def test_other_lines_are_no_records(line):
    assert StepLine.from_record(line) is None


def test_a_job_prints_each_step_as_a_record(monkeypatch):
    monkeypatch.setenv("LASER_STEP_RECORDS", "1")
    console = Console(width=120, force_terminal=False, file=io.StringIO())
    progress = RunProgress("trial", total=23, done=4, console=console)
    for step in (5, 6, 7):
        progress.step(step, dict.fromkeys(SHOWN, 0.123456789))
    lines = console.file.getvalue().splitlines()
    assert [StepLine.from_record(line).step for line in lines] == [5, 6, 7], (
        "a line each, wider than the console"
    )


def test_a_jobs_log_is_readable():
    log = f"starting [the] pools\n{STEP.record()}\nwarning: slow\n"
    assert readable(log) == f"starting [the] pools\n{STEP}\nwarning: slow\n"
    assert readable(log.rstrip()) == f"starting [the] pools\n{STEP}\nwarning: slow"
    assert readable("") == ""


def shown(terminal, lines):
    console = Console(width=100, record=True, force_terminal=terminal, file=io.StringIO())
    with _View("trial", console) as view:
        for line in lines:
            view.show(line)
        panel = view.panel
    return console.export_text(), panel


def test_in_a_terminal_steps_move_the_panel_and_other_lines_stay():
    text, panel = shown(True, ["starting [the] pools", STEP.record(), "warning: slow"])
    assert "starting [the] pools\n" in text
    assert "warning: slow\n" in text
    assert (panel.bar.tasks[0].completed, panel.bar.tasks[0].total, panel.bar.tasks[0].fields["eta"]) == (
        5,
        23,
        "1:02:03",
    )
    assert "step 5/23" not in text
    assert "event" not in text


def test_elsewhere_a_log_is_printed_as_text():
    assert shown(False, ["starting [the] pools", STEP.record(), "x" * 300]) == (
        f"starting [the] pools\n{STEP}\n{'x' * 300}\n",
        None,
    )


class Broken:
    """A connection that breaks in the middle of a line: a real one would not do so when asked."""

    address, option = "http://head", ""

    def __init__(self, *connections):
        self.connections, self.client = list(connections), self

    async def tail_job_logs(self, job_id):
        for text in self.connections.pop(0):
            if text is None:
                raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
            yield text

    def job(self, job_id):
        return details(JobStatus.SUCCEEDED)


def details(status, **fields):
    metadata = {"laser.run": "trial", "laser.kind": "train", "laser.version": "0.1.0"}
    return JobDetails(
        type="SUBMISSION", submission_id="trial-1", status=status, entrypoint="", metadata=metadata, **fields
    )


def test_a_broken_connection_is_opened_again_and_no_line_is_repeated(monkeypatch):
    monkeypatch.setattr("orchestrator.jobs.following.RECONNECT_S", 0.0)
    said = []

    async def read(cluster):
        return [line async for line in log_lines(cluster, "trial-1", said.append)]

    cluster = Broken(["one\ntwo\nthr", None], [None], ["one\n", "two\nthree\nfo", "ur\nfive"])
    assert asyncio.run(read(cluster)) == ["one", "two", "three", "four", "five"]
    assert said == ["lost the connection to http://head; reconnecting"], "once, until it is back"


def test_a_job_that_ended_where_its_log_cannot_be_read_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("orchestrator.jobs.following.RECONNECT_S", 0.01)
    monkeypatch.setattr("orchestrator.jobs.following.QUIET_S", 0.2)

    async def read(cluster):
        return [line async for line in log_lines(cluster, "trial-1", lambda message: None)]

    assert asyncio.run(read(Broken(["one\ntw", None], *[[None]] * 1000))) == ["one", "tw"]


def test_jobs_are_shown(capsys):
    start = int(datetime(2026, 1, 2, 3, 4, 5).timestamp() * 1000)
    job = details(JobStatus.FAILED, start_time=start, end_time=start + 65_000, message="no [such] thing")
    job.metadata |= {"laser.commit": "0123456789abcdef", "laser.dirty": "true"}
    console = Console(width=120)
    show_jobs([job], console)
    show_job(job, console)
    show_jobs([], console)
    text = capsys.readouterr().out
    assert "trial-1  train  FAILED  2026-01-02 03:04:05  1:05" in text
    assert "code      version 0.1.0, commit 0123456789ab, changed since" in text
    assert "no [such] thing" in text
    assert text.endswith("no jobs\n")


def test_settings_may_stand_on_both_sides_of_an_option(here, capsys):
    arguments = ["submit", "run.yaml", "loss.alpha=1", "--address", "http://127.0.0.1:9", "loss.alhpa=2"]
    assert cli.main(arguments) == 2
    assert "loss.alhpa: unknown key" in capsys.readouterr().err
    for wrong in (["jobs", "status", "a", "b=1"], ["submit", "run.yaml", "--adress=x"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(wrong)
        assert caught.value.code == 2
        assert "unrecognized arguments: " in capsys.readouterr().err
