"""Scores pairs by the scorers of verl, in an environment of their own: `verifier.py --scorers` runs it.

In, on standard input: JSON lines {answer, reference}. Out: one JSON object {scorer: {verdicts, seconds}}. A
verdict is true, false, or null for a scorer that raised or took more than 5 s. The scorers' files are
loaded one by one, because the package imports Ray and torch.
"""

import contextlib
import importlib.util
import json
import signal
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIMIT_S = 5
Scorer = Callable[[str, str], bool]


def load(folder: Path, name: str) -> Any:
    """A scorer's module, or its package, under a name of its own: `math_verify.py` imports `math_verify`."""
    path = folder / f"{name}.py" if (folder / f"{name}.py").exists() else folder / name / "__init__.py"
    places = [str(path.parent)] if path.name == "__init__.py" else None
    name = f"verl_{name}"
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=places)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def scorers() -> dict[str, Scorer]:
    """verl's scorers of mathematics, each asked in the way that it documents."""
    found = importlib.util.find_spec("verl")
    if found is None or found.submodule_search_locations is None:
        raise SystemExit("this environment lacks verl: pip install --no-deps verl (and sympy, pylatexenc)")
    folder = Path(found.submodule_search_locations[0]) / "utils/reward_score"
    # prime_math takes its timeout from the package; the limit here takes its place.
    functional = types.ModuleType("verl.utils.py_functional")
    functional.timeout_limit = lambda *args, **options: lambda function: function  # type: ignore[attr-defined]
    sys.modules |= {name: types.ModuleType(name) for name in ("verl", "verl.utils")}
    sys.modules["verl.utils.py_functional"] = functional
    dapo, hendrycks = load(folder, "math_dapo"), load(folder, "math_reward")
    verified, prime = load(folder, "math_verify"), load(folder, "prime_math")
    return {
        "verl math_verify": lambda answer, reference: (
            verified._verify_in_subprocess(rf"\boxed{{{reference}}}", rf"\boxed{{{answer}}}") > 0
        ),
        "verl math_dapo": lambda answer, reference: (
            dapo.compute_score(f"Answer: {answer}", reference)["score"] > 0
        ),
        "verl math_reward": lambda answer, reference: (
            hendrycks.compute_score(rf"\boxed{{{answer}}}", reference) > 0
        ),
        "verl prime_math": lambda answer, reference: bool(
            prime.compute_score(rf"\boxed{{{answer}}}", reference)[0]
        ),
    }


def limited(scorer: Scorer, answer: str, reference: str) -> bool | None:
    """The verdict; None where the scorer raised or took too long."""

    def stop(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return bool(scorer(answer, reference))
    except Exception:
        return None
    finally:
        signal.alarm(0)


def main() -> None:
    """Score all pairs by all scorers."""
    pairs = [json.loads(line) for line in sys.stdin]
    report = {}
    for name, scorer in scorers().items():
        limited(scorer, "1/2", r"\frac{1}{2}")  # imports
        started = time.perf_counter()
        verdicts = [limited(scorer, pair["answer"], pair["reference"]) for pair in pairs]
        report[name] = {"verdicts": verdicts, "seconds": time.perf_counter() - started}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
