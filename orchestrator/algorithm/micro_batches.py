"""Split a batch into mini-batches (optimiser steps), and each mini-batch into micro-batches of the ranks.

In: sample lengths in tokens. Out: lists of sample indices. Equal input gives equal output, on every rank.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

MicroBatchPlan = list[list[list[int]]]
"""Sample indices by rank and micro-batch."""
BatchSize = Callable[[Sequence[int]], int]
"""Tokens of a micro-batch, as the budget counts them."""


def plan_micro_batches(lengths: Sequence[int], num_ranks: int, tokens_per_micro_batch: int) -> MicroBatchPlan:
    """Assign samples to padded micro-batches, and micro-batches to ranks.

    Every rank gets the same number of micro-batches, because ZeRO-3 ranks gather weights together; it is the
    smallest number that the budget allows. A micro-batch holds samples of similar length. The n-th
    micro-batches of all ranks have similar sizes, and the padded tokens of two ranks differ in sum by no more
    than two of their n-th micro-batches do, for some n. A micro-batch is empty only when there are too few
    samples.

    Args:
        lengths: Tokens of each sample, prompt and response.
        num_ranks: Learner ranks.
        tokens_per_micro_batch: The budget of one micro-batch in tokens, padding included.

    Raises:
        ValueError: `num_ranks` or a length is below 1, or one sample alone exceeds the budget.
    """
    if num_ranks < 1:
        raise ValueError(f"num_ranks is {num_ranks}; it must be at least 1")
    for sample, length in enumerate(lengths):
        if length < 1:
            raise ValueError(f"sample {sample} has length {length}; every sample needs at least 1 token")
        if length > tokens_per_micro_batch:
            raise ValueError(
                f"sample {sample} has {length} tokens, more than "
                f"learning.tokens_per_micro_batch={tokens_per_micro_batch}: "
                f"raise it to at least {length}, or lower rollout.max_response_tokens"
            )
    if not lengths:
        return [[] for _ in range(num_ranks)]

    longest_first = sorted(range(len(lengths)), key=lambda sample: (-lengths[sample], sample))

    def size(batch: Sequence[int]) -> int:
        return _padded_tokens(batch, lengths)

    def fill(budget: int) -> list[list[int]]:
        return _fill(longest_first, lengths, budget)

    return _deal(_level(fill, size, max(lengths), tokens_per_micro_batch, num_ranks), size, num_ranks)


def plan_group_micro_batches(
    lengths: Sequence[int],
    prompt_lengths: Sequence[int],
    groups: Sequence[int],
    num_ranks: int,
    tokens_per_micro_batch: int,
) -> MicroBatchPlan:
    """As `plan_micro_batches`, for a learner that computes the prompt of a group's samples once.

    Samples of a group stay side by side. The budget counts a micro-batch's tokens without padding, and each
    prompt once: all layers but attention see no others. Attention sees padded rows, which may hold twice the
    budget.

    Args:
        prompt_lengths: Tokens of each sample's prompt, of those in `lengths`.
        groups: The group of each sample.
    """
    plan_micro_batches(lengths, num_ranks, tokens_per_micro_batch)  # refuses what it refuses
    if not lengths:
        return [[] for _ in range(num_ranks)]
    longest: dict[int, int] = {}
    for group, length in zip(groups, lengths, strict=True):
        longest[group] = max(longest.get(group, 0), length)
    order = sorted(
        range(len(lengths)), key=lambda sample: (-longest[groups[sample]], groups[sample], -lengths[sample])
    )

    def size(batch: Sequence[int]) -> int:
        prompts = {groups[sample]: prompt_lengths[sample] for sample in batch}
        responses = sum(lengths[sample] - prompt_lengths[sample] for sample in batch)
        return max(sum(prompts.values()) + responses, -(-_padded_tokens(batch, lengths) // 2))

    def fill(budget: int) -> list[list[int]]:
        batches: list[list[int]] = [[]]
        for sample in order:
            if batches[-1] and size([*batches[-1], sample]) > budget:
                batches.append([])
            batches[-1].append(sample)
        return batches

    return _deal(_level(fill, size, max(lengths), tokens_per_micro_batch, num_ranks), size, num_ranks)


def padding_share(plan: MicroBatchPlan, lengths: Sequence[int]) -> float:
    """Share of the plan's tokens that is padding, in [0, 1); 0 for a plan without samples."""
    batches = [batch for rank in plan for batch in rank]
    padded = sum(_padded_tokens(batch, lengths) for batch in batches)
    return 1 - sum(lengths[sample] for batch in batches for sample in batch) / padded if padded else 0.0


def split_mini_batches(group_sizes: Sequence[int], mini_batches: int) -> list[list[int]]:
    """Split samples, laid out group after group, into consecutive mini-batches of nearly equal size.

    Groups stay whole, unless there are more mini-batches than groups.

    Args:
        group_sizes: Samples of each group.
        mini_batches: Their number.

    Returns:
        The sample indices of each mini-batch.

    Raises:
        ValueError: `mini_batches` is below 1, or above the number of samples.
    """
    samples = sum(group_sizes)
    if not 1 <= mini_batches <= samples:
        raise ValueError(
            f"learning.mini_batches is {mini_batches}, but the batch has {samples} samples: "
            f"choose 1 to {samples}"
        )
    edges = [0, *accumulate(size for size in group_sizes if size)]
    if len(edges) <= mini_batches:
        edges = list(range(samples + 1))
    cuts = [0]
    for done in range(1, mini_batches):
        # Leave at least one group for this mini-batch, and one for each that follows.
        choices = edges[edges.index(cuts[-1]) + 1 : len(edges) - (mini_batches - done)]
        cuts.append(min(choices, key=lambda edge: abs(edge * mini_batches - done * samples)))
    cuts.append(samples)
    return [list(range(start, end)) for start, end in pairwise(cuts)]


def _padded_tokens(batch: Sequence[int], lengths: Sequence[int]) -> int:
    return len(batch) * max((lengths[sample] for sample in batch), default=0)


def _fill(longest_first: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """The fewest consecutive batches within the budget: each takes what fits, padded to its first sample."""
    batches = []
    start = 0
    while start < len(longest_first):
        end = start + budget // lengths[longest_first[start]]
        batches.append(list(longest_first[start:end]))
        start = end
    return batches


def _level(
    fill: Callable[[int], list[list[int]]], size: BatchSize, low: int, high: int, num_ranks: int
) -> list[list[int]]:
    """The fewest batches within the budget `high` that all ranks can have as many of, the largest as small as
    possible; some are empty when samples run out.

    Args:
        fill: The fewest batches within a budget.
        low: A budget that each sample fits in.
    """
    count = -(-len(fill(high)) // num_ranks) * num_ranks
    while low < high:
        middle = (low + high) // 2
        if len(fill(middle)) <= count:
            high = middle
        else:
            low = middle + 1
    batches = fill(low)
    while len(batches) < count:
        largest = max(batches, key=lambda batch: (len(batch) > 1, size(batch)))
        half = (len(largest) + 1) // 2 if len(largest) > 1 else 1
        batches[batches.index(largest)] = largest[:half]
        batches.append(largest[half:])
    return batches


def _deal(batches: Sequence[list[int]], size: BatchSize, num_ranks: int) -> MicroBatchPlan:
    """Give each rank as many batches, in sum of nearly equal size.

    The largest come first, so that a batch which does not fit in memory fails at once. In each round the rank
    with the fewest tokens so far gets the largest batch.
    """
    plan: MicroBatchPlan = [[] for _ in range(num_ranks)]
    load = [0] * num_ranks
    largest_first = sorted(batches, key=lambda batch: -size(batch))
    for start in range(0, len(batches), num_ranks):
        ranks = sorted(range(num_ranks), key=lambda rank: (load[rank], rank))
        for rank, batch in zip(ranks, largest_first[start : start + num_ranks], strict=True):
            plan[rank].append(batch)
            load[rank] += size(batch)
    return plan
