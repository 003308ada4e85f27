"""What the numbers of a finished selection say about it: a reason for each dropped image, drift, floors held.

Works on an `Outcome` alone, so that another share cut from the same scores is explained alike. Knows no files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.core.drift import drift
from yolo_adapruner.core.floors import Constraints, Groups
from yolo_adapruner.core.reasons import KINDS, REASONS, SUSPECT, Evidence, explain, suspicion_of_channels
from yolo_adapruner.core.suspicion import mean_probability, softplus

if TYPE_CHECKING:
    from yolo_adapruner.data.export import Outcome

_GROUPS = ("sample", "group", "count", "family", "name")
_PREFIX, _REQUIRED = "groups_", "required"


def with_reasons(outcome: Outcome) -> Outcome:
    """Return the outcome with the columns `reason` and `detail`, worked out from its other columns.

    - reason: one of `core.reasons.REASONS`, "" where kept; `core.reasons.explain` says which.
    - detail: of a label suspect the kind of fault, of a duplicate the path of the kept image it is like, else "".
    """
    reason, kind, twin = explain(outcome.kept, evidence(outcome.columns, len(outcome.kept)))
    # Objects: an array of str gives each row the room of the longest path.
    detail = kind.astype(object)
    detail[twin >= 0] = np.array([outcome.paths[row] for row in twin[twin >= 0]], object)
    return replace(outcome, columns={**outcome.columns, "reason": reason, "detail": detail})


def evidence(columns: Mapping[str, NDArray[Any]], n: int) -> Evidence:
    """Return the numbers of `n` samples that reasons come from; suspicion is told from the channels where no judge was.

    Args:
        columns: of an `Outcome`.
        n: number of samples.
    """
    signal = columns.get("signal", np.full(n, np.nan))
    suspicion, kind = columns.get("suspicion"), columns.get("kind")
    channels = [name for name in KINDS if name in columns]
    if not judged(columns) and channels:
        suspicion, kind = suspicion_of_channels(np.column_stack([columns[name] for name in channels]), channels)
    return Evidence(signal, suspicion, kind, columns.get("twin"), columns.get("lot"))


def judged(columns: Mapping[str, NDArray[Any]]) -> bool:
    """Return whether a judge of labels gave the suspicion in an outcome's columns."""
    return "suspicion" in columns and bool(np.isfinite(columns["suspicion"]).any())


def facts(outcome: Outcome, share: float, floor: float) -> dict[str, Any]:
    """Return what the manifest says of a selection.

    Returns:
        reasons: how many dropped images have each reason, and by `kinds` the label suspects of each kind. Where a judge
        learned, wrong_labels: the share of all images that it takes for wrongly labelled, [0, 1]. Of a set
        whose labels are known also: drift: counts [all, kept], see `core.drift`; floor: asked and held; required:
        number of images that had to stay.
    """
    columns, constraints = outcome.columns, outcome.constraints
    said: dict[str, Any] = {}
    if "reason" in columns:
        reasons, suspects = Counter(columns["reason"].tolist()), columns["reason"] == SUSPECT
        kinds = Counter(columns["detail"][suspects].tolist())
        said["reasons"] = {name: reasons[name] for name in REASONS}
        said["kinds"] = {name: n for name, n in sorted(kinds.items()) if name}
    if judged(columns):
        said["wrong_labels"] = round(mean_probability(columns["suspicion"]), 4)
    if constraints.groups is not None:
        said["drift"] = drift(constraints.groups, outcome.kept)
        said["floor"] = {"asked": floor, "held": round(constraints.held(outcome.kept, share), 6)}
    said["required"] = 0 if constraints.required is None else int(constraints.required.sum())
    return said


def trusting(constraints: Constraints, columns: Mapping[str, NDArray[Any]]) -> Constraints:
    """Return constraints whose floors count what the judge takes for right, where one spoke in an outcome's columns."""
    return constraints.trusting(softplus(columns["suspicion"])) if judged(columns) else constraints


def arrays(constraints: Constraints) -> dict[str, NDArray[Any]]:
    """Return constraints as arrays for `mask.npz`; the floor is a setting and stands in the manifest."""
    found: dict[str, NDArray[Any]] = {}
    if constraints.groups is not None:
        found |= {_PREFIX + name: np.asarray(getattr(constraints.groups, name)) for name in _GROUPS}
    if constraints.required is not None:
        found[_REQUIRED] = constraints.required
    return found


def constraints_of(held: Mapping[str, NDArray[Any]], floor: float, n: int) -> Constraints:
    """Return what `arrays` gave; of a run that wrote none of it, no constraints.

    Raises:
        ValueError: they are not of a set of `n` images.
    """
    groups, required = None, held.get(_REQUIRED)
    if _PREFIX + "sample" in held:
        sample, group, count, family, name = (held[_PREFIX + part] for part in _GROUPS)
        groups = Groups(sample, group, count, tuple(family.tolist()), tuple(name.tolist()))
        if not (len(sample) == len(group) == len(count) and _within(sample, n) and _within(group, len(name))):
            raise ValueError("groups of other images")
    if required is not None and required.shape != (n,):
        raise ValueError(f"{len(required)} images that may be required, of {n}")
    return Constraints(groups, floor, required)


def _within(numbers: NDArray[Any], end: int) -> bool:
    return not len(numbers) or (int(numbers.min()) >= 0 and int(numbers.max()) < end)
