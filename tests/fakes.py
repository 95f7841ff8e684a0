"""Fakes of the actors of a run: an engine, a learner rank and a verifier that share one fake GPU.

They are fakes because a machine without a GPU cannot make a real engine or rank run out of GPU memory, and
because a test must choose the moment at which an actor dies. `Pools` takes the classes as `WorkerClasses`;
everything else in such a test is real: Ray, its placement group, the pools and the order of their calls. Real
engines and ranks take turns in tests/end_to_end/test_train.py.
"""

import os
import sys
import time
from pathlib import Path

import ray

from orchestrator.messages.weights import PublishedWeights
from orchestrator.pools.training import WorkerClasses

# Workers cannot import a module of the tests.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@ray.remote(num_cpus=0)
class FakeGpu:
    """The memory of one GPU: engines or learner ranks hold it, never both, until they release it or die.

    Records what happens, in order. Start it with the name `gpu`.
    """

    def __init__(self):
        self.holders = {}
        self.events = []
        self.deaths = set()

    def take(self, kind, name, process):
        deadline = time.monotonic() + 10
        while others := [
            other
            for other, (held_by, pid) in self.holders.items()
            if held_by != kind and Path(f"/proc/{pid}").exists()
        ]:
            if time.monotonic() > deadline:
                raise MemoryError(f"{name} wants the GPU while {others} hold it")
            time.sleep(0.1)  # a killed process takes a moment to die
        self.holders[name] = kind, process
        self.events.append(f"{name} takes")

    def release(self, name):
        self.holders.pop(name, None)
        self.events.append(f"{name} gives")

    def note(self, event):
        self.events.append(event)

    def history(self):
        return self.events

    def kill_next(self, method):
        """The next engine that enters this method dies."""
        self.deaths.add(method)

    def dies(self, method, name):
        """Whether the caller must die now, in this method."""
        if method not in self.deaths:
            return False
        self.deaths.discard(method)
        self.events.append(f"{name} dies")
        return True


def gpu():
    """The handle of the fake GPU."""
    return ray.get_actor("gpu")


class FakeRank:
    """A learner rank that holds its GPU from its start, and learns nothing."""

    def __init__(self, settings, rank):
        self.name = f"rank {rank}"
        ray.get(gpu().take.remote("learner", self.name, os.getpid()))

    def open_store(self):
        return "127.0.0.1", 1

    def setup(self, address, port):
        if ray.get(gpu().dies.remote("setup", self.name)):
            os._exit(1)
        return 0

    def gpu_ids(self):
        return [3]

    def ping(self):
        return 0

    def release_device(self):
        ray.get(gpu().release.remote(self.name))

    def take_device(self):
        ray.get(gpu().take.remote("learner", self.name, os.getpid()))

    def step(self, batch):
        ray.get(gpu().note.remote(f"{self.name} learns"))

    def publish(self, dtype, chunk_bytes):
        return PublishedWeights(["chunk"], 5)


class FakeEngine:
    """An engine that holds the GPU of its learner rank from its start. Its name says which GPU it sees."""

    def __init__(self, settings):
        device = os.environ.get("CUDA_VISIBLE_DEVICES")
        self.name = f"engine on {device or 'its own'}"
        if device:
            ray.get(gpu().take.remote("engine", self.name, os.getpid()))

    async def ping(self):
        return 0

    async def first_token_age(self):
        return None

    async def load_weights(self, version, chunks):
        await self._die_if_chosen("load_weights")
        await gpu().note.remote(f"{self.name} loads {version}")

    async def sleep(self):
        await self._die_if_chosen("sleep")
        await gpu().release.remote(self.name)

    async def wake(self, version, chunks):
        await self._die_if_chosen("wake")
        await gpu().take.remote("engine", self.name, os.getpid())
        await gpu().note.remote(f"{self.name} loads {version}")

    async def _die_if_chosen(self, method):
        if await gpu().dies.remote(method, self.name):
            os._exit(1)


class FakeVerifier:
    """A verifier that has started; nothing is verified."""

    def __init__(self, *settings):
        pass

    def ping(self):
        return True


FAKES = WorkerClasses(engine=FakeEngine, verifier=FakeVerifier, rank=FakeRank)
