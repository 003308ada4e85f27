"""Kept sets to compare with, each a pure function of a seed. Knows no model and no files."""

from __future__ import annotations

from yolo_adapruner.core.selection import random_kept

__all__ = ["equal_updates_epochs", "random_kept"]


def equal_updates_epochs(epochs: int, images: int, kept: int, batch: int) -> int:
    """Return the epochs after which `kept` images have given as many batches as `images` give in `epochs`.

    Whole epochs only, rounded to the nearest: the number of updates then differs by less than half an epoch's.

    >>> equal_updates_epochs(30, images=360, kept=324, batch=16)
    33
    """
    return round(epochs * -(-images // batch) / -(-kept // batch))
