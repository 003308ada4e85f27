"""What a selection did to a planted set, and the table over seeds."""

import numpy as np
import pytest

from yolo_adapruner.data.export import Outcome
from yolo_adapruner.errors import DataError
from yolo_adapruner.study.planted import planted, table

KINDS = ["boxes", "clean", "duplicate", "clean", "duplicate", "clean", "clean"]
GROUPS = ["", "a", "a", "b", "b", "c", ""]


def write_truth(root):
    lines = [f"images/{i}.png,train,{kind},{group}" for i, (kind, group) in enumerate(zip(KINDS, GROUPS, strict=True))]
    (root / "truth.csv").write_text("\n".join(["path,split,kind,group", *lines]) + "\n")


def outcome_of(root, kept, logit):
    paths = [str(root.resolve() / f"images/{i}.png") for i in range(len(kept))]
    return Outcome(paths, np.array(kept, bool), {"logit": np.array(logit, float)})


def test_dropped_are_counted_by_kind_and_pairs_by_what_is_left_of_them(tmp_path):
    write_truth(tmp_path)
    # Of pair a the original went, of b nobody; c has a single member and is no pair.
    found = planted(outcome_of(tmp_path, [0, 0, 1, 1, 1, 0, 1], [-2, -1, 1, 2, 3, -0.5, np.nan]), tmp_path)
    assert found is not None
    assert found.dropped == {"boxes": 1, "clean": 2}
    assert found.total == {"boxes": 1, "clean": 4, "duplicate": 2}
    assert found.noise_share == pytest.approx(1 / 3)
    assert found.auroc == 1.0
    assert found.pairs == (2, 1)


def test_a_set_without_truth_says_nothing_and_one_without_groups_has_no_pairs(tmp_path):
    outcome = outcome_of(tmp_path, [0, 1, 1, 1, 1, 1, 1], [-1, 1, 2, 3, 4, 5, 6])
    assert planted(outcome, tmp_path) is None
    (tmp_path / "truth.csv").write_text("path,kind\nimages/0.png,boxes\n")
    found = planted(outcome, tmp_path)
    assert found is not None
    assert (found.dropped, found.pairs) == ({"boxes": 1}, (0, 0))


def test_a_truth_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "truth.csv").write_text("image,fault\n0.png,boxes\n")
    with pytest.raises(DataError, match="path and kind"):
        planted(outcome_of(tmp_path, [0, 1], [-1, 1]), tmp_path)


def test_the_table_has_a_cell_for_each_head(tmp_path):
    write_truth(tmp_path)
    found = planted(outcome_of(tmp_path, [0, 0, 1, 1, 1, 1, 1], [-2, -1, 1, 2, 3, 4, 5]), tmp_path)
    manifest = {"best_validation": {"metrics/mAP50-95(B)": 0.5}, "seconds": 90}
    head, rule, *rows = table([(3, found, manifest), (4, found, manifest)], "facts").splitlines()[:5]
    assert {line.count("|") for line in (head, rule, *rows)} == {head.count("|")}
    assert rows[0].startswith("| 3 | 50.0% | 1.000 | 1 of 1 | 0 of 2 | 1 of 4 | 1 of 2 | 50.0 | 1.5 |")
    assert rows[2].startswith("| mean | 50.0 ± 0.0 % | 1.000 |")
