"""The methods that the driver calls on each kind of actor, as types.

Ray's actor handles are untyped. These Protocols say which methods `RolloutWorker`,
`VerificationWorker` and `LearnerRank` must offer, and so must every stand-in for one of them.
"""

from collections.abc import Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

from ray import ObjectRef

from orchestrator.messages.batches import StepSums, StreamedRound, TrainBatch
from orchestrator.messages.problems import Problem
from orchestrator.messages.requests import GroupRequest
from orchestrator.messages.spans import Span
from orchestrator.messages.trajectories import GroupSummary, Trajectories
from orchestrator.messages.verdicts import Verdict
from orchestrator.messages.weights import PublishedWeights

P = ParamSpec("P")
T_co = TypeVar("T_co", covariant=True)


class RemoteMethod(Protocol[P, T_co]):
    """A method of an actor: `actor.method.remote(...)` returns a ref to its value at once."""

    def remote(self, *arguments: P.args, **options: P.kwargs) -> "ObjectRef[T_co]": ...


class WorkerHandle(Protocol):
    """Any actor of a pool."""

    @property
    def ping(self) -> RemoteMethod[[], Any]:
        """Returns once the actor has started."""


class EngineHandle(WorkerHandle, Protocol):
    """A worker of the rollout pool: `RolloutWorker`."""

    @property
    def generate(self) -> RemoteMethod[[GroupRequest], tuple[Trajectories, list[str], GroupSummary]]: ...

    @property
    def score(self) -> RemoteMethod[[Sequence[int]], float]: ...

    @property
    def load_weights(self) -> RemoteMethod[[int, list[ObjectRef]], Span]: ...

    @property
    def first_token_age(self) -> RemoteMethod[[], float | None]: ...

    @property
    def sleep(self) -> RemoteMethod[[], None]: ...

    @property
    def wake(self) -> RemoteMethod[[int, list[ObjectRef]], Span]: ...


class VerifierHandle(WorkerHandle, Protocol):
    """A worker of the verification pool: `VerificationWorker`."""

    @property
    def verify(self) -> RemoteMethod[[list[str], list[bool], Problem], list[Verdict]]: ...

    @property
    def pool_answers(self) -> RemoteMethod[[list[str], str | None], list[int]]: ...

    @property
    def pooling_stats(self) -> RemoteMethod[[], dict[str, int]]: ...


class RankHandle(WorkerHandle, Protocol):
    """A learner rank: `LearnerRank`.

    All methods but `ping`, `open_store` and `gpu_ids` are collective: call them on every rank.
    """

    @property
    def open_store(self) -> RemoteMethod[[], tuple[str, int]]: ...

    @property
    def gpu_ids(self) -> RemoteMethod[[], list[int]]: ...

    @property
    def setup(self) -> RemoteMethod[[str, int], int]: ...

    @property
    def step(self) -> RemoteMethod[[TrainBatch], StepSums]: ...

    @property
    def stream(self) -> RemoteMethod[[StreamedRound], None]: ...

    @property
    def reserve(self) -> RemoteMethod[[int], bool]: ...

    @property
    def publish(self) -> RemoteMethod[[str, int], PublishedWeights]: ...

    @property
    def release_device(self) -> RemoteMethod[[], None]: ...

    @property
    def take_device(self) -> RemoteMethod[[], None]: ...

    @property
    def save(self) -> RemoteMethod[[str], None]: ...

    @property
    def load(self) -> RemoteMethod[[str, int], None]: ...

    @property
    def export(self) -> RemoteMethod[[str], None]: ...
