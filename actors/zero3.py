"""A causal language model in DeepSpeed ZeRO-3: loading into shards, log-probs, optimiser steps, and export.

Shared by reinforcement learning (`actors.learning`) and the supervised cold start (`actors.cold_start`).
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from actors.host_memory import keep_freed_blocks, return_large_blocks
from actors.shared_prefixes import ATTENTION, pack_rows, register_attention
from orchestrator.algorithm.token_logprobs import LogProbHead
from orchestrator.data.model_files import WEIGHTS, load_tokenizer
from orchestrator.errors import ConfigError
from orchestrator.messages.batches import FAULTS, PolicySettings

SUB_GROUP_ELEMENTS = 50_000_000
"""AdamW updates the shards part by part, and each part ends with the parameter that reaches this size. A
float32 copy of its gradients, and on CPU two temporaries of AdamW's, exist for one part at a time."""
BUCKET_ELEMENTS = 20_000_000
"""Gradients that a rank on CPU collects before it reduces them and adds them up in float32."""
SMALL_WEIGHTS_BYTES = 100 * 2**20
"""Below this a model's learner keeps its freed memory: it is little, and new memory takes time."""
GATHERED_ELEMENTS = 20_000_000
"""Parameters that are gathered at once when the weights are read out, or one larger parameter."""


class LogProbModel(torch.nn.Module):
    """A Hugging Face causal language model that returns log-probs of chosen tokens instead of logits.

    Args:
        shares_prefixes: Run tokens that rows have in common once; the model has the attention for it.
    """

    def __init__(self, model: Any, shares_prefixes: bool = False) -> None:
        super().__init__()
        self.shares_prefixes = shares_prefixes
        for setting in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
            if getattr(model.config, setting, None) not in (None, 1.0):
                raise ConfigError(
                    f"model.path: {model.config.model_type} models scale their logits ({setting}), which the "
                    "log-prob head does not do; choose another model"
                )
        model.set_output_embeddings(LogProbHead.from_linear(model.get_output_embeddings()))
        self.model = model

    def forward(
        self,
        input_ids: Int[Tensor, "batch time"],
        read: Bool[Tensor, "batch time"],
        targets: Int[Tensor, "tokens"],
    ) -> tuple[Float[Tensor, "tokens"], Float[Tensor, "tokens"]]:
        """Log-prob of each target, and entropy in nats, at the positions marked in `read`, row by row.

        Args:
            input_ids: Rows padded on the right.
        """
        if self.shares_prefixes:
            rows = pack_rows(input_ids, read)
            packed = self.model.base_model(
                input_ids=rows.input_ids, position_ids=rows.position_ids, packed_rows=rows, use_cache=False
            ).last_hidden_state[0]
            return self.model.get_output_embeddings()(packed[rows.place[read]], targets)
        # No attention mask: causal attention sees no padding to the right, and its fast kernels take no mask.
        hidden = self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        return self.model.get_output_embeddings()(hidden[read], targets)

    @property
    def head(self) -> LogProbHead:
        """The head, which returns the log-probs."""
        return self.model.get_output_embeddings()

    def checkpoint_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Parameters by checkpoint name. Tied ones come once, under the first of their names."""
        return dict(self.model.named_parameters())

    def tied_names(self) -> dict[str, str]:
        """Further checkpoint names of tied parameters, each with the name under which it comes."""
        first = {id(parameter): name for name, parameter in self.checkpoint_parameters().items()}
        return {
            name: first[id(parameter)]
            for name, parameter in self.model.named_parameters(remove_duplicate=False)
            if first[id(parameter)] != name
        }


class Learner:
    """A policy in ZeRO-3 shards, with its AdamW. Every method is a collective of the process group.

    Args:
        settings: The same on all ranks.
    """

    def __init__(self, settings: PolicySettings) -> None:
        import deepspeed

        self.device = torch.device("cuda" if settings.on_gpu else "cpu")
        if not settings.on_gpu:
            torch.set_num_threads(settings.threads)
            if weights_bytes(settings.model_path) < SMALL_WEIGHTS_BYTES:
                keep_freed_blocks()
            else:
                return_large_blocks()
        self.world_size = torch.distributed.get_world_size()
        self.tokenizer = load_tokenizer(settings.model_path)
        if settings.chat_template is not None:
            self.tokenizer.chat_template = settings.chat_template
        self.pad_token = padding_token(self.tokenizer)
        configuration = zero3_config(settings)
        self.model = load_model(settings, configuration, trained=True)
        self.engine, *_ = deepspeed.initialize(
            model=self.model, optimizer=_adamw(self.model, settings), config=configuration
        )
        self.engine.train()

    def set_learning_rate(self, lr: float) -> None:
        """Use `lr` from the next `update` on."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr

    def backward(self, loss: Float[Tensor, ""], last: bool) -> None:
        """Add the gradients of a micro-batch. Ranks must make as many of these calls as one another.

        Args:
            loss: This micro-batch's share of the mini-batch's loss, of which all ranks' shares are the sum.
            last: Whether it is the last micro-batch before `update`.
        """
        self.engine.set_gradient_accumulation_boundary(last)
        # ZeRO averages gradients over ranks; the shares must be summed.
        self.engine.backward(loss * self.world_size)

    def update(self, faults: Bool[Tensor, "faults"]) -> list[str]:
        """Take an optimiser step with the gradients of all micro-batches, unless a number is not finite.

        Args:
            faults: Which of `FAULTS` this rank has found.

        Returns:
            The faults of all ranks, of `FAULTS`, the norm of the gradients included; none if the step was
            taken. If not, weights and Adam's state are as before on all ranks.
        """
        all_faults = faults.float()
        torch.distributed.all_reduce(all_faults, torch.distributed.ReduceOp.MAX)
        found = [name for name, fault in zip(FAULTS, all_faults.tolist(), strict=True) if fault]
        optimizer = self.engine.optimizer
        if found:  # drop the gradients, as DeepSpeed does when their norm is not finite
            optimizer._overflow_clean_up(optimizer.loss_scale)
            return found
        self.engine.step()
        return [FAULTS[-1]] if optimizer.overflow else []

    @torch.no_grad()
    def health(self, probe: tuple[Tensor, Tensor, Tensor] | None) -> str | None:
        """What makes the weights unfit for a checkpoint, in words; None for healthy ones.

        Args:
            probe: The model's inputs of a forward pass, which finds finite weights that are of no use, as a
                much too high learning rate leaves them.
        """
        if not self.weights_finite():
            return "the weights are not finite"
        if probe is None:
            return None
        logprobs, _ = self.engine(*probe)
        broken = (~torch.isfinite(logprobs).all()).float().reshape(1)
        torch.distributed.all_reduce(broken, torch.distributed.ReduceOp.MAX)
        return "the weights give log-probs that are not finite" if broken.item() else None

    def weights_finite(self) -> bool:
        """Whether the weights of all ranks are finite, and small enough for their squares to be.

        Each rank looks at its shard of the float32 weights, as the norm of the gradients does.
        """
        shards = [shard for shard in self.engine.optimizer.fp32_partitioned_groups_flat if len(shard)]
        norms = [torch.linalg.vector_norm(shard.detach()) for shard in shards]
        broken = torch.tensor([float(not all(torch.isfinite(norm) for norm in norms))], device=self.device)
        torch.distributed.all_reduce(broken, torch.distributed.ReduceOp.MAX)
        return not broken.item()

    @property
    def grad_norm(self) -> float:
        """Global norm of the last update's gradients, before clipping."""
        return float(self.engine.get_global_grad_norm())

    def export(self, folder: Path, is_sender: bool) -> None:
        """Write a Hugging Face folder that vLLM and transformers load; the sender writes."""
        state = {
            name: torch.empty_like(tensor, device="cpu").copy_(tensor)
            for name, tensor in gathered_parameters(self.model, is_sender)
        }
        if is_sender:
            state |= {name: state[first] for name, first in self.model.tied_names().items()}
            self.model.model.save_pretrained(folder, state_dict=state)
            self.tokenizer.save_pretrained(folder)


def load_reference(settings: PolicySettings) -> Any:
    """The initial model in ZeRO-3 shards, as a DeepSpeed engine without an optimiser. A collective."""
    import deepspeed

    configuration = zero3_config(settings)
    engine, *_ = deepspeed.initialize(
        model=load_model(settings, configuration, trained=False), config=configuration
    )
    engine.eval()
    return engine


def weights_bytes(model_path: str) -> float:
    """Size of a folder's weight files; infinite for a name on a hub, or without such files."""
    files = list(Path(model_path).glob(WEIGHTS))
    return sum(file.stat().st_size for file in files) if files else math.inf


def padding_token(tokenizer: Any) -> int:
    """The id that fills rows up: the tokenizer's own, or EOS, or 0. Causal attention never reads it."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    return 0


def _adamw(model: torch.nn.Module, settings: PolicySettings) -> torch.optim.Optimizer:
    arguments: dict[str, Any] = {
        "lr": settings.lr,
        "betas": tuple(settings.betas),
        "weight_decay": settings.weight_decay,
    }
    if settings.offload != "none":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(model.parameters(), adamw_mode=True, **arguments)
    return torch.optim.AdamW(model.parameters(), fused=settings.on_gpu, **arguments)


def zero3_config(settings: PolicySettings) -> dict[str, Any]:
    """DeepSpeed's configuration; the user's `learning.deepspeed` is merged over it, section by section."""
    on_gpu, offload = settings.on_gpu, settings.offload
    zero: dict[str, Any] = {
        "stage": 3,
        "overlap_comm": on_gpu,
        "contiguous_gradients": True,
        "sub_group_size": SUB_GROUP_ELEMENTS,
    }
    if not on_gpu:
        zero["reduce_bucket_size"] = BUCKET_ELEMENTS
    if offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    if offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": on_gpu}
    config: dict[str, Any] = {
        # The learner counts micro-batches and normalises the loss itself.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.grad_clip,
        "bf16": {"enabled": settings.dtype == "bfloat16"},
        # Micro-batches are added up in float32, so that their number changes no more than rounding.
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    return _merge(config, settings.deepspeed)


def load_model(settings: PolicySettings, configuration: dict[str, Any], trained: bool) -> LogProbModel:
    """Load a model straight into ZeRO-3 shards: no rank ever holds all of it.

    Args:
        configuration: DeepSpeed's.
        trained: Whether it has a backward pass, which gradient checkpointing is for.
    """
    from transformers import AutoModelForCausalLM
    from transformers.integrations import HfDeepSpeedConfig

    register_attention()
    # Alive while the model loads: transformers looks it up through a weak reference.
    shard_on_load = HfDeepSpeedConfig(configuration)
    model = AutoModelForCausalLM.from_pretrained(
        settings.model_path,
        use_safetensors=True,
        trust_remote_code=False,
        dtype=getattr(torch, settings.dtype),
        attn_implementation=ATTENTION if settings.shares_prefixes else settings.attention,
    )
    del shard_on_load
    restore_rotary_frequencies(model)
    if settings.eos_tokens:
        model.generation_config.eos_token_id = list(settings.eos_tokens)
    if trained and settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return LogProbModel(model, settings.shares_prefixes)


def restore_rotary_frequencies(model: torch.nn.Module) -> None:
    """Compute the rotary embeddings' frequencies again, in float32.

    While a model loads into shards, DeepSpeed makes every new floating-point tensor in the model's dtype.
    Frequencies rounded to bfloat16 are off by up to 1 in 512: after a thousand tokens the angles are wrong by
    more than a radian.
    """
    for module in model.modules():
        frequencies = [name for name, _ in module.named_buffers(recurse=False) if name.endswith("inv_freq")]
        if frequencies:
            computed = type(module)(module.config)
            for name in frequencies:
                getattr(module, name).data = getattr(computed, name).to(getattr(module, name).device)


def gathered_parameters(model: LogProbModel, is_sender: bool) -> Iterator[tuple[str, Tensor]]:
    """Full parameters by checkpoint name, on the model's device; tied ones come once.

    A collective: every rank iterates it to the end. Only the sender gets tensors. Each is valid until the
    next one is asked for: the caller copies what it keeps.
    """
    import deepspeed

    parameters = list(model.checkpoint_parameters().items())
    while parameters:
        group: list[tuple[str, torch.nn.Parameter]] = []
        size = 0
        while parameters and (not group or size + _full_size(parameters[0][1]) <= GATHERED_ELEMENTS):
            group.append(parameters.pop(0))
            size += _full_size(group[-1][1])
        with deepspeed.zero.GatheredParameters([parameter for _, parameter in group]):
            if is_sender:
                yield from ((name, parameter.detach()) for name, parameter in group)


def parameter_count(model: LogProbModel) -> int:
    """Parameters of the whole model; tied ones count once."""
    return sum(_full_size(parameter) for parameter in model.parameters())


def _full_size(parameter: Any) -> int:
    """Elements of the whole parameter, of which this rank holds a shard."""
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
    """Move a ZeRO-3 rank's shards, gradients, float32 copies and optimiser states to the CPU's memory.

    DeepSpeed's own `offload_states` moves the last two only for its fused Adam, not for torch's.
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
