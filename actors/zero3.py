"""A causal language model in DeepSpeed ZeRO-3: its configuration, loading into shards, log-prob forward, gathering, export.

Shared by reinforcement learning (`actors.learning`) and the supervised cold start (`actors.cold_start`).
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributed import TCPStore

from orchestrator.algorithm.token_logprobs import LogProbHead
from orchestrator.errors import ConfigError
from orchestrator.storage.files import locked


class LogProbModel(torch.nn.Module):
    """A Hugging Face causal language model whose forward gives log-probs of chosen tokens instead of logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        for setting in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
            if getattr(model.config, setting, None) not in (None, 1.0):
                raise ConfigError(
                    f"model.path: {model.config.model_type} models scale their logits ({setting}), which the log-prob head does not do; "
                    "choose a model without it"
                )
        model.set_output_embeddings(LogProbHead.from_linear(model.get_output_embeddings()))
        self.model = model

    def forward(
        self,
        input_ids: Int[Tensor, "batch time"],
        read: Bool[Tensor, "batch time"],
        targets: Int[Tensor, "tokens"],
    ) -> tuple[Float[Tensor, "tokens"], Float[Tensor, "tokens"]]:
        """Log-prob of each target and entropy (nats) at the positions marked in `read`, row by row; rows are padded on the right."""
        # No attention mask: causal attention sees no padding to the right, and its fast kernels (flash, cuDNN) take no mask.
        hidden = self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        return self.model.get_output_embeddings()(hidden[read], targets)

    def checkpoint_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Parameters under their checkpoint names, tied ones under each of their names: vLLM keeps a packed copy of each."""
        yield from self.model.named_parameters(remove_duplicate=False)


def open_store(host: str) -> TCPStore:
    """Rank 0's store, at which the ranks meet. It listens at once, so that no other process can take its port before they do.

    Args:
        host: Address of this node, as the other ranks' nodes reach it.
    """
    return TCPStore(host, 0, is_master=True, wait_for_workers=False)


def join_process_group(
    rank: int, world_size: int, address: str, port: int, on_gpu: bool, store: TCPStore | None = None
) -> None:
    """Enter the ranks' process group: nccl between GPUs, gloo between CPUs. `LOCAL_RANK` is 0, since Ray shows a rank its own GPU.

    Args:
        address, port: Where rank 0's store listens.
        store: That store; None in other ranks, which connect to it.
    """
    os.environ |= {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": "0",
    }
    prepare_process(on_gpu)
    from deepspeed.constants import default_pg_timeout

    if store is None:
        store = TCPStore(address, port, timeout=default_pg_timeout)
    store.set_timeout(default_pg_timeout)
    # As DeepSpeed would: with its deadline, and where ranks have peers, nccl is bound to the rank's GPU.
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
    """Let DeepSpeed take over the process group that torch is in."""
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

    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)


def _build_cpu_operators() -> None:
    """Compile DeepSpeed's CPU communication once a machine (30 s with g++), in a cache of our own.

    torch's build leaves a `lock` behind when it is killed, and every later build waits for it for ever. Whoever holds our lock,
    which the kernel frees with its process, knows that no build runs, so that a `lock` found then is such a leftover.
    """
    # ninja is a package of this environment, which need not be activated.
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


def zero3_config(
    *, dtype: str, grad_clip: float, offload: str, on_gpu: bool, extra: dict[str, Any]
) -> dict[str, Any]:
    """DeepSpeed's configuration; `extra` (the user's `learning.deepspeed`) is merged over it, section by section."""
    zero: dict[str, Any] = {"stage": 3, "overlap_comm": on_gpu, "contiguous_gradients": True}
    if offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    if offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": on_gpu}
    config: dict[str, Any] = {
        # The learner counts micro-batches and normalises the loss itself.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": grad_clip,
        "bf16": {"enabled": dtype == "bfloat16"},
        # Micro-batches are added up in float32, so that their number changes no more than rounding.
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    return _merge(config, extra)


def load_model(
    path: str,
    config: dict[str, Any],
    *,
    dtype: str,
    attention: str = "sdpa",
    gradient_checkpointing: bool = False,
) -> LogProbModel:
    """Load a model straight into ZeRO-3 shards: no rank ever holds all of it."""
    from transformers import AutoModelForCausalLM
    from transformers.integrations import HfDeepSpeedConfig

    # Alive while the model loads: transformers looks it up through a weak reference.
    shard_on_load = HfDeepSpeedConfig(config)
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, dtype), attn_implementation=attention
    )
    del shard_on_load
    restore_rotary_frequencies(model)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return LogProbModel(model)


def restore_rotary_frequencies(model: torch.nn.Module) -> None:
    """Compute the rotary embeddings' frequencies again, in float32.

    While a model loads into shards, DeepSpeed makes every new floating-point tensor in the model's dtype. Frequencies rounded to
    bfloat16 are off by up to 1 in 512: a thousand tokens on, the angles are wrong by more than a radian.
    """
    for module in model.modules():
        frequencies = [name for name, _ in module.named_buffers(recurse=False) if name.endswith("inv_freq")]
        if frequencies:
            computed = type(module)(module.config)
            for name in frequencies:
                getattr(module, name).data = getattr(computed, name).to(getattr(module, name).device)


def gathered_parameters(
    model: LogProbModel, chunk_bytes: int, is_sender: bool
) -> Iterator[tuple[str, Tensor]]:
    """Full parameters by checkpoint name, gathered in groups of at most `chunk_bytes` (at least one parameter).

    A collective: every rank iterates it to the end. Only the sender gets tensors: copies on the model's device, good after the
    next group.
    """
    import deepspeed

    group: list[tuple[str, torch.nn.Parameter]] = []
    size = 0
    parameters = list(model.checkpoint_parameters())
    for position, (name, parameter) in enumerate(parameters):
        group.append((name, parameter))
        size += _full_size(parameter) * parameter.element_size()
        if size < chunk_bytes and position + 1 < len(parameters):
            continue
        unique = list({id(p): p for _, p in group}.values())
        with deepspeed.zero.GatheredParameters(unique):
            copies = [(n, p.detach().clone()) for n, p in group] if is_sender else []
        yield from copies
        group, size = [], 0


def parameter_count(model: LogProbModel) -> int:
    """Parameters of the whole model; tied ones count once."""
    return sum(_full_size(parameter) for parameter in model.parameters())


def export_model(model: LogProbModel, folder: Path, tokenizer: Any, is_sender: bool) -> None:
    """Write a Hugging Face folder that vLLM and transformers load. A collective; the sender writes."""
    state = {name: tensor.cpu() for name, tensor in gathered_parameters(model, 2**30, is_sender)}
    if is_sender:
        model.model.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)


def _full_size(parameter: Any) -> int:
    """Elements of a parameter of which this rank may hold a shard only."""
    return parameter.ds_numel


def _merge(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in extra.items():
        merged[key] = (
            _merge(merged[key], value)
            if isinstance(value, dict) and isinstance(merged.get(key), dict)
            else value
        )
    return merged


def offload_states(engine: Any) -> None:
    """Move what a ZeRO-3 rank holds to the CPU's memory: shards, gradients, float32 copies and optimiser states.

    DeepSpeed's own `offload_states` moves the last two for its fused Adam alone, not for torch's.
    """
    from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as States
    from deepspeed.runtime.zero.offload_states import offload_optimizer_states

    optimizer = engine.optimizer
    optimizer.offload_states(
        include=[States.lp_params, States.lp_grads, States.contiguous_grad_buffer], pin_memory=_on_gpu(engine)
    )
    for shard in optimizer.fp32_partitioned_groups_flat:
        shard.data = shard.data.to("cpu")
    offload_optimizer_states(optimizer.optimizer, "cpu")
    if _on_gpu(engine):
        torch.cuda.empty_cache()


def reload_states(engine: Any) -> None:
    """Undo `offload_states`."""
    from deepspeed.runtime.zero.offload_states import reload_optimizer_states

    optimizer = engine.optimizer
    for shard in optimizer.fp32_partitioned_groups_flat:
        shard.data = shard.data.to(engine.device)
    reload_optimizer_states(optimizer.optimizer, engine.device)
    optimizer.reload_states()


def _on_gpu(engine: Any) -> bool:
    return torch.device(engine.device).type == "cuda"
