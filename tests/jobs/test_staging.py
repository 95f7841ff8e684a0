"""What is sent with a job, and what is refused before anything is sent. No cluster."""

import importlib.metadata
import json
from pathlib import Path

import pytest

from orchestrator.config.sweep import load_sweep
from orchestrator.config.training import RunConfig, load_config
from orchestrator.errors import ConfigError
from orchestrator.jobs.staging import UPLOAD_LIMIT_MIB, load_job
from tests.jobs.folders import staged, write


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


def test_home_folders_are_those_of_the_cluster(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    job = load_job(Path("run.yaml"), ["run.dir=~/runs", "model.path=~/base", "data.train=~/train.jsonl"])
    assert (str(job.folder), list(job.inputs), job.results) == ("~/runs/trial", ["test.jsonl"], {})
    staged(job)
    monkeypatch.setenv("HOME", "/home/of the cluster")
    there = load_config("staged/job.yaml")
    assert str(there.folder) == "/home/of the cluster/runs/trial"
    assert (there.model.path, there.data.train[0].path) == (
        "/home/of the cluster/base",
        "/home/of the cluster/train.jsonl",
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
    assert job.inputs["base.yaml"] == here / "run.yaml", "the base is a file of this machine, wherever it is"
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
