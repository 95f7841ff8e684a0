"""What `--model` may name: a folder, a hub name, a run, a checkpoint, a sweep, or a registered version.

In: a name. Out: a `ResolvedModel` that vLLM and transformers can load, with its self-reward card and
tokens, which are checked against each other.
"""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.data.model_files import WEIGHTS, refuse_pickled_weights
from orchestrator.data.tokens import ModelTokens, load_tokens, looks_local, settings_of_card
from orchestrator.errors import ConfigError
from orchestrator.storage.card import SELF_REWARD, SelfRewardCard, template_hash
from orchestrator.storage.checkpoints import LEASED
from orchestrator.storage.checksums import model_damage, refuse_damaged_model
from orchestrator.storage.files import leased
from orchestrator.storage.folders import RESULTS, explained, results_of

RUNS = Path("runs")
LOCATE_ATTEMPTS = 3
"""A run deletes at most one checkpoint a save, so a second attempt finds its newest weights."""


@dataclass(frozen=True)
class ResolvedModel:
    """A model that can be loaded.

    Attributes:
        path: Its hub name, or its folder as an absolute path without links, which names the same weights
            after a run has saved newer ones.
        card: How to read its score; None for a model that was not trained to score.
        origin: Where it comes from, in words that stay true: `models:/NAME/3`, `runs/NAME step-000100`.
        tokens: Its tokenizer, with the card's z_c and EOS tokens.
    """

    path: str
    card: SelfRewardCard | None
    origin: str
    tokens: ModelTokens


def resolve_model(
    name: str,
    tracking_uri: str | None = None,
    hold: contextlib.ExitStack | None = None,
    eos_tokens: Sequence[str | int] = (),
    eos_key: str = "eos_tokens",
) -> ResolvedModel:
    """The model that `name` means.

    Args:
        name: A Hugging Face folder or hub name; a run, by its folder or its name in `runs/`; a checkpoint's
            folder; a sweep, which means its best trial; `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        tracking_uri: The MLflow server of `models:/...`. None means MLFLOW_TRACKING_URI, else the sqlite
            database in `runs/`.
        hold: The model's run does not delete these weights until this stack is closed.
        eos_tokens: Tokens that end a response, in place of the model's own.
        eos_key: The setting that names these, for messages.

    Raises:
        ConfigError: There is no such model (the message lists the attempts), or its card does not fit its
            tokenizer.
    """
    with contextlib.ExitStack() as lease:
        path, origin = _leased(name, tracking_uri, lease)
        card = _card(path)
        try:
            token = None if card is None else card.token
            tokens = load_tokens(path, token, eos_tokens, eos_key, settings_of_card(card))
        except ConfigError as error:
            raise ConfigError(f"model {name}: {str(error).removeprefix('model.path: ')}") from error
        if card is not None:
            _refuse_foreign_card(path, card, tokens)
            if eos_tokens and set(tokens.eos_tokens) != set(card.eos_token_ids):
                raise ConfigError(
                    f"{eos_key}: is {list(eos_tokens)}, but the score of {name} is read after the tokens "
                    f"{card.eos_token_ids} of its {SELF_REWARD}: leave the setting out, or delete that file "
                    "to use the model without its score"
                )
            tokens = replace(tokens, eos_tokens=tuple(card.eos_token_ids))
        if hold is not None:
            hold.enter_context(lease.pop_all())
    return ResolvedModel(path, card, origin, tokens)


def locate(name: str, tracking_uri: str | None) -> tuple[str, str]:
    """Path and origin of the model that `name` means now, without a lease on its weights.

    Raises:
        ConfigError: There is no such model.
    """
    if name.startswith("models:"):
        return _registered(name, tracking_uri)
    tried = []
    for folder in dict.fromkeys((Path(name).expanduser(), RUNS / name)):
        if (folder / "config.json").is_file():
            return _with_weights(folder), str(folder)
        if (folder / "export" / "config.json").is_file():
            return _with_weights(folder / "export"), _export_origin(folder)
        if folder.is_dir() and (trial := _best_trial(folder)) is not None:
            return _with_weights(trial / "export"), _export_origin(trial)
        missing = "no config.json, export/ or finished sweep in it" if folder.is_dir() else "no such folder"
        tried.append(f"{folder} ({missing})")
    if looks_local(name):
        raise ConfigError(
            f"model {name}: not found. Tried {', '.join(tried)}; and it is no hub name (OWNER/MODEL) and no "
            "models:/NAME@ALIAS. A run has an export/ after its first checkpoint (run.save_every)"
        )
    return name, name


def _leased(name: str, tracking_uri: str | None, lease: contextlib.ExitStack) -> tuple[str, str]:
    """Path and origin of weights that are whole. `lease` keeps the run from deleting the folder.

    Where a run's newest weights are damaged, those of the checkpoint before are taken.
    """
    for _ in range(LOCATE_ATTEMPTS):
        path, origin = locate(name, tracking_uri)
        if not Path(path).is_absolute():
            return path, origin
        path, origin = _whole(Path(path), origin)
        try:
            lease.enter_context(leased(Path(path) / LEASED))
        except FileNotFoundError:  # deleted since, so the run has newer weights
            continue
        return path, origin
    raise ConfigError(f"model {name}: {path} is being deleted; try again, or name another checkpoint")


def _whole(folder: Path, origin: str) -> tuple[str, str]:
    """The model's folder and origin; if it is damaged and a run was named, those of an older checkpoint.

    Raises:
        ConfigError: The model is damaged, and it was named itself or there is no whole one before it.
    """
    problem = model_damage(folder)
    if problem is None:
        return str(folder), origin
    checkpoint = folder.parent
    older = sorted(path for path in checkpoint.parent.glob("step-*") if path.name < checkpoint.name)
    for other in reversed(older if origin.endswith(f" {checkpoint.name}") else []):
        if (other / "export" / "config.json").is_file() and model_damage(other / "export") is None:
            logging.getLogger("laser").warning(
                f"{checkpoint} is damaged: {problem}. The model is that of {other}, the checkpoint before it"
            )
            return _with_weights(other / "export"), origin.replace(checkpoint.name, other.name)
    refuse_damaged_model(folder)
    return str(folder), origin


def _registered(name: str, tracking_uri: str | None) -> tuple[str, str]:
    # MLflow takes seconds to import, and most models are not in its registry.
    from orchestrator.models.registry import fetch_model
    from orchestrator.tracking.address import tracking_uri as default_uri

    folder = fetch_model(name, default_uri(tracking_uri, RUNS))
    return str(folder), f"models:/{folder.parent.name}/{folder.name.partition('-')[0]}"


def _with_weights(folder: Path) -> str:
    """The folder's absolute path without links.

    Raises:
        ConfigError: It has no weights, or they are pickles.
    """
    refuse_pickled_weights(folder)
    if not any(folder.glob(WEIGHTS)):
        raise ConfigError(
            f"model {folder}: has a config.json, but no weights (*.safetensors); complete the folder"
        )
    return str(folder.resolve())


def _export_origin(folder: Path) -> str:
    """A run with its checkpoint, such as `runs/NAME step-000100`: later its newest export is another one."""
    checkpoint = (folder / "export").resolve().parent.name
    return str(folder) if folder.name == checkpoint else f"{folder} {checkpoint}"


def _best_trial(folder: Path) -> Path | None:
    """The folder of a sweep's best trial; None for a folder that is not a sweep's.

    Raises:
        ConfigError: No trial of the sweep has finished, or the best one has no export.
    """
    kind, results = results_of(folder) or (None, {})
    if kind != "sweep":
        return None
    best = results.get("best")
    if best is None:
        raise ConfigError(
            f"model {folder}: no trial of this sweep has finished yet; name a trial's folder below "
            f"{folder / 'trials'}"
        )
    with explained(folder / RESULTS):
        folders = {trial["name"]: trial["folder"] for trial in results["trials"]}
        trial = folder / folders[best["trial"]]
    if not (trial / "export" / "config.json").is_file():
        raise ConfigError(
            f"model {folder}: its best trial, {trial}, has no export/; train it again, or name another "
            "trial's folder"
        )
    return trial


def _card(path: str) -> SelfRewardCard | None:
    if looks_local(path):
        card = Path(path) / SELF_REWARD
        return SelfRewardCard.read(card) if card.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        return SelfRewardCard.read(Path(hf_hub_download(path, SELF_REWARD)))
    except EntryNotFoundError:  # also offline, where the hub's cache must hold the model
        return None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ConfigError(
            f"model {path}: is neither a folder nor a run here, and the Hugging Face hub does not provide "
            f"it: {str(error).splitlines()[0]}"
        ) from error


def _refuse_foreign_card(path: str, card: SelfRewardCard, tokens: ModelTokens) -> None:
    """Refuse a card that belongs to another chat template or tokenizer."""
    found = template_hash(tokens.tokenizer)
    if found != card.chat_template_sha256:
        raise ConfigError(
            f"model {path}: its score was trained with another chat template (SHA-256 "
            f"{card.chat_template_sha256[:12]}...) than its own (SHA-256 {found[:12]}...), so its scores "
            "would be wrong. Restore the template of the training (chat_template.jinja), or delete "
            f"{SELF_REWARD} to use the model without its score"
        )
    if tokens.z_token != card.token_id:
        raise ConfigError(
            f"model {path}: {card.token} is token {tokens.z_token} in its tokenizer and token "
            f"{card.token_id} in its {SELF_REWARD}; restore the tokenizer of the training"
        )
