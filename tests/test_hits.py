"""The grid of planted defects: what a line says, worked out by hand; which cells run again; the table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import yolo_adapruner.api as api
import yolo_adapruner.engine.run as engine
from tests.helpers import build_set, cli_words, write_architecture
from yolo_adapruner.core.selection import select_kept
from yolo_adapruner.data import export
from yolo_adapruner.data.export import Outcome
from yolo_adapruner.data.source import split_files
from yolo_adapruner.errors import ConfigError, RunError
from yolo_adapruner.study import hits
from yolo_adapruner.study.hits import Cell, cells, confusion, doubts, figures, main, read_lines, table
from yolo_adapruner.study.truth import Truth, load_truth

CHANNELS = ("localisation", "classification", "presence", "missing")
NAN = float("nan")


def outcome_of(logit: list[float], kept: list[int], signal: list[float] | None = None, **columns: Any) -> Outcome:
    """An outcome over /0.png, /1.png, …; all of its channels read the signal."""
    values = np.array(logit, float)
    read = -values if signal is None else np.array(signal, float)
    content = {"logit": values, "signal": read, **dict.fromkeys(CHANNELS, np.where(np.isnan(read), NAN, np.exp(read)))}
    content |= {name: np.array(column) for name, column in columns.items()}
    return Outcome([f"/{i}.png" for i in range(len(values))], np.array(kept, bool), content)


def truth_of(*kinds: str, groups: dict[int, str] | None = None) -> dict[str, Truth]:
    return {f"/{i}.png": Truth(kind, group=(groups or {}).get(i, "")) for i, kind in enumerate(kinds)}


# ---- the figures of a run ------------------------------------------------------------------------------------------


def test_each_ranking_is_held_against_the_wrong_labels():
    # Wrong: 0 and 2. Logits rank 0 1 2 3, so three of the four pairs of wrong and clean stand right; the signal ranks
    # 0 2 1 3, so all four; suspicion ranks 1 3 0 2: none.
    found = figures(
        outcome_of([-3, -2, -1, 4], [0, 0, 1, 1], [9, 5, 7, 1], suspicion=[-1.0, 3.0, -2.0, 2.0]),
        truth_of("shifted", "clean", "missing", "clean"),
    )
    assert (found["auroc"], found["signal"], found["suspicion"], found["channels"]) == (0.75, 1.0, 0.0, 1.0)
    assert (found["images"], found["planted"], found["dropped"], found["hits"]) == (4, 2, 2, 0.5)


def test_a_run_of_before_the_judge_has_no_suspicion():
    assert "suspicion" not in figures(outcome_of([0, 1], [0, 1]), truth_of("swapped", "clean"))


def test_images_that_have_no_score_are_left_out_of_the_rank_and_counted_among_the_images():
    found = figures(outcome_of([NAN, -2, 3, NAN], [1, 0, 1, 1]), truth_of("missing", "missing", "clean", "clean"))
    assert (found["auroc"], found["signal"], found["channels"]) == (1.0, 1.0, 1.0)
    assert (found["images"], found["planted"], found["hits"]) == (4, 2, 1.0)


def test_what_cannot_be_told_is_null_and_a_line_is_strict_json():
    found = figures(outcome_of([0.5, NAN], [1, 1], suspicion=[NAN, NAN]), truth_of("clean", "clean"))
    assert [found[name] for name in ("auroc", "signal", "suspicion", "channels", "hits")] == [None] * 5
    assert "NaN" not in json.dumps(found)


def test_an_image_that_the_truth_does_not_name_is_clean():
    found = figures(outcome_of([-1, 1, 2], [0, 1, 1]), truth_of("spurious"))
    assert (found["planted"], found["auroc"], found["hits"]) == (1, 1.0, 1.0)


@pytest.mark.parametrize(
    ("original", "auroc"),
    # Copies 0 and 1; 2 is their original: wherever it stands, only clean 3 and 4 are what copies are told from.
    [(-9.0, 0.75), (9.0, 0.75)],
)
def test_of_copies_alone_the_original_is_neither_a_hit_nor_a_miss(original, auroc):
    groups = dict.fromkeys((0, 1, 2), "duplicate-000002")
    found = figures(
        outcome_of([-3, 1, original, 0, 5], [0, 1, 1, 1, 1]),
        truth_of("duplicate", "near-duplicate", "clean", "clean", "clean", groups=groups),
    )
    assert (found["planted"], found["auroc"], found["hits"]) == (2, auroc, 1.0)


def test_beside_wrong_labels_a_copy_is_as_good_as_clean():
    found = figures(outcome_of([-3, -2, 1], [0, 0, 1]), truth_of("near-duplicate", "swapped", "clean"))
    assert (found["planted"], found["auroc"], found["hits"]) == (1, 0.5, 0.5)


def test_what_the_set_itself_labels_wrongly_is_not_clean_and_counts_as_faulty():
    # Planted 0, own 1 and 2, clean 3 and 4: against the clean ones alone the planted stands right.
    outcome = outcome_of([-1, -3, -2, 0, 1], [0, 0, 1, 0, 1], reason=["label suspect", "easy", "", "drawn", ""])
    truth = truth_of("shifted", "clean", "clean", "clean", "clean")
    found = figures(outcome, truth, ["1.png", "2.png", "0.png", "elsewhere.png"])
    assert (found["planted"], found["own"], found["auroc"]) == (1, 2, 1.0)
    assert (found["hits"], found["faulty"]) == (0.3333, 0.6667)
    assert {kind: sum(said.values()) for kind, said in found["named"].items()} == {"shifted": 1, "own": 1, "clean": 1}
    assert figures(outcome, truth)["auroc"] == 0.5
    assert figures(outcome, truth)["faulty"] == figures(outcome, truth)["hits"]


def test_of_several_kinds_each_is_told_from_the_clean_alone():
    # Shifted 0 and 1, missing 2, clean 3 and 4. Shifted against clean: all four pairs right by the logit; missing lies
    # between the clean ones, and stands behind the shifted, which does not count against it.
    found = figures(
        outcome_of([-5, -4, 0, -1, 1], [0, 1, 1, 0, 1], suspicion=[3.0, -9.0, 1.0, 0.0, 2.0]),
        truth_of("shifted", "shifted", "missing", "clean", "clean"),
    )
    of_all = (found["auroc"], found["suspicion"], found["found"], found["hits"])
    assert of_all == (0.8333, 0.5, 0.3333, 0.5)
    rows = {kind: (of["planted"], of["auroc"], of["suspicion"], of["found"]) for kind, of in found["by_kind"].items()}
    assert rows == {"shifted": (2, 1.0, 0.5, 0.5), "missing": (1, 0.5, 0.5, 0.0)}
    assert "by_kind" not in figures(outcome_of([-1, 1], [0, 1]), truth_of("shifted", "clean"))


def test_images_are_counted_by_how_probable_it_was_that_their_labels_are_wrong():
    said = np.array([0.0, 0.02, 0.15, 0.15, 0.34, 0.36, 0.95, 0.999])
    suspicion = [NAN, *np.log(said[1:] / (1 - said[1:]))]
    kinds = ("shifted", "clean", "clean", "missing", "clean", "clean", "swapped", "clean")
    outcome = outcome_of([0.0] * 8, [1] * 8, suspicion=suspicion)
    found = figures(outcome, truth_of(*kinds), ["7.png"])
    assert found["doubts"] == [[0, 0], [0, 1], [0, 0], [1, 2], [0, 1], [0, 1], [0, 0], [0, 0], [2, 2]]
    assert figures(outcome, truth_of("duplicate", *["clean"] * 7))["doubts"] is None
    assert figures(outcome_of([0, 1], [0, 1]), truth_of("shifted", "clean"))["doubts"] is None
    lines = [{"data": "digits", **found}, {"data": "digits", **found}, {"data": "bccd", "doubts": None}]
    row = doubts(lines).splitlines()[-1]
    assert row == "| digits | – | 0 % of 2 | – | 50 % of 4 | 0 % of 2 | 0 % of 2 | – | – | 100 % of 4 |"
    assert doubts(lines[2:]) == ""


def test_groups_count_what_is_left_of_each():
    # a: one of two kept. b: none of three. c: both of two. d has a single member, so it is no group.
    groups = {0: "a", 1: "a", 2: "b", 3: "b", 4: "b", 5: "c", 6: "c", 7: "d"}
    found = figures(
        outcome_of([1, -1, -2, -3, -4, 2, 3, 4], [1, 0, 0, 0, 0, 1, 1, 1]),
        truth_of(*["clean", "duplicate"] * 4, groups=groups),
    )
    assert (found["groups"], found["one_kept"], found["none_kept"]) == (3, 1, 1)
    assert (found["recognised"], found["alike"]) == (None, None)  # images were not compared


def test_a_pair_is_recognised_whatever_went_and_what_only_looks_alike_is_counted():
    # a: 1 is said to be a copy of 0. b: of another group's image. c: nothing is said. 6 only looks like another.
    groups = {0: "a", 1: "a", 2: "b", 3: "b", 4: "c", 5: "c"}
    outcome = outcome_of([1] * 7, [1] * 7, twin=[-1, 0, -1, 0, -1, -1, 5], similarity=[1, 1, 0, 1, 0, 1, 1])
    found = figures(outcome, truth_of(*["clean", "near-duplicate"] * 3, "clean", groups=groups))
    assert (found["groups"], found["one_kept"], found["recognised"], found["alike"]) == (3, 0, 1, 2)
    unknown = outcome_of([1] * 7, [1] * 7, twin=[-1] * 7, similarity=[NAN] * 7)
    assert figures(unknown, truth_of(*["clean", "near-duplicate"] * 3, "clean", groups=groups))["recognised"] is None


def test_dropped_images_are_counted_by_what_they_are_and_were_said_to_be():
    outcome = outcome_of(
        [-5, -4, -3, -2, 1],
        [0, 0, 0, 0, 1],
        reason=["label suspect", "label suspect", "duplicate", "easy", ""],
        kind=["shifted", "missing", "shifted", "swapped", "shifted"],
    )
    named = figures(outcome, truth_of("shifted", "shifted", "clean", "clean", "shifted"))["named"]
    assert named == {
        "shifted": {"label suspect: shifted": 1, "label suspect: missing": 1},
        "clean": {"duplicate": 1, "easy": 1},
    }


def test_without_reasons_the_kind_is_what_was_said():
    named = figures(outcome_of([-1, 1], [0, 1], kind=["swapped", ""]), truth_of("clean", "clean"))["named"]
    assert named == {"clean": {"swapped": 1}}


# ---- the grid ------------------------------------------------------------------------------------------------------


def test_a_grid_goes_seed_by_seed_so_that_one_cut_off_has_every_set_and_kind():
    found = list(cells(["a/data.yaml", "b/data.yaml"], ["missing", "swapped"], [0.1], [0, 1], ["z=1", "a=2"]))
    assert len(found) == 8
    assert [cell.seed for cell in found] == [0] * 4 + [1] * 4
    assert {(cell.data, cell.kind) for cell in found[:4]} == {
        (data, kind) for data in ("a/data.yaml", "b/data.yaml") for kind in ("missing", "swapped")
    }
    assert found[0].settings == ("a=2", "z=1")


@pytest.mark.parametrize(
    ("sets", "kinds", "words", "message"),
    [
        (["digits"], ["blurred"], [], "Expected kinds among .*, but got blurred"),
        (["a/data.yaml"], ["own"], [], "only the set digits has faults of its own"),
        (["digits", "a/data.yaml"], ["own"], [], "only the set digits has faults of its own"),
        (["digits"], ["missing"], ["epochs"], "Expected settings as key=value, but got epochs"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(sets, kinds, words, message):
    with pytest.raises(ConfigError, match=message):
        list(cells(sets, kinds, [0.1], [0], words))


def test_a_mixed_cell_plants_as_much_of_each_wrong_label():
    (cell,) = cells(["a/data.yaml"], ["mixed"], [0.2], [0], [])
    assert cell.shares == dict.fromkeys(("shifted", "swapped", "missing", "spurious", "shuffled"), 0.04)
    assert Cell("a/data.yaml", "missing", 0.2, 0, ()).shares == {"missing": 0.2}


def test_a_cell_is_the_same_wherever_its_set_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here, there = (Cell(data, "missing", 0.1, 0, ()) for data in ("bccd/data.yaml", str(tmp_path / "x/bccd/data.yaml")))
    assert here.key() == there.key()
    assert here.name == there.name == "bccd-missing-0.1-s0"


@pytest.mark.parametrize(
    "other",
    [
        Cell("b/data.yaml", "missing", 0.1, 0, ()),
        Cell("a/data.yaml", "swapped", 0.1, 0, ()),
        Cell("a/data.yaml", "missing", 0.2, 0, ()),
        Cell("a/data.yaml", "missing", 0.1, 1, ()),
        Cell("a/data.yaml", "missing", 0.1, 0, ("epochs=3",)),
        Cell("a/data.yaml", "missing", 0.1, 0, (), 40),
        Cell("a/other.yaml", "missing", 0.1, 0, ()),
    ],
    ids=["set", "kind", "share", "seed", "settings", "images", "file"],
)
def test_two_cells_share_neither_line_nor_folder(other):
    cell = Cell("a/data.yaml", "missing", 0.1, 0, ())
    assert (cell.key() == other.key(), cell.name == other.name) == (False, False)


# ---- lines and tables ----------------------------------------------------------------------------------------------


def line_of(cell: str, **changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"cell": cell, "data": "bccd", "settings": [], "share": 0.1, "kind": "missing"}
    content |= {
        "auroc": 0.9,
        "suspicion": 0.95,
        "channels": 0.8,
        "found": 0.7,
        "hits": 0.5,
        "validation": 0.4,
        "named": {},
    }
    return {**content, **changes}


def test_the_last_line_of_a_cell_counts_and_a_torn_one_does_not(tmp_path):
    file = tmp_path / "hits.jsonl"
    lines = [line_of("a", hits=0.1), line_of("b"), line_of("a", hits=0.3)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"cell": "c", "hi', encoding="utf-8")
    assert {line["cell"]: line["hits"] for line in read_lines(file)} == {"a": 0.3, "b": 0.5}


def test_a_file_that_is_not_there_holds_nothing(tmp_path):
    assert read_lines(tmp_path / "hits.jsonl") == []


def test_the_table_has_mean_and_spread_over_seeds_and_passes_over_what_is_not_known():
    lines = [line_of("a", hits=0.25, suspicion=None), line_of("b", hits=0.5, suspicion=None, auroc=None)]
    copies = {"kind": "duplicate", "groups": 8, "one_kept": 6, "none_kept": 1, "recognised": 8}
    rows = table([*lines, line_of("c", **copies), line_of("d", settings=["epochs=3"], groups=0)]).splitlines()
    assert rows[:5] == [
        "| set | settings | share | planted | seeds | auroc | suspicion | channels | found | hits | faulty |"
        " validation | one kept | none kept | recognised |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        "| bccd |  | 0.1 | duplicate | 1 | 0.900 | 0.950 | 0.800 | 0.700 | 0.500 | – | 0.400 | 0.750 | 1 | 1.000 |",
        "| bccd |  | 0.1 | missing | 2 | 0.900 | – | 0.800 (0.800 to 0.800) | 0.700 (0.700 to 0.700) |"
        " 0.375 (0.250 to 0.500) | – | 0.400 (0.400 to 0.400) | – | – | – |",
        "| bccd | epochs=3 | 0.1 | missing | 1 | 0.900 | 0.950 | 0.800 | 0.700 | 0.500 | – | 0.400 | – | – | – |",
    ]


def test_each_of_several_kinds_has_a_row_below_that_of_all():
    kinds = {
        "shifted": {"planted": 8, "auroc": 0.99, "found": 0.75},
        "missing": {"planted": 8, "auroc": 0.7, "found": 0},
    }
    rows = table([line_of("a", kind="mixed", by_kind=kinds), line_of("b", kind="mixed")]).splitlines()[2:5]
    assert rows == [
        "| bccd |  | 0.1 | mixed | 2 | 0.900 (0.900 to 0.900) | 0.950 (0.950 to 0.950) | 0.800 (0.800 to 0.800) |"
        " 0.700 (0.700 to 0.700) | 0.500 (0.500 to 0.500) | – | 0.400 (0.400 to 0.400) | – | – | – |",
        "| bccd |  | 0.1 | mixed: missing | 1 | 0.700 | – | – | 0.000 | – | – | – | – | – | – |",
        "| bccd |  | 0.1 | mixed: shifted | 1 | 0.990 | – | – | 0.750 | – | – | – | – | – | – |",
    ]


def test_the_confusion_adds_lines_up_and_shows_a_zero_for_what_was_never_said():
    lines = [{"named": {"shifted": {"easy": 1}}}, {"named": {"shifted": {"easy": 2, "duplicate": 3}, "clean": {}}}]
    lines.append({"named": {"clean": {"outlier": 4}}})
    assert confusion(lines).splitlines() == [
        "| dropped, in truth | duplicate | easy | outlier |",
        "|---|---|---|---|",
        "| clean | 0 | 0 | 4 |",
        "| shifted | 3 | 3 | 0 |",
    ]


# ---- what runs, and what does not run again ------------------------------------------------------------------------


def finish(folder: Path, data: Path) -> None:
    """Write what a finished run on a planted set leaves; the planted have the lowest logits."""
    planted = load_truth(data.parent)
    paths = sorted(str(path) for path in split_files(str(data.parent / "images" / "train")))
    logit = np.array([-1.0 if planted[Path(path).as_posix()].kind != "clean" else 1.0 for path in paths])
    columns = {"logit": logit, "signal": -logit, **dict.fromkeys(CHANNELS, np.exp(-logit))}
    manifest = {"seed": 0, "prune": {"share": 0.25}, "train": {}, "seconds": 1.0, "hardware": "a box", "versions": {}}
    manifest["best_validation"] = {"metrics/mAP50-95(B)": 0.25}
    folder.mkdir(parents=True, exist_ok=True)
    content = {"path": data.parent, "val": "images/val", "names": {0: "disc"}}
    outcome = Outcome(paths, select_kept(logit, 0.25, seed=0), columns)
    export.write(folder, outcome, source=data, data=content, manifest=manifest)


class Runs:
    """Stands in for training: notes what was asked for and leaves a finished run, or is cut off before."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.cut_off = False
        self._data: dict[Path, Path] = {}

    def prune(self, config: str, *, data: Path, project: str, name: str, **settings: Any) -> None:
        folder = Path(project, name)
        folder.mkdir(parents=True)
        (folder / "adaprune.yaml").touch()
        self._data[folder] = data
        self._go("prune", folder)

    def resume(self, folder: Path) -> None:
        self._go("resume", folder)

    def _go(self, how: str, folder: Path) -> None:
        self.asked.append(f"{how} {folder.name}")
        if self.cut_off:
            raise RunError("Expected to go on, but it was cut off.")
        finish(folder, self._data[folder])


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    stub = Runs()
    monkeypatch.setattr(api, "prune", stub.prune)
    monkeypatch.setattr(engine, "resume", stub.resume)
    return stub


@pytest.fixture
def grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., int]:
    """Runs a grid of one set and one kind in the test's folder."""
    data = build_set(tmp_path / "clean", train=16, val=2)
    places = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out" / "hits.jsonl")]

    def go(*seeds: int, settings: tuple[str, ...] = ()) -> int:
        words = ["--set", str(data), "--kind", "missing", "--share", "0.25", "--seeds", *map(str, seeds), *places]
        return main([*words, *settings])

    return go


def found(tmp_path: Path) -> list[dict[str, Any]]:
    return read_lines(tmp_path / "out" / "hits.jsonl")


def test_a_finished_cell_is_not_run_again_and_a_new_one_is(tmp_path, runs, grid):
    assert (grid(0), grid(0), grid(0, 1)) == (0, 0, 0)
    assert runs.asked == ["prune clean-missing-0.25-s0", "prune clean-missing-0.25-s1"]
    assert [line["seed"] for line in found(tmp_path)] == [0, 1]


def test_a_line_says_what_was_planted_and_found(tmp_path, runs, grid):
    grid(0)
    (line,) = found(tmp_path)
    assert {key: line[key] for key in ("data", "kind", "share", "seed", "settings")} == {
        "data": "clean",
        "kind": "missing",
        "share": 0.25,
        "seed": 0,
        "settings": [],
    }
    assert (line["planted"], line["dropped"], line["auroc"], line["hits"], line["validation"]) == (4, 4, 1.0, 1.0, 0.25)


def test_a_cell_cut_off_is_resumed(tmp_path, runs, grid, capsys):
    runs.cut_off = True
    assert grid(0) == RunError.exit_code
    assert "cut off" in capsys.readouterr().err
    assert found(tmp_path) == []
    runs.cut_off = False
    assert grid(0) == 0
    assert runs.asked == ["prune clean-missing-0.25-s0", "resume clean-missing-0.25-s0"]
    assert len(found(tmp_path)) == 1


def test_a_run_that_finished_before_its_line_was_written_is_only_read(tmp_path, runs, grid):
    grid(0)
    before = found(tmp_path)
    (tmp_path / "out" / "hits.jsonl").unlink()
    assert grid(0) == 0
    assert runs.asked == ["prune clean-missing-0.25-s0"]
    assert found(tmp_path) == before


# A kill while a line is written must not take the next one with it.
def test_the_line_after_a_torn_one_counts(tmp_path, runs, grid):
    grid(0)
    with (tmp_path / "out" / "hits.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"cell": "[\\"clean\\", \\"mis')
    assert grid(0, 1) == 0
    assert [line["seed"] for line in found(tmp_path)] == [0, 1]


def test_the_table_of_a_file_runs_nothing(tmp_path, runs, grid, capsys):
    grid(0)
    runs.asked.clear()
    capsys.readouterr()
    assert main(["--table", str(tmp_path / "out" / "hits.jsonl")]) == 0
    assert "| clean |  | 0.25 | missing | 1 | 1.000 |" in capsys.readouterr().out
    assert runs.asked == []


def test_what_cannot_run_is_one_line(tmp_path, runs, capsys):
    assert main(["--own", str(tmp_path / "none.txt"), "--out", str(tmp_path / "h")]) == 2
    assert "file names of wrongly labelled images" in capsys.readouterr().err
    assert main(["--set", str(tmp_path / "none.yaml"), "--work", str(tmp_path), "--out", str(tmp_path / "h")]) == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1
    assert (said.out, runs.asked) == ("", [])


@pytest.mark.slow
def test_a_real_run_gives_a_line(tmp_path, grid, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {"model": write_architecture(tmp_path / "small.yaml").name, "imgsz": 64, "epochs": 3, "device": "cpu"}
    assert grid(0, settings=tuple(cli_words({**small, "prune.warmup": 1}))) == 0
    (line,) = found(tmp_path)
    assert (line["images"], line["planted"], line["dropped"]) == (16, 4, 4)
    assert 0 <= line["hits"] <= 1
    assert sum(count for said in line["named"].values() for count in said.values()) == 4
    assert {"auroc", "signal", "suspicion", "channels"} <= line.keys()
    assert hits._finished(next((tmp_path / "work" / "runs").iterdir()))
