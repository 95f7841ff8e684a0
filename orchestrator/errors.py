"""Errors that are the user's to mend: the command line prints their message without a traceback.

A message says what is wrong, where (file and key, or problem id), and what to do.
"""


class LaserError(Exception):
    """Something the user can mend. Raised before anything starts it ends the command with status 2."""


class ConfigError(LaserError):
    """The configuration, or a model folder that it names, cannot be used as it is."""


class DataError(LaserError):
    """A data file is missing or a line of it cannot be used."""


class RunError(LaserError):
    """A run that had started cannot continue."""


class RunStopped(RunError):
    """A run ended because it was asked to, with a checkpoint."""


class PoolError(RunError):
    """A pool of actors could not be started, or failed more often than its restart budget allows."""
