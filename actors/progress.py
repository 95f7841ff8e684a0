"""Counts what this process has done, and tells the driver once a second.

In: a call of `advance` for each piece of work. Out: `Progress` in the cluster's key-value store, from a
thread of its own, since the process may be busy for minutes. Each actor of a pool has one process. This
module imports Ray only where a process reports.
"""

import contextlib
import faulthandler
import os
import signal
import threading
import time

from orchestrator.messages.progress import NAMESPACE, Progress

REPORT_EVERY_S = 1.0
STACKS_SIGNAL = signal.SIGUSR2
"""On this signal a process that reports writes the stacks of its threads to its log."""
_ANSWER_S = 5.0


class _Work:
    count = 0
    doing = "start"


def advance(doing: str) -> None:
    """A piece of work is done.

    Args:
        doing: What it was, in words.
    """
    _Work.count += 1
    _Work.doing = doing


def report_progress() -> None:
    """Begin to tell the driver of this process's work. Does nothing outside an actor."""
    import ray

    if not ray.is_initialized() or (actor := ray.get_runtime_context().get_actor_id()) is None:
        return
    faulthandler.register(STACKS_SIGNAL, file=2)
    node = ray.get_runtime_context().get_node_id()
    threading.Thread(target=_report, args=(actor, node), name="progress", daemon=True).start()


def _report(actor: str, node: str) -> None:
    from ray.exceptions import RayError
    from ray.experimental.internal_kv import internal_kv_get_gcs_client

    beat = 0
    while (client := internal_kv_get_gcs_client()) is not None:
        told = Progress(_Work.count, beat, _Work.doing, os.getpid(), node)
        with contextlib.suppress(RayError):  # the next message may come through
            client.internal_kv_put(actor.encode(), told.to_bytes(), True, NAMESPACE, timeout=_ANSWER_S)
        beat += 1
        time.sleep(REPORT_EVERY_S)
