"""How a selection shifts what the set is made of: classes, sizes, images without boxes. Knows counts alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.core.floors import BACKGROUND, CLASS, SIZE, Groups


def drift(groups: Groups, kept: NDArray[np.bool_]) -> dict[str, Any]:
    """Return what a selection, (N,) bool, leaves of each group, as counts [all, kept].

    Returns:
        `classes` and `sizes`: boxes by name, groups that have none left out; `background`: images without boxes;
        `boxes`: all boxes. Where samples have a class and no boxes, boxes are samples.
    """
    pairs = np.column_stack([groups.totals(), groups.totals(kept)]).tolist()
    rows = list(zip(groups.family, groups.name, pairs, strict=True))

    def of(family: str) -> dict[str, list[int]]:
        return {name: pair for f, name, pair in rows if f == family and pair[0]}

    classes = of(CLASS)
    boxes = [sum(pair[i] for pair in classes.values()) for i in (0, 1)]
    background = next((pair for f, _, pair in rows if f == BACKGROUND), [0, 0])
    return {"classes": classes, "sizes": of(SIZE), "background": background, "boxes": boxes}


def largest(counts: Mapping[str, list[int]]) -> tuple[str, float, float] | None:
    """Return the group whose share changed most as a part of itself, with its share before and after, [0, 1].

    Args:
        counts: [all, kept] by name, as `drift` gives them.

    Returns:
        None where nothing is left to compare, or nothing changed.
    """
    total, left = (sum(pair[i] for pair in counts.values()) for i in (0, 1))
    if not left:
        return None
    shares = {name: (a / total, k / left) for name, (a, k) in counts.items() if a}
    name = max(shares, key=lambda n: abs(shares[n][1] / shares[n][0] - 1))
    before, after = shares[name]
    return None if before == after else (name, before, after)
