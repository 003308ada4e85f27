"""Floors, the keep list, reasons and drift through the files of a run: written, read again, cut at other shares."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.helpers import read_list
from yolo_adapruner.core.floors import BACKGROUND, CLASS, SIZE, Constraints, Groups
from yolo_adapruner.core.selection import select_kept
from yolo_adapruner.data.explain import with_reasons
from yolo_adapruner.data.export import Outcome, export, read, write
from yolo_adapruner.data.keep import read_keep, refuse_too_many
from yolo_adapruner.errors import ConfigError, DataError

N = 20
LOGITS = np.arange(N) - 4.0


def constraints_of(floor: float = 0.8, required: list[int] | None = None) -> Constraints:
    """Image 0 has the only box of `rare`, image 1 is the only one without boxes; all boxes are small."""
    boxed = np.setdiff1d(np.arange(N), [1])
    sample = np.concatenate([boxed, boxed, [1]])
    group = np.concatenate([np.where(boxed == 0, 1, 0), np.full(len(boxed), 2), [3]])
    groups = Groups.of(sample, group, [CLASS, CLASS, SIZE, BACKGROUND], ["often", "rare", "small", BACKGROUND])
    return Constraints(groups, floor, None if required is None else np.isin(np.arange(N), required))


def run_folder(folder: Path, constraints: Constraints, share: float = 0.2, **columns) -> Outcome:
    folder.mkdir()
    kept = select_kept(LOGITS, share, constraints=constraints)
    signal = {"logit": LOGITS, "signal": np.arange(N)[::-1] + 0.0}
    outcome = Outcome([f"/set/{i:02}.jpg" for i in range(N)], kept, {**signal, **columns}, constraints=constraints)
    manifest = {"prune": {"share": share, "floor": constraints.floor}, "seed": 0}
    write(
        folder,
        outcome,
        source=Path("/set/data.yaml"),
        data={"path": "/set", "val": "v", "names": {}},
        manifest=manifest,
    )
    return outcome


def dropped(folder: Path) -> list[int]:
    return [int(Path(path).stem) for path in read_list(folder / "dropped.txt")]


def test_other_shares_are_cut_under_the_same_floors_and_list(tmp_path):
    run_folder(tmp_path / "run", constraints_of(required=[2]))
    assert dropped(tmp_path / "run") == [3, 4, 5, 6]  # 0 and 1 are the last of their group, 2 is on the list
    export(tmp_path / "run", [0.1, 0.5])
    assert dropped(tmp_path / "run" / "prune-0.1") == [3, 4]
    assert dropped(tmp_path / "run" / "prune-0.5") == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]


def test_constraints_come_back_from_the_files_as_they_went(tmp_path):
    outcome = run_folder(tmp_path / "run", constraints_of(required=[2, 7]))
    manifest, again = read(tmp_path / "run")
    held, came = outcome.constraints, again.constraints
    assert came.floor == 0.8
    assert (came.required == held.required).all()
    for name in ("sample", "group", "count"):
        np.testing.assert_array_equal(getattr(came.groups, name), getattr(held.groups, name))
    assert (came.groups.family, came.groups.name) == (held.groups.family, held.groups.name)
    assert manifest["required"] == 2


def test_a_run_that_wrote_no_constraints_is_cut_without_any(tmp_path):
    run_folder(tmp_path / "run", Constraints())
    manifest, outcome = read(tmp_path / "run")
    assert outcome.constraints.groups is None
    assert "drift" not in manifest
    export(tmp_path / "run", [0.1])
    assert dropped(tmp_path / "run" / "prune-0.1") == [0, 1]


def test_a_share_that_floors_do_not_allow_is_exact_and_says_so(tmp_path):
    run_folder(tmp_path / "run", constraints_of(1.0))
    export(tmp_path / "run", [0.95])
    assert len(dropped(tmp_path / "run" / "prune-0.95")) == 19
    head = (tmp_path / "run" / "prune-0.95" / "pruned.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert "Floors eased to 0.00" in head
    assert "eased" not in (tmp_path / "run" / "pruned.yaml").read_text(encoding="utf-8")


def test_a_share_that_the_list_does_not_allow_is_refused_before_anything_is_written(tmp_path):
    run_folder(tmp_path / "run", constraints_of(required=list(range(13))))
    with pytest.raises(ConfigError, match=r"13 of 20 must: prune at most 0\.35") as error:
        export(tmp_path / "run", [0.1, 0.5])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "prune-0.1").exists()


def test_the_manifest_counts_drift_reasons_and_floors(tmp_path):
    outcome = run_folder(tmp_path / "run", constraints_of())
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["drift"] == {
        "classes": {"often": [18, 14], "rare": [1, 1]},
        "sizes": {"small": [19, 15]},
        "background": [1, 1],
        "boxes": [19, 15],
    }
    assert manifest["reasons"] == {
        "label suspect": 0,
        "duplicate": 0,
        "doubtful": 0,
        "drawn": 0,
        "easy": 0,
        "outlier": 4,
    }
    assert sum(manifest["reasons"].values()) == int((~outcome.kept).sum())
    assert manifest["floor"] == {"asked": 0.8, "held": pytest.approx(14 / 18 / 0.8, abs=1e-6)}
    assert manifest["required"] == 0
    assert "wrong_labels" not in manifest  # nobody judged labels


def test_the_manifest_says_how_many_labels_look_wrong(tmp_path):
    suspicion = np.where(np.arange(N) < 4, 40.0, -40.0)
    run_folder(tmp_path / "run", constraints_of(), suspicion=suspicion)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["wrong_labels"] == pytest.approx(4 / N)


def test_scores_csv_says_why_each_dropped_image_went(tmp_path):
    suspicion, kind, twin = np.full(N, -3.0), np.full(N, "shifted"), np.full(N, -1)
    suspicion[2], kind[2], twin[3], twin[4] = 2.0, "swapped", 4, 9
    run_folder(tmp_path / "run", constraints_of(), suspicion=suspicion, kind=kind, twin=twin)
    table = pl.read_parquet(tmp_path / "run" / "scores.parquet")
    rows = {int(Path(p).stem): (r, d) for p, r, d in table.select("path", "reason", "detail").rows() if r}
    assert rows == {
        2: ("label suspect", "swapped"),
        3: ("duplicate", "/set/09.jpg"),  # its twin 4 went as a duplicate of 9
        4: ("duplicate", "/set/09.jpg"),
        5: ("outlier", ""),
    }


def test_reasons_follow_the_share_and_not_the_run(tmp_path):
    twin = np.full(N, -1)
    twin[3] = 9
    run_folder(tmp_path / "run", constraints_of(), twin=twin)
    export(tmp_path / "run", [0.5])  # 9 goes too, and with it the reason of 3
    table = pl.read_parquet(tmp_path / "run" / "prune-0.5" / "scores.parquet")
    assert table["reason"][3] != "duplicate"
    assert set(table.filter(pl.col("kept"))["reason"]) == {""}


def test_channels_tell_where_nobody_judged_labels():
    rng = np.random.default_rng(0)
    readings = {name: rng.lognormal(0, 0.3, 200) for name in ("localisation", "classification", "presence", "missing")}
    readings["missing"][:10] *= 8
    signal = {"signal": np.where(np.arange(200) < 10, 9.0, 1.0), "suspicion": np.full(200, np.nan)}
    outcome = Outcome([str(i) for i in range(200)], np.arange(200) >= 10, {**signal, **readings})
    columns = with_reasons(outcome).columns
    assert set(columns["reason"][:10]) == {"label suspect"}
    assert set(columns["detail"][:10]) == {"missing"}
    assert with_reasons(replace(outcome, kept=np.ones(200, bool))).columns["reason"].tolist() == [""] * 200


# The keep list

PATHS = ["/set/images/a.jpg", "/set/images/b.jpg", "/set/images/c d.jpg"]


def test_a_list_may_spell_paths_as_ultralytics_lists_do(tmp_path, monkeypatch):
    images = [tmp_path / "images" / name for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")]
    folder = tmp_path / "lists"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    listed = [str(images[0]), "images/b.jpg", "./../images/c.jpg", "", "../images/d.jpg", str(images[0])]
    (folder / "keep.txt").write_text("\ufeff" + "\n".join(listed) + "\n", encoding="utf-8")
    found = read_keep(folder / "keep.txt", [str(i) for i in images])
    assert found.tolist() == [True, True, True, True, False]


def test_a_list_may_name_images_from_the_data_sets_folder(tmp_path):
    (tmp_path / "keep.txt").write_text("images/c d.jpg\r\n", encoding="utf-8")
    assert read_keep(tmp_path / "keep.txt", PATHS, "/set").tolist() == [False, False, True]


WRONG = [
    # name, content, error, words
    (
        "a path that is none",
        "/set/images/a.jpg\n/set/images/x.jpg\nb.jpg\n",
        DataError,
        "2 of 3 lines name none, the first: /set/images/x.jpg",
    ),
    ("no file", None, ConfigError, "cannot be read: No such file"),
]


@pytest.mark.parametrize(("content", "error", "words"), [c[1:] for c in WRONG], ids=[c[0] for c in WRONG])
def test_a_list_that_cannot_be_used_gets_one_line(tmp_path, content, error, words):
    if content is not None:
        (tmp_path / "keep.txt").write_text(content, encoding="utf-8")
    with pytest.raises(error, match=words) as caught:
        read_keep(tmp_path / "keep.txt", PATHS)
    assert "\n" not in str(caught.value)


def test_the_largest_share_that_is_named_can_be_had():
    for n in (7, 20, 333):
        for must in range(n // 2, n + 1):
            required = np.arange(n) < must
            try:
                refuse_too_many(required, 0.5)
            except ConfigError as error:
                largest = float(str(error).split("prune at most ")[1].split(" ")[0])
                refuse_too_many(required, largest)
