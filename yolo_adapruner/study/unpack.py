"""A packed classification set as class folders, in its original order, and a mask over that order as a list of paths.

    python -m yolo_adapruner.study.unpack SOURCE FOLDER [--take N] [--take-test N] [--mask kept.npz --list kept.txt]

SOURCE is a folder with index.npz (SPLIT_offsets, SPLIT_labels) and SPLIT.jpgs, JPEG files back to back, which are
written as they are; or a .npz with SPLIT_images (N, H, W, 3) uint8 RGB and SPLIT_labels, which are written as PNG.
FOLDER/SPLIT/CLASS/000123.png is number 123 of its split, counted from 0: masks are published as numbers of that order.
Reads and writes files; knows no model.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.errors import ConfigError, DataError
from yolo_adapruner.study.command import one_line

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Packed:
    """One split of a packed set: labels (N,), and what gives the bytes of image i and the suffix of its file."""

    labels: NDArray[np.int64]
    content: Callable[[int], bytes]
    suffix: str


def read_packed(source: str | Path) -> dict[str, Packed]:
    """Return the splits of a packed set.

    Raises:
        DataError: it is none.
    """
    source = Path(source)
    try:
        with np.load(source / "index.npz" if source.is_dir() else source, allow_pickle=False) as held:
            arrays = dict(held)
        found = {split: _split(source, arrays, split) for split in SPLITS if f"{split}_labels" in arrays}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"Expected a packed set in {source}, but it cannot be read ({error}).") from None
    if "train" not in found:
        raise DataError(f"Expected train_labels in {source}, but there are {', '.join(arrays)}.")
    return found


def _split(source: Path, arrays: dict[str, NDArray[np.generic]], split: str) -> Packed:
    labels = np.asarray(arrays[f"{split}_labels"], np.int64)
    if source.is_dir():
        packed = np.memmap(source / f"{split}.jpgs", np.uint8, "r")
        bounds = np.asarray(arrays[f"{split}_offsets"], np.int64)
        return Packed(labels, lambda i: packed[bounds[i] : bounds[i + 1]].tobytes(), ".jpg")
    images = np.asarray(arrays[f"{split}_images"], np.uint8)
    return Packed(labels, lambda i: cv2.imencode(".png", images[i, :, :, ::-1])[1].tobytes(), ".png")


def balanced(labels: NDArray[np.integer], count: int, *, seed: int) -> NDArray[np.int64]:
    """Return the numbers of a random part of as many images of each class as of any other, (count,) ascending.

    Raises:
        ConfigError: a class has too few, or the count does not divide by the classes.
    """
    classes = np.unique(labels)
    each, rest = divmod(count, len(classes))
    fewest = min(int((labels == c).sum()) for c in classes)
    if rest or not 0 < each <= fewest:
        raise ConfigError(
            f"Expected a number of images that {len(classes)} classes of {fewest} or more share evenly, but got "
            f"{count}."
        )
    rng = np.random.default_rng([seed, len(labels)])
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:each] for c in classes]))


def unpack(
    source: str | Path,
    folder: str | Path,
    *,
    take: Mapping[str, int] | None = None,
    names: Sequence[str] = (),
    seed: int = 0,
) -> list[Path]:
    """Write a packed set as class folders and return the training images by number, absolute.

    Args:
        source: see the module's top.
        folder: the root to write; what is there already stays.
        take: of a split named here, write a class-balanced part alone, of so many images.
        names: of the classes; their numbers where none are given.
        seed: of the part.

    Raises:
        ConfigError, DataError: see their lines.
    """
    root = Path(folder).absolute()
    written: list[Path] = []
    for split, packed in read_packed(source).items():
        count = int(packed.labels.max()) + 1
        if names and len(names) < count:
            raise ConfigError(f"Expected a name for each of {count} classes, but got {len(names)}.")
        width = len(str(count - 1))
        called = list(names) or [f"{c:0{width}}" for c in range(count)]  # sorted as numbered
        for name in called:
            (root / split / name).mkdir(parents=True, exist_ok=True)
        rows = np.arange(len(packed.labels))
        if take and split in take:
            rows = balanced(packed.labels, take[split], seed=seed)
        for i in rows:
            file = root / split / called[packed.labels[i]] / f"{i:06}{packed.suffix}"
            file.write_bytes(packed.content(int(i)))
            if split == "train":
                written.append(file)
    return written


def listed(images: Sequence[Path], mask: str | Path) -> list[Path]:
    """Return the images that a mask over the original order keeps.

    Args:
        images: files named by their number, as `unpack` names them.
        mask: a .npz or .npy of bools, one a number, or a text file of the numbers that are kept, one a line.

    Raises:
        DataError: the mask cannot be read, or has no entry for an image.
    """
    try:
        kept = _read_mask(Path(mask))
        return [image for image in images if kept[int(image.stem)]]
    except (OSError, ValueError, IndexError, StopIteration, zipfile.BadZipFile) as error:
        raise DataError(f"Expected a mask over the images in {mask}, but: {error}.") from None


def _read_mask(file: Path) -> NDArray[np.bool_]:
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as held:
            return np.asarray(held["kept"] if "kept" in held else held[next(iter(held))], bool)
    if file.suffix == ".npy":
        return np.asarray(np.load(file, allow_pickle=False), bool)
    numbers = np.array([int(line) for line in file.read_text(encoding="utf-8").split()])
    kept = np.zeros(10**6, bool)
    kept[numbers] = True
    return kept


@one_line
def main(argv: Sequence[str] | None = None) -> None:
    """Write the folders, and the list where a mask is given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", help="packed folder, or .npz")
    parser.add_argument("folder", type=Path, help="root to write")
    parser.add_argument("--take", type=int, metavar="N", help="a class-balanced part of so many training images")
    parser.add_argument("--take-test", type=int, metavar="N", help="and of so many test images")
    parser.add_argument("--names", default="", metavar="A,B", help="class names, in the order of their numbers")
    parser.add_argument("--seed", type=int, default=0, help="of the part")
    parser.add_argument(
        "--mask", type=Path, help="which of the original order are kept: .npz, .npy, or numbers as text"
    )
    parser.add_argument("--list", type=Path, default=Path("kept.txt"), help="where to write what the mask keeps")
    args = parser.parse_args(argv)
    names = [name for name in args.names.split(",") if name]
    wanted = {"train": args.take, "test": args.take_test}
    take = {split: count for split, count in wanted.items() if count is not None}
    images = unpack(args.source, args.folder, take=take, names=names, seed=args.seed)
    print(f"{len(images)} training images in {args.folder}")
    if args.mask is not None:
        kept = listed(images, args.mask)
        args.list.write_text("".join(f"{image}\n" for image in kept), encoding="utf-8")
        print(f"{args.mask} keeps {len(kept)} of them ({len(kept) / len(images):.1%}): {args.list}")


if __name__ == "__main__":
    sys.exit(main())
