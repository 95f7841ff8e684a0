"""What `--model` may name: a folder or hub name, a run, a checkpoint, a sweep, or a version in MLflow's registry.

In: a name. Out: a `Model` that vLLM and transformers load, with its self-reward card and its tokens, checked against each other.
"""

import contextlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.data.tokens import ModelTokens, load_tokens, looks_local
from orchestrator.errors import ConfigError
from orchestrator.storage.card import SELF_REWARD, SelfRewardCard, template_hash
from orchestrator.storage.checkpoints import LEASED
from orchestrator.storage.files import leased

RUNS = Path("runs")
LOCATE_ATTEMPTS = 3
"""A run prunes at most once a save, so that a second attempt finds its newest weights."""


@dataclass(frozen=True)
class Model:
    """A model that can be loaded.

    Attributes:
        path: Its folder, absolute and without links, so that it names the same weights while a run goes on; or its hub name.
        card: All that reading its score needs; None for a model that was not trained to score.
        origin: Where it came from, in words that stay true, such as `models:/NAME/3` or `runs/NAME step-000100`.
        tokens: Its tokenizer, with the card's z_c and EOS tokens.
    """

    path: str
    card: SelfRewardCard | None
    origin: str
    tokens: ModelTokens


def resolve_model(
    name: str, tracking_uri: str | None = None, hold: contextlib.ExitStack | None = None
) -> Model:
    """The model that `name` means.

    Args:
        name: A Hugging Face folder or hub name; a run, by folder or by its name in `runs/`; a checkpoint's folder; a sweep, which means its
            best trial; `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        tracking_uri: The MLflow server of `models:/...`; MLFLOW_TRACKING_URI, else sqlite in `runs/`, when None.
        hold: Until it is closed, the run that the model belongs to does not prune it.

    Raises:
        ConfigError: There is no such model (the message says what was tried), or its card does not belong to its tokenizer.
    """
    with contextlib.ExitStack() as lease:
        path, origin = _leased(name, tracking_uri, lease)
        card = _card(path)
        try:
            tokens = load_tokens(path, None if card is None else card.token)
        except ConfigError as error:
            raise ConfigError(f"model {name}: {str(error).removeprefix('model.path: ')}") from error
        if card is not None:
            _refuse_foreign_card(path, card, tokens)
            tokens = replace(tokens, eos_tokens=tuple(card.eos_token_ids))
        if hold is not None:
            hold.enter_context(lease.pop_all())
    return Model(path, card, origin, tokens)


def _leased(name: str, tracking_uri: str | None, lease: contextlib.ExitStack) -> tuple[str, str]:
    """Path and origin; `lease` keeps a folder from being pruned."""
    for _ in range(LOCATE_ATTEMPTS):
        path, origin = _locate(name, tracking_uri)
        if not Path(path).is_absolute():
            return path, origin
        try:
            lease.enter_context(leased(Path(path) / LEASED))
        except FileNotFoundError:  # pruned just now, so the run has newer weights
            continue
        return path, origin
    raise ConfigError(f"model {name}: {path} is being deleted; try again, or name another checkpoint")


def _locate(name: str, tracking_uri: str | None) -> tuple[str, str]:
    """Path and origin."""
    if name.startswith("models:"):
        from orchestrator.models.registry import fetch
        from orchestrator.tracking.address import tracking_uri as default_uri

        folder = fetch(name, default_uri(tracking_uri, RUNS))
        return str(folder), f"models:/{folder.parent.name}/{folder.name.partition('-')[0]}"
    tried = []
    for folder in dict.fromkeys((Path(name).expanduser(), RUNS / name)):
        if (folder / "config.json").is_file():
            return _whole(folder), str(folder)
        if (folder / "export" / "config.json").is_file():
            return _whole(folder / "export"), _exported(folder)
        if folder.is_dir() and (trial := _best_trial(folder)) is not None:
            return _whole(trial / "export"), _exported(trial)
        tried.append(
            f"{folder} ({'no config.json, export/ or finished sweep in it' if folder.is_dir() else 'no such folder'})"
        )
    if looks_local(name):
        raise ConfigError(
            f"model {name}: not found. Tried {', '.join(tried)}; and it is no hub name (OWNER/MODEL) and no models:/NAME@ALIAS. A run has "
            "an export/ after its first checkpoint (run.save_every)"
        )
    return name, name


def _whole(folder: Path) -> str:
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        raise ConfigError(
            f"model {folder}: has a config.json, but no weights (*.safetensors); complete the folder"
        )
    return str(folder.resolve())


def _exported(folder: Path) -> str:
    """`runs/NAME step-000100`: the newest export of a run is another one later."""
    checkpoint = (folder / "export").resolve().parent.name
    return str(folder) if folder.name == checkpoint else f"{folder} {checkpoint}"


def _best_trial(folder: Path) -> Path | None:
    """The best trial of a sweep; None for a folder that is no sweep. Raises ConfigError when the sweep has none yet."""
    path = folder / "results.json"
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_text())
        best = tree["best"]
        folders = {trial["name"]: trial["folder"] for trial in tree["trials"]}
        trial = None if best is None else folder / folders[best["trial"]]
    except (ValueError, KeyError, TypeError):
        return None  # some other command's results
    if trial is None:
        raise ConfigError(
            f"model {folder}: no trial of this sweep has finished yet; name a trial's folder below {folder / 'trials'}"
        )
    if not (trial / "export" / "config.json").is_file():
        raise ConfigError(
            f"model {folder}: its best trial, {trial}, has no export/; train it again, or name another trial's folder"
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
    except EntryNotFoundError:  # also without a network, where the model has to be in the cache
        return None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ConfigError(
            f"model {path}: is neither a folder nor a run here, and the Hugging Face hub does not give it: {str(error).splitlines()[0]}"
        ) from error


def _refuse_foreign_card(path: str, card: SelfRewardCard, tokens: ModelTokens) -> None:
    found = template_hash(tokens.tokenizer)
    if found != card.chat_template_sha256:
        raise ConfigError(
            f"model {path}: its chat template (SHA-256 {found[:12]}...) is not the one that its score was trained with "
            f"({card.chat_template_sha256[:12]}...): prompts would be rendered in another way and scores be off. Put the template of the "
            f"training back (chat_template.jinja), or delete {SELF_REWARD} to use the model without its score"
        )
    if tokens.z_token != card.token_id:
        raise ConfigError(
            f"model {path}: its tokenizer calls {card.token} token {tokens.z_token}, its {SELF_REWARD} token {card.token_id}; put the "
            "tokenizer of the training back"
        )
