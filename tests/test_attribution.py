"""Whose pixels and labels are in a batch, against Ultralytics' real pipeline on images that show their own number.

Image i is one colour all over and all of its labels are of class i: the colour read off a sample's own pixels says who
lies there, and a label's class whose it is. The colours are corners of a cube with padding's grey near its centre.
"""

import copy
import itertools
import pickle
import random
from types import SimpleNamespace

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from ultralytics.cfg import get_cfg
from ultralytics.data.augment import Mosaic
from ultralytics.data.build import build_yolo_dataset
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG
from ultralytics.utils.metrics import box_iou

from tests.helpers import ARCHITECTURE
from yolo_adapruner.engine import dataset as images
from yolo_adapruner.engine import evidence, places
from yolo_adapruner.engine.attribution import AttributedDataset
from yolo_adapruner.engine.channels import CHANNELS, detection_channels
from yolo_adapruner.engine.losses import LossTap, per_image_losses
from yolo_adapruner.engine.owners import accounts
from yolo_adapruner.engine.places import PADDING
from yolo_adapruner.engine.transforms import KEY
from yolo_adapruner.errors import ConfigError

COLOURS = np.array(list(itertools.product((20, 210), repeat=3)))
"""Red, green, blue by image."""
N = len(COLOURS)
GREY = 114
HALF_WAY = (COLOURS.max() - COLOURS.min()) / 2
"""From a colour to its nearest neighbours."""
SIZES = ((160, 160), (120, 160), (160, 90), (200, 200), (80, 80), (96, 160), (160, 150), (300, 200))
IMGSZ = 160
STRIDES = (8, 16, 32)
KEYPOINTS = (3, 3)

STILL = dict.fromkeys(("hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr", "mosaic"), 0.0) | {
    "augmentations": []
}
MOVE = {"degrees": 20.0, "translate": 0.2, "scale": 0.5, "shear": 5.0, "fliplr": 0.5, "flipud": 0.5}
ROTATE = [A.Rotate(limit=40, p=1.0)]
ALL = {
    **MOVE,
    "perspective": 0.001,
    "mosaic": 0.8,
    "mixup": 0.5,
    "cutmix": 0.5,
    "copy_paste": 0.5,
    "copy_paste_mode": "mixup",
}
RECIPES = {
    "nothing": {},
    "moved": MOVE,
    "perspective": {**MOVE, "perspective": 0.001},
    "mosaic": {"mosaic": 1.0, "scale": 0.5, "translate": 0.1},
    "mosaic of nine": {"mosaic": 1.0, "scale": 0.5, "nine": True},
    "mixup": {**MOVE, "mixup": 1.0},
    "mosaic and mixup": {**MOVE, "mosaic": 1.0, "mixup": 0.7},
    "cutmix": {**MOVE, "cutmix": 1.0},
    "mixup and cutmix": {**MOVE, "mosaic": 0.5, "mixup": 0.7, "cutmix": 1.0},
    "pasted copies": {**MOVE, "mosaic": 1.0, "copy_paste": 0.8},
    "pasted objects": {**MOVE, "mosaic": 0.5, "copy_paste": 0.8, "copy_paste_mode": "mixup"},
    "rect": {**MOVE, "rect": True},
    "cached in memory": {**MOVE, "mosaic": 1.0, "cache": "ram"},
    "cached on disk": {**MOVE, "mosaic": 1.0, "cache": "disk"},
    "albumentations rotate": {"mosaic": 1.0, "augmentations": ROTATE},
    "albumentations crop": {
        **MOVE,
        "mosaic": 0.5,
        "mixup": 0.5,
        "augmentations": [
            A.RandomResizedCrop((IMGSZ, IMGSZ), scale=(0.3, 0.8), p=1.0),
            A.HorizontalFlip(p=0.5),
            A.Affine(rotate=15, p=0.5),
        ],
    },
    "all": ALL,
    "all and albumentations": {**ALL, "copy_paste_mode": "flip", "augmentations": ROTATE},
}
COLOURFUL = {
    "the default recipe": {"hsv_h": 0.015, "hsv_s": 0.7, "hsv_v": 0.4, "augmentations": None, **ALL},
    "blurred": {**ALL, "augmentations": [A.Blur(p=0.5), A.CoarseDropout(p=0.5), A.Perspective(p=0.5)]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("ids"))


def write_set(root, task="detect"):
    """Eight images of one colour each, with two or three four-cornered labels of their own class; one has none."""
    rng = np.random.default_rng(5)
    images, labels = root / "images", root / "labels"
    images.mkdir()
    labels.mkdir()
    for i, (colour, (height, width)) in enumerate(zip(COLOURS, SIZES, strict=True)):
        cv2.imwrite(str(images / f"{i}.png"), np.full((height, width, 3), colour[::-1], np.uint8))
        lines = []
        for _ in range(0 if i == 3 else 2 + i % 2):
            x, y, w, h = *rng.uniform(0.25, 0.75, 2), *rng.uniform(0.1, 0.2, 2)
            corners = np.array([(x - w, y - h), (x + w, y - 0.7 * h), (x + 0.9 * w, y + h), (x - 0.8 * w, y + h)])
            values = corners.ravel()
            if task == "pose":
                points = np.column_stack((corners[: KEYPOINTS[0]], np.full(KEYPOINTS[0], 2)))
                values = np.array([x, y, 2 * w, 2 * h, *points.ravel()])
            lines.append(" ".join([str(i), *(f"{v:.5f}" for v in values)]))
        (labels / f"{i}.txt").write_text("\n".join(lines), encoding="utf-8")
    return images


def stock(folder, *, task="detect", nine=False, batch=4, **settings):
    """Ultralytics' dataset for a recipe."""
    cfg = get_cfg(DEFAULT_CFG, {**STILL, "task": task, "imgsz": IMGSZ, **settings})
    data = {"names": {i: str(i) for i in range(N)}, "nc": N, "channels": 3}
    if task == "pose":
        data |= {"kpt_shape": list(KEYPOINTS), "flip_idx": [1, 0, 2]}
    dataset = build_yolo_dataset(cfg, str(folder), batch, data, mode="train", stride=32)
    if nine:
        mosaic = dataset.transforms.transforms[0].transforms[0]
        assert isinstance(mosaic, Mosaic)
        mosaic.n = 9
    return dataset


def seed(number):
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def samples(dataset, passes, first_seed=0):
    """Every sample of the dataset several times over."""
    drawn = []
    for turn in range(passes):
        seed(first_seed + turn)
        drawn += [dataset[i] for i in range(len(dataset))]
    return drawn


def batches(dataset, passes, size=4):
    """Batches of the dataset's samples as a loader collates them."""
    drawn = samples(dataset, passes)
    return [dataset.collate_fn(drawn[i : i + size]) for i in range(0, len(drawn), size)]


def anchors(height, width):
    """Centres of all anchors, (A, 2) x and y."""
    grids = [
        np.stack(np.meshgrid(np.arange(s / 2, width, s), np.arange(s / 2, height, s)), -1).reshape(-1, 2)
        for s in STRIDES
    ]
    return torch.from_numpy(np.concatenate(grids)).float()


def at(planes, image, centres):
    """What planes (L, H/s, W/s) and an image (3, H, W) have at the anchors' centres: (L, A) and (A, 3).

    A centre is the corner of four pixels. A plane of pixels is asked for the last of these; coarser ones are of corners
    """
    x, y = centres.T
    step = image.shape[2] // planes.shape[2]
    corners = (0,) if step == 1 else (0, 1)
    return planes[:, y // step, x // step], np.mean([image[:, y - j, x - i].T for i in corners for j in corners], 0)


def on_the_network(batch, multi_scale=0.0, stride=32):
    """The batch and its sources after Ultralytics' own preprocessing."""
    sources = batch.pop(KEY)
    trainer = SimpleNamespace(
        device=torch.device("cpu"), args=SimpleNamespace(multi_scale=multi_scale, imgsz=IMGSZ), stride=stride
    )
    return DetectionTrainer.preprocess_batch(trainer, batch), sources


def numbers_of(dataset):
    """The image number behind each row of the dataset: rect reorders the rows."""
    return np.array([int(file.rpartition("/")[2][0]) for file in dataset.im_files])


# ---- places and labels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "step"), [*((name, 4) for name in RECIPES), ("mosaic and mixup", 1), ("pasted copies", 1), ("all", 1)]
)
def test_an_anchor_belongs_to_whose_colour_lies_there(folder, name, step):
    """At least 99.5 % of anchors; where the planes say padding, grey must lie there, so that is checked as well."""
    dataset = AttributedDataset.adopt(stock(folder, **RECIPES[name]), step)
    colour = COLOURS[numbers_of(dataset)]
    right = total = mixed = 0
    for sample in samples(dataset, 12):
        traced, image = sample[KEY], sample["img"].numpy().astype(float)
        centres = anchors(*image.shape[1:]).long().numpy()
        planes, seen = at(traced.planes, image, centres)
        source = colour[traced.rows[(planes & (PADDING - 1)) - 1]]
        source = np.where((planes & PADDING > 0)[..., None], GREY, source)
        shares = (traced.blend, 1 - traced.blend) if len(planes) > 1 else (1,)
        expected = sum(share * layer for share, layer in zip(shares, source, strict=True))
        off = np.abs(seen - expected).max(1)
        if "albumentations" in name:  # which pads with black
            black = np.where((planes & PADDING > 0)[..., None], 0, source)
            off = np.minimum(off, np.abs(seen - np.einsum("l,lac->ac", shares, black)).max(1))
        right += (off <= HALF_WAY * min(shares)).sum()
        total += len(off)
        mixed += len(set(traced.rows.tolist())) > 1
    assert right / total >= 0.995
    assert (mixed > 0) == any(RECIPES[name].get(key) for key in ("mosaic", "mixup", "cutmix", "copy_paste"))


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "nothing"])
def test_a_label_belongs_to_the_image_whose_file_it_stands_in(folder, name):
    dataset = AttributedDataset.adopt(stock(folder, **RECIPES[name]))
    numbers = numbers_of(dataset)
    seen = set()
    for sample in samples(dataset, 4):
        owners = numbers[sample[KEY].labels]
        assert sample["cls"].shape == (len(owners), 1)
        assert sample["cls"].ravel().tolist() == owners.tolist()
        assert set(sample[KEY].labels.tolist()) <= set(sample[KEY].rows.tolist())
        seen |= set(owners.tolist())
    assert len(seen) == N - 1  # image 3 has none


@pytest.mark.parametrize("task", ["segment", "pose", "obb"])
@pytest.mark.parametrize("name", ["all", "pasted copies", "all and albumentations"])
def test_labels_of_other_tasks_belong_to_their_images_too(tmp_path, task, name):
    dataset = AttributedDataset.adopt(stock(write_set(tmp_path, task), task=task, **RECIPES[name]))
    owners = [(sample["cls"].ravel().tolist(), sample[KEY].labels.tolist()) for sample in samples(dataset, 3)]
    assert all(classes == rows for classes, rows in owners)
    assert sum(len(rows) for _, rows in owners) > N


def test_the_area_of_a_source_is_the_pixels_that_show_it(folder):
    """Without padding, and in a blend by its share."""
    for recipe, step in itertools.product(("mosaic", "mixup"), (1, 4)):
        dataset = AttributedDataset.adopt(stock(folder, **RECIPES[recipe]), step)
        for sample in samples(dataset, 1):
            traced = sample[KEY]
            shares = (traced.blend, 1 - traced.blend)
            for position, area in enumerate(traced.areas, 1):
                parts = zip(shares, traced.planes, strict=False)
                assert area == pytest.approx(sum(share * (plane == position).sum() for share, plane in parts), rel=1e-5)
            assert 0 < traced.areas.sum() <= traced.planes[0].size


@pytest.mark.parametrize(
    ("plane", "expected"),
    [
        ([[1, 1], [2, 2]], [[1, 1], [2, 2]]),
        ([[0, 0], [0, 0]], [[1 | PADDING] * 2] * 2),  # nobody is near: the first
        ([[0, 0, 2, 2]] * 2, [[2 | PADDING] * 2 + [2] * 2] * 2),
        ([[1] * 3 + [0] * 4 + [2] * 3] * 4, [[1] * 3 + [1 | PADDING] * 2 + [2 | PADDING] * 2 + [2] * 3] * 4),
        ([[0, 3, 0, 0]], [[3 | PADDING, 3, 3 | PADDING, 3 | PADDING]]),
    ],
)
def test_padding_goes_to_the_nearest_source(plane, expected):
    assert places.filled(np.array(plane, np.uint8)).tolist() == expected


# ---- the stock pipeline ---------------------------------------------------------------------------------------------


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize("name", [*RECIPES, *COLOURFUL])
def test_images_labels_and_random_state_are_bitwise_the_stock_ones(folder, name):
    recipe = {**RECIPES, **COLOURFUL}[name]
    plain, ours = stock(folder, **recipe), AttributedDataset.adopt(stock(folder, **recipe))
    for turn in range(2):
        seed(turn)
        expected = [plain[i] for i in range(N)]
        after = states()
        seed(turn)
        got = [ours[i] for i in range(N)]
        assert states() == after
        for one, other in zip(got, expected, strict=True):
            assert one.keys() - {KEY} == other.keys()
            for key in other:
                assert_same(one[key], other[key])
        assert ours.collate_fn(got).keys() - {KEY} == plain.collate_fn(expected).keys()


@pytest.mark.parametrize("task", ["segment", "pose", "obb"])
@pytest.mark.parametrize("overlap", [True, False])
def test_masks_and_keypoints_are_bitwise_the_stock_ones(tmp_path, task, overlap):
    folder = write_set(tmp_path, task)
    recipe = {**ALL, "copy_paste_mode": "flip", "task": task, "overlap_mask": overlap}
    plain, ours = stock(folder, **recipe), AttributedDataset.adopt(stock(folder, **recipe))
    for one, other in zip(samples(ours, 2), samples(plain, 2), strict=True):
        assert one.keys() - {KEY} == other.keys()
        for key in other:
            assert_same(one[key], other[key])


def test_closed_mosaic_still_says_whose_pixels_they_are(folder):
    cfg = get_cfg(DEFAULT_CFG, {**STILL, **ALL})
    plain, ours = stock(folder, **ALL), AttributedDataset.adopt(stock(folder, **ALL))
    for dataset in (plain, ours):
        dataset.close_mosaic(hyp=copy.copy(cfg))
    for one, other in zip(samples(ours, 1), samples(plain, 1), strict=True):
        assert torch.equal(one["img"], other["img"])
        assert len(one[KEY].rows) == 1


def test_the_kept_part_is_a_stock_data_set(folder):
    cfg = get_cfg(DEFAULT_CFG, {**STILL, **ALL})
    part = images.subset(AttributedDataset.adopt(stock(folder, **ALL)), {*map(str, folder.iterdir())}, cfg)
    for one, other in zip(samples(part, 1), samples(stock(folder, **ALL), 1), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in ("img", "cls", "bboxes"))


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_worker_processes_send_the_same_batches(folder, start):
    dataset = AttributedDataset.adopt(stock(folder, **ALL))
    twin = pickle.loads(pickle.dumps(dataset))
    assert type(twin) is AttributedDataset
    loader = DataLoader(
        dataset, batch_size=4, num_workers=1, collate_fn=dataset.collate_fn, multiprocessing_context=start
    )
    for batch in loader:
        assert batch[KEY].planes.shape[0] == 4
        assert batch["cls"].ravel().tolist() == batch[KEY].labels.tolist()


def test_a_data_set_of_another_kind_is_refused_in_one_line(folder):
    dataset = stock(folder)
    dataset.__class__ = type("YOLOMultiModalDataset", (type(dataset),), {})
    with pytest.raises(ConfigError, match="Expected a plain image data set, but got a YOLOMultiModalDataset"):
        AttributedDataset.adopt(dataset)


def test_an_unknown_transform_is_refused_in_one_line(folder):
    dataset = stock(folder)
    dataset.transforms.insert(1, SimpleNamespace())
    with pytest.raises(ConfigError, match=r"Expected the transforms of .* but got SimpleNamespace"):
        AttributedDataset.adopt(dataset)


# ---- the loss -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    """The small detector at random weights that is unsure of the background, so that all terms of the loss count."""
    torch.manual_seed(3)
    built = DetectionModel({**copy.deepcopy(ARCHITECTURE), "nc": N}, verbose=False).train()
    built.args = copy.copy(DEFAULT_CFG)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if ".cv3." in name and name.endswith(".2.bias"):
                parameter.zero_()
    for module in built.modules():  # its running figures would move
        if isinstance(module, torch.nn.BatchNorm2d):
            module.track_running_stats = False
    return built


def forward(model, batch, sources, numbers, weights=None, *, tapped=True):
    """The loss (3,), and the tap and the accounts; `weights` by owner's number, (N,)."""
    criterion = model.init_criterion()
    on = accounts(sources, numbers, batch)
    tap = LossTap(criterion) if tapped else None
    if tap is not None:
        tap.watching, tap.owners = True, on.ownership
        tap.weights = weights[on.numbers].clone().requires_grad_() if weights is not None else None
    loss, _ = criterion(model.predict(batch["img"]), batch)
    return loss, tap, on


LOSS_RECIPES = {**RECIPES, **COLOURFUL, "scaled by batch": {**ALL, "multi_scale": 0.5}}
LOSS_RECIPES["mosaic scaled by batch"] = {**RECIPES["mosaic"], "multi_scale": 0.5}


def drawn(folder, name, passes=1):
    """Preprocessed batches of a recipe with their sources, and the number of each row."""
    recipe = dict(LOSS_RECIPES[name])
    multi_scale = recipe.pop("multi_scale", 0.0)
    dataset = AttributedDataset.adopt(stock(folder, **recipe), 1 if multi_scale else min(STRIDES) // 2)
    for batch in batches(dataset, passes):
        yield *on_the_network(batch, multi_scale), numbers_of(dataset)


@pytest.mark.parametrize("name", LOSS_RECIPES)
def test_the_owners_shares_sum_to_the_stock_loss(folder, model, name):
    for batch, sources, numbers in drawn(folder, name, 2):
        expected = forward(model, batch, sources, numbers, tapped=False)[0].detach().sum()
        loss, tap, _ = forward(model, batch, sources, numbers, torch.ones(N))
        shares = per_image_losses(loss, tap.weights)
        assert torch.equal(loss.sum(), expected)
        assert float(shares.double().sum()) == pytest.approx(float(expected), rel=1e-6)
        assert (shares >= 0).all()


@pytest.mark.parametrize("name", ["all", "mixup", "mosaic", "moved"])
def test_loss_and_gradients_are_bitwise_the_stock_ones_at_weights_of_1(folder, model, name):
    (batch, sources, numbers), *_ = drawn(folder, name)
    results = []
    for tapped in (False, True):
        loss = forward(model, batch, sources, numbers, torch.ones(N), tapped=tapped)[0]
        loss.sum().backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
        model.zero_grad(set_to_none=True)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_an_owner_of_weight_0_leaves_with_its_share_and_no_other_share_moves(folder, model):
    (batch, sources, numbers), *_ = drawn(folder, "all")
    loss, tap, on = forward(model, batch, sources, numbers, torch.ones(N))
    shares = per_image_losses(loss, tap.weights)
    for k, number in enumerate(on.numbers):
        weights = torch.ones(N)
        weights[number] = 0
        left, tap, _ = forward(model, batch, sources, numbers, weights)
        assert float(left.detach().sum()) == pytest.approx(float(loss.detach().sum() - shares[k]), rel=1e-5)
        torch.testing.assert_close(per_image_losses(left, tap.weights), shares, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in LOSS_RECIPES if name not in ("nothing", "moved", "perspective")])
def test_an_assigned_anchor_belongs_to_its_label_s_owner(folder, model, name):
    positives = 0
    for batch, sources, numbers in drawn(folder, name):
        _, tap, on = forward(model, batch, sources, numbers, torch.arange(N) + 1.0)
        seen = tap.assignment
        image, anchor = seen.foreground.nonzero(as_tuple=True)
        of_label = seen.gt_labels[image, seen.gt_index[image, anchor], 0]  # the class is the number of the image
        weights = tap.anchor_weights.detach().expand(-1, seen.foreground.shape[1])
        if on.ownership is not None:
            assert torch.equal(weights[image, anchor], of_label + 1)
        positives += len(image)
    assert positives > 100


@pytest.mark.parametrize("name", ["mosaic", "mixup", "mixup and cutmix", "mosaic scaled by batch"])
def test_another_anchor_weighs_what_lies_there_weighs(folder, model, name):
    """With an image's red for its weight, an anchor weighs the red of the network's own input, blends included."""
    right = total = 0
    for batch, sources, numbers in drawn(folder, name, 6):
        height, width = batch["img"].shape[2:]
        centres = anchors(height, width).long()
        step = 1 if "scaled" in name else 4
        coarse = torch.zeros(1, height // step, width // step)
        seen = np.stack([at(coarse, image, centres)[1] * 255 for image in batch["img"].numpy()])
        _, tap, _ = forward(model, batch, sources, numbers, torch.from_numpy(COLOURS[:, 0]).float())
        off = np.abs(tap.anchor_weights.detach().numpy() - seen[..., 0])
        known = ~tap.assignment.foreground.numpy() & unpadded(sources, height, width)
        right += (off <= (HALF_WAY / 2 if "mixup" in name else HALF_WAY))[known].sum()
        total += known.sum()
    assert total > 1000
    assert right / total >= 0.995


def unpadded(sources, height, width):
    """Anchors of no padding in any layer, (B, A)."""
    planes = sources.planes.numpy()
    x, y = (anchors(height, width).numpy() * planes.shape[3] / width).astype(int).T
    return (planes[:, :, y, x] & PADDING == 0).all(1)


def test_a_mixed_batch_without_labels_is_split_by_place(folder, model):
    (batch, sources, numbers), *_ = drawn(folder, "all")
    batch |= {"batch_idx": torch.zeros(0), "cls": torch.zeros(0, 1), "bboxes": torch.zeros(0, 4)}
    sources = sources._replace(labels=torch.zeros(0, dtype=torch.long))
    expected = forward(model, batch, sources, numbers, tapped=False)[0].detach()
    loss, tap, on = forward(model, batch, sources, numbers, torch.ones(N))
    assert torch.equal(loss, expected)
    shares = per_image_losses(loss, tap.weights)
    assert float(shares.double().sum()) == pytest.approx(float(loss.detach().double().sum()), rel=1e-6)
    said = detection_channels(tap.assignment).isfinite().numpy()
    assert said[on.areas > 1000].tolist() == [[False, False, False, True]] * int((on.areas > 1000).sum())


def test_both_heads_of_an_end_to_end_model_are_split(folder):
    torch.manual_seed(3)
    model = DetectionModel("yolo26n.yaml", nc=N, verbose=False).train()
    model.args = copy.copy(DEFAULT_CFG)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.track_running_stats = False
    (batch, sources, numbers), *_ = drawn(folder, "all")
    expected = forward(model, batch, sources, numbers, tapped=False)[0].detach()
    loss, tap, _ = forward(model, batch, sources, numbers, torch.ones(N))
    assert torch.equal(loss, expected)
    shares = per_image_losses(loss, tap.weights)
    assert float(shares.double().sum()) == pytest.approx(float(expected.double().sum()), rel=1e-6)


def test_areas_are_pixels_of_the_network_s_input(folder):
    for batch, sources, numbers in drawn(folder, "scaled by batch", 2):
        on = accounts(sources, numbers, batch)
        height, width = batch["img"].shape[2:]
        assert len(on.areas) == len(set(on.numbers.tolist()))
        share = sum(float(row.sum()) for row in sources.areas) / (IMGSZ * IMGSZ)
        assert on.areas.sum() == pytest.approx(share * height * width, rel=1e-4)


def test_an_image_alone_is_a_whole_view_whatever_its_zoom(folder):
    for batch, sources, numbers in drawn(folder, "moved", 1):
        assert accounts(sources, numbers, batch).views.tolist() == [1.0] * 4
        counted = np.array([True, False, True, True])
        assert accounts(sources, numbers, batch, counted=counted).views.tolist() == [1, 0, 1, 1]


def test_a_mixed_image_s_views_are_its_area_as_part_of_what_it_fills_alone(folder):
    for batch, sources, numbers in drawn(folder, "mosaic", 2):
        extents = np.full(N, 0.5)  # images of half the height of their width
        on = accounts(sources, numbers, batch, extents=extents)
        known = sources.rows.numpy() >= 0
        by_source = np.minimum(sources.areas.numpy() / (0.5 * max(sources.planes.shape[2:]) ** 2), 1)
        for owner, views in zip(on.numbers, on.views, strict=True):
            mine = known & (numbers[sources.rows.numpy()] == owner)
            assert views == pytest.approx(by_source[mine].sum(), rel=1e-5)
        nobody = accounts(sources, numbers, batch, counted=np.zeros(4, bool))
        assert not nobody.views.any()


def test_rows_of_one_image_are_one_owner(folder, model):
    """A list may name an image twice."""
    (batch, sources, numbers), *_ = drawn(folder, "mosaic")
    on = accounts(sources, numbers // 2, batch)
    assert on.numbers.tolist() == sorted(set((numbers // 2)[sources.rows[sources.rows >= 0]].tolist()))


def test_an_oriented_box_too_thin_for_the_loss_moves_no_other_label_s_owner(tmp_path):
    dataset = AttributedDataset.adopt(stock(write_set(tmp_path, "obb"), task="obb", mosaic=1.0))
    batch, sources = on_the_network(batches(dataset, 1)[0])
    counts = torch.bincount(batch["batch_idx"].long(), minlength=4)
    image, owner = batch["batch_idx"], batch["cls"][:, 0]
    thin = int(((image[1:] == image[:-1]) & (owner[1:] != owner[:-1])).nonzero()[0])  # before another owner's label
    batch["bboxes"][thin, 3] = 1 / IMGSZ
    owned = accounts(sources, numbers_of(dataset), batch)
    rows = owned.ownership.locate(anchors(IMGSZ, IMGSZ), int(counts.max())).labels
    kept = [i for i in range(len(batch["cls"])) if i != thin]
    for image in range(4):
        mine = [int(batch["cls"][i]) for i in kept if batch["batch_idx"][i] == image]
        assert [int(owned.numbers[k]) for k in rows[image, : len(mine)]] == mine


def test_who_has_a_part_in_an_unsound_image_is_not_judged_by_the_batch(folder, model):
    (batch, sources, numbers), *_ = drawn(folder, "mosaic and mixup")
    _, tap, on = forward(model, batch, sources, numbers, torch.ones(N))
    tap.assignment.scores[1, 5] = torch.nan
    concerned = set(tap.assignment.owned.anchors[:, 1].unique().tolist())
    assert 0 < len(concerned) < len(on.numbers)
    sound = evidence.sound(tap.assignment, torch.zeros(3))
    assert {k for k, fine in enumerate(sound.tolist()) if not fine} == concerned


# ---- the channels ---------------------------------------------------------------------------------------------------


def test_channels_of_an_unmixed_batch_are_the_same_by_owner_and_by_image(folder, model):
    """To rounding; a batch that is not mixed is read by image in fact."""
    dataset = AttributedDataset.adopt(stock(folder, **MOVE))
    for batch in batches(dataset, 1):
        batch, sources = on_the_network(batch)
        _, tap, on = forward(model, batch, sources, numbers_of(dataset))
        assert on.ownership is None
        by_image = detection_channels(tap.assignment)
        alone = sources._replace(rows=torch.nn.functional.pad(sources.rows, (0, 1), value=-1))
        alone = alone._replace(areas=torch.nn.functional.pad(sources.areas, (0, 1)))
        _, tap, on = forward(model, batch, alone, numbers_of(dataset))
        by_owner = detection_channels(tap.assignment)
        assert by_owner.shape == (4, len(CHANNELS))
        order = np.argsort(numbers_of(dataset)[sources.rows[:, 0]])
        torch.testing.assert_close(by_owner, by_image[order], rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", ["all", "mosaic", "mixup"])
def test_an_owner_s_channels_are_those_of_its_own_labels_and_places(folder, model, name):
    """Against loops over owners, objects and anchors."""
    for batch, sources, numbers in drawn(folder, name):
        _, tap, on = forward(model, batch, sources, numbers)
        got = detection_channels(tap.assignment)
        assert got.shape == (len(on.numbers), len(CHANNELS))
        expected = [slow_channels(tap.assignment, k) for k in range(len(on.numbers))]
        torch.testing.assert_close(
            got, torch.tensor(expected, dtype=torch.float32), rtol=1e-4, atol=1e-5, equal_nan=True
        )


def slow_channels(seen, k):
    objects, images, evidence = [], [], []
    shares = seen.owned.shares()
    for image in range(len(seen.scores)):
        for row in range(seen.gt_boxes.shape[1]):
            mine = seen.foreground[image] & (seen.gt_index[image] == row)
            if seen.gt_valid[image, row] and seen.owned.labels[image, row] == k and mine.any():
                label = int(seen.gt_labels[image, row])
                said = seen.scores[image, mine]
                overlap = box_iou(seen.boxes[image, mine], seen.gt_boxes[image, row][None])[:, 0]
                objects.append(
                    [
                        float((1 - overlap).mean()),
                        float(-(said[:, label].sum() / said.sum()).log()),
                        float(-said[:, label].log().mean()),
                    ]
                )
        here = (seen.owned.anchors[:, image] == k) & (shares[:, image] > 0)
        part = here.any(0)
        if part.any():
            best = seen.scores[image].amax(-1)
            labelled = seen.gt_boxes[image][seen.gt_valid[image, :, 0]]
            explained = (box_iou(seen.boxes[image], labelled) >= 0.5).any(1) | seen.foreground[image]
            wanted = max(1, round(10 * int(part.sum()) / len(best)))
            worst = best[part & ~explained].sort(descending=True).values[:wanted]
            images.append(float(-torch.log1p(-worst).sum() / wanted))
            evidence.append(float((shares[:, image] * here).sum()))
    means = np.mean(objects, 0).tolist() if objects else [np.nan] * 3
    return [*means, np.average(images, weights=evidence) if images else np.nan]
