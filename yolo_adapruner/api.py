"""Pruning from Python: one call from a run config to a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolo_adapruner import config as run_config
from yolo_adapruner.config import PruneConfig, RunConfig

if TYPE_CHECKING:
    from yolo_adapruner.engine.run import RunResult


def prune(
    run: str | Path | Mapping[str, Any] | RunConfig = "yolov3-tiny",
    *,
    config: PruneConfig | None = None,
    **overrides: Any,
) -> RunResult:
    """Train a model and prune its training set in one run.

    Args:
        run: a run config: path, name of a packaged one, mapping, or `RunConfig`.
        config: settings of the method, in place of the run config's `prune:` section.
        overrides: settings that win over the run config: `prune=0.1` for the share alone, `data=`, `model=`,
            `epochs=`, `start=RUN` for a warm start, `keep="list.txt"` and so on; what is not ours goes to Ultralytics.

    Returns:
        The finished run: its folder, `best.pt`, the pruned data file, counts.

    Raises:
        ConfigError, DataError, RunError: each with one line that says what to do.
    """
    resolved = resolve(run, config=config, **overrides)
    from yolo_adapruner.engine import run as engine  # here, so that importing the package loads no torch
    from yolo_adapruner.study.closing import report_run

    result = engine.train(resolved)
    report_run(result.folder)
    return result


def resolve(
    run: str | Path | Mapping[str, Any] | RunConfig, *, config: PruneConfig | None = None, **overrides: Any
) -> RunConfig:
    """Return the run config that `prune` and `compare` work from."""
    source = run.model_dump() if isinstance(run, RunConfig) else run
    if isinstance(source, Mapping):
        source = _as_words(source)
    overrides = _as_words(overrides)
    if config is not None:
        run_config.check_method(config)
        given = overrides.get("prune")
        extra = given if isinstance(given, Mapping) else {} if given is None else {"share": given}
        overrides["prune"] = {**config.model_dump(), **extra}
    return run_config.load(source, overrides)


def _as_words(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with paths spelled out, as a YAML file would have them."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
