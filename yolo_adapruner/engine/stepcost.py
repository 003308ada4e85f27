"""What the mask costs a training step: Ultralytics' own trainer and ours, step by step in turn, in one process.

All sides run the step of Ultralytics' loop, loader included, on the same machine, threads, seed and recipe. Ours are in
their joint stage, with weights on. What happens once an epoch is left out. Where readings are taken of several steps at
once (`held`), each of a round's steps bears its part of that. Knows nothing else of how the mask works.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils.torch_utils import autocast, unset_deterministic

from yolo_adapruner.config import PruneConfig, RunConfig
from yolo_adapruner.core.pruner import Stage
from yolo_adapruner.engine import runtime
from yolo_adapruner.engine.detect import AdaPruneTrainer
from yolo_adapruner.engine.held import MOST
from yolo_adapruner.engine.names import ultralytics_args
from yolo_adapruner.engine.trouble import one_line_errors, quiet
from yolo_adapruner.errors import ConfigError

_UNTIMED = 3  # steps a side before the clock counts: allocators, caches, the mosaic buffer
_RESAMPLES = 2000
PARTS: dict[str, dict[str, Any]] = {
    "mask": {"judge": False, "redundancy": 0.0},
    "mask, judge": {"judge": True, "redundancy": 0.0},
    "mask, redundancy": {"judge": False},
    "mask, judge, redundancy": {"judge": True},
}
"""What a step may do beside the stock one, and the method's settings for it; redundancy is the config's own."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""Seconds on the wall; or those that this process computed, which other programs on the machine hardly change, but
which do not count an accelerator's."""


@dataclass(frozen=True)
class StepCost:
    """The time of a masked and attributed step over that of a stock one.

    Attributes:
        ratio: median over rounds of (median masked step / median stock step).
        quartiles: of the rounds' ratios.
        interval: 95 % bootstrap interval of their median.
        rounds, steps: rounds, and steps a side in each.
        stock_ms, masked_ms: median step of either side, milliseconds.
        same_input: both sides were given the same pictures, pixel by pixel, in every step. If not, the ratio compares
            two recipes.
        stock_operations, masked_operations: tensor operations that compute something in a step of either side, the
            mean of 16, batches held as on a GPU; each a kernel or more there, the launching of which is what small
            models wait for.
    """

    ratio: float
    quartiles: tuple[float, float]
    interval: tuple[float, float]
    rounds: int
    steps: int
    stock_ms: float
    masked_ms: float
    same_input: bool
    stock_operations: int = 0
    masked_operations: int = 0


class Operations(TorchDispatchMode):
    """Counts tensor operations while it is entered, without views and allocations.

    Attributes:
        count: how many there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = func._schema
        view = any(each.alias_info is not None and not each.alias_info.is_write for each in schema.returns)
        self.count += not (view or schema.name.startswith(("aten::empty", "aten::detach")))
        return func(*args, **(kwargs or {}))


def measure(config: RunConfig, *, steps: int = 10, repeats: int = 15, clock: str = "wall") -> StepCost:
    """Return what the mask with all that the config asks of it costs a training step; as `measure_parts`."""
    return measure_parts(config, {"masked": {}}, steps=steps, repeats=repeats, clock=clock)["masked"]


def measure_parts(
    config: RunConfig,
    parts: Mapping[str, Mapping[str, Any]] = PARTS,
    *,
    steps: int = 10,
    repeats: int = 15,
    clock: str = "wall",
) -> dict[str, StepCost]:
    """Return what each of several kinds of masked step costs beside one stock step, by name, all in turn.

    Args:
        config: the run; its recipe and seed serve all sides, its stages and epochs none.
        parts: settings of the method over the config's, by name.
        steps: steps a side in a round, >= 1.
        repeats: rounds, >= 2.
        clock: one of `CLOCKS`.

    Raises:
        ConfigError: `steps` or `repeats` is out of range; or as `train`.
        DataError, RunError: as `train`.
    """
    if steps < 1 or repeats < 2:
        raise ConfigError(f"Expected steps >= 1 and repeats >= 2, but got steps {steps} and repeats {repeats}.")
    runtime.offer_font()
    with quiet(), TemporaryDirectory() as folder, one_line_errors(config.data):
        kinds = [DetectionTrainer, *(masked(config, part) for part in parts.values())]
        sides = [Side(kind, overrides(config, Path(folder, str(i))), clock) for i, kind in enumerate(kinds)]
        try:
            runtime.use_all_cores()
            state = random_state()
            for side in sides:
                side.open(state)
            return dict(zip(parts, _measure(sides, steps, repeats), strict=True))
        finally:
            for side in sides:
                side.close()
            unset_deterministic()


def masked(config: RunConfig, part: Mapping[str, Any] | None = None) -> type[Any]:
    """Return our trainer's class with a config's method, some settings in place of its own, in a joint stage for ever.

    Never in another stage, nor within close_mosaic of the end.
    """
    own = config.prune.model_dump()
    stages = {"share": own["share"] or 0.1, "warmup": 0, "joint": 1.0}
    return AdaPruneTrainer.configured(PruneConfig(**{**own, **stages, **(part or {})}))


def overrides(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Return what a side's trainer is made with.

    Raises:
        ConfigError: as `train`.
    """
    runtime.chosen_device(config.device)
    return ultralytics_args(config) | {"epochs": 10_000, "plots": False, "verbose": False, "save_dir": str(folder)}


def peak(config: RunConfig, side: str, *, steps: int = 20) -> float:
    """Return the most memory that this process has ever held after some steps of one side, GB.

    Of a CPU's run the resident memory, everything imported included; of a CUDA device what torch allocated there.

    Args:
        config: as `measure`.
        side: stock or masked.
        steps: how many.
    """
    kind = DetectionTrainer if side == "stock" else masked(config)
    with quiet(), TemporaryDirectory() as folder, one_line_errors(config.data):
        found = Side(kind, overrides(config, Path(folder)), "wall")
        try:
            runtime.use_all_cores()
            found.open(random_state())
            for _ in range(steps):
                found.step()
            if found.trainer.device.type == "cuda":
                return torch.cuda.max_memory_allocated() / 1e9
            return runtime.peak_memory()
        finally:
            found.close()
            unset_deterministic()


def facts(config: RunConfig) -> dict[str, Any]:
    """Return what a measurement stands beside: model, sizes, mixing, machine, versions."""
    threads = torch.get_num_threads()  # before the device is asked for, which sets them
    mixing = {key: config.train[key] for key in ("mosaic", "mixup", "cutmix", "copy_paste") if key in config.train}
    return {
        **{key: getattr(config, key) for key in ("model", "data", "imgsz", "batch", "seed")},
        "mixing": mixing,
        "hardware": runtime.hardware(runtime.chosen_device(config.device), threads=threads),
        "versions": runtime.versions(),
    }


def summarise(
    stock: Sequence[Sequence[float]], masked: Sequence[Sequence[float]], *, same_input: bool = True
) -> StepCost:
    """Return the figures behind the seconds of each step, by round and step."""
    ratios = np.array([statistics.median(m) / statistics.median(s) for s, m in zip(stock, masked, strict=True)])
    drawn = np.random.default_rng(0).choice(ratios, (_RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(drawn, 1), (0.025, 0.975))
    first, third = np.quantile(ratios, (0.25, 0.75))
    return StepCost(
        ratio=float(np.median(ratios)),
        quartiles=(float(first), float(third)),
        interval=(float(low), float(high)),
        rounds=len(ratios),
        steps=len(stock[0]),
        stock_ms=1000 * statistics.median(s for part in stock for s in part),
        masked_ms=1000 * statistics.median(m for part in masked for m in part),
        same_input=same_input,
    )


class Side:
    """A trainer set up as for training, stepped from outside, with random states of its own."""

    def __init__(self, kind: type[Any], overrides: Mapping[str, Any], clock: str) -> None:
        self.trainer, self._clock = kind(overrides=dict(overrides)), CLOCKS[clock]
        self.picture: torch.Tensor | None = None
        self._apart = 0.0  # seconds of the steps so far that several of them share

    def open(self, state: Any) -> None:
        """Set up, and draw from `state` on."""
        trainer = self.trainer
        trainer._setup_train()
        trainer.epoch = trainer.start_epoch
        trainer.train_time_start = time.time()
        trainer.run_callbacks("on_train_start")
        trainer.run_callbacks("on_train_epoch_start")
        assert getattr(trainer, "pruner", None) is None or trainer.pruner.stage is Stage.JOINT
        trainer._model_train()
        trainer.optimizer.zero_grad()
        self._batches = self._forever()
        self._state = state
        self.held = getattr(trainer, "held", None)
        if self.held is not None:
            self._read, self.held.read = self.held.read, self._timed_read

    def _timed_read(self) -> None:
        self._wait()
        began = self._clock()
        self._read()
        self._wait()
        self._apart += self._clock() - began

    def shared(self) -> float:
        """Read what is held, and return the seconds that reading has taken since this was last asked."""
        if self.held is not None:
            self.held.read()
        seconds, self._apart = self._apart, 0.0
        return seconds

    def _forever(self) -> Iterator[Any]:
        while True:
            yield from self.trainer.train_loader

    def step(self) -> float:
        """Take one step as Ultralytics' loop does, and return its seconds without those that `shared` tells."""
        trainer, apart = self.trainer, self._apart
        _set_random_state(self._state)
        self._wait()
        began = self._clock()
        with self.phase("loader"):
            batch = next(self._batches)
            trainer.run_callbacks("on_train_batch_start")
        kind = torch.bfloat16 if trainer.args.amp == "bf16" else trainer.amp
        with autocast(kind, device=trainer.device.type):
            with self.phase("loader"):
                batch = trainer.preprocess_batch(batch)
            with self.phase("forward"):
                loss, trainer.loss_items = trainer.model(batch)
            trainer.loss = loss.sum()
        with self.phase("backward"):
            trainer.scaler.scale(trainer.loss).backward()
        with self.phase("optimizer"):
            trainer.optimizer_step()
        with self.phase("mask"):
            trainer.run_callbacks("on_train_batch_end")
        self._wait()
        seconds = self._clock() - began - (self._apart - apart)
        self._state = random_state()
        self.picture = batch["img"]
        return seconds

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Enter a part of a step, for whoever wants to know how long each takes."""
        return nullcontext()

    def _wait(self) -> None:
        kind = self.trainer.device.type
        if kind in ("cuda", "mps"):
            getattr(torch, kind).synchronize()

    def close(self) -> None:
        """Stop the loader's workers."""
        for name in ("train_loader", "test_loader"):
            if hasattr(self.trainer, name):
                getattr(self.trainer, name).close()
        self.trainer.run_callbacks("teardown")


def _measure(sides: Sequence[Side], steps: int, repeats: int) -> list[StepCost]:
    """What each side but the first costs beside the first."""
    for _ in range(_UNTIMED):
        for side in sides:
            side.step()
    for side in sides:
        side.shared()
    seconds: list[list[list[float]]] = [[] for _ in sides]
    same = [True] * len(sides)
    for _ in range(repeats):
        gc.collect()
        for part in seconds:
            part.append([])
        for i in range(steps):
            # Who goes first changes: the next finds warmer caches, and whatever drifts, drifts for all.
            for k in [(first + i) % len(sides) for first in range(len(sides))]:
                seconds[k][-1].append(sides[k].step())
            same = [known and _equal(sides[0].picture, side.picture) for known, side in zip(same, sides, strict=True)]
        for side, part in zip(sides, seconds, strict=True):
            share = side.shared() / steps
            part[-1] = [own + share for own in part[-1]]
    counts = [_operations(side) for side in sides]
    return [
        replace(
            summarise(seconds[0], seconds[k], same_input=same[k]),
            stock_operations=counts[0],
            masked_operations=counts[k],
        )
        for k in range(1, len(sides))
    ]


def _operations(side: Side) -> int:
    """Operations of a step, what several share among them, as on a GPU."""
    if side.held is not None:
        side.held.most = MOST
    with Operations() as operations:
        for _ in range(MOST):
            side.step()
        side.shared()
    return round(operations.count / MOST)


def _equal(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and torch.equal(a, b)


def random_state() -> tuple[Any, Any, torch.Tensor]:
    """Return where the random numbers stand that a step draws from; each side goes on from the same."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_random_state(state: tuple[Any, Any, torch.Tensor]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
