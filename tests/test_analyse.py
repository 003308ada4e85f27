"""The offline comparison of scores: the right objects in the right image, figures by hand, bad input in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolo_adapruner.engine.readings import EXTRA, OBJECT, TOP
from yolo_adapruner.engine.rehearse import FEATURES
from yolo_adapruner.errors import DataError
from yolo_adapruner.study import analyse
from yolo_adapruner.study.analyse import candidates, course, figures, fisher, load, main, nats, over_epochs, table

EPOCHS, N = 4, 60
EACH = 6


def write_recording(file: Path, **changes: Any) -> Path:
    """Localisation and support tell shifted images, contest swapped ones, the last channel missing ones."""
    rng = np.random.default_rng(0)
    kinds = np.array(["shifted"] * EACH + ["swapped"] * EACH + ["missing"] * EACH + ["clean"] * (N - 3 * EACH))
    owner = np.repeat(np.arange(N - 1), 3)  # the last image has no object
    channels = rng.lognormal(0, 0.2, (EPOCHS, N, 4)).astype(np.float32)
    objects = rng.uniform(0.1, 0.3, (EPOCHS, len(owner), len(OBJECT))).astype(np.float32)
    objects[..., OBJECT.index("support")] += 0.6
    objects[..., OBJECT.index("labelled")] += 0.6
    channels[:, :EACH, 0] *= 5
    objects[:, owner < EACH, OBJECT.index("support")] = 0.01
    swapped = (owner >= EACH) & (owner < 2 * EACH)
    objects[:, swapped, OBJECT.index("labelled")], objects[:, swapped, OBJECT.index("other")] = 0.1, 0.9
    channels[:, 2 * EACH : 3 * EACH, 3] *= 5
    channels[:, -1, :3] = np.nan
    arrays = {
        "kind": kinds, "channels": channels, "objects": objects, "object_image": owner,
        "object_class": np.zeros(len(owner), np.int64), "metric": np.linspace(0.1, 0.4, EPOCHS),
        "unexplained": np.zeros((EPOCHS, N, TOP, len(EXTRA)), np.float32), "clean_epochs": np.array([3]), "meta": "{}",
        "clean_channels": channels[-1:], "clean_objects": objects[-1:],
        "clean_unexplained": np.zeros((1, N, TOP, len(EXTRA)), np.float32),
    }  # fmt: skip
    np.savez(file, **{**arrays, **changes})
    return file


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recording(tmp_path_factory.mktemp("rec") / "rec.npz")


@pytest.mark.parametrize(
    ("score", "kind"),
    [
        ("localisation alone", "shifted"),
        ("unseen pooled", "shifted"),
        ("contest pooled", "swapped"),
        ("missing alone", "missing"),
        *[("unseen, contest, missing", kind) for kind in ("shifted", "swapped", "missing")],
    ],
)
def test_a_score_finds_the_kind_that_speaks_on_its_reading(recording: Path, score: str, kind: str) -> None:
    rec = load(recording)
    assert figures(rec, candidates(rec)[score])[kind] > 0.99


def test_the_window_is_a_share_of_the_epochs(recording: Path) -> None:
    with np.load(recording) as found:
        late = found["channels"][2:].mean(0)
        last = found["channels"][-1]
    assert np.allclose(load(recording).channels, late, equal_nan=True)
    assert np.allclose(load(recording, clean=True).channels, last, equal_nan=True)


def test_readings_of_objects_go_to_their_own_image(recording: Path) -> None:
    rec = load(recording)
    counted = rec.over_objects(rec.owner.astype(float), lambda own: float(own.sum()))
    assert counted[:-1].tolist() == [3 * i for i in range(N - 1)]
    assert np.isnan(counted[-1])


def test_fisher_is_uniform_in_probability_whatever_the_number_of_objects() -> None:
    rng = np.random.default_rng(0)
    assert fisher(np.array([1.7])) == pytest.approx(1.7)
    for n in (1, 5, 20):
        p = np.exp([-fisher(rng.exponential(size=n)) for _ in range(2000)])
        assert np.quantile(p, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.04)


def test_fisher_stays_finite_and_ordered_far_out() -> None:
    far = [fisher(np.array([x, x, x])) for x in (1e2, 1e3, 1e5, 1e9)]
    assert np.isfinite(far).all()
    assert far == sorted(far)
    assert fisher(np.zeros(4)) == 0


def test_nats_by_group_take_each_group_by_itself() -> None:
    values = np.exp(np.random.default_rng(0).normal(size=200))
    both = np.concatenate([values, 100 * values])
    apart = nats(both, np.repeat([0, 1], 200))
    assert np.allclose(apart[:200], apart[200:])


def test_the_judge_of_rehearsed_faults_joins_where_there_was_a_rehearsal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    plain = write_recording(tmp_path / "plain.npz")
    with np.load(plain) as found:
        kinds = found["kind"]
    named = np.array(["shifted", "swapped"])[np.arange(N) % 2]
    features = rng.lognormal(0, 0.3, (EPOCHS, N, len(FEATURES))).astype(np.float32)
    features[:, kinds == "shifted", FEATURES.index("localisation")] *= 5
    features[:, kinds == "swapped", FEATURES.index("classification")] *= 5
    rehearsed = rng.lognormal(0, 0.3, features.shape).astype(np.float32)
    rehearsed[:, named == "shifted", FEATURES.index("localisation")] *= 5
    rehearsed[:, named == "swapped", FEATURES.index("classification")] *= 5
    file = write_recording(tmp_path / "a.npz", features=features, rehearsed=rehearsed, rehearsed_kind=named)
    rec = load(file)
    score = figures(rec, candidates(rec)["judge of rehearsed faults"])
    assert min(score["shifted"], score["swapped"]) > 0.95
    assert main([str(file)]) == 0
    said = capsys.readouterr().out
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in said.splitlines()]
    shifted = next(r for r in rows if r and r[0] == "shifted")
    assert shifted[1] == str(EACH)
    assert int(shifted[2]) >= EACH - 1
    # Beside a recording without one, its mean is over those that have it.
    assert "| judge of rehearsed faults | " in table([load(plain), rec])


def test_by_epoch_the_judge_s_doubt_falls_as_faults_begin_to_show(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(2)
    named = np.array(["shifted", "swapped"])[np.arange(N) % 2]
    features, rehearsed = rng.lognormal(0, 0.3, (2, EPOCHS, N, len(FEATURES))).astype(np.float32)
    kinds = np.array(["shifted"] * EACH + ["swapped"] * EACH + ["clean"] * (N - 2 * EACH))
    for epoch, factor in enumerate((1, 1, 2, 8)):  # what a fault does to its reading
        for kind, reading in (("shifted", "localisation"), ("swapped", "classification")):
            features[epoch, kinds == kind, FEATURES.index(reading)] *= factor
            rehearsed[epoch, named == kind, FEATURES.index(reading)] *= factor
    spoilt = {"features": features, "rehearsed": rehearsed, "rehearsed_kind": named}
    file = write_recording(tmp_path / "a.npz", kind=kinds, **spoilt)
    assert main([str(file), "--by-epoch"]) == 0
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    doubt, told = [float(row[1]) for row in rows], [float(row[2]) for row in rows]
    assert min(doubt[:2]) > 0.35 > doubt[3]
    assert max(told[:2]) < 0.85 < told[3]
    assert rows[3][4] == "40.0"
    assert main([str(recording), "--by-epoch"]) == 2
    assert "rehearsed faults, but" in capsys.readouterr().err


def write_judged(file: Path, planted: bool) -> Path:
    """200 images whose faults raise one reading eightfold in rehearsal; if `planted`, 20 do so as they are."""
    rng = np.random.default_rng(4)
    n = 200
    named = np.array(["shifted", "swapped"])[np.arange(n) % 2]
    kinds = np.array(["shifted"] * 20 + ["duplicate"] * 3 + ["clean"] * (n - 23))
    features, rehearsed = rng.lognormal(0, 0.3, (2, EPOCHS, n, len(FEATURES))).astype(np.float32)
    if planted:
        features[:, kinds == "shifted", FEATURES.index("localisation")] *= 8
    for kind, reading in (("shifted", "localisation"), ("swapped", "classification")):
        rehearsed[:, named == kind, FEATURES.index(reading)] *= 8
    arrays = {
        "kind": kinds if planted else np.full(n, "clean"),
        "object_image": np.arange(n), "object_class": np.zeros(n, int),
        "channels": features[..., :4], "objects": np.zeros((EPOCHS, n, len(OBJECT)), np.float32),
        "unexplained": np.zeros((EPOCHS, n, TOP, len(EXTRA)), np.float32),
    }  # fmt: skip
    return write_recording(file, features=features, rehearsed=rehearsed, rehearsed_kind=named, **arrays)


@pytest.mark.parametrize("planted", [True, False], ids=["planted", "clean"])
def test_the_verdicts_count_what_is_found_and_what_is_mistaken(
    planted: bool, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_judged(tmp_path / "a.npz", planted)
    assert main([str(file), "--verdicts", "--window", "0", "1"]) == 0
    name, images, share, said, found, mistaken, told, loss, surest = (
        c.strip() for c in capsys.readouterr().out.splitlines()[2].split("|")[1:-1]
    )
    assert (name, images) == ("a", "197" if planted else "200")
    assert share == ("10.2 %" if planted else "0.0 %")
    assert float(said[:-2]) == pytest.approx(float(share[:-2]), abs=5)
    assert (float(found[:-2]) > 80) if planted else found == "–"
    assert told == ("1.000" if planted else "–")
    assert float(mistaken[:-2]) < 2
    assert float(loss) < 0.1
    assert float(surest) < 0.5
    assert main([str(recording), "--verdicts"]) == 2
    assert "rehearsed faults, but" in capsys.readouterr().err


def test_lots_take_doubtful_images_the_more_the_sharper_they_are(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Odds as given, so that how well a judge tells faults is not what is asked here: the planted are a little doubtful,
    # P = .18, and in the clean set every tenth image.
    kinds = np.array(["shifted"] * 20 + ["clean"] * 177 + ["duplicate"] * 3)
    weak = np.where(kinds == "shifted", -1.5, -6.0)
    odds = {"weak": (kinds, weak), "clean": (np.full(200, "clean"), np.where(np.arange(200) % 10, -6.0, -1.5))}
    with monkeypatch.context() as patch:
        patch.setattr(analyse, "_judged", lambda file, window: odds[file.stem])
        assert main(["weak.npz", "clean.npz", "--lots", "--window", "0", "1"]) == 0
        rows = [[c.strip() for c in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
        assert [row[:3] for row in rows] == [
            [name, dropped, str(k)] for name, dropped in (("weak", "20"), ("clean", "20")) for k in (1, 2, 4, 8)
        ]
        for column in (3, 4):  # AUROC, planted among the dropped
            values = [float(row[column].removesuffix("%")) for row in rows[:4]]
            assert values == sorted(set(values))
        assert [row[4] for row in rows[:4]] == [row[5] for row in rows[:4]]  # as many go as were planted
        assert all((row[3], row[4], row[5]) == ("–", "0 %", "–") for row in rows[4:])
        assert float(rows[3][6][:-2]) < 10 < float(rows[4][6][:-2])  # of the rest alike, and of the doubtful more
        assert main(["clean.npz", "--lots", "--window", "0", "1", "--share", "0.5"]) == 0
        assert capsys.readouterr().out.splitlines()[2].split("|")[2].strip() == "100"
    judged = write_judged(tmp_path / "judged.npz", True)
    assert main([str(judged), "--lots", "--window", "0", "1"]) == 0
    assert float(capsys.readouterr().out.splitlines()[2].split("|")[5].strip()[:-2]) > 80
    assert main([str(judged), "--lots", "--share", "1.5"]) == 2
    assert main([str(recording), "--lots"]) == 2
    assert "rehearsed faults, but" in capsys.readouterr().err


def test_what_epochs_say_beside_their_mean_is_spread_and_slope_of_those_that_read() -> None:
    values = np.array([[1.0, 4.0, np.nan, np.nan], [2.0, np.nan, np.nan, 5.0], [3.0, 2.0, np.nan, np.nan]])
    said = course(values)
    assert said["mean"][:2].tolist() == [2, 3]
    np.testing.assert_allclose(said["spread"], [np.sqrt(2 / 3), 1, np.nan, 0])
    np.testing.assert_allclose(said["slope"], [1, -1, np.nan, np.nan])
    slopes = np.array([np.polyfit(np.arange(5), y, 1)[0] for y in np.random.default_rng(0).random((6, 5))])
    np.testing.assert_allclose(course(np.random.default_rng(0).random((6, 5)).T)["slope"], slopes)


def test_the_slope_finds_what_rises_and_not_what_is_high_throughout(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    channels = rng.lognormal(0, 0.05, (8, N, 4)).astype(np.float32)
    channels[:, :EACH, 0] *= np.linspace(0.2, 1.8, 8)[:, None].astype(np.float32)
    channels[:, 2 * EACH : 3 * EACH, 3] *= 1.6
    objects = np.full((8, 3 * (N - 1), len(OBJECT)), 0.2, np.float32)
    unexplained = np.zeros((8, N, TOP, len(EXTRA)), np.float32)
    changes = {"channels": channels, "objects": objects, "unexplained": unexplained, "metric": np.linspace(0, 0.4, 8)}
    shown = over_epochs([write_recording(tmp_path / "rec.npz", **changes)], (0.0, 1.0))
    rows = {row.split(" | ")[0].strip("| "): row.split(" | ") for row in shown.splitlines()}
    at = {kind: rows["score"].index(kind) for kind in ("shifted", "missing")}
    assert float(rows["surprise: slope"][at["shifted"]]) > 0.99
    assert float(rows["surprise: slope"][at["missing"]]) < 0.8
    assert float(rows["surprise: mean"][at["missing"]]) > 0.99
    assert "judge" not in shown


def test_copies_take_no_part_in_the_figures(tmp_path: Path) -> None:
    with np.load(write_recording(tmp_path / "a.npz")) as found:
        kinds = found["kind"].copy()
    kinds = kinds.astype("U20")
    kinds[-10:] = "near-duplicate"
    rec = load(write_recording(tmp_path / "b.npz", kind=kinds))
    score = np.zeros(N)
    score[:EACH] = 1
    score[-10:] = 2
    assert figures(rec, score)["shifted"] == 1


def test_the_table_names_what_it_was_made_from(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(recording), str(recording), "--window", "0.5", "1"]) == 0
    said = capsys.readouterr().out
    assert "2 recordings; planted 18 of 60, 18 of 60; validation mAP50-95 at the end 0.400, 0.400." in said
    assert "| missing alone | " in said
    assert said.strip() == table([load(recording)] * 2)


@pytest.mark.parametrize(
    ("words", "said"), [(["--window", "1", "0"], "rising shares"), (["--window", "0", "0.1"], "has none"), ([], "")]
)
def test_bad_input_is_refused_in_one_line(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    (tmp_path / "no.npz").write_text("no")
    assert main([str(recording if words else tmp_path / "no.npz"), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("Expected")
    assert said in error
    assert "\n" not in error


def test_a_file_that_is_no_recording_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    with pytest.raises(DataError, match="cannot be read as one"):
        load(tmp_path / "other.npz")
