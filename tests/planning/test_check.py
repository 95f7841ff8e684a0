"""`laser check`: the arithmetic by hand-worked values, what it warns about, and what it refuses with and
without --strict."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import yaml

from experiments.quickstart.task import write_untrained
from orchestrator.cli import main
from orchestrator.config.training import RunConfig
from orchestrator.planning.check import explain_c_ref, plan_batch, plan_placement, plan_schedule
from orchestrator.planning.report import TrainingPhase
from orchestrator.planning.staleness import explain_staleness
from tests.settings import configure

RECIPES = sorted((Path(__file__).parents[2] / "experiments").glob("*.yaml"))


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "untrained"
    write_untrained(folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def problems(tmp_path_factory) -> Path:
    """40 problems of 3 tokens (with the template, 7), and one of 100."""
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    rows = [{"problem": f"{a}+{b}", "answer": str(a + b)} for a in range(5) for b in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"problem": "1+" * 50, "answer": "1"}]))
    return path


def settings(model: object = "model", data: object = "train.jsonl", **sections: dict) -> dict:
    tree: dict = {
        "run": {"name": "tiny", "steps": 10},
        "model": {"path": str(model)},
        "data": {"train": str(data), "instruction": ""},
        "rollout": {
            "prompts_per_step": 4,
            "samples_per_prompt": 2,
            "max_prompt_tokens": 20,
            "max_response_tokens": 30,
            "cpus": 0.25,
        },
        "verification": {"cpus": 0.25},
        "learning": {"cpus_per_rank": 0.25, "tokens_per_micro_batch": 100},
        "loss": {"self_reward_warmup_steps": 2},
        "self_reward": {"token": "<|self_reward|>"},
    }
    return {name: tree.get(name, {}) | sections.get(name, {}) for name in tree | sections}


def run_config(**sections: dict) -> RunConfig:
    return configure(**settings(**sections))


@pytest.fixture
def laser_check(tmp_path, monkeypatch, capsys):
    """Runs `laser check` on settings; returns exit status and what was printed, as one line."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(tree: dict, *arguments: str) -> tuple[int, str]:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(tree))
        status = main(["check", *arguments, str(path)])
        printed = capsys.readouterr()
        return status, " ".join((printed.out + printed.err).split())

    return run


def test_batch_arithmetic():
    # 6 prompts x 4 samples of at most 30 + 70 tokens; 3 optimiser steps of 8; a micro-batch holds 250 //
    # 100 = 2 samples, so that 8 samples make 4 micro-batches, 2 on each of 2 ranks.
    batch = plan_batch(
        run_config(
            rollout={
                "prompts_per_step": 6,
                "samples_per_prompt": 4,
                "max_prompt_tokens": 30,
                "max_response_tokens": 70,
            },
            learning={"num_ranks": 2, "mini_batches": 3, "tokens_per_micro_batch": 250},
        )
    )
    assert (batch.prompts, batch.samples, batch.longest_sample, batch.tokens) == (6, 24, 100, 2400)
    assert (batch.mini_batches, batch.samples_per_mini_batch) == (3, 8)
    assert (batch.micro_batches, batch.samples_per_micro_batch) == (2, 2)


def test_schedule_has_the_published_phases():
    phases, warnings = plan_schedule(
        run_config(
            run={"name": "x", "steps": 500},
            loss={"reasoning_warmup_steps": 200, "self_reward_warmup_steps": 200},
        )
    )
    assert phases == [
        TrainingPhase(1, 200, "GRPO"),
        TrainingPhase(201, 400, "GRPO + self-reward loss"),
        TrainingPhase(401, 500, "GRPO + self-reward loss + advantage mix"),
    ]
    assert warnings == []


@pytest.mark.parametrize(
    ("steps", "never"),
    [(3, ["self-reward loss", "advantage mix"]), (4, ["advantage mix"]), (5, ["advantage mix"]), (6, [])],
)
def test_schedule_warns_of_a_phase_that_never_starts(steps, never):
    config = run_config(
        run={"name": "x", "steps": steps}, loss={"reasoning_warmup_steps": 3, "self_reward_warmup_steps": 2}
    )
    _, warnings = plan_schedule(config)
    assert [warning.split(" never starts")[0].removeprefix("the ") for warning in warnings] == never


def test_schedule_does_not_warn_of_what_is_switched_off():
    loss = {"alpha": 0.0, "tau": 0.0, "reasoning_warmup_steps": 50}
    assert plan_schedule(run_config(loss=loss)) == ([TrainingPhase(1, 10, "GRPO")], [])


@pytest.mark.parametrize(
    "sections", [{}, {"self_reward": {"token": None}, "loss": {"alpha": 0.0, "tau": 0.0}}]
)
def test_a_run_without_steps_has_no_phase_and_no_warning(untrained, problems, laser_check, sections):
    no_steps = {"run": {"steps": 0}, **sections}
    assert plan_schedule(run_config(**no_steps)) == ([], [])
    status, text = laser_check(settings(untrained, problems, **no_steps))
    assert status == 0
    assert "Schedule no training step (run.steps is 0): the run only measures the initial model" in text
    assert "never starts" not in text


def test_c_ref_as_a_number_shows_its_targets():
    lines, warnings = explain_c_ref(run_config(loss={"c_ref": -23.0, "beta_v": 0.1}).loss)
    text = " ".join(lines)
    assert "to -23 after a wrong solution and -13 after a correct one" in text
    assert "above -18" in text
    assert warnings == []


def test_c_ref_that_nearly_fails_the_assumption_is_warned_about():
    _, warnings = explain_c_ref(run_config(loss={"c_ref": -12.0}).loss)
    assert len(warnings) == 2


def test_calibration_says_what_will_be_refused():
    lines, _ = explain_c_ref(run_config(loss={"beta_v": 0.1}).loss)
    # -1 / beta_v; and the lower of -10 + log(0.05) = -12.996 and -1.3 / beta_v = -13.
    assert "if c_ref is -10 (-1 / beta_v) or more, and warned about above -13" in lines[1]


def ahead(batches: int, **loss: object) -> RunConfig:
    config = run_config(loss=loss)
    rollout = config.rollout.model_copy(update={"max_staleness": batches})
    return config.model_copy(update={"rollout": rollout})


def test_staleness_says_how_far_ahead_engines_sample_and_what_it_stores():
    assert explain_staleness(ahead(0)) == ([], [])
    lines, warnings = explain_staleness(ahead(2, importance_cap=2.0))
    assert warnings == []
    assert "up to 2 batches ahead" in lines[0]
    assert "at most 2 versions older" in lines[1]
    # 3 batches of 4 x 2 samples of 50 tokens at 16 bytes: 19 kB.
    assert "3 batches at a time take at most 0.00 GiB" in lines[2]


def test_staleness_without_a_correction_is_warned_about():
    assert explain_staleness(ahead(1, importance_bounds=[0.5, 2]))[1] == []
    _, (warning,) = explain_staleness(ahead(1))
    assert "set loss.importance_cap" in warning


def test_colocated_engines_reserve_nothing():
    turns = {"num_engines": 2, "gpus": 1, "tensor_parallel": 4, "colocate": True}
    _, rollout, _ = plan_placement(run_config(rollout=turns, learning={"num_ranks": 8, "gpus_per_rank": 1}))
    assert (rollout.actors, rollout.cpus, rollout.gpus) == (2, 0, 0)


def test_placement_multiplies_an_engines_gpus_by_its_ranks():
    learning, rollout, verification = plan_placement(
        run_config(rollout={"num_engines": 2, "gpus": 1, "tensor_parallel": 4})
    )
    assert (learning.actors, learning.gpus) == (1, 0)
    assert (rollout.actors, rollout.gpus) == (2, 4)
    assert (verification.actors, verification.cpus) == (1, 0.25)


def test_complete_inputs_are_explained(untrained, problems, laser_check):
    status, printed = laser_check(settings(untrained, problems), "--strict")
    assert status == 0
    assert "<|self_reward|> (3)" in printed
    assert "EOS <|im_end|> (2)" in printed
    assert "the first prompt, 7 tokens" in printed
    assert "⟦<|im_start|>⟧0+0⟦<|im_end|>⟧⏎ ⟦<|im_start|>⟧" in printed
    assert "ids 1 19 14 19 2 202 1" in printed
    assert "problems 41 1 of the first 41 are longer than rollout.max_prompt_tokens" in printed
    assert "steps an epoch 10.2" in printed
    assert "Ready" in printed


def test_an_absent_model_is_noted_and_refused_with_strict(problems, laser_check):
    tree = settings("nowhere/model/folder", problems)
    status, printed = laser_check(tree)
    assert status == 0
    assert "Not checked, because absent here: model.path" in printed
    assert "One step" in printed
    status, printed = laser_check(tree, "--strict")
    assert status == 2
    assert "nowhere/model/folder is no model folder" in printed


def test_held_out_data_with_fields_of_its_own_is_no_fault_of_an_absent_model(problems, tmp_path, laser_check):
    held_out = tmp_path / "test.jsonl"
    held_out.write_text(json.dumps({"question": "1+1", "final": "2"}) + "\n")
    tree = settings("nowhere/model/folder", problems)
    tree["data"] |= {"eval": str(held_out), "eval_problem_field": "question", "eval_answer_field": "final"}
    status, printed = laser_check(tree)
    assert status == 0
    assert "absent here: model.path" in printed


def test_absent_data_is_noted_and_refused_with_strict(untrained, tmp_path, laser_check):
    tree = settings(untrained, tmp_path / "nowhere.jsonl")
    status, printed = laser_check(tree)
    assert status == 0
    assert "<|self_reward|> (3)" in printed
    assert "Not checked, because absent here: data.train" in printed
    assert laser_check(tree, "--strict")[0] == 2


def test_absent_held_out_data_leaves_the_rest_checked(untrained, problems, tmp_path, laser_check):
    tree = settings(untrained, problems)
    tree["data"]["eval"] = str(tmp_path / "nowhere.jsonl")
    status, printed = laser_check(tree)
    assert status == 0
    assert "steps an epoch 10.2" in printed
    assert "absent here: data.eval" in printed


def test_absent_weights_are_noted(untrained, problems, tmp_path, laser_check):
    folder = shutil.copytree(untrained, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    assert laser_check(settings(folder, problems))[0] == 0
    status, printed = laser_check(settings(folder, problems), "--strict")
    assert status == 2
    assert "holds no weights" in printed


def test_too_small_a_machine_is_noted_and_refused_with_strict(untrained, problems, laser_check):
    tree = settings(untrained, problems, verification={"num_workers": 10_000, "cpus": 1.0})
    status, printed = laser_check(tree)
    assert status == 0
    assert "10000.5 CPUs" in printed
    assert laser_check(tree, "--strict")[0] == 2


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"rollout": {"prompts_per_step": 41}}, "holds only 40 problems"),
        ({"rollout": {"tensor_parallel": 3}}, "does not divide the model's 4 attention heads"),
        ({"self_reward": {"token": "not one token"}}, "is no single token"),
        ({"data": {"problem_field": "question"}}, "no field 'question'"),
        ({"loss": {"c_ref": -5.0}}, "loss.c_ref"),
        ({"verification": {"verifier": "nowhere:check"}}, "nowhere"),
    ],
)
def test_bad_settings_are_refused_without_strict(untrained, problems, laser_check, sections, message):
    tree = settings(untrained, problems)
    status, printed = laser_check({name: {**tree.get(name, {}), **sections.get(name, {})} for name in tree})
    assert status == 2
    assert message in printed


def test_settings_that_do_not_suit_the_model_are_warned_about(untrained, problems, laser_check):
    status, printed = laser_check(
        settings(
            untrained,
            problems,
            rollout={"max_response_tokens": 600, "kv_cache_gib": 0.0005},
            learning={"tokens_per_micro_batch": 1000},
        )
    )
    assert status == 0
    assert "= 621 is more than the model's 512 positions" in printed
    # 0.0005 GiB / (2 x 4 layers x 2 heads x 32 x 4 bytes) = 262 tokens; 621 of them need 0.0012 GiB.
    assert "KV cache holds 262 tokens" in printed


def test_a_turn_end_that_is_no_eos_is_warned_about(untrained, problems, tmp_path, laser_check):
    model = shutil.copytree(untrained, tmp_path / "model")
    template = model / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>", "<pad>"))
    status, printed = laser_check(settings(model, problems))
    assert status == 0
    assert "ends an assistant's turn with <pad> (0)" in printed
    assert "set model.eos_tokens to ['<pad>', '<|im_end|>']" in printed
    mended = settings(model, problems)
    mended["model"]["eos_tokens"] = ["<pad>", 2]
    status, printed = laser_check(mended)
    assert "assistant's turn" not in printed
    assert "EOS <pad> (0), <|im_end|> (2)" in printed


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_accepted(recipe, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    assert main(["check", str(recipe)]) == 0, capsys.readouterr().err


def test_a_process_is_not_left_offline_or_without_its_gpu(untrained, problems, tmp_path):
    """A notebook that checks a configuration may train next: its environment and the hub's libraries stay
    as they were.

    In another process, because the libraries read HF_ENDPOINT when they are imported.
    """
    named_on_the_hub = tmp_path / "hub.yaml"
    named_on_the_hub.write_text(yaml.safe_dump(settings("owner/model", problems)))
    local = tmp_path / "local.yaml"
    local.write_text(yaml.safe_dump(settings(untrained, problems)))
    program = f"""
import json, os
from orchestrator.config.training import load_config
from orchestrator.planning.check import build_report
before = dict(os.environ)
paths = {str(named_on_the_hub)!r}, {str(local)!r}
reports = [build_report(load_config(path)) for path in paths]
import datasets, huggingface_hub
print(json.dumps({{
    "absent": [sorted(report.inputs.absent) for report in reports],
    "offline": [huggingface_hub.is_offline_mode(), datasets.config.HF_HUB_OFFLINE],
    "changed": sorted(key for key in os.environ if key.startswith(("HF_", "DS_")) and key not in before),
}}))
"""
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path / "cache")}
    environment.pop("HF_HUB_OFFLINE", None)
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == {
        "absent": [["model.path"], []],
        "offline": [False, False],
        "changed": [],
    }
