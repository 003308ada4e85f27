"""What a comparison stands on before anything is trained: its folder, what chooses and what reports, a given list."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from yolo_adapruner.config import RunConfig
from yolo_adapruner.data import export
from yolo_adapruner.data.alone import alone_in
from yolo_adapruner.errors import ConfigError, DataError, RunError
from yolo_adapruner.study.arms import PLAIN
from yolo_adapruner.study.baselines import listed_kept
from yolo_adapruner.study.elsewhere import DIGITS

_PLAN = "plan.json"
_OF_ITS_OWN = {
    "fraction": (1, "list the images to compare with under train: of a data file instead"),
    "single_cls": (False, "write a data file and labels of one class, for detectors are judged by the file's classes"),
    "classes": (None, "write a data file and labels of these classes, for detectors are judged by all of the file's"),
}
"""Settings that leave out something of the data file, of which the arms' lists and the judgement know nothing."""


def set_of(config: RunConfig) -> tuple[str, dict[str, Any]]:
    """Return the task of a recipe that cells can be compared with, and what its data set says, building one if need be.

    Raises:
        ConfigError: its cells could not be compared.
        DataError: there is no such set.
    """
    if config.batch < 1:
        raise ConfigError(
            f"Expected one batch size for all arms, but batch {config.batch:g} would find one for each: set a number."
        )
    for key, (neutral, advice) in _OF_ITS_OWN.items():
        if config.train.get(key, neutral) not in (neutral, None):
            raise ConfigError(
                f"Expected a recipe that trains on the data file as it is, but got {key}={config.train[key]}: {advice}."
            )
    from yolo_adapruner.engine import names
    from yolo_adapruner.engine.splits import load_data

    if (task := names.task_of(config)) not in ("detect", "classify"):
        raise ConfigError(
            f"Expected a model for detect or classify to compare with, but {config.model} is for {task}: "
            "train --prune works for it, the comparison judges boxes and classes alone."
        )
    return task, load_data(config.data, task)


@contextmanager
def folder_of(
    config: RunConfig, shares: Sequence[float], seeds: int, *, stem: str = "compare", **more: Any
) -> Iterator[Path]:
    """Hold a new numbered folder, or the named one if it has this comparison or a part of it, while the block runs.

    A part has the same terms with fewer shares, seeds or arms, or without the given list: its cells are cells of this
    one, so they stand, and the folder is this comparison's from now on.

    Args:
        config: the recipe.
        shares: prune shares.
        seeds: runs an arm.
        stem: name of a folder that is not named.
        more: what else tells this comparison from others: `arms`, where they are not the plain ones; `kept`, what tells
            a given list from others; `prune`, where the share is searched for; `images`, what tells the set from
            others.

    Raises:
        ConfigError: the named folder holds another comparison.
        RunError: there can be no folder, or another process works in it.
    """
    terms = {"config": config.model_dump(), "shares": list(shares), "seeds": seeds, **more}
    wanted = json.loads(json.dumps(terms, default=str))  # as it comes back; a YAML date has no JSON of its own
    project = Path(config.project).absolute()
    if config.name is not None and (project / config.name / _PLAN).is_file():
        folder = project / config.name
        with alone_in(folder):
            _go_on(folder, wanted)
            yield folder
        return
    stem = config.name or stem
    number = 1
    while (project / (stem if number == 1 else f"{stem}{number}")).exists():
        number += 1
    folder = project / (stem if number == 1 else f"{stem}{number}")
    try:
        folder.mkdir(parents=True)
        _write_plan(folder, wanted)
    except OSError as error:
        raise RunError(
            f"Expected a writable place for {folder}, but: {error.strerror}; choose another --name."
        ) from None
    with alone_in(folder):
        yield folder


def _go_on(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Make a folder's comparison the one that is wanted, if it is a part of it or the same.

    Raises:
        ConfigError: it is another.
    """
    try:
        held = json.loads((folder / _PLAN).read_text(encoding="utf-8"))
        other = _beyond(held, wanted)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        other = "a plan that cannot be read"
    if other:
        raise ConfigError(
            f"Expected {folder} to hold this comparison, or a part of it, but it holds another ({other}): choose "
            "another --name, or ask for all that it holds and more."
        )
    if held != wanted:
        _write_plan(folder, wanted)


def _beyond(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What a comparison has that another lacks or has otherwise, in words; nothing where it is a part of it."""
    before, now = held["config"], wanted["config"]
    if differ := [key for key in {**before, **now} if before.get(key) != now.get(key)]:
        return f"other {', '.join(differ)}"
    graded = {"config", "shares", "seeds", "arms", "kept", "prune", "images"}
    if differ := [key for key in {**held, **wanted} if key not in graded and held.get(key) != wanted.get(key)]:
        return f"other {', '.join(differ)}"
    # A plan of an earlier version says nothing of the images.
    if held.get("images", wanted.get("images")) != wanted.get("images"):
        return "other images"
    if held.get("prune") != wanted.get("prune") or (held.get("prune") and held["shares"] != wanted["shares"]):
        return "shares found in another way"
    lacking = {
        "shares": [f"{share:g}" for share in held["shares"] if share not in wanted["shares"]],
        "arms": [arm for arm in held.get("arms", PLAIN) if arm not in wanted.get("arms", PLAIN)],
        "seeds": [str(held["seeds"])] if held["seeds"] > wanted["seeds"] else [],
        "given list": ["another"] if held.get("kept", wanted.get("kept")) != wanted.get("kept") else [],
    }
    return "; ".join(f"{what} {', '.join(names)}" for what, names in lacking.items() if names)


def _write_plan(folder: Path, plan: Mapping[str, Any]) -> None:
    with export.replace_file(folder / _PLAN) as temporary:
        temporary.write_text(json.dumps(plan, indent=2), encoding="utf-8")


def judge_data(folder: Path, data: dict[str, Any], seed: int) -> tuple[Path, str]:
    """Write the data file every cell trains from, and return it and, in words, what is reported on.

    Its `val` chooses and its `test` is reported on: the set's own, or two seeded halves of the validation images.

    Raises:
        ConfigError: there are neither test images nor two validation images.
    """
    rest = {k: v for k, v in data.items() if k not in {"download", "yaml_file", "val", "test"} and v is not None}
    rest["path"] = str(data["path"])
    target = folder / "data.yaml"
    if data.get("test"):
        content = {**rest, "val": data["val"], "test": data["test"]}
        reported_on = "test split"
    else:
        from yolo_adapruner.engine.splits import split_images

        paths = split_images(data, "val")
        if len(paths) < 2:
            raise ConfigError(
                f"Expected a test split or at least two validation images, but {data['yaml_file']} has neither."
            )
        chosen = np.zeros(len(paths), bool)
        chosen[np.random.default_rng([seed, len(paths)]).permutation(len(paths))[: len(paths) // 2]] = True
        for name, half in (("choose", chosen), ("report", ~chosen)):
            lines = "".join(f"{p}\n" for p, row in zip(paths, half, strict=True) if row)
            (folder / f"{name}.txt").write_text(lines, encoding="utf-8")
        content = {**rest, "val": str(folder / "choose.txt"), "test": str(folder / "report.txt")}
        reported_on = f"seeded half of the validation images ({int((~chosen).sum())} of {len(paths)})"
    target.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return target, reported_on


def listed_images(kept: str | Path, data: Mapping[str, Any]) -> tuple[tuple[str, ...], float]:
    """Return the images a list keeps, sorted, and the share of the training images that it leaves out.

    Raises:
        DataError: the list cannot be read, names other images than those of the training set, or all of them.
    """
    from yolo_adapruner.engine import classset
    from yolo_adapruner.engine.splits import split_images

    try:
        lines = Path(kept).read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as error:
        raise DataError(f"Expected a list of images to keep, but {kept}: {error.strerror}; check the path.") from None
    if data.get("task") == "classify":
        paths = classset.split_images(data["train"])
    else:
        paths = split_images(dict(data), "train")
    rows = listed_kept(paths, [os.path.abspath(line.strip()) for line in lines if line.strip()])
    if rows.all():
        raise DataError(f"Expected a list that leaves images out, but {kept} names all {len(paths)} training images.")
    return tuple(p for p, row in zip(paths, rows, strict=True) if row), round(float((~rows).mean()), DIGITS)
