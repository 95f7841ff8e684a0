"""The ingress's calls, with a replica whose outcomes the test chooses."""

import asyncio
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError, TaskCancelledError
from ray.serve.exceptions import BackPressureError

from orchestrator.config.serving import Limits
from orchestrator.serving.calls import Replicas
from orchestrator.serving.errors import ApiError
from orchestrator.serving.metrics import IngressMetrics


class FakeCall:
    """A response of Ray Serve: a value, an error to raise, or (a class) something to wait for in vain."""

    def __init__(self, outcome):
        self.outcome, self.cancelled = outcome, False

    def __await__(self):
        return self.result().__await__()

    async def result(self):
        if isinstance(self.outcome, type):
            await self.outcome().wait()
        if isinstance(self.outcome, Exception) and not isinstance(self.outcome, ApiError):
            raise self.outcome
        return self.outcome

    def cancel(self):
        self.cancelled = True


class TestAsk:
    def ask(self, *outcomes, deadline_s=5.0):
        outcomes = iter(outcomes)
        self.calls = []
        self.metrics = IngressMetrics()

        def remote(body):
            self.calls.append(FakeCall(next(outcomes)))
            return self.calls[-1]

        handle = SimpleNamespace(score=SimpleNamespace(remote=remote))
        replicas = Replicas(
            Limits(deadline_s=deadline_s), self.metrics, lambda application, deployment: handle
        )

        async def run():
            with replicas.call("score", "m") as call:
                return await replicas.ask(call, "score", "body")

        return asyncio.run(run())

    def status(self, *outcomes, **more):
        with pytest.raises(ApiError) as caught:
            self.ask(*outcomes, **more)
        assert self.metrics.total_in_flight() == 0
        return caught.value.status

    def test_another_replica_is_asked_once_when_one_dies(self):
        assert self.ask(RayActorError(), "scores") == "scores"
        assert self.status(RayActorError(), RayActorError()) == 503
        assert len(self.calls) == 2

    def test_a_full_queue_is_429_with_a_time_to_come_back_and_not_asked_again(self):
        assert self.status(BackPressureError(8, 8)) == 429
        assert len(self.calls) == 1

    def test_a_late_answer_is_504_and_its_work_is_taken_back(self):
        assert self.status(asyncio.Event, deadline_s=0.05) == 504
        assert self.calls[0].cancelled

    def test_a_client_that_leaves_is_no_failure_of_the_service(self):
        with pytest.raises(TaskCancelledError):
            self.ask(TaskCancelledError())
        text = self.metrics.text()
        assert 'laser_requests_total{endpoint="score",model="m",status="499"} 1.0' in text
        assert self.metrics.total_in_flight() == 0

    def test_a_refusal_of_the_replica_is_the_answer(self):
        assert self.status(ApiError(422, "too long")) == 422
