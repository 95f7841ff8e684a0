"""The process group of ZeRO-3 ranks: where they meet, and how DeepSpeed starts in their processes."""

import os
import sys
from pathlib import Path

import torch
from torch.distributed import TCPStore

from orchestrator.config.optional_packages import without_packages
from orchestrator.storage.files import locked


def open_store(host: str) -> TCPStore:
    """Open rank 0's store, at which the ranks meet. It listens at once, so no other process takes its port.

    Args:
        host: Address of this node, as the other ranks' nodes reach it.
    """
    return TCPStore(host, 0, is_master=True, wait_for_workers=False)


def join_process_group(
    rank: int, world_size: int, address: str, port: int, on_gpu: bool, store: TCPStore | None = None
) -> None:
    """Join the ranks' process group: nccl between GPUs, gloo between CPUs.

    Args:
        address: Where rank 0's store listens.
        port: The store's port.
        store: The store itself in rank 0; None in other ranks, which connect to it.
    """
    os.environ |= {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": "0",  # Ray shows a rank its own GPU only
    }
    prepare_process(on_gpu)
    from deepspeed.constants import default_pg_timeout

    if store is None:
        store = TCPStore(address, port, timeout=default_pg_timeout)
    store.set_timeout(default_pg_timeout)
    # As DeepSpeed does it: with its deadline, and with nccl bound to the rank's GPU where ranks have peers.
    device = torch.device("cuda", 0) if on_gpu and world_size > 1 else None
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=default_pg_timeout,
        device_id=device,
    )
    start_deepspeed(on_gpu)


def start_deepspeed(on_gpu: bool) -> None:
    """Start DeepSpeed in the process group that torch has joined."""
    prepare_process(on_gpu)
    if not on_gpu:
        _build_cpu_operators()
    import deepspeed

    deepspeed.init_distributed("nccl" if on_gpu else "gloo", auto_mpi_discovery=False)


def prepare_process(on_gpu: bool) -> None:
    """Choose DeepSpeed's accelerator before its first import, and quiet its start-up log."""
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("DS_LOG_LEVEL", "WARNING")
    import logging

    # DeepSpeed's tuner imports MLflow, and the generation of transformers scikit-learn; a rank has no use for
    # either.
    with without_packages("mlflow", "sklearn"):
        from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)


def _build_cpu_operators() -> None:
    """Compile DeepSpeed's CPU communication once on each machine (30 s with g++), in a cache of this project.

    A killed build leaves torch's `lock` file behind, and every later build waits for it for ever. The kernel
    releases our own lock with its process. Its holder knows that no build runs, so a `lock` file found then
    is a leftover.
    """
    # ninja is installed in this environment, which need not be activated.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cache = Path(
        os.environ.setdefault(
            "TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache" / "laser" / "torch_extensions")
        )
    )
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / "laser.lock"):
        for leftover in cache.glob("**/lock"):
            leftover.unlink()
        from deepspeed.accelerator import get_accelerator

        get_accelerator().create_op_builder("ShareMemCommBuilder").load()
