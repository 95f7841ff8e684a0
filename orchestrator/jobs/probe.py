"""Tells, as a job of the cluster, which of our requirements its image does not meet.

It runs where our packages may be missing: the standard library and `packaging`, which comes with Ray, have to do.
"""

import json
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution, requires

from packaging.requirements import Requirement

MARK = "laser-requirements: "


def unmet(requirements: Iterable[str], extra: str = "") -> list[str]:
    """Those that no installed distribution satisfies; of a distribution's extras (`ray[tune]`) those of its own requirements.

    Args:
        requirements: As in a distribution's metadata.
        extra: Also consider those that only this extra asks for.
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


def report(distribution_name: str) -> dict[str, list[str]]:
    """Unmet requirements: those of everybody under `all`, and those of an engine on CPU and on GPU, of which either does."""
    wanted = requires(distribution_name) or []
    common = unmet(wanted)
    return {"all": common} | {
        extra: [name for name in unmet(wanted, extra) if name not in common] for extra in ("cpu", "gpu")
    }


if __name__ == "__main__":
    print(MARK + json.dumps(report("laser-orchestrator")))
