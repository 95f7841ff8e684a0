"""Failures after a command has started, as errors that say what to do; and the folder of Ray's logs."""

import contextlib
from collections.abc import Callable, Iterator

from ray.exceptions import RayError

from orchestrator.errors import ConfigError, PoolError, RunError
from orchestrator.pools.memory_kill import MemoryKill, general_advice, memory_kill

LOGS = "/tmp/ray/session_latest/logs"


@contextlib.contextmanager
def translated_failures(
    resume: str,
    also: tuple[type[Exception], ...] = (),
    reached: Callable[[], str] = lambda: "",
    advice: Callable[[MemoryKill], list[str]] = general_advice,
) -> Iterator[None]:
    """Turn failures of actors and of the disk into errors for the user.

    Args:
        resume: What the same command does next, such as "the same command resumes from the last checkpoint".
        also: Exceptions that mean a failed actor, in addition to Ray's.
        reached: Called when an actor has failed. Says how far the work had come, such as " after step 12 was
            saved".
        advice: Called when memory ran out. Says what was planned, and what to lower.

    Raises:
        RunError: In place of RayError and OSError; and of ConfigError, because the command has started.
    """
    try:
        yield
    except ConfigError as error:
        raise RunError(str(error)) from error
    except PoolError as error:
        if kill := memory_kill(error.__cause__):
            raise PoolError(_told(kill, advice(kill), reached(), resume)) from error
        raise
    except (RayError, *also) as error:
        if kill := memory_kill(error):
            raise RunError(_told(kill, advice(kill), reached(), resume)) from error
        message = f"{str(error).strip()}\nAn actor failed{reached()}. Its log is in {LOGS}; {resume}."
        raise RunError(message) from error
    except OSError as error:
        raise RunError(f"{error}. Is the disk full? Correct the cause; then {resume}.") from error


def _told(kill: MemoryKill, advice: list[str], reached: str, resume: str) -> str:
    """Three lines: who, and how much; what was planned; what to lower."""
    return "\n".join([f"out of memory{reached}: {kill.told()}", *advice]) + f"; then {resume}"
