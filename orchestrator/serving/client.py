"""A typed client of the service.

    with Client("http://127.0.0.1:8000", api_key="...") as client:
        client.score([Solved(problem="1+1=?", solution="\\\\boxed{2}")])[0].correct
        client.vote("1+1=?", n=8).text

The official `openai` client works too (examples/best_of_n.py); this client adds types for the fields that
OpenAI's schema does not have. It needs httpx only and imports nothing of the server, so its types follow the
JSON and not the server's classes. Calls to this machine never go through a proxy of the environment.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import httpx

from orchestrator.config.proxies import is_this_machine, proxy_variable
from orchestrator.errors import LaserError

LONGEST_WAIT_S = 60.0
"""The longest wait that an answer's `Retry-After` may ask for."""


class ServiceError(LaserError):
    """The service refused a request or failed.

    Attributes:
        status: HTTP status; 0 when the service did not answer.
        param: The field at fault.
        code: A word for programs.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(f"{message} (HTTP {status})")
        self.status = status
        self.param = param
        self.code = code


@dataclass(frozen=True)
class Solved:
    """A problem with a solution to score, as text."""

    problem: str
    solution: str


@dataclass(frozen=True)
class SolvedTokens:
    """A problem with a solution as token ids; a response that does not end in EOS has no score."""

    prompt_token_ids: list[int]
    response_token_ids: list[int]


@dataclass(frozen=True)
class ScoreReply:
    """The score of a solution; `score`, `logprob` and `correct` are None for an unfinished response."""

    score: float | None
    """Near 1 for a correct solution, near 0 for a wrong one."""
    logprob: float | None
    """Natural log pi(z_c | x, y, EOS)."""
    correct: bool | None
    """Whether the score is above 0.5."""
    finished: bool


@dataclass(frozen=True)
class Choice:
    """A sampled solution; `self_reward` is None when it did not finish or the model has no trained score."""

    text: str
    self_reward: float | None
    finish_reason: str


@dataclass(frozen=True)
class Voted:
    """The winner of a vote over several solutions.

    `text` is the solution with the highest self-reward of those that gave the winning `answer`.
    """

    text: str
    self_reward: float | None
    answer: str | None
    votes: dict[str, float]
    samples: int
    tokens: int
    settled: bool
    """Whether adaptive sampling stopped before its budget was spent; always True for a vote over n."""


class Client:
    """Calls the service.

    Args:
        url: The service's address, without `/v1`.
        api_key: The API key; None reads LASER_API_KEY.
        model: Name of the model; None means the only one that is served.
        timeout_s: Seconds that a request may take.
        retries: How often to repeat a request that a busy service (429) or one without a replica (503)
            refuses. The first retry waits for the answer's `Retry-After`, each later one once more as long.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        model: str | None = None,
        timeout_s: float = 310,
        retries: int = 3,
    ) -> None:
        key = api_key or os.environ.get("LASER_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = _http_client(url, headers, timeout_s)
        self._model = model
        self.retries = retries

    def models(self) -> list[str]:
        """Names of the served models. Raises ServiceError."""
        return [model["id"] for model in self._call("GET", "/v1/models")["data"]]

    def score(self, items: Sequence[Solved | SolvedTokens]) -> list[ScoreReply]:
        """A score for each item, in order.

        Raises:
            ServiceError: The service refuses the request or fails.
        """
        answer = self._call(
            "POST", "/v1/score", {"model": self.model, "items": [asdict(item) for item in items]}
        )
        return [ScoreReply(**result) for result in answer["results"]]

    def sample(self, problem: str, n: int = 1, **settings: Any) -> list[Choice]:
        """`n` solutions with their scores.

        Args:
            problem: The user's message.
            n: Number of solutions.
            settings: OpenAI's, such as temperature, max_tokens and seed.

        Raises:
            ServiceError: The service refuses the request or fails.
        """
        answer = self._chat(problem, n=n, **settings)
        return [
            Choice(choice["message"]["content"], choice["self_reward"], choice["finish_reason"])
            for choice in answer["choices"]
        ]

    def vote(self, problem: str, n: int = 8, weighted: bool = True, **settings: Any) -> Voted:
        """The winner of a vote over `n` solutions; `settings` and errors as for `sample`."""
        return self._voted(problem, {"vote": "weighted" if weighted else "majority", "n": n}, settings)

    def adaptive(
        self, problem: str, confidence: float = 0.9, max_samples: int = 16, parallel: int = 1, **settings: Any
    ) -> Voted:
        """The winner of a vote that stops when it is settled; `settings` and errors as for `sample`.

        Args:
            problem: The user's message.
            confidence: Probability, above 0.5, that the leading answer beats the second one.
            max_samples: The most solutions that are drawn.
            parallel: Solutions drawn at a time.
        """
        rule = {"confidence": confidence, "max_samples": max_samples, "parallel": parallel}
        return self._voted(problem, {"adaptive": rule}, settings)

    @property
    def model(self) -> str:
        """Name of the model that is called. Raises LaserError when several are served and none was given."""
        if self._model is None:
            names = self.models()
            if len(names) > 1:
                raise LaserError(f"the service has several models; give model=, one of {', '.join(names)}")
            self._model = names[0]
        return self._model

    def _voted(self, problem: str, laser: dict[str, Any], settings: dict[str, Any]) -> Voted:
        answer = self._chat(problem, laser=laser, **settings)
        choice = answer["choices"][0]
        return Voted(choice["message"]["content"], choice["self_reward"], **answer["laser"])

    def _chat(self, problem: str, **settings: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": problem}]
        return self._call(
            "POST", "/v1/chat/completions", {"model": self.model, "messages": messages, **settings}
        )

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        for attempt in range(self.retries + 1):
            try:
                response = self._http.request(method, path, json=body)
            except httpx.HTTPError as error:
                reason = f"no answer ({type(error).__name__}: {error})"
                raise ServiceError(0, f"{self._http.base_url}: {reason}{self._proxy_in_the_way()}") from error
            if response.status_code not in (429, 503) or attempt == self.retries:
                break
            time.sleep(_retry_after_s(response) * (attempt + 1))
        try:
            answer = response.json()
            if response.is_success:
                return answer
            refusal = answer["error"]
            message, param, code = refusal["message"], refusal.get("param"), refusal.get("code")
        except (ValueError, KeyError, TypeError):
            reason = f"the answer is not the service's ({response.text[:200]!r})"
            hint = self._proxy_in_the_way() or "; a proxy or another program answers at this address"
            raise ServiceError(response.status_code, f"{self._http.base_url}: {reason}{hint}") from None
        raise ServiceError(response.status_code, message, param, code)

    def _proxy_in_the_way(self) -> str:
        """What to say of the proxy that calls go through; empty without one."""
        url = self._http.base_url
        variable = proxy_variable(str(url))
        if variable is None:
            return ""
        return f"; a proxy is in the way, by {variable}: add {url.host} to no_proxy, or unset the variable"

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _http_client(url: str, headers: dict[str, str], timeout_s: float) -> httpx.Client:
    """A client that calls this machine directly, and other ones by the environment's proxies.

    Raises:
        LaserError: httpx cannot use the proxy.
    """

    def client(trust_env: bool) -> httpx.Client:
        return httpx.Client(base_url=url, headers=headers, timeout=timeout_s, trust_env=trust_env)

    if is_this_machine(url):
        return client(trust_env=False)
    try:
        return client(trust_env=True)
    except (ImportError, ValueError, httpx.InvalidURL) as error:  # httpx reads all proxies at once.
        variable = proxy_variable(url)
        if variable is None:
            return client(trust_env=False)
        raise LaserError(
            f"{variable}: httpx cannot use this proxy for {url} ({error}). For a SOCKS proxy run "
            f"`pip install httpx[socks]`; or add {httpx.URL(url).host} to no_proxy, or unset the variable"
        ) from error


def _retry_after_s(response: httpx.Response) -> float:
    """Seconds that an answer asks to wait; a proxy may send a date, or nothing."""
    try:
        return min(max(float(response.headers["Retry-After"]), 0.0), LONGEST_WAIT_S)
    except (KeyError, ValueError):
        return 1.0
