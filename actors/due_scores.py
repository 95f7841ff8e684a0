"""The decode step before a weight update: it reads z_c of responses that have just ended, and nothing else.

In: a vLLM engine in this process, between two steps. Out: the outputs of the requests that sampled their EOS
in the step before. Then their score and their EOS come from the same weights. No other request samples a
token, so each one goes on as it would have.
"""

from collections.abc import Iterator
from typing import Any

from actors.last_token import awaits_score


def read_due_scores(engine: Any) -> Iterator[Any]:
    """Decode until no request is between its EOS and z_c; yields their last `RequestOutput`s.

    That is one step, or a few where vLLM must compute a request's KV again, because it had given the memory
    to another.

    Args:
        engine: A vLLM `LLMEngine` whose core runs in this process, without steps in flight.
    """
    scheduler = engine.engine_core.engine_core.scheduler
    if any(map(_is_due, scheduler.waiting)):
        # Without memory, maybe for long: the running requests make room, and are computed again later.
        scheduler.reset_prefix_cache(reset_running_requests=True)
    while any(map(_is_due, scheduler.requests.values())):
        yield from _step_of_due_requests(engine, scheduler)


def _step_of_due_requests(engine: Any, scheduler: Any) -> list[Any]:
    """A decode step in which only due requests take part.

    They come first in the order, so that any request that must give up its memory is another one.
    """
    scheduler.running.sort(key=lambda request: not _is_due(request))
    for request in scheduler.running:
        if not _is_due(request):
            request.next_decode_eligible_step = scheduler.current_step + 2
    everyone = scheduler.waiting
    scheduler.waiting = type(everyone)()
    for request in filter(_is_due, list(everyone)):
        everyone.remove_request(request)
        scheduler.waiting.add_request(request)
    outputs = engine.step()
    for request in reversed(list(scheduler.waiting)):
        everyone.prepend_request(request)
    scheduler.waiting = everyone
    return outputs


def _is_due(request: Any) -> bool:
    return awaits_score(request.sampling_params, request.output_token_ids)
