"""Why a sample went: one reason each, in order, by the numbers; any of which may be missing."""

import numpy as np
import pytest

from yolo_adapruner.core.reasons import Evidence, explain, kept_twin, suspicion_of_channels

CHANNELS = ("localisation", "classification", "presence", "missing")
NAN = np.nan

ROWS = [
    # name, kept, signal, suspicion, kind, twin; reason, kind, twin given. The median signal is 2.
    ("kept says nothing", True, 9.0, 5.0, "shifted", 0, "", "", -1),
    ("likelier wrong than right", False, 9.0, 0.1, "shifted", -1, "label suspect", "shifted", -1),
    ("suspect before duplicate", False, 1.0, 0.1, "missing", 0, "label suspect", "missing", -1),
    ("not suspect enough: duplicate", False, 9.0, -0.1, "shifted", 0, "duplicate", "", 0),
    ("duplicate before easy", False, 1.0, -5.0, "", 0, "duplicate", "", 0),
    ("easy", False, 2.0, -5.0, "swapped", -1, "easy", "", -1),
    ("outlier", False, 3.0, -0.1, "swapped", -1, "outlier", "", -1),
    ("suspicion unknown", False, 3.0, NAN, "", -1, "outlier", "", -1),
    ("nothing seen", False, NAN, NAN, "", -1, "outlier", "", -1),
]
DRAWN = [
    # name, kept, signal, suspicion, twin, lot; reason
    ("kept says nothing", True, 1.0, -5.0, -1, 0.9, ""),
    ("easy, and drawn", False, 1.0, -5.0, -1, 0.9, "drawn"),
    ("hard, and drawn", False, 9.0, -1.4, -1, 0.0, "drawn"),
    ("one in five is no lot", False, 9.0, -1.38, -1, 0.9, "doubtful"),
    ("almost a suspect", False, 1.0, -0.01, -1, 0.9, "doubtful"),
    ("duplicate before doubtful", False, 1.0, -1.0, 0, 0.9, "duplicate"),
    ("doubt is none where nobody drew lots", False, 9.0, -1.0, -1, NAN, "outlier"),
    ("a lot makes no label right", False, 9.0, 0.1, -1, 0.9, "label suspect"),
    ("duplicate before drawn", False, 1.0, -5.0, 0, 0.9, "duplicate"),
    ("no lot: by its signal", False, 1.0, -5.0, -1, NAN, "easy"),
]


@pytest.mark.parametrize("row", [c[1:] for c in ROWS], ids=[c[0] for c in ROWS])
def test_a_reason_by_hand(row):
    kept, signal, suspicion, kind, twin, *expected = row
    evidence = Evidence(
        np.array([1.0, 2.0, 3.0, 2.0, signal]),
        np.array([-9.0, -9.0, -9.0, -9.0, suspicion]),
        np.array(["", "", "", "", kind]),
        np.array([-1, -1, -1, -1, twin]),
    )
    reasons, kinds, twins = explain(np.array([True, True, True, True, kept]), evidence)
    assert [reasons[-1], kinds[-1], twins[-1]] == expected
    assert reasons[:-1].tolist() == [""] * 4


@pytest.mark.parametrize("row", [c[1:] for c in DRAWN], ids=[c[0] for c in DRAWN])
def test_what_nothing_speaks_against_was_drawn(row):
    kept, signal, suspicion, twin, lot, expected = row
    evidence = Evidence(
        np.array([1.0, 2.0, 3.0, 2.0, signal]),
        np.array([-9.0, -9.0, -9.0, -9.0, suspicion]),
        np.full(5, ""),
        np.array([-1, -1, -1, -1, twin]),
        np.array([0.5, 0.5, 0.5, 0.5, lot]),
    )
    assert explain(np.array([True, True, True, True, kept]), evidence)[0].tolist() == ["", "", "", "", expected]


def test_every_dropped_sample_has_a_reason_with_nothing_but_a_signal():
    kept = np.arange(10) % 3 > 0
    reasons, kinds, twins = explain(kept, Evidence(np.arange(10.0)))
    assert reasons[~kept].tolist() == ["easy", "easy", "outlier", "outlier"]
    assert set(reasons[kept]) == {""}
    assert set(kinds) == {""}
    assert set(twins) == {-1}


TWINS = [
    # name, kept, twin, the kept sample each duplicates
    ("its own twin is kept", [1, 0], [-1, 0], [-1, 0]),
    ("along the chain", [1, 0, 0, 0], [-1, 0, 1, 2], [-1, 0, 0, 0]),
    ("the chain ends at one that went", [0, 0, 1], [-1, 0, -1], [-1, -1, -1]),
    ("a circle", [0, 0, 1], [1, 0, -1], [-1, -1, -1]),
    ("a circle and a chain", [0, 0, 1, 0], [1, 0, -1, 2], [-1, -1, -1, 2]),
]


@pytest.mark.parametrize(("kept", "twin", "found"), [c[1:] for c in TWINS], ids=[c[0] for c in TWINS])
def test_a_twin_is_followed_to_one_that_was_kept(kept, twin, found):
    assert kept_twin(np.array(kept, bool), np.array(twin)).tolist() == found


# Where nobody judged labels: by the channels


def readings(n: int = 400, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(0, 0.3, (n, 4))


@pytest.mark.parametrize(("channel", "kind"), list(enumerate(["shifted", "swapped", "spurious", "missing"])))
def test_the_loudest_channel_names_the_kind(channel, kind):
    values = readings()
    values[:20, channel] *= 6
    suspicion, kinds = suspicion_of_channels(values, CHANNELS)
    assert (suspicion[:20] > 0).mean() >= 0.9
    assert (suspicion[20:] > 0).sum() <= 20  # no more than half of those accused
    assert set(kinds[:20][suspicion[:20] > 0]) == {kind}


def test_without_faults_hardly_anybody_is_suspect():
    # the false discovery rate of half lets a handful through now and then; 400 samples, 10 sets
    counts = [int((suspicion_of_channels(readings(seed=seed), CHANNELS)[0] > 0).sum()) for seed in range(10)]
    assert np.median(counts) == 0
    assert max(counts) <= 20


def test_suspicion_grows_with_the_loudest_channel():
    values = readings()
    values[:20, 0] *= 6
    suspicion, _ = suspicion_of_channels(values, CHANNELS)
    among = values[:20, 0].argsort()
    assert (np.diff(suspicion[:20][among]) >= 0).all()


def test_samples_and_channels_without_readings():
    values = readings()
    values[0], values[1, :3] = NAN, NAN
    suspicion, kinds = suspicion_of_channels(values, ("a", "b", "c", "missing"))
    assert np.isnan(suspicion[0])
    assert kinds[0] == ""
    assert kinds[1] == "missing"
    assert np.isfinite(suspicion[1:]).all()
    assert set(kinds) <= {"", "missing"}
