"""The run config's `augmentations:`: albumentations' own transforms, by name and arguments, and nothing else.

A name is looked up among the transforms that albumentations has, never imported and never evaluated. What cannot be
built is refused with every reason at once. Whether it fits a run's pictures is the engine's to find out. Albumentations
takes a second to load and is loaded on first use. Knows no Ultralytics, only the form it takes transforms in.
"""

from __future__ import annotations

import difflib
import inspect
import math
import os
import re
import reprlib
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from types import ModuleType
from typing import Any

Entries = list[dict[str, dict[str, Any]]]
"""A list as it stands in a run config: one name with its arguments an entry; `transforms:` of a composition is one."""

_BASES = ("BaseCompose", "BasicTransform", "DualTransform", "ImageOnlyTransform", "Transform3D")
_REFUSED = {
    "Lambda": "holds functions, which a run config cannot",
    "ReplayCompose": "is for replaying: take Compose",
    **dict.fromkeys(("CropNonEmptyMaskIfExists", "MaskDropout"), "needs masks"),
    **dict.fromkeys(
        ("FDA", "HistogramMatching", "Mosaic", "OverlayElements", "PixelDistributionAdaptation"), "needs other pictures"
    ),
    "TextImage": "needs a font file",
    "RandomCropNearBBox": "needs a box to stay near",
    "RandomGridShuffle": "tears objects apart from their boxes",
    **dict.fromkeys(
        ("FromFloat", "Normalize", "ToFloat", "ToTensorV2"), "changes the number format, which Ultralytics does itself"
    ),
}
_COMPOSITION_ARGUMENTS = {"transforms", "p", "n", "replace", "channels"}
_ADVICE = re.compile(
    r"[Cc]onsider using|Please use|very slow"
)  # what albumentations says of a class, whatever is asked
_DEEPEST = 8


def normalise(value: Any) -> Entries:
    """Return a list of transforms in one form, every name and argument checked.

    Args:
        value: a list; an entry is a name, or a mapping of one name to its arguments.

    Raises:
        ValueError: all that cannot be, in one line.
    """
    faults: list[str] = []
    entries = list(_entries(value, "", faults, 0))
    if faults:
        raise ValueError("; ".join(faults))
    return entries


def for_ultralytics(entries: Entries) -> list[dict[str, Any]]:
    """Return transforms in the form Ultralytics puts them into checkpoints, with the arguments as they were given."""
    return [{"transform": _serialised(entry)} for entry in entries]


def library() -> ModuleType:
    """Return albumentations, loaded without asking the network for a newer version."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


@cache
def _known() -> dict[str, type]:
    """Albumentations' own transforms and compositions by name, those that cannot serve here among them."""
    bases = (library().BasicTransform, library().BaseCompose)
    found = {name: getattr(library(), name) for name in dir(library()) if name not in _BASES}
    return {name: kind for name, kind in found.items() if inspect.isclass(kind) and issubclass(kind, bases)}


# ---- names and arguments ----------------------------------------------------------------------------------------


def _entries(value: Any, place: str, faults: list[str], depth: int) -> Iterator[dict[str, dict[str, Any]]]:
    if not isinstance(value, list | tuple):
        faults.append(
            f"{place or 'input '}should be a list of transforms such as [Blur, {{Rotate: {{limit: 10, p: 0.5}}}}], but "
            f"got {reprlib.repr(value)}"
        )
        return
    if depth > _DEEPEST:
        faults.append(f"{place}is nested deeper than {_DEEPEST} levels")
        return
    for item in value:
        entry = _entry(item, place, faults, depth)
        if entry is not None:
            yield entry


def _entry(item: Any, place: str, faults: list[str], depth: int) -> dict[str, dict[str, Any]] | None:
    """One transform of a list; what is wrong with it goes to `faults`."""
    if isinstance(item, str):
        item = {item: None}
    if not isinstance(item, Mapping) or len(item) != 1 or not isinstance(next(iter(item)), str):
        faults.append(f"{place}expected one name, or one name with its arguments, but got {reprlib.repr(item)}")
        return None
    [(name, arguments)] = item.items()
    arguments = {} if arguments is None else arguments
    known = _known()
    if fault := _unusable(name, known):
        faults.append(f"{place}{fault}")
        return None
    place = f"{place}{name}: "
    if not isinstance(arguments, Mapping):
        faults.append(f"{place}expected a mapping of arguments, but got {reprlib.repr(arguments)}")
        return None
    before = len(faults)
    faults += [f"{place}{fault}" for fault in _unknown_arguments(known[name], arguments)]
    plain: dict[str, Any] = {}
    for key, value in arguments.items():
        try:
            plain[str(key)] = (
                list(_entries(value, f"{place}transforms ", faults, depth + 1))
                if key == "transforms"
                else _plain(value)
            )
        except ValueError as error:
            faults.append(f"{place}{key}: {error}")
    if len(faults) == before and (fault := _unbuildable(name, plain)):
        faults.append(f"{place}{fault}")
    return {name: plain}


def _unusable(name: str, known: Mapping[str, type]) -> str | None:
    if name not in known:
        near = difflib.get_close_matches(name, [n for n in known if n not in _REFUSED], n=1)
        hint = f", did you mean {near[0]}?" if near else "; albumentations has no transform of that name"
        return f"unknown transform {reprlib.repr(name)[1:-1]}{hint}"
    if name in _REFUSED:
        return f"{name} {_REFUSED[name]}"
    return f"{name} is for volumes" if issubclass(known[name], library().Transform3D) else None


def _unknown_arguments(kind: type, arguments: Mapping[Any, Any]) -> Iterator[str]:
    names = set(list(inspect.signature(kind.__init__).parameters)[1:])  # type: ignore[misc]
    if issubclass(kind, library().BaseCompose):
        names &= _COMPOSITION_ARGUMENTS
        if not arguments.get("transforms"):
            yield "transforms is missing"
    for key in arguments:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(sorted(names))}"
            yield f"unknown argument {reprlib.repr(key)}, {hint}"


def _plain(value: Any, depth: int = 0) -> Any:
    """The value if YAML and JSON have words for it, tuples as lists."""
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping) and depth < _DEEPEST and all(isinstance(key, str | int) for key in value):
        return {key: _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple) and depth < _DEEPEST:
        return [_plain(item, depth + 1) for item in value]
    raise ValueError(f"expected numbers, words, lists or mappings, but got {reprlib.repr(value)}")


def _unbuildable(name: str, arguments: Mapping[str, Any]) -> str | None:
    """Why albumentations cannot make the transform of these arguments, or would make another of them."""
    if issubclass(_known()[name], library().BaseCompose) and (fault := _bad_composition(arguments)):
        return fault
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            _built({name: dict(arguments)})
        except Exception as error:  # each transform checks its arguments in its own way
            return _reason(error)
    return next((_one_line(str(w.message)) for w in said if not _ADVICE.search(str(w.message))), None)


def _bad_composition(arguments: Mapping[str, Any]) -> str | None:
    """What albumentations does not check of a composition's own arguments."""
    p, n, channels = arguments.get("p", 1), arguments.get("n", 1), arguments.get("channels", [0])
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
        return f"p should be a number from 0 to 1, but got {reprlib.repr(p)}"
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        return f"n should be a whole number from 1 on, but got {reprlib.repr(n)}"
    if not isinstance(arguments.get("replace", False), bool):
        return f"replace should be true or false, but got {reprlib.repr(arguments['replace'])}"
    if not isinstance(channels, list) or not channels or not all(type(c) is int and c >= 0 for c in channels):
        return f"channels should be a list of channel numbers, but got {reprlib.repr(channels)}"
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, ZeroDivisionError):  # it makes weights of their p
        return "expected a transform with p above 0 to choose"
    errors = getattr(error.__cause__, "errors", None)
    if not callable(errors):
        return _one_line(str(error)) or type(error).__name__
    said: dict[str, list[str]] = {}  # a value that fits none of several types has a fault for each
    for e in errors():
        said.setdefault(str(e["loc"][0]) if e["loc"] else "arguments", []).append(e["msg"][0].lower() + e["msg"][1:])
    return _one_line(", ".join(f"{name}: {', or '.join(dict.fromkeys(faults))}" for name, faults in said.items()))


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:200]}…"


# ---- building ----------------------------------------------------------------------------------------------------


def _serialised(entry: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The dict albumentations builds a transform from. It wants p said, whose default is the class's own."""
    [(name, arguments)] = entry.items()
    default = inspect.signature(_known()[name].__init__).parameters["p"].default  # type: ignore[misc]
    content = {"__class_fullname__": name, "p": default, **arguments}
    if "transforms" in arguments:
        content["transforms"] = [_serialised(part) for part in arguments["transforms"]]
    return content


def _built(entry: Mapping[str, Mapping[str, Any]]) -> Any:
    return library().from_dict({"transform": _serialised(entry)})
