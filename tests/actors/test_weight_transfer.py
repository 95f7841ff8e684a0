"""Weights in chunks: what a chunk holds, and what is read back from it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from orchestrator.messages.weights import pack_chunks


def parameters(**sizes):
    """Parameters by name, numbered so that every element is unlike the others."""
    start, made = 0, []
    for name, shape in sizes.items():
        count = int(np.prod(shape))
        made.append((name, torch.arange(start, start + count, dtype=torch.float32).reshape(shape)))
        start += count
    return made


def kept(*arguments, **options):
    """All chunks, each copied before the next one is asked for, as the object store copies it."""
    return [replace(chunk, data=chunk.data.copy()) for chunk in pack_chunks(*arguments, **options)]


def test_chunks_hold_as_many_parameters_as_fit_in_order():
    # 4 bytes an element: 32 + 32 fill a chunk of 64 to the byte, the next one would pass it.
    chunks = kept(parameters(a=(2, 4), b=(8,), c=(1,), d=(5, 3)), torch.float32, 64)
    assert [chunk.names for chunk in chunks] == [["a", "b"], ["c", "d"]]
    assert [chunk.data.nbytes for chunk in chunks] == [64, 64]
    assert [chunk.shapes for chunk in chunks] == [[(2, 4), (8,)], [(1,), (5, 3)]]


def test_a_parameter_larger_than_a_chunk_travels_alone():
    chunks = kept(parameters(a=(2,), large=(100,), b=(2,)), torch.float32, 64)
    assert [chunk.names for chunk in chunks] == [["a"], ["large"], ["b"]]
    assert chunks[1].data.nbytes == 400


def test_the_size_counts_after_the_cast():
    chunks = kept(parameters(a=(16,), b=(16,)), torch.bfloat16, 64)
    assert [chunk.names for chunk in chunks] == [["a", "b"]]
    assert chunks[0].dtype == "bfloat16"


def test_nothing_to_send_is_no_chunk():
    assert list(pack_chunks([], torch.float32, 64)) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_read_back_from_a_read_only_array(dtype, recwarn):
    sent = [*parameters(a=(3, 5), b=(7,), c=(2, 2, 2)), ("scalar", torch.tensor(0.3))]
    received = []
    for chunk in kept(sent, dtype, 80):
        chunk.data.flags.writeable = False  # as the object store maps it
        received += chunk.tensors()
    assert [name for name, _ in received] == ["a", "b", "c", "scalar"]
    for (_, before), (_, after) in zip(sent, received, strict=True):
        assert after.dtype is dtype
        torch.testing.assert_close(after, before.to(dtype), rtol=0, atol=0)
    assert not recwarn.list


def test_reading_copies_nothing():
    [chunk] = pack_chunks(parameters(a=(4,), b=(4,)), torch.float32, 64)
    (_, first), (_, second) = chunk.tensors()
    assert first.data_ptr() == chunk.data.ctypes.data
    assert second.data_ptr() == chunk.data.ctypes.data + 16


def test_a_packed_chunk_does_not_change_with_the_learners_weights():
    weight = torch.nn.Parameter(torch.ones(4))
    [chunk] = pack_chunks([("weight", weight)], torch.float32, 64)
    with torch.no_grad():
        weight.zero_()
    [(_, sent)] = chunk.tensors()
    assert sent.tolist() == [1, 1, 1, 1]


def test_transposed_weights_arrive_in_their_own_order():
    weight = torch.arange(6.0).reshape(2, 3).T
    [chunk] = pack_chunks([("weight", weight)], torch.float32, 64)
    [(_, sent)] = chunk.tensors()
    assert sent.tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_tied_parameter_is_sent_once_and_read_under_each_of_its_names():
    sent = parameters(embedding=(4, 4), layer=(4,))
    chunks = kept(sent, torch.float32, 64, tied={"head": "embedding", "other": "embedding"})
    assert [chunk.names for chunk in chunks] == [["embedding"], ["layer"]]
    assert sum(chunk.data.nbytes for chunk in chunks) == 4 * (16 + 4)
    assert chunks[1].tied == {}
    received = list(chunks[0].tensors())
    assert [name for name, _ in received] == ["embedding", "head", "other"]
    for _, tensor in received:
        torch.testing.assert_close(tensor, sent[0][1], rtol=0, atol=0)
        assert tensor.data_ptr() == chunks[0].data.ctypes.data


def test_a_parameter_may_change_once_the_next_one_is_asked_for():
    """As a gathered parameter does, whose memory the next one takes."""

    def gathered():
        weight = torch.empty(4)
        for number in range(3):
            yield str(number), weight.fill_(number)

    [chunk] = pack_chunks(gathered(), torch.float32, 64)
    assert [tensor.tolist() for _, tensor in chunk.tensors()] == [[0] * 4, [1] * 4, [2] * 4]


def test_chunks_share_their_memory():
    chunks = [
        (chunk.names, chunk.data.ctypes.data)
        for chunk in pack_chunks(parameters(a=(8,), b=(12,), c=(2,)), torch.float32, 64)
    ]
    assert [names for names, _ in chunks] == [["a"], ["b", "c"]]
    assert len({start for _, start in chunks}) == 1


def test_a_large_parameter_is_sent_from_its_own_memory():
    [(_, large)] = sent = parameters(large=(20,))
    [chunk] = pack_chunks(sent, torch.float32, 64, tied={"head": "large"})
    assert chunk.data.ctypes.data == large.data_ptr()
    assert [name for name, _ in chunk.tensors()] == ["large", "head"]


@pytest.mark.parametrize(
    ("weight", "dtype"),
    [(torch.arange(40.0).reshape(5, 8).T, torch.float32), (torch.arange(40.0), torch.bfloat16)],
    ids=["transposed", "cast"],
)
def test_a_large_parameter_of_another_form_is_copied(weight, dtype):
    [small, large, last] = kept(
        [("small", torch.ones(4)), ("large", weight), ("last", torch.ones(4))], dtype, 16
    )
    assert [chunk.names for chunk in (small, large, last)] == [["small"], ["large"], ["last"]]
    [(_, sent)] = large.tensors()
    torch.testing.assert_close(sent, weight.to(dtype), rtol=0, atol=0)
