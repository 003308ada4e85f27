"""What classification puts in the place of `losses` and `channels`: the weighted loss, and what is read of an image.

Ultralytics' loss is the mean of each image's cross-entropy over the batch, so its split over images is plain. This
module does not know what the weights mean, nor whose the images are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from yolo_adapruner.errors import ConfigError

CHANNELS = ("label", "rival", "error")

_EPS = 1e-7


@dataclass(frozen=True)
class Answer:
    """What a classifier said to a batch of B images, C classes.

    Attributes:
        logits: (B, C), detached.
        labels: (B,) int64; others than the set's own can be put in their place and read on the same logits.
    """

    logits: Tensor
    labels: Tensor


class ClassTap:
    """Weights each image's share of the loss, and keeps the last answer for the judge; `LossTap` for classification.

    Args:
        model: the classification model; its criterion, and nothing else of it, is replaced.

    Attributes:
        weights: (B,) float tensor on the model's device, or None. With None the loss is the stock one.
        owners: always None: no entry of a batch mixes images.
        watching: keep the answer of each forward in `answer`.
        answer: the last batch's `Answer`, or None.

    Raises:
        ConfigError: the model's loss is not Ultralytics' classification loss.
    """

    def __init__(self, model: Any) -> None:
        self.weights: Tensor | None = None
        self.owners: None = None
        self.watching = False
        self.answer: Answer | None = None
        if type(model.criterion).__name__ != "v8ClassificationLoss":
            raise ConfigError(
                "Expected a model with Ultralytics' classification loss, but got "
                f"{type(model.criterion).__name__}: choose a model such as yolo11n-cls.yaml."
            )
        model.criterion = _WeightedLoss(self, model.criterion)

    def clear(self) -> None:
        """Forget the batch: stock behaviour until weights are set again."""
        self.weights = None
        self.answer = None


class _WeightedLoss:
    """Stands in for the criterion: the stock loss, and what the weights add to it."""

    def __init__(self, tap: ClassTap, inner: Any) -> None:
        self.tap, self.inner = tap, inner

    def __call__(self, preds: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        loss, items = self.inner(preds, batch)
        logits = preds[1] if isinstance(preds, list | tuple) else preds
        if self.tap.watching:
            self.tap.answer = Answer(logits.detach(), batch["cls"])
        if self.tap.weights is None:
            return loss, items
        # mean(w l) = mean(l) + mean((w - 1) l): with weights of 1 nothing is added, to the last bit.
        each = functional.cross_entropy(logits, batch["cls"], reduction="none")
        loss = loss + ((self.tap.weights.to(each.dtype) - 1) * each).mean()
        return loss, {**items, "loss": loss.detach()}


@torch.no_grad()
def class_channels(answer: Answer) -> Tensor:
    """Return the channels of each image, (B, 3) float32 >= 0; NaN where the answer is not finite.

    - label: -log p(label); nats. High wherever the classifier does not see what the label says.
    - rival: -log(1 - p) of the most probable other class; nats. High only where the classifier is sure of another
      class: what tells a wrong label from an image that is merely hard, of which nothing is sure.
    - error: the norm of the error vector, |p - onehot(label)|, [0, sqrt 2]: EL2N (Paul, Ganguli & Dziugaite 2021,
      arXiv 2107.07075, section 2).
    """
    logits = answer.logits.float()
    labels = answer.labels.long()[:, None]
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    others = p.scatter(1, labels, 0.0)
    error = others.scatter(1, labels, 1 - p.gather(1, labels))
    values = torch.stack(
        (
            -log_p.gather(1, labels)[:, 0],
            -torch.log1p(-others.amax(1).clamp_max(1 - _EPS)),
            error.norm(dim=1),
        ),
        1,
    )
    return values.masked_fill(~torch.isfinite(logits).all(1)[:, None], torch.nan)


def rehearsed_labels(labels: NDArray[np.integer], classes: int, seed: int) -> NDArray[np.int64]:
    """Return a wrong label for each image, (N,): any other class with the same probability, one draw for the whole run.

    What a classifier says of an image under a wrong label can be read off the same logits; nothing is trained on it.

    Args:
        labels: (N,) in [0, `classes`).
        classes: number of classes, >= 2.
        seed: decides the draw.
    """
    drawn = np.random.default_rng([seed, len(labels), 2]).integers(1, classes, len(labels))
    return np.asarray((labels + drawn) % classes, np.int64)


def fit(readings: NDArray[np.floating]) -> float:
    """Return how well a classifier knows its training set: the mean probability of the label, [0, 1].

    Args:
        readings: channels of any number of images, (N, 3); 0 where no image has any.
    """
    seen = readings[np.isfinite(readings[:, 0]), 0]
    return float(np.exp(-seen).mean()) if len(seen) else 0.0
