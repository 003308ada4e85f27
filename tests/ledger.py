"""An account of a run kept beside it: what each batch read, which pass of an epoch stood, and what the mask made of it.

`replay` gives the same readings to a mask of its own, so that a test need only say which batches must not count.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from yolo_adapruner import AdaPruneTrainer
from yolo_adapruner.core.pruner import Pruner, Settings, Stage
from yolo_adapruner.engine.channels import CHANNELS, detection_channels
from yolo_adapruner.engine.heads import TASKS


@dataclass
class Pass:
    """One pass through an epoch; it may have been broken off or undone.

    Attributes:
        batches: ids and readings of each batch that ended, in order; no readings in the fine-tune stage.
        looks: what the images of each of these looked like, None where nobody watched.
        logits, counts: of the mask after the epoch; None where this pass was not the one that stood.
    """

    epoch: int
    stage: Stage
    started: int = 0
    batches: list[tuple[np.ndarray, np.ndarray | None]] = field(default_factory=list)
    looks: list[np.ndarray | None] = field(default_factory=list)
    metric: float = 0.0
    logits: np.ndarray | None = None
    counts: np.ndarray | None = None


class Watched(AdaPruneTrainer):
    """Keeps the account, and lets things go wrong where a test says so.

    Attributes:
        passes: all passes through all epochs, those that did not stand among them.
        faults: by (epoch, batch), both counted from 1, what happens there once: a function of the trainer.
        gradients: by (epoch, batch), what the first parameter's gradient is multiplied by before the step.
        skipped: (epoch, batch) of each step that left every parameter as it was.
    """

    passes: list[Pass]
    faults: dict[tuple[int, int], Any]
    gradients: dict[tuple[int, int], float]
    skipped: list[tuple[int, int]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.passes, self.faults, self.gradients, self.skipped = [], {}, {}, []
        super().__init__(*args, **kwargs)

    @property
    def moment(self) -> tuple[int, int]:
        """Epoch and batch that run now, counted from 1."""
        return self.epoch + 1, self.passes[-1].started

    @property
    def stood(self) -> list[Pass]:
        """The passes that closed an epoch."""
        return [one for one in self.passes if one.logits is not None]

    def run_callbacks(self, event: str) -> None:
        if event == "on_train_epoch_start" and self.pruner is not None:
            self.passes.append(Pass(self.epoch + 1, self.pruner.stage))
        elif event == "on_train_batch_start":
            self.passes[-1].started += 1
        super().run_callbacks(event)

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch = super().preprocess_batch(batch)
        fault = self.faults.pop(self.moment, None)
        if fault is not None:
            fault(self)
        return batch

    def optimizer_step(self) -> None:
        factor = self.gradients.pop(self.moment, None)
        if factor is not None:
            next(p for p in self.model.parameters() if p.grad is not None).grad.mul_(factor)
        before = [p.detach().clone() for p in self.model.parameters()]
        super().optimizer_step()
        if all(torch.equal(p, was) for p, was in zip(self.model.parameters(), before, strict=True)):
            self.skipped.append(self.moment)

    def _observe_batch(self, pruner: Pruner) -> None:
        seen = self._tap.assignment
        readings = None
        if seen is not None and pruner.rehearses:
            readings = self._rehearsal.readings(self._tap, self._spoilt).cpu().numpy()
        elif seen is not None:
            readings = detection_channels(seen).float().cpu().numpy()
        self.passes[-1].batches.append((np.array(self._batch_ids), readings))
        self.passes[-1].looks.append(self._look())
        super()._observe_batch(pruner)

    def _look(self) -> np.ndarray | None:
        if self._features is None:
            return None
        seen = self._features._map
        looks = self._features.take(self._tap.owners)
        self._features._map = seen  # it is taken once; the trainer has not had it yet
        return None if looks is None else looks.cpu().numpy()

    def _close_epoch(self, pruner: Pruner) -> None:
        super()._close_epoch(pruner)
        self.passes[-1].metric = float(self.metrics[TASKS["detect"].metric])
        self.passes[-1].logits = pruner.mask.logits.copy()
        self.passes[-1].counts = pruner.moments.count.copy()


def replay(trainer: Watched, left_out: Collection[tuple[int, int]] = (), *, tolerance: float = 0.0) -> None:
    """Check the mask after each epoch, bit for bit, against one that was given the account's readings.

    Args:
        trainer: a finished run with a warm-up of a fixed length.
        left_out: batches of passes that stood, as (epoch, batch) counted from 1, that must not have counted.
        tolerance: how far a logit may be off; a GPU reads the same predictions a little differently each time.
    """
    assert trainer.pruner is not None
    looked = trainer.pruner.appearance
    own = Pruner(
        trainer.pruner.n,
        len(CHANNELS),
        trainer.epochs,
        Settings(**trainer.prune_config.model_dump()),
        trainer.args.seed,
        trainer.constraints,
        judge=trainer.pruner.suspicion.judge,
        readings=trainer.pruner.readings,
        features=0 if looked is None else looked.mean.shape[1],
        layout=None if looked is None else looked._labels,
    )
    assert [one.epoch for one in trainer.stood] == list(range(1, len(trainer.stood) + 1))
    for one in trainer.stood:
        own.open_epoch()
        before, seen = own.mask.logits.copy(), np.zeros(own.n, bool)
        for number, (ids, readings) in enumerate(one.batches, 1):
            if readings is not None and (one.epoch, number) not in left_out:
                width = own.readings if own.rehearses else own.channels
                own.observe(
                    ids, readings[:, :width], rehearsed=readings[:, width : 2 * width] if own.rehearses else None
                )
                sound = np.isfinite(readings).any(1)
                seen[ids[sound]] = True
                looks = one.looks[number - 1]
                if own.appearance is not None and looks is not None:
                    own.appearance.add(ids[sound], looks[sound], np.ones(sound.sum()))
        own.close_epoch(one.metric)
        np.testing.assert_allclose(one.logits, own.mask.logits, tolerance, tolerance, err_msg=f"epoch {one.epoch}")
        np.testing.assert_array_equal(one.counts, own.moments.count, err_msg=f"epoch {one.epoch}")
        assert one.logits is not None
        if own.kept is None:  # at the joint stage's end the best epoch's mask is taken over whole
            # Whoever was not seen goes along with all, and so before nobody.
            along = one.logits[~seen] - before[~seen]
            assert not len(along) or np.ptp(along) < 1e-9
    np.testing.assert_array_equal(trainer.pruner.kept, own.kept)


def out_of_memory(_: Watched) -> None:
    """Fail as CUDA does, before the forward."""
    raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")


def out_of_memory_in_backward(trainer: Watched) -> None:
    """Fail as CUDA does, once the forward is done."""
    scale = trainer.scaler.scale

    def fail(loss: torch.Tensor) -> torch.Tensor:
        trainer.scaler.scale = scale
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    trainer.scaler.scale = fail


def nan_loss(trainer: Watched) -> None:
    """Let this batch's loss be NaN, and with it every gradient."""
    scale = trainer.scaler.scale

    def spoil(loss: torch.Tensor) -> torch.Tensor:
        trainer.scaler.scale = scale
        trainer.loss = loss * torch.nan
        return scale(trainer.loss)

    trainer.scaler.scale = spoil
