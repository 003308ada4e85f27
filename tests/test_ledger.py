"""Hours spent and saved, and the agreement of dropped sets with each other and with chance."""

import numpy as np
import pytest

from yolo_adapruner.core.selection import random_kept
from yolo_adapruner.errors import ConfigError
from yolo_adapruner.study.ledger import Overlap, ledger, ledger_line, overlap, overlap_line

LEDGERS = [
    # hours of choosing, of full, of kept; saved, trainings until it pays
    ([2.0], [2.0], [1.8], 0.2, 10),
    ([2.0, 4.0], [2.0, 2.0], [1.5, 0.5], 1.0, 3),
    ([2.5], [2.0], [1.0], 1.0, 3),
    ([0.5], [2.0], [1.0], 1.0, 1),
    ([2.0], [2.0], [2.0], 0.0, None),
    ([2.0], [2.0], [2.5], -0.5, None),
]


@pytest.mark.parametrize(("selecting", "full", "kept", "saved", "count"), LEDGERS)
def test_ledger_by_hand(selecting, full, kept, saved, count):
    found = ledger(selecting, full, kept)
    assert found.saved == pytest.approx(saved)
    assert found.break_even == count


def test_a_ledger_in_words():
    assert ledger_line("10 %", ledger([2.0], [2.0], [1.8])) == (
        "10 %: choosing took 2.0 h, each training on the kept images saves 12.0 min: it pays after 10 trainings"
    )
    assert ledger_line("10 %", ledger([0.5], [2.0], [2.0])) == (
        "10 %: choosing took 30.0 min; trainings on the kept images are no shorter, so it never pays in hours"
    )


def sets(n: int, *dropped: list[int]) -> np.ndarray:
    kept = np.ones((len(dropped), n), bool)
    for row, ids in zip(kept, dropped, strict=True):
        row[ids] = False
    return kept


def test_overlap_by_hand():
    # pairs share 2 of 4, 1 of 4 and 0 of 4; blindly 4 of 40
    found = overlap(sets(40, [0, 1, 2, 3], [2, 3, 4, 5], [5, 6, 7, 0]))
    assert found.agreement == pytest.approx((2 + 1 + 1) / 12)
    assert found.chance == pytest.approx(0.1)
    assert found.low < found.agreement < found.high
    assert found.chance_low < found.chance < found.chance_high


def test_sets_of_two_sizes_are_measured_by_their_mean():
    found = overlap(sets(40, [0, 1], [1, 2, 3, 4]))
    assert found.agreement == pytest.approx(1 / 3)
    assert found.chance == pytest.approx(2 * 4 / 40 / 3)


def test_equal_sets_are_learned_and_blind_ones_are_not():
    same = overlap(np.stack([random_kept(300, 0.1, seed=0)] * 3))
    assert (same.agreement, same.low, same.high, same.learned) == (1.0, 1.0, 1.0, True)
    blind = [overlap(np.stack([random_kept(300, 0.1, seed=9 * k + s) for s in range(3)])) for k in range(40)]
    assert not any(found.learned for found in blind)
    inside = [found.chance_low <= found.agreement <= found.chance_high for found in blind]
    assert sum(inside) >= 34  # 38 expected


def test_no_more_than_chance_is_said():
    blind = overlap(np.stack([random_kept(300, 0.1, seed=s) for s in range(3)]))
    assert overlap_line("10 %", blind).endswith("; no more than chance: this choice is not the data's")
    words = overlap_line("10 %", Overlap(0.67, 0.6, 0.75, 0.1, 0.07, 0.13))
    assert words == (
        "10 %: of what one seed dropped another dropped 67% [60%, 75%]; blind draws 10% [7%, 13%]; beyond chance"
    )


@pytest.mark.parametrize("kept", [sets(9, [1]), sets(9, [1], [])], ids=["one seed", "nothing dropped"])
def test_what_cannot_be_compared_is_refused(kept):
    with pytest.raises(ConfigError, match="Expected two seeds or more that each dropped an image"):
        overlap(kept)
