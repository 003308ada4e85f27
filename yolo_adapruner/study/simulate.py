"""Studies of which the truth is known: detections of made-up runs, so that AP is really computed. Knows no images.

An image has a difficulty that all runs share, an arm has images that suit it less whatever the seed, a run has a skill
of its own. Two known effects can be given to the first arm: some of the labels it learned from were spoiled, so that it
misses a share of the objects; its weights were perturbed, so that its boxes are off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from yolo_adapruner.study.matches import Matches, draws, mean_ap

THRESHOLDS = np.array([0.5, 0.65, 0.8, 0.95])
"""IoU thresholds: four of COCO's ten, at less than half of the price."""


@dataclass(frozen=True)
class World:
    """What a study draws from.

    Attributes:
        images: test images.
        seeds: paired trainings an arm.
        spoiled: known effect: share of the objects that the first arm misses on top.
        perturbed: known effect: how far the first arm's boxes are off on top, in IoU.
        seed_spread: standard deviation of the skill from training to training, in logits of finding an object.
        image_spread: standard deviation, over images, of what the first arm finds harder or easier in each training.
    """

    images: int = 100
    seeds: int = 3
    spoiled: float = 0.0
    perturbed: float = 0.0
    seed_spread: float = 0.2
    image_spread: float = 0.0


@dataclass(frozen=True)
class Study:
    """A simulated study: mAP of both arms, a value a seed, and their differences on resampled images, (B, S)."""

    images: int
    a: list[float]
    b: list[float]
    replicates: NDArray[np.float64]


def study(world: World, number: int, *, resamples: int = 200) -> Study:
    """Return study `number` of a world; each number is another draw of images and trainings."""
    rng = np.random.default_rng([number, world.images, world.seeds])
    passes = _passes(world, rng)
    weights = np.vstack((np.ones(world.images), draws(world.images, resamples, seed=number)))
    figures = np.array([[mean_ap(found, weights) for found in arm] for arm in passes])  # (2, S, 1 + B)
    return Study(world.images, figures[0, :, 0].tolist(), figures[1, :, 0].tolist(), (figures[0] - figures[1])[:, 1:].T)


def truth(world: World, *, trainings: int = 2000, images: int = 3000) -> float:
    """Return a world's true difference: its mean over trainings, each judged on many images of its own."""
    many = replace(world, images=images, seeds=1)
    whole = np.ones((1, images))
    differences = []
    for number in range(trainings):
        (a,), (b,) = _passes(many, np.random.default_rng([number, 7]))
        differences.append(float(mean_ap(a, whole)[0] - mean_ap(b, whole)[0]))
    return float(np.mean(differences))


def _passes(world: World, rng: np.random.Generator) -> tuple[list[Matches], list[Matches]]:
    """Both arms' passes, a training each, over one draw of images."""
    n = world.images
    boxes = rng.poisson((1.5, 1.0), (n, 2)).astype(np.int32)
    boxes[0] = 1  # no test set is without one of its classes
    image = np.repeat(np.tile(np.arange(n), 2), boxes.T.ravel()).astype(np.int32)
    category = np.repeat((0, 1), boxes.sum(0)).astype(np.int32)
    hard = rng.normal(0, 1, n)[image] + rng.normal(0, 1, len(image))
    suits = rng.normal(0, world.image_spread, n) if world.image_spread else np.zeros(n)
    arms: tuple[list[Matches], list[Matches]] = ([], [])
    for _ in range(world.seeds):
        common = rng.normal(0, world.seed_spread / np.sqrt(2))
        for number, arm in enumerate(arms):
            skill = 1.0 + common + rng.normal(0, world.seed_spread / np.sqrt(2)) - hard
            first = number == 0
            arm.append(
                _pass(
                    boxes,
                    image,
                    category,
                    skill + (suits[image] if first else 0.0),
                    missed=world.spoiled if first else 0.0,
                    off=world.perturbed if first else 0.0,
                    rng=rng,
                )
            )
    return arms


def _pass(
    boxes: NDArray[np.int32],
    image: NDArray[np.int32],
    category: NDArray[np.int32],
    skill: NDArray[np.float64],
    *,
    missed: float,
    off: float,
    rng: np.random.Generator,
) -> Matches:
    """One training's detections: at most one an object, and false alarms on any image."""
    n, objects = len(boxes), len(image)
    sure = skill + rng.normal(0, 0.5, objects)
    found = (rng.random(objects) < _sigmoid(sure)) & (rng.random(objects) >= missed)
    overlap = 1 - np.abs(rng.normal(0.0, 0.18, objects)) - np.abs(off * rng.normal(0, 1, objects))
    alarms = rng.poisson(0.8, n)
    where = np.repeat(np.arange(n), alarms).astype(np.int32)
    count = len(where)
    return Matches(
        paths=tuple(map(str, range(n))),
        classes=(0, 1),
        boxes=boxes,
        image=np.concatenate((image[found], where)),
        category=np.concatenate((category[found], rng.integers(0, 2, count).astype(np.int32))),
        score=np.concatenate((_sigmoid(sure[found]), _sigmoid(rng.normal(-0.5, 1.0, count)))),
        hit=np.concatenate((overlap[found, None] >= THRESHOLDS, np.zeros((count, len(THRESHOLDS)), bool))),
    )


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-x))
