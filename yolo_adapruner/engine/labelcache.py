"""Labels read from the label files anew by every run: no label cache is written, and none is believed.

Ultralytics keeps one `.cache` file beside each label folder. It is a pickle, so one that came with a data set would run
code when it is read, and it is one for all image lists, so runs on the full and on a pruned set would overwrite each
other's. Reading images and labels anew takes well under a second of CPU for a thousand of them. Knows no mask and no
trainer.
"""

from __future__ import annotations

from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import get_split_fraction
from ultralytics.utils import LOGGER, NUM_THREADS, TQDM, colorstr

from yolo_adapruner.engine.trouble import one_line
from yolo_adapruner.errors import DataError


class FreshLabels(YOLODataset):
    """Ultralytics' data set without a label cache file; everything else is its own."""

    def get_img_files(self, img_path: str | list[str]) -> list[str]:
        """Return the image files as Ultralytics lists them.

        Raises:
            DataError: a path has a line break in it or bytes that are no UTF-8, so that no list of images can hold it.
        """
        files: list[str] = super().get_img_files(img_path)
        for file in files:
            if len(file.splitlines()) != 1 or "\0" in file or not _is_text(file):
                raise DataError(
                    f"Expected image paths that a list of images can hold, one line of UTF-8 each, but got {file!a}: "
                    "rename it."
                )
        return files

    def cache_labels(self, path: Path = Path("labels.cache")) -> dict[str, Any]:
        """Read and check all images and labels as Ultralytics does, and write nothing.

        Args:
            path: where Ultralytics would keep its cache; names the labels in messages.

        Returns:
            The content of Ultralytics' cache: `labels`, one dict a usable image; counts in `results`; `msgs`.

        Raises:
            ValueError: training images, none of which has a label file.
        """
        description = f"{self.prefix}Scanning {path.with_suffix('')}..."
        verify, arguments = self.verify_args()
        labels: list[dict[str, Any]] = []
        messages: list[str] = []
        missing = found = empty = corrupt = 0
        with ThreadPool(NUM_THREADS) as pool:
            bar = TQDM(pool.imap(verify, arguments), desc=description, total=len(self.im_files))
            for result in bar:
                label, *counts, message = self.result_to_label(result)
                missing, found, empty, corrupt = np.add((missing, found, empty, corrupt), counts).tolist()
                labels += [] if label is None else [label]
                messages += [message] if message else []
                bar.desc = f"{description} {self.scan_summary(found, missing, empty, corrupt)}"
        if messages:
            LOGGER.info("\n".join(messages))
        if found == 0 and labels:
            line = f"{self.prefix}No labels found in {path.with_suffix('')}."
            if self.augment:
                raise ValueError(line)
            LOGGER.warning(line)
        return {
            "labels": labels,
            "results": (found, missing, empty, corrupt, len(self.im_files)),
            "msgs": messages,
            "hash": "",
            "version": "",
        }

    def _load_or_scan_cache(self, cache_path: Path, cache_hash: str) -> tuple[dict[str, Any], bool]:
        return self.cache_labels(cache_path), False


def _is_text(path: str) -> bool:
    return path.isascii() or not any("\ud800" <= c <= "\udfff" for c in path)


def build(
    args: SimpleNamespace,
    img_path: str | list[str],
    batch: int | None,
    data: dict[str, Any],
    *,
    mode: str = "train",
    rect: bool = False,
    stride: int = 32,
    split: str | None = None,
    kind: type[FreshLabels] = FreshLabels,
) -> Any:
    """Return what Ultralytics' `build_yolo_dataset` returns for boxes, segments, keypoints and rotated boxes.

    Args:
        args: Ultralytics' settings.
        img_path: a folder, an image list, or a list of these.
        batch: images a batch.
        data: the data file's content with absolute split paths.
        mode: `train` augments.
        rect: rectangular batches, as `args.rect` also asks for.
        stride: the model's largest stride, pixels.
        split: whose `fraction` of `args` counts; None takes train's or that of `args.split`, by mode.
        kind: a data set class that adds to this one.

    Raises:
        DataError: see `FreshLabels`.
        FileNotFoundError, RuntimeError, ValueError: Ultralytics' own; also a RuntimeError for what it stumbles over.
    """
    split = split or ("train" if mode == "train" else args.split)
    settings = {
        "img_path": img_path,
        "imgsz": args.imgsz,
        "batch_size": batch,
        "augment": mode == "train",
        "hyp": args,
        "rect": args.rect or rect,
        "cache": args.cache or None,
        "single_cls": args.single_cls or False,
        "stride": stride,
        "pad": 0.0 if mode == "train" else 0.5,
        "prefix": colorstr(f"{mode}: "),
        "task": args.task,
        "classes": args.classes,
        "data": data,
        "fraction": 1.0 if data.get("complete") else get_split_fraction(args.fraction, split),
    }
    try:
        return kind(**settings)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RuntimeError(f"Dataset '{data.get('yaml_file', img_path)}' error: {one_line(error)}") from error
