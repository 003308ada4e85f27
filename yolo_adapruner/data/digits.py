"""The embedded example set: scenes of real handwritten digits with planted, recorded label faults; needs no network.

Draws, plants, writes and reads back the truth. Knows nothing of Ultralytics, of training, or of how images are scored.
"""

import csv
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.data.boxes import covered, iou
from yolo_adapruner.errors import ConfigError, DataError

FAULTS = ("classes", "boxes", "missing", "spurious")
"""The kinds of wrong label that can be planted, in the order in which a remainder is shared out."""
KINDS = ("clean", *FAULTS, "duplicate", "empty")
"""Everything the `kind` column of truth.csv may say."""
SPLITS = ("train", "val", "test")

_DATA_YAML = """# No `path`: the images lie beside this file, so the folder may be moved.
train: images/train
val: images/val
test: images/test
names:
""" + "".join(f'  {i}: "{i}"\n' for i in range(10))
_FORMAT = 1  # raise it whenever the same arguments would give other bytes: older sets are then refused, not mixed up
_SCAN_SHARES = (0.6, 0.2, 0.2)  # of each class's scans, to train, val and test
_LOOPS = {0: (1,), 4: (0, 1), 6: (1,), 8: (2,), 9: (1,)}  # closed loops a person knows the class by; else none
_DIGIT_SIZE = (0.14, 0.35)  # longer side of the ink, share of the scene's side: 22 to 56 px of 160
_MAX_DIGITS = 5
_MARGIN = 0.025  # share of the side kept free at the border, and never less than a near-duplicate is shifted by
_MAX_SHIFT = 3  # px
_MAX_IOU = 0.02  # between two digits of a scene
_MAX_COVER = 0.09  # of the smaller of a spurious box and a real one; IoU is never larger than this
_JPEG_QUALITY = 92

Array = NDArray[Any]


@dataclass(frozen=True)
class Scene:
    """One picture with its labels: image (S, S, 3) uint8 BGR, boxes (n, 4) pixel x1 y1 x2 y2, classes (n,) 0 to 9."""

    image: Array
    boxes: Array
    classes: Array
    kind: str = "clean"
    group: str = ""


# ------------------------------------------------------------------------------------------------------ the scans


class Scans:
    """One split's scans, dealt out class by class, so that none comes again before all of its class have come."""

    def __init__(self, by_class: Sequence[Array]) -> None:
        """Take the scans of each class: ten arrays (k, 8, 8), floats from 0 to 1."""
        self._by_class = by_class
        self._dealt = [0] * len(by_class)

    def deal(self, rng: np.random.Generator) -> tuple[Array, int]:
        """Return the next scan (8, 8) of a class drawn evenly, and that class."""
        cls = int(rng.integers(len(self._by_class)))
        pool = self._by_class[cls]
        scan = pool[self._dealt[cls] % len(pool)]
        self._dealt[cls] += 1
        return scan, cls


def split_scans(images: Array, targets: Array, rng: np.random.Generator) -> list[list[Array]]:
    """Shuffle every class's scans and cut them into disjoint parts for train, val and test.

    Args:
        images: scans (n, 8, 8).
        targets: their classes (n,), 0 to 9.
        rng: the stream to shuffle with.

    Returns:
        For each split, a list of ten arrays (k, 8, 8).
    """
    parts: list[list[Array]] = [[] for _ in SPLITS]
    for cls in range(10):
        order = rng.permutation(np.flatnonzero(targets == cls))
        cuts = np.round(np.cumsum(_SCAN_SHARES[:-1]) * len(order)).astype(int)
        for part, chosen in zip(parts, np.split(order, cuts), strict=True):
            part.append(images[chosen])
    return parts


@cache
def load_scans() -> tuple[Array, Array]:
    """Return scikit-learn's legible scans (n, 8, 8), floats from 0 to 1, and their classes (n,).

    Raises:
        DataError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as err:
        raise DataError(f"the digits set needs scikit-learn, which cannot be imported ({err}); install it") from err
    bunch = load_digits()
    images, targets = bunch.images / 16.0, bunch.target
    legible = np.array([is_legible(scan, int(cls)) for scan, cls in zip(images, targets, strict=True)])
    return images[legible], targets[legible]


def is_legible(scan: Array, cls: int) -> bool:
    """Tell whether a scan (8, 8) has the closed loops its class is read by; about 1 in 11 lost some in scanning."""
    ground = (_enlarge(scan) <= 0.5).astype(np.uint8)
    areas = cv2.connectedComponentsWithStats(ground, connectivity=4)[2][1:, cv2.CC_STAT_AREA]
    loops = int((areas > 12).sum()) - 1  # specks don't count, nor does the outside
    return loops in _LOOPS.get(cls, (0,))


def _enlarge(scan: Array) -> Array:
    """Return the scan (8, 8) with a free border as (128, 128) float32; ink is what exceeds about a half."""
    big = cv2.resize(np.pad(scan, 4).astype(np.float32), (128, 128), interpolation=cv2.INTER_CUBIC)
    big = cv2.GaussianBlur(big, (0, 0), 2)
    wide = np.asarray(cv2.GaussianBlur(big, (0, 0), 10))
    return np.asarray(big + 2 * (big - wide))  # opens the loops that coarse cells have half filled


# ------------------------------------------------------------------------------------------------------ drawing


def render_digit(scan: Array, side: int, rng: np.random.Generator) -> Array:
    """Turn an 8x8 scan into an ink mask whose four edges all touch ink.

    Args:
        scan: (8, 8) float in 0..1.
        side: length of the mask's longer side in pixels.
        rng: draws rotation, shear, stretch and stroke width.

    Returns:
        (h, w) float32 opacity in 0..1 with max(h, w) == side.
    """
    big = _enlarge(scan)
    angle, shear = math.radians(rng.uniform(-14, 14)), rng.uniform(-0.18, 0.18)
    stretch = math.exp(rng.uniform(-0.15, 0.15))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turn = turn @ np.array([[stretch, shear], [0.0, 1.0]])
    warp = np.column_stack([turn, 64 - turn @ [64, 64]])
    big = cv2.warpAffine(big, warp, (128, 128), flags=cv2.INTER_LINEAR)
    edge = rng.uniform(0.42, 0.58)  # where ink begins: a low edge gives a fat stroke
    ink = np.clip((big - edge + 0.08) / 0.16, 0, 1)
    rows, cols = np.flatnonzero((ink > 0.5).any(1)), np.flatnonzero((ink > 0.5).any(0))
    ink = ink[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    scale = side / max(ink.shape)
    height, width = (max(3, round(s * scale)) for s in ink.shape)
    return np.asarray(cv2.resize(ink, (width, height), interpolation=cv2.INTER_AREA))


def draw_background(size: int, rng: np.random.Generator) -> Array:
    """Draw a textured ground: noise in octaves, always, with a gradient, stripes or patches on top of it.

    Returns:
        (size, size, 3) float32, 15 to 240.
    """
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    ground = np.zeros((size, size), np.float32)
    for octave in range(2, 7):
        cells = min(size, 2**octave)
        grid = rng.normal(size=(cells, cells)).astype(np.float32)
        weight = rng.uniform(0.2, 1.0) / math.sqrt(octave)
        ground += weight * cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
    ground *= rng.uniform(5, 13)
    angle = rng.uniform(0, math.pi)
    along = x * math.cos(angle) + y * math.sin(angle)
    if rng.random() < 0.6:
        ground += rng.uniform(-45, 45) * (along - along.mean())
    if rng.random() < 0.45:
        wave = np.sin(2 * math.pi * (rng.uniform(3, 16) * along + rng.uniform()))
        ground += rng.uniform(5, 15) * (np.sign(wave) if rng.random() < 0.4 else wave)
    if rng.random() < 0.35:
        cells = int(rng.integers(3, 9))
        patches = rng.uniform(-16, 16, (cells, cells)).astype(np.float32)
        ground += cv2.resize(patches, (size, size), interpolation=cv2.INTER_NEAREST)
    tint = rng.normal(0, 14, 3).astype(np.float32)
    base = rng.uniform(75, 180)
    return np.asarray(np.clip(base + ground[..., None] + tint, 15, 240), np.float32)


def paint(canvas: Array, ink: Array, x: int, y: int, rng: np.random.Generator) -> None:
    """Paint ink onto a canvas, in place, in a drawn colour that stands out from the ground under it.

    Args:
        canvas: picture (H, W, 3), floats from 0 to 255.
        ink: opacity (h, w), 0 to 1, that fits there.
        x: column of its upper left corner.
        y: row of it.
        rng: the stream all choices come from.
    """
    height, width = ink.shape
    patch = canvas[y : y + height, x : x + width]
    mean = float(patch.mean())
    contrast = rng.uniform(65, 125)
    light = rng.random() < 0.5
    if mean + contrast > 250:
        light = False
    elif mean - contrast < 5:
        light = True
    colour = np.clip(mean + (contrast if light else -contrast) + rng.normal(0, 12, 3), 0, 255)
    opacity = (ink * rng.uniform(0.85, 1.0))[..., None]
    patch[:] = patch * (1 - opacity) + colour.astype(np.float32) * opacity


def draw_scene(scans: Scans, size: int, digits: int, rng: np.random.Generator) -> Scene:
    """Draw a scene with up to `digits` digits; one that finds no free place in 60 tries is left out.

    Args:
        scans: where the digits come from.
        size: side of the square picture in pixels.
        digits: how many digits to try; 0 gives bare background.
        rng: the stream all choices come from.

    Returns:
        The scene with true labels; at least one digit if one was asked for.
    """
    canvas = draw_background(size, rng)
    margin = max(_MAX_SHIFT, math.ceil(_MARGIN * size))
    boxes: Array = np.zeros((0, 4))
    classes: list[int] = []
    for _ in range(digits):
        scan, cls = scans.deal(rng)
        ink = render_digit(scan, round(size * rng.uniform(*_DIGIT_SIZE)), rng)
        height, width = ink.shape
        for _ in range(60):
            x = int(rng.integers(margin, size - margin - width + 1))
            y = int(rng.integers(margin, size - margin - height + 1))
            box = np.array([[x, y, x + width, y + height]], float)
            if not (iou(box, boxes) > _MAX_IOU).any():
                paint(canvas, ink, x, y, rng)
                boxes, classes = np.concatenate([boxes, box]), [*classes, cls]
                break
    canvas = np.asarray(cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.3, 0.7)))
    canvas = canvas + rng.normal(0, rng.uniform(1, 5), canvas.shape)
    return Scene(np.clip(canvas, 0, 255).round().astype(np.uint8), boxes, np.array(classes, int))


def _extents(boxes: Array) -> Array:
    return boxes[:, 2:] - boxes[:, :2]


# ------------------------------------------------------------------------------------------------------ planting


def fault_classes(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """Give every box a class that is not its own, drawn evenly from the nine others."""
    return replace(scene, classes=(scene.classes + rng.integers(1, 10, len(scene.classes))) % 10)


def fault_boxes(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """Shift every box by 40 to 80 % of its size in a drawn direction, or the mirrored one where it would leave."""
    size = scene.image.shape[0]
    extent = _extents(scene.boxes)
    angle, share = rng.uniform(0, 2 * math.pi, len(extent)), rng.uniform(0.4, 0.8, len(extent))
    shift = np.column_stack([np.cos(angle), np.sin(angle)]) * share[:, None] * extent
    leaves = (scene.boxes[:, :2] + shift < 0) | (scene.boxes[:, 2:] + shift > size)
    shift = np.where(leaves, -shift, shift)
    return replace(scene, boxes=scene.boxes + np.tile(shift, 2))


def fault_missing(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """Take away half of the boxes or more, never all; None for a scene with fewer than two."""
    count = len(scene.boxes)
    if count < 2:
        return None
    left = int(rng.integers(1, count // 2 + 1))
    stay = np.sort(rng.permutation(count)[:left])
    return replace(scene, boxes=scene.boxes[stay], classes=scene.classes[stay])


def fault_spurious(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """Add as many boxes on bare ground as there are real ones, at least two, of digit size; None if they don't fit."""
    size, real = scene.image.shape[0], len(scene.boxes)
    wanted, boxes = real + max(real, 2), scene.boxes
    for _ in range(400):
        if len(boxes) == wanted:
            break
        extent = np.round(size * rng.uniform(*_DIGIT_SIZE) * np.array([rng.uniform(0.55, 1.0), 1.0]))
        corner = np.floor(rng.uniform(0, size - extent))
        box = np.concatenate([corner, corner + extent])[None]
        if not (covered(box, boxes) > _MAX_COVER).any():
            boxes = np.concatenate([boxes, box])
    if len(boxes) < wanted:
        return None
    classes = np.concatenate([scene.classes, rng.integers(0, 10, wanted - real)])
    order = rng.permutation(wanted)  # the order of the lines must not tell which box is which
    return replace(scene, boxes=boxes[order], classes=classes[order])


_FAULT: dict[str, Callable[[Scene, np.random.Generator], Scene | None]] = {
    "classes": fault_classes,
    "boxes": fault_boxes,
    "missing": fault_missing,
    "spurious": fault_spurious,
}


def near_duplicate(scene: Scene, rng: np.random.Generator) -> Scene:
    """Shift a scene by 1 to 3 px each way, change its brightness and re-encode it as JPEG; labels follow exactly."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # read at import; without it the import calls home
    try:
        import albumentations as A
    except ImportError as err:
        raise DataError(
            f"near-duplicates need albumentations, which cannot be imported ({err}); install it or use duplicates=0"
        ) from err
    dx, dy = (int(v) for v in rng.integers(1, _MAX_SHIFT + 1, 2) * rng.choice([-1, 1], 2))
    light = float(rng.uniform(0.04, 0.12) * rng.choice([-1, 1]))
    steps = [
        A.Affine(translate_px={"x": (dx, dx), "y": (dy, dy)}, border_mode=cv2.BORDER_REFLECT_101, p=1.0),
        A.RandomBrightnessContrast(brightness_limit=(light, light), contrast_limit=(-0.05, 0.05), p=1.0),
        A.ImageCompression(quality_range=(55, 80), p=1.0),
    ]
    boxes = A.BboxParams(format="pascal_voc", label_fields=["classes"])
    compose = A.Compose(steps, bbox_params=boxes, seed=int(rng.integers(2**31)))
    out = compose(image=scene.image, bboxes=scene.boxes, classes=scene.classes)
    return Scene(out["image"], np.asarray(out["bboxes"], float).reshape(-1, 4), np.asarray(out["classes"], int))


def plant(scenes: list[Scene], count: int, kinds: Sequence[str], rng: np.random.Generator) -> list[Scene]:
    """Return the scenes with `count` of them mislabelled, in equal parts of `kinds`, a fault an image; pictures stay.

    Only clean scenes that have digits and no near-duplicate are taken.

    Raises:
        ConfigError: too few scenes can carry the fault.
    """
    result = list(scenes)
    free = [int(i) for i in rng.permutation(len(scenes)) if scenes[i].kind == "clean" and not scenes[i].group]
    shares = {kind: count // len(kinds) + (i < count % len(kinds)) for i, kind in enumerate(kinds)} if count else {}
    for kind in sorted(shares, key=("missing", "spurious", "boxes", "classes").index):  # the choosiest first
        left = shares[kind]
        for index in list(free):
            if not left:
                break
            faulty = _FAULT[kind](scenes[index], rng)
            if faulty is not None:
                result[index] = replace(faulty, kind=kind)
                free.remove(index)
                left -= 1
        if left:
            raise ConfigError(
                f"expected {shares[kind]} train scenes fit for the fault {kind!r} but {left} were not to be found; "
                "lower noise, duplicates or empty, or raise train"
            )
    return result


# ------------------------------------------------------------------------------------------------------ the set


def _draw_train(scans: Scans, size: int, counts: dict[str, int], rng: np.random.Generator) -> list[Scene]:
    """Draw the train scenes, true labels all: plain ones, empty ones, then the near-duplicates; in shuffled order."""
    plain = counts["train"] - counts["empty"] - counts["duplicates"]
    scenes = [draw_scene(scans, size, int(rng.integers(1, _MAX_DIGITS + 1)), rng) for _ in range(plain)]
    empties = [replace(draw_scene(scans, size, 0, rng), kind="empty") for _ in range(counts["empty"])]
    copies = []
    for number, index in enumerate(rng.permutation(plain)[: counts["duplicates"]]):
        group = f"d{number:03d}"
        copies.append(replace(near_duplicate(scenes[index], rng), kind="duplicate", group=group))
        scenes[index] = replace(scenes[index], group=group)
    scenes += empties + copies
    return [scenes[i] for i in rng.permutation(len(scenes))]


def _draw_all(recipe: dict[str, Any]) -> dict[str, list[Scene]]:
    """Draw all splits. Each has a stream of its own: val and test stay the same whatever is asked of train."""
    deal, *streams, faults = np.random.default_rng(recipe["seed"]).spawn(2 + len(SPLITS))
    scans = [Scans(part) for part in split_scans(*load_scans(), deal)]
    counts = {"train": recipe["train"], **{k: round(recipe[k] * recipe["train"]) for k in ("duplicates", "empty")}}
    drawn = {"train": _draw_train(scans[0], recipe["size"], counts, streams[0])}
    for split, part, rng in zip(SPLITS[1:], scans[1:], streams[1:], strict=True):
        drawn[split] = [
            draw_scene(part, recipe["size"], int(rng.integers(1, _MAX_DIGITS + 1)), rng) for _ in range(recipe[split])
        ]
    drawn["train"] = plant(drawn["train"], round(recipe["noise"] * recipe["train"]), recipe["kinds"], faults)
    return drawn


def _label_lines(scene: Scene) -> str:
    size = scene.image.shape[0]
    centre, extent = (scene.boxes[:, :2] + scene.boxes[:, 2:]) / 2 / size, _extents(scene.boxes) / size
    rows = zip(scene.classes, centre, extent, strict=True)
    return "".join(f"{c} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for c, (x, y), (w, h) in rows)


def _write(root: Path, drawn: dict[str, list[Scene]], recipe: dict[str, Any]) -> None:
    rows, number = [("path", "split", "kind", "group")], 0
    for split in SPLITS:
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for scene in drawn[split]:
            name = f"{number:06d}"
            _, jpeg = cv2.imencode(".jpg", scene.image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
            (root / "images" / split / f"{name}.jpg").write_bytes(jpeg.tobytes())
            _write_text(root / "labels" / split / f"{name}.txt", _label_lines(scene))
            rows.append((f"images/{split}/{name}.jpg", split, scene.kind, scene.group))
            number += 1
    _write_text(root / "truth.csv", "".join(",".join(row) + "\n" for row in rows))
    _write_text(root / "data.yaml", _DATA_YAML)
    _write_text(root / "recipe.json", json.dumps(recipe, indent=1) + "\n")


def _write_text(path: Path, text: str) -> None:
    path.write_bytes(text.encode())  # bytes, since write_text would turn line ends on some systems


def _checked_recipe(**recipe: Any) -> dict[str, Any]:
    """Return the arguments in the form written to recipe.json, or say what is wrong with them."""
    for key, least in (("train", 1), ("val", 1), ("test", 1), ("size", 64), ("seed", 0)):
        if not isinstance(recipe[key], Integral) or recipe[key] < least:
            raise ConfigError(f"expected {key} to be a whole number, {least} or more, but got {recipe[key]!r}")
        recipe[key] = int(recipe[key])
    for key in ("noise", "duplicates", "empty"):
        if not isinstance(recipe[key], Real) or not 0 <= recipe[key] <= 1:
            raise ConfigError(f"expected {key} to be a share from 0 to 1 but got {recipe[key]!r}")
        recipe[key] = float(recipe[key])
    kinds = list(recipe["kinds"])
    if not set(kinds) <= set(FAULTS) or len(set(kinds)) < len(kinds) or (recipe["noise"] and not kinds):
        raise ConfigError(f"expected kinds to be some of {', '.join(FAULTS)}, each once, but got {kinds}")
    taken = recipe["noise"] + 2 * recipe["duplicates"] + recipe["empty"]
    if taken > 1:
        raise ConfigError(f"expected noise + 2 * duplicates + empty to be at most 1 but got {taken:g}; lower one")
    return {"format": _FORMAT, **recipe, "kinds": kinds}


def _is_whole(root: Path, recipe: dict[str, Any]) -> bool:
    """Tell whether the set asked for is there (True) or its place is free (False); raise DataError if it is neither."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / "recipe.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        what = f"expected {root} to be free or to hold a digits set but it is something else"
        raise DataError(f"{what}; use another folder") from err
    if found != recipe:
        keys = [k for k in recipe if not isinstance(found, dict) or found.get(k) != recipe[k]]
        raise DataError(f"{root} holds a digits set made otherwise (differs in {', '.join(keys)}); use another folder")
    for split in SPLITS:
        for folder, suffix in (("images", "jpg"), ("labels", "txt")):
            count = sum(1 for _ in (root / folder / split).glob(f"*.{suffix}"))
            if count != recipe[split]:
                what = f"expected {recipe[split]} files in {root / folder / split} but found {count}"
                raise DataError(f"{what}; delete {root} and build it again")
    return True


@contextmanager
def _single_thread() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def build(
    root: str | Path,
    *,
    train: int = 360,
    val: int = 120,
    test: int = 120,
    size: int = 160,
    noise: float = 0.10,
    kinds: Sequence[str] = FAULTS,
    duplicates: float = 0.05,
    empty: float = 0.05,
    seed: int = 0,
) -> Path:
    """Build the set at `root`, or return at once if it already stands there; the same arguments give the same bytes.

    Written beside `root` under another name and renamed when whole, so `root` never holds half a set.
    Pictures depend on seed, size, duplicates, empty and the split's count only: noise and kinds change labels alone.

    Args:
        root: the folder to make; its parents are made too.
        train: train images, all kinds together.
        val: clean images to choose by.
        test: clean images to report on.
        size: side of the square pictures in pixels, at least 64.
        noise: share of train images with wrong labels, 0 to 1.
        kinds: which faults to plant, in equal parts; some of `FAULTS`.
        duplicates: share of train images that are near-duplicates of other, clean ones.
        empty: share of train images without a digit, rightly without labels.
        seed: start of the random streams, at least 0.

    Returns:
        The absolute root.

    Raises:
        ConfigError: an argument is out of range, or too few scenes can carry a fault.
        DataError: `root` is taken by something else, cannot be written, or a library is missing.
    """
    root = Path(root).resolve()
    shares = {"noise": noise, "kinds": kinds, "duplicates": duplicates, "empty": empty}
    recipe = _checked_recipe(train=train, val=val, test=test, size=size, **shares, seed=seed)
    if _is_whole(root, recipe):
        return root
    with _single_thread():
        drawn = _draw_all(recipe)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as beside:
            half = Path(beside, "set")
            half.mkdir()
            _write(half, drawn, recipe)
            _move(half, root, recipe)
    except OSError as err:
        raise DataError(f"cannot write the digits set to {root}: {err}; check rights and free space") from err
    return root


def _move(whole: Path, root: Path, recipe: dict[str, Any]) -> None:
    """Put the finished set in its place, unless another process was quicker."""
    try:
        if root.is_dir():
            root.rmdir()  # an empty one only; some systems don't rename onto a folder
        whole.rename(root)
    except OSError:
        if not _is_whole(root, recipe):
            raise


def load_truth(root: str | Path) -> dict[str, str]:
    """Read what was planted.

    Returns:
        Absolute image path with forward slashes → kind (one of `KINDS`); {} where there is no truth.csv.
    """
    return {path: row["kind"] for path, row in _truth(root)}


def load_groups(root: str | Path) -> dict[str, str]:
    """Read which images are near-duplicates of each other.

    Returns:
        Absolute image path with forward slashes → name of its group, of those that are in one; {} where there is no
        truth.csv, or one that says nothing of groups.
    """
    return {path: row["group"] for path, row in _truth(root) if row.get("group")}


def _truth(root: str | Path) -> list[tuple[str, dict[str, str]]]:
    """The rows of truth.csv by absolute path; none where there is no such file."""
    root = Path(root).resolve()
    file = root / "truth.csv"
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        rows = csv.DictReader(lines)
        if not {"path", "kind"} <= set(rows.fieldnames or ()):
            raise DataError(f"expected the columns path and kind in {file} but got {rows.fieldnames}; build it again")
        return [((root / row["path"]).as_posix(), row) for row in rows]


def digest(root: str | Path) -> str:
    """SHA-256 (hex) over the sorted relative paths and bytes of all files below root, label caches left out."""
    root, total = Path(root), hashlib.sha256()
    files = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file() and p.suffix != ".cache"}
    for name in sorted(files):
        data = files[name].read_bytes()
        total.update(f"{name}\0{len(data)}\0".encode() + data)
    return total.hexdigest()
