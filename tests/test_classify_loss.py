"""Classification's weighted loss against Ultralytics' own, and what is read of an image against plain arithmetic."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn import functional
from ultralytics.nn.tasks import ClassificationModel
from ultralytics.utils.loss import v8ClassificationLoss

from tests import classes
from yolo_adapruner.engine.classloss import CHANNELS, Answer, ClassTap, class_channels, fit
from yolo_adapruner.errors import ConfigError
from yolo_adapruner.study.baselines import error_norm


class _Model:
    """All of a model that the tap asks for."""

    def __init__(self, criterion):
        self.criterion = criterion


def _batch(n=7, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator) * 3
    return logits, torch.randint(classes, (n,), generator=generator)


def _tapped():
    model = _Model(v8ClassificationLoss())
    return model, ClassTap(model)


def test_weights_of_one_leave_loss_and_gradients_bitwise_the_stock_ones():
    torch.manual_seed(0)
    stock = ClassificationModel(copy.deepcopy(classes.ARCHITECTURE), nc=3, verbose=False).train()
    stock.args = {}
    ours = copy.deepcopy(stock)
    ours.criterion = ours.init_criterion()
    tap = ClassTap(ours)
    tap.weights = torch.ones(6)
    batch = {"img": torch.rand(6, 3, 32, 32), "cls": torch.tensor([0, 1, 2, 0, 1, 2])}
    for model in (stock, ours):
        model.loss(batch)[0].backward()
    assert torch.equal(stock.loss(batch)[0], ours.loss(batch)[0])
    for a, b in zip(stock.parameters(), ours.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_the_loss_is_the_mean_of_each_images_own_times_its_weight():
    logits, labels = _batch()
    model, tap = _tapped()
    tap.weights = torch.tensor([0.0, 0.1, 0.5, 1.0, 1.0, 0.9, 0.3])
    loss, items = model.criterion(logits, {"cls": labels})
    each = functional.cross_entropy(logits, labels, reduction="none")
    assert loss.item() == pytest.approx((each * tap.weights).mean().item(), rel=1e-6)
    assert items["loss"].item() == loss.item()


def test_an_image_of_weight_zero_has_no_gradient():
    logits, labels = _batch()
    logits.requires_grad_()
    model, tap = _tapped()
    tap.weights = torch.tensor([0.0] + [1.0] * 6)
    model.criterion(logits, {"cls": labels})[0].backward()
    assert logits.grad[0].abs().max() < 1e-7
    assert logits.grad[1].abs().max() > 1e-3


def test_the_answer_is_kept_while_watched_and_forgotten_when_cleared():
    logits, labels = _batch()
    model, tap = _tapped()
    model.criterion(logits, {"cls": labels})
    assert tap.answer is None
    tap.watching = True
    model.criterion((None, logits), {"cls": labels})  # as the head answers in evaluation
    assert torch.equal(tap.answer.logits, logits)
    tap.clear()
    assert tap.answer is None


def test_another_loss_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"^Expected a model with Ultralytics' classification loss, but got object"):
        ClassTap(_Model(object()))


def test_channels_are_what_they_say():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
    values = class_channels(Answer(p.log(), torch.tensor([0, 0]))).numpy()
    np.testing.assert_allclose(values[:, 0], [-math.log(0.7), -math.log(0.1)], rtol=1e-5)
    np.testing.assert_allclose(values[:, 1], [-math.log(0.8), -math.log(0.2)], rtol=1e-5)
    np.testing.assert_allclose(values[:, 2], error_norm(p.numpy(), np.array([0, 0])), rtol=1e-5)
    assert values.shape[1] == len(CHANNELS)


def test_a_wrong_label_has_the_rival_that_a_hard_image_lacks():
    wrong, hard = [0.0, 8.0, 0.0, 0.0, 0.0], [-3.0, 0.1, 0.0, 0.0, 0.0]
    label, rival, _ = class_channels(Answer(torch.tensor([wrong, hard]), torch.tensor([0, 0]))).T
    assert label[0] > 3
    assert label[1] > 3
    assert rival[0] > 10 * rival[1]


@pytest.mark.parametrize("size", [1e4, 60000.0])
def test_certainty_is_finite(size):
    logits = torch.tensor([[size, 0.0], [0.0, size]])
    values = class_channels(Answer(logits.half(), torch.tensor([0, 0])))
    assert torch.isfinite(values).all()
    assert (values >= 0).all()


def test_only_an_image_whose_own_answer_is_not_finite_says_nothing():
    logits = torch.tensor([[torch.nan, 0.0], [1.0, 0.0]])
    values = class_channels(Answer(logits, torch.tensor([0, 0])))
    assert values[0].isnan().all()
    assert values[1].isfinite().all()


def test_fit_is_the_mean_probability_of_the_label():
    readings = np.array([[0.0, 0, 0], [math.log(2), 0, 0], [np.nan] * 3])
    assert fit(readings) == pytest.approx(0.75)
    assert fit(np.full((2, 3), np.nan)) == 0.0
