"""Whether the planned memory is there, on this machine and on its GPUs; and if not, settings that fit."""

from orchestrator.cluster.machine import GIB, MainMemory
from orchestrator.config.training import RunConfig
from orchestrator.pools.memory import MemoryPlan, ModelSize
from orchestrator.pools.savings import as_overrides, proposal


def gpu_memory() -> int | None:
    """Bytes of this machine's smallest GPU; None where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    return min(
        torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())
    )


def memory_notes(
    config: RunConfig, size: ModelSize, plan: MemoryPlan, room: MainMemory, gpu: int | None
) -> list[str]:
    """A note for each need beyond this machine's main memory or beyond GPUs of `gpu` bytes, if any.

    An actor that reserves a fraction of a GPU may use that fraction of its memory.
    """
    notes = []
    if plan.host_total > room.for_run:
        phase = max(plan.host_phases, key=plan.host_phases.__getitem__)
        notes.append(
            f"does not fit: all pools together need {plan.host_total / GIB:.1f} GiB (when they {phase}), and "
            f"a run can take {room.for_run / GIB:.1f} GiB here: {_room(room)}. "
            + _proposed(config, size, room)
        )
    if gpu is None:
        return notes
    needs = (
        ("a learner rank", plan.rank.peak, config.learning.gpus_per_rank),
        ("an engine's weights and KV cache", plan.engine.held, config.rollout.gpus),
    )
    for name, needed, share in needs:
        given = gpu * min(share, 1)
        if share and needed > given:
            notes.append(
                f"{name}: {needed / GIB:.1f} GiB, but it gets {given / GIB:.1f} GiB of this machine's "
                "smallest GPU"
            )
    return notes


def _room(room: MainMemory) -> str:
    used = room.total - room.available
    kept = room.available - room.for_run
    return (
        f"it has {room.total / GIB:.1f} GiB, {used / GIB:.1f} are in use, and Ray ends actors when fewer "
        f"than {kept / GIB:.1f} are left"
    )


def _proposed(config: RunConfig, size: ModelSize, room: MainMemory) -> str:
    found = proposal(config, size, lambda plan: plan.host_total <= room.for_run)
    if found is None:
        return "No settings of this model fit: use a machine with more memory, or a smaller model"
    settings, plan = found
    return f"These settings fit, with {plan.host_total / GIB:.1f} GiB: {as_overrides(settings)}"
