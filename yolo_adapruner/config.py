"""What a run config may say: one YAML in, every error at once, overrides by flag or argument on top.

Knows the names and ranges of our own settings. Ultralytics' settings under `train:` are only handed on; the engine
checks them, because only the engine may import Ultralytics.
"""

from __future__ import annotations

import difflib
import os
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from yolo_adapruner import augmentations, resources
from yolo_adapruner.errors import ConfigError


class PruneConfig(BaseModel):
    """Settings of the method; `docs/settings.md` says what each does and where its default comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    share: float = Field(0.1, ge=0, le=0.95, description="Share of the training images to remove, 0 to 0.95.")
    warmup: Literal["auto"] | Annotated[int, Field(ge=0)] = Field(
        "auto",
        union_mode="left_to_right",
        description="Epochs on everything before images are judged; auto ends it by what is measured, see the next "
        "ones. 0 suits a trained checkpoint as model.",
    )
    warmup_fit: float = Field(
        0.6,
        gt=0,
        lt=1,
        description="From share 0.3 on, with dynamic or without a judge, auto ends the warm-up after an epoch in which "
        "labelled objects were found with this mean IoU and this mean probability of their class; a classifier's at "
        "any share, by the probability alone.",
    )
    warmup_agree: float = Field(
        2.0,
        gt=0,
        description="auto ends it as well once two epochs rank the images alike, by how unusual they read, with this "
        "rank correlation, Ultralytics' own warm-up being over; above 1 never. Not for classifiers.",
    )
    warmup_patience: Literal["auto"] | Annotated[int, Field(ge=0)] = Field(
        "auto",
        union_mode="left_to_right",
        description="auto ends it as well once the judge has learned what it can: in so many epochs in a row the "
        "probability of wrong labels that it gives the images on average has not fallen by a tenth; 0 never. auto: 3 "
        "from share 0.3 on, with dynamic and for classifiers, else 0.9 / share, 9 at 0.1, and an epoch less than "
        "the longest warm-up at most.",
    )
    warmup_max: Literal["auto"] | Annotated[float, Field(gt=0, lt=1)] = Field(
        "auto",
        description="Longest auto warm-up, as a share of the epochs; auto goes by the share to prune: 0.55 up to 0.1, "
        "0.35 from 0.3 on, a straight line between.",
    )
    joint: Literal["auto"] | Annotated[float, Field(gt=0, le=1)] = Field(
        "auto",
        description="Length of the joint stage, as a share of the epochs; auto goes by the share to prune: 0.3 up to "
        "0.1, 0.2 from 0.3 on.",
    )
    ramp: float = Field(0.6, gt=0, le=1, description="Part of the joint stage in which the target goes to 1 - share.")
    s_start: float = Field(0.1, gt=0, description="Scale s of the soft weight sigmoid(s * logit) at the start.")
    s_end: float = Field(5.0, gt=0, description="Scale s at the end of the ramp; large s makes weights near 0 or 1.")
    lambda_base: float = Field(1.0, ge=0, description="Compression term: lambda = base + gain * |kept - target|.")
    lambda_gain: float = Field(50.0, ge=0, description="See lambda_base.")
    tau: float = Field(
        0.25,
        gt=0,
        lt=1,
        description="Quantile of the signal over the data set that counts as 1. Low: the noisy go. High: the easy go.",
    )
    judge: bool = Field(
        True,
        description="Learn in the joint stage, from faults planted in memory, which images read as wrongly labelled; "
        "false: go by how unusual four readings are.",
    )
    rate: float = Field(0.5, gt=0, description="Step size of the logits, in logit units per unit of pressure.")
    clip: float = Field(
        20.0,
        gt=0,
        description="What the pressure on a logit in one epoch stays below: greater ones are bent, none are equal.",
    )
    tolerance: float = Field(
        0.1,
        ge=0,
        description="How far validation mAP50-95 may fall below the joint stage's best, as a share of it and beyond "
        "twice its noise between epochs, before the controller takes a step back.",
    )
    match: float = Field(
        0.02,
        gt=0,
        lt=1,
        description="A mask counts as matching when its kept share is this near the wanted one, and half of what is to "
        "go has gone.",
    )
    redundancy: float = Field(
        2.0,
        ge=0,
        description="How much it counts that an image shows what one that stays shows: 2 puts copies right behind the "
        "suspects, 4 beside a label that is wrong with P = 0.86, 20 before all labels. 0 compares no images.",
    )
    rest: Literal["draw", "rank"] = Field(
        "draw",
        description="How images go that nothing speaks against, where more are to go than suspects and copies: draw, "
        "by lot; rank, by how hard they are, as the paper does. Without a judge always rank.",
    )
    terms: list[Literal["task", "selection", "neutral", "compression"]] = Field(
        ["task", "selection", "neutral", "compression"],
        description="Terms of the objective that are in force; a shorter list is for studying it.",
    )
    weight_min: float = Field(0.0, ge=0, lt=1, description="Least weight of an image's loss in the joint stage.")
    memory: float = Field(0.3, gt=0, le=1, description="Part of a logit that outlives an epoch of the joint stage.")
    floor: float = Field(
        0.8,
        ge=0,
        le=1,
        description="Each class and each box size keeps at least this times the kept share of its boxes, and so do "
        "images without boxes; 0 turns it off.",
    )
    dynamic: bool = Field(False, description="Draw easy images in fewer epochs than hard ones.")
    dynamic_share: float = Field(
        0.45, gt=0, lt=1, description="Share of the images that an epoch draws in the meantime; above 1 / dynamic_rest."
    )
    dynamic_rest: int = Field(4, ge=2, description="Each image is drawn once in so many epochs at least.")
    dynamic_anneal: float = Field(
        0.15, ge=0, le=1, description="Part of the epochs, at the end, that draw everything that is kept."
    )
    dynamic_rescale: float = Field(
        0.0,
        ge=0,
        le=1,
        description="How far the loss weight of a visit makes up for those left out: (1/p)^rescale at a share p of the "
        "epochs; 1 keeps the expected loss, 0 weighs each visit alike.",
    )
    validate_all: bool = Field(
        False,
        description="Validate after each epoch, as Ultralytics does; false: once as many images have been trained on "
        "as there are, and after the last epochs.",
    )
    budget: Literal["epochs", "updates"] = Field(
        "epochs",
        description="What a run has as many of as a training on everything. epochs: they get shorter as images leave, "
        "which saves time. updates: the fine-tune stage goes on until as many images have been trained on, which saves "
        "none.",
    )
    keep: str | None = Field(None, description="File with the images that must stay, a path a line (--keep).")

    @model_validator(mode="after")
    def _rests_leave_room(self) -> PruneConfig:
        if self.dynamic and self.dynamic_share <= 1 / self.dynamic_rest:
            raise ValueError(
                f"dynamic_share must be above 1 / dynamic_rest, but got {self.dynamic_share:g} and {self.dynamic_rest}"
            )
        return self

    @model_validator(mode="after")
    def _time_is_saved_or_not(self) -> PruneConfig:
        if self.dynamic and self.budget == "updates":
            raise ValueError("budget must be epochs with dynamic, which is there to save time, but got updates")
        return self

    @field_validator("keep")
    @classmethod
    def _keep_means_the_same_in_any_folder(cls, value: str | None) -> str | None:
        return value if value is None else os.path.abspath(value)

    @field_validator("warmup", "warmup_patience", mode="wrap")
    @classmethod
    def _warmup_in_one_line(cls, value: Any, check: Callable[[Any], Any]) -> Any:
        return _auto_or(value, check, "a whole number of epochs, 0 or more")

    @field_validator("warmup_max", "joint", mode="wrap")
    @classmethod
    def _length_in_one_line(cls, value: Any, check: Callable[[Any], Any], info: ValidationInfo) -> Any:
        most = "less than 1" if info.field_name == "warmup_max" else "at most 1"
        return _auto_or(value, check, f"a share of the epochs greater than 0 and {most}")


def _auto_or(value: Any, check: Callable[[Any], Any], number: str) -> Any:
    """Check auto or a number: one line instead of one for each type, and no `warmup: on` read as 1."""
    try:
        if not isinstance(value, bool):
            return check(value)
    except ValidationError:
        pass
    raise ValueError(f"input should be auto or {number}, but got {reprlib.repr(value)}")


_Name = Annotated[str, Field(coerce_numbers_to_str=True)]  # YAML reads `device: 0` as a number


class RunConfig(BaseModel):
    """A whole run: what `cfg/yolov3-tiny.yaml` holds and what flags override."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    model: str = Field(description="Ultralytics architecture (yolov3-tiny.yaml) or checkpoint (best.pt).")
    data: str = Field(
        description="Ultralytics data file, of a classifier a folder of class folders; or the name of a set that comes "
        "with this package."
    )
    epochs: int = Field(30, ge=3, description="Epoch budget of the whole run: warm-up, joint stage and fine-tune.")
    imgsz: int = Field(160, ge=32, description="Input size in pixels.")
    batch: int | float = Field(
        16, description="Images a batch; on a GPU also -1, or the share of its memory to fill, to have one found."
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of everything that draws.")
    optimizer: str = Field(
        "AdamW", description="Pinned: auto would choose by the number of images, which pruning changes."
    )
    lr0: float = Field(0.001, gt=0, description="Initial learning rate.")
    device: _Name | None = Field(None, description="Ultralytics' device: cpu, 0, mps, or 0,1; none picks one.")
    project: str = Field("runs/adaprune", description="Folder of run folders, relative to the working directory.")
    name: _Name | None = Field(None, description="Name of the run folder; numbered when taken.")
    start: _Name | None = Field(
        None,
        description="Folder of a finished run whose scores this one begins with, image by image; new images begin "
        "neutral.",
    )
    augmentations: list[dict[str, dict[str, Any]]] | None = Field(
        None,
        description="Albumentations' transforms by name and arguments, in order; [] for none. Left out, Ultralytics "
        "puts in four of its own.",
    )
    prune: PruneConfig = Field(default_factory=PruneConfig)
    train: dict[str, Any] = Field(
        default_factory=dict, description="Further Ultralytics settings, handed on as they are."
    )

    @field_validator("batch", mode="wrap")
    @classmethod
    def _batch_in_one_line(cls, value: Any, check: Callable[[Any], Any]) -> Any:
        """One line instead of one for each type, and whole numbers as such."""
        try:
            number = check(value)
            if 0 < number < 1:
                return number
            if number == int(number) and (number >= 2 or number == -1) and not isinstance(value, bool):
                return int(number)
        except ValidationError:
            pass
        raise ValueError(
            "input should be a whole number of images, 2 or more, or -1 or a share of the memory between 0 and 1 to "
            f"have one found, but got {reprlib.repr(value)}"
        )

    @field_validator("augmentations", mode="before")
    @classmethod
    def _augmentations_are_transforms(cls, value: Any) -> Any:
        return None if value is None else augmentations.normalise(value)

    @field_validator("train")
    @classmethod
    def _train_has_nothing_of_ours(cls, train: dict[str, Any]) -> dict[str, Any]:
        homes = {
            **dict.fromkeys(cls.model_fields, "set it at the top level"),
            **dict.fromkeys(PruneConfig.model_fields, "set it under prune:"),
            "resume": "use --resume RUN",
        }
        if taken := sorted(homes.keys() & train):
            raise ValueError(f"must not hold {', '.join(f'{key} ({homes[key]})' for key in taken)}")
        return train

    def with_prune(self, share: float) -> RunConfig:
        """Return the same run at another prune share."""
        return self.model_copy(update={"prune": self.prune.model_copy(update={"share": share})})


TOP_LEVEL = tuple(RunConfig.model_fields)
_METHOD = "prune."

SETTING = re.compile(r"[A-Za-z_][\w.]*=")
"""How a `key=value` word of a command line begins."""


def check_method(config: Any) -> None:
    """Refuse what is given for the method's settings and is none.

    Raises:
        ConfigError: says what came.
    """
    if not isinstance(config, PruneConfig | None):
        raise ConfigError(f"Expected a PruneConfig as config, but got {config!r}: PruneConfig(share=0.2), say.")


def load(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a run config and lay `overrides` on top.

    Args:
        source: a path, the name of a packaged run config (`yolov3-tiny`), or its content as a mapping.
        overrides: `prune` (a share, or a mapping of method settings), `prune.tau` and the like (one method setting),
            `keep` and `dynamic` for short of `prune.keep` and `prune.dynamic`, any top-level key, and anything else,
            which goes to Ultralytics. `prune` and `train` are laid over their sections key by key; None overrides
            nothing.

    Raises:
        ConfigError: the file is missing, is not YAML, is an Ultralytics architecture, or has settings that cannot be;
            all of these at once.
    """
    content, origin = (dict(source), "run config") if isinstance(source, Mapping) else _read(source)
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    prune, train = given.pop("prune", {}), given.pop("train", {})
    dotted = [key for key in given if isinstance(key, str) and key.startswith(_METHOD)]
    _lay_over(content, "prune", prune if isinstance(prune, Mapping) else {"share": prune})
    _lay_over(content, "prune", {key.removeprefix(_METHOD): given.pop(key) for key in dotted})
    _lay_over(content, "prune", {key: given.pop(key) for key in ("keep", "dynamic") if key in given})
    _lay_over(content, "train", train)
    _lay_over(content, "train", {key: value for key, value in given.items() if key not in TOP_LEVEL})
    content |= {key: value for key, value in given.items() if key in TOP_LEVEL}
    try:
        return RunConfig.model_validate({k: v for k, v in content.items() if v is not None})
    except ValidationError as error:
        raise ConfigError(" ".join(f"{origin}: {'; '.join(map(_explain, error.errors()))}".split())) from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which takes 1e-3 for a word because YAML 1.1 wants a point in it; here it is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """Return what a YAML text says.

    Raises:
        ValueError: it says nothing that YAML can read; the message has one line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except Exception as error:
        # Beside its own errors PyYAML lets any of its constructors' out: a month of 13, a `!!bool` that is none.
        raise ValueError(" ".join(str(error).split())) from None


def key_values(words: Sequence[str]) -> dict[str, Any]:
    """Return a command line's `key=value` words as a dict, values read as YAML (3 is a number, true a bool).

    Raises:
        ConfigError: a word is none, or a value says nothing that YAML can read.
    """
    if wrong := [word for word in words if not SETTING.match(word)]:
        raise ConfigError(f"Expected settings as key=value, but got {' '.join(wrong)}.")
    try:
        return {key: parse_yaml(value) for key, _, value in (word.partition("=") for word in words)}
    except ValueError as error:
        raise ConfigError(f"Expected values that YAML can read, but: {error}.") from None


def _lay_over(content: dict[str, Any], section: str, settings: Any) -> None:
    """Lay settings over a section of the config; what is no mapping is put there whole, for the check to refuse."""
    held = content.get(section)
    if held is not None and not isinstance(held, Mapping):
        return
    content[section] = {**(held or {}), **settings} if isinstance(settings, Mapping) else settings


def _read(source: str | Path) -> tuple[dict[str, Any], str]:
    try:
        path = Path(source) if Path(source).is_file() else resources.find("cfg", str(source))
    except OSError:  # a name too long, a folder that may not be searched
        path = None
    if path is None:
        known = ", ".join(resources.available("cfg"))
        raise ConfigError(f"Expected a run config (a YAML file or one of: {known}), but there is no file {source}.")
    try:
        content = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
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
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown setting {where}{_hint(error['loc'])}"
    if error["type"] == "missing":
        return f"{where} is missing"
    if error["type"] == "value_error":  # one of ours, which says what came
        return f"{where}: {error['msg'].removeprefix('Value error, ')}"
    return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}, but got {reprlib.repr(error['input'])}"


def _hint(where: Sequence[int | str]) -> str:
    """Where an unknown setting may belong, or what it may have been meant to be."""
    key = str(where[-1])
    names: list[Mapping[str, Any]] = [RunConfig.model_fields, PruneConfig.model_fields]
    inside = len(where) > 1
    if key in names[not inside]:
        return "; it goes to the top level" if inside else "; it goes under prune:"
    near = difflib.get_close_matches(key, list(names[inside]), n=1)
    return f", did you mean {near[0]}?" if near else "; Ultralytics' own settings go under train:"
