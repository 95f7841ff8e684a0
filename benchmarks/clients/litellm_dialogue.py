"""LiteLLM: dialogues, whole and streamed."""

import asyncio
import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # The map of prices would be fetched.

import litellm
from checks import PROBLEMS, refusing_first, report, require, scored_alike, service

SERVICE = service()
SETTINGS: dict[str, Any] = {
    "model": f"openai/{SERVICE.model}",
    "api_base": SERVICE.url,
    "api_key": SERVICE.key,
    "temperature": 0,
    "seed": 1,
    "timeout": 60,
}


def question(problem: str) -> Any:
    return {"role": "user", "content": problem}


def dialogue() -> None:
    said: list[Any] = []
    for problem in PROBLEMS:
        said.append(question(problem))
        answer = litellm.completion(messages=said, **SETTINGS)
        said.append(answer.choices[0].message.model_dump())
        require(answer.usage.completion_tokens > 0, "no usage")
    said.append(question(PROBLEMS[0]))
    answer = litellm.completion(messages=[*said[:1], answer.choices[0].message, *said[2:]], **SETTINGS)
    require(answer.choices[0].message.content is not None, "no answer")


def streamed() -> str:
    said: list[Any] = []
    scored = 0
    for problem in PROBLEMS:
        said.append(question(problem))
        options = {"include_usage": True}
        chunks = list(litellm.completion(messages=said, stream=True, stream_options=options, **SETTINGS))
        whole = litellm.stream_chunk_builder(chunks, messages=said)
        require(whole.choices[0].message.content and whole.choices[0].finish_reason, "no answer")
        said.append(whole.choices[0].message.model_dump())
        scored += any("self_reward" in str(chunk.model_dump()) for chunk in chunks)
    return "chunks keep self_reward" if scored == len(PROBLEMS) else "chunks drop self_reward: /v1/score"


def scores() -> str:
    said: list[Any] = []
    for problem in PROBLEMS:
        said.append(question(problem))
        (choice,) = litellm.completion(messages=said, **SETTINGS).choices
        kept = {**(choice.get("provider_specific_fields") or {}), **choice.model_dump()}
        require(kept.get("self_reward") is not None, f"LiteLLM drops the field: {sorted(kept)}")
        said.append(choice.message.model_dump())
        scored_alike(SERVICE, said, kept["self_reward"])
    return "in the choice's provider_specific_fields"


def asynchronous() -> None:
    async def run() -> list[Any]:
        calls = [litellm.acompletion(messages=[question(problem)], **SETTINGS) for problem in PROBLEMS]
        return await asyncio.gather(*calls)

    require(all(answer.choices[0].message.content for answer in asyncio.run(run())), "no answer")


def retries() -> None:
    with refusing_first(SERVICE, [429, 503]) as (url, left):
        settings = SETTINGS | {"api_base": url, "max_retries": 3}
        answer = litellm.completion(messages=[question(PROBLEMS[0])], **settings)
        require(answer.choices[0].message.content and not left, "no answer after the retries")


report(
    "litellm",
    {
        "dialogue": dialogue,
        "stream": streamed,
        "scores": scores,
        "async": asynchronous,
        "retries of 429 and 503": retries,
    },
)
