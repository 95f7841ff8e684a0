"""A model's configuration and tokenizer, read without running anything that came with the model.

In: a folder or a hub name. Out: transformers' objects. Weights that are pickles, and code of the model's
own, are refused: whoever wrote them would choose what this machine runs.
"""

from pathlib import Path
from typing import Any

from orchestrator.config.optional_packages import without_packages
from orchestrator.errors import ConfigError

WEIGHTS = "*.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")


def load_model_config(path: str) -> Any:
    """The configuration of a model, a `PretrainedConfig`.

    Raises:
        ConfigError: It needs code of the model's own.
        OSError, ValueError: It is missing or cannot be read.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except ValueError as error:
        _refuse_own_code(path, "configuration", error)
        raise


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a model, a `PreTrainedTokenizerBase`. Raises as `load_model_config`."""
    with without_packages("sklearn"):  # transformers wants it for assisted generation
        from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except ValueError as error:
        _refuse_own_code(path, "tokenizer", error)
        raise


def refuse_pickled_weights(folder: Path) -> None:
    """Refuse a folder that has weights, but none as safetensors.

    Raises:
        ConfigError: It is such a folder.
    """
    if any(folder.glob(WEIGHTS)):
        return
    if pickles := sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern)):
        raise ConfigError(
            f"model.path: the weights of {folder} are pickles ({', '.join(pickles[:3])}), and a pickle runs "
            "code when it is read: take the model's safetensors, or convert it on a machine where you trust "
            "it, with transformers: AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)"
        )


def _refuse_own_code(path: str, part: str, error: ValueError) -> None:
    """Raise ConfigError if transformers asks for leave to run code that came with the model."""
    if "trust_remote_code" in str(error):
        raise ConfigError(
            f"model.path: the {part} of {path} needs Python code that came with the model (auto_map), and "
            "such code is never run: use a version of the model whose classes transformers has"
        ) from error
