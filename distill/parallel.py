"""Training on several processes, started by `torchrun`: each takes its part of every batch, and all take the same step.

With DistributedDataParallel each process holds the whole network; sharded (FSDP2), parameters, gradients and optimizer
state are divided over the processes and a layer is gathered when it is needed, for priors that do not fit one card.
One process is the same code without wrappers.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as distributed_state
from torch.nn.parallel import DistributedDataParallel

# How long processes wait for the first one while it renders or encodes alone; torchrun ends them all where one fails.
PATIENCE = datetime.timedelta(days=7)
FULL = distributed_state.StateDictOptions(full_state_dict=True, cpu_offload=True)
FULL_FROM_FIRST = distributed_state.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


@dataclass(frozen=True)
class Processes:
    """This process among those of a run."""

    rank: int = 0
    count: int = 1
    sharded: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def wrap(self, objective: nn.Module, layers: Iterable[nn.Module] = ()) -> nn.Module:
        """The module whose forward pass and backward pass take part in the exchange; `layers` are its parts that a
        sharded network gathers one at a time."""
        if self.sharded:
            from torch.distributed.fsdp import fully_shard

            for layer in layers:
                fully_shard(layer)
            # In place. The outermost part is divided again after each pass too: averages are taken of the parts.
            fully_shard(objective, reshard_after_forward=True)
            return objective
        if self.count == 1:
            return objective
        device = next(objective.parameters()).device
        return DistributedDataParallel(objective, device_ids=[device.index] if device.type == "cuda" else None)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a scalar over the processes. Its gradient is that of this process's own value: the exchange of
        gradients takes their mean."""
        if self.count == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.count + (value - value.detach())

    def rms(self, values: Tensor) -> Tensor:
        """The root of the mean square over all elements of all processes, which have equally many; a scalar."""
        own = torch.linalg.vector_norm(values) / values.numel() ** 0.5
        # The root has no gradient at zero.
        return own if self.count == 1 else self.mean(own.square()).clamp_min(1e-20).sqrt()

    def gather(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Each tensor [n, ...], and after it those of the other processes, in the order of their ranks."""
        if self.count == 1:
            return tensors
        found = []
        for tensor in tensors:
            parts = [torch.empty_like(tensor) for _ in range(self.count)]
            dist.all_gather(parts, tensor.contiguous())
            found.append(torch.cat(parts))
        return tuple(found)

    def wait(self) -> None:
        if self.count > 1:
            dist.barrier()

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether any process says so."""
        return bool(self.mean(torch.tensor(float(flag), device=device)) > 0)

    def state(self, objective: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Parameters and optimizer state, whole and on the CPU; on the first process where there are several."""
        model, optimizing = distributed_state.get_state_dict(objective, optimizer, options=FULL)
        return {"model": model, "optimizer": optimizing}

    def load(self, state: dict[str, Any], objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take what `state` of the first process gave; all have read it, but parts come from the first one."""
        distributed_state.set_state_dict(
            objective,
            optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            # Not with DDP: PyTorch then gives only the first process's names DDP's prefix.
            options=FULL_FROM_FIRST if self.sharded else FULL,
        )


@contextlib.contextmanager
def processes(device: torch.device, sharded: bool = False) -> Iterator[Processes]:
    """Join the run that `torchrun` started, if it did.

    Raises:
        ValueError: sharded, but not started by torchrun.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ and "RANK" not in os.environ:
        if sharded:
            raise ValueError("a sharded network needs several processes: start the command with torchrun")
        yield Processes()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), sharded)
        # None leaves before all have finished.
        dist.barrier()
    finally:
        dist.destroy_process_group()


def own_device(name: str) -> torch.device:
    """The device called `name`; "auto" is "cuda" where there is one, else "cpu", and "cuda" this process's own card.

    Raises:
        ValueError: it cannot be used here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(f"--device {name} cannot be used: {reason}. Give auto, cpu, cuda or cuda:1") from None
    return device


def device_name(device: torch.device) -> str:
    """For people."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
