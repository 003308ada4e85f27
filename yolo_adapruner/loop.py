"""AdaPruner for any PyTorch training: a weight for these samples, an update with their losses, a step an epoch.

A thin adapter round `core.pruner.Pruner`: it takes tensors, opens and closes epochs, adds up what several processes
read, and refuses what cannot be in one line. Samples are rows 0..N-1 of a training set. Knows no model, no optimizer,
no loader and no Ultralytics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yolo_adapruner.config import PruneConfig, check_method
from yolo_adapruner.core import distributed
from yolo_adapruner.core.pruner import Pruner, Settings, Stage
from yolo_adapruner.core.selection import drop_count
from yolo_adapruner.errors import ConfigError, RunError
from yolo_adapruner.indexed import ActiveSampler, as_numbers, check_whole

DEFAULTS: dict[str, Any] = {"tau": 0.15, "warmup_max": 0.55, "joint": 0.3}
"""Where a loop's settings differ from a detector's.

One loss alone has a long tail of samples that are all but known: at a detector's `tau` the easiest of them go where the
suspect should. Below 0.1 the pressure outgrows `clip`, and the samples that stay are no longer told apart. Stages are
as long at any share as where a tenth goes: a loop may go through all samples in each epoch, and then a decision made
early saves no time.
"""

FALLEN = 0.5
"""An automatic warm-up ends once the median loss is this part of the first epoch's."""

_ROUNDING = 1e-4  # how far below 0 a loss may come out that is 0

Ids = Tensor | NDArray[np.integer] | Sequence[int]


class AdaPruner:
    """Learns in a training loop which of N samples it can do without, and leaves them out in the end.

    The epochs go through three stages: warm-up (all samples, weight 1), joint (all samples, each loss by its weight,
    samples are judged), fine-tune (the kept samples; a dropped one that is drawn all the same has weight 0).

        pruner = AdaPruner(n=len(dataset), epochs=30, prune=0.3)
        for epoch in range(30):
            for x, y, ids in DataLoader(IndexedDataset(dataset), 64, sampler=sampler):    # sampler = pruner.sampler()
                losses = cross_entropy(model(x), y, reduction="none")
                (pruner.weights(ids, like=losses) * losses).mean().backward()
                pruner.update(ids, losses)
            pruner.step(accuracy)

    Where `torch.distributed` runs, the readings of all processes are added up in `step`, and all hold the same weights.

    Args:
        n: number of training samples.
        epochs: how many epochs will be trained, all stages together, >= 3.
        prune: share of the samples to remove, 0 to 0.95; wins over `config`.
        config: settings of the method; what it leaves out is as `DEFAULTS` says, then as `PruneConfig` does.
        readings: number of losses that a sample has, C; each is a view of its own on whether the sample is odd.
        seed: decides ties in the final selection.

    Attributes:
        core: the mask, the controller and their record.
        epoch: epochs closed so far.
        epochs: as given.

    Raises:
        ConfigError: a number is out of its range, no sample would stay, or the config asks for what a loop has not.
    """

    def __init__(
        self,
        n: int,
        epochs: int,
        prune: float | None = None,
        *,
        config: PruneConfig | None = None,
        readings: int = 1,
        seed: int = 0,
    ) -> None:
        for name, value, least in (("n", n, 1), ("epochs", epochs, 3), ("readings", readings, 1), ("seed", seed, 0)):
            check_whole(name, value, least)
        self.config = _settings(config, prune)
        if drop_count(int(n), self.config.share) >= n:
            raise ConfigError(
                f"Expected a sample that stays, but prune {self.config.share:g} takes all of {n}: give a smaller share."
            )
        self.readings, self.epoch, self.epochs = int(readings), 0, int(epochs)
        self.core = Pruner(int(n), self.readings, self.epochs, Settings(**self.config.model_dump()), int(seed))
        self._first_median = math.nan
        self._weights = self._current_weights()
        self.reopen()

    def __len__(self) -> int:
        return self.core.n

    @property
    def stage(self) -> str:
        """The stage of the epoch that runs now or comes next: "warmup", "joint" or "finetune"."""
        return self.core.stage.name.lower()

    @property
    def kept(self) -> NDArray[np.bool_] | None:
        """Which samples stay, (N,), once the joint stage has ended; None before."""
        return self.core.kept

    @property
    def scores(self) -> NDArray[np.float64]:
        """What samples are ranked by, their logits, (N,), higher stays; NaN where one was never seen, it goes last."""
        return np.where(self.core.seen > 0, self.core.mask.logits, np.nan)

    @property
    def active(self) -> NDArray[np.int64]:
        """The samples that this epoch trains on, ascending: all of them, in the fine-tune stage the kept ones."""
        return np.flatnonzero(np.ones(len(self), bool) if self.kept is None else self.kept)

    def sampler(self, *, shuffle: bool = True, seed: int = 0) -> ActiveSampler:
        """Return a sampler for `DataLoader(sampler=)` that draws `active`, and in each process its part."""
        return ActiveSampler(self, shuffle=shuffle, seed=seed)

    def weights(self, ids: Ids, like: Tensor | None = None) -> Tensor:
        """Return the weights of these samples' losses, in [0, 1].

        Args:
            ids: sample numbers, (B,).
            like: losses (B, ...) whose device, type and number of dimensions the weights take; float32 (B,) if None.

        Raises:
            ConfigError: a number is out of range, or `like` is of another batch.
        """
        numbers = as_numbers(ids, len(self))
        weights = self._weights[torch.from_numpy(numbers)]
        if like is None:
            return weights
        if not isinstance(like, Tensor):
            raise ConfigError(
                f"Expected the losses as a tensor, but got {type(like).__name__}: torch.as_tensor makes one."
            )
        if like.ndim == 0 or len(like) != len(numbers):
            raise ConfigError(_one_loss_each(len(numbers), like))
        return weights.to(like).reshape(-1, *[1] * (like.ndim - 1))

    def update(self, ids: Ids, losses: Tensor | NDArray[np.floating]) -> None:
        """Note the losses of a batch as they are, unweighted. One that is not finite is not counted.

        Args:
            ids: sample numbers, (B,).
            losses: (B,), or (B, C) where `readings` is C; >= 0. NaN where a sample has no such loss.

        Raises:
            ConfigError: a number is out of range, the losses are not one a sample, or a loss is below 0.
        """
        numbers = as_numbers(ids, len(self))
        values = _as_losses(losses)
        if values.ndim == 1 and self.readings == 1:
            values = values[:, None]
        if values.shape != (len(numbers), self.readings):
            raise ConfigError(_one_loss_each(len(numbers), losses, self.readings))
        if (low := np.nanmin(values, initial=0.0)) < -_ROUNDING:
            raise ConfigError(f"Expected losses of 0 or more, but got {low:g}: subtract the lowest that they can be.")
        self.core.observe(numbers, np.maximum(values, 0.0))
        self._updates += 1

    def step(self, metric: float, *, works: bool | None = None) -> dict[str, float]:
        """Close the epoch: move the mask, let the controller step, go to the next stage when it is time.

        Args:
            metric: validation metric of the epoch, >= 0, higher is better; of several processes the first one's counts.
                NaN counts as a fall.
            works: whether the model is good enough to judge samples, which ends an automatic warm-up. None: it is once
                the median loss has come down to `FALLEN` of the first epoch's.

        Returns:
            What the epoch ran under and the share kept after it: stage (1 to 3), kept, target, s, lambda.

        Raises:
            ConfigError: the metric is no number, below 0 or infinite.
            RunError: no process has updated anything since the last step, and the stage judges samples.
        """
        metric = distributed.of_first(_as_metric(metric), distributed.group_device())
        if metric < 0 or math.isinf(metric):
            raise ConfigError(
                f"Expected a metric of 0 or more, higher is better, but got {metric:g}: give an accuracy, or "
                "math.exp(-loss) in place of a loss."
            )
        if self.core.stage is not Stage.FINETUNE:
            self._gather()
        ran = self.core.close_epoch(metric, works=self._works() if works is None else works)
        self.epoch += 1
        self._weights = self._current_weights()
        self.reopen()
        return ran

    def reopen(self) -> None:
        """Begin the epoch again: forget the losses since the last step, as when it is trained once more after a NaN."""
        self.core.open_epoch()
        self._updates = np.zeros(1, np.int64)

    def state_dict(self) -> dict[str, Any]:
        """Return everything an interrupted run needs to go on, the open epoch included.

        Tensors and plain values, so that `torch.load` reads it back with `weights_only=True`, its default.
        """
        state = {
            "core": self.core.state_dict(),
            "epoch": self.epoch,
            "made_for": {"epochs": self.epochs, "prune": self.config.share},
            "first_median": self._first_median,
            "open": [total.copy() for total in (*self.core.record.totals, self._updates)],
        }
        return _converted(state, np.ndarray, torch.from_numpy)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            RunError: it is no such state, or one of another number of samples or readings, of other epochs or another
                share.
        """
        own = (*self.core.record.totals, self._updates)
        state = _converted(state, Tensor, lambda tensor: tensor.cpu().numpy())
        try:
            shapes = [np.shape(total) for total in state["open"]]
            if shapes != [total.shape for total in own]:
                raise ValueError(
                    f"Expected totals of {len(self)} samples and {self.readings} readings, but got {shapes}"
                )
            made_for = {"epochs": self.epochs, "prune": self.config.share}
            if (saved_for := state.get("made_for", made_for)) != made_for:
                raise ValueError(f"it was made for {_words(saved_for)}, and this one for {_words(made_for)}")
            self.core.load_state_dict(state["core"])
            self.epoch, self._first_median = int(state["epoch"]), float(state["first_median"])
        except (KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise RunError(f"Expected the state of this pruner, but: {reason}.") from None
        self._weights = self._current_weights()
        self.reopen()
        for total, saved in zip((*self.core.record.totals, self._updates), state["open"], strict=True):
            total[...] = saved

    def _gather(self) -> None:
        """Add up what all processes have read; nothing is closed where none has read anything."""
        shared = (*self.core.record.totals, self._updates)
        distributed.add_up(shared, distributed.group_device())
        if not self._updates.any():
            raise RunError(
                "Expected losses before step(), but the epoch has none: call update(ids, losses) in each batch."
            )

    def _works(self) -> bool:
        """Whether the median loss has come down far enough; notes the first epoch's."""
        losses = self.core.record.means().mean(1)
        median = float(np.nanmedian(losses)) if np.isfinite(losses).any() else math.nan
        if math.isnan(self._first_median):
            self._first_median = median
        return median <= FALLEN * self._first_median

    def _current_weights(self) -> Tensor:
        soft = self.core.weights()
        if soft is None:
            soft = np.ones(len(self), np.float32) if self.kept is None else self.kept.astype(np.float32)
        return torch.from_numpy(soft)


def _settings(config: PruneConfig | None, prune: float | None) -> PruneConfig:
    """A loop's defaults, what the config sets, and the share on top."""
    check_method(config)
    given = {} if config is None else config.model_dump(exclude_unset=True)
    if prune is not None:
        if isinstance(prune, bool) or not isinstance(prune, int | float) or not 0 <= prune <= 0.95:
            raise ConfigError(f"Expected prune as the share to remove, 0 to 0.95, but got {prune!r}.")
        given["share"] = prune
    if given.get("keep") is not None:
        raise ConfigError("Expected no keep list, but got one: a loop knows samples by number, and no files.")
    if given.get("budget") == "updates":
        raise ConfigError("Expected budget=epochs, but got updates: a loop of your own has the epochs that it runs.")
    if given.get("dynamic"):
        raise ConfigError("Expected dynamic=False, but got True: a loop of your own draws its samples by a sampler.")
    return PruneConfig(**{**DEFAULTS, **given})


def _converted(value: Any, kind: type, convert: Callable[[Any], Any]) -> Any:
    """The same with everything of a kind converted, also within mappings and lists."""
    if isinstance(value, Mapping):
        return {key: _converted(item, kind, convert) for key, item in value.items()}
    if isinstance(value, list):
        return [_converted(item, kind, convert) for item in value]
    return convert(value) if isinstance(value, kind) else value


def _words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in settings.items())


def _as_losses(losses: Any) -> NDArray[np.float64]:
    """Losses as an array of real numbers, of whatever shape they have."""
    try:
        if isinstance(losses, Tensor):
            whole = losses.detach().cpu()
            values: NDArray[Any] = (whole if whole.is_complex() else whole.double()).numpy()
        else:
            values = np.asarray(losses)
        if values.dtype.kind not in "fiub":
            raise TypeError(f"{values.dtype}")
        return values.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"Expected losses as a tensor or array of real numbers, but got {reason}.") from None


def _as_metric(metric: Any) -> float:
    try:
        if isinstance(metric, str):
            raise TypeError
        return float(metric)
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(f"Expected the metric as one number, but got {metric!r}.") from None


def _one_loss_each(count: int, losses: Tensor | NDArray[np.floating], readings: int = 1) -> str:
    shape = f"({count},)" if readings == 1 else f"({count}, {readings})"
    return (
        f"Expected one loss for each of {count} samples, shape {shape}, but got {tuple(np.shape(losses))}: compute the "
        'losses with reduction="none" and average what else a sample has.'
    )
