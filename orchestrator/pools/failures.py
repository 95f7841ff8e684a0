"""Failures after a command has started, as errors that say what to do; and the folder of Ray's logs."""

import contextlib
from collections.abc import Callable, Iterator

from ray.exceptions import RayError

from orchestrator.errors import ConfigError, RunError

LOGS = "/tmp/ray/session_latest/logs"


@contextlib.contextmanager
def translated_failures(
    resume: str, also: tuple[type[Exception], ...] = (), reached: Callable[[], str] = lambda: ""
) -> Iterator[None]:
    """Turn failures of actors and of the disk into errors for the user.

    Args:
        resume: What the same command does next, such as "the same command resumes from the last checkpoint".
        also: Exceptions that mean a failed actor, in addition to Ray's.
        reached: Called when an actor has failed. Says how far the work had come, such as " after step 12 was
            saved".

    Raises:
        RunError: In place of RayError and OSError; and of ConfigError, because the command has started.
    """
    try:
        yield
    except ConfigError as error:
        raise RunError(str(error)) from error
    except (RayError, *also) as error:
        message = f"{str(error).strip()}\nAn actor failed{reached()}. Its log is in {LOGS}; {resume}."
        raise RunError(message) from error
    except OSError as error:
        raise RunError(f"{error}. Is the disk full? Correct the cause; then {resume}.") from error
