"""The verifier `judge`: a language model marks the response, behind an OpenAI-compatible endpoint.

In: a response and its problem. Out: a `Verdict` with the mark as reward. An endpoint that is away, a reply
without a mark and a spent budget are an `error`, and never a reward of 0.
"""

import asyncio
import hashlib
import os
import random
import re
import tempfile
import time
from pathlib import Path
from string import Formatter
from typing import Any

import httpx

from actors.budget import SHARE_VARIABLE, BudgetShare, JudgeBudget
from actors.verifiers.stated import row_field
from orchestrator.config.verifiers import JudgeSettings, settings_text
from orchestrator.errors import ConfigError
from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import Status, Verdict

_FIRST_PAUSE_S = 0.5
"""Mean pause before the second request of a check; each further one is twice as long."""
_LONGEST_PAUSE_S = 20.0
AWAY_S = 5.0
"""After a check has found the endpoint away, others make one request each for so long."""
MESSAGE_TOKENS = 64
"""Tokens that a chat template puts around a request, at most."""
_SHOWN = 200
_BUSY = (408, 409, 425, 429)
_FIELDS = ("problem", "reference", "response")


class _Failed(Exception):
    """A request gave no reply."""

    def __init__(self, reason: str, again: bool, pause_s: float | None = None) -> None:
        super().__init__(reason)
        self.again = again
        """Whether another request may succeed."""
        self.pause_s = pause_s
        """What the endpoint asked to wait."""


class JudgeVerifier:
    """The verifier `judge`. One object, in one event loop, serves all checks of a child process.

    Raises:
        ConfigError: The prompt names an unknown field, or `score_pattern` has not one group.
    """

    def __init__(self, settings: JudgeSettings) -> None:
        self.settings = settings
        self._parts = _parts_of(settings.prompt)
        try:
            self._score = re.compile(settings.score_pattern)
        except re.error as error:
            raise ConfigError(
                f"verifier 'judge', score_pattern: is no regular expression ({error})"
            ) from error
        if self._score.groups != 1:
            raise ConfigError("verifier 'judge', score_pattern: needs exactly one group, around the mark")
        self._client: httpx.AsyncClient | None = None
        self._room: asyncio.Semaphore | None = None
        self._away_until = 0.0
        self._given_up_until = 0.0
        self._ledger: JudgeBudget | None = None

    async def __call__(self, response: str, problem: Problem) -> Verdict:
        prompt = self._prompt(response, problem)
        best = self.settings.best_score
        reason = ""
        for number in range(self.settings.tries):
            pause_s = self._pause(number)
            try:
                reply = await self._ask(prompt)
                mark = self._mark(reply)
                if mark is not None:
                    detail = f"mark {mark:g} of {best:g}: {_short(reply)}"
                    return Verdict(Status.WRONG, None, detail, reward=mark / best)
                reason = f"its reply holds no mark from 0 to {best:g}: {_short(reply)}"
            except _Failed as error:
                reason = str(error)
                if not error.again:
                    break
                if error.pause_s is not None:
                    pause_s = min(error.pause_s, _LONGEST_PAUSE_S) * random.uniform(1.0, 1.25)
            was_away = time.monotonic() < self._away_until
            if was_away and number + 1 == self.settings.tries:
                self._given_up_until = time.monotonic() + AWAY_S
            if number + 1 == self.settings.tries or time.monotonic() < self._given_up_until:
                break
            await asyncio.sleep(pause_s)
        return Verdict(Status.ERROR, None, f"judge {self.settings.model}: {reason}")

    async def _ask(self, prompt: str) -> str:
        """The reply to one request.

        Raises:
            _Failed: There is none.
        """
        settings = self.settings
        if self._client is None or self._room is None:
            limits = httpx.Limits(max_connections=settings.in_flight)
            self._client = httpx.AsyncClient(limits=limits, timeout=httpx.Timeout(None, connect=10.0))
            self._room = asyncio.Semaphore(settings.in_flight)
        # A token is at least one byte, so the request cannot cost more.
        most = len(prompt.encode()) + MESSAGE_TOKENS + settings.max_reply_tokens
        async with self._room:
            if (refusal := self._budget().take(most)) is not None:
                raise _Failed(refusal, again=False)
            try:
                answer = await self._client.post(
                    f"{settings.base_url.rstrip('/')}/chat/completions",
                    headers=self._headers(),
                    json={
                        "model": settings.model,
                        "messages": [{"role": "user", "content": prompt}],
                        "temperature": settings.temperature,
                        "max_tokens": settings.max_reply_tokens,
                    },
                )
            except httpx.HTTPError as error:
                if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                    self._away_until = time.monotonic() + AWAY_S
                raise _Failed(f"{type(error).__name__}: {error}", again=True) from error
        return self._reply(answer, most)

    def _reply(self, answer: httpx.Response, most: int) -> str:
        """The text of an answer; its tokens are counted."""
        if answer.status_code != 200:
            again = answer.status_code in _BUSY or answer.status_code >= 500
            reason = f"status {answer.status_code}: {_short(answer.text)}"
            raise _Failed(reason, again, _seconds(answer.headers.get("retry-after")))
        try:
            tree = answer.json()
            text = tree["choices"][0]["message"]["content"]
            used = (tree.get("usage") or {}).get("total_tokens")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise _Failed(f"its answer is no chat completion: {_short(answer.text)}", again=True) from error
        if isinstance(used, int) and used >= 0:
            self._budget().correct(most, used)
        if not isinstance(text, str):
            raise _Failed("its reply has no text", again=True)
        return text

    def _headers(self) -> dict[str, str]:
        key = os.environ.get(self.settings.key_variable)
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _mark(self, reply: str) -> float | None:
        found = self._score.findall(reply)
        try:
            mark = float(found[-1]) if found else None
        except ValueError:
            return None
        return mark if mark is not None and 0 <= mark <= self.settings.best_score else None

    def _pause(self, number: int) -> float:
        """Seconds before the next request, drawn at random so that checks do not ask all at once."""
        return min(_FIRST_PAUSE_S * 2**number, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.5)

    def _budget(self) -> JudgeBudget:
        if self._ledger is None:
            text = os.environ.get(SHARE_VARIABLE)
            folder = Path(tempfile.gettempdir()) / f"laser-budget-{os.getpid()}"
            share = BudgetShare(folder) if text is None else BudgetShare.from_text(text)
            name = hashlib.sha256(settings_text(self.settings).encode()).hexdigest()[:16]
            self._ledger = JudgeBudget(
                share.folder / f"{name}-{share.index}",
                share.part_of(self.settings.max_requests),
                share.part_of(self.settings.max_tokens),
            )
        return self._ledger

    def _prompt(self, response: str, problem: Problem) -> str:
        texts = {"problem": problem.text, "reference": problem.reference or "", "response": response}
        filled = []
        for literal, name in self._parts:
            filled.append(literal)
            if name is not None:
                value = texts[name] if name in texts else row_field(problem, name.removeprefix("field."))
                filled.append("" if value is None else str(value))
        return "".join(filled)


def _parts_of(prompt: str) -> list[tuple[str, str | None]]:
    """The texts of a prompt, each with the name of the field after it."""
    try:
        parts = [(literal, name) for literal, name, _, _ in Formatter().parse(prompt)]
    except ValueError as error:
        raise ConfigError(f"verifier 'judge', prompt: {error}; write {{{{ and }}}} for braces") from error
    for _, name in parts:
        if name is not None and name not in _FIELDS and not name.startswith("field."):
            raise ConfigError(
                f"verifier 'judge', prompt: {{{name}}} is not known; use {{problem}}, {{reference}}, "
                "{response} or {field.NAME}, and {{ and }} for braces"
            )
    return parts


def _seconds(text: Any) -> float | None:
    try:
        return max(0.0, float(text))
    except (TypeError, ValueError):
        return None


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"...{text[-_SHOWN:]}"
