"""Files of a model from elsewhere: neither a pickle nor code of its own is ever run."""

import ast
import json
import pickle
import shutil
from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.config.training import RunConfig
from orchestrator.data.model_files import load_model_config, load_tokenizer
from orchestrator.data.tokens import load_tokens
from orchestrator.errors import ConfigError
from orchestrator.models.resolve import resolve_model
from tests.settings import settings

ROOT = Path(__file__).parents[2]
BASE = ROOT / "experiments" / "quickstart" / "base"


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(BASE, tmp_path / "model"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt"])
def test_weights_that_are_pickles_are_refused(model, name):
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(Bomb()))
    for load in (resolve_model, lambda path: load_tokens(path, None)):
        with pytest.raises(ConfigError, match=rf"pickles \({name}\).* convert it"):
            load(str(model))
    assert not Path("exploded").exists()


def test_a_pickle_beside_safetensors_is_not_read(model):
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    assert resolve_model(str(model)).path == str(model)
    assert not Path("exploded").exists()


def with_own_code(model, file, classes):
    path = model / file
    tree = json.loads(path.read_text())
    tree |= {"auto_map": classes, "model_type": "theirs", "tokenizer_class": "Theirs"}
    path.write_text(json.dumps(tree))
    (model / "theirs.py").write_text("from pathlib import Path\nPath('exploded').touch()\n")


def test_code_of_a_models_folder_is_never_run(model, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user is asked"))
    with_own_code(model, "config.json", {"AutoConfig": "theirs.Theirs"})
    with pytest.raises(ConfigError, match=r"the configuration of .* needs Python code .* is never run"):
        load_model_config(str(model))
    with pytest.raises(ConfigError, match="is never run"):
        resolve_model(str(model))
    assert not Path("exploded").exists()


def test_code_of_a_tokenizer_is_never_run(model, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user is asked"))
    own = {"AutoConfig": "theirs.Theirs", "AutoTokenizer": ["theirs.Theirs", None]}
    with_own_code(model, "tokenizer_config.json", own)
    load_tokenizer(str(model))  # transformers has a class for this type of model
    with_own_code(model, "config.json", own)
    with pytest.raises(ConfigError, match=r"the tokenizer of .* needs Python code .* is never run"):
        load_tokenizer(str(model))
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"trust_remote_code": True}, "trust_remote_code would run"),
        ({"load_format": "pt"}, "load_format=pt may read pickles"),
        ({"load_format": "auto"}, "load_format=auto may read pickles"),
    ],
)
def test_no_argument_of_the_engine_lets_them_in(arguments, complaint):
    with pytest.raises(ValueError, match=f"rollout.engine_args: {complaint}"):
        RunConfig.model_validate(settings(rollout={"engine_args": arguments}))


def test_laser_check_refuses_them_with_status_2(model, capsys):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert main(["check", str(ROOT / "experiments/quickstart.yaml"), f"model.path={model}"]) == 2
    assert "are pickles" in capsys.readouterr().err


def test_models_are_loaded_in_one_place_or_with_the_safe_arguments():
    for package in ("orchestrator", "actors", "dashboards"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not (isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained")):
                    continue
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                loader = ast.unparse(node.func).removesuffix(".from_pretrained")
                if loader == "GenerationConfig":
                    continue
                assert given.get("trust_remote_code") == "False", path
                if loader not in ("AutoConfig", "AutoTokenizer"):
                    assert given.get("use_safetensors") == "True", path
