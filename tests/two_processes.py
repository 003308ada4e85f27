"""Trainers that leave a note of what each process held, and one of them in two processes on a CPU.

Upstream launches several processes for accelerators only. What it takes to do so on a CPU is in here and nowhere in
the package: the number of processes, the gloo backend, and what of CUDA upstream takes for granted in each of them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import distributed as dist
from torch import nn
from ultralytics.engine import validator
from ultralytics.utils import LOCAL_RANK, RANK

from yolo_adapruner import AdaPruneTrainer
from yolo_adapruner.core import distributed
from yolo_adapruner.errors import RunError

NOTES = "TEST_NOTES"
"""Environment variable with the folder that each process leaves its notes in."""

EVENTS = "TEST_EVENTS"
"""Environment variable with what shall happen once, and in which epoch counted from 1: `nan:3,fail:5`."""

_writes: list[str] = []


class _Parallel(nn.parallel.DistributedDataParallel):
    """Takes no device ids, which upstream hands over without looking at the device."""

    def __init__(self, module: nn.Module, device_ids: Any = None, **kwargs: Any) -> None:
        super().__init__(module, **kwargs)


def _reduce(tensor: torch.Tensor, dst: int, op: Any) -> None:
    """Take the mean by a sum, the one of the two that gloo has."""
    assert op == dist.ReduceOp.AVG
    dist.reduce(tensor, dst=dst, op=dist.ReduceOp.SUM)
    tensor /= dist.get_world_size()


def _watch_writes(event: str, arguments: tuple[Any, ...]) -> None:
    folder = _watch_writes.folder  # type: ignore[attr-defined]
    paths = [os.fspath(a) for a in arguments[:2] if isinstance(a, str | os.PathLike)]
    inside = [path for path in paths if os.path.abspath(path).startswith(folder + os.sep)]
    if not inside:
        return
    if event == "open":
        writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
        writes = event in {"os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"} or (
            event == "os.mkdir" and not os.path.isdir(inside[0])
        )
    if writes:
        _writes.append(f"{event} {inside[0]}")


def _on_cpu(backend: Any) -> Any:
    return lambda **kwargs: backend(**{**kwargs, "device": torch.device("cpu")})


class Noted(AdaPruneTrainer):
    """Writes `<rank>-<epoch>.npz` after each epoch, in as many processes as the device asks for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drawn: list[np.ndarray] = []
        self.once: list[np.ndarray] = []
        self.events = {event for event in os.environ.get(EVENTS, "").split(",") if event}
        if RANK >= 0:
            _watch_writes.folder = os.path.abspath(self.save_dir)
            sys.addaudithook(_watch_writes)

    def _do_train(self) -> None:
        super()._do_train()
        if dist.is_initialized():  # as helpers.LEAVE, for its reason; upstream leaves that to the interpreter's end
            dist.barrier()
            dist.destroy_process_group()

    def final_eval(self) -> None:
        super().final_eval()
        self.leave_note("end")

    def run_callbacks(self, event: str) -> None:
        epoch = getattr(self, "epoch", -1) + 1
        if event == "on_train_epoch_start" and f"fail:{epoch}" in self.events:
            raise RunError(f"Expected nothing, but epoch {epoch} fails: it was asked to.")
        if event == "on_train_epoch_end" and f"nan:{epoch}" in self.events:
            self.events.remove(f"nan:{epoch}")
            self.loss = self.loss * torch.nan
            self.drawn, self.once = [], []
        super().run_callbacks(event)

    def _observe_batch(self, pruner: Any) -> None:
        before = sum(map(len, self.drawn))
        self.once.append(~distributed.repeated(self.train_loader.sampler, before, len(self._batch_ids)))
        self.drawn.append(np.array(self._batch_ids))
        super()._observe_batch(pruner)

    def _close_epoch(self, pruner: Any) -> None:
        self.stage, record = int(pruner.stage), pruner.record
        super()._close_epoch(pruner)
        self.counted = record.totals[1][:, -1]
        self.leave_note(f"{self.epoch:02}")
        self.drawn, self.once = [], []

    def leave_note(self, moment: str) -> None:
        assert self.pruner is not None
        kept, looks = self.pruner.kept, self.pruner.appearance
        assert looks is not None
        np.savez(
            Path(os.environ[NOTES], f"{max(RANK, 0)}-{moment}.npz"),
            logits=self.pruner.mask.logits,
            signal=self.pruner.signal,
            suspicion=self.pruner.suspicion.log_odds,
            looks=looks.mean,
            similarity=self.pruner.redundancy.similarity,
            taken=self.pruner.redundancy.taken,
            twin=self.pruner.redundancy.twin,
            kept=np.zeros(0, bool) if kept is None else kept,
            counts=self.pruner.moments.count,
            means=self.pruner.moments.mean,
            target=self.pruner.state.target,
            stage=self.stage,
            visits=self.counted,
            asked=np.arange(len(self.paths)) if self._draw is None else self._draw.ids,
            paths=np.array(self.paths),
            drawn=np.concatenate(self.drawn) if self.drawn else np.zeros(0, int),
            once=np.concatenate(self.once) if self.once else np.zeros(0, bool),
            images=len(self.train_loader.dataset),
            weights=np.concatenate([p.detach().cpu().numpy().ravel()[:50] for p in self.model.parameters()]),
            writes=np.array(_writes, dtype=str),
        )


class TwoOnCpu(Noted):
    """Launches two processes on the CPU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.world_size = 2
        self.ddp = LOCAL_RANK == -1

    def _setup_ddp(self) -> None:
        dist.init_process_group("gloo", rank=RANK, world_size=self.world_size)

    def _setup_train(self) -> None:
        with mock.patch.object(nn.parallel, "DistributedDataParallel", _Parallel):
            super()._setup_train()

    def validate(self) -> Any:
        with mock.patch.object(validator, "dist", SimpleNamespace(reduce=_reduce, ReduceOp=dist.ReduceOp)):
            return super().validate()

    def final_eval(self) -> None:
        device = mock.Mock(return_value=SimpleNamespace(current_device=int))
        backend = _on_cpu(validator.AutoBackend)
        with mock.patch.multiple(validator, get_torch_device_backend=device, AutoBackend=backend):
            super().final_eval()


class OneLaunched(Noted):
    """Launches a single process that is a group of one: NCCL on a GPU, gloo on a CPU.

    Upstream takes a group of one for no group; the mask does not, so that a single GPU is enough to try its part.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ddp = "TORCHELASTIC_RUN_ID" not in os.environ
        self.world_size = 1

    def _setup_train(self) -> None:
        dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", rank=0, world_size=1)
        super()._setup_train()
        self.model = nn.parallel.DistributedDataParallel(
            self.model,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            find_unused_parameters=True,
        )
