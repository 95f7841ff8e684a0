"""Trajectories of a group: packed, as views, as a summary, and as parquet."""

import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.messages.trajectories import Generated, pack, read_groups, to_table

NAN = math.nan


def fields(trajectories):
    return {name: getattr(trajectories, name) for name in trajectories.__dataclass_fields__}


def assert_same(one, other):
    for name, values in fields(one).items():
        np.testing.assert_array_equal(values, fields(other)[name], err_msg=name)
        assert values.dtype == fields(other)[name].dtype, name


@pytest.fixture
def group():
    """Three samples of unlike length: finished, truncated, finished at once."""
    return pack(
        [1, 2, 3],
        [
            Generated([10, 11, 9], [-0.5, -1.5, -0.25], True, -20.0, [4, 4, 4]),
            Generated([12, 13, 14, 15], [-1.0, -2.0, -3.0, -4.0], False, NAN, [4, 4, 5, 5]),
            Generated([9], [-6.0], True, -30.5, [5]),
        ],
    )


def test_pack_lays_samples_back_to_back(group):
    assert group.prompt_ids.tolist() == [1, 2, 3]
    assert group.response_ids.tolist() == [10, 11, 9, 12, 13, 14, 15, 9]
    assert group.logprobs.tolist() == [-0.5, -1.5, -0.25, -1.0, -2.0, -3.0, -4.0, -6.0]
    assert group.lengths.tolist() == [3, 4, 1]
    assert group.finished.tolist() == [True, False, True]
    np.testing.assert_array_equal(group.z_logprobs, np.array([-20.0, NAN, -30.5], np.float32))
    assert group.versions.tolist() == [4, 4, 4, 4, 4, 5, 5, 5]
    assert len(group) == 3


def test_a_sample_is_a_view_of_its_own_tokens(group):
    sample = group.sample(1)
    assert sample.prompt_ids.tolist() == [1, 2, 3]
    assert sample.response_ids.tolist() == [12, 13, 14, 15]
    assert sample.logprobs.tolist() == [-1.0, -2.0, -3.0, -4.0]
    assert sample.finished is False
    assert math.isnan(sample.z_logprob)
    assert np.shares_memory(sample.response_ids, group.response_ids)
    assert group.sample(2).response_ids.tolist() == [9]
    assert group.sample(2).z_logprob == -30.5


def test_the_summary_holds_scalars_only(group):
    summary = group.summary()
    assert summary.prompt_tokens == 3
    assert {name: np.size(value) for name, value in vars(summary).items()} == {
        "prompt_tokens": 1, "lengths": 3, "finished": 3, "z_logprobs": 3, "versions": 6,
            "generated": 1,
    }  # fmt: skip
    assert summary.lengths.tolist() == [3, 4, 1]
    assert summary.versions.tolist() == [[4, 4], [4, 5], [5, 5]]


def test_parquet_holds_a_row_a_sample_and_reads_back_to_the_same_groups(group, tmp_path):
    other = pack([7], [Generated([8, 9], [-0.1, -0.2], True, -21.0, [0, 0])])
    path = tmp_path / "rollouts.parquet"
    pq.write_table(
        to_table(
            [group, other],
            {"score": [0.9, NAN, 0.1, 0.5], "status": ["correct", "wrong", "timeout", "correct"]},
        ),
        path,
    )
    groups, table = read_groups(path)
    assert len(groups) == 2
    assert_same(groups[0], group)
    assert_same(groups[1], other)
    assert table.column("group").to_pylist() == [0, 0, 0, 1]
    assert table.column("status").to_pylist() == ["correct", "wrong", "timeout", "correct"]
    assert table.column("response_ids").to_pylist()[2] == [9]


def test_a_file_of_an_earlier_version_holds_two_versions_a_sample(group, tmp_path):
    table = to_table([group], {}).drop_columns("token_versions")
    path = tmp_path / "rollouts.parquet"
    pq.write_table(table.append_column("versions", [group.summary().versions.tolist()]), path)
    (read,), _ = read_groups(path)
    assert read.versions.tolist() == [4, 4, 4, 4, 4, 4, 5, 5]
    np.testing.assert_array_equal(read.summary().versions, group.summary().versions)


def test_a_column_of_the_wrong_length_is_refused(group):
    with pytest.raises(ValueError, match="score"):
        to_table([group], {"score": [0.9]})


token = st.integers(0, 2**31 - 1)
logprob = st.floats(max_value=0, min_value=-1e4, width=32)


@st.composite
def generated(draw):
    response = draw(st.lists(st.tuples(token, logprob, st.integers(-1, 9)), min_size=1, max_size=6))
    finished = draw(st.booleans())
    z_logprob = draw(logprob) if finished else NAN
    tokens, logprobs, versions = zip(*response, strict=True)
    return Generated(list(tokens), list(logprobs), finished, z_logprob, list(versions))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(token, min_size=1, max_size=4), st.lists(generated(), min_size=1, max_size=4)),
        min_size=1,
        max_size=3,
    )
)
def test_packing_and_parquet_lose_nothing(tmp_path_factory, groups):
    packed = [pack(prompt, samples) for prompt, samples in groups]
    for trajectories, (prompt, samples) in zip(packed, groups, strict=True):
        for index, sample in enumerate(samples):
            view = trajectories.sample(index)
            assert view.prompt_ids.tolist() == prompt
            assert view.response_ids.tolist() == sample.response_ids
            assert view.logprobs.tolist() == sample.logprobs
            assert trajectories.versions[trajectories.span(index)].tolist() == sample.versions
            assert view.finished == sample.finished
    path = tmp_path_factory.mktemp("rollouts") / "step.parquet"
    pq.write_table(to_table(packed, {}), path)
    for read, trajectories in zip(read_groups(path)[0], packed, strict=True):
        assert_same(read, trajectories)
