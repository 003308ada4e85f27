"""The embedded example set for classification: one real handwritten digit a picture, in class folders, planted faults.

Drawn as the scenes of `digits`, at 32 px; built at first use without network. Knows nothing of Ultralytics.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.data import digits
from yolo_adapruner.errors import ConfigError, DataError

NAME = "digits-classes"
"""The name a run config's `data:` gives the set."""
WRONG = "classes"
"""The kind of a picture under another digit's class: as `digits` calls wrong classes."""

_FORMAT = 1  # raise it whenever the same arguments would give other bytes
_SIZE = 32
_INK = (0.6, 0.85)  # longer side of the ink, share of the picture's side

Array = NDArray[Any]


@dataclass(frozen=True)
class Picture:
    """One picture, (32, 32, 3) uint8 BGR: its digit, the class folder it goes to, its kind and group of copies."""

    image: Array
    digit: int
    label: int
    kind: str = "clean"
    group: str = ""


def draw_picture(scan: Array, digit: int, rng: np.random.Generator) -> Picture:
    """Draw a scan (8, 8), floats from 0 to 1, on a textured ground, under its own class."""
    canvas = digits.draw_background(_SIZE, rng)
    ink = digits.render_digit(scan, round(_SIZE * rng.uniform(*_INK)), rng)
    y, x = (int(rng.integers(1, _SIZE - side)) for side in ink.shape)
    digits.paint(canvas, ink, x, y, rng)
    canvas = canvas + rng.normal(0, rng.uniform(1, 5), canvas.shape)
    return Picture(np.clip(canvas, 0, 255).round().astype(np.uint8), digit, digit)


def near_duplicate(picture: Picture, rng: np.random.Generator) -> Picture:
    """Return a picture shifted by a pixel each way, a little lighter or darker, under the same class."""
    dx, dy = (int(v) for v in rng.choice([-1, 1], 2))
    shift = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    image = cv2.warpAffine(picture.image, shift, (_SIZE, _SIZE), borderMode=cv2.BORDER_REFLECT_101)
    light = float(rng.uniform(6, 16) * rng.choice([-1, 1]))
    image = np.clip(image + light + rng.normal(0, 1.5, image.shape), 0, 255).round().astype(np.uint8)
    return replace(picture, image=image, kind="duplicate")


def plant(pictures: Sequence[Picture], noise: int, copies: int, rng: np.random.Generator) -> list[Picture]:
    """Return the pictures, `noise` of them under another class, and `copies` near-duplicates of clean ones, shuffled.

    Raises:
        ConfigError: there are fewer pictures than faults and originals.
    """
    if noise + copies > len(pictures):
        raise ConfigError(
            f"Expected a picture for each of {noise} wrong labels and {copies} copies, but there are {len(pictures)}: "
            "plant fewer."
        )
    planted = list(pictures)
    order = rng.permutation(len(planted))
    for i in order[:noise]:
        other = (planted[i].digit + int(rng.integers(1, 10))) % 10
        planted[i] = replace(planted[i], label=other, kind=WRONG)
    for number, i in enumerate(order[noise : noise + copies]):
        planted[i] = replace(planted[i], group=f"g{number:03}")
        planted.append(near_duplicate(planted[i], rng))
    return [planted[i] for i in rng.permutation(len(planted))]


def build(
    root: str | Path,
    *,
    train: int = 900,
    val: int = 300,
    test: int = 300,
    noise: float = 0.10,
    duplicates: float = 0.05,
    seed: int = 0,
) -> Path:
    """Build the set at `root`, or return at once if it stands there; the same arguments give the same bytes.

    `root`/SPLIT/CLASS/NUMBER.png, and truth.csv: path, split, kind (clean, classes, duplicate), group, and the digit
    that was written. A digit's scan is in one split only. Written beside `root` and renamed when whole.

    Args:
        root: the folder to make.
        train: training pictures, near-duplicates included.
        val: clean pictures to choose by.
        test: clean pictures to report on.
        noise: share of the training pictures that lie under a wrong class, drawn evenly.
        duplicates: share of them that are near-duplicates of other, clean ones.
        seed: of everything that is drawn.

    Raises:
        ConfigError: more pictures are asked for than there are scans.
        DataError: `root` is taken by something else or cannot be written.
    """
    root = Path(root).resolve()
    recipe = {"format": _FORMAT, "train": train, "val": val, "test": test, "noise": noise}
    recipe |= {"duplicates": duplicates, "seed": seed}
    if _stands(root, recipe):
        return root
    drawn = _draw(recipe)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as beside:
            half = Path(beside, "set")
            _write(half, drawn, recipe)
            try:
                half.rename(root)
            except OSError:
                if not _stands(root, recipe):  # another process was quicker
                    raise
    except OSError as error:
        raise DataError(f"Expected a writable place for the digits set, but {root}: {error.strerror}.") from error
    return root


def _draw(recipe: dict[str, Any]) -> dict[str, list[Picture]]:
    rng = np.random.default_rng([recipe["seed"], 32])
    images, targets = digits.load_scans()
    copies = round(recipe["duplicates"] * recipe["train"])
    drawn = {}
    for split, parts in zip(digits.SPLITS, digits.split_scans(images, targets, rng), strict=True):
        scans = [(scan, digit) for digit, part in enumerate(parts) for scan in part]
        wanted = recipe[split] - (copies if split == "train" else 0)
        if wanted > len(scans):
            raise ConfigError(f"Expected at most {len(scans)} {split} pictures, but got {wanted}: there are no more.")
        drawn[split] = [draw_picture(scans[i][0], scans[i][1], rng) for i in rng.permutation(len(scans))[:wanted]]
    drawn["train"] = plant(drawn["train"], round(recipe["noise"] * recipe["train"]), copies, rng)
    return drawn


def _write(root: Path, drawn: dict[str, list[Picture]], recipe: dict[str, Any]) -> None:
    rows: list[tuple[str, ...]] = [("path", "split", "kind", "group", "digit")]
    for split, pictures in drawn.items():
        for digit in range(10):
            (root / split / str(digit)).mkdir(parents=True)
        for number, picture in enumerate(pictures):
            path = f"{split}/{picture.label}/{number:05}.png"
            cv2.imwrite(str(root / path), picture.image)
            rows.append((path, split, picture.kind, picture.group, str(picture.digit)))
    with (root / "truth.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    (root / "recipe.json").write_text(json.dumps(recipe, indent=1), encoding="utf-8")


def _stands(root: Path, recipe: dict[str, Any]) -> bool:
    """Whether the set asked for is at `root`; a DataError where something else is."""
    if not root.exists():
        return False
    try:
        found = json.loads((root / "recipe.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != recipe:
        raise DataError(f"Expected {root} to be free or to hold this digits set, but it holds something else: move it.")
    count = sum(1 for split in digits.SPLITS for _ in (root / split).glob("*/*.png"))
    if count != sum(recipe[split] for split in digits.SPLITS):
        raise DataError(
            f"Expected the whole digits set in {root}, but pictures are missing: delete it to have it built."
        )
    return True
