"""A ZeRO-3 checkpoint that another number of ranks resumes: each rank cuts its shard anew from all shards.

In: the files that all ranks of a run saved. Out: this rank's DeepSpeed engine with its shard of the same
float32 weights and AdamW moments, bit for bit.

DeepSpeed's universal checkpoint would write all of it to the disk again. It also gives all parts of a shard
one tensor that counts AdamW's steps, so each part would count the steps of the others too.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PartShapes = Sequence[Mapping[str, torch.Size]]
"""The shapes of the parameters in each part of a shard, in order, by name. AdamW updates part by part."""


def load_resharded(engine: Any, folder: Path, tag: str, saved_by: int) -> None:
    """Restore a checkpoint that another number of ranks saved. A collective.

    Args:
        engine: A DeepSpeed engine of the same model.
        folder: The checkpoint's folder, with the files of all ranks.
        tag: The checkpoint's name within the folder.
        saved_by: How many ranks saved it.
    """
    optimizer, place, on_bf16 = engine.optimizer, str(folder.absolute()), engine.bfloat16_enabled()
    model = _read(engine._get_ckpt_name(place, tag, pp_placeholder=0))
    names = [engine._get_rank_zero_ckpt_name(place, tag, 0, rank, on_bf16) for rank in range(saved_by)]
    saved = [_read(name)["optimizer_state_dict"] for name in names]
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    shard = reshard(saved, model["param_shapes"], engine._get_zero_param_shapes(), rank, ranks)
    # From here on as `engine.load_checkpoint` does for the same number of ranks.
    optimizer.checkpoint_event_prologue()
    engine.load_module_state_dict(model)
    for count in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, count, model[count])
    optimizer.load_state_dict([shard] * ranks)  # it takes the element of its rank
    optimizer.checkpoint_event_epilogue()


@torch.no_grad()
def reshard(
    saved: Sequence[Mapping[str, Any]], saved_parts: PartShapes, parts: PartShapes, rank: int, ranks: int
) -> dict[str, Any]:
    """The state of the ZeRO-3 optimiser that rank `rank` of `ranks` would have saved.

    ZeRO-3 flattens each parameter, fills it up to a multiple of the number of ranks, and gives each rank a
    piece. A part of a rank's shard holds its pieces of several parameters, one after another.

    Args:
        saved: The states that all ranks saved, by rank.
        saved_parts: The parts of each of them.
        parts: The parts of the new shard.
    """
    places = {}
    for number, shapes in enumerate(saved_parts):
        start = 0
        for name, shape in shapes.items():
            places[name] = number, start, shape.numel()
            start += _piece_size(shape.numel(), len(saved))

    def cut(flats: Sequence[Sequence[Tensor]], name: str) -> Tensor:
        number, start, elements = places[name]
        end = start + _piece_size(elements, len(saved))
        whole = torch.cat([of_rank[number][start:end] for of_rank in flats])[:elements]
        size = _piece_size(elements, ranks)
        return torch.nn.functional.pad(whole, (0, size * ranks - elements))[rank * size : (rank + 1) * size]

    def cut_parts(flats: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        return [torch.cat([cut(flats, name) for name in shapes]) for shapes in parts]

    adamw = saved[0]["optimizer_state_dict"]
    states: list[dict[str, Any]] = [{} for _ in parts]
    for key, value in adamw["state"].get(0, {}).items():  # empty before the first step
        of_ranks = [
            [state["optimizer_state_dict"]["state"][number][key] for number in range(len(saved_parts))]
            for state in saved
        ]
        is_moment = torch.is_tensor(value) and value.dim() > 0  # else the number of steps
        values = cut_parts(of_ranks) if is_moment else [copy.deepcopy(value) for _ in parts]
        for state, own in zip(states, values, strict=True):
            state[key] = own
    group = {**adamw["param_groups"][0], "params": list(range(len(parts)))}
    return {
        **saved[0],
        "fp32_flat_groups": cut_parts([state["fp32_flat_groups"] for state in saved]),
        "optimizer_state_dict": {
            "state": {number: state for number, state in enumerate(states) if state},
            "param_groups": [group],
        },
    }


def _piece_size(elements: int, ranks: int) -> int:
    return -(-elements // ranks)


def _read(file: str) -> dict[str, Any]:
    """A file of the run's own checkpoint. Only what is used of it is read from the disk."""
    return torch.load(file, map_location="cpu", weights_only=False, mmap=True)
