"""The requests that clients may send: OpenAI's chat completions with our field `laser`, and `/v1/score`.

In: the bytes of a body. Out: a `ChatRequest` or `ScoreRequest`, or an `ApiError` 400 that names the field. A
field that is not supported is refused, never ignored.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from orchestrator.serving.errors import malformed

TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class Body(BaseModel):
    """A JSON object of a request; unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


B = TypeVar("B", bound=Body)


class TextPart(Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(Body):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, content: Any) -> Any:
        """The text of content that comes in parts, all of which must be text."""
        return (
            "".join(TextPart.model_validate(part).text for part in content)
            if isinstance(content, list)
            else content
        )


class Adaptive(Body):
    """Draw solutions until the vote is settled."""

    confidence: Annotated[float, Field(gt=0.5, le=1)] = 0.9
    max_samples: Annotated[int, Field(ge=1)] = 16
    min_samples: Annotated[int, Field(ge=1)] = 1
    parallel: Annotated[int, Field(ge=1)] = 1
    """Solutions drawn at a time: more settle the vote sooner, but may draw some that it does not need."""

    @model_validator(mode="after")
    def _ordered(self) -> "Adaptive":
        if self.min_samples > self.max_samples:
            raise ValueError(f"min_samples is {self.min_samples}, more than max_samples={self.max_samples}")
        return self


class Vote(Body):
    """The field `laser`: one answer from several solutions, by a vote over `n` or by adaptive sampling."""

    vote: Literal["weighted", "majority"] = "weighted"
    """Whether votes weigh their self-rewards clipped to [0, 1], or 1 each."""
    n: Annotated[int, Field(ge=1)] | None = None
    adaptive: Adaptive | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> "Vote":
        if (self.n is None) == (self.adaptive is None):
            raise ValueError("give either n (a vote over n samples) or adaptive")
        return self

    @property
    def most_samples(self) -> int:
        """The most solutions that the vote may draw."""
        return self.adaptive.max_samples if self.adaptive else self.n or 0


class StreamOptions(Body):
    """OpenAI's `stream_options`."""

    include_usage: bool = False


class ChatRequest(Body):
    """`POST /v1/chat/completions`."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    n: Annotated[int, Field(ge=1)] = 1
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)] = []
    logprobs: bool = False
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    laser: Vote | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, tree: Any) -> Any:
        return (
            {key: value for key, value in tree.items() if value is not None}
            if isinstance(tree, dict)
            else tree
        )

    @field_validator("stop", mode="before")
    @classmethod
    def _list(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @model_validator(mode="after")
    def _agrees(self) -> "ChatRequest":
        if self.messages[-1].role == "assistant":
            raise ValueError(
                "messages: the last one is the assistant's; the service answers a user's message and "
                "continues no answer"
            )
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        if self.laser and (self.stream or self.n > 1 or self.logprobs):
            raise ValueError(
                "laser: a vote gives one choice after all samples are drawn; leave out stream, logprobs and "
                "n above 1"
            )
        return self

    @property
    def most_tokens(self) -> int | None:
        """The most tokens that a response may have; None leaves it to the service."""
        return self.max_completion_tokens or self.max_tokens


class ProblemItem(Body):
    """A problem and its solution as text."""

    problem: str
    solution: str


class MessagesItem(Body):
    """A conversation; its last message is the solution."""

    messages: Annotated[list[Message], Field(min_length=2)]

    @field_validator("messages")
    @classmethod
    def _ends_with_a_solution(cls, messages: list[Message]) -> list[Message]:
        if messages[-1].role != "assistant":
            raise ValueError(
                f"the last message must be the assistant's solution, but is the {messages[-1].role}'s"
            )
        return messages


class TokensItem(Body):
    """Token ids, taken as they are; a response without EOS at its end is unfinished and has no score."""

    prompt_token_ids: TokenIds
    response_token_ids: TokenIds


_KINDS: dict[str, type[Body]] = {"messages": MessagesItem, "tokens": TokensItem, "text": ProblemItem}


def _kind(item: Any) -> str | None:
    """The kind of an item, by its keys, so that an error names the fields of that kind."""
    keys = set(item if isinstance(item, dict) else vars(item) if isinstance(item, Body) else ())
    return next((kind for kind, schema in _KINDS.items() if keys & set(schema.model_fields)), None)


Item = Annotated[
    Annotated[ProblemItem, Tag("text")]
    | Annotated[MessagesItem, Tag("messages")]
    | Annotated[TokensItem, Tag("tokens")],
    Discriminator(
        _kind,
        custom_error_type="item",
        custom_error_message="give problem and solution, messages, or prompt_token_ids and "
        "response_token_ids",
    ),
]


class ScoreRequest(Body):
    """`POST /v1/score`; `model` may be left out where only one is served."""

    model: str | None = None
    items: Annotated[list[Item], Field(min_length=1)]


def parse(body: bytes, schema: type[B]) -> B:
    """The request in a body.

    Raises:
        ApiError: 400; the message names the first field that is wrong.
    """
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
    path = list(problem["loc"])
    if path[:1] == ["items"] and path[2:3]:
        del path[2]  # The item's kind is no key of the body.
    param = ".".join(map(str, path)) or None
    if problem["type"] == "json_invalid":
        raise malformed(f"the body is no JSON: {problem['msg'].removeprefix('Invalid JSON: ')}")
    if param is None and problem["type"] == "model_type":
        raise malformed(
            'the body is no JSON object: send one, such as {"items": [...]} or {"messages": [...]}'
        )
    if problem["type"] == "extra_forbidden":
        raise malformed(f"{param} is not supported by this service; leave it out", param)
    raise malformed(f"{param + ': ' if param else ''}{problem['msg'].removeprefix('Value error, ')}", param)
