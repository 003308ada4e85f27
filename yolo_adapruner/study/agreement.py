"""Does an image's gradient point where the validation images' does: a judge of usefulness, tried on planted faults.

    python -m yolo_adapruner.study.agreement --data SET/data.yaml --truth SET --weights best.pt --imgsz 160

For a finished detector the gradient of each training image's loss by the last layer (the 1 x 1 convolutions that give
box distances and class logits, which has the closed form error x feature, summed over places) is held against the mean
of the validation images'. Images pulling elsewhere should do harm: influence without the Hessian, as TracIn takes it
(Pruthi et al. 2020, arXiv 2002.08484, section 3). Trains nothing and steers nothing: it says whether such a signal
would find what the judge of a run has to find.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.engine.gradients import Gradients, gradients
from yolo_adapruner.engine.splits import load_data
from yolo_adapruner.study.command import one_line
from yolo_adapruner.study.planted import auroc
from yolo_adapruner.study.truth import CLEAN, LABEL_KINDS, Truth, load_truth

_TINY = 1e-12


def candidates(train: Gradients, validation: Gradients) -> dict[str, NDArray[np.float64]]:
    """Return ways to read the agreement, name -> (N,), higher where an image should rather go; N training images.

    Of both branches and of each: the cosine with the mean validation gradient, negative; the same with validation
    gradients of length 1, so that a few bad validation images cannot make the mean; the same with the training images'
    mean taken off both; the influence on the validation loss (Koh & Liang 2017, arXiv 1703.04730, eq. 2) with the
    training gradients' second moment for the Hessian, damped by its mean eigenvalue. The length of the image's own
    gradient stands beside them (GraNd, Paul et al. 2021, arXiv 2107.07075, at the end of training).
    """
    parts = {
        "all": (np.hstack([train.box, train.classes]), np.hstack([validation.box, validation.classes])),
        "box": (train.box, validation.box),
        "class": (train.classes, validation.classes),
    }
    found = {}
    for name, (mine, theirs) in parts.items():
        own, other = np.asarray(mine, np.float64), np.asarray(theirs, np.float64)
        length, common = np.linalg.norm(own, axis=1), own.mean(0)
        units = other / np.maximum(np.linalg.norm(other, axis=1, keepdims=True), _TINY)
        found[f"cosine, {name}"] = -_cosine(own, other.mean(0))
        found[f"cosine to units, {name}"] = -_cosine(own, units.mean(0))
        found[f"cosine without the common part, {name}"] = -_cosine(own - common, other.mean(0) - common)
        found[f"influence, {name}"] = -_influence(own, other.mean(0))
        found[f"length, {name}"] = length
    return found


def _cosine(rows: NDArray[np.float64], vector: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(vector)
    return np.asarray(rows @ vector / np.maximum(lengths, _TINY))


def _influence(rows: NDArray[np.float64], vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rows (M + d I)^-1 vector, M = rows' rows / N and d its trace / N; solved in N dimensions."""
    n = len(rows)
    gram = rows @ rows.T / n
    damping = max(float(np.trace(gram)) / n, _TINY)
    inner = np.linalg.solve(gram + damping * np.eye(n), rows @ vector)
    return np.asarray(rows @ (vector - rows.T @ inner / n) / damping)


def table(found: Mapping[str, NDArray[np.float64]], kinds: NDArray[np.str_]) -> str:
    """Return each candidate's AUROC for each planted kind against the clean images, in Markdown."""
    known = [kind for kind in LABEL_KINDS if (kinds == kind).any()]
    lines = [f"| reading | {' | '.join(known)} | all |", "|" + "---|" * (len(known) + 2)]
    for name, values in found.items():
        cells = []
        for kind in [*known, None]:
            wrong = np.isin(kinds, LABEL_KINDS) if kind is None else kinds == kind
            among = wrong | (kinds == CLEAN)
            cells.append(f"{auroc(values[among], wrong[among]):.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measure(weights: Sequence[str | Path], data: str, truth: Mapping[str, Truth], imgsz: int) -> str:
    """Return the table of AUROCs for detectors trained on a planted set; several are several moments of a training.

    Raises:
        ConfigError, DataError: see their lines.
    """
    content = load_data(data)
    passes = []
    for file in weights:
        train, validation = (gradients(file, content, split, imgsz) for split in ("train", "val"))
        passes.append((train.paths, candidates(train, validation)))
    paths = passes[0][0]
    kinds = np.array([truth.get(Path(path).as_posix(), Truth(CLEAN)).kind for path in paths])
    mean = {name: np.mean([found[name] for _, found in passes], axis=0) for name in passes[0][1]}
    return table(mean, kinds)


@one_line
def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--truth", required=True, help="folder with the truth.csv of the set")
    parser.add_argument("--weights", nargs="+", required=True, help="checkpoints of one training on it")
    parser.add_argument("--imgsz", type=int, default=160)
    args = parser.parse_args(argv)
    print(measure(args.weights, args.data, load_truth(args.truth), args.imgsz))


if __name__ == "__main__":
    sys.exit(main())
