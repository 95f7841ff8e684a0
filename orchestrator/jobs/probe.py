"""Runs as a job of the cluster and prints which of our requirements its image lacks.

Our packages may be missing there, so this module needs only the standard library and `packaging`, which Ray
needs.
"""

import json
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution, requires

from packaging.requirements import Requirement

REQUIREMENTS_MARK = "laser-requirements: "
"""Start of the line that holds the result."""


def unmet(requirements: Iterable[str], extra: str = "") -> list[str]:
    """The requirements that no installed distribution satisfies.

    For a requirement with extras (`ray[tune]`) these include the extras' own requirements.

    Args:
        requirements: Requirements as in a distribution's metadata.
        extra: An extra whose requirements count too.
    """
    missing = []
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        requirement.marker = None
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:
            missing.append(str(requirement))
            continue
        if not requirement.specifier.contains(found.version, prereleases=True):
            missing.append(str(requirement))
        for name in requirement.extras:
            missing += [other for other in unmet(found.requires or (), name) if other not in missing]
    return missing


def unmet_by_kind(distribution_name: str) -> dict[str, list[str]]:
    """Unmet requirements of a distribution.

    Returns:
        Those that every job needs under `all`, and those of vLLM's builds under `cpu` and `gpu`, of which one
        is enough.
    """
    wanted = requires(distribution_name) or []
    common = unmet(wanted)
    return {"all": common} | {
        extra: [name for name in unmet(wanted, extra) if name not in common] for extra in ("cpu", "gpu")
    }


if __name__ == "__main__":
    print(REQUIREMENTS_MARK + json.dumps(unmet_by_kind("laser-orchestrator")))
