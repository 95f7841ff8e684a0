"""The requests that clients may send: OpenAI's chat completions with our field `laser`, and `/v1/score`.

In: the bytes of a body. Out: a `ChatRequest` or `ScoreRequest`, or an `ApiError` 400 that names the field. A
field that is not supported is refused unless its value asks for nothing (`serving.unsupported`).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from orchestrator.serving import unsupported
from orchestrator.serving.bodies import LONGEST_SHOWN, is_unicode, path_text, read_json
from orchestrator.serving.errors import malformed

TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class Body(BaseModel):
    """A JSON object of a request; null means the default, and unknown keys and NaN are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    lacking: ClassVar[Mapping[str, unsupported.AsksNothing]] = {}
    """Fields of other services that this one takes where their value asks for nothing."""

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_nothing(cls, tree: Any) -> Any:
        return unsupported.said(tree, cls.lacking, cls.model_fields)


B = TypeVar("B", bound=Body)


def _refusal(param: str, message: str) -> PydanticCustomError:
    """The error of a check that spans several fields, of which `param` is the one to change."""
    return PydanticCustomError("refused", "{message}", {"message": message, "param": param})


def _unicode(text: str) -> str:
    if not is_unicode(text):
        raise ValueError("the text has half of a surrogate pair, which is no character")
    return text


UnicodeText = Annotated[str, AfterValidator(_unicode)]


class TextPart(Body):
    """A part of a message's content."""

    lacking = unsupported.TEXT_PART

    type: Literal["text"]
    text: UnicodeText


def _kind_of_content(content: Any) -> str:
    return "<parts>" if isinstance(content, list) else "<text>"


def _joined(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


if TYPE_CHECKING:
    Content = str
else:
    Content = Annotated[
        Annotated[
            Annotated[UnicodeText, Tag("<text>")] | Annotated[list[TextPart], Tag("<parts>")],
            Discriminator(_kind_of_content),
        ],
        AfterValidator(_joined),
    ]
    """A text, or parts of one, which are joined."""


class Message(Body):
    """A turn of a conversation."""

    lacking = unsupported.MESSAGE

    role: Literal["system", "developer", "user", "assistant"]
    content: Content = ""

    @model_validator(mode="after")
    def _has_content(self) -> "Message":
        # OpenAI's answers may have null, when they call tools.
        if self.role != "assistant" and "content" not in self.model_fields_set:
            raise _refusal("content", f"the {self.role}'s message has no content")
        return self


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

    lacking = unsupported.STREAM_OPTIONS

    include_usage: bool = False


class ChatRequest(Body):
    """`POST /v1/chat/completions`."""

    lacking = unsupported.CHAT

    model: UnicodeText
    messages: Annotated[list[Message], Field(min_length=1)]
    n: Annotated[int, Field(ge=1)] = 1
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[Annotated[UnicodeText, Field(min_length=1)]], Field(max_length=4)] = []
    logprobs: bool = False
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    laser: Vote | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _list(cls, stop: Any) -> Any:
        return [stop] * bool(stop) if isinstance(stop, str) else stop

    @model_validator(mode="after")
    def _agrees(self) -> "ChatRequest":
        if self.messages[-1].role == "assistant":
            raise _refusal(
                f"messages[{len(self.messages) - 1}]",
                "the last message is the assistant's; the service answers a user's message and continues no "
                "answer",
            )
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise _refusal("max_tokens", "differs from max_completion_tokens; give one of them")
        if self.laser and (self.stream or self.n > 1 or self.logprobs):
            raise _refusal(
                "laser",
                "a vote gives one choice after all samples are drawn; leave out stream, logprobs and "
                "n above 1",
            )
        return self

    @property
    def most_tokens(self) -> int | None:
        """The most tokens that a response may have; None leaves it to the service."""
        return self.max_completion_tokens or self.max_tokens


class ProblemItem(Body):
    """A problem and its solution as text."""

    problem: UnicodeText
    solution: UnicodeText


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


_KINDS: dict[str, type[Body]] = {
    "<messages>": MessagesItem,
    "<tokens>": TokensItem,
    "<problem>": ProblemItem,
}
_TAGS = {"<text>", "<parts>", *_KINDS}
"""Words that pydantic puts into the path of an error, and that are no keys of the body."""


def _kind(item: Any) -> str | None:
    """The kind of an item, by its keys, so that an error names the fields of that kind."""
    tree = item if isinstance(item, dict) else vars(item) if isinstance(item, Body) else {}
    keys = {key for key, value in tree.items() if value is not None}
    return next((kind for kind, schema in _KINDS.items() if keys & set(schema.model_fields)), None)


Item = Annotated[
    Annotated[ProblemItem, Tag("<problem>")]
    | Annotated[MessagesItem, Tag("<messages>")]
    | Annotated[TokensItem, Tag("<tokens>")],
    Discriminator(
        _kind,
        custom_error_type="item",
        custom_error_message="give problem and solution, messages, or prompt_token_ids and "
        "response_token_ids",
    ),
]


class ScoreRequest(Body):
    """`POST /v1/score`; `model` may be left out where only one is served."""

    model: UnicodeText | None = None
    items: Annotated[list[Item], Field(min_length=1)]


def parse(body: bytes, schema: type[B]) -> B:
    """The request in a body.

    Raises:
        ApiError: 400; the message names the first field that is wrong.
    """
    try:
        return schema.model_validate(read_json(body))
    except ValidationError as error:
        problem = _most_telling(error.errors(include_url=False))
    context = problem.get("ctx", {})
    path = _without_tags(problem["loc"])
    param = path_text([*path, context["param"]] if "param" in context else path) or None
    if param is None and problem["type"] == "model_type":
        raise malformed(
            'the body is no JSON object: send one, such as {"items": [...]} or {"messages": [...]}'
        )
    if problem["type"] == "extra_forbidden":
        raise malformed(f"{param} is not supported by this service; leave it out", param)
    if problem["type"] == "model_type":
        raise malformed(f"{param}: Input should be a JSON object", param)
    role = problem["input"]
    if problem["type"] == "literal_error" and path[-1] == "role" and isinstance(role, str):
        advice = f"the service takes {context['expected']}: send the text as one of them, or leave it out"
        raise malformed(f"{param} is {role[:LONGEST_SHOWN]!r}; {advice}", param)
    raise malformed(f"{param + ': ' if param else ''}{problem['msg'].removeprefix('Value error, ')}", param)


def _without_tags(path: tuple[str | int, ...]) -> list[str | int]:
    return [
        part
        for before, part in zip((None, *path), path, strict=False)
        if part not in _TAGS or not (before == "content" or isinstance(before, int))
    ]


def _most_telling(problems: list[ErrorDetails]) -> ErrorDetails:
    """The first problem; of a content part that is no text, the field that holds its content."""
    first = problems[0]
    if first["loc"][-1:] != ("type",):
        return first
    fields = [
        problem
        for problem in problems
        if problem["type"] == "extra_forbidden" and problem["loc"][:-1] == first["loc"][:-1]
    ]
    return fields[0] if fields else first
