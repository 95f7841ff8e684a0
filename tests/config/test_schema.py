import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from orchestrator import config
from orchestrator.config.cold_start import SFTConfig
from orchestrator.config.evaluation import EvalConfig
from orchestrator.config.schema import changed_settings, dump_config, flat_settings, known_keys, validate
from orchestrator.config.serving import ServeConfig, serve_config
from orchestrator.config.sweep import SweepConfig, base_config, load_sweep
from orchestrator.config.training import RunConfig, load_config
from orchestrator.errors import ConfigError
from orchestrator.evaluation.run import load_eval
from tests.settings import SMALLEST

# Names that users, recipes and dashboards rely on.
STABLE_KEYS = {
    "model": "path",
    "data": "train eval problem_field answer_field instruction",
    "rollout": "num_engines samples_per_prompt prompts_per_step max_prompt_tokens max_response_tokens "
    "temperature max_staleness tensor_parallel engine_args",
    "verification": "num_workers timeout_s",
    "learning": "num_ranks lr tokens_per_micro_batch dtype deepspeed offload gradient_checkpointing "
    "warmup_steps weight_decay grad_clip mini_batches",
    "loss": "alpha beta_v tau filter_std kl_coef clip_low clip_high c_ref reasoning_warmup_steps "
    "self_reward_warmup_steps",
    "self_reward": "token",
    "run": "name dir steps seed eval_every save_every save_rollouts_every",
}


@pytest.fixture
def path(tmp_path):
    """A configuration file that names only what has no default."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(SMALLEST))
    return file


@pytest.fixture
def load(path):
    return lambda *overrides: load_config(path, overrides, RunConfig)


@pytest.fixture
def refusal(load, path):
    """The refusal of some overrides: its lines after the first, which names the file and counts."""

    def refuse(*overrides):
        with pytest.raises(ConfigError) as caught:
            load(*overrides)
        first, *lines = str(caught.value).split("\n")
        assert first.startswith(f"{path}: ")
        assert first.endswith("1 setting refused" if len(lines) == 1 else f"{len(lines)} settings refused")
        return "\n".join(line.strip() for line in lines)

    return refuse


def test_smallest_file_takes_the_papers_defaults(load):
    config = load()
    assert (config.rollout.prompts_per_step, config.rollout.samples_per_prompt) == (128, 8)
    assert (config.loss.alpha, config.loss.beta_v, config.loss.tau) == (0.1, 0.1, 0.1)
    assert (config.loss.self_reward_warmup_steps, config.learning.lr) == (200, 1e-6)
    assert (config.loss.clip_low, config.loss.clip_high, config.loss.kl_coef) == (0.2, 0.2, 0)
    assert config.folder == Path("runs/trial")
    assert config.samples_per_step == 1024


def test_stable_keys_exist():
    assert {f"{section}.{key}" for section, keys in STABLE_KEYS.items() for key in keys.split()} - set(
        known_keys(RunConfig)
    ) == set()


@pytest.mark.parametrize("schema", [RunConfig, SFTConfig])
def test_every_key_is_described(schema):
    """The descriptions are the reference manual, and part of the error messages."""

    def undescribed(section, prefix=""):
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                yield from undescribed(field.annotation, f"{prefix}{name}.")
            elif not field.description:
                yield f"{prefix}{name}"

    assert set(undescribed(schema)) == set()


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("loss.alhpa", "loss.alpha"),
        ("rollout.num_engine", "rollout.num_engines"),
        ("rollot", "rollout"),
        ("loss.lr", "learning.lr"),  # the right name in the wrong section
        ("temperature", "rollout.temperature"),
    ],
)
def test_unknown_key_names_the_nearest_known_one(refusal, key, nearest):
    assert refusal(f"{key}=1") == f"{key}: unknown key. Nearest known key: {nearest}"


@pytest.mark.parametrize(
    ("override", "start"),
    [
        (
            "loss.alpha=-1",
            "loss.alpha: must be at least 0, got -1. Weight of the self-reward loss",
        ),
        ("loss.beta_v=0", "loss.beta_v: must be above 0, got 0."),
        ("loss.tau=1.1", "loss.tau: must be at most 1, got 1.1."),
        ("loss.tau=.nan", "loss.tau: must be a finite number, got nan."),
        ("run.steps=-1", "run.steps: must be at least 0, got -1."),
        ("run.steps=two", "run.steps: must be a whole number, got 'two'."),
        ("run.save_every=1.5", "run.save_every: must be a whole number, got 1.5."),
        ("run.name=../elsewhere", "run.name: must be text that matches ^[A-Za-z0-9]"),
        ("run.dir=4", "run.dir: must be a path, got 4."),
        (
            "rollout.samples_per_prompt=1",
            "rollout.samples_per_prompt: must be at least 2, got 1.",
        ),
        ("learning.offload=cpu", "learning.offload: must be 'none', 'optimizer' or 'all', got 'cpu'."),
        ("learning.betas=[0.9, 1]", "learning.betas.1: must be below 1, got 1."),
        ("learning.betas=[0.9]", "learning.betas.1: missing."),
        ("rollout.cpus=0.33333", "rollout.cpus: must be a multiple of 0.0001, got 0.33333."),
        (
            "learning.gpus_per_rank=0.00001",
            "learning.gpus_per_rank: must be a multiple of 0.0001, got 1e-05.",
        ),
        ("model.path=", "model.path: must be text, got null."),
        ("loss=0.5", "loss: must be a section of keys such as loss.alpha, got 0.5."),
    ],
)
def test_a_bad_value_is_refused_with_its_key_and_the_values_that_are_allowed(refusal, override, start):
    message = refusal(override)
    assert message.startswith(start)
    assert "\n" not in message


@pytest.mark.parametrize("bounds", ["[1.5, 2]", "[0.5, 0.9]", "[-1, 2]", "[2]"])
def test_importance_bounds_hold_the_ratio_of_a_fresh_token(refusal, load, bounds):
    assert refusal(f"loss.importance_bounds={bounds}").startswith("loss.importance_bounds")
    assert load("loss.importance_bounds=[0, 5]").loss.importance_bounds == (0, 5)


@pytest.mark.parametrize(
    ("value", "rule"),
    [("1", "below 0"), ("guess", "a number"), ("null", "a number")],
)
def test_c_ref_is_refused_in_one_line_that_names_both_kinds_of_value(refusal, value, rule):
    message = refusal(f"loss.c_ref={value}")
    assert message.startswith(f"loss.c_ref: must be 'calibrate' or 'exact', or {rule}, got ")
    assert message.count("loss.c_ref") == 1


def test_every_wrong_setting_is_named_in_one_error(refusal):
    lines = refusal("loss.alpha=-1", "rollot=1", "loss.c_ref=2").split("\n")
    assert sorted(line.partition(":")[0] for line in lines) == ["loss.alpha", "loss.c_ref", "rollot"]


def test_missing_keys_are_named(tmp_path):
    file = tmp_path / "empty.yaml"
    file.write_text("run: {name: x}\nmodel: {path: m}\nself_reward: {token: z}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file, [], RunConfig)
    steps = "run.steps: missing. Training steps; 0 only measures c_ref and evaluates the initial model."
    assert str(caught.value).split("\n  ") == [f"{file}: 2 settings refused", steps, "data: missing."]


@pytest.mark.parametrize(
    ("overrides", "start", "also"),
    [
        (
            ["rollout.temperature=0.6"],
            "rollout.temperature: is 0.6, but training needs 1: ",
            "evaluation.temperature",
        ),
        (
            ["rollout.engine_args.async_scheduling=true"],
            "rollout.engine_args: async_scheduling=True keeps decode steps in flight",
            "leave async_scheduling out",
        ),
        (
            ["rollout.max_staleness=2", "rollout.colocate=true"],
            "rollout.max_staleness: is 2, but with rollout.colocate=true the engines sleep",
            "set it to 0, or give the engines devices of their own",
        ),
        (
            ["learning.stream=true", "rollout.colocate=true"],
            "learning.stream: ranks cannot learn while engines generate with rollout.colocate",
            "set one of the two to false",
        ),
        (
            ["learning.stream=true", "learning.offload=optimizer"],
            "learning.stream: needs the gradients on the ranks' own devices, but learning.offload=optimizer",
            "set learning.stream to false or learning.offload to none",
        ),
        (
            ["learning.stream=true", "loss.c_ref=exact"],
            "learning.stream: needs the reference log-probs of a sample when it lands",
            "set learning.stream to false, or loss.c_ref to calibrate or a number",
        ),
        (
            ["rollout.prompts_per_step=2", "learning.mini_batches=3"],
            "learning.mini_batches: 3 is more than ",
            "rollout.prompts_per_step=2",
        ),
        (
            ["rollout.max_response_tokens=16384"],
            "learning.tokens_per_micro_batch: 16384 is less than ",
            "use at least 18432",
        ),
        (
            ["loss.c_ref=-4.85", "loss.beta_v=0.1"],
            "loss.c_ref: pi_ref(z_c) * exp(1 / beta_v) = exp(5.15) at c_ref -4.85 and beta_v 0.1: it must "
            "be far below 1",
            "a larger loss.beta_v (above 0.206), or leave loss.c_ref=calibrate",
        ),
        (["rollout.gpus=1.5"], "rollout.gpus: is 1.5, but only a single GPU can be shared", "use 2"),
        (
            ["rollout.gpus=0.5", "rollout.tensor_parallel=2"],
            "rollout.gpus: is 0.5 for each of 2 tensor-parallel ranks, but only a single GPU can be shared",
            "use 1",
        ),
        (
            ["learning.gpus_per_rank=2.5"],
            "learning.gpus_per_rank: is 2.5, but only a single GPU can be shared",
            "use 3",
        ),
        (
            ["learning.attention=flash_attention_2"],
            "learning.attention: flash_attention_2 runs on GPUs",
            "or use sdpa",
        ),
        (
            ["learning.attention=flash_attention_2", "learning.gpus_per_rank=1"],
            "learning.attention: flash_attention_2 runs on GPUs and in bfloat16 only",
            "learning.dtype=float32",
        ),
        (["self_reward.token=null"], "self_reward.token: is null", "set both to 0, or name a token"),
        (["self_reward.token=null", "loss.alpha=0"], "self_reward.token: is null", "loss.tau=0.1"),
        (
            ["rollout.colocate=true", "rollout.num_engines=2"],
            "rollout.colocate: 2 engine(s) of 1 tensor-parallel rank(s) take turns with 2 learner ranks, "
            "but learning.num_ranks=1",
            "",
        ),
        (
            ["rollout.colocate=true", "rollout.gpus=1"],
            "rollout.colocate: engines and ranks share whole GPUs, or only CPUs",
            "set both to 1",
        ),
        (
            ["rollout.colocate=true", "rollout.cpus=2"],
            "rollout.colocate: an engine uses the 1 CPUs of the 1 rank(s) that it takes turns with",
            "",
        ),
        (
            ["rollout.colocate=true", "rollout.resources={a: 1}"],
            "rollout.colocate: engines run on the nodes of the ranks",
            "learning.resources",
        ),
        (
            ["rollout.colocate=true", "learning.offload=all"],
            "rollout.colocate: moves the learner's states itself",
            "set it to none",
        ),
    ],
)
def test_settings_that_disagree_are_refused_under_the_key_to_change(refusal, overrides, start, also):
    message = refusal(*overrides)
    assert message.startswith(start)
    assert also in message
    assert "{" not in message  # the section's other settings are no part of the message


@pytest.mark.parametrize(
    "overrides",
    [
        [
            "rollout.cpus=0.3333",
            "verification.cpus=1.5",
            "learning.cpus_per_rank=128",
            "rollout.resources={a: 2.5}",
        ],
        ["rollout.gpus=0.45", "learning.gpus_per_rank=0.55"],
        ["rollout.gpus=1", "rollout.tensor_parallel=2", "learning.gpus_per_rank=2"],
        ["learning.attention=flash_attention_2", "learning.gpus_per_rank=0.5", "learning.dtype=bfloat16"],
    ],
)
def test_parts_that_ray_can_give_are_accepted(load, overrides):
    load(*overrides)


def test_a_c_ref_that_nothing_uses_is_not_checked(load):
    assert (
        load("self_reward.token=null", "loss.alpha=0", "loss.tau=0", "loss.c_ref=-4.85").loss.c_ref == -4.85
    )


def test_without_a_self_reward_token_there_is_plain_grpo(load):
    config = load("self_reward.token=null", "loss.alpha=0", "loss.tau=0", "loss.c_ref=exact")
    assert config.self_reward.token is None
    assert not config.needs_reference  # c_ref: exact asks for nothing when there is no z_c


@pytest.mark.parametrize(
    ("overrides", "needed"), [([], False), (["loss.c_ref=exact"], True), (["loss.kl_coef=0.001"], True)]
)
def test_a_reference_model_runs_only_when_asked_for(load, overrides, needed):
    assert load(*overrides).needs_reference is needed


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("learning.lr=1e-4", "learning.lr", 1e-4),  # a string to YAML 1.1
        ("learning.lr=1.0e-4", "learning.lr", 1e-4),
        ("loss.c_ref=-23.0", "loss.c_ref", -23.0),
        ("loss.c_ref=exact", "loss.c_ref", "exact"),
        ("data.eval=null", "data.eval", None),
        ("data.instruction=''", "data.instruction", ""),
        ("data.instruction=a=b", "data.instruction", "a=b"),
        ("learning.gradient_checkpointing=true", "learning.gradient_checkpointing", True),
        ("learning.betas=[0.8, 0.9]", "learning.betas", [0.8, 0.9]),
        ("self_reward.token=<|reserved|>", "self_reward.token", "<|reserved|>"),
        ("rollout.engine_args.max_num_seqs=64", "rollout.engine_args.max_num_seqs", 64),
        (
            "learning.deepspeed={zero_optimization: {overlap_comm: true}}",
            "learning.deepspeed.zero_optimization.overlap_comm",
            True,
        ),
    ],
)
def test_overrides_are_yaml_values(load, override, key, value):
    assert flat_settings(load(override))[key] == value


def commands(folder):
    """How each command reads overrides, the key of its instruction, and that of one that may be null."""
    base, sweep, sft = folder / "config.yaml", folder / "sweep.yaml", folder / "sft.yaml"
    held_out = {**SMALLEST["data"], "eval": "test.jsonl"}
    base.write_text(yaml.safe_dump({**SMALLEST, "data": held_out}))
    sft.write_text(yaml.safe_dump(SMALLEST))
    space = {"learning.lr": {"grid": [0.1]}}
    sweep.write_text(yaml.safe_dump({"name": "search", "base": str(base), "space": space}))
    return {
        "train": (lambda *texts: load_config(base, texts), "data.instruction", "data.eval"),
        "sft": (lambda *texts: load_config(sft, texts, SFTConfig), "data.instruction", "tracking.uri"),
        "sweep": (
            lambda *texts: base_config(load_sweep(sweep, texts)),
            "settings.data.instruction",
            "settings.tracking.uri",
        ),
        "eval": (lambda *texts: load_eval(None, {}, texts), "instruction", "tracking.uri"),
        "serve": (
            lambda *texts: serve_config(["owner/model"], {"keys_file": "keys"}, texts),
            None,
            "keys_file",
        ),
    }


@pytest.mark.parametrize("command", ["train", "sft", "sweep", "eval", "serve"])
def test_an_empty_value_is_the_empty_text_where_that_is_allowed_and_else_null(tmp_path, command):
    read, instruction, optional = commands(tmp_path)[command]

    def value(key, text):
        return flat_settings(read(f"{key}={text}"))[key.removeprefix("settings.")]

    assert value(optional, "") is None
    assert value(optional, "null") is None
    if instruction is None:
        return
    for text in ("", "''", " "):
        assert value(instruction, text) == ""
    if command == "eval":
        assert value(instruction, "null") is None
    else:
        with pytest.raises(ConfigError, match=r"data.instruction: must be text, got null"):
            value(instruction, "null")


@pytest.mark.parametrize("command", ["train", "sft", "sweep", "eval", "serve"])
def test_every_command_refuses_a_malformed_override_in_the_same_words(tmp_path, command):
    read, _, optional = commands(tmp_path)[command]
    with pytest.raises(ConfigError, match=r"override 'lr': write key.path=value, with a key such as "):
        read("lr")
    with pytest.raises(ConfigError, match=r"override '.*=\[1': the value is not valid YAML"):
        read(f"{optional}=[1")


@pytest.mark.parametrize(
    ("command", "key"),
    [("sft", "learning.gpus_per_rank"), ("eval", "rollout.gpus"), ("serve", "engine.gpus")],
)
def test_parts_of_several_gpus_are_refused_by_every_command(tmp_path, command, key):
    with pytest.raises(ConfigError, match=f"{key}: is 1.5, but only a single GPU can be shared: use 2"):
        commands(tmp_path)[command][0](f"{key}=1.5")


def test_a_path_and_a_required_text_take_no_empty_value(refusal):
    assert refusal("run.dir=").startswith("run.dir: must be a path, got null.")
    assert refusal("model.path=''").startswith("model.path: must be text of at least 1 character(s), got ''.")


def test_overrides_apply_in_order_and_keep_the_sections_other_keys(load):
    config = load("run.steps=5", "run.steps=7")
    assert (config.run.name, config.run.steps) == ("trial", 7)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.alpha", "write key.path=value"),
        ("=3", "write key.path=value"),
        ("loss.alpha=[1", "not valid YAML"),
        ("run.name.first=a", "name is a value, not a section"),
    ],
)
def test_malformed_override(load, override, message):
    with pytest.raises(ConfigError, match=r"override '.*': ") as caught:
        load(override)
    assert override in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("run: [", "not valid YAML"),
        ("- a\n", "but is list"),
        ("", "but is NoneType"),
    ],
)
def test_unusable_file(tmp_path, content, message):
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(file, [], RunConfig)
    assert str(caught.value).startswith(f"{file}: ")


def test_the_resolved_configuration_loads_to_the_same(load, tmp_path):
    config = load(
        "loss.c_ref=-20.5",
        "rollout.engine_args={block_size: 16, nested: {a: [1]}}",
        "data.eval=test.jsonl",
        "run.dir=/tmp/x",
    )
    file = tmp_path / "resolved.yaml"
    file.write_text(dump_config(config))
    assert load_config(file, [], RunConfig) == config


def test_changed_settings_name_also_what_was_taken_out(load, tmp_path):
    saved = tmp_path / "saved.yaml"
    saved.write_text(dump_config(load("rollout.engine_args={a: 1, b: 2}")))
    assert changed_settings(saved, load("rollout.engine_args={a: 1}", "loss.alpha=0.5")) == {
        "loss.alpha": "0.1 before, 0.5 now",
        "rollout.engine_args.b": "2 before, None now",
    }
    assert changed_settings(saved, load("rollout.engine_args={a: 1, b: 2}")) == {}


def test_flat_settings_hold_every_key_as_plain_values(load):
    settings = flat_settings(load("rollout.engine_args={a: 1}"))
    assert set(settings) == set(known_keys(RunConfig)) - {"rollout.engine_args"} | {"rollout.engine_args.a"}
    assert settings["run.dir"] == "runs"
    assert settings["learning.deepspeed"] == {}


def test_a_configuration_does_not_change_after_validation(load):
    config = load()
    with pytest.raises(ValidationError, match="frozen"):
        config.loss.alpha = 1.0


def test_configuration_imports_neither_torch_nor_ray():
    modules = ", ".join(
        f"orchestrator.config.{module.name}" for module in pkgutil.iter_modules(config.__path__)
    )
    heavy = {"torch", "ray", "transformers", "vllm", "mlflow", "numpy"}
    code = f"import sys, {modules}; print('pydantic' in sys.modules, *{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


BAD_VALUES = [None, True, -1, 0.5, 10**12, float("nan"), "", "words", "!", [], [1, 2, 3], {}, {"a": {"b": 1}}]


def refusal_of(schema, key, value):
    """What is said of the value of one key in an otherwise empty file; None where the value is accepted."""
    *parents, leaf = key.split(".")
    tree = {leaf: value}
    for parent in reversed(parents):
        tree = {parent: tree}
    try:
        validate(tree, schema, "tree")
    except ConfigError as error:
        return next((line for line in str(error).split("\n  ") if line.startswith(key)), None)
    return None


@pytest.mark.parametrize("schema", [RunConfig, SFTConfig, SweepConfig, EvalConfig, ServeConfig])
def test_every_value_that_a_setting_refuses_is_explained_in_our_words(schema):
    """For an error type that `ALLOWED` lacks, the error shows pydantic's words in brackets after `valid`."""
    found = [refusal_of(schema, key, value) for key in known_keys(schema) for value in BAD_VALUES]
    refusals = [refusal for refusal in found if refusal is not None]
    assert len(refusals) > len(known_keys(schema))
    assert [refusal for refusal in refusals if "must be valid (" in refusal] == []


def test_a_wrong_value_within_a_dictionary_is_named_without_the_members_of_unions():
    tree = {"name": "s", "base": "b.yaml", "space": {"loss.alpha": {"grid": [[1]], "uniformly": [0, 1]}}}
    with pytest.raises(ConfigError) as caught:
        validate(tree, SweepConfig, "sweep")
    values = "space.loss.alpha"
    assert str(caught.value).split("\n  ")[1:] == [
        f"{values}.grid.0: must be true or false, or a whole number, or a number, or text, got [1]. "
        "Each of these values, combined with each value of the other grids.",
        f"{values}.uniformly: unknown key. Nearest known key: {values}.uniform",
    ]


def test_an_empty_mapping_is_refused_as_too_short():
    with pytest.raises(
        ConfigError, match=r"space: must be at least 1 value\(s\) long, got \{\}\. The searched"
    ):
        validate({"name": "s", "base": "b.yaml", "space": {}}, SweepConfig, "sweep")
    with pytest.raises(ConfigError, match=r"^options: 1 setting refused\n  port: must be a whole number"):
        serve_config(["m"], {"port": "x"}, [])
