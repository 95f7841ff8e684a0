"""LangChain's `ChatOpenAI`: dialogues, whole and streamed."""

import asyncio
from typing import Any

from checks import PROBLEMS, refusing_first, report, require, scored_alike, service
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

SERVICE = service()


def chat(url: str = SERVICE.url, **more: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model=SERVICE.model, base_url=url, api_key=SERVICE.key, temperature=0, seed=1, timeout=60, **more
    )


def dialogue() -> None:
    said: list[Any] = [SystemMessage("1+1=2")]
    for problem in PROBLEMS:
        said.append(HumanMessage(problem, name="somebody"))
        said.append(chat().invoke(said))
        require(said[-1].content and said[-1].usage_metadata["output_tokens"], "no answer")


def streamed() -> None:
    said: list[Any] = []
    for problem in PROBLEMS:
        said.append(HumanMessage(problem))
        whole = None
        for chunk in chat(stream_usage=True).stream(said):
            whole = chunk if whole is None else whole + chunk
        require(whole.content and whole.usage_metadata["output_tokens"], "no answer")
        require(whole.response_metadata["finish_reason"] == "stop", "no finish_reason")
        said.append(whole)


def scores() -> str:
    answer = chat().invoke([HumanMessage(PROBLEMS[0])])
    if "self_reward" in {**answer.additional_kwargs, **answer.response_metadata}:
        return "in the answer"
    # ChatOpenAI hands out the openai client below it, which keeps unknown fields.
    raw = chat().root_client.chat.completions.create(
        model=SERVICE.model, messages=[{"role": "user", "content": PROBLEMS[0]}], temperature=0, seed=1
    )
    require(raw.choices[0].message.content == answer.content, "another answer")
    said = [
        {"role": "user", "content": PROBLEMS[0]},
        {"role": "assistant", "content": answer.content},
    ]
    scored_alike(SERVICE, said, raw.choices[0].self_reward)
    return "ChatOpenAI drops the field: by root_client, or /v1/score"


def asynchronous() -> None:
    answers = asyncio.run(chat().abatch([[HumanMessage(problem)] for problem in PROBLEMS]))
    require(all(answer.content for answer in answers), "no answer")


def retries() -> None:
    with refusing_first(SERVICE, [429, 503]) as (url, left):
        require(chat(url).invoke(PROBLEMS[0]).content and not left, "no answer after the retries")


report(
    "langchain-openai",
    {
        "dialogue": dialogue,
        "stream": streamed,
        "scores": scores,
        "async": asynchronous,
        "retries of 429 and 503": retries,
    },
)
