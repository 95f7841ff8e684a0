"""Real Ray, vLLM, DeepSpeed and MLflow on the quick-start's tiny model: fixtures shared by the end-to-end tests."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from experiments.quickstart.task import write_data, write_untrained


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the quick-start's data (a little of it) and its untrained model."""
    folder = tmp_path_factory.mktemp("task")
    write_data(folder, seed=0, train=64, test=8, sft=64)
    write_untrained(folder / "untrained", seed=0)
    return folder


@pytest.fixture(scope="session")
def models(task: Path) -> dict[str, Path]:
    """Two freshly initialised models, with tied and with untied embeddings, whose logits are far from uniform."""
    folders = {}
    tokenizer = AutoTokenizer.from_pretrained(task / "untrained")
    for name, tied in (("tied", True), ("untied", False)):
        config = Qwen2Config.from_pretrained(task / "untrained", tie_word_embeddings=tied)
        torch.manual_seed(7)
        model = Qwen2ForCausalLM(config).float()
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(3.0)
        folders[name] = task / name
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders
