"""The thread that decodes, without an engine."""

import queue
from concurrent.futures import Future

from actors.engine import Engine


def test_the_decoding_thread_survives_cancelled_callers():
    """A command that is cancelled before its turn does not run. One cancelled in its turn ends normally."""
    engine_, done, futures = object.__new__(Engine), [], [Future() for _ in range(3)]
    engine_._commands = queue.SimpleQueue()
    futures[0].cancel()
    actions = [lambda: done.append(0), lambda: (futures[1].cancel(), done.append(1)), lambda: done.append(2)]
    for action, future in zip(actions, futures, strict=True):
        engine_._commands.put((action, future))
    engine_._run_commands(wait=True)
    assert done == [1, 2]
    assert futures[2].done()
