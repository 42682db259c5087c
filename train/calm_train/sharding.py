"""Fully sharded data parallelism (PyTorch's FSDP2): every process keeps a part of weights, gradients and moments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState  # type: ignore[import-untyped]
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin  # type: ignore[import-untyped]
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from transformers.modeling_layers import GradientCheckpointingLayer


def sharding_arguments(module: nn.Module) -> dict[str, Any]:
    """`TrainingArguments` that shard `module`: each transformer layer is gathered when its turn comes, the rest at once."""
    layers = {type(part).__name__ for part in module.modules() if isinstance(part, GradientCheckpointingLayer)}
    config = {"version": 2, "state_dict_type": "FULL_STATE_DICT", "transformer_layer_cls_to_wrap": sorted(layers)}
    return {"fsdp": True, "fsdp_config": config}


def enable_sharding(accelerator: Accelerator, arguments: dict[str, Any]) -> None:
    """Make a fresh `accelerator` shard what it prepares. arguments: of its FSDP plugin.

    Accelerate turns FSDP on for accelerators alone, although FSDP2 runs on CPUs with gloo as well; and it would compute
    wholly in the low precision, where autocast keeps losses and norms in fp32 as the other ways of training do.
    """
    state = accelerator.state
    if state.distributed_type != DistributedType.FSDP:
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**arguments)
    # Every AcceleratorState() copies the distributed type of PartialState over that of Accelerate's shared state.
    state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    state.fsdp_plugin.mixed_precision_policy = None


def widen_scalars(module: nn.Module) -> list[str]:
    """Give parameters of no dimension one, which FSDP2 needs. Returns their names, for `gather_parameters`."""
    names = [name for name, parameter in module.named_parameters() if parameter.ndim == 0]
    for name in names:
        _replace(module, name, lambda value: value.reshape(1))
    return names


def save_gathered(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Write the gathered `state` of the sharded `module`: tied weights once, as `safetensors.torch.load_model` expects."""
    spare = {name for names in _tied(module) for name in names[1:]}
    save_file({name: value.contiguous() for name, value in state.items() if name not in spare}, str(path))


def load_sharded(module: nn.Module, path: Path, *, reads: bool) -> None:
    """Read one file of the whole state on the first process and scatter it. Every process must call it."""
    state: dict[str, Tensor] = {}
    if reads:
        state = load_file(str(path))
        for names in _tied(module):
            kept = next(name for name in names if name in state)
            state.update({name: state[kept] for name in names})
    set_model_state_dict(module, dict(state), options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))


def load_sharded_optimizer(module: nn.Module, optimizer: Optimizer, path: Path, *, reads: bool) -> None:
    """Read an optimizer's whole state on the first process and scatter it. Every process must call it."""
    state = torch.load(path, map_location="cpu", weights_only=True) if reads else {}
    # Not strict: a parameter that no loss has reached yet has no state.
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    set_optimizer_state_dict(module, optimizer, state, options=options)


def gather_parameters(module: nn.Module, scalars: list[str], *, keep: bool) -> None:
    """Replace the shards of `module` by whole parameters in main memory, on the processes that keep them.

    scalars: names of parameters that `widen_scalars` changed. One parameter is gathered at a time. Every process must
    call it; `module` can then no longer be trained.
    """
    shards = [
        (name, part) for name, part in module.named_parameters(remove_duplicate=False) if isinstance(part, DTensor)
    ]
    whole: dict[int, nn.Parameter] = {}
    for name, shard in shards:
        if id(shard) not in whole:
            value = shard.full_tensor().detach()
            whole[id(shard)] = nn.Parameter(value.cpu()) if keep else shard
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, whole[id(shard)])
    for name in scalars if keep else ():
        _replace(module, name, lambda value: value.reshape(()))


def _replace(module: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> None:
    parent, _, own = name.rpartition(".")
    parameter = module.get_parameter(name)
    changed = nn.Parameter(change(parameter.detach()), requires_grad=parameter.requires_grad)
    setattr(module.get_submodule(parent), own, changed)


def _tied(module: nn.Module) -> list[list[str]]:
    """Names of each parameter that has more than one, sorted."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [sorted(found) for found in names.values() if len(found) > 1]
