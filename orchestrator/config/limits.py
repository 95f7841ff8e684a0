"""Upper bounds of numbers that only a slip of the pen exceeds. The manual leaves them out."""

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

MOST = 10**9
"""The largest count of anything: more would fill the memory before anything is refused."""
MOST_ACTORS = 10_000
"""The largest pool."""
MOST_SAMPLES = 10**7
"""Samples of a step that one driver can hold."""


def at_most(most: float) -> AfterValidator:
    """Refuses larger numbers in the words of the schema."""

    def check(value: float) -> float:
        if value > most:
            raise PydanticCustomError("less_than_equal", "too large", {"le": most})
        return value

    return AfterValidator(check)
