"""Plant defects in a YOLO detection set: a new set with known faults and copies, the original left as it was.

    python -m yolo_adapruner.study.defects --data X.yaml --kind shifted --share 0.1 --seed 0 --out DIR

Kinds of wrong label, each a share of the training images, pictures untouched (`faults.py` defines them): shifted,
swapped, missing, spurious, shuffled. Kinds of copy (`duplicates.py`): duplicate, near-duplicate. Several at once take
different images. Validation and test images stay clean. `--images 400` alone plants nothing: a seeded sample as a set.

Every kind leaves the number of training images n as it is. A copy therefore *takes the place* of a clean image, which
is not in the set: with a share d, d * n images are copies and (1 - d) * n different pictures are left. So a pruner
asked for d can drop exactly one of each pair, what it then trains on is as many good images as with any wrong label,
and all kinds compare at equal n and equal updates. Copies and their original share a group; the original is clean.

The defect an image gets depends on seed, kind and image alone, and of one kind the images at a lower share are among
those at a higher one. Knows files and labels; no model.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from yolo_adapruner.data.digits import digest
from yolo_adapruner.data.labels import Labels
from yolo_adapruner.data.source import label_file, names, read_split, split_files
from yolo_adapruner.engine.faults import FAULTS, Peers
from yolo_adapruner.errors import ConfigError, DataError
from yolo_adapruner.study import duplicates
from yolo_adapruner.study.command import one_line
from yolo_adapruner.study.truth import CLEAN, COLUMNS, COPY_KINDS, KINDS, LABEL_KINDS, TRUTH, Truth

_FORMAT = 1  # raise it whenever the same arguments would give other bytes
_RECIPE = "recipe.json"
_ORDER = len(KINDS)  # the random stream of the images' order, beside one for each kind
_SAMPLE = _ORDER + 1


@dataclass(frozen=True)
class _Image:
    source: Path
    labels: Labels
    truth: Truth
    copy: tuple[str, bytes] | None = None  # suffix and bytes, where the pixels are not the source file's


def plant(
    data: str | Path,
    out: str | Path,
    shares: Mapping[str, float],
    *,
    seed: int = 0,
    part: float = 0.5,
    group: int = 2,
    images: int | None = None,
    link: bool = True,
) -> Path:
    """Write a set with planted defects, or return at once if it already stands there; the same arguments, same bytes.

    Written beside `out` under another name and renamed when whole. It holds data.yaml, images, labels, truth.csv (a row
    a training image) and recipe.json with the digest over all of it; training images are numbered in the order of
    their sources' paths, and a group is named after the number of its original.

    Args:
        data: Ultralytics data file of the clean set.
        out: the folder to make.
        shares: kind (one of `KINDS`) -> share of the training images in (0, 1]; may be empty where `images` is given.
        seed: start of the random streams, >= 0.
        part: share of an image's boxes that go (missing) or come (spurious), in (0, 1].
        group: most members of a group of copies, original included, >= 2; more only where the originals run out.
        images: take a seeded sample of so many training images first; None takes all.
        link: link to the original images rather than copy them.

    Returns:
        The new set's data file.

    Raises:
        ConfigError: an argument is out of range, the set has too few images for it, or it has one class to swap.
        DataError: the set cannot be read, or `out` is taken by something else or cannot be written.
    """
    _check(shares, seed, part, group, images)
    out = Path(os.path.abspath(out))
    from yolo_adapruner.engine.splits import load_data

    content = load_data(str(data))
    classes = names(content)
    if "swapped" in shares and len(classes) == 1:
        raise ConfigError(f"Expected two classes or more to swap, but {data} has one: leave the kind swapped out.")
    files, labels, left_out = read_split(content["train"], len(classes))
    if left_out:
        print(f"{len(left_out)} images are left out, the first: {left_out[0]}", file=sys.stderr)
    chosen = _sample(len(files), images, seed)
    files, labels = [files[i] for i in chosen], [labels[i] for i in chosen]
    root = Path(content["path"])
    recipe = {
        "format": _FORMAT,
        "shares": {kind: float(shares[kind]) for kind in KINDS if kind in shares},
        "seed": seed,
        "part": part,
        "group": group,
        "images": len(files),
        "link": link,
        "source": _digest_of_source(root, files, labels),
    }
    if _is_whole(out, recipe):
        return out / "data.yaml"
    planted = _planted(root, files, labels, shares, Peers(labels, len(classes), part), seed, group)
    _write(out, planted, content, recipe)
    return out / "data.yaml"


def _check(shares: Mapping[str, float], seed: int, part: float, group: int, images: int | None) -> None:
    if not (shares or images) or not set(shares) <= set(KINDS):
        raise ConfigError(f"Expected kinds among {', '.join(KINDS)}, but got {', '.join(shares) or 'none'}.")
    if not all(0 < share <= 1 for share in shares.values()) or sum(shares.values()) > 1 + 1e-9:
        raise ConfigError(f"Expected shares in (0, 1] that sum to 1 at most, but got {dict(shares)}: lower them.")
    if seed < 0 or not 0 < part <= 1 or group < 2 or (images is not None and images < 1):
        raise ConfigError(
            "Expected seed >= 0, part in (0, 1], group >= 2 and images >= 1, but got "
            f"seed {seed}, part {part:g}, group {group} and images {images}."
        )


def _sample(n: int, wanted: int | None, seed: int) -> list[int]:
    if wanted is None:
        return list(range(n))
    if wanted > n:
        raise ConfigError(f"Expected at most the set's {n} training images, but got images {wanted}.")
    return sorted(int(i) for i in np.random.default_rng([seed, _SAMPLE]).permutation(n)[:wanted])


# ---------------------------------------------------------------------------------------------------- what is planted


def _planted(
    root: Path,
    files: Sequence[Path],
    labels: Sequence[Labels],
    shares: Mapping[str, float],
    peers: Peers,
    seed: int,
    group: int,
) -> list[_Image]:
    """Return the new set's training images in order."""
    result = [_Image(f, own, Truth(CLEAN, _name(root, f))) for f, own in zip(files, labels, strict=True)]
    free = [int(i) for i in np.random.default_rng([seed, _ORDER]).permutation(len(files))]
    counts = {kind: max(1, math.floor(share * len(files) + 0.5)) for kind, share in shares.items()}
    if not len(peers.every) and set(shares) & set(LABEL_KINDS):
        raise DataError("Expected labelled boxes to plant faults in, but no training image has one.")
    for kind in (k for k in FAULTS if k in counts):
        left = counts[kind]
        for i in list(free):
            if not left:
                break
            faulty = FAULTS[kind](labels[i], _stream(seed, kind, i), peers)
            if faulty is not None:
                changed = abs(len(faulty) - len(labels[i])) or len(faulty)
                result[i] = replace(
                    result[i], labels=faulty, truth=replace(result[i].truth, kind=kind, changed=changed)
                )
                free.remove(i)
                left -= 1
        if left:
            raise ConfigError(
                f"Expected {counts[kind]} images that can carry the kind {kind}, but {left} are not to be found among "
                f"{len(files)}: lower the share."
            )
    for kind in (k for k in COPY_KINDS if k in counts):
        _copy(result, free, kind, counts[kind], seed, group)
    return result


def _copy(result: list[_Image], free: list[int], kind: str, count: int, seed: int, group: int) -> None:
    """Put `count` copies in the place of free images; both they and their originals are free no longer."""
    places, originals = free[:count], free[count:][::-1][: math.ceil(count / (group - 1))]
    if len(places) < count or not originals:
        raise ConfigError(f"Expected {count} clean images and one more for the kind {kind}, but {len(free)} are left.")
    for number, place in enumerate(places):
        source = originals[number % len(originals)]
        truth = replace(result[source].truth, group=f"{kind}-{source:06d}")
        result[source] = replace(result[source], truth=truth)
        file, own = result[source].source, result[source].labels
        if kind == "duplicate":
            copy = duplicates.exact(file)
        else:
            suffix, data, own = duplicates.near(file, own, _stream(seed, kind, place))
            copy = suffix, data
        result[place] = _Image(file, own, replace(truth, kind=kind), copy)
    free[:] = [i for i in free if i not in {*places, *originals}]


def _stream(seed: int, kind: str, image: int) -> np.random.Generator:
    return np.random.default_rng([seed, KINDS.index(kind), image])


# ---------------------------------------------------------------------------------------------------- files


def _name(root: Path, file: Path) -> str:
    """An image's path in its set, so that a set may be moved; the whole path where it lies elsewhere."""
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.as_posix()


def _digest_of_source(root: Path, files: Sequence[Path], labels: Sequence[Labels]) -> str:
    total = hashlib.sha256()
    for file, own in zip(files, labels, strict=True):
        total.update(f"{_name(root, file)}\0{file.stat().st_size}\0{own.text()}\0".encode())
    return total.hexdigest()


def _is_whole(out: Path, recipe: Mapping[str, Any]) -> bool:
    """Tell whether the set asked for is there (True) or its place is free (False); raise where it is neither."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / _RECIPE).read_text(encoding="utf-8"))
        same = {key: found[key] for key in recipe} == recipe
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"Expected {out} to be free or to hold a planted set, but it is something else: use another."
        ) from None
    if not same:
        raise DataError(f"Expected {out} to be free, but it holds a set planted otherwise: use another folder.")
    return True


def _write(out: Path, planted: Sequence[_Image], content: Mapping[str, Any], recipe: Mapping[str, Any]) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name[:40]}.", dir=out.parent) as beside:
            half = Path(beside, "set")
            _write_train(half, planted, bool(recipe["link"]))
            splits = [split for split in ("val", "test") if content.get(split)]
            for split in splits:
                _write_clean(half, split, split_files(content[split]), bool(recipe["link"]))
            kept = {key: content[key] for key in ("channels",) if content.get(key, 3) != 3}
            lines = {**{s: f"images/{s}" for s in ("train", *splits)}, "names": names(content), **kept}
            head = f"# Planted by yolo_adapruner.study.defects; {_RECIPE} and {TRUTH} say what.\n"
            _text(half / "data.yaml", head + yaml.safe_dump(lines, sort_keys=False, allow_unicode=True))
            _text(half / _RECIPE, json.dumps({**recipe, "digest": digest(half)}, indent=1) + "\n")
            if out.is_dir():
                out.rmdir()  # an empty one only; some systems don't rename onto a folder
            half.rename(out)
    except OSError as error:
        raise DataError(f"Expected to write a set to {out}, but: {error.strerror or error}. Choose another.") from None


def _write_train(half: Path, planted: Sequence[_Image], link: bool) -> None:
    rows = [COLUMNS]
    for number, image in enumerate(planted):
        suffix = image.copy[0] if image.copy else image.source.suffix.lower()
        path = half / "images" / "train" / f"{number:06d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if image.copy:
            path.write_bytes(image.copy[1])
        else:
            _place(image.source, path, link)
        _text(half / "labels" / "train" / f"{number:06d}.txt", image.labels.text())
        t = image.truth
        rows.append((path.relative_to(half).as_posix(), t.kind, t.original, t.group, str(t.changed)))
    with (half / TRUTH).open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows(rows)


def _write_clean(half: Path, split: str, files: Sequence[Path], link: bool) -> None:
    for number, file in enumerate(files):
        path = half / "images" / split / f"{number:06d}{file.suffix.lower()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        _place(file, path, link)
        source = label_file(file)
        _text(half / "labels" / split / f"{number:06d}.txt", source.read_text("utf-8-sig") if source.is_file() else "")


def _place(source: Path, path: Path, link: bool) -> None:
    if link:
        try:
            path.symlink_to(os.path.realpath(source))
            return
        except OSError:  # a file system or an account without links
            pass
    shutil.copyfile(source, path)


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())  # bytes, since write_text would turn line ends on some systems


@one_line
def main(argv: Sequence[str] | None = None) -> None:
    """Write the set that the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="Ultralytics data file of the clean set")
    parser.add_argument("--kind", nargs="+", default=[], metavar="KIND", help=f"some of {', '.join(KINDS)}")
    parser.add_argument(
        "--share", type=float, nargs="+", default=[0.1], help="share of the images: one for each kind, or one for all"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", type=float, default=0.5, help="share of an image's boxes that go missing or come")
    parser.add_argument("--group", type=int, default=2, help="members of a group of copies, original included")
    parser.add_argument("--images", type=int, help="take a seeded sample of so many training images first")
    parser.add_argument("--copy", action="store_true", help="copy the images instead of linking to them")
    parser.add_argument("--out", required=True, help="folder to make")
    args = parser.parse_args(argv)
    print(_run(args))


def _run(args: argparse.Namespace) -> Path:
    share = args.share * len(args.kind) if len(args.share) == 1 else args.share
    if len(share) != len(args.kind) or len(set(args.kind)) != len(args.kind):
        raise ConfigError(f"Expected each kind once and one share or one for each, but got {args.kind} and {share}.")
    cv2.setNumThreads(1)
    options = {name: getattr(args, name) for name in ("seed", "part", "group", "images")}
    return plant(args.data, args.out, dict(zip(args.kind, share, strict=True)), **options, link=not args.copy)


if __name__ == "__main__":
    sys.exit(main())
