"""Settings of the check of answers, in training and evaluation. Imports neither torch nor Ray."""

from typing import Annotated

from orchestrator.config.schema import (
    ActorCount,
    CustomResources,
    Mark,
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
)
from orchestrator.config.verifiers import VerifierChoice, verifier_text


class VerificationConfig(Section):
    """The check of answers against the references."""

    num_workers: Annotated[ActorCount, Mark.MAY_CHANGE] = 1
    """Actors that check answers."""
    timeout_s: Annotated[PositiveFloat, Mark.MAY_CHANGE] = 10.0
    """Seconds that one check may take; then its process is killed and the status is `timeout`."""
    memory_mib: Annotated[PositiveInt | None, Mark.MAY_CHANGE] = 2048
    """MiB that one check may take beyond what its process holds before it; then the status is `memory`. null
    sets no limit. The checks of an `async` verifier share one process, and have none."""
    cpus: Annotated[Share, Mark.MAY_CHANGE] = 1.0
    """CPUs that a worker reserves; fractions share a CPU."""
    resources: Annotated[CustomResources, Mark.MAY_CHANGE] = {}
    """Custom resources that a worker reserves."""
    verifier: VerifierChoice = "math"
    """What checks an answer: a name, an import path, or a mapping of `name` and settings; docs/tasks.md lists
    them. A run that resumes without naming one keeps its own."""
    named: dict[str, VerifierChoice] = {}
    """Verifiers that a row may choose by these names in its field `verifier`."""

    @property
    def verifier_text(self) -> str:
        """The canonical text of `verifier`."""
        return verifier_text(self.verifier, "verification.verifier")

    @property
    def verifier_texts(self) -> list[str]:
        """The canonical texts of `verifier` and of those in `named`."""
        return [self.verifier_text, *(verifier_text(choice, name) for name, choice in self.named.items())]

    @property
    def verifier_name(self) -> str:
        """The verifier's name for users."""
        return self.verifier if isinstance(self.verifier, str) else str(self.verifier["name"])
