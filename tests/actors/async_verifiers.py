"""An `async` verifier, which the tests run in child processes by import path."""

import asyncio
import os
import time

from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import Status, Verdict


async def obey(response: str, problem: Problem) -> Verdict:
    """An `async` verifier that obeys the response."""
    if response.startswith("sleep"):
        await asyncio.sleep(float(response.split()[1]))
    if response == "block":
        time.sleep(60)
    if response == "deaf":
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue
    if response == "die":
        os._exit(3)
    if response == "raise":
        raise RuntimeError("no luck")
    return Verdict(Status.CORRECT)
