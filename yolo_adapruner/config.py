"""What a run config may say: one YAML in, every error at once, overrides by flag or argument on top.

Knows the names and ranges of our own settings. Ultralytics' settings under `train:` are only handed on; the engine
checks them, because only the engine may import Ultralytics.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from yolo_adapruner import resources
from yolo_adapruner.errors import ConfigError


class PruneConfig(BaseModel):
    """Settings of the method; `docs/settings.md` says what each does and where its default comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(0.1, ge=0, le=0.95, description="Share of the training images to remove, 0 to 0.95.")
    warmup: Literal["auto"] | int = Field(
        "auto",
        union_mode="left_to_right",
        description="Epochs on everything before images are judged; auto ends it once the detector localises. 0 suits "
        "a trained checkpoint as model.",
    )
    warmup_iou: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="auto ends the warm-up after an epoch whose assigned predictions overlap their boxes by this mean "
        "IoU.",
    )
    warmup_max: float = Field(0.5, gt=0, lt=1, description="Longest auto warm-up, as a share of the epochs.")
    joint: float = Field(0.3, gt=0, le=1, description="Length of the joint stage, as a share of the epochs.")
    ramp: float = Field(0.6, gt=0, le=1, description="Part of the joint stage in which the target goes to 1 - share.")
    s_start: float = Field(0.1, gt=0, description="Scale s of the soft weight sigmoid(s * logit) at the start.")
    s_end: float = Field(5.0, gt=0, description="Scale s at the end of the ramp; large s makes weights near 0 or 1.")
    lambda_base: float = Field(1.0, ge=0, description="Compression term: lambda = base + gain * |kept - target|.")
    lambda_gain: float = Field(50.0, ge=0, description="See lambda_base.")
    tau: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Quantile of the signal over the data set that counts as 1. Low: the noisy go. High: the easy go.",
    )
    rate: float = Field(0.5, gt=0, description="Step size of the logits, in logit units per unit of pressure.")
    clip: float = Field(4.0, gt=0, description="Largest pressure on a logit in one epoch.")
    tolerance: float = Field(
        0.1,
        ge=0,
        description="How far validation mAP50-95 may fall below the joint stage's best, as a share of it, before the "
        "controller takes a step back.",
    )
    match: float = Field(
        0.02, gt=0, lt=1, description="A mask counts as matching when its kept share is this near the wanted one."
    )


class RunConfig(BaseModel):
    """A whole run: what `cfg/yolov3-tiny.yaml` holds and what flags override."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str = Field(description="Ultralytics architecture (yolov3-tiny.yaml) or checkpoint (best.pt).")
    data: str = Field(description="Ultralytics data file, or the name of one that comes with this package.")
    epochs: int = Field(30, ge=3, description="Epoch budget of the whole run: warm-up, joint stage and fine-tune.")
    imgsz: int = Field(160, ge=32, description="Input size in pixels.")
    batch: int = Field(16, ge=2, description="Images a batch.")
    seed: int = Field(0, ge=0, description="Seed of everything that draws.")
    optimizer: str = Field(
        "AdamW", description="Pinned: auto would choose by the number of images, which pruning changes."
    )
    lr0: float = Field(0.001, gt=0, description="Initial learning rate.")
    device: str | None = Field(None, description="Ultralytics' device: cpu, 0, mps; none picks one.")
    project: str = Field("runs/adaprune", description="Folder of run folders, relative to the working directory.")
    name: str | None = Field(None, description="Name of the run folder; numbered when taken.")
    prune: PruneConfig = Field(default_factory=PruneConfig)
    train: dict[str, Any] = Field(
        default_factory=dict, description="Further Ultralytics settings, handed on as they are."
    )

    @model_validator(mode="after")
    def _train_has_nothing_of_ours(self) -> RunConfig:
        taken = sorted(set(self.train) & (set(type(self).model_fields) | {"resume"}))
        if taken:
            raise ValueError(f"train: must not hold {', '.join(taken)}; set it at the top level instead")
        return self

    def with_prune(self, share: float) -> RunConfig:
        """Return the same run at another prune share."""
        return self.model_copy(update={"prune": self.prune.model_copy(update={"share": share})})


TOP_LEVEL = tuple(RunConfig.model_fields)


def load(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a run config and lay `overrides` on top.

    Args:
        source: a path, the name of a packaged run config (`yolov3-tiny`), or its content as a mapping.
        overrides: `prune` (a share, or a mapping of method settings), any top-level key, and anything else, which
            goes to Ultralytics.

    Raises:
        ConfigError: the file is missing, is not YAML, is an Ultralytics architecture, or has settings that cannot be;
            all of these at once.
    """
    content, origin = (dict(source), "run config") if isinstance(source, Mapping) else _read(source)
    content["train"] = dict(content.get("train") or {})
    for key, value in (overrides or {}).items():
        if value is None:
            continue
        if key == "prune":
            extra = value if isinstance(value, Mapping) else {"share": value}
            if isinstance(content.get("prune") or {}, Mapping):
                content["prune"] = {**(content.get("prune") or {}), **extra}
        elif key in TOP_LEVEL:
            content[key] = value
        else:
            content["train"][key] = value
    try:
        return RunConfig.model_validate({k: v for k, v in content.items() if v is not None})
    except ValidationError as error:
        raise ConfigError(f"{origin}: " + "; ".join(_explain(e) for e in error.errors())) from None


def _read(source: str | Path) -> tuple[dict[str, Any], str]:
    path = Path(source)
    if not path.is_file():
        found = resources.find("cfg", str(source))
        if found is None:
            known = ", ".join(resources.available("cfg"))
            raise ConfigError(f"Expected a run config (a YAML file or one of: {known}), but there is no {source}.")
        path = found
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"Expected {path} to be a readable YAML file, but: {reason}.") from None
    if isinstance(content, dict) and {"backbone", "head"} & set(content):
        raise ConfigError(
            f"Expected a run config, but {path} is an Ultralytics architecture (it has backbone/head): name it as "
            f"model inside a run config, or pass it with --model {path.name}."
        )
    if not isinstance(content, dict):
        raise ConfigError(
            f"Expected {path} to hold a mapping with model: and data:, but it holds {type(content).__name__}."
        )
    return {str(k): v for k, v in content.items()}, str(path)


def _explain(error: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in error["loc"] if part not in ("constrained-str",))
    if error["type"] == "extra_forbidden":
        names = PruneConfig.model_fields if error["loc"][0] == "prune" else RunConfig.model_fields
        near = difflib.get_close_matches(str(error["loc"][-1]), list(names), n=1)
        hint = f", did you mean {near[0]}?" if near else "; Ultralytics' own settings go under train:"
        return f"unknown setting {where}{hint}"
    if error["type"] == "missing":
        return f"{where} is missing"
    message = error["msg"].removeprefix("Value error, ")
    came = f", but got {error['input']!r}" if where else ""
    return f"{where}: {message[0].lower()}{message[1:]}{came}".lstrip(": ")
