"""Thresholds of the health rules of `laser train`; algorithm/health.py has the rules."""

from typing import Annotated

from pydantic import Field

from orchestrator.config.schema import PositiveFloat, PositiveInt, Section

ShareOfEarlier = Annotated[float, Field(gt=0, lt=1)]


class HealthConfig(Section):
    """When a run's numbers are unhealthy. Each threshold may be null, which switches its rule off."""

    window: PositiveInt = 10
    """Steps over whose mean each rule judges."""
    accuracy: ShareOfEarlier | None = 0.5
    """Unhealthy below this share of the best accuracy so far."""
    entropy: PositiveFloat | None = 0.01
    """Unhealthy below this entropy, in nats."""
    length: ShareOfEarlier | None = 0.2
    """Unhealthy below this share of the first steps' response length."""
    score: PositiveFloat | None = 0.75
    """Unhealthy where the mean score of wrong solutions is further from 0. A head that has only learned how
    many solutions are right scores all of them with the accuracy."""
    z_mass: PositiveFloat | None = 0.01
    """Unhealthy above this mean probability of z_c before EOS."""
    mismatch: Annotated[float, Field(gt=1)] | None = 10.0
    """Unhealthy above this multiple of the first steps' engine-learner KL."""
    stop: bool = False
    """End the run, after a checkpoint, when a rule is broken; otherwise it is only shown."""

    @property
    def thresholds(self) -> dict[str, float | None]:
        """The thresholds by the rules' names."""
        return {
            "accuracy": self.accuracy,
            "entropy": self.entropy,
            "length": self.length,
            "score": self.score,
            "z_mass": self.z_mass,
            "mismatch": self.mismatch,
        }
