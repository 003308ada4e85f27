"""What runs dropped: class by class, and whether they agree. Worked out by hand."""

import numpy as np
import pytest

from yolo_adapruner.data.export import Outcome
from yolo_adapruner.errors import ConfigError
from yolo_adapruner.study.dropped import agreement, class_shares


def outcome(kept, paths=None):
    kept = np.array(kept, bool)
    return Outcome(paths or [f"/{i}.jpg" for i in range(len(kept))], kept, {})


def test_class_shares_count_boxes_not_images():
    # class 0: 4 boxes, 1 of them in the dropped image; class 1: 2 boxes, both there; class 2: only in kept ones
    shares = class_shares(outcome([1, 0, 1]), [[0, 0, 0], [0, 1, 1], [2]])
    assert shares == {0: 0.25, 1: 1.0, 2: 0.0}


def test_agreement_is_the_shared_part_of_what_the_first_dropped():
    assert agreement(outcome([0, 0, 1, 1]), outcome([0, 1, 1, 1])) == 0.5
    assert agreement(outcome([0, 1, 1, 1]), outcome([0, 0, 1, 1])) == 1.0


@pytest.mark.parametrize("other", [outcome([0, 1], ["/a.jpg", "/b.jpg"]), outcome([1, 0, 1])], ids=["names", "number"])
def test_runs_on_other_images_are_refused(other):
    with pytest.raises(ConfigError, match="same images"):
        agreement(outcome([0, 1]), other)
