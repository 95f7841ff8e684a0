"""Paths in settings: home folders, names that no file can have, and settings for another machine."""

import getpass
from pathlib import Path

import pytest
import yaml

from orchestrator.cli import make_parser
from orchestrator.config.cold_start import SFTConfig
from orchestrator.config.evaluation import EvalConfig, default_folder
from orchestrator.config.manual import SCHEMAS
from orchestrator.config.paths import homes_elsewhere, short_name
from orchestrator.config.schema import dump_config, section_of, validate, with_overrides
from orchestrator.config.serving import serve_config
from orchestrator.config.sweep import base_config, load_sweep
from orchestrator.errors import ConfigError
from tests.settings import SMALLEST, configure

HOME = "/tmp/home of a user"


@pytest.fixture(autouse=True)
def home(monkeypatch):
    monkeypatch.setenv("HOME", HOME)


def path_settings(schema, prefix=""):
    """Keys whose meaning speaks of a file or a folder."""
    for name, field in schema.model_fields.items():
        section = section_of(field.annotation)
        if section is not None and name != "space":
            yield from path_settings(section, f"{prefix}{name}.")
        elif any(
            word in (field.description or "").lower() for word in (" folder", "folder ", "file of", ".jsonl")
        ):
            yield f"{prefix}{name}"


def test_home_folders_are_found_in_every_path_of_training():
    config = configure(
        run={"dir": "~/runs"}, model={"path": "~/model"}, data={"train": "~/a.jsonl", "eval": "~/b.jsonl"}
    )
    assert config.run.dir == Path(HOME, "runs")
    assert config.folder == Path(HOME, "runs", "trial")
    assert config.model.path == f"{HOME}/model"
    assert (config.data.train[0].path, config.data.eval[0].path) == (f"{HOME}/a.jsonl", f"{HOME}/b.jsonl")
    assert "~" not in dump_config(config), "an actor, or another user who resumes, means the same files"
    assert with_overrides(config, ["data.eval=~/c.jsonl"], "test").data.eval[0].path == f"{HOME}/c.jsonl"


def test_home_folders_are_found_in_the_paths_of_the_other_commands(tmp_path):
    cold_start = validate(SMALLEST | {"run": {"name": "a", "steps": 1, "dir": "~"}}, SFTConfig, "sft")
    assert cold_start.run.dir == Path(HOME)
    paths = {"model": "~/m", "data": ["~/d.jsonl:16"], "samples": "~/s.jsonl", "folder": "~/f", "dir": "~/r"}
    evaluation = validate(paths, EvalConfig, "eval")
    found = (evaluation.model, evaluation.data[0], evaluation.samples, evaluation.folder, evaluation.dir)
    assert [str(path) for path in found] == [
        f"{HOME}/{name}" for name in ("m", "d.jsonl:16", "s.jsonl", "f", "r")
    ]
    service = serve_config(["~/m", "b=~/n"], {"keys_file": "~/keys"}, [])
    assert service.models == {"m": f"{HOME}/m", "b": f"{HOME}/n"}
    assert service.keys_file == Path(HOME, "keys")
    base = SMALLEST | {"data": {"train": "~/t.jsonl", "eval": "~/e.jsonl"}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    sweep = {"name": "s", "base": str(tmp_path / "base.yaml"), "space": {"loss.alpha": {"grid": [1]}}}
    sweep["settings"] = {"model": {"path": "~/other"}, "run": {"dir": "~/sweeps"}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    config = base_config(load_sweep(tmp_path / "sweep.yaml"))
    assert (config.model.path, str(config.run.dir)) == (f"{HOME}/other", f"{HOME}/sweeps")


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "~/x"],
        ["sft", "~/x"],
        ["sweep", "~/x"],
        ["submit", "~/x"],
        ["check", "~/x"],
        ["eval", "--config=~/x"],
        ["check", "--measured=~/x", "c"],
        ["report", "~/x"],
        ["report", "r", "--output=~/x"],
        ["replay", "~/x", "c"],
    ],
)
def test_home_folders_are_found_in_arguments_that_no_shell_expands(arguments):
    options = vars(make_parser().parse_args(arguments))
    paths = [path for value in options.values() for path in (value if isinstance(value, list) else [value])]
    assert Path(HOME, "x") in paths


def test_every_setting_that_names_a_folder_or_file_takes_a_home_folder():
    """A new setting with a plain type would not."""
    marked = {
        "run.remote",
        "rollout.dtype",
        "learning.deepspeed",
        "rollout.engine_args",
        "engine.dtype",
        "run.trace",
        "faults.max_attempts",
    }
    for command, schema in SCHEMAS.items():
        for key in set(path_settings(schema)) - marked - {"name", "models", "settings", "run.name"}:
            *parents, leaf = key.split(".")
            node = schema
            for parent in parents:
                node = section_of(node.model_fields[parent].annotation)
            assert "AfterValidator" in repr(node.model_fields[leaf]), f"{command}: {key}"


def test_another_users_home_folder_is_found_and_an_unknown_one_refused():
    user = getpass.getuser()
    assert configure(run={"dir": f"~{user}/runs"}).run.dir == Path(f"~{user}/runs").expanduser()
    with pytest.raises(ConfigError, match=r"run\.dir: must be a path \(~no-such-user/runs: no home folder"):
        configure(run={"dir": "~no-such-user/runs"})
    with pytest.raises(ConfigError, match=r"data\.train\.0\.path: must be a path \(~no-such-user/x"):
        configure(data={"train": "~no-such-user/x"})


def test_what_only_looks_like_a_home_folder_stays_as_it_is():
    names = ["./~", "a/~/b", "owner/model~1", "$HOME/x", "models/~x"]
    assert [configure(model={"path": name}).model.path for name in names] == names


def test_settings_for_another_machine_keep_their_home_folders():
    with homes_elsewhere():
        config = configure(run={"dir": "~/runs"}, model={"path": "~/model"})
    assert (str(config.run.dir), config.model.path) == ("~/runs", "~/model")


@pytest.mark.parametrize("path", ["x" * 256, "ü" * 128 + "/x", "a/" * 2100, "runs/" + "y" * 300 + "/z"])
def test_a_path_that_no_file_can_have_is_refused(path):
    for section, key in (("run", "dir"), ("model", "path"), ("data", "train")):
        place = rf"{section}\.{key}(\.0\.path)?"
        with pytest.raises(ConfigError, match=rf"{place}: must be a path \(.*more than \d+ bytes"):
            configure(**{section: {key: path}})


@pytest.mark.parametrize("text", ["a\0b", "half \ud83d", "\udcff"])
def test_text_that_no_file_can_hold_is_refused_under_its_key(text):
    with pytest.raises(ConfigError, match=r"test: model\.path: .* holds "):
        configure(model={"path": text})
    with pytest.raises(ConfigError, match=r"test: rollout\.engine_args\.a\.0: "):
        configure(rollout={"engine_args": {"a": [text]}})


def test_a_name_too_long_for_a_folder_is_shortened_and_stays_unique():
    assert short_name("n" * 255) == "n" * 255
    names = [short_name("ö" * 200 + end) for end in ("", "a", "b")]
    assert len(set(names)) == 3
    assert all(len(name.encode()) <= 100 and name.startswith("ö" * 30) for name in names)
    sets = [f"a-long-name-of-a-problem-set-{number}" for number in range(20)]
    folders = [default_folder(EvalConfig(model="m"), chosen).name for chosen in (sets, sets[:-1])]
    assert folders[0] != folders[1]
    assert all(len(folder) < 256 for folder in folders)
