"""Errors that a user can fix: the command line prints their message without a traceback.

A message says what is wrong, where (file and key, or problem id), and what to do.
"""


class LaserError(Exception):
    """An error that the user can fix. Raised before anything starts, it ends the command with status 2."""


class ConfigError(LaserError):
    """The configuration, or a folder that it names, cannot be used."""


class LockError(LaserError):
    """Another process holds a lock for too long."""


class DataError(LaserError):
    """A data file is missing, or a line of it cannot be used."""


class RunError(LaserError):
    """A run that had started cannot continue. It ends the command with status 1."""


class RunStopped(RunError):
    """A run was asked to stop and has stopped after a checkpoint."""


class PoolError(RunError):
    """A pool of actors could not be started, or failed more often than its restart budget allows."""
