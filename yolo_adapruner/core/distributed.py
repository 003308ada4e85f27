"""One run in several processes: what each must know of the others so that all hold the same mask, bit for bit.

Somebody else launches the processes, splits each epoch among them and averages the gradients. The mask is replicated:
each process adds up everybody's readings in the order of ranks and then takes the same step from the same numbers.
Knows no trainer and no mask; in a run of one process everything here does nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed as dist
from torch.utils.data.distributed import DistributedSampler


def together() -> bool:
    """Whether this process trains as one of a group, which may be a group of one."""
    return dist.is_available() and dist.is_initialized()


def place() -> tuple[int, int]:
    """Number of processes and which of them this is, (1, 0) in a run of one."""
    return (dist.get_world_size(), dist.get_rank()) if together() else (1, 0)


def group_device() -> torch.device:
    """Where the group's backend wants its tensors: NCCL on this process's GPU, the others in main memory."""
    if together() and "nccl" in dist.get_backend():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def add_up(arrays: tuple[NDArray[np.generic], ...], device: torch.device) -> None:
    """Put the sum over all processes in each array's place, the same in all of them bit for bit.

    An all-reduce may add in another order on each process; here all add what they gathered, first rank first.

    Args:
        arrays: same shapes and types in all processes.
        device: where the group's backend wants its tensors.
    """
    if not together():
        return
    for array in arrays:
        mine = torch.from_numpy(array).to(device)
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine)
        array[...] = sum(part.cpu().numpy() for part in parts)


def of_first(value: float, device: torch.device) -> float:
    """Return the first process's value in all of them."""
    if not together():
        return value
    shared = torch.tensor([value], dtype=torch.float64, device=device)
    dist.broadcast(shared, 0)
    return float(shared.item())


def first() -> bool:
    """Whether this process is the first of its group, or alone."""
    return not together() or dist.get_rank() == 0


def from_first(array: NDArray[np.generic], device: torch.device) -> None:
    """Put the first process's numbers in an array's place in all processes."""
    if together():
        shared = torch.from_numpy(array).to(device)
        dist.broadcast(shared, 0)
        array[...] = shared.cpu().numpy()


def repeated(sampler: Any, first: int, count: int) -> NDArray[np.bool_]:
    """Which of a batch's entries are there only to make all processes' shares of the epoch equally long, (count,).

    `DistributedSampler` deals the epoch's order out like cards and begins it again where the last round falls short:
    entry k of rank r is card k * ranks + r. The order itself, which workers may fetch early, need not be known.

    Args:
        sampler: the training loader's sampler.
        first: how many entries this process had in the epoch before this batch.
        count: entries in this batch.
    """
    sampler = getattr(sampler, "inner", sampler)  # of one that draws a part of the rows
    if not isinstance(sampler, DistributedSampler):
        return np.zeros(count, bool)
    return (first + np.arange(count)) * sampler.num_replicas + sampler.rank >= len(sampler.dataset)  # type: ignore[arg-type]
