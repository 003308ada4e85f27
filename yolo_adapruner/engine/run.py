"""A run from its config: resolve names, train, and turn what Ultralytics raises on bad input into one line."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from ultralytics.cfg import get_cfg
from ultralytics.utils import ROOT

from yolo_adapruner import config as run_config
from yolo_adapruner import resources
from yolo_adapruner.config import RunConfig
from yolo_adapruner.data.export import replace_file
from yolo_adapruner.engine.detect import METRIC, AdaPruneTrainer
from yolo_adapruner.errors import AdaPrunerError, ConfigError, DataError, RunError

RUN_CONFIG = "adaprune.yaml"


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: the run folder.
        weights: its best.pt, which plain `YOLO(...)` loads.
        data: the pruned data set's data file.
        total, kept: number of training images before and after.
        map50_95: validation mAP50-95 of best.pt as Ultralytics measures it, [0, 1]. It chose best.pt: not a result.
        seconds: wall time of the training.
        updates: optimizer steps taken.
    """

    folder: Path
    weights: Path
    data: Path
    total: int
    kept: int
    map50_95: float
    seconds: float
    updates: int


def train(config: RunConfig, *, save_dir: Path | None = None) -> RunResult:
    """Run warm-up, joint pruning and fine-tune, and write the run folder.

    Args:
        config: the run.
        save_dir: write exactly there instead of into a new folder of `config.project`.

    Raises:
        ConfigError, DataError, RunError: see their lines.
    """
    overrides = ultralytics_args(config)
    if save_dir is not None:
        overrides["save_dir"] = str(save_dir)
    with one_line_errors(config.data):
        trainer = AdaPruneTrainer.configured(config.prune)(overrides=overrides)
        _save_run_config(Path(trainer.save_dir), config)
        return _finish(trainer)


def resume(run: str | Path) -> RunResult:
    """Go on with an interrupted run from its last whole epoch.

    Raises:
        RunError: the folder holds no interrupted run of this package, or the run is finished.
    """
    folder = Path(run)
    last, saved = folder / "weights" / "last.pt", folder / RUN_CONFIG
    for file in (saved, last):
        if not file.is_file():
            raise RunError(
                f"Expected an interrupted run in {folder}, but it has no {file.relative_to(folder)}: start a new run."
            )
    config = run_config.load(saved)
    with one_line_errors(config.data):
        overrides = {**ultralytics_args(config), "resume": str(last), "save_dir": str(folder.resolve())}
        try:
            return _finish(AdaPruneTrainer.configured(config.prune)(overrides=overrides))
        except AssertionError as error:
            if "nothing to resume" not in str(error):
                raise
            raise RunError(f"Expected an interrupted run, but {folder} is finished: nothing to resume.") from None


def ultralytics_args(config: RunConfig) -> dict[str, Any]:
    """Return the settings Ultralytics is handed, with names resolved.

    Raises:
        ConfigError: `train:` holds what Ultralytics does not know or cannot take.
    """
    args: dict[str, Any] = {
        "task": "detect",
        "mode": "train",
        "model": _resolve_model(config.model),
        "data": resolve_data(config.data),
        "project": str(Path(config.project).absolute()),
        "name": config.name,
        **{k: getattr(config, k) for k in ("epochs", "imgsz", "batch", "seed", "optimizer", "lr0", "device")},
        **config.train,
    }
    cuda = torch.cuda.is_available() and str(config.device).lower() != "cpu"
    if cuda and "amp" not in config.train:
        # Upstream's check of fp16 loads weights from the network; bf16 needs no check.
        args["amp"] = "bf16" if torch.cuda.is_bf16_supported() else False
    args = {k: v for k, v in args.items() if v is not None}
    try:
        get_cfg(overrides=args)
    except (SyntaxError, TypeError, ValueError) as error:
        raise ConfigError(f"Expected Ultralytics settings under train:, but {_plain(error)}") from None
    return args


def resolve_data(data: str) -> str:
    """Return the data file to hand to Ultralytics: an existing path, one of this package's, or a name of its own."""
    if Path(data).exists():
        return str(Path(data).absolute())
    packaged = resources.find("data", data)
    if packaged is not None:
        return str(packaged)
    if not list((ROOT / "cfg" / "datasets").glob(data)) and not re.match(r"\w+://", data):
        known = ", ".join(resources.available("data"))
        raise DataError(
            f"Expected a data file (a YAML with train, val and names, one of {known}, or one of Ultralytics' own such "
            f"as coco128.yaml), but there is no {data}."
        )
    return data


def _resolve_model(model: str) -> str:
    path = Path(model)
    if path.suffix not in {".yaml", ".yml"} or not path.is_file():
        return model
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict) or "model" not in content:
        return str(path.absolute())
    # A run config of the architecture's own name lies in the working directory: the architecture is meant.
    own = list((ROOT / "cfg" / "models").rglob(path.name)) if path.parent == Path() else []
    if own:
        return str(own[0])
    raise ConfigError(
        f"Expected an Ultralytics architecture or checkpoint as model, but {model} is a run config: pass it as the "
        f"first argument, and name the architecture ({content['model']}) as model."
    )


def _finish(trainer: AdaPruneTrainer) -> RunResult:
    began = time.monotonic()
    trainer.train()
    folder = Path(trainer.save_dir)
    kept = (
        len(trainer.paths) if trainer.pruner is None or trainer.pruner.kept is None else int(trainer.pruner.kept.sum())
    )
    return RunResult(
        folder=folder,
        weights=Path(trainer.best),
        data=folder / "pruned.yaml",
        total=len(trainer.paths),
        kept=kept,
        map50_95=float((trainer.metrics or {}).get(METRIC, float("nan"))),
        seconds=time.monotonic() - began,
        updates=trainer.updates,
    )


def _save_run_config(folder: Path, config: RunConfig) -> None:
    with replace_file(folder / RUN_CONFIG) as temporary:
        temporary.write_text(yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True), encoding="utf-8")


@contextmanager
def one_line_errors(data: str) -> Iterator[None]:
    """Turn what Ultralytics and the file system raise on bad input into one line each.

    What is not recognised passes through: it is a defect, and hiding its place would not help.
    """
    try:
        yield
    except AdaPrunerError:
        raise
    except PermissionError as error:
        raise RunError(
            f"Expected a writable place, but {error.filename} cannot be written: choose another --name or folder."
        ) from None
    except (NotADirectoryError, FileExistsError) as error:
        raise RunError(
            f"Expected a folder to write to, but {error.filename} is in its way: choose another --name."
        ) from None
    except (RuntimeError, FileNotFoundError, SyntaxError, ValueError, AssertionError, KeyError) as error:
        known = _bad_data(error)
        if known is None:
            raise
        raise DataError(f"Data set {data}: {known}") from error


_DATA_TROUBLE = re.compile(
    r"Dataset '|No valid images found|No labels found|No images found|Error loading data|images not found|key missing|"
    r"does not exist|must be (an integer|str|list|dict)|must match",
)


def _bad_data(error: BaseException) -> str | None:
    """The one line behind an error of Ultralytics' about a data set, or None for any other error."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and len(chain) < 5:
        chain.append(link)
        link = link.__cause__
    if not any(_DATA_TROUBLE.search(str(e)) for e in chain):
        return None
    return _plain(chain[-1])


def _plain(error: BaseException) -> str:
    """An Ultralytics message on one line, without its emojis, colours and pointers to web pages."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    text = re.sub(r"See https?://\S+[^.\n]*|https?://\S+", "", text)
    text = re.sub(r"[^\w\s!-~…]", "", text, flags=re.UNICODE)
    return " ".join(text.split())
