"""Planted defects: each kind does what it says, to the share asked for, and nothing else changes."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.data.base import BaseDataset
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset

from tests.helpers import build_set, label_of, picture, training_images, write_data
from yolo_adapruner.data.boxes import covered, iou
from yolo_adapruner.data.labels import EMPTY, Labels
from yolo_adapruner.data.source import label_file, read_labels, split_files
from yolo_adapruner.engine.faults import COVER, FAULTS, Peers
from yolo_adapruner.errors import ConfigError, DataError
from yolo_adapruner.study import duplicates
from yolo_adapruner.study.defects import main, plant
from yolo_adapruner.study.truth import CLEAN, COPY_KINDS, KINDS, LABEL_KINDS, load_truth


def some_labels(rng: np.random.Generator, count: int, classes: int = 3, largest: float = 0.3) -> Labels:
    size = rng.uniform(0.01, largest, (count, 2))
    low = rng.uniform(0, 1, (count, 2)) * (1 - size)
    return Labels(rng.integers(0, classes, count), np.column_stack([low, low + size]))


def peers_of(rng: np.random.Generator, part: float = 0.5) -> Peers:
    return Peers([some_labels(rng, n) for n in (0, 1, 2, 5, 9, 12)], 3, part)


def folder_digest(root: Path) -> str:
    total = hashlib.sha256()
    for file in sorted(p for p in root.rglob("*") if p.is_file()):
        total.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return total.hexdigest()


def read_set(data: Path) -> dict[Path, Labels]:
    return {image: read_labels(label_file(image), 3) for image in split_files(str(data.parent / "images" / "train"))}


def originals(data: Path, source: Path) -> dict[Path, Labels]:
    """What the labels of each planted image were before."""
    truth = load_truth(data.parent)
    return {Path(path): read_labels(label_file(source.parent / t.original), 3) for path, t in truth.items()}


# ---- the faults, on labels ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**20), count=st.integers(1, 20), kind=st.sampled_from(sorted(FAULTS)))
def test_a_fault_gives_labels_that_can_be_trained_on(seed: int, count: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    before = some_labels(rng, count)
    kept = before.boxes.copy(), before.classes.copy()
    after = FAULTS[kind](before, rng, peers_of(rng))
    assert after is not None
    assert ((after.boxes >= 0) & (after.boxes <= 1)).all()
    assert (after.boxes[:, 2:] > after.boxes[:, :2]).all()
    assert set(after.classes) <= {0, 1, 2}
    # The labels handed in are another image's source and stay.
    assert np.array_equal(before.boxes, kept[0])
    assert np.array_equal(before.classes, kept[1])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**20), count=st.integers(1, 20))
def test_shifted_boxes_keep_size_and_class_and_move_20_to_60_percent(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    before = some_labels(rng, count)
    after = FAULTS["shifted"](before, rng, peers_of(rng))
    assert after is not None
    size = before.boxes[:, 2:] - before.boxes[:, :2]
    assert np.allclose(after.boxes[:, 2:] - after.boxes[:, :2], size)
    moved = np.linalg.norm((after.boxes[:, :2] - before.boxes[:, :2]) / size, axis=1)
    assert ((moved > 0.2 - 1e-9) & (moved < 0.6 + 1e-9)).all()
    own = np.diag(iou(before.boxes, after.boxes))
    assert ((own > 0.19) & (own < 0.67)).all()
    assert np.array_equal(after.classes, before.classes)


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0.1, 0, 0.95, 1), (0, 0.3, 0.001, 0.301)])
def test_shifted_copes_with_boxes_that_have_nowhere_to_go(box: tuple[float, ...]) -> None:
    before = Labels(np.array([1]), np.array([box], float))
    for seed in range(20):
        after = FAULTS["shifted"](before, np.random.default_rng(seed), Peers([before], 3))
        assert after is not None
        assert ((after.boxes >= 0) & (after.boxes <= 1)).all()
        assert iou(before.boxes, after.boxes)[0, 0] < 0.9


def test_boxes_without_extent_cannot_be_shifted() -> None:
    before = Labels(np.array([1]), np.array([[0.5, 0.5, 0.5, 0.5]]))
    assert FAULTS["shifted"](before, np.random.default_rng(0), Peers([before], 3)) is None


def test_images_are_those_that_ultralytics_finds(tmp_path: Path) -> None:
    """Also those in folders behind links, and none in folders whose name begins with a dot."""
    build_set(tmp_path / "set", train=6, val=2)
    place, far = tmp_path / "set" / "images" / "train", tmp_path / "far"
    shutil.copytree(place, far)
    shutil.copytree(far, place / ".thumbs")
    (place / "batch1").symlink_to(far)
    (place / "._000.png").write_bytes(b"")
    listed = BaseDataset.get_img_files(SimpleNamespace(prefix="", fraction=1.0), str(place))
    assert [str(path) for path in split_files(str(place))] == sorted(listed)
    assert len(listed) == 12


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), count=st.integers(1, 20))
def test_swapped_changes_every_class_and_no_box(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    before = some_labels(rng, count)
    after = FAULTS["swapped"](before, rng, peers_of(rng))
    assert after is not None
    assert (after.classes != before.classes).all()
    assert np.array_equal(after.boxes, before.boxes)


@pytest.mark.parametrize(
    ("count", "part", "left"),
    [(1, 0.5, 0), (2, 0.5, 1), (3, 0.5, 1), (10, 0.5, 5), (10, 0.01, 9), (10, 0.25, 7), (4, 1.0, 0)],
)
def test_missing_takes_its_part_and_at_least_one(count: int, part: float, left: int) -> None:
    rng = np.random.default_rng(0)
    before = some_labels(rng, count)
    after = FAULTS["missing"](before, rng, peers_of(rng, part))
    assert after is not None
    assert len(after) == left
    assert {tuple(b) for b in after.boxes} <= {tuple(b) for b in before.boxes}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), count=st.integers(0, 20))
def test_spurious_boxes_lie_where_no_box_is(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    before = some_labels(rng, count, largest=0.15)
    peers = peers_of(rng)
    after = FAULTS["spurious"](before, rng, peers)
    assert after is not None
    true = {tuple(b) for b in before.boxes}
    added = after.take(np.array([tuple(b) not in true for b in after.boxes]))
    assert 1 <= len(added) <= max(1, round(count / 2 + 0.01))
    assert len(added) == len(after) - len(before)
    assert (covered(added.boxes, before.boxes) <= COVER).all()
    assert (iou(added.boxes, before.boxes) <= COVER).all()
    sizes = {tuple(np.round(b[2:] - b[:2], 9)) for b in peers.every.boxes}
    assert {tuple(np.round(b[2:] - b[:2], 9)) for b in added.boxes} <= sizes


def test_an_image_without_room_cannot_carry_a_spurious_box() -> None:
    full = Labels(np.array([0]), np.array([[0.0, 0, 1, 1]]))
    assert FAULTS["spurious"](full, np.random.default_rng(0), Peers([full], 3)) is None


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), count=st.integers(1, 20))
def test_shuffled_labels_are_another_images(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    before = some_labels(rng, count)
    peers = peers_of(rng)
    after = FAULTS["shuffled"](before, rng, peers)
    assert after is not None
    right = (iou(after.boxes, before.boxes) >= 0.5) & (after.classes[:, None] == before.classes)
    assert right.any(1).mean() <= 1 / 3


def test_shuffled_redraws_where_all_images_are_labelled_alike() -> None:
    middle = [Labels(np.array([0]), np.array([[0.4, 0.4, 0.6, 0.6]])) for _ in range(5)]
    after = FAULTS["shuffled"](middle[0], np.random.default_rng(0), Peers(middle, 1))
    assert after is not None
    assert iou(after.boxes, middle[0].boxes)[0, 0] < 0.5


@pytest.mark.parametrize("kind", ["shifted", "swapped", "missing", "shuffled"])
def test_an_image_without_boxes_carries_no_fault_of_its_boxes(kind: str) -> None:
    rng = np.random.default_rng(0)
    assert FAULTS[kind](EMPTY, rng, peers_of(rng)) is None


# ---- copies ------------------------------------------------------------------------------------------------------


def drawn(folder: Path, *, grey: bool = False) -> tuple[Path, Labels]:
    """A picture with one bright square on dark ground, and its label."""
    canvas = np.full((200, 240), 60, np.uint8)
    canvas += np.random.default_rng(0).integers(0, 10, canvas.shape, np.uint8)
    canvas[60:120, 100:180] = 230
    file = folder / "one.png"
    cv2.imwrite(str(file), canvas if grey else cv2.merge([canvas] * 3))
    return file, Labels(np.array([2]), np.array([[100 / 240, 60 / 200, 180 / 240, 120 / 200]]))


@pytest.mark.parametrize("grey", [False, True])
def test_a_near_duplicates_box_is_where_the_object_is(tmp_path: Path, grey: bool) -> None:
    file, labels = drawn(tmp_path, grey=grey)
    before = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
    moved = 0
    for seed in range(30):
        suffix, data, after = duplicates.near(file, labels, np.random.default_rng(seed))
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYCOLOR)
        assert (suffix, image.ndim) == (".jpg", 2 if grey else 3)
        flat = image if grey else image[..., 0]
        bright = flat > (int(flat.min()) + int(flat.max())) / 2
        rows, cols = np.flatnonzero(bright.mean(1) > 0.1), np.flatnonzero(bright.mean(0) > 0.1)
        height, width = flat.shape
        seen = np.array([[cols[0] / width, rows[0] / height, (cols[-1] + 1) / width, (rows[-1] + 1) / height]])
        assert iou(seen, after.boxes)[0, 0] > 0.93
        assert after.classes.tolist() == [2]
        # Near: seen from afar, the two pictures are one.
        small = [cv2.resize(np.asarray(p), (24, 20), interpolation=cv2.INTER_AREA).ravel() for p in (before, flat)]
        assert np.corrcoef(small)[0, 1] > 0.75
        moved += iou(labels.boxes, after.boxes)[0, 0] < 0.99
    assert 10 < moved < 28  # two of three also change the geometry


def test_near_duplicates_keep_tiny_boxes_and_images_without_any(tmp_path: Path) -> None:
    file, _ = drawn(tmp_path)
    tiny = Labels(np.array([0, 1]), np.array([[0.5, 0.5, 0.5 + 1 / 240, 0.5 + 1 / 200], [0.3, 0.3, 0.3, 0.4]]))
    for seed in range(10):
        _, _, after = duplicates.near(file, tiny, np.random.default_rng(seed))
        assert after.classes.tolist() == [0]  # the second has no area
        assert len(duplicates.near(file, EMPTY, np.random.default_rng(seed))[2]) == 0


@pytest.mark.parametrize(("suffix", "error"), [(".png", 0), (".jpg", 3)])
def test_an_exact_duplicate_has_the_same_pixels(tmp_path: Path, suffix: str, error: float) -> None:
    smooth = cv2.GaussianBlur(picture(64, [(0, 0.5, 0.5, 0.4)], np.random.default_rng(0)), (0, 0), 2)
    file = tmp_path / f"a{suffix}"
    cv2.imwrite(str(file), smooth)
    written, data = duplicates.exact(file)
    again = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert written == suffix
    assert np.abs(again.astype(int) - cv2.imread(str(file)).astype(int)).mean() <= error


# ---- the set -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_set(tmp_path_factory.mktemp("clean"), train=40, val=4, empty=4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_planted_at_its_share_and_the_rest_is_as_it_was(clean: Path, tmp_path: Path, kind: str) -> None:
    before = folder_digest(clean.parent)
    data = plant(clean, tmp_path / "set", {kind: 0.25}, seed=3)
    truth = {Path(path): t for path, t in load_truth(data.parent).items()}
    now, was = read_set(data), originals(data, clean)
    assert set(truth) == set(now)
    assert len(now) == 40
    assert sum(t.kind == kind for t in truth.values()) == 10
    for path, t in truth.items():
        same = len(now[path]) == len(was[path]) and np.allclose(now[path].boxes, was[path].boxes, atol=2e-6)
        same = same and np.array_equal(now[path].classes, was[path].classes)
        assert same == (t.kind in ("clean", "duplicate")) or t.kind == "near-duplicate"
        assert (t.changed > 0) == (t.kind in LABEL_KINDS)
        assert path.is_symlink() == (t.kind not in COPY_KINDS)
        if path.is_symlink():
            assert path.resolve() == (clean.parent / t.original).resolve()
    assert folder_digest(clean.parent) == before
    assert len(split_files(str(data.parent / "images" / "val"))) == 4


@pytest.mark.parametrize("kind", COPY_KINDS)
def test_copies_take_the_place_of_clean_images_and_share_a_group_with_their_original(
    clean: Path, tmp_path: Path, kind: str
) -> None:
    truth = load_truth(plant(clean, tmp_path / "set", {kind: 0.3}, seed=1).parent)
    groups: dict[str, list[str]] = {}
    for t in truth.values():
        groups.setdefault(t.group, []).append(t.kind)
    alone = groups.pop("")
    assert sorted(map(sorted, groups.values())) == [["clean", kind]] * 12
    assert len(alone) == 40 - 24
    assert len({t.original for t in truth.values()}) == 40 - 12
    assert {g for g in groups if truth[f"{tmp_path}/set/images/train/{g[-6:]}.png"].kind == "clean"} == set(groups)


def test_a_group_may_have_more_members(clean: Path, tmp_path: Path) -> None:
    truth = load_truth(plant(clean, tmp_path / "set", {"near-duplicate": 0.3}, group=5).parent)
    groups = [t.group for t in truth.values() if t.group]
    assert sorted(groups.count(g) for g in set(groups)) == [5, 5, 5]


def test_copies_beyond_half_of_the_set_share_originals(clean: Path, tmp_path: Path) -> None:
    truth = load_truth(plant(clean, tmp_path / "set", {"duplicate": 0.8}).parent)
    groups = [t.group for t in truth.values() if t.group]
    assert {groups.count(g) for g in set(groups)} == {5}


def test_several_kinds_at_once_take_different_images(clean: Path, tmp_path: Path) -> None:
    truth = load_truth(plant(clean, tmp_path / "set", dict.fromkeys(KINDS, 0.1)).parent)
    kinds = [t.kind for t in truth.values()]
    assert {kind: kinds.count(kind) for kind in KINDS} == dict.fromkeys(KINDS, 4)
    # An original of a copy is itself right.
    assert all(t.kind in ("clean", *COPY_KINDS) for t in truth.values() if t.group)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(clean: Path, tmp_path: Path, kind: str) -> None:
    sets = [plant(clean, tmp_path / str(i), {kind: 0.2}, seed=seed).parent for i, seed in enumerate((5, 5, 6))]
    digests = [json.loads((s / "recipe.json").read_text())["digest"] for s in sets]
    assert digests[0] == digests[1] != digests[2]


def test_a_lower_share_is_part_of_a_higher_one(clean: Path, tmp_path: Path) -> None:
    def planted(share: float) -> set[str]:
        truth = load_truth(plant(clean, tmp_path / f"{share}", {"missing": share}).parent)
        return {t.original for t in truth.values() if t.kind == "missing"}

    assert planted(0.05) < planted(0.1) < planted(0.4)


def test_a_finished_set_is_not_made_again_and_another_is_not_overwritten(clean: Path, tmp_path: Path) -> None:
    data = plant(clean, tmp_path / "set", {"missing": 0.1})
    stamp = data.stat().st_mtime_ns
    assert plant(clean, tmp_path / "set", {"missing": 0.1}).stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match="planted otherwise"):
        plant(clean, tmp_path / "set", {"missing": 0.2})


def test_a_sample_of_the_images_is_drawn_first(clean: Path, tmp_path: Path) -> None:
    data = plant(clean, tmp_path / "set", {"missing": 0.1}, images=20)
    assert len(load_truth(data.parent)) == 20


def test_images_can_be_copied_instead_of_linked(clean: Path, tmp_path: Path) -> None:
    data = plant(clean, tmp_path / "set", {"missing": 0.1}, link=False)
    assert not any(path.is_symlink() for path in data.parent.rglob("*"))


def test_grey_images_and_a_list_as_train_split(tmp_path: Path) -> None:
    data = build_set(tmp_path / "grey", train=10, val=2, empty=0)
    for image in training_images(data):
        cv2.imwrite(str(image), cv2.imread(str(image), cv2.IMREAD_GRAYSCALE))
    (tmp_path / "grey" / "list.txt").write_text(
        "\n".join(f"./images/train/{p.name}" for p in training_images(data)[:8]), encoding="utf-8"
    )
    listed = write_data(tmp_path / "grey" / "listed.yaml", tmp_path / "grey", train="list.txt")
    truth = load_truth(plant(listed, tmp_path / "set", {"near-duplicate": 0.25, "shifted": 0.25}).parent)
    assert sorted(t.kind for t in truth.values()) == ["clean"] * 4 + ["near-duplicate"] * 2 + ["shifted"] * 2


def test_truth_of_the_embedded_set_is_read_under_our_names(tmp_path: Path) -> None:
    (tmp_path / "truth.csv").write_text(
        "path,split,kind,group\nimages/train/a.jpg,train,boxes,\nimages/train/b.jpg,train,classes,\n"
        "images/train/c.jpg,train,duplicate,d1\nimages/val/d.jpg,val,clean,\n"
    )
    kinds = [t.kind for t in load_truth(tmp_path).values()]
    assert kinds == ["shifted", "swapped", "near-duplicate"]


def test_a_sample_alone_plants_nothing(clean: Path, tmp_path: Path) -> None:
    truth = load_truth(plant(clean, tmp_path / "set", {}, images=12).parent)
    assert len(truth) == 12
    assert {t.kind for t in truth.values()} == {CLEAN}


# ---- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ({}, "kinds among"),
        ({"blurred": 0.1}, "kinds among"),
        ({"missing": 0.0}, "shares in"),
        ({"missing": 1.5}, "shares in"),
        ({"missing": float("nan")}, "shares in"),
        ({"missing": 0.6, "shifted": 0.6}, "sum to 1"),
        ({"missing": 0.95}, "can carry the kind missing"),  # 4 of 40 have no box
        ({"duplicate": 1.0}, "clean images and one more"),
    ],
)
def test_shares_that_cannot_be_are_refused_in_one_line(
    clean: Path, tmp_path: Path, shares: dict[str, float], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        plant(clean, tmp_path / "set", shares)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "set").exists()


def test_one_class_cannot_be_swapped(tmp_path: Path) -> None:
    data = build_set(tmp_path / "one", train=6, val=2)
    for image in training_images(data):
        lines = label_of(image).read_text().splitlines()
        label_of(image).write_text("".join(f"0{line[1:]}\n" for line in lines))
    one = write_data(tmp_path / "one" / "one.yaml", tmp_path / "one", names={0: "thing"})
    with pytest.raises(ConfigError, match="two classes or more"):
        plant(one, tmp_path / "set", {"swapped": 0.5})
    assert len(load_truth(plant(one, tmp_path / "set", {"shuffled": 0.5}).parent)) == 6


@pytest.mark.parametrize(
    "line",
    ["0 0.5 0.5 0.2", "a b c d e", "3 0.5 0.5 0.2 0.2", "0 .5 .5 nan .2", "0.5 .5 .5 .1 .1", "0 1.5 .5 .1 .1"],
)
def test_images_that_cannot_be_trained_on_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    data = build_set(tmp_path / "bad", train=6, val=2, empty=0)
    label_of(training_images(data)[1]).write_text(line + "\n")
    training_images(data)[2].write_bytes(b"no image")
    assert len(load_truth(plant(data, tmp_path / "set", {"missing": 0.5}).parent)) == 4
    assert "2 images are left out" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("cut", [False, True])
def test_a_picture_that_is_cut_off_is_left_out_as_in_training(tmp_path: Path, suffix: str, cut: bool) -> None:
    data = build_set(tmp_path / "set", train=6, val=2, empty=0, suffix=suffix)
    image = training_images(data)[2]
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2] if cut else image.read_bytes() + b"behind")
    stock = YOLODataset(str(image.parent), data=check_det_dataset(str(data)), imgsz=64, augment=False)
    truth = load_truth(plant(data, tmp_path / "planted", {"missing": 0.5}).parent)
    assert len(truth) == len(stock.im_files) == (5 if cut else 6)


def test_polygons_become_boxes_and_equal_lines_count_once(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("1 0.1 0.1 0.5 0.1 0.5 0.3 0.1 0.3\n1 0.1 0.1 0.5 0.1 0.5 0.3 0.1 0.3\n")
    labels = read_labels(file, 2)
    assert labels.classes.tolist() == [1]
    assert np.allclose(labels.boxes, [[0.1, 0.1, 0.5, 0.3]])


def test_a_data_file_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("train: [\n")
    with pytest.raises(DataError, match=r"bad\.yaml: YAML syntax error in") as caught:
        plant(tmp_path / "bad.yaml", tmp_path / "set", {"missing": 0.1})
    assert "\n" not in str(caught.value)


def test_images_of_one_name_in_two_folders_stay_apart(tmp_path: Path) -> None:
    data = build_set(tmp_path / "a", train=6, val=2, empty=0)
    build_set(tmp_path / "b", train=6, val=2, empty=0, seed=1)
    both = write_data(
        data.parent / "both.yaml", tmp_path, train=["a/images/train", "b/images/train"], val="a/images/val"
    )
    truth = load_truth(plant(both, tmp_path / "set", {"duplicate": 0.5}).parent)
    groups = [t.group for t in truth.values()]
    assert len(truth) == 12
    assert {groups.count(g) for g in groups} == {2}
    assert all(len({t.original for t in truth.values() if t.group == g}) == 1 for g in groups)


@pytest.mark.parametrize("words", [["--kind", "missing", "--share", "0.1", "0.2"], ["--kind", "blurred"]])
def test_the_command_says_what_is_wrong_in_one_line(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(["--data", str(clean), "--out", str(tmp_path / "set"), *words]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("Expected")
    assert "\n" not in said


def test_the_command_writes_a_set(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(clean), "--kind", "shifted", "missing", "--share", "0.1", "--seed", "4"]
    assert main([*words, "--out", str(tmp_path / "set")]) == 0
    assert capsys.readouterr().out.strip().endswith("data.yaml")
    kinds = [t.kind for t in load_truth(tmp_path / "set").values()]
    assert (kinds.count("shifted"), kinds.count("missing")) == (4, 4)


@pytest.mark.parametrize("place", ["file", "full"])
def test_a_place_that_is_taken_is_left_alone(clean: Path, tmp_path: Path, place: str) -> None:
    out = tmp_path / "taken"
    if place == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="to be free"):
        plant(clean, out, {"missing": 0.1})
    assert (out if place == "file" else out / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "path,kind,original,group,changed\na,clean,b,,many\n"])
def test_a_truth_file_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    if text:
        (tmp_path / "truth.csv").write_text(text)
    with pytest.raises(DataError, match="truth of a planted set"):
        load_truth(tmp_path)
