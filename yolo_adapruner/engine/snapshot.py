"""What a training run is made of after an epoch, beyond the mask: taken down, and taken up again bit for bit.

Ultralytics' last.pt holds the average of the weights in half precision and nothing of what draws. Here are the weights
themselves, optimizer, averages, gradients not yet stepped on, random numbers, the place in the shuffle, the images that
mosaic draws from, and what counts. Plain functions on a trainer; they know no file and no mask.

What is drawn in worker processes cannot be taken down: with workers (a GPU run) a resume goes on, but not bit for bit.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, RandomSampler
from ultralytics.utils.torch_utils import unwrap_model


class Steps:
    """Where optimizer steps fall, counted as Ultralytics counts in its local variables.

    It steps when `batch number - number of the last step >= accumulate`, and begins with -1 as the last step whenever
    it starts, resumes or redoes an epoch. A resumed run whose gradients were half collected would step too early; it
    waits for `owed` batches more, and so does one whose count leaps over batches that a short epoch did not have.

    Attributes:
        per_epoch: batches an epoch, as Ultralytics counts.
        last: number of the batch of the last step, moved on by what the count leapt over since; -1 for none.
        owed: batches to add to `accumulate` until the next step.
    """

    def __init__(self) -> None:
        self.per_epoch, self.last, self.owed = 0, -1, 0
        self._epoch, self._batch = -1, -1

    def open_epoch(self, epoch: int) -> None:
        """Begin an epoch; the same one again is one that Ultralytics redoes."""
        if epoch == self._epoch:
            self.last, self.owed = -1, 0
        self._epoch, self._batch = epoch, epoch * self.per_epoch - 1

    def next_batch(self) -> None:
        """Begin a batch."""
        self._batch += 1

    @property
    def missing(self) -> int:
        """Batches that the epoch has fewer so far than Ultralytics counts for it."""
        return (self._epoch + 1) * self.per_epoch - 1 - self._batch

    def skip(self, batches: int) -> None:
        """Note that the epoch has ended so many batches before Ultralytics' count does, which then makes a leap."""
        self.last += batches
        self.owed += batches

    def stepped(self) -> None:
        """Note a step of the optimizer in this batch."""
        self.last, self.owed = self._batch, 0

    def go_on_from(self, last: int) -> None:
        """Wait as a run would whose last step was in batch `last`."""
        self.last, self.owed = last, last + 1


def take(trainer: Any) -> dict[str, Any]:
    """Return the training state after an epoch: tensors (the live ones, not copies) and plain values."""
    model = unwrap_model(trainer.model)
    return {
        "model": model.state_dict(),
        "gradients": {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        "ema": trainer.ema.ema.state_dict(),
        "ema_updates": trainer.ema.updates,
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "stopper": dict(vars(trainer.stopper)),
        "criterion": _numbers(getattr(model, "criterion", None)),
        "trainer": {name: getattr(trainer, name) for name in ("best_fitness", "fitness", "metrics", "stop", "updates")},
        "last_step": trainer.steps.last,
        "table": trainer.csv.read_text(encoding="utf-8"),
        "drawn": _take_randomness(trainer.device),
        "loader": take_loader(trainer.train_loader),
    }


def put(trainer: Any, state: Mapping[str, Any]) -> None:
    """Give a trainer that is set up the weights, averages and counters of `take`, in full precision.

    Raises:
        RuntimeError: the model is not the one the state was taken of.
    """
    model = unwrap_model(trainer.model)
    model.load_state_dict(state["model"])
    trainer.ema.ema.load_state_dict(state["ema"])
    trainer.ema.updates = state["ema_updates"]
    for saved, group in zip(state["optimizer"]["param_groups"], trainer.optimizer.param_groups, strict=True):
        saved["fused"] = group.get("fused")  # the device that runs now picks the kernel, not the one that ran
    trainer.optimizer.load_state_dict(state["optimizer"])
    if state["scaler"]:
        trainer.scaler.load_state_dict(state["scaler"])
    vars(trainer.stopper).update(state["stopper"])
    if state["criterion"]:  # the mix of an end-to-end model's two heads
        model.criterion = model.init_criterion()
        vars(model.criterion).update(state["criterion"])
    for name, value in state["trainer"].items():
        setattr(trainer, name, value)


def put_pending(trainer: Any, state: Mapping[str, Any]) -> None:
    """Give back the gradients that no step had used up yet, and when the step is due.

    Only once the first epoch begins: Ultralytics clears gradients, and reads `accumulate`, when it starts.
    """
    for name, parameter in unwrap_model(trainer.model).named_parameters():
        if name in state["gradients"]:
            parameter.grad = state["gradients"][name].to(parameter.device)
    trainer.steps.go_on_from(state["last_step"])


def put_randomness(state: Mapping[str, Any]) -> None:
    """Set the random numbers of this process to where they were."""
    drawn = state["drawn"]
    random.setstate(drawn["python"])
    words = drawn["numpy"]["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**drawn["numpy"], "state": {**drawn["numpy"]["state"], "key": words}})
    torch.set_rng_state(drawn["torch"])
    if drawn["cuda"] and torch.cuda.device_count() == len(drawn["cuda"]):
        torch.cuda.set_rng_state_all(drawn["cuda"])


def take_loader(loader: Any) -> dict[str, Any]:
    """Return where a training loader stands after an epoch: its shuffle, its mosaic buffer, its transforms' draws."""
    dataset = loader.dataset
    return {
        "shuffle": loader.generator.get_state(),
        "entries": len(loader.sampler),
        "buffer": list(getattr(dataset, "buffer", ())),
        "transforms": [
            (c.seed, [(t.random_generator.bit_generator.state, t.py_random.getstate()) for t in _family(c)])
            for c in _compositions(dataset)
        ],
    }


def put_loader(loader: Any, state: Mapping[str, Any]) -> None:
    """Bring a training loader that was just built to where `take_loader` found its like."""
    dataset = loader.dataset
    loader.generator.set_state(state["shuffle"])
    if loader.num_workers == 0:
        loader.iterator = _go_on(loader, state["shuffle"], state["entries"])
    for i in state["buffer"]:  # reads the image and puts it into the buffer
        dataset.load_image(i)
    for composition, (seed, draws) in zip(_compositions(dataset), state["transforms"], strict=True):
        if seed is None:  # nothing was drawn; Ultralytics seeds it at the first image
            continue
        composition.set_random_seed(seed)
        for transform, (numpy, python) in zip(_family(composition), draws, strict=True):
            transform.random_generator.bit_generator.state = numpy
            transform.py_random.setstate(python)


def _go_on(loader: Any, shuffle: torch.Tensor, entries: int) -> Iterator[Any]:
    """Batches as the iterator of an interrupted run would have gone on to give them.

    A loader that is reset before its first batch makes an iterator of its own instead, as the uninterrupted one would.
    """
    batches = DataLoader.__iter__(loader)
    loader.generator.set_state(shuffle)  # making an iterator draws
    # A sampler at its end draws another, empty shuffle. It comes to its end with the last batch if that is not full,
    # and otherwise when the next epoch asks for more.
    full = loader.drop_last or entries % loader.batch_size == 0
    if isinstance(getattr(loader.sampler, "inner", loader.sampler), RandomSampler) and full:
        torch.randperm(entries, generator=loader.generator)
    yield from batches


def _compositions(dataset: Any) -> list[Any]:
    """The albumentations in a dataset's transforms; each draws by generators of its own."""
    inner = (getattr(t, "transform", None) for t in getattr(getattr(dataset, "transforms", None), "transforms", ()))
    return [t for t in inner if hasattr(t, "set_random_seed")]


def _family(transform: Any) -> Iterator[Any]:
    """A transform of albumentations and those in it."""
    yield transform
    for inner in getattr(transform, "transforms", ()):
        yield from _family(inner)


def _take_randomness(device: torch.device) -> dict[str, Any]:
    numpy: dict[str, Any] = np.random.get_state(legacy=False)
    words = numpy["state"]["key"].astype(np.int64)  # older torch has no unsigned words
    return {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {**numpy["state"], "key": words}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if device.type == "cuda" else [],
    }


def _numbers(criterion: Any) -> dict[str, float]:
    """What a criterion that changes over the epochs counts by; nothing of one that does not."""
    return {k: v for k, v in vars(criterion).items() if type(v) in (int, float)} if hasattr(criterion, "update") else {}
