"""Where the time of an epoch goes, in Ultralytics' own trainer and in ours, epoch by epoch in turn in one process.

Ours is in its joint stage, with what the config asks of the mask. Checkpoints, plots and loggers are left out. Times
are exclusive: what a part calls that is a part of its own counts there alone, so that the parts sum to the whole.
"""

from __future__ import annotations

import gc
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils.torch_utils import unset_deterministic, unwrap_model

from yolo_adapruner.config import RunConfig
from yolo_adapruner.data.export import replace_file
from yolo_adapruner.engine import runtime, stepcost
from yolo_adapruner.engine.trouble import one_line_errors, quiet
from yolo_adapruner.errors import ConfigError

PHASES = (
    "loader",
    "forward",
    "loss",
    "backward",
    "optimizer",
    "mask",
    "judge",
    "redundancy",
    "validation",
    "epoch end",
)
"""What an epoch is made of. Loss: with the weights in it. Mask: accounts, weights, notes. Judge: faults rehearsed, and
its fits. Redundancy: the images' vectors and neighbours. Epoch end: what else the controller does then."""


class _Timed(stepcost.Side):
    """A side that knows how long each part took, exclusive of the parts within."""

    def __init__(self, kind: type[Any], overrides: Mapping[str, Any], clock: str) -> None:
        super().__init__(kind, overrides, clock)
        self.seconds: dict[str, float] = defaultdict(float)
        self._stack: list[str] = []
        self._since = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens within as a part's; what is timed within that is another's."""
        self._turn()
        self._stack.append(name)
        try:
            yield
        finally:
            self._turn()
            self._stack.pop()

    def _turn(self) -> None:
        now = self._now()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    def _now(self) -> float:
        self._wait()
        return self._clock()

    def open(self, state: Any) -> None:
        """Set up, and watch the parts that no step of the loop shows."""
        super().open(state)
        trainer = self.trainer
        model = unwrap_model(trainer.model)
        if getattr(model, "criterion", None) is None:
            model.criterion = model.init_criterion()
        self._watch(model.criterion, "loss", "loss")
        pruner = getattr(trainer, "pruner", None)
        if pruner is None:
            return
        for owner, names, part in (
            (trainer, ("_accounts",), "mask"),
            (trainer.held, ("read",), "mask"),
            (trainer._tap, ("assigned", "weigh"), "mask"),
            (trainer._rehearsal, ("spoil", "readings"), "judge"),
            (pruner.suspicion, ("learn",), "judge"),
            (trainer._features, ("take",), "redundancy"),
            (pruner.appearance, ("add", "close_epoch"), "redundancy"),
            (pruner, ("_redundant",), "redundancy"),
        ):
            for name in names:
                if owner is not None:
                    self._watch(owner, name, part)

    def _watch(self, owner: Any, name: str, part: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(part):
                return inner(*args, **kwargs)

        setattr(owner, name, timed)

    def end_epoch(self) -> None:
        """Validate, close the epoch and begin the next."""
        trainer = self.trainer
        with self.phase("validation"):
            trainer.metrics, trainer.fitness = trainer.validate()
        if getattr(trainer, "pruner", None) is not None:
            with self.phase("epoch end"):
                trainer._close_epoch(trainer.pruner)
        trainer._model_train()
        trainer.epoch += 1
        with self.phase("epoch end"):
            trainer.run_callbacks("on_train_epoch_start")


def measure(config: RunConfig, *, epochs: int = 2, clock: str = "wall") -> dict[str, dict[str, float]]:
    """Return the seconds of an epoch by side, stock and ours, and part, the median over epochs.

    Args:
        config: the run; its recipe and seed serve both sides, its stages and epochs neither.
        epochs: how many each side, >= 1, after one that is not counted.
        clock: one of `stepcost.CLOCKS`.

    Raises:
        ConfigError: `epochs` is out of range; or as `train`.
        DataError, RunError: as `train`.
    """
    if epochs < 1:
        raise ConfigError(f"Expected one epoch or more, but got {epochs}.")
    runtime.offer_font()
    found: dict[str, list[dict[str, float]]] = {"stock": [], "ours": []}
    with quiet(), TemporaryDirectory() as folder, one_line_errors(config.data):
        kinds = {"stock": DetectionTrainer, "ours": stepcost.masked(config)}
        sides = {
            name: _Timed(kind, stepcost.overrides(config, Path(folder, name)), clock) for name, kind in kinds.items()
        }
        try:
            runtime.use_all_cores()
            for side in sides.values():
                side.open(stepcost.random_state())
            for _ in range(epochs + 1):
                for name, side in sides.items():
                    gc.collect()
                    side.seconds.clear()
                    for _ in range(len(side.trainer.train_loader)):
                        side.step()
                    side.end_epoch()
                    found[name].append(dict(side.seconds))
        finally:
            for side in sides.values():
                side.close()
            unset_deterministic()
    return {
        name: {part: statistics.median(epoch.get(part, 0.0) for epoch in rows[1:]) for part in PHASES}
        for name, rows in found.items()
    }


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Return the seconds of each part as a table in Markdown, with their shares of the stock epoch."""
    total = sum(found["stock"].values())
    lines = ["| part | stock, s | % of stock epoch | ours, s | % of stock epoch |", "|---|---|---|---|---|"]
    rows = [(part, found["stock"][part], found["ours"][part]) for part in PHASES]
    for part, stock, ours in (*rows, ("all", total, sum(found["ours"].values()))):
        lines.append(f"| {part} | {stock:.2f} | {100 * stock / total:.1f} | {ours:.2f} | {100 * ours / total:.1f} |")
    return "\n".join(lines)


def draw(found: Mapping[str, Mapping[str, float]], out: Path, title: str) -> None:
    """Draw the parts of both epochs as bars."""
    from matplotlib import colormaps, rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.6), layout="constrained")
    FigureCanvasSVG(figure)
    axes, colours = figure.subplots(), colormaps["tab10"].colors  # type: ignore[attr-defined]
    ends = dict.fromkeys(found, 0.0)
    for part, colour in zip(PHASES, colours, strict=True):
        lengths = [found[side][part] for side in found]
        axes.barh(list(found), lengths, left=list(ends.values()), color=colour, label=part, height=0.6)
        ends = {side: ends[side] + found[side][part] for side in found}
    axes.invert_yaxis()
    axes.set(xlabel="seconds an epoch", title=title)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    with replace_file(out) as temporary, rc_context({"svg.hashsalt": "profile"}):
        figure.savefig(temporary, format="svg", metadata={"Date": None})
