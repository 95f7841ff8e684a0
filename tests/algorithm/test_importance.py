"""Importance weights, by numbers worked out by hand."""

import math

import pytest
import torch

from orchestrator.algorithm.importance import ImportanceSettings, importance_ratios, importance_weights

RATIOS = [0.5, 2.0, 4.0, 1.0, 8.0]
"""Two samples: tokens 0 to 2, whose product is 4, and tokens 3 and 4, whose product is 8."""
SAMPLE = torch.tensor([0, 0, 0, 1, 1])
CUBE_ROOT, SQUARE_ROOT = 4 ** (1 / 3), 8 ** (1 / 2)


def logs(values):
    return torch.tensor([math.log(value) for value in values], dtype=torch.float64)


def weights_of(**settings):
    behaviour = torch.full((5,), -3.0).double()
    return importance_weights(behaviour + logs(RATIOS), behaviour, SAMPLE, ImportanceSettings(**settings))


@pytest.mark.parametrize(
    ("level", "ratios"),
    [
        ("token", RATIOS),
        ("sequence", [4.0, 4.0, 4.0, 8.0, 8.0]),
        ("geometric", [CUBE_ROOT] * 3 + [SQUARE_ROOT] * 2),
    ],
)
def test_the_ratio_of_each_level(level, ratios):
    old = logs(RATIOS).requires_grad_()
    found = importance_ratios(old, torch.zeros(5).double(), SAMPLE, level)
    assert found.tolist() == pytest.approx(ratios)
    assert not found.requires_grad, "the weight is a constant"


def test_the_product_weighs_samples_without_bias():
    """Two steps of two tokens: over what the behaviour samples, the weighted mean is the old policy's."""
    old, behaviour = torch.tensor([0.8, 0.2]).double(), torch.tensor([0.5, 0.5]).double()
    value, mean = torch.tensor([[1.0, 5.0], [-2.0, 7.0]]).double(), 0.0
    for first in range(2):
        for second in range(2):
            tokens = torch.tensor([first, second])
            ratios = importance_ratios(
                old.log()[tokens], behaviour.log()[tokens], torch.zeros(2, dtype=torch.long), "sequence"
            )
            mean += behaviour[tokens].prod() * ratios[0] * value[first, second]
    torch.testing.assert_close(mean, (old[:, None] * old[None] * value).sum())


@pytest.mark.parametrize(
    ("settings", "weights", "truncated", "masked"),
    [
        ({}, [1, 1, 1, 1, 1], [], []),
        ({"cap": 2.0}, [0.5, 2, 2, 1, 2], [2, 4], []),
        ({"bounds": (0.6, 4.0)}, [0, 1, 1, 1, 0], [], [0, 4]),
        ({"bounds": (0.6, 4.0), "cap": 3.0}, [0, 2, 3, 1, 0], [2], [0, 4]),
        ({"bounds": (0.0, 5.0), "cap": 5.0}, [0.5, 2, 4, 1, 0], [], [4]),
        ({"level": "sequence", "cap": 5.0}, [4, 4, 4, 5, 5], [3, 4], []),
        ({"level": "sequence", "bounds": (0.5, 6.0)}, [1, 1, 1, 0, 0], [], [3, 4]),
        ({"level": "geometric", "cap": 2.0}, [*[CUBE_ROOT] * 3, 2, 2], [3, 4], []),
        ({"level": "geometric", "bounds": (0.5, 2.0)}, [1, 1, 1, 0, 0], [], [3, 4]),
    ],
)
def test_weights_truncated_and_masked_tokens(settings, weights, truncated, masked):
    found = weights_of(**settings)
    assert found.weights.tolist() == pytest.approx(weights)
    assert found.truncated.nonzero().flatten().tolist() == truncated
    assert found.masked.nonzero().flatten().tolist() == masked


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
@pytest.mark.parametrize(("log_ratio", "weight"), [(500.0, 2.0), (-500.0, 0.0)])
def test_an_exploded_ratio_is_truncated(level, log_ratio, weight):
    old, sample = torch.tensor([log_ratio]), torch.zeros(1, dtype=torch.long)
    settings = ImportanceSettings(level, cap=2.0)
    assert importance_weights(old, torch.zeros(1), sample, settings).weights.item() == weight


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_no_tokens_and_a_sample_without_tokens(level):
    settings = ImportanceSettings(level, cap=2.0, bounds=(0.5, 2.0))
    nothing = torch.zeros(0)
    assert len(importance_weights(nothing, nothing, torch.zeros(0, dtype=torch.long), settings).weights) == 0
    gap = importance_ratios(torch.tensor([1.0, 2.0]), torch.zeros(2), torch.tensor([0, 2]), level)
    assert gap.tolist() == pytest.approx([math.e, math.e**2])


def test_sequences_need_the_sample_of_each_token():
    with pytest.raises(ValueError, match="by geometric need the sample"):
        importance_ratios(torch.zeros(1), torch.zeros(1), None, "geometric")
