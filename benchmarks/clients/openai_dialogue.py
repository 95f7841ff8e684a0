"""The `openai` client: dialogues, whole and streamed, sync and async, with scores."""

import asyncio
from typing import Any

import openai
from checks import PROBLEMS, refusing_first, report, require, scored_alike, service

SERVICE = service()
SETTINGS: dict[str, Any] = {"model": SERVICE.model, "temperature": 0, "seed": 1}
NEUTRAL: dict[str, Any] = {
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "response_format": {"type": "text"},
    "tools": [],
    "tool_choice": "none",
    "logit_bias": {},
    "store": False,
    "user": "somebody",
}


def client(url: str = SERVICE.url) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=SERVICE.key, timeout=60)


def question(problem: str) -> Any:
    return {"role": "user", "content": problem}


def dialogue() -> None:
    """Answers go back as objects of the client and as it dumps them."""
    said: list[Any] = [{"role": "developer", "content": "1+1=2"}]
    dumps = [
        lambda message: message,
        lambda message: message.model_dump(),
        lambda message: message.to_dict(),
    ]
    for problem, dumped in zip(PROBLEMS, dumps, strict=True):
        said.append(question(problem))
        answer = client().chat.completions.create(messages=said, **SETTINGS, **NEUTRAL)
        (choice,) = answer.choices
        said.append(dumped(choice.message))
        require(answer.usage.completion_tokens > 0, "no usage")
        require(choice.finish_reason in ("stop", "length"), "no finish_reason")
    require(len(said) == 7, "three turns")


def streamed() -> None:
    said: list[Any] = []
    for problem in PROBLEMS:
        said.append(question(problem))
        text, score, usage = "", None, None
        options = {"include_usage": True}
        for chunk in client().chat.completions.create(
            messages=said, stream=True, stream_options=options, **SETTINGS
        ):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                if choice.finish_reason:
                    score = choice.self_reward
        said.append({"role": "assistant", "content": text, "self_reward": score})
        require(usage and usage.total_tokens, "no usage")
        require(score is not None, "no self_reward")
        scored_alike(SERVICE, said, score)


def stream_helper() -> None:
    """The client's own accumulator of a stream."""
    with client().chat.completions.stream(messages=[question(PROBLEMS[0])], **SETTINGS) as stream:
        for _ in stream:
            pass
        choice = stream.get_final_completion().choices[0]
    require(choice.message.content and choice.finish_reason, "no content")


def scores() -> None:
    said: list[Any] = []
    for problem in PROBLEMS:
        said.append(question(problem))
        (choice,) = client().chat.completions.create(messages=said, **SETTINGS).choices
        said.append(choice.message.model_dump(exclude_none=True))
        scored_alike(SERVICE, said, choice.self_reward)


def asynchronous() -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=SERVICE.url, api_key=SERVICE.key) as own:
            calls = [own.chat.completions.create(messages=[question(p)], **SETTINGS) for p in PROBLEMS]
            answers = await asyncio.gather(*calls)
            require(all(answer.choices[0].self_reward is not None for answer in answers), "no self_reward")
            pieces = await own.chat.completions.create(
                messages=[question(PROBLEMS[0])], stream=True, **SETTINGS
            )
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in pieces])
            require(text == answers[0].choices[0].message.content, "the stream has another text")

    asyncio.run(run())


def raw() -> None:
    reply = client().chat.completions.with_raw_response.create(messages=[question(PROBLEMS[0])], **SETTINGS)
    require(reply.headers["content-type"].startswith("application/json"), "no JSON")
    require(reply.parse().choices[0].message.content, "no content")


def retries() -> None:
    with refusing_first(SERVICE, [429, 503]) as (url, left):
        answer = client(url).chat.completions.create(messages=[question(PROBLEMS[0])], **SETTINGS)
        require(answer.choices[0].message.content and not left, "no answer after the retries")


def errors() -> None:
    try:
        client().chat.completions.create(messages=[question("1")], **SETTINGS, presence_penalty=1)
    except openai.BadRequestError as error:
        require(error.param == "presence_penalty", f"param is {error.param}")
    else:
        raise AssertionError("presence_penalty was accepted")
    names = [model.id for model in client().models.list()]
    require(names == [SERVICE.model], f"the models are {names}")


report(
    "openai",
    {
        "dialogue": dialogue,
        "stream": streamed,
        "scores": scores,
        "stream helper": stream_helper,
        "async": asynchronous,
        "with_raw_response": raw,
        "retries of 429 and 503": retries,
        "errors and models": errors,
    },
)
