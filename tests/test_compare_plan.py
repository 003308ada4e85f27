"""The parts of a comparison that train nothing: its plan, folders and lists, the pairing by seed, the table."""

import json
import math
import shutil
import sys
from itertools import chain, permutations
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import build_set, training_images
from yolo_adapruner.config import RunConfig, load
from yolo_adapruner.core.selection import select_kept
from yolo_adapruner.data import export
from yolo_adapruner.engine.splits import content_print, load_data
from yolo_adapruner.errors import ConfigError, RunError
from yolo_adapruner.study import compare as comparing
from yolo_adapruner.study import ground
from yolo_adapruner.study.arms import FULL, PLAIN, PRUNED, RANDOM, RUN
from yolo_adapruner.study.baselines import equal_updates_epochs
from yolo_adapruner.study.cells import CellRunner
from yolo_adapruner.study.compare import compare
from yolo_adapruner.study.conclude import Comparison, save
from yolo_adapruner.study.grid import plan
from yolo_adapruner.study.ground import judge_data
from yolo_adapruner.study.interval import Difference
from yolo_adapruner.study.table import EPOCHS, UPDATES, Cell, summarise, verdicts

# Equal updates

UPDATES_BY_HAND = [
    # epochs, images, kept, batch, epochs on the kept ones
    (30, 360, 324, 16, 33),  # 23 batches an epoch against 21: 690 / 21 = 32.9
    (30, 360, 72, 16, 138),  # 5 batches
    (40, 205, 205, 16, 40),  # nothing pruned
    (10, 100, 50, 10, 20),
    (3, 16, 15, 16, 3),  # still one batch
    (30, 17, 16, 16, 60),  # the last batch of one image counts as a batch
]


@pytest.mark.parametrize(("epochs", "images", "kept", "batch", "expected"), UPDATES_BY_HAND)
def test_epochs_for_equal_updates_by_hand(epochs, images, kept, batch, expected):
    assert equal_updates_epochs(epochs, images=images, kept=kept, batch=batch) == expected


@settings(deadline=None, derandomize=True)
@given(epochs=st.integers(3, 300), images=st.integers(2, 5000), kept=st.floats(0.05, 1), batch=st.integers(2, 64))
def test_updates_differ_by_at_most_half_an_epoch(epochs, images, kept, batch):
    left = max(1, round(kept * images))
    full, less = -(-images // batch), -(-left // batch)
    found = equal_updates_epochs(epochs, images=images, kept=left, batch=batch)
    assert abs(found * less - epochs * full) <= less / 2
    assert found >= epochs


# The plan


@pytest.mark.parametrize("shares", [[0.1], [0.05, 0.3, 0.95]], ids=str)
@pytest.mark.parametrize("seeds", [[0], [3, 4, 5]], ids=str)
def test_the_grid_is_complete_and_each_cell_comes_after_what_it_builds_on(shares, seeds):
    chains = plan(shares, seeds)
    cells = list(chain.from_iterable(chains))
    assert len(cells) == len(set(cells)) == len(seeds) * (1 + 5 * len(shares))
    for seed in seeds:
        assert Cell(FULL, 0.0, EPOCHS, seed) in cells
        for share in shares:
            assert Cell(RUN, share, EPOCHS, seed) in cells
            for arm in (PRUNED, RANDOM):
                for budget in (EPOCHS, UPDATES):
                    assert Cell(arm, share, budget, seed) in cells
    for one in chains:  # chains may run side by side: what a cell needs is in its own
        for number, cell in enumerate(one):
            if cell.arm in (PRUNED, RANDOM):
                assert Cell(RUN, cell.share, EPOCHS, cell.seed) in one[:number]


def test_a_run_that_chooses_may_have_as_many_updates_as_full():
    chains = plan([0.1, 0.3], [0], arms=(PRUNED,), budgets=(UPDATES,), run_budget=UPDATES)
    runs = [one[0] for one in chains if one[0].arm == RUN]
    assert [(cell.budget, cell.name) for cell in runs] == [
        (UPDATES, "one-run-0.1-updates-s0"),
        (UPDATES, "one-run-0.3-updates-s0"),
    ]
    assert chains[0] == [Cell(FULL, 0.0, EPOCHS, 0)]


def test_cells_have_folder_names_of_their_own():
    names = [cell.name for cell in chain.from_iterable(plan([0.05, 0.1, 0.5], range(3)))]
    assert len(set(names)) == len(names)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-") for name in names)
    assert Cell(RUN, 0.1, EPOCHS, 0).name == "one-run-0.1-s0"
    assert Cell(PRUNED, 0.25, UPDATES, 2).name == "pruned-0.25-updates-s2"
    assert Cell(FULL, 0.0, EPOCHS, 1).name == "full-s1"


@pytest.mark.parametrize("arm", [PRUNED, RANDOM])
def test_an_arm_has_its_verdict_at_equal_updates_or_else_at_equal_epochs(arm):
    figures = {"map50_95": 0.5, "map50": 0.7, "images": 90, "updates": 100, "hours": 0.1}
    found = {Cell(FULL, 0.0, EPOCHS, s): figures for s in (0, 1)}
    found |= {Cell(arm, 0.1, EPOCHS, s): {**figures, "map50_95": 0.4} for s in (0, 1)}
    (alone,) = verdicts(summarise(found), 0.005)
    assert "costs -10.0" in alone
    found |= {Cell(arm, 0.1, UPDATES, s): {**figures, "map50_95": 0.6} for s in (0, 1)}
    (both,) = verdicts(summarise(found), 0.005)
    assert "gains +10.0" in both


# Pairing by seed

# seed -> mAP50-95; the seeds differ by far more than the arms, so that a wrong pair shows at once
MAPS = {
    Cell(FULL, 0.0, EPOCHS, 0): (0, 0.30),
    Cell(FULL, 0.0, EPOCHS, 1): (1, 0.50),
    Cell(RUN, 0.1, EPOCHS, 0): (0, 0.29),
    Cell(RUN, 0.1, EPOCHS, 1): (1, 0.49),
    Cell(PRUNED, 0.1, EPOCHS, 0): (0, 0.31),
    Cell(PRUNED, 0.1, EPOCHS, 1): (1, 0.53),
    Cell(PRUNED, 0.1, UPDATES, 0): (0, 0.32),
    Cell(PRUNED, 0.1, UPDATES, 1): (1, 0.52),
    Cell(RANDOM, 0.1, EPOCHS, 0): (0, 0.30),
    Cell(RANDOM, 0.1, EPOCHS, 1): (1, 0.50),
    Cell(RANDOM, 0.1, UPDATES, 0): (0, 0.28),
    Cell(RANDOM, 0.1, UPDATES, 1): (1, 0.48),
}


def figures(cell: Cell, map50_95: float) -> dict:
    images = 360 if cell.arm == FULL else 324
    updates = 690 + cell.seed if cell.budget == EPOCHS else 700
    return {"map50_95": map50_95, "map50": map50_95 + 0.2, "images": images, "updates": updates, "hours": 0.25}


def bounds(found: Difference) -> tuple[float, float, float]:
    return found.mean, found.low, found.high


def done_in(order: list[Cell]) -> dict[Cell, dict]:
    return {cell: figures(cell, MAPS[cell][1]) for cell in order}


ORDERS = {
    "as planned": list(MAPS),
    "backwards": list(MAPS)[::-1],
    "seeds turned within an arm": sorted(
        MAPS, key=lambda cell: (cell.arm, cell.seed if cell.arm == FULL else -cell.seed)
    ),
}


@pytest.mark.parametrize("order", ORDERS)
def test_differences_are_paired_by_seed_whatever_finished_first(order):
    rows = {(row.arm, row.budget): row for row in summarise(done_in(ORDERS[order]))}

    # by hand: pruned - full is 0.01 and 0.03: mean 0.02, standard error 0.01, t(0.975, 1 degree of freedom) 12.7062
    pruned = rows[PRUNED, EPOCHS]
    assert bounds(pruned.versus_full) == pytest.approx((0.02, 0.02 - 0.127062, 0.02 + 0.127062), abs=1e-6)
    assert bounds(pruned.versus_random) == pytest.approx((0.02, 0.02 - 0.127062, 0.02 + 0.127062), abs=1e-6)
    # random at equal updates is its own baseline: 0.04 and 0.04, no spread
    equal = rows[PRUNED, UPDATES]
    assert bounds(equal.versus_full) == pytest.approx((0.02, 0.02, 0.02), abs=1e-9)
    assert bounds(equal.versus_random) == pytest.approx((0.04, 0.04, 0.04), abs=1e-9)
    assert bounds(rows[RUN, EPOCHS].versus_full) == pytest.approx((-0.01, -0.01, -0.01), abs=1e-9)
    assert bounds(rows[RANDOM, UPDATES].versus_full) == pytest.approx((-0.02, -0.02, -0.02), abs=1e-9)

    assert rows[FULL, EPOCHS].versus_full is None
    assert [key for key, row in rows.items() if row.versus_random is not None] == [(PRUNED, EPOCHS), (PRUNED, UPDATES)]
    assert pruned.map50_95 == [0.31, 0.53]
    assert pruned.map50 == pytest.approx([0.51, 0.73])
    assert (pruned.images, pruned.updates, pruned.hours) == (324, 690.5, 0.5)


def test_rows_stand_in_one_order_whatever_finished_first():
    keys = [
        [(row.share, row.arm, row.budget) for row in summarise(done_in(list(order)))]
        for order in list(permutations(list(MAPS)[::2]))[:50]
    ]
    assert all(found == keys[0] for found in keys)
    assert [key[1] for key in keys[0]] == [FULL, RUN, PRUNED, PRUNED, RANDOM, RANDOM]
    assert [key[2] for key in keys[0]] == [EPOCHS, EPOCHS, EPOCHS, UPDATES, EPOCHS, UPDATES]


def test_one_seed_has_no_interval():
    rows = summarise({cell: figures(cell, value) for cell, (seed, value) in MAPS.items() if seed == 0})
    pruned = next(row for row in rows if (row.arm, row.budget) == (PRUNED, EPOCHS))
    mean, low, high = bounds(pruned.versus_full)
    assert mean == pytest.approx(0.01)
    assert math.isnan(low)
    assert math.isnan(high)


# The table


def comparison(seeds: int = 2, **facts) -> Comparison:
    done = {cell: figures(cell, value) for cell, (seed, value) in MAPS.items() if seed < seeds}
    defaults = {
        "config": load("yolov3-tiny", {"data": "/some/where/digits.yaml", "epochs": 30, "imgsz": 160}).model_dump(),
        "seeds": seeds,
        "reported_on": "test split",
        "hardware": "2 cores",
        "jobs": 1,
        "largest_gap_to_ultralytics": 0.00123,
    }
    return Comparison(Path("x"), summarise(done), {**defaults, **facts})


def test_the_table_has_every_arm_and_both_budgets_in_points():
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in comparison().table().splitlines()]
    table = [row for row in rows if len(row) > 1]
    assert table[0][:5] == ["arm", "pruned", "budget", "images", "updates"]
    assert len({len(row) for row in table}) == 1
    arms = [(row[0], row[1], row[2]) for row in table[2:]]
    assert arms == [
        (FULL, "0%", EPOCHS),
        (RUN, "10%", EPOCHS),
        (PRUNED, "10%", EPOCHS),
        (PRUNED, "10%", UPDATES),
        (RANDOM, "10%", EPOCHS),
        (RANDOM, "10%", UPDATES),
    ]
    assert table[4] == [
        *(PRUNED, "10%", EPOCHS, "324", "690", "42.0 ± 15.6", "62.0 ± 15.6"),
        *("+2.0 [-10.7, +14.7]", "+2.0 [-10.7, +14.7]"),
    ]
    assert table[2][-2:] == ["–", "–"]


NOTES = [
    # name, seeds, facts, words that must and must not be in the note
    ("what, where and on what", 2, {}, ["test split", "over 2 seeds", "yolov3-tiny.yaml on digits.yaml"], ["/some"]),
    ("how", 2, {}, ["160 px", "30 epochs", "2 cores", "pycocotools", "0.12 points"], ["side by side"]),
    ("one seed", 1, {}, ["over 1 seed;"], ["1 seeds", "nan"]),
    ("side by side", 2, {"jobs": 3}, ["3 cells side by side"], []),
    ("half of the validation images", 2, {"reported_on": "seeded half"}, ["seeded half"], ["test split"]),
]


@pytest.mark.parametrize(("seeds", "facts", "there", "absent"), [c[1:] for c in NOTES], ids=[c[0] for c in NOTES])
def test_the_note_says_what_a_claim_needs(seeds, facts, there, absent):
    text = comparison(seeds, **facts).table()
    assert [word for word in there if word not in text] == []
    assert [word for word in absent if word in text] == []


def test_an_arm_that_draws_anew_is_told_by_what_it_visited():
    cells = {cell: figures(cell, value) for cell, (seed, value) in MAPS.items()}
    for arm, share, images in (("infobatch", 0.1, (320, 328)), ("afss", 0.0, (180, 180))):
        for seed in (0, 1):
            cell = Cell(arm, share, UPDATES if share else EPOCHS, seed)
            cells[cell] = {**figures(cell, 0.4), "images": images[seed]}
    rows = summarise(cells)
    text = Comparison(Path("x"), rows, comparison().facts).table()
    assert "| afss | 50% | equal epochs | 180 |" in text
    assert "| infobatch | 10% | equal updates | 324 |" in text
    lines = [line for line in verdicts(rows, 0.5) if "visiting" in line]
    assert [line.split(" costs ")[0].split(" gains ")[0] for line in lines] == [
        "visiting 50 % of the images an epoch (afss)",
        "visiting 90 % of the images an epoch (infobatch)",
        "visiting 90 % of the images an epoch (infobatch)",
    ]
    assert "against a random choice" in lines[2]


# Arguments

WRONG = [
    ("a share of 0", {"prune": 0}),
    ("a share of 1", {"prune": [0.1, 1.0]}),
    ("a negative share", {"prune": -0.1}),
    ("a share that is no number", {"prune": float("nan")}),
    ("no share", {"prune": []}),
    ("no seed", {"seeds": 0}),
    ("no job", {"jobs": 0}),
]


@pytest.mark.parametrize("arguments", [c[1] for c in WRONG], ids=[c[0] for c in WRONG])
def test_arguments_that_cannot_be_are_refused_before_anything_is_written(arguments, tmp_path):
    with pytest.raises(ConfigError, match=r"Expected prune shares in \(0, 0.95\].* seeds >= 1"):
        compare("yolov3-tiny", project=str(tmp_path / "runs"), **arguments)
    assert not (tmp_path / "runs").exists()


OTHER_WRONG = [
    ("a word for a share", {"prune": "most"}, "Expected prune shares or auto, but got 'most'"),
    ("no such budget", {"budget": "hours"}, "Expected a budget of both, epochs, updates, but got hours"),
    ("a budget of a search", {"prune": "auto", "budget": "epochs"}, "Expected no budget beside prune=auto, which"),
    ("a negative margin", {"margin": -0.1}, "Expected a margin of 0 to 100 points of mAP, but got -0.1"),
    ("no margin", {"margin": float("nan")}, "Expected a margin of 0 to 100 points"),
    ("no such engine", {"engine": "fast"}, "Expected pycocotools or faster-coco-eval as engine, but got 'fast'"),
    ("an unknown arm", {"arms": ["random", "best"]}, "Expected arms out of pruned, .*, but got best"),
]


@pytest.mark.parametrize(("arguments", "words"), [c[1:] for c in OTHER_WRONG], ids=[c[0] for c in OTHER_WRONG])
def test_what_else_cannot_be_is_refused(arguments, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        compare("yolov3-tiny", project=str(tmp_path / "runs"), **arguments)
    assert not (tmp_path / "runs").exists()


# The folder


def config_of(project: Path, **overrides) -> RunConfig:
    return load("yolov3-tiny", {"project": str(project), **overrides})


def folder_of(*terms, **more):
    with ground.folder_of(*terms, **more) as folder:
        return folder


def test_a_comparison_without_a_name_gets_a_new_numbered_folder_each_time(tmp_path):
    config = config_of(tmp_path / "a" / "b")
    found = [folder_of(config, [0.1], 3) for _ in range(3)]
    assert found == [tmp_path / "a" / "b" / name for name in ("compare", "compare2", "compare3")]
    assert all((folder / "plan.json").is_file() for folder in found)


def test_a_named_comparison_goes_on_in_its_folder(tmp_path):
    config = config_of(tmp_path, name="mine", train={"made": yaml.safe_load("2024-01-31")})
    first = folder_of(config, [0.1, 0.3], 3)
    assert first == tmp_path / "mine"
    assert folder_of(config, [0.1, 0.3], 3) == first


def test_a_set_is_the_same_by_whatever_link_it_is_reached(tmp_path):
    file = build_set(tmp_path / "set", train=3, val=2)
    (tmp_path / "link").symlink_to(tmp_path / "set")
    shutil.copytree(tmp_path / "set", tmp_path / "copy")
    prints = []
    for folder in ("set", "link", "copy"):
        content = {**yaml.safe_load(file.read_text()), "path": str(tmp_path / folder)}
        (tmp_path / f"{folder}.yaml").write_text(yaml.safe_dump(content))
        prints.append(content_print(load_data(str(tmp_path / f"{folder}.yaml"))))
    assert len(set(prints)) == 1
    image = training_images(tmp_path / "copy" / "data.yaml")[0]
    image.rename(image.with_stem("other"))
    assert content_print(load_data(str(tmp_path / "copy.yaml"))) != prints[0]


def test_other_arms_make_another_comparison_and_the_usual_ones_do_not(tmp_path):
    terms = comparing._terms(False, ("pruned", "random"), ())
    assert terms == {}
    assert comparing._terms(False, ("pruned",), ()) == {"arms": ["pruned"]}
    assert comparing._terms(True, ("pruned",), ()) == {"prune": "auto"}
    one, other = (comparing._terms(False, ("pruned", "random"), paths)["kept"] for paths in (("/a",), ("/b",)))
    assert one != other


MORE = [
    # name, shares, seeds, other terms: all that stands there and more
    ("the same", [0.1, 0.3], 3, {"images": "a"}),
    ("shares in another order", [0.3, 0.1], 3, {"images": "a"}),
    ("another share", [0.1, 0.3, 0.5], 3, {"images": "a"}),
    ("more seeds", [0.1, 0.3], 4, {"images": "a"}),
    ("further arms", [0.1, 0.3], 3, {"images": "a", "arms": ["pruned", "random", "forgetting"]}),
    ("a given list", [0.1, 0.3], 3, {"images": "a", "kept": "x"}),
    ("all of it", [0.1, 0.3, 0.5], 5, {"images": "a", "kept": "x", "arms": ["pruned", "random", "el2n"]}),
]


@pytest.mark.parametrize(("shares", "seeds", "more"), [c[1:] for c in MORE], ids=[c[0] for c in MORE])
def test_a_comparison_goes_on_in_the_folder_of_a_part_of_it(tmp_path, shares, seeds, more):
    config = config_of(tmp_path, name="mine")
    folder = folder_of(config, [0.1, 0.3], 3, images="a")
    assert folder_of(config, shares, seeds, **more) == folder
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    assert plan == {"config": config.model_dump(), "shares": shares, "seeds": seeds, **more}


def test_a_folder_that_was_taken_further_is_no_longer_the_part(tmp_path):
    config = config_of(tmp_path, name="mine")
    for seeds in (3, 5):
        folder_of(config, [0.1], seeds)
    with pytest.raises(ConfigError, match="seeds 5"):
        folder_of(config, [0.1], 3)


def test_every_cell_of_a_part_is_a_cell_of_the_whole():
    part = {cell.name for one in plan([0.1], range(2)) for cell in one}
    whole = {cell.name for one in plan([0.3, 0.1], range(3), arms=(*PLAIN, "forgetting")) for cell in one}
    assert part < whole


def test_a_plan_of_an_earlier_version_knows_no_images_and_is_gone_on_with(tmp_path):
    config = config_of(tmp_path, name="mine")
    assert folder_of(config, [0.1], 3, images="a") == folder_of(config, [0.1], 3, images="a")
    (tmp_path / "mine" / "plan.json").write_text(
        json.dumps({"config": config.model_dump(), "shares": [0.1], "seeds": 3}, default=str)
    )
    assert folder_of(config, [0.1], 3, images="b") == tmp_path / "mine"
    with pytest.raises(ConfigError, match="other images"):
        folder_of(config, [0.1], 3, images="a")


OTHERS = [
    # name, what differs from epochs 30, shares 0.1 and 0.3, 3 seeds, a given list x and images a; how it is said
    ("a share less", {}, [0.1, 0.2], 3, {}, "shares 0.3"),
    ("fewer shares", {}, [0.1], 3, {}, "shares 0.3"),
    ("fewer seeds", {}, [0.1, 0.3], 2, {}, "seeds 3"),
    ("an arm less", {}, [0.1, 0.3], 3, {"arms": ["pruned", "el2n"]}, "arms random"),
    ("another list", {}, [0.1, 0.3], 3, {"kept": "y"}, "given list another"),
    ("other images", {}, [0.1, 0.3], 3, {"images": "b"}, "other images"),
    ("a search", {}, [0.1, 0.3], 3, {"prune": "auto"}, "shares found in another way"),
    ("other epochs", {"epochs": 31}, [0.1, 0.3], 3, {}, "other epochs"),
    ("another setting of the method", {"prune": {"tau": 0.3}}, [0.1, 0.3], 3, {}, "other prune"),
    ("another setting of Ultralytics'", {"mosaic": 0.3}, [0.1, 0.3], 4, {}, "other train"),
]


@pytest.mark.parametrize(
    ("overrides", "shares", "seeds", "more", "words"), [c[1:] for c in OTHERS], ids=[c[0] for c in OTHERS]
)
def test_a_folder_of_another_comparison_is_not_gone_on_with(tmp_path, overrides, shares, seeds, more, words):
    terms = {"kept": "x", "images": "a"}
    folder_of(config_of(tmp_path, name="mine"), [0.1, 0.3], 3, **terms)
    held = (tmp_path / "mine" / "plan.json").read_bytes()
    match = f"mine to hold this comparison, or a part of it, but it holds another .{words}.: choose another --name"
    with pytest.raises(ConfigError, match=match):
        folder_of(config_of(tmp_path, name="mine", **overrides), shares, seeds, **{**terms, **more})
    assert (tmp_path / "mine" / "plan.json").read_bytes() == held


def test_a_search_goes_on_from_its_own_share_alone(tmp_path):
    config = config_of(tmp_path, name="mine")
    assert folder_of(config, [0.1], 3, prune="auto") == folder_of(config, [0.1], 4, prune="auto")
    with pytest.raises(ConfigError, match="shares found in another way"):
        folder_of(config, [0.1, 0.2], 4, prune="auto")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"], ids=repr)
def test_a_torn_plan_is_another_comparison(tmp_path, content):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "plan.json").write_bytes(content)
    with pytest.raises(ConfigError, match="holds another"):
        folder_of(config_of(tmp_path, name="mine"), [0.1], 3)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    assert folder_of(config_of(tmp_path, name="mine"), [0.1], 3) == tmp_path / "mine2"
    assert not list((tmp_path / "mine").iterdir())


def test_a_file_in_the_way_of_the_folder_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError, match=r"Expected a writable place for .*runs.*choose another --name"):
        folder_of(config_of(tmp_path / "runs"), [0.1], 3)


def test_without_ray_nothing_is_made(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # an import fails
    with pytest.raises(ConfigError, match=r"^Expected Ray for --ray, but it is not installed: pip install"):
        compare("run.yaml", prune=0.5, seeds=2, ray="local", project=home / "runs", batch=2)
    assert not (home / "runs").exists()


# What chooses and what reports


@pytest.fixture
def splits(monkeypatch) -> ModuleType:
    """In place of the engine's, which would import Ultralytics: a val split of 11 images."""
    fake = ModuleType("yolo_adapruner.engine.splits")
    fake.paths = [f"/set/val/{i:02}.jpg" for i in range(11)]
    fake.split_images = lambda data, split: fake.paths
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    return fake


DATA = {"path": Path("/set"), "train": "/set/train", "val": "/set/val", "names": {0: "Größe"}, "nc": 1}


def test_a_test_split_is_reported_on_and_validation_chooses(tmp_path):
    data = {**DATA, "test": "/set/test", "download": "x", "yaml_file": "d.yaml", "minival": None}
    file, reported_on = judge_data(tmp_path, data, seed=0)
    assert yaml.safe_load(file.read_text(encoding="utf-8")) == {**DATA, "path": "/set", "test": "/set/test"}
    assert reported_on == "test split"


@pytest.mark.parametrize("test", [None, "", "absent"])
def test_without_a_test_split_one_half_chooses_and_the_other_reports(tmp_path, splits, test):
    data = DATA if test == "absent" else {**DATA, "test": test}
    file, reported_on = judge_data(tmp_path, data, seed=0)
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    choose, report = (Path(content[key]).read_text().splitlines() for key in ("val", "test"))
    assert (len(choose), len(report)) == (5, 6)
    assert sorted(choose + report) == splits.paths
    assert choose != splits.paths[:5]  # drawn, not the first of the list
    assert reported_on == "seeded half of the validation images (6 of 11)"
    assert (content["train"], content["names"]) == ("/set/train", {0: "Größe"})


def test_the_halves_are_a_function_of_the_seed(tmp_path, splits):
    def halves(seed: int) -> str:
        judge_data(tmp_path, DATA, seed)
        return (tmp_path / "choose.txt").read_text()

    assert halves(0) == halves(0)
    assert len({halves(seed) for seed in range(5)}) > 1


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_to_judge_by_are_refused(tmp_path, splits, count):
    splits.paths = splits.paths[:count]
    with pytest.raises(ConfigError, match=r"a test split or at least two validation images, but d.yaml has neither"):
        judge_data(tmp_path, {**DATA, "yaml_file": "d.yaml"}, seed=0)


# The lists the arms train on


@pytest.fixture
def folder(tmp_path) -> Path:
    """A comparison's folder with its data file and a finished run of 40 images at share 0.25 and seed 1."""
    home = tmp_path / "cells" / Cell(RUN, 0.25, EPOCHS, 1).name
    home.mkdir(parents=True)
    paths = [f"/set/train/{i:02}.jpg" for i in range(40)]
    logits = np.random.default_rng(0).normal(size=40)
    outcome = export.Outcome(paths, select_kept(logits, 0.25), {"logit": logits})
    manifest = {"seed": 1, "prune": {"share": 0.25}}
    export.write(home, outcome, source=Path("/set/d.yaml"), data=DATA, manifest=manifest)
    judge_data(tmp_path, {**DATA, "test": "/set/test"}, seed=0)
    return tmp_path


ARMS = [
    # arm, budget, epochs: 30 of 40 images, batch 8: 5 batches an epoch against 4
    (PRUNED, EPOCHS, 12),
    (PRUNED, UPDATES, 15),
    (RANDOM, EPOCHS, 12),
    (RANDOM, UPDATES, 15),
]


@pytest.mark.parametrize(("arm", "budget", "epochs"), ARMS)
def test_an_arm_trains_on_its_list_for_its_budget(folder, arm, budget, epochs):
    config = config_of(folder, epochs=12, batch=8)
    file, found = CellRunner(folder, config, folder / "data.yaml").list_arm(Cell(arm, 0.25, budget, 1))
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    images = Path(content["train"]).read_text().splitlines()
    kept = (folder / "cells" / "one-run-0.25-s1" / "kept.txt").read_text().splitlines()
    assert found == epochs
    assert len(images) == len(set(images)) == 30
    assert set(images) <= {f"/set/train/{i:02}.jpg" for i in range(40)}
    assert (images == kept) is (arm == PRUNED)
    base = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))
    assert {k: v for k, v in content.items() if k != "train"} == {k: v for k, v in base.items() if k != "train"}


def test_both_budgets_of_an_arm_train_on_the_same_images(folder):
    config = config_of(folder, epochs=12, batch=8)
    for arm in (PRUNED, RANDOM):
        lists = []
        for budget in (EPOCHS, UPDATES):
            file, _ = CellRunner(folder, config, folder / "data.yaml").list_arm(Cell(arm, 0.25, budget, 1))
            lists.append(Path(yaml.safe_load(file.read_text(encoding="utf-8"))["train"]).read_text())
        assert lists[0] == lists[1]


def test_a_cell_whose_run_is_missing_says_so(folder):
    with pytest.raises(RunError, match=r"one-run-0\.5-s1, but it has no manifest.json"):
        CellRunner(folder, config_of(folder), folder / "data.yaml").list_arm(Cell(PRUNED, 0.5, EPOCHS, 1))


def test_a_finished_cell_is_not_trained_again(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "yolo_adapruner.engine.run", None)  # an import would fail
    cell = Cell(FULL, 0.0, EPOCHS, 1)
    home = folder / "cells" / cell.name
    home.mkdir()
    (home / "cell.json").write_text(json.dumps(figures(cell, 0.5)))
    assert CellRunner(folder, config_of(folder), folder / "data.yaml")(cell) == figures(cell, 0.5)


def test_the_result_is_saved_as_numbers_and_as_a_table(tmp_path):
    done = done_in(list(MAPS))
    facts = comparison(made=yaml.safe_load("2024-01-31")).facts
    result = Comparison(tmp_path, comparison().rows, facts, list(done.values()))
    save(result)
    saved = json.loads((tmp_path / "compare.json").read_text(encoding="utf-8"))
    assert [row["arm"] for row in saved["rows"]] == [row.arm for row in result.rows]
    assert saved["cells"] == list(done.values())
    assert (tmp_path / "compare.md").read_text(encoding="utf-8") == result.report() + "\n"
