"""Shards cut anew for another number of ranks; real ones are in tests/end_to_end/test_learner.py."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from actors.resharding import reshard

SHAPES = {"embedding": (7, 5), "bias": (1,), "weight": (6, 4), "norm": (5,), "head": (3, 3)}
TENSORS = ("fp32", "exp_avg", "exp_avg_sq")


def parts_for(ranks: int) -> list[dict[str, torch.Size]]:
    """Parts that end with the parameter whose piece takes them to 10 elements, as `sub_group_size` does."""
    parts: list[dict[str, torch.Size]] = [{}]
    elements = 0
    for name, shape in SHAPES.items():
        parts[-1][name] = torch.Size(shape)
        elements += math.ceil(math.prod(shape) / ranks)
        if elements >= 10 and name != list(SHAPES)[-1]:
            parts.append({})
            elements = 0
    return parts


def shards_of(whole: dict[str, dict[str, Tensor]], ranks: int, steps: int | None) -> list[dict[str, Any]]:
    """What each rank saves of a whole state, written out with `chunk` over padded parameters."""

    def flats(kind: str, rank: int) -> list[Tensor]:
        found = []
        for part in parts_for(ranks):
            pieces = []
            for name in part:
                flat = whole[kind][name].flatten()
                padding = torch.zeros(-len(flat) % ranks)
                pieces.append(torch.cat([flat, padding]).chunk(ranks)[rank])
            found.append(torch.cat(pieces))
        return found

    shards = []
    for rank in range(ranks):
        moments = {kind: flats(kind, rank) for kind in TENSORS[1:]}
        state = {
            number: {"step": torch.tensor(float(steps or 0))}
            | {kind: moments[kind][number] for kind in moments}
            for number in range(len(parts_for(ranks)))
        }
        group = {"lr": 0.5, "params": list(range(len(state)))}
        shards.append(
            {
                "overflow": False,
                "fp32_flat_groups": flats("fp32", rank),
                "optimizer_state_dict": {"state": {} if steps is None else state, "param_groups": [group]},
            }
        )
    return shards


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert set(found) == set(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("steps", [17, None])
def test_every_number_of_ranks_gets_the_shards_that_it_would_have_saved(steps: int | None) -> None:
    generator = torch.Generator().manual_seed(3)
    whole = {
        kind: {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        for kind in TENSORS
    }
    saved, saved_by = shards_of(whole, 1, steps), 1
    for ranks in (2, 3, 1, 40, 4, 1):  # 40 ranks: most hold nothing but padding of most parameters
        expected = shards_of(whole, ranks, steps)
        resharded = [
            reshard(saved, parts_for(saved_by), parts_for(ranks), rank, ranks) for rank in range(ranks)
        ]
        for found, wanted in zip(resharded, expected, strict=True):
            assert_same(found, wanted)
        saved, saved_by = resharded, ranks


def test_each_part_counts_its_own_steps() -> None:
    """AdamW adds 1 to the count of each part; one tensor for all would count every part's step."""
    whole = {kind: {name: torch.ones(shape) for name, shape in SHAPES.items()} for kind in TENSORS}
    state = reshard(shards_of(whole, 1, 4), parts_for(1), parts_for(2), 0, 2)["optimizer_state_dict"]["state"]
    assert len(state) > 1
    state[0]["step"] += 1
    assert [part["step"].item() for part in state.values()] == [5.0, *[4.0] * (len(state) - 1)]
