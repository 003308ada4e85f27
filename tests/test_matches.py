"""Average precision from hits and misses alone: pycocotools' figures for any draw of the images."""

from dataclasses import replace

import numpy as np
import pytest

from tests.test_evaluate import NAMES, crowded, hand_made, image
from yolo_adapruner.data.boxes import ImageDetections
from yolo_adapruner.errors import DataError, RunError
from yolo_adapruner.study import matches
from yolo_adapruner.study.evaluate import coco_metrics, matched
from yolo_adapruner.study.matches import Matches, average_precision, draws, mean_ap, same_images

SETS = {"by hand": hand_made, "crowded, with ties": crowded, "40 images": lambda: crowded(40, 3)}


@pytest.mark.parametrize("name", SETS)
def test_with_all_weights_1_the_figures_are_those_of_pycocotools(name):
    images = SETS[name]()
    found = matched(images, NAMES)
    expected = coco_metrics(images, NAMES)
    ones = np.ones((1, len(images)))
    assert mean_ap(found, ones)[0] == pytest.approx(expected.map50_95, abs=1e-12)
    ap = average_precision(found, ones)[0]
    for k, label in NAMES.items():
        if label in expected.per_class:
            assert (ap[k].mean(), ap[k, 0]) == pytest.approx(expected.per_class[label][:2], abs=1e-12)
        else:
            assert np.isnan(ap[k]).all()


def repeated(images: list[ImageDetections], counts: np.ndarray) -> list[ImageDetections]:
    """The images as often as a draw says, copies side by side in the order of the paths."""
    return [
        replace(i, path=f"{i.path}#{copy}")
        for i, count in zip(sorted(images, key=lambda i: i.path), counts, strict=True)
        for copy in range(int(count))
    ]


def untied(images: list[ImageDetections]) -> list[ImageDetections]:
    rng = np.random.default_rng(0)
    return [replace(i, scores=rng.permutation(len(i.scores)) / 100 + rng.random(len(i.scores)) / 200) for i in images]


def test_a_draw_of_images_is_worth_what_pycocotools_says_of_the_copied_images():
    images = untied(crowded(15, 2))
    found = matched(images, NAMES)
    weights = draws(15, 12, seed=1)
    expected = [coco_metrics(repeated(images, counts), NAMES).map50_95 for counts in weights]
    assert len(set(expected)) == 12
    assert mean_ap(found, weights) == pytest.approx(expected, abs=1e-12)


def test_a_class_that_a_draw_lacks_is_left_out_of_the_mean():
    box = (0, 0, 0, 10, 10)
    images = [
        image("a.jpg", [box], [(0, 0.9, *box[1:])]),
        image("b.jpg", [(1, *box[1:])]),
    ]
    found = matched(images, NAMES)
    weights = np.array([[1, 1], [2, 0], [0, 2], [0, 0]])
    assert mean_ap(found, weights)[:3] == pytest.approx([0.5, 1.0, 0.0])
    assert np.isnan(mean_ap(found, weights)[3])


def test_images_without_detections_or_boxes_are_held_all_the_same():
    found = matched([image("a.jpg", [(0, 0, 0, 9, 9)]), image("b.jpg")], NAMES)
    assert found.paths == ("a.jpg", "b.jpg")
    assert found.boxes.tolist() == [[1, 0, 0], [0, 0, 0]]
    assert mean_ap(found, np.ones((1, 2)))[0] == 0.0
    with pytest.raises(DataError, match="no box in 1 images"):
        matched([image("b.jpg")], NAMES)


def test_draws_are_samples_of_n_and_depend_on_the_seed_alone():
    weights = draws(30, 50)
    assert weights.shape == (50, 30)
    assert set(weights.sum(1)) == {30.0}
    assert (weights == draws(30, 50)).all()
    assert (weights != draws(30, 50, seed=1)).any()


def test_a_file_holds_all_of_it(tmp_path):
    found = matched(crowded(9, 5), NAMES)
    found.save(tmp_path / "m.npz")
    back = Matches.load(tmp_path / "m.npz")
    assert (back.paths, back.classes) == (found.paths, found.classes)
    for name in ("boxes", "image", "category", "score", "hit"):
        assert (getattr(back, name) == getattr(found, name)).all()
    np.testing.assert_array_equal(average_precision(back, draws(9, 5)), average_precision(found, draws(9, 5)))


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04torn"], ids=["missing", "empty", "torn"])
def test_a_torn_file_is_named_in_one_line(tmp_path, content):
    file = tmp_path / "m.npz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RunError, match=r"hits and misses of a finished cell in .*m\.npz.*delete the cell's folder"):
        Matches.load(file)


def test_passes_over_other_images_cannot_be_paired():
    one, other = matched(crowded(9, 5), NAMES), matched(crowded(8, 5), NAMES)
    assert same_images([one, one])
    assert not same_images([one, other])


def test_places_of_recalls_are_those_of_a_search_at_and_around_the_grid():
    rng = np.random.default_rng(0)
    near = [matches.RECALLS, np.nextafter(matches.RECALLS, 0), np.nextafter(matches.RECALLS, 2).clip(0, 1)]
    recall = np.sort([np.concatenate((*near, rng.permutation(total + 1)[:50] / total)) for total in range(49, 300)])
    expected = [np.searchsorted(row, matches.RECALLS) for row in recall]
    np.testing.assert_array_equal(matches._below(recall), expected)
