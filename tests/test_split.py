"""The split of Ultralytics' loss over a batch's images: the stock loss at weights of 1, linear in the weights."""

import copy
from types import SimpleNamespace

import pytest
import torch
from ultralytics.nn.tasks import (
    ClassificationModel,
    DepthModel,
    DetectionModel,
    RTDETRDetectionModel,
    SemanticSegmentationModel,
)
from ultralytics.utils import DEFAULT_CFG

from yolo_adapruner.engine.losses import LossTap, per_image_losses
from yolo_adapruner.errors import ConfigError

FAMILIES = ("yolov3-tiny.yaml", "yolov8n.yaml", "yolo11n.yaml", "yolo26n.yaml")
CLASSES = 4


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    """A detector at random weights, in training mode, with the hyperparameters a trainer would set."""
    torch.manual_seed(3)
    built = DetectionModel(request.param, nc=CLASSES, verbose=False).train()
    built.args = copy.copy(DEFAULT_CFG)
    # Fresh heads are so sure of the background that the box terms nearly vanish; let all terms count.
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if ".cv3." in name and name.endswith(".2.bias"):
                parameter.zero_()
    return built


@pytest.fixture(scope="module")
def batch():
    """Four images: two objects, one object, none, three objects."""
    random = torch.Generator().manual_seed(7)
    owner = torch.tensor([0.0, 0, 1, 3, 3, 3])
    boxes = torch.rand(len(owner), 4, generator=random) * 0.3 + torch.tensor([0.3, 0.3, 0.2, 0.2])
    return {
        "img": torch.rand(4, 3, 64, 64, generator=random),
        "batch_idx": owner,
        "cls": torch.randint(CLASSES, (len(owner), 1), generator=random).float(),
        "bboxes": boxes,
    }


def run(model, batch, weights=None, *, tapped=True):
    """One forward and backward pass: the loss (3,), every parameter's gradient, and the tap."""
    criterion = model.init_criterion()
    tap = LossTap(criterion) if tapped else None
    if tap is not None:
        tap.weights = weights
    state = copy.deepcopy(model.state_dict())  # the batch norms' running figures move with each forward
    loss, _ = criterion(model.predict(batch["img"]), batch)
    loss.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    model.load_state_dict(state)
    return loss.detach(), gradients, tap


def split(model, batch, weights):
    """The loss at some weights and its derivative by them, (B,)."""
    criterion = model.init_criterion()
    tap = LossTap(criterion)
    tap.weights = weights.clone().requires_grad_()
    state = copy.deepcopy(model.state_dict())
    loss, _ = criterion(model.predict(batch["img"]), batch)
    shares = per_image_losses(loss, tap.weights)
    model.load_state_dict(state)
    return loss.detach().sum(), shares


@pytest.mark.parametrize("weights", [None, torch.ones(4)], ids=["no weights", "weights of 1"])
def test_loss_and_gradients_are_bitwise_the_stock_ones(model, batch, weights):
    loss, gradients, _ = run(model, batch, weights)
    stock, expected, _ = run(model, batch, tapped=False)
    assert loss.shape == (3,)
    assert (stock > 0).all()
    assert torch.equal(loss, stock)
    assert gradients.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(gradients[name], expected[name])] == []
    assert sum(bool(g.abs().sum() > 0) for g in gradients.values()) > len(gradients) / 2


def test_the_images_shares_sum_to_the_total(model, batch):
    total, shares = split(model, batch, torch.ones(4))
    assert shares.shape == (4,)
    assert (shares > 0).all()
    assert float(shares.double().sum()) == pytest.approx(float(total), rel=1e-6)


def test_a_batch_without_boxes_is_split_as_well(model, batch):
    empty = {**batch, "batch_idx": torch.zeros(0), "cls": torch.zeros(0, 1), "bboxes": torch.zeros(0, 4)}
    stock, _, _ = run(model, empty, tapped=False)
    loss, _, _ = run(model, empty, torch.ones(4))
    assert torch.equal(loss, stock)
    total, shares = split(model, empty, torch.ones(4))
    assert (shares > 0).all()
    assert float(shares.double().sum()) == pytest.approx(float(total), rel=1e-6)


def test_an_image_of_weight_0_leaves_with_its_share_and_no_other_share_moves(model, batch):
    total, shares = split(model, batch, torch.ones(4))
    for image in range(4):
        weights = torch.ones(4)
        weights[image] = 0
        left, of_the_rest = split(model, batch, weights)
        assert float(left) == pytest.approx(float(total - shares[image]), rel=1e-5)
        torch.testing.assert_close(of_the_rest, shares, rtol=1e-5, atol=0)


def test_the_total_is_the_weighted_sum_of_the_shares(model, batch):
    _, shares = split(model, batch, torch.ones(4))
    weights = torch.tensor([0.3, 2.0, 0.7, 0.05])
    total, _ = split(model, batch, weights)
    assert float(total) == pytest.approx(float((weights * shares).sum()), rel=1e-5)


def test_gradients_are_the_weighted_sum_of_the_images_own(model, batch):
    weights = torch.tensor([0.3, 2.0, 0.7, 0.05])
    _, gradients, _ = run(model, batch, weights)
    own = [run(model, batch, torch.eye(4)[image])[1] for image in range(4)]
    expected = {n: sum(w * own[i][n] for i, w in enumerate(weights)) for n in gradients}
    scale = torch.cat([g.flatten() for g in expected.values()]).norm()
    off = torch.cat([(gradients[n] - expected[n]).flatten() for n in expected]).norm()
    assert float(off / scale) < 1e-5


def test_the_tap_keeps_the_assignment_only_while_it_watches(model, batch):
    criterion = model.init_criterion()
    tap = LossTap(criterion)
    with torch.no_grad():
        criterion(model.predict(batch["img"]), batch)
        assert tap.assignment is None
        tap.watching = True
        tap.weights = torch.ones(4)
        criterion(model.predict(batch["img"]), batch)
    seen = tap.assignment
    anchors = seen.foreground.shape[1]
    assert seen.scores.shape == (4, anchors, CLASSES)
    assert seen.boxes.shape == (4, anchors, 4)
    assert seen.gt_valid[..., 0].sum(1).tolist() == [2, 1, 0, 3]
    assert not seen.foreground[2].any()
    assert seen.foreground[[0, 1, 3]].any(1).all()
    tap.clear()
    assert tap.weights is None
    assert tap.assignment is None


def test_a_copied_model_keeps_a_working_criterion(model, batch):
    """NaN recovery deep-copies the model with its criterion; the copy's stand-ins must still work and answer alike."""
    model.criterion = model.init_criterion()
    LossTap(model.criterion)
    try:
        twin = copy.deepcopy(model)
        with torch.no_grad():
            first, _ = model(batch)
            second, _ = twin(batch)
        assert torch.equal(first, second)
    finally:
        model.criterion = None


@pytest.mark.parametrize(
    ("kind", "architecture", "words"),
    [
        (SemanticSegmentationModel, "yolo26n-sem.yaml", "SemanticSegmentationLoss"),
        (DepthModel, "yolo26n-depth.yaml", "DepthLoss26"),
        (ClassificationModel, "yolo11n-cls.yaml", "v8ClassificationLoss"),
        (RTDETRDetectionModel, "yolov8-rtdetr.yaml", "RTDETRDetectionLoss"),
    ],
)
def test_other_criteria_are_refused_in_one_line(kind, architecture, words):
    other = kind(architecture, verbose=False)
    other.args, other.nc = copy.copy(DEFAULT_CFG), 3
    with pytest.raises(ConfigError, match=rf"Expected .* one of Ultralytics' YOLO losses .* but got {words}") as caught:
        LossTap(other.init_criterion())
    assert "\n" not in str(caught.value)


def test_a_subclass_is_refused_for_the_terms_it_may_add(model):
    """A term that no stand-in weighs would leave its image's weight out of it, and nobody would see."""
    criterion = model.init_criterion()
    other = type("AnotherLoss", (type(getattr(criterion, "one2many", criterion)),), {})(model)
    with pytest.raises(ConfigError, match="but got AnotherLoss"):
        LossTap(other)


def test_an_end_to_end_criterion_of_another_loss_is_refused():
    with pytest.raises(ConfigError, match="but got SimpleNamespace"):
        LossTap(SimpleNamespace(one2many=SimpleNamespace(), one2one=SimpleNamespace()))
