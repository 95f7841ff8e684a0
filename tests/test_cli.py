"""The command line: its commands and how quickly they answer, and bad input to `laser train`.

A refusal has exit status 2 and one message, and starts nothing.
"""

import json
import os
import re
import resource
import subprocess
import sys

import pytest
import ray
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from orchestrator.cli import COMMANDS, main

TEMPLATE = (
    "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PROBLEMS = [{"problem": f"{a}+{b}=", "answer": str(a + b)} for a in range(8) for b in range(8)]


def write_model(folder, template):
    """A folder with a tokenizer of one token a character; no weights, because no refusal needs them."""
    special = ["<eos>", "<unk>", "<|user|>", "<|assistant|>", "<|z|>"]
    vocabulary = {token: id_ for id_, token in enumerate([*special, *"0123456789+= \n"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<eos>", unk_token="<unk>", additional_special_tokens=special[2:]
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "vocab_size": len(vocabulary)}))


@pytest.fixture(scope="module")
def work_folder(tmp_path_factory):
    """A folder with a configuration in which nothing is wrong."""
    folder = tmp_path_factory.mktemp("cli")
    write_model(folder / "model", TEMPLATE)
    write_model(folder / "no_template", None)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS))
    rows = [*PROBLEMS[:2], {"problem": "3+3=", "solution": "6"}]
    (folder / "no_answer.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "run": {"name": "trial", "steps": 1},
        "model": {"path": "./model"},
        "data": {"train": "train.jsonl", "instruction": ""},
        "rollout": {"prompts_per_step": 4, "max_prompt_tokens": 32, "max_response_tokens": 32, "cpus": 0.5},
        "verification": {"cpus": 0.25},
        "learning": {"cpus_per_rank": 0.25, "tokens_per_micro_batch": 1024},
        "self_reward": {"token": "<|z|>"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def refused(work_folder):
    """Runs `laser train` and returns its message, after checking what every refusal has in common."""

    def run(*arguments):
        before = sorted(os.listdir(work_folder))
        command = [sys.executable, "-m", "orchestrator.cli", "train", *arguments]
        environment = os.environ | {"RAY_TMPDIR": str(work_folder / "ray")}
        done = subprocess.run(
            command, cwd=work_folder, env=environment, capture_output=True, text=True, timeout=120
        )
        assert sorted(os.listdir(work_folder)) == before  # no runs/, no Ray session, no mlruns/
        return message(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def refused_here(work_folder, monkeypatch, capfd):
    """The same in this process, for refusals that need transformers, which takes seconds to import."""

    def run(*arguments):
        monkeypatch.chdir(work_folder)
        before, ray_before = sorted(os.listdir(work_folder)), ray.is_initialized()
        status = main(["train", *arguments])
        assert sorted(os.listdir(work_folder)) == before
        assert ray.is_initialized() == ray_before
        return message(status, *capfd.readouterr())

    return run


def message(status, stdout, stderr):
    assert status == 2, stderr
    assert stdout == ""
    assert stderr.startswith("laser train: ")
    assert stderr.count("laser train: ") == 1
    assert "Traceback" not in stderr
    return stderr.removeprefix("laser train: ").rstrip("\n")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("loss.alhpa=1", "loss.alhpa: unknown key. Nearest known key: loss.alpha"),
        (
            "loss.alpha=-1",
            "loss.alpha: must be at least 0, got -1. Weight of the self-reward loss; 0 leaves plain GRPO.",
        ),
    ],
)
def test_a_wrong_setting(refused, override, line):
    assert refused("config.yaml", override) == f"config.yaml: 1 setting refused\n  {line}"


def test_a_missing_configuration_file(refused):
    assert refused("nowhere.yaml").startswith("nowhere.yaml: cannot be read (No such file or directory).")


def test_a_missing_data_file(refused, work_folder):
    assert (
        refused("config.yaml", "data.train=nowhere.jsonl")
        == f"nowhere.jsonl: no such file (looked in {work_folder})"
    )


def test_a_problem_without_an_answer(refused):
    found = refused("config.yaml", "data.train=no_answer.jsonl")
    assert found.startswith(
        "no_answer.jsonl, line 3: no field 'answer'; its fields are 'problem', 'solution'"
    )
    assert "data.answer_field" in found


def test_a_self_reward_token_that_is_no_single_token(refused_here):
    found = refused_here("config.yaml", "self_reward.token='12'")
    assert found.startswith("self_reward.token: '12' is no single token: it becomes '1' (6), '2' (7).")
    assert "<|z|>" in found


def test_a_model_folder_without_a_chat_template(refused_here):
    found = refused_here("config.yaml", "model.path=./no_template")
    assert found == (
        "./no_template: its tokenizer has no chat template; write one to chat_template.jinja in that folder"
    )


def test_more_cpus_than_there_are(refused_here):
    found = refused_here("config.yaml", "rollout.cpus=1000")
    assert found.startswith("the pools need 1000.5 CPUs, but ")
    assert "rollout.cpus=1000" in found


def test_a_configuration_is_refused_before_the_heavy_imports(work_folder):
    code = (
        "import sys; from orchestrator.cli import main;"
        "status = main(['train', 'config.yaml', sys.argv[1]]);"
        "heavy = {'torch', 'ray', 'transformers', 'vllm', 'deepspeed', 'mlflow'};"
        "print(status, *sorted(heavy & set(sys.modules)))"
    )

    def imported(override):
        command = [sys.executable, "-c", code, override]
        return subprocess.run(
            command, cwd=work_folder, capture_output=True, text=True, check=True, timeout=120
        ).stdout.split()

    assert imported("loss.alpha=-1") == ["2"]
    assert imported("data.train=nowhere.jsonl") == ["2", "ray"]


def cpu_seconds(folder, *arguments):
    """CPU seconds of the command, the least of three runs; a busy machine hardly stretches them."""

    def once():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "orchestrator.cli", *arguments]
        subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=120)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(once() for _ in range(3))


def test_help_and_refusals_are_quick(work_folder):
    assert cpu_seconds(work_folder, "--help") < 0.2
    assert cpu_seconds(work_folder, "train", "config.yaml", "loss.alpha=-1") < 2


def test_every_command_but_that_of_jobs_is_listed_with_its_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    listed = re.findall(r"^    (\w+)  ", capsys.readouterr().out, re.MULTILINE)
    assert listed == [command.name for command in COMMANDS if command.help is not None]
    assert [command.name for command in COMMANDS if command.help is None] == ["job"]


def test_settings_may_stand_on_both_sides_of_an_option(work_folder, monkeypatch, capsys):
    monkeypatch.chdir(work_folder)
    assert main(["check", "config.yaml", "loss.alpha=-1", "--strict", "loss.tau=2"]) == 2
    assert "2 settings refused" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["check", "config.yaml", "--no-such-option"], ["doctor", "a=1"]])
def test_unknown_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "unrecognized arguments" in capsys.readouterr().err


def test_after_ctrl_c_a_command_says_how_to_resume(work_folder, monkeypatch, capsys):
    def interrupted(config, context):  # stands in for the signal
        raise KeyboardInterrupt

    monkeypatch.chdir(work_folder)
    monkeypatch.setattr("orchestrator.training.run.train", interrupted)
    assert main(["train", "config.yaml"]) == 1
    assert capsys.readouterr().err == (
        "\nlaser train: interrupted. Run the same command again to resume from the last checkpoint.\n"
    )


@pytest.fixture
def command_lines(work_folder):
    """A command line of each command that writes, which names the place that it gets."""
    rows = "".join(json.dumps({"problem": "1+1=", "solution": "2"}) + "\n" for _ in range(4))
    (work_folder / "solutions.jsonl").write_text(rows)
    base = yaml.safe_load((work_folder / "config.yaml").read_text())
    base["data"]["eval"] = "train.jsonl"
    (work_folder / "base.yaml").write_text(yaml.safe_dump(base))
    cold_start = {"run": base["run"], "model": base["model"], "data": {"train": "solutions.jsonl"}}
    (work_folder / "sft.yaml").write_text(yaml.safe_dump(cold_start | {"learning": {"batch_size": 2}}))
    sweep = {"name": "s", "base": "base.yaml", "space": {"loss.alpha": {"grid": [0.1, 0.2]}}}
    (work_folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    data = ["--model", "./model", "--data", "train.jsonl"]
    return {
        "train": lambda place: ["train", "config.yaml", f"run.dir={place}"],
        "sft": lambda place: ["sft", "sft.yaml", f"run.dir={place}"],
        "sweep": lambda place: ["sweep", "sweep.yaml", f"settings.run.dir={place}"],
        "eval": lambda place: ["eval", *data, "-o", place],
        "eval in dir": lambda place: ["eval", *data, f"dir={place}"],
        "report": lambda place: ["report", "nowhere", "-o", f"{place}/page.html"],
    }


@pytest.mark.parametrize("command", ["train", "sft", "sweep", "eval", "eval in dir", "report"])
@pytest.mark.parametrize("place", ["config.yaml/runs", "/proc/runs", "/dev/null/a", "l" * 300, "a/" * 2100])
def test_a_place_that_cannot_be_written_is_refused_by_every_command(
    command_lines, work_folder, monkeypatch, capfd, command, place
):
    monkeypatch.chdir(work_folder)
    before, ray_before = sorted(os.listdir(work_folder)), ray.is_initialized()
    try:
        status = main(command_lines[command](place))
    except SystemExit as refusal:  # argparse's own, of an argument
        status = refusal.code
    out, err = capfd.readouterr()
    assert (status, out) == (2, "")
    assert "cannot be made or written" in err or "bytes" in err
    assert "Traceback" not in err
    assert sorted(os.listdir(work_folder)) == before
    assert ray.is_initialized() == ray_before


@pytest.mark.parametrize("command", ["train", "sft", "sweep", "eval", "check", "submit", "replay"])
def test_a_configuration_that_is_no_utf_8_is_refused_by_every_command(work_folder, tmp_path, capfd, command):
    path = tmp_path / "latin.yaml"
    path.write_bytes("run: {name: é}".encode("latin-1"))
    arguments = {"eval": ["--config", str(path)], "replay": ["rollouts.parquet", str(path)]}
    assert main([command, *arguments.get(command, [str(path)])]) == 2
    expected = f"{path}: is not UTF-8 text (the byte at position 12 is 0xe9), and seems to be Latin-1"
    assert capfd.readouterr().err.startswith(f"laser {command}: {expected}")


def test_a_weights_file_as_key_file_or_base_is_refused(
    work_folder, command_lines, monkeypatch, tmp_path, capfd
):
    monkeypatch.chdir(work_folder)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"\x40\0\0\0\0\0\0\0" + b'{"a": {"dtype": "BF16"}}' + bytes(range(256)))
    assert main(["serve", "--model", "./model", "--keys-file", str(weights)]) == 2
    assert main(["sweep", "sweep.yaml", f"base={weights}"]) == 2
    refusal = "is not UTF-8 text (the byte at position "
    assert [refusal in line for line in capfd.readouterr().err.splitlines()] == [True, True]
