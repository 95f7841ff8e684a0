"""The work of the benchmarks of training: problems, and a model of 3.3M parameters that sometimes answers.

Out: a folder with `model/` and `problems.jsonl`, made in a second from the quick-start's base model. That
model of 0.8 million parameters always answers, in 20 to 50 tokens. `widened` makes each of its layers twice
as wide, with the same function: so nothing has to be trained. A smaller logit of the token that ends a
response then makes most responses long, up to the limit: lengths differ widely within a group, and so do
rewards.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

QUICKSTART = Path(__file__).parents[1] / "experiments/quickstart"
Z_TOKEN = "<|self_reward|>"
WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
"""Sizes of the base model that are doubled."""
END_LOGIT = 0.15
"""Factor of the last layer's row of the token that ends a response."""
PROMPTS, SAMPLES = 16, 8
"""Problems of a step, and samples of each."""
PROMPT_TOKENS, RESPONSE_TOKENS = 64, 128
LEARNING_RATE = 1e-5
MICRO_BATCH_TOKENS = 2048


def make_work(folder: Path) -> Path:
    """Write the model and the problems, unless they are there. Returns the folder."""
    if not (folder / "problems.jsonl").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write_model(folder / "model")
        shutil.copy(QUICKSTART / "train.jsonl", folder / "problems.jsonl")
    return folder


def _write_model(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    base = QUICKSTART / "base"
    shutil.copytree(base, folder, dirs_exist_ok=True)
    small = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = small.config
    wide = {key: 2 * getattr(config, key) for key in WIDTHS}
    large = Qwen2ForCausalLM(Qwen2Config(**(config.to_dict() | wide)))
    large.load_state_dict({name: widened(name, weight) for name, weight in small.state_dict().items()})
    end = AutoTokenizer.from_pretrained(base).eos_token_id
    with torch.no_grad():
        large.lm_head.weight[end] *= END_LOGIT
    large.generation_config = small.generation_config
    large.save_pretrained(folder)


def widened(name: str, weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """A Qwen2 weight for hidden states that hold every value twice: inputs and outputs are doubled."""
    if weight.dim() == 1 or name.endswith("embed_tokens.weight"):
        return torch.cat([weight, weight], dim=-1)
    halved = torch.cat([weight, weight], dim=1) / 2  # each input comes twice
    return halved if name.endswith("lm_head.weight") else torch.cat([halved, halved], dim=0)


def run_settings(
    work: Path, folder: Path, steps: int, cores: int, dtype: str, engine_dtype: str, alpha: float
) -> dict[str, dict[str, Any]]:
    """The settings of `laser train` on this work.

    One optimiser step a batch and nothing saved but the last checkpoint. Every actor has one thread, and the
    learner has as many ranks as there are cores.

    Args:
        work: What `make_work` wrote.
        folder: Of the run.
        dtype: The learner's.
        engine_dtype: The engine's.
        alpha: Weight of the self-reward loss; 0 is plain GRPO without a score.
    """
    scored = alpha > 0
    return {
        "run": {"name": "run", "dir": str(folder), "steps": steps},
        "model": {"path": str(work / "model")},
        "data": {"train": str(work / "problems.jsonl"), "instruction": ""},
        "rollout": {
            "samples_per_prompt": SAMPLES,
            "prompts_per_step": PROMPTS,
            "max_prompt_tokens": PROMPT_TOKENS,
            "max_response_tokens": RESPONSE_TOKENS,
            "dtype": engine_dtype,
            "cpus": 0.25,
        },
        "verification": {"cpus": 0.25, "verifier": "math_verify_plain"},
        "learning": {
            "num_ranks": cores,
            "cpus_per_rank": 0.25,
            "dtype": dtype,
            "lr": LEARNING_RATE,
            "tokens_per_micro_batch": MICRO_BATCH_TOKENS,
            "skip_zero_gradients": False,
        },
        "loss": {"alpha": alpha, "tau": 0.1 if scored else 0.0, "self_reward_warmup_steps": 0}
        | ({"c_ref": -11.0} if scored else {}),
        "self_reward": {"token": Z_TOKEN if scored else None},
    }


def problems(work: Path) -> list[dict[str, str]]:
    """Rows of problem and answer."""
    lines = (work / "problems.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
