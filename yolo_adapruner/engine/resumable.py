"""A trainer whose run may be cut off at any moment and, resumed, ends where it would have ended.

Ultralytics' own resume begins from averaged weights in half precision, another shuffle and other random numbers. This
one writes `state`'s file after an epoch and goes on from that alone. It carries the mask's state without knowing what
is in it, and leaves Ultralytics' training loop as it is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from ultralytics.cfg import get_cfg
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.torch_utils import unwrap_model

from yolo_adapruner.data.export import forget, replace_file
from yolo_adapruner.engine import runtime, snapshot, state

_MAY_CHANGE = {"device", "save_dir", "data", "workers", "cache", "plots"}
_NAMES = {"task", "mode", "model", "resume", "name", "project"}


class Resumable(BaseTrainer):
    """The part of a trainer that takes its state down and up again; stands before an Ultralytics trainer.

    Attributes:
        paths: each training image once, absolute, sorted.
        updates: optimizer steps taken, those before an interruption included.
        seconds_before: seconds trained before an interruption.
        steps: where the optimizer's steps fall.
        taken: whether the last step was taken, and not skipped; None once a subclass has seen it.
        saved: what a resumed run goes on from, until its first epoch begins; None otherwise.
        labels_print: what tells the labels of the training images from others; None where nothing does.
    """

    args: Any
    train_loader: Any
    wdir: Path
    last: Path
    best: Path
    epoch: int
    train_time_start: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.paths: Sequence[str] = []
        self._updates, self._unknown = 0, list[Tensor]()
        self.seconds_before = 0.0
        self.steps = snapshot.Steps()
        self.taken: bool | Tensor | None = None
        self.saved: dict[str, Any] | None = None
        self.labels_print: str | None = None
        self._accumulate = 1
        super().__init__(*args, **kwargs)

    # ---- what a subclass adds -----------------------------------------------------------------------------------

    def method_settings(self) -> Mapping[str, Any]:
        """Return the settings a resumed run must share with the interrupted one, beside Ultralytics'."""
        return {}

    def mask_state(self) -> dict[str, Any] | None:
        """Return what the mask goes on from, as arrays and plain values, with the stage the loader was made for."""
        return None

    def take_up_mask(self, mask: dict[str, Any]) -> None:
        """Take over what `mask_state` gave."""

    def enter_again(self, mask: Mapping[str, Any]) -> None:
        """Make the loader of the stage that the saved epoch ran in."""

    # ---- set-up -------------------------------------------------------------------------------------------------

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Settle the arguments: the interrupted run's, where our file lies beside the checkpoint to resume from."""
        file = state.beside(self.args.resume)
        if file is None:
            super().check_resume(overrides)
            return
        self.saved = state.load(file)
        state.check_settings(file, self.saved, self.method_settings(), state.run_config(file.parent.parent))
        self.args = _resumed_args(self.saved["args"], overrides)
        self.args.resume, self.resume = str(file), True

    def setup_model(self) -> Any:
        """Build the interrupted run's model; its weights follow. Build or load as Ultralytics does otherwise."""
        if self.saved is None:
            return super().setup_model()
        self.model = self.get_model(cfg=self.saved["architecture"], verbose=RANK in {-1, 0})
        return None

    def _build_train_pipeline(self) -> None:
        super()._build_train_pipeline()
        self.steps.per_epoch = len(self.train_loader)
        self._nominal = self._accumulate

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        """Take over the training state in full precision; as Ultralytics does where its checkpoint is all there is."""
        if self.saved is None:
            super().resume_training(ckpt)
            return
        self.refuse_other_set()  # before weights for other classes do not fit
        snapshot.put(self, self.saved["training"])
        self.epoch = self.saved["epoch"]
        self.start_epoch = self.epoch + 1
        LOGGER.info(f"going on after epoch {self.start_epoch} of {self.epochs}")

    def refuse_other_set(self) -> None:
        """Refuse to go on with other images, before anything else is found wrong with them.

        Raises:
            RunError: the training images or the classes are not the interrupted run's.
        """
        if self.saved is not None:
            state.check_data(Path(self.args.resume), self.saved, self.paths, self.data["names"])

    def warn_of_other_labels(self) -> None:
        """Say so where the training images have other labels than when the run was interrupted."""
        before = None if self.saved is None else self.saved.get(state.LABELS)
        if before not in (None, self.labels_print):
            LOGGER.warning(
                "labels of training images have changed since this run was interrupted: it goes on with those of now, "
                "and its mask has learned from both"
            )

    def take_up(self) -> None:
        """Take over the rest once all is set up: the mask, and the run folder as the saved epoch left it."""
        self._run_config = state.run_config(Path(self.save_dir)) if self.saved is None else self.saved["config"]
        if self.saved is None:
            if RANK in {-1, 0} and not self.resume:  # of an earlier run: this one would pass for finished, or begun
                for name in (state.NAME, self.last.name, self.best.name):
                    (self.wdir / name).unlink(missing_ok=True)
                forget(Path(self.save_dir))
            return
        ran, runs = ({**where["versions"], "machine": where["machine"]} for where in (self.saved, self._where()))
        if other := state.differences(ran, runs):
            LOGGER.warning(f"resumed, but not bit for bit, for the run began elsewhere: {other}")
        self.seconds_before = self.saved["training"]["seconds"]
        self.train_time_start = time.time() - self.seconds_before
        if self.saved["mask"] is not None:
            self.take_up_mask(state.arrays(self.saved["mask"]))
        if RANK in {-1, 0}:
            with replace_file(Path(self.csv)) as temporary:
                temporary.write_text(self.saved["training"]["table"], encoding="utf-8")
            self.save_checkpoints()

    # ---- an epoch -----------------------------------------------------------------------------------------------

    @property
    def accumulate(self) -> int:
        """Batches a step, as Ultralytics sets and reads it; more until the first step after a resume, see `Steps`."""
        return self._accumulate + self.steps.owed

    @accumulate.setter
    def accumulate(self, batches: int) -> None:
        self._accumulate = batches

    def note(self, event: str) -> None:
        """Do this class's part of an event, before anyone else's."""
        if event == "on_train_start":
            self.train_time_start -= self.seconds_before
            if self.saved is not None:
                self._go_on(self.saved)
        elif event == "on_train_epoch_start":
            self._end_warmup()
            self.steps.open_epoch(self.epoch)
            if self.saved is not None:
                snapshot.put_pending(self, self.saved["training"])
                self.args.close_mosaic = self.saved["args"]["close_mosaic"]
                self.saved = None
        elif event == "on_train_batch_start":
            self.steps.next_batch()
        elif event == "on_train_epoch_end" and (missing := max(self.steps.missing, 0)):
            # By the epoch, not by the step, as the learning rate's schedule goes: an epoch on fewer images takes the
            # averages as far along their ramp as one on all of them does.
            self.ema.updates += round(missing / self._accumulate)
            self.steps.skip(missing)

    def _end_warmup(self) -> None:
        """Bring what Ultralytics' warm-up moves to its end, which an epoch may have been too short to come to."""
        warmup = self._get_warmup_iterations(self.steps.per_epoch)
        if 0 < warmup < self.epoch * self.steps.per_epoch:
            self._accumulate = self._nominal
            for group in self.optimizer.param_groups:  # the learning rate's schedule sets that anew each epoch
                if "momentum" in group:
                    group["momentum"] = self.args.momentum

    @property
    def mosaic_closes(self) -> int:
        """The epoch from which on Ultralytics mixes no more, counted from 0."""
        return int(self.epochs - self.args.close_mosaic)

    def _go_on(self, saved: Mapping[str, Any]) -> None:
        """Bring loader and random numbers to where they were at the end of the saved epoch."""
        if saved["mask"] is not None:
            self.enter_again(saved["mask"])
        if self.args.close_mosaic and self.epoch >= self.mosaic_closes:
            # Closed before. Ultralytics would close it once more and start the shuffle anew; it asks for this argument
            # next, and the first epoch puts it back.
            self._close_dataloader_mosaic()
            self.args.close_mosaic = 0
        snapshot.put_loader(self.train_loader, saved["training"]["loader"])
        if RANK in {-1, 0}:  # further ranks draw their own
            snapshot.put_randomness(saved["training"])

    def optimizer_step(self) -> None:
        """Do Ultralytics' own step and count it if it was taken; comparisons at equal updates need the number."""
        scale = self._scale()
        super().optimizer_step()
        if scale is None:
            self.taken = True
            self._updates += 1
        else:  # fp16: a step whose gradient overflowed is skipped
            after = self._scale()
            assert after is not None
            self.taken = after >= scale
            self._unknown.append(self.taken)
        self.steps.stepped()

    def _scale(self) -> Tensor | None:
        """What fp16 losses are multiplied by now, (), on the device, for `get_scale` waits for it; None: by nothing."""
        if not self.scaler.is_enabled():
            return None
        return cast(Tensor, self.scaler.scale(torch.ones((), device=self.device)))

    @property
    def updates(self) -> int:
        """Optimizer steps taken; asked for, it waits for the device."""
        if self._unknown:
            self._updates += int(torch.stack(self._unknown).sum())
            self._unknown = []
        return self._updates

    @updates.setter
    def updates(self, value: int) -> None:
        self._updates, self._unknown = value, []

    def _handle_nan_recovery(self, epoch: int) -> bool:
        # Upstream knows no last.pt in the first epoch of a process; after a resume there is one.
        first, self.start_epoch = self.start_epoch, 0
        try:
            return super()._handle_nan_recovery(epoch)
        finally:
            self.start_epoch = first

    # ---- what is written ----------------------------------------------------------------------------------------

    def save_model(self) -> bool:
        """Write the state to go on from, then Ultralytics' checkpoints, each whole or not at all."""
        content = {
            **self._where(),
            "epoch": self.epoch,
            "prune": self.method_settings(),
            "config": self._run_config,
            "images": self.paths,
            "classes": self.data["names"],
            state.LABELS: self.labels_print,
            "args": vars(self.args),
            "architecture": unwrap_model(self.model).yaml,
            "mask": self.mask_state(),
            "training": {**snapshot.take(self), "seconds": time.time() - self.train_time_start},
        }
        state.write(self.wdir, content)
        return self.save_checkpoints()

    def save_checkpoints(self) -> bool:
        """Write last.pt, and best.pt if this epoch was the best."""
        with self._written_whole():
            return super().save_model()

    def final_eval(self) -> None:
        """Strip the checkpoints and validate the best as Ultralytics does."""
        with self._written_whole(self.last.name, self.best.name):
            super().final_eval()

    @contextmanager
    def _written_whole(self, *present: str) -> Iterator[None]:
        """Let Ultralytics write into a folder of its own, and put what it wrote in place once it is whole."""
        if RANK not in {-1, 0}:  # the first rank alone writes
            yield
            return
        own = self.wdir, self.last, self.best
        try:
            with state.written_whole(self.wdir, *present) as folder:
                self.wdir, self.last, self.best = folder, folder / self.last.name, folder / self.best.name
                yield
        finally:
            self.wdir, self.last, self.best = own

    def _do_train(self) -> None:
        """Train as Ultralytics does; a run that was cut off after its last epoch has only the end left to do."""
        if self.saved is None or not self.saved["training"]["trainer"]["stop"]:
            super()._do_train()
        else:
            if self.world_size > 1:
                self._setup_ddp()
            self._setup_train()
            self.final_eval()
            if RANK in {-1, 0}:
                if self.args.plots:
                    self.plot_metrics()
                self.run_callbacks("on_train_end")
            for loader in (self.train_loader, self.test_loader):
                loader.close()
        if RANK in {-1, 0}:
            (self.wdir / state.NAME).unlink(missing_ok=True)  # all is written: nothing is left to go on from

    def _where(self) -> dict[str, Any]:
        return {"versions": runtime.versions(), "machine": runtime.hardware(self.device)}


def _resumed_args(saved: Mapping[str, Any], overrides: Mapping[str, Any]) -> Any:
    """The arguments of the interrupted run, but for what may differ from one machine to the next."""
    ours = {k: v for k, v in overrides.items() if k in _MAY_CHANGE and v is not None}
    if ignored := [k for k, v in overrides.items() if k in saved and k not in _MAY_CHANGE | _NAMES and v != saved[k]]:
        LOGGER.warning(f"a resumed run keeps its settings, whatever {', '.join(ignored)} say now")
    return get_cfg({**saved, **ours})
