"""Sets outside vision, with planted wrong labels: two of numbers, one of text. Knows no training and no mask.

Nothing is fetched: scikit-learn brings the breast cancer set and draws the covertype-like one; the text is the
documentation inside installed packages. A seed decides the split and what is planted.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.errors import DataError

PACKAGES = ("numpy", "scipy", "sklearn", "torch", "matplotlib", "sympy")
"""Whose docstrings make the text set; all come with this package's dependencies."""

_EACH, _BUCKETS = 1000, 2048
_DISTRIBUTIONS = {"sklearn": "scikit-learn"}


_Drawn = tuple[NDArray[Any], NDArray[np.int64], tuple[float, float]]


@dataclass(frozen=True)
class Split:
    """Features (n, F) float32 and labels (n,) int64."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]


@dataclass(frozen=True)
class Labelled:
    """A set ready to train on.

    Attributes:
        train, val, test: val chooses, test is reported on; wrong labels are planted in train and val, never in test.
        wrong: which training labels were planted, (N,) bool.
        classes: number of classes.
    """

    train: Split
    val: Split
    test: Split
    wrong: NDArray[np.bool_]
    classes: int


def load(name: str, *, noise: float, seed: int) -> Labelled:
    """Return a set split and spoilt by `seed`.

    Args:
        name: a key of `SETS`.
        noise: share of the training and validation labels to move to another class, drawn evenly, [0, 1).
        seed: decides the split, the draw of the covertype-like set and which labels are wrong.

    Raises:
        DataError: there is no such set.
    """
    if name not in SETS:
        raise DataError(f"Expected a set out of {', '.join(SETS)}, but got {name}.")
    x, y, shares = SETS[name](seed)
    order = np.random.default_rng([seed, len(y)]).permutation(len(y))
    train, val, test = np.split(order, np.cumsum([round(share * len(y)) for share in shares]))
    mean, spread = x[train].mean(0), x[train].std(0)
    if name != "text":  # hashed words are of one scale already
        x = (x - mean) / np.where(spread > 0, spread, 1)
    parts = [Split(np.ascontiguousarray(x[rows], np.float32), y[rows].astype(np.int64)) for rows in (train, val, test)]
    classes = int(y.max()) + 1
    rng = np.random.default_rng([seed, 1])
    (noisy, wrong), (val_noisy, _) = (_spoil(part.y, noise, classes, rng) for part in parts[:2])
    return Labelled(replace(parts[0], y=noisy), replace(parts[1], y=val_noisy), parts[2], wrong, classes)


def _spoil(
    y: NDArray[np.int64], noise: float, classes: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    wrong = np.zeros(len(y), bool)
    wrong[rng.permutation(len(y))[: round(noise * len(y))]] = True
    return np.where(wrong, (y + rng.integers(1, classes, len(y))) % classes, y), wrong


def _cancer(_: int) -> _Drawn:
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    return found.data, found.target, (0.6, 0.2)


def _covertype_like(seed: int) -> _Drawn:
    """Covertype's 54 features and 7 classes, uneven as there, each class in several clusters."""
    from sklearn.datasets import make_classification

    x, y = make_classification(
        8000,
        n_features=54,
        n_informative=16,
        n_redundant=10,
        n_classes=7,
        n_clusters_per_class=4,
        weights=[0.30, 0.35, 0.10, 0.05, 0.05, 0.07, 0.08],
        class_sep=1.5,
        flip_y=0.0,
        random_state=seed,
    )
    return x, y, (0.375, 0.125)


def _text(_: int) -> _Drawn:
    found = _hashed()
    return found.x, found.y, (0.6, 0.15)


@cache
def _hashed() -> Split:
    """Passages as hashed words and pairs of words, (n, 2048), rows of length 1, and the package each comes from."""
    from sklearn.feature_extraction.text import HashingVectorizer

    texts = [passages(package) for package in PACKAGES]
    words = HashingVectorizer(n_features=_BUCKETS, ngram_range=(1, 2), alternate_sign=True)
    x = words.transform([text for own in texts for text in own]).toarray()
    return Split(x.astype(np.float32), np.repeat(np.arange(len(texts)), [len(own) for own in texts]))


def passages(package: str, count: int = _EACH) -> list[str]:
    """Return `count` passages of a package's docstrings, fewer where it has no more, always the same ones.

    A passage is the first 50 words of a docstring that has 25 or more; each is taken once. They are ordered by a hash,
    which mixes the package's files, and the packages' names are taken out of them.
    """
    words = (text.split() for source in _sources(package) for text in _docstrings(source))
    found = {" ".join(text[:50]) for text in words if len(text) >= 25}
    ordered = sorted(found, key=lambda text: hashlib.sha256(text.encode()).digest())
    names = re.compile(rf"\b({'|'.join((*PACKAGES, 'np', 'plt', 'scikit', 'learn', 'pytorch'))})\b", re.IGNORECASE)
    return [names.sub("", text) for text in ordered[:count]]


def _sources(package: str) -> list[Path]:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"Expected {package} to be installed for the text set, but it is not: install it.")
    root = Path(next(iter(spec.submodule_search_locations)))
    return sorted(path for path in root.rglob("*.py") if "test" not in path.as_posix().removeprefix(root.as_posix()))


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def versions() -> dict[str, str]:
    """Return the versions of the packages that the sets come from."""
    return {name: version(_DISTRIBUTIONS.get(name, name)) for name in PACKAGES}


SETS: dict[str, Callable[[int], _Drawn]] = {
    "cancer": _cancer,
    "covertype-like": _covertype_like,
    "text": _text,
}
"""Name → what draws features, labels and the shares of train and val."""
