"""The files of a user's own verifiers, which a run that resumes compares.

In: canonical texts of verifiers. Out: fingerprints, and notes on files that have changed.
"""

import inspect
from collections.abc import Iterable
from pathlib import Path

from actors.child_main import load_function
from orchestrator.config.verifiers import OwnSettings, parts_of, settings_of_text
from orchestrator.data.fingerprints import Sources, changed_sources, files_print

_VERIFIER = "verification.verifier"


def own_verifiers(texts: Iterable[str]) -> Sources:
    """The fingerprint of each file with a verifier of the user's own."""
    own = [part for text in texts for part in parts_of(settings_of_text(text))]
    found: Sources = {}
    for name in dict.fromkeys(part.name for part in own if isinstance(part, OwnSettings)):
        verifier = load_function(name)
        is_code = inspect.isroutine(verifier) or inspect.isclass(verifier)
        file = inspect.getsourcefile(inspect.unwrap(verifier) if is_code else type(verifier))
        if file is not None and not name.startswith(("actors.", "orchestrator.")):
            key = f"{_VERIFIER} {name}" if found else _VERIFIER
            found[key] = files_print(name, Path(file).parent, [Path(file).name])
    return found


def changed_verifiers(before: Sources, now: Sources) -> list[str]:
    """Notes on the files of verifiers that have changed; takes them out of `before`.

    A verifier's file may change in what it prints, for example, so a change is only noted.
    """
    saved = {key: before.pop(key) for key in list(before) if key.startswith(_VERIFIER)}
    changes = changed_sources(saved, now).values()
    return [f"{_VERIFIER}: {change}: rewards may differ from now on" for change in changes]
