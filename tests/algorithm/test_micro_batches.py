import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.algorithm.micro_batches import (
    padding_share,
    plan_group_micro_batches,
    plan_micro_batches,
    split_mini_batches,
)

lengths_of_a_batch = st.lists(st.integers(1, 50), max_size=60)


def padded(batch, lengths):
    return len(batch) * max((lengths[sample] for sample in batch), default=0)


def test_plan_by_hand():
    # Sorted: 8, 8, 4, 4, 2, 2. Two micro-batches a rank suffice for 16 tokens each; four batches are best as
    # 8 | 8 | 4 4 | 2 2.
    assert plan_micro_batches([2, 8, 4, 2, 8, 4], num_ranks=2, tokens_per_micro_batch=16) == [
        [[1, 4]],
        [[2, 5, 0, 3]],
    ]
    assert plan_micro_batches([2, 8, 4, 2, 8, 4], num_ranks=2, tokens_per_micro_batch=8) == [
        [[1], [2, 5]],
        [[4], [0, 3]],
    ]


@given(lengths_of_a_batch, st.integers(1, 5), st.integers(50, 400))
def test_plan_deals_every_sample_once_within_the_budget_and_in_step(lengths, num_ranks, budget):
    plan = plan_micro_batches(lengths, num_ranks, budget)
    assert len(plan) == num_ranks
    assert sorted(sample for rank in plan for batch in rank for sample in batch) == list(range(len(lengths)))
    assert all(padded(batch, lengths) <= budget for rank in plan for batch in rank)
    assert len({len(rank) for rank in plan}) == 1


@given(lengths_of_a_batch, st.integers(1, 5), st.integers(50, 400))
def test_ranks_differ_by_no_more_than_one_step_of_micro_batches_does(lengths, num_ranks, budget):
    plan = plan_micro_batches(lengths, num_ranks, budget)
    loads = [sum(padded(batch, lengths) for batch in rank) for rank in plan]
    steps = [[padded(batch, lengths) for batch in step] for step in zip(*plan, strict=True)]
    assert max(loads) - min(loads) <= max((max(step) - min(step) for step in steps), default=0)


@given(lengths_of_a_batch, st.integers(1, 5), st.integers(50, 400))
def test_an_empty_micro_batch_is_the_last_resort(lengths, num_ranks, budget):
    batches = [batch for rank in plan_micro_batches(lengths, num_ranks, budget) for batch in rank]
    if [] in batches:
        assert all(len(batch) <= 1 for batch in batches)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(9, 40))
def test_one_rank_gets_the_fewest_micro_batches_that_samples_in_order_of_length_allow(lengths, budget):
    (batches,) = plan_micro_batches(lengths, 1, budget)
    ordered = sorted(lengths, reverse=True)

    def fits(cuts):
        bounds = [0, *cuts, len(ordered)]
        return all(
            (end - start) * ordered[start] <= budget
            for start, end in itertools.pairwise(bounds)
            if end > start
        )

    fewest = min(
        1 + mask.bit_count()
        for mask in range(2 ** (len(ordered) - 1))
        if fits([cut + 1 for cut in range(len(ordered) - 1) if mask >> cut & 1])
    )
    assert len(batches) == fewest


@given(lengths_of_a_batch, st.integers(1, 5), st.integers(50, 400))
def test_plan_is_a_function_of_its_input(lengths, num_ranks, budget):
    assert plan_micro_batches(lengths, num_ranks, budget) == plan_micro_batches(
        tuple(lengths), num_ranks, budget
    )


def test_little_is_padded_in_a_batch_of_the_size_of_the_published_runs():
    generator = random.Random(0)
    lengths = [min(8192, max(1, int(generator.lognormvariate(math.log(1500), 0.8)))) for _ in range(1024)]
    plan = plan_micro_batches(lengths, num_ranks=8, tokens_per_micro_batch=32768)
    in_order = [[list(range(start, start + 4)) for start in range(0, 1024, 4)]]
    assert padding_share(plan, lengths) < 0.08 < 0.3 < padding_share(in_order, lengths)
    loads = [sum(padded(batch, lengths) for batch in rank) for rank in plan]
    assert max(loads) / min(loads) < 1.02


def test_sample_over_the_budget_is_named_with_the_key_to_change():
    with pytest.raises(
        ValueError, match=r"sample 1 has 9 tokens, more than learning\.tokens_per_micro_batch=8"
    ):
        plan_micro_batches([8, 9], 2, 8)


@pytest.mark.parametrize(
    ("lengths", "num_ranks", "message"), [([3, 0], 1, "sample 1 has length 0"), ([3], 0, "num_ranks is 0")]
)
def test_impossible_plans_are_refused(lengths, num_ranks, message):
    with pytest.raises(ValueError, match=message):
        plan_micro_batches(lengths, num_ranks, 8)


def test_padding_share_by_hand():
    assert padding_share([[[0, 1]], [[2]]], [4, 2, 5]) == pytest.approx(2 / 13)
    assert padding_share([[[]], [[]]], []) == 0


def test_mini_batches_keep_groups_whole():
    assert split_mini_batches([2, 2, 2, 2], 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert split_mini_batches([1, 5, 1, 1], 2) == [[0, 1, 2, 3, 4, 5], [6, 7]]
    assert split_mini_batches([3, 3, 3], 2) == [[0, 1, 2], [3, 4, 5, 6, 7, 8]]


def test_groups_are_split_only_when_there_are_too_few():
    assert split_mini_batches([4], 2) == [[0, 1], [2, 3]]
    assert split_mini_batches([2, 3], 2) == [[0, 1], [2, 3, 4]]
    assert split_mini_batches([2, 3], 3) == [[0, 1], [2], [3, 4]]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(1, 20))
def test_mini_batches_hold_every_sample_once_and_none_is_empty(group_sizes, mini_batches):
    samples = sum(group_sizes)
    if mini_batches > samples:
        with pytest.raises(ValueError, match=rf"learning\.mini_batches is {mini_batches}"):
            split_mini_batches(group_sizes, mini_batches)
        return
    split = split_mini_batches(group_sizes, mini_batches)
    assert len(split) == mini_batches
    assert all(split)
    assert [sample for part in split for sample in part] == list(range(samples))
    whole = sum(size > 0 for size in group_sizes) >= mini_batches
    edges = {sum(group_sizes[:count]) for count in range(len(group_sizes))}
    assert not whole or all(part[0] in edges for part in split)


@given(st.integers(1, 16), st.integers(1, 8), st.integers(1, 8))
def test_mini_batches_of_equal_groups_differ_by_no_more_than_one_group(groups, size, mini_batches):
    if mini_batches <= groups:
        counts = [len(part) for part in split_mini_batches([size] * groups, mini_batches)]
        assert max(counts) - min(counts) <= size


def test_groups_stay_together_where_the_budget_allows():
    # Groups 0 and 1 of 2 samples each, with prompts of 2 and 3 tokens; the group with the longest sample
    # comes first. Tokens: 3 + 5 + 1 = 9 of group 1, 2 + 3 + 1 = 6 of group 0.
    lengths, prompts, groups = [3, 8, 5, 4], [2, 3, 2, 3], [0, 1, 0, 1]
    assert plan_group_micro_batches(lengths, prompts, groups, num_ranks=1, tokens_per_micro_batch=14) == [
        [[1, 3], [2, 0]]
    ]
    # 9 + 6 tokens fit, and so do 4 x 8 places of padded rows: twice the budget.
    assert plan_group_micro_batches(lengths, prompts, groups, num_ranks=1, tokens_per_micro_batch=16) == [
        [[1, 3, 2, 0]]
    ]
    assert plan_group_micro_batches(lengths, prompts, groups, num_ranks=2, tokens_per_micro_batch=32) == [
        [[1, 3]],
        [[2, 0]],
    ]


samples_of_groups = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), min_size=8, max_size=40)


@given(samples_of_groups, st.integers(1, 3))
def test_group_plans_hold_each_sample_once_within_the_budget(samples, num_ranks):
    groups = [group for _, group in samples]
    prompts = [1 + group for group in groups]
    lengths = [prompt + response for prompt, (response, _) in zip(prompts, samples, strict=True)]
    plan = plan_group_micro_batches(lengths, prompts, groups, num_ranks, tokens_per_micro_batch=40)
    assert len({len(rank) for rank in plan}) == 1
    batches = [batch for rank in plan for batch in rank]
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    for batch in batches:
        computed = sum(1 + group for group in {groups[sample] for sample in batch})
        computed += sum(samples[sample][0] for sample in batch)
        assert computed <= 40
        assert padded(batch, lengths) <= 2 * 40
