"""What a run config names, found: data file, architecture, checkpoint, Ultralytics' settings. Trains nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import yaml
from ultralytics.cfg import get_cfg
from ultralytics.data.utils import check_det_dataset, find_dataset_yaml
from ultralytics.nn.tasks import yaml_model_load
from ultralytics.utils import ROOT, SETTINGS, YAML
from ultralytics.utils.checks import check_file
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, GITHUB_ASSETS_STEMS, clean_url

from yolo_adapruner import resources
from yolo_adapruner.augmentations import for_ultralytics
from yolo_adapruner.config import RunConfig
from yolo_adapruner.data import digits_classes
from yolo_adapruner.engine import heads, runtime
from yolo_adapruner.engine.trouble import one_line
from yolo_adapruner.errors import ConfigError, DataError

_FETCHED = ("caltech101", "caltech256", "cifar10", "cifar100", "fashion-mnist", "imagenette", "imagewoof", "mnist")
"""Classification sets that Ultralytics downloads by name."""
_YAML = (".yaml", ".yml")


def ultralytics_args(config: RunConfig) -> dict[str, Any]:
    """Return the settings Ultralytics is handed, with names resolved.

    Raises:
        ConfigError: `train:` holds what Ultralytics does not know or cannot take, or what the mask cannot be combined
            with; or there is no such model, or none for a task of ours.
    """
    for key, only in (("cfg", None), ("mode", "train")):
        if config.train.get(key) not in (None, only):
            raise ConfigError(
                f"Expected Ultralytics' training settings, but got {key}={config.train[key]}, which says nothing here: "
                + ("write what that file holds under train:, or as key=value." if key == "cfg" else "leave it out.")
            )
    model = _resolve_model(config.model)
    task = heads.task_of(model)
    heads.refuse_other_task(task, config.train.get("task") or task, f"task={config.train.get('task')}")
    args: dict[str, Any] = {
        "task": task,
        "mode": "train",
        "model": model,
        "data": resolve_data(config.data, task),
        "project": str(Path(config.project).absolute()),
        "name": config.name,
        **{k: getattr(config, k) for k in ("epochs", "imgsz", "batch", "seed", "optimizer", "lr0", "device")},
        "augmentations": None if config.augmentations is None else for_ultralytics(config.augmentations),
        **config.train,
    }
    cuda = torch.cuda.is_available() and str(config.device).lower() != "cpu"
    if cuda and "amp" not in config.train:
        # Upstream's check of fp16 loads weights from the network; bf16 needs no check.
        args["amp"] = "bf16" if runtime.native_bf16("cuda") else False
    if isinstance(args.get("pretrained"), str):
        args["pretrained"] = _resolve_checkpoint(args["pretrained"], "pretrained")
    args = {k: v for k, v in args.items() if v is not None}
    args |= {key: _numbers(key, args[key]) for key in ("classes", "freeze") if key in args}
    try:
        settings = get_cfg(overrides=args)
    except (SyntaxError, TypeError, ValueError) as error:
        raise ConfigError(f"Expected Ultralytics settings under train:, but {one_line(error)}") from None
    heads.refuse_combinations(settings)
    return args


def _numbers(setting: str, value: Any) -> int | list[int]:
    """What is one whole number or several, however written: upstream would take other words for none."""
    if isinstance(value, str) and re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", value):
        return [int(number) for number in value.split(",")]
    several = isinstance(value, list | tuple)
    each = list(value) if several else [value]
    if any(type(number) is not int for number in each):  # True is one, too, for isinstance
        raise ConfigError(f"Expected whole numbers as {setting}, such as 0,1 or [0, 1], but got {value}.")
    return each if several else each[0]


def task_of(config: RunConfig) -> str:
    """Return the task of a run config's model, a key of `heads.TASKS`.

    Raises:
        ConfigError: there is no such model, or none for a task of ours.
    """
    return heads.task_of(_resolve_model(config.model))


def resolve_data(data: str, task: str = "detect") -> str:
    """Return the data file to hand to Ultralytics: an existing path, one of this package's, or a name of its own.

    For `classify` it is a folder instead; the embedded one is built where it is not there yet.

    Raises:
        DataError: there is no such file or folder.
    """
    if data and Path(data).exists():
        return str(Path(data).absolute())
    if task == "classify":
        return _resolve_folder(data)
    packaged = resources.find("data", data)
    if packaged is not None:
        return str(packaged)
    if not (_has(ROOT / "cfg" / "datasets", data) or re.match(r"\w+://", data)):
        known = ", ".join(resources.available("data"))
        raise DataError(
            f"Expected a data file (a YAML with train, val and names, one of {known}, or one of Ultralytics' own such "
            f"as coco128.yaml), but there is no {data}."
        )
    return data


def _resolve_folder(data: str) -> str:
    """The folder of a classification set that is no path: the embedded one, one of Ultralytics' folder or its own."""
    place = Path(SETTINGS["datasets_dir"]) / data
    if data == digits_classes.NAME:
        return str(digits_classes.build(place))
    if data and place.is_dir():
        return str(place)
    if data in _FETCHED or re.match(r"https?://", data):
        return data
    raise DataError(
        "Expected a folder with train/CLASS/IMAGE and val/CLASS/IMAGE (or "
        f"{digits_classes.NAME}, which comes with this package, or one that Ultralytics fetches, such as cifar10), but "
        f"there is no {data}."
    )


def refuse_script(data: str, split: str = "") -> None:
    """Refuse a data file whose images are missing and whose `download:` is a script, unless it is a packaged one.

    Ultralytics would run it, as Python or in a shell; a data set is to be read, not run. An archive's address is no
    script.

    Args:
        data: as Ultralytics is going to be given it; of a bare name it looks for the file.
        split: whose images it is going to look for; val's where it is not told.

    Raises:
        DataError: the file asks for a script to be run.
    """
    try:
        file = Path(check_file(_with_suffix(data)))
        file = find_dataset_yaml(file) if file.is_dir() else file
        script = YAML.load(file).get("download")
        address = re.fullmatch(r"https?\S+\.(zip|tar|gz|tgz|xz|bz2|txz|tbz2)", clean_url(str(script)), re.I)
        if script is None or address or _comes_with_a_package(file):
            return
        check_det_dataset(str(file), autodownload=False, split=split)
    except Exception as error:  # every other trouble with the file is Ultralytics' to tell
        if "images not found, missing path" in str(error):
            raise DataError(
                f"Expected the images of {data} to be in place, but they are missing and its download: is a script, "
                "which only the data files that come with a package may run: run it by hand."
            ) from None


def _with_suffix(data: str) -> str:
    """The file that Ultralytics takes a bare name for."""
    if "://" in data or Path(data).exists() or Path(data).suffix in _YAML:
        return data
    return next((f"{data}{suffix}" for suffix in _YAML if check_file(f"{data}{suffix}", hard=False)), data)


def _comes_with_a_package(file: Path) -> bool:
    own = resources.folder("data")
    return any(file.resolve().is_relative_to(place.resolve()) for place in (own, ROOT / "cfg" / "datasets") if place)


def _resolve_model(model: str) -> str:
    path = Path(model)
    if path.suffix == ".pt":
        return _resolve_checkpoint(model)
    if path.suffix not in _YAML or not path.is_file():
        return _known_architecture(model)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict) or "model" not in content:
        return _known_architecture(str(path.absolute()))
    # A run config of the architecture's own name lies in the working directory: the architecture is meant.
    own = list((ROOT / "cfg" / "models").rglob(path.name)) if path.parent == Path() else []
    if own:
        return str(own[0])
    raise ConfigError(
        f"Expected an Ultralytics architecture or checkpoint as model, but {model} is a run config: pass it as the "
        f"first argument, and name the architecture ({content['model']}) as model."
    )


def _resolve_checkpoint(model: str, setting: str = "model") -> str:
    path = Path(model)
    if path.is_file():
        return str(path.absolute())
    # Ultralytics would ask the network for any name; only its own checkpoints can be there.
    if (SETTINGS["weights_dir"] / path).is_file() or path.name in GITHUB_ASSETS_NAMES or "://" in model:
        return model
    raise ConfigError(
        f"Expected an Ultralytics architecture or checkpoint as {setting}, but there is no file {model}: name an "
        "existing one, an architecture such as yolov3-tiny.yaml, or one of Ultralytics' own checkpoints such as "
        "yolo11n.pt."
    )


def _known_architecture(model: str) -> str:
    packaged = resources.find("cfg/models", model)
    if packaged is not None and not Path(model).is_file():
        return str(packaged)
    try:
        if Path(model).suffix in _YAML:
            yaml_model_load(model)
        elif Path(model).stem not in GITHUB_ASSETS_STEMS:
            raise FileNotFoundError("it is neither a .yaml, nor a .pt, nor a checkpoint of Ultralytics' own")
    except Exception as error:  # a file that holds no mapping fails in ways of its own
        raise ConfigError(
            f"Expected an Ultralytics architecture or checkpoint as model (yolov3-tiny.yaml, best.pt), but {model} "
            f"cannot be read: {one_line(error)}"
        ) from None
    return model


def _has(folder: Path, name: str) -> bool:
    """Whether a file of this very name lies in a folder of Ultralytics'."""
    return Path(name).name == name and (folder / name).is_file()
