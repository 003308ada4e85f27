"""What finished cells come to: intervals from saved hits, verdicts, hours and agreement, and the file that holds it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.test_compare_plan import DATA, config_of
from tests.test_evaluate import NAMES, crowded
from yolo_adapruner.core.selection import random_kept
from yolo_adapruner.data import export
from yolo_adapruner.errors import ConfigError
from yolo_adapruner.study import auto
from yolo_adapruner.study.arms import FULL, LISTED, PRUNED, RANDOM, RUN
from yolo_adapruner.study.cells import CellRunner
from yolo_adapruner.study.conclude import Comparison, conclude, replicates, save
from yolo_adapruner.study.elsewhere import DIGITS
from yolo_adapruner.study.elsewhere import read as read_elsewhere
from yolo_adapruner.study.evaluate import coco_metrics, matched
from yolo_adapruner.study.grid import plan
from yolo_adapruner.study.interval import paired
from yolo_adapruner.study.table import EPOCHS, UPDATES, Cell, class_table, verdicts

SHARE, IMAGES = 0.1, 60
FACTS = {
    "schema": 1,
    "shares": [SHARE],
    "seeds": 3,
    "margin": 0.5,
    "reported_on": "test split",
    "versions": {"numpy": "x"},
    "hardware": "2 cores",
    "jobs": 1,
    "task": "detect",
    "engine": "pycocotools",
    "set_print": "aa",
    "list_print": "bb",
    "elsewhere": [],
}


def finish(runner: CellRunner, cell: Cell, *, hits: bool = True, learned: bool = True, by_lot: int = 0) -> dict:
    """Make a cell finished without training: detections that differ by arm and seed, a run that dropped some images."""
    home = runner.home(cell)
    home.mkdir(parents=True)
    images = crowded(25, 1)
    rng = np.random.default_rng([cell.seed, len(cell.arm), len(cell.budget)])
    for image in images:
        image.boxes[:] += rng.normal(0, 1 + (cell.arm == RANDOM), image.boxes.shape)
    metrics = coco_metrics(images, NAMES, sizes=True)
    if hits:
        matched(images, NAMES).save(home / "matches.npz")
    if cell.arm == RUN:
        paths = [f"/set/train/{i:03}.jpg" for i in range(IMAGES)]
        kept = np.arange(IMAGES) >= (6 - by_lot) if learned else random_kept(IMAGES, SHARE, seed=cell.seed)
        lot = np.full(IMAGES, np.nan)
        lot[50 + 3 * cell.seed : 50 + 3 * cell.seed + by_lot] = 1.0  # each seed its own
        kept &= np.isnan(lot)
        suspicion = np.where(np.isnan(lot), 1.0, -3.0)
        outcome = export.Outcome(paths, kept, {"logit": np.zeros(IMAGES), "suspicion": suspicion, "lot": lot})
        manifest = {"seed": cell.seed, "prune": {"share": SHARE}}
        export.write(home, outcome, source=Path("/set/d.yaml"), data=DATA, manifest=manifest)
    figures = {
        "arm": cell.arm,
        "share": cell.share,
        "budget": cell.budget,
        "seed": cell.seed,
        "images": 54,
        "epochs": 30,
        "updates": 100,
        "map50_95": metrics.map50_95,
        "map50": metrics.map50,
        "per_class": metrics.per_class,
        "by_size": metrics.by_size,
        "validation_map50_95": 0.5,
        "ultralytics_map50_95": metrics.map50_95 - 0.001,
        "ultralytics_map50": metrics.map50,
        "hours": {FULL: 1.0, RUN: 1.1}.get(cell.arm, 0.9 if cell.budget == EPOCHS else 1.0),
    }
    (home / "cell.json").write_text(json.dumps(figures))
    return runner.finished(cell)


def concluded(folder: Path, **how: int) -> tuple[Comparison, dict]:
    config = config_of(folder)
    runner = CellRunner(folder, config, folder / "data.yaml")
    cells = [cell for chain in plan([SHARE], range(3)) for cell in chain]
    done = {cell: finish(runner, cell, **how) for cell in cells}
    return conclude(runner, done, {**FACTS, "config": config.model_dump()}), done


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> tuple[Comparison, dict]:
    return concluded(tmp_path_factory.mktemp("comparison"), by_lot=2)


def test_intervals_are_made_over_the_images_that_the_cells_saved(comparison):
    result, done = comparison
    rows = {(row.arm, row.budget): row for row in result.rows}
    sides = [[Cell(PRUNED, SHARE, UPDATES, s) for s in range(3)], [Cell(FULL, 0.0, EPOCHS, s) for s in range(3)]]
    runner = CellRunner(result.folder, config_of(result.folder), result.folder / "data.yaml")
    drawn, images = replicates(runner, list(done))
    a, b = ([done[cell]["map50_95"] for cell in side] for side in sides)
    pairs = np.stack([drawn[one] - drawn[other] for one, other in zip(*sides, strict=True)], axis=1)
    assert images == 25
    assert rows[PRUNED, UPDATES].versus_full == paired(a, b, pairs, images=25)
    assert max(row.versus_full.image_variance for row in result.rows if row.versus_full) > 0
    assert "over seeds and the 25 test images" in result.table()
    for cell, values in drawn.items():
        assert values.shape == (400,)
        assert abs(values.mean() - done[cell]["map50_95"]) < 2 * values.std()


def test_cells_of_earlier_versions_have_intervals_over_seeds_alone(tmp_path):
    result, _ = concluded(tmp_path, hits=False)
    assert {row.versus_full.images for row in result.rows if row.versus_full} == {0}
    assert "interval over seeds (t)" in result.table()


def test_every_arm_gets_a_verdict_at_equal_updates(comparison):
    result, _ = comparison
    lines = result.facts["verdicts"]
    assert [re.split(r" (?:costs|gains) ", line)[0] for line in lines] == [
        "dropping 10 % (one run)",
        "dropping 10 %",
        "dropping 10 %",
        "dropping 10 % (random)",
    ]
    assert "against a random choice" in lines[2]
    rows = {(row.arm, row.budget): row for row in result.rows}
    points = 100 * rows[PRUNED, UPDATES].versus_full.mean
    assert f" {points:+.1f} mAP" in lines[1] or (" 0.0 mAP" in lines[1] and abs(points) < 0.05)
    assert verdicts(result.rows, 0.1)[1].endswith("within your margin of 10")
    full = 100 * np.mean(rows[FULL, EPOCHS].map50_95)
    nothing = f"inconclusive, there are only {full:.1f} mAP to lose and your margin is 90"
    assert all(nothing in line for line in verdicts(result.rows, 0.9) if "random" not in line)
    assert all(line in result.report() for line in lines)


def test_hours_and_agreement_are_reported(comparison):
    result, _ = comparison
    hours, overlap, judged = result.facts["selection"]
    assert (hours["kind"], hours["share"], hours["break_even"]) == ("hours", SHARE, 11)  # 1.1 hours at 0.1 saved
    told = [(e["kind"], e["share"], e["agreement"], e["learned"]) for e in (overlap, judged)]
    assert told == [("overlap", SHARE, pytest.approx(4 / 6), True), ("judged", SHARE, 1.0, True)]
    assert overlap["line"].endswith("; 33% of it went by lot, each seed by its own")
    assert judged["line"].startswith("dropping 10 %: of the 4 images that one seed dropped for a reason another did so")
    assert all(entry["line"] in result.lines() for entry in (hours, overlap, judged))


def test_where_all_went_by_lot_no_choice_is_called_learned(tmp_path):
    result, _ = concluded(tmp_path, by_lot=6)
    _, overlap, judged = result.facts["selection"]
    assert overlap["learned"] is False
    assert judged["line"] == "dropping 10 %: 3 of 3 seeds had nothing against any image, all that went did so by lot"
    assert "not the data's" not in result.report()


def test_a_mask_that_learned_nothing_shows(tmp_path):
    result, _ = concluded(tmp_path, learned=False)
    assert result.facts["selection"][1]["learned"] is False
    assert "no more than chance" in result.report()


def test_figures_by_size_and_class_are_means_over_seeds(comparison):
    result, done = comparison
    row = next(row for row in result.rows if (row.arm, row.budget) == (RANDOM, EPOCHS))
    cells = [done[Cell(RANDOM, SHARE, EPOCHS, s)] for s in range(3)]
    assert row.by_size == pytest.approx({"small": np.mean([c["by_size"]["small"] for c in cells])})
    assert row.per_class["cell"][0] == pytest.approx(np.mean([c["per_class"]["cell"][0] for c in cells]))
    lines = class_table(result.rows).splitlines()
    boxes = {name: count for name, (_, _, count) in row.per_class.items()}
    order = sorted(boxes, key=lambda name: -boxes[name])
    assert lines[0] == "| arm | pruned | budget | small | " + " | ".join(f"{n} ({boxes[n]})" for n in order) + " |"
    assert len({line.count("|") for line in lines[: 2 + len(result.rows)]}) == 1


# compare.json

DOC = Path(__file__).resolve().parent.parent / "docs" / "compare-schema.md"


def documented() -> dict[str, set[str]]:
    """Heading → keys that its table names."""
    sections: dict[str, set[str]] = {}
    for section in DOC.read_text(encoding="utf-8").split("\n## ")[1:]:
        rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
        sections[section.splitlines()[0]] = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    return sections


def test_every_key_of_compare_json_is_documented_and_no_other(comparison):
    result, _ = comparison
    save(result)
    saved = json.loads((result.folder / "compare.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    doc = documented()
    assert doc["Top level"] == {*saved, "auto"}
    assert {frozenset(row) for row in saved["rows"]} == {frozenset(doc["rows"])}
    keys = {frozenset(doc["cells"] - ({"kept", "drawn"} if cell["arm"] != RUN else set())) for cell in saved["cells"]}
    assert {frozenset(cell) for cell in saved["cells"]} == keys
    intervals = [row[k] for row in saved["rows"] for k in ("versus_full", "versus_random") if row[k] is not None]
    assert {frozenset(found) for found in intervals} == {frozenset(doc["versus_full, versus_random"])}
    assert set().union(*saved["selection"]) == doc["selection"]
    assert saved["schema"] == 1
    assert saved["rows"][0]["versus_full"] is None


def test_one_seed_is_saved_as_null(tmp_path):
    config = config_of(tmp_path)
    runner = CellRunner(tmp_path, config, tmp_path / "data.yaml")
    done = {cell: finish(runner, cell) for chain in plan([SHARE], [0]) for cell in chain}
    result = conclude(runner, done, {**FACTS, "seeds": 1, "config": config.model_dump()})
    save(result)
    saved = json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert saved["rows"][1]["versus_full"]["low"] is None
    assert all("inconclusive, one seed says nothing" in line for line in saved["verdicts"])
    assert [entry["kind"] for entry in saved["selection"]] == ["hours"]


# The largest share within a margin


@pytest.mark.parametrize("limit", [0.0, 0.05, 0.22, 0.45, 0.9, 0.95])
def test_bisection_finds_the_largest_share_that_is_within(limit):
    found = auto.largest_within(lambda share: share <= limit)
    expected = max((s for s in auto.SHARES if s <= limit), default=None)
    assert found.share == expected
    assert len(found.tried) <= 5
    assert all(good == (share <= limit) for share, good in found.tried.items())


def test_no_share_is_tried_twice_and_the_answer_was_tried():
    calls = []
    found = auto.largest_within(lambda share: calls.append(share) or share < 0.33, shares=[0.1, 0.2, 0.3, 0.4, 0.5])
    assert len(calls) == len(set(calls))
    assert found.share == 0.3
    assert found.tried[0.3] is True


def test_the_answer_in_words():
    found = auto.largest_within(lambda share: share <= 0.2, shares=[0.1, 0.2, 0.3])
    assert auto.line(found, 0.005) == (
        "the largest share shown to stay within your margin of 0.5 is 20% (tried: 20% yes, 30% no)"
    )
    none = auto.largest_within(lambda share: False, shares=[0.1, 0.2, 0.3])
    assert auto.line(none, 0.01).startswith("no share was shown to stay within your margin of 1 (tried: 10% no")


# ---- cells from elsewhere ------------------------------------------------------------------------------------------


def test_cells_taken_from_a_file_make_the_same_comparison_in_an_empty_folder(comparison, tmp_path):
    result, done = comparison
    save(result)
    config = config_of(tmp_path)
    taken = read_elsewhere([result.folder / "compare.json"], config, "aa", "bb")
    assert taken.images == 25
    runner = CellRunner(tmp_path, config, tmp_path / "data.yaml", elsewhere=taken)
    again = conclude(runner, {cell: runner.finished(cell) for cell in done}, {**FACTS, "config": config.model_dump()})
    for before, now in zip(result.rows, again.rows, strict=True):
        assert (before.arm, before.map50_95, before.hours) == (now.arm, now.map50_95, now.hours)
        if before.versus_full is not None:
            assert now.versus_full.low == pytest.approx(before.versus_full.low, abs=2e-5)
            assert now.versus_full.images == 25
    assert again.facts["selection"] == result.facts["selection"]
    (line,) = taken.sources
    assert line == f"{len(done)} cells of compare.json: 2 cores; numpy x"


def test_what_is_here_comes_before_what_is_elsewhere(comparison, tmp_path):
    result, _ = comparison
    save(result)
    config = config_of(tmp_path)
    taken = read_elsewhere([result.folder / "compare.json"], config, "aa", "bb")
    runner = CellRunner(tmp_path, config, tmp_path / "data.yaml", elsewhere=taken)
    cell = Cell(FULL, 0.0, EPOCHS, 1)
    here = {**runner.finished(cell), "map50_95": 0.123}
    runner.home(cell).mkdir(parents=True)
    (runner.home(cell) / "cell.json").write_text(json.dumps(here))
    assert runner.finished(cell)["map50_95"] == 0.123


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": {"epochs": 99}}, "same recipe in .*, but it has other epochs"),
        ({"config": {"epochs": 99, "prune": {"tau": 0.123}}}, r"other epochs, prune\.tau"),
        ({"config": {"prune": {"dynamic": True}}}, r"other prune\.dynamic"),
        ({"config": {"prune": {"validate_all": True}}}, r"other prune\.validate_all"),
        ({"set_print": "cc"}, "same images and labels"),
        ({"cells": [{"arm": "full"}]}, "a cell lacks 'share'"),
        ({"cells": None}, "Expected the compare.json of a finished comparison"),
    ],
)
def test_a_file_that_is_not_of_this_comparison_is_refused_in_a_line(comparison, tmp_path, change, words):
    result, _ = comparison
    save(result)
    content = json.loads((result.folder / "compare.json").read_text(encoding="utf-8"))
    for key, value in change.items():
        if key == "config":
            for name, item in value.items():
                content[key][name] = {**content[key][name], **item} if isinstance(item, dict) else item
        else:
            content[key] = value
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=words) as caught:
        read_elsewhere([tmp_path / "other.json"], config_of(tmp_path), "aa", "bb")
    assert "\n" not in str(caught.value)


def test_of_another_method_stand_the_cells_that_do_not_hang_on_it(comparison, tmp_path):
    result, done = comparison
    save(result)
    file, config = result.folder / "compare.json", config_of(tmp_path, **{"prune.tau": 0.123})
    plain = {cell for cell in done if cell.arm not in (RUN, PRUNED)}
    assert FULL in {cell.arm for cell in plain}
    assert plain < set(done)
    taken = read_elsewhere([file], config, "aa", "bb")
    assert set(taken.cells) == plain
    (line,) = taken.sources
    said = "that do not hang on prune.tau, which it has otherwise"
    assert line == f"{len(plain)} cells of compare.json {said}: 2 cores; numpy x"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["cells"] = [cell for cell in content["cells"] if cell["arm"] in (RUN, PRUNED)]
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"same recipe in .*, but it has other prune\.tau"):
        read_elsewhere([file], config, "aa", "bb")


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_file_that_is_no_comparison_is_refused_in_a_line(tmp_path, text):
    (tmp_path / "no.json").write_text(text)
    for file in ("no.json", "missing.json"):
        with pytest.raises(ConfigError, match=r"Expected the compare.json of a finished comparison"):
            read_elsewhere([tmp_path / file], config_of(tmp_path), "aa", "bb")


def test_place_device_and_name_make_no_difference(comparison, tmp_path):
    result, done = comparison
    save(result)
    config = config_of(tmp_path).model_copy(update={"data": "there/data.yaml", "device": "0", "name": "x"})
    assert len(read_elsewhere([result.folder / "compare.json"], config, "aa", "bb").cells) == len(done)


def test_what_a_run_had_as_much_of_is_told_by_its_cell_and_not_by_the_recipe(comparison, tmp_path):
    """And what it chose comes before it is spent, so that lists cut from it stand."""
    result, done = comparison
    save(result)
    config = config_of(tmp_path, **{"prune.budget": "updates"})
    taken = read_elsewhere([result.folder / "compare.json"], config, "aa", "bb").cells
    assert len(taken) == len(done)
    runner = CellRunner(tmp_path, config, tmp_path / "data.yaml")
    chosen = runner.choosing(SHARE, 0)
    assert (chosen.budget, chosen in taken) == (UPDATES, False)
    assert Cell(RUN, SHARE, EPOCHS, 0) in taken


def test_settings_of_a_dynamic_training_make_no_difference_where_none_is(comparison, tmp_path):
    """Of an earlier version, say, that did not have one of them yet."""
    result, done = comparison
    save(result)
    content = json.loads((result.folder / "compare.json").read_text(encoding="utf-8"))
    del content["config"]["prune"]["dynamic_rescale"]
    content["config"]["prune"]["dynamic_share"] = 0.9
    (tmp_path / "earlier.json").write_text(json.dumps(content))
    config = config_of(tmp_path)
    assert len(read_elsewhere([tmp_path / "earlier.json"], config, "aa", "bb").cells) == len(done)
    content["config"]["prune"]["dynamic"] = True
    (tmp_path / "dynamic.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"other prune\.dynamic, prune\.dynamic_share, prune\.dynamic_rescale"):
        read_elsewhere([tmp_path / "dynamic.json"], config, "aa", "bb")


def test_a_given_list_is_taken_only_where_it_is_the_same(comparison, tmp_path):
    result, _ = comparison
    save(result)
    content = json.loads((result.folder / "compare.json").read_text(encoding="utf-8"))
    content["cells"] = [{**content["cells"][0], "arm": "given list", "share": 0.1}]
    (tmp_path / "list.json").write_text(json.dumps(content))
    counts = [len(read_elsewhere([tmp_path / "list.json"], config_of(tmp_path), "aa", p).cells) for p in ("bb", "cc")]
    assert counts == [1, 0]


@pytest.mark.parametrize("kept", [4 / 5, 165 / 205, 2 / 3])
def test_a_given_list_is_taken_however_its_share_was_worked_out(comparison, tmp_path, kept):
    """Files of before 2026-11-29 have 1 less the kept share, `0.19999999999999996` of a fifth."""
    result, _ = comparison
    save(result)
    content = json.loads((result.folder / "compare.json").read_text(encoding="utf-8"))
    content["cells"] = [{**content["cells"][0], "arm": LISTED, "share": 1 - kept}]
    (tmp_path / "list.json").write_text(json.dumps(content))
    (cell,) = read_elsewhere([tmp_path / "list.json"], config_of(tmp_path), "aa", "bb").cells
    total = 615
    assert cell.share == round((total - round(kept * total)) / total, DIGITS)
