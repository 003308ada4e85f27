"""The arms by name: from a run's readings to the set each keeps, and the files a cell trains from."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.test_compare_plan import DATA, config_of, figures
from yolo_adapruner.core.selection import drop_count, select_kept
from yolo_adapruner.data import export
from yolo_adapruner.errors import ConfigError, DataError, RunError
from yolo_adapruner.study import arms, cells
from yolo_adapruner.study.arms import FULL, LISTED, LISTS, PRUNED, RANDOM, WATCHING, Material, choose, groups
from yolo_adapruner.study.cells import CellRunner
from yolo_adapruner.study.compare import _to_watch
from yolo_adapruner.study.grid import plan
from yolo_adapruner.study.ground import listed_images
from yolo_adapruner.study.table import EPOCHS, UPDATES, Cell

N = 40
PATHS = [f"/set/train/{i:02}.jpg" for i in range(N)]


def outcome(**changes: np.ndarray) -> export.Outcome:
    """A run at share 0.25 in which image i is harder than image i - 1 in every reading, and its logit lower."""
    rise = np.linspace(0.1, 0.9, N)
    columns = {"logit": -rise, "localisation": rise, "presence": rise, "missing": rise}
    columns |= {"similarity": rise, "twin": np.full(N, -1)}
    columns |= {"forgotten": rise, "margin": -rise, "early_error": rise, **changes}
    return export.Outcome(PATHS, select_kept(-rise, 0.25), columns)


def material(share: float = 0.25, run: export.Outcome | None = None, **more) -> Material:
    classes = lambda paths: [[0]] * 30 + [[1]] * 10  # noqa: E731
    return Material(run or outcome(), 0.25, share, seed=3, classes=classes, **more)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.8])
@pytest.mark.parametrize("arm", LISTS)
def test_every_arm_keeps_as_many(arm, share):
    assert choose(arm, material(share)).sum() == N - drop_count(N, share)


def test_arms_are_named_after_what_they_keep():
    easy, hard = np.arange(N) < 30, np.arange(N) >= 10
    assert (choose("lowest-loss", material()) == easy).all()
    assert (choose("highest-loss", material()) == hard).all()
    assert (choose("most-error", material()) == hard).all()
    assert (choose("el2n", material()) == hard).all()
    assert (choose("forgetting", material()) == hard).all()
    assert (choose("area-under-margin", material()) == easy).all()


def test_the_pruned_arm_keeps_what_the_run_kept_and_cuts_other_shares_from_its_ranking():
    kept = np.arange(N) % 4 > 0  # not what the logits would say
    run = export.Outcome(PATHS, kept, outcome().columns)
    assert (choose(PRUNED, material(0.25, run)) == kept).all()
    assert (choose(PRUNED, material(0.5, run)) == (np.arange(N) < 20)).all()


def test_the_random_arm_is_the_seed_s_alone():
    blind = outcome(logit=np.zeros(N))
    assert (choose(RANDOM, material()) == choose(RANDOM, material(run=blind))).all()


def test_a_rare_class_stays_in_the_class_balanced_arm():
    assert choose("class-random", material(0.5))[30:].all()


def test_an_image_without_a_reading_ranks_in_the_middle():
    nan = {
        name: np.where(np.arange(N) == 39, math.nan, outcome().columns[name]) for name in ("localisation", "presence")
    }
    empty = outcome(**nan)  # no boxes: the background term alone, 0.9, is less than half of the others' sums
    assert arms.loss(empty.columns)[39] == pytest.approx(0.9)
    nothing = outcome(**nan, missing=nan["presence"])
    assert math.isnan(arms.loss(nothing.columns)[39])
    assert choose("highest-loss", material(0.25, nothing))[39]
    assert choose("lowest-loss", material(0.25, nothing))[39]


def test_copies_go_first_and_one_of_each_group_stays():
    twin = np.full(N, -1)
    twin[[1, 2]], twin[[11, 12]] = 0, [10, 11]  # two copies of 0, and a chain 12 -> 11 -> 10
    kept = choose("duplicates-only", material(0.1, outcome(twin=twin)))
    assert [kept[:3].sum(), kept[10:13].sum()] == [1, 1]
    assert kept.sum() == N - 4
    assert groups(twin)[[0, 2, 12, 5]].tolist() == [0, 0, 10, 5]


def test_a_run_that_compared_no_images_is_refused():
    with pytest.raises(RunError, match="compared its images with each other, but it did not"):
        choose("duplicates-only", material(run=outcome(similarity=np.full(N, math.nan))))


def test_what_was_never_right_counts_as_the_most_forgotten():
    never = np.where(np.arange(N) < 2, math.inf, np.linspace(0, 9, N))
    kept = choose("forgetting", material(0.5, outcome(forgotten=never)))
    assert kept[:2].all()
    assert kept[22:].all()


@pytest.mark.parametrize("arm", WATCHING)
def test_a_training_that_nobody_watched_is_refused(arm):
    blind = export.Outcome(PATHS, np.ones(N, bool), {"logit": np.zeros(N)})
    with pytest.raises(RunError, match=r"watched, but it left no .*: delete the folder of its cell, full-s3"):
        choose(arm, material(run=blind))


def test_a_run_without_readings_is_refused():
    nan = np.full(N, math.nan)
    with pytest.raises(RunError, match="none has a reading: train for more epochs"):
        choose("highest-loss", material(run=outcome(localisation=nan, presence=nan, missing=nan)))


def test_arms_come_in_the_order_of_the_table_each_once():
    assert arms.check(["random", "most-error", "random", "pruned"]) == ("pruned", "random", "most-error")
    with pytest.raises(ConfigError, match=r"Expected arms out of pruned, random, .*, but got worst, full"):
        arms.check(["random", "worst", "full"])


# A given list


@pytest.fixture
def training_images(monkeypatch):
    """In place of the engine's, which would import Ultralytics."""
    from types import ModuleType

    fake = ModuleType("yolo_adapruner.engine.splits")
    fake.split_images = lambda data, split: PATHS if split == "train" else []
    monkeypatch.setitem(sys.modules, fake.__name__, fake)


@pytest.mark.usefixtures("training_images")
def test_a_list_gives_its_images_and_its_share(tmp_path):
    file = tmp_path / "kept.txt"
    file.write_text(f"{PATHS[3]}\n\n  {PATHS[1]}\n{PATHS[3]}\n")
    assert listed_images(file, DATA) == ((PATHS[1], PATHS[3]), pytest.approx(1 - 2 / N))


@pytest.mark.usefixtures("training_images")
def test_a_fifth_left_out_is_the_share_that_a_flag_says(tmp_path):
    """`1 - 4 / 5` is not 0.2, and would stand beside `--prune 0.2` in every table and chart."""
    file = tmp_path / "kept.txt"
    file.write_text("\n".join(PATHS[N // 5 :]), encoding="utf-8-sig")
    assert listed_images(file, DATA)[1] == 0.2


LISTS = [
    ("missing", None, "No such file"),
    ("empty", "\n", "it is empty"),
    ("foreign", "/elsewhere/a.jpg\n", "1 are not, the first: /elsewhere/a.jpg"),
    ("everything", "\n".join(PATHS), "names all 40 training images"),
]


@pytest.mark.usefixtures("training_images")
@pytest.mark.parametrize(("content", "words"), [c[1:] for c in LISTS], ids=[c[0] for c in LISTS])
def test_a_list_that_is_no_arm_is_refused(tmp_path, content, words):
    file = tmp_path / "kept.txt"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=words):
        listed_images(file, DATA)


@pytest.fixture
def base(tmp_path) -> Path:
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump({**DATA, "path": "/set", "test": "/set/test"}), encoding="utf-8")
    return file


@pytest.mark.parametrize(("budget", "epochs"), [(EPOCHS, 12), (UPDATES, 15)])
def test_a_given_list_is_trained_on_as_it_is(tmp_path, base, budget, epochs):
    # 30 of 40 images, batch 8: 4 batches an epoch against 5
    runner = CellRunner(tmp_path, config_of(tmp_path, epochs=12, batch=8), base, listed=tuple(PATHS[:30]))
    file, found = runner.list_arm(Cell(LISTED, 1 - 30 / 40, budget, 0))
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert found == epochs
    assert Path(content["train"]).read_text().splitlines() == PATHS[:30]


def test_one_ranking_serves_all_shares(tmp_path, base):
    home = tmp_path / "cells" / "one-run-0.25-s1"
    home.mkdir(parents=True)
    manifest = {"seed": 1, "prune": {"share": 0.25}}
    export.write(home, outcome(), source=Path("/set/d.yaml"), data=DATA, manifest=manifest)
    runner = CellRunner(tmp_path, config_of(tmp_path), base, ranking=0.25)
    file, _ = runner.list_arm(Cell(PRUNED, 0.5, UPDATES, 1))
    images = Path(yaml.safe_load(file.read_text(encoding="utf-8"))["train"]).read_text().splitlines()
    assert images == PATHS[:20]


# The watched training


def put_run(home: Path, found: export.Outcome, share: float) -> None:
    home.mkdir(parents=True)
    manifest = {"seed": 1, "prune": {"share": share}}
    export.write(home, found, source=Path("/set/d.yaml"), data=DATA, manifest=manifest)


def images_of(runner: CellRunner, cell: Cell) -> list[str]:
    file, _ = runner.list_arm(cell)
    return Path(yaml.safe_load(file.read_text(encoding="utf-8"))["train"]).read_text().splitlines()


@pytest.mark.parametrize("again", [False, True], ids=["of the cell itself", "made again"])
def test_what_watches_is_cut_from_the_training_on_everything_alone(tmp_path, base, again):
    runner = CellRunner(tmp_path, config_of(tmp_path), base, watched=frozenset({1}))
    home = runner.home(Cell(FULL, 0.0, EPOCHS, 1))
    put_run(home / "watched" if again else home, outcome(), 0.0)
    assert images_of(runner, Cell("forgetting", 0.25, EPOCHS, 1)) == PATHS[10:]
    assert images_of(runner, Cell("area-under-margin", 0.5, UPDATES, 1)) == PATHS[:20]
    with pytest.raises(RunError, match=r"one-run-0\.25-s1, but it has no"):
        images_of(runner, Cell("highest-loss", 0.25, EPOCHS, 1))


@pytest.mark.parametrize("told", [False, True], ids=["finished before", "watched"])
def test_a_finished_training_on_everything_is_watched_once_more_and_not_judged_again(tmp_path, base, monkeypatch, told):
    trained = []

    def train(config, home, *, watched=False):
        trained.append((home.name, config.prune.share, config.seed, config.data, watched))

    monkeypatch.setattr(cells, "train", train)
    for runner in (CellRunner(tmp_path, config_of(tmp_path), base, watched=frozenset(w)) for w in ({0}, {1})):
        cell = Cell(FULL, 0.0, EPOCHS, 1)
        asked = cell.seed in runner.watched
        if not asked:
            blind = export.Outcome(PATHS, np.ones(N, bool), {"logit": np.zeros(N)})
            put_run(runner.home(cell), outcome() if told else blind, 0.0)
            (runner.home(cell) / "cell.json").write_text(json.dumps(figures(cell, 0.5)))
        assert runner(cell) == figures(cell, 0.5)
        assert trained == ([("watched", 0.0, 1, str(base), True)] if asked and not told else [])


def test_watched_is_the_training_of_a_seed_whose_list_is_still_to_be_cut_and_no_other(tmp_path, base):
    runner = CellRunner(tmp_path, config_of(tmp_path), base)
    chains = plan([0.25, 0.5], [0, 1], arms=("random", "el2n"))
    assert _to_watch(runner, plan([0.25], [0, 1], arms=("random",))) == frozenset()
    assert _to_watch(runner, chains) == {0, 1}
    for cell in (cell for chain in chains for cell in chain if cell.arm == "el2n" and cell.seed == 0):
        runner.home(cell).mkdir(parents=True)
        (runner.home(cell) / "cell.json").write_text(json.dumps(figures(cell, 0.5)))
    assert _to_watch(runner, chains) == {1}


# What is finished and what is not

TORN = [("torn", "{"), ("empty", ""), ("a list", "[]"), ("of something else", '{"map50": 0.5}')]


@pytest.mark.parametrize("content", [c[1] for c in TORN], ids=[c[0] for c in TORN])
def test_a_cell_is_finished_when_its_figures_are_whole(tmp_path, base, content):
    runner, cell = CellRunner(tmp_path, config_of(tmp_path), base), Cell(FULL, 0.0, EPOCHS, 1)
    runner.home(cell).mkdir(parents=True)
    (runner.home(cell) / "cell.json").write_text(content)
    assert runner.finished(cell) is None
    (runner.home(cell) / "cell.json").write_text(json.dumps(figures(cell, 0.5)))
    assert runner.finished(cell) == figures(cell, 0.5)


TABLES = [
    # name, results.csv, seconds
    ("none", None, 0.0),
    ("one process", "epoch,time,x\n1,10,0\n2,25,0\n", 25.0),
    ("went on in another", "epoch,time\n1,10\n2,25\n3,8\n4,20\n", 45.0),
    ("torn in its last line", "epoch,time\n1,10\n2", 10.0),
    ("empty", "", 0.0),
]


@pytest.mark.parametrize(("text", "seconds"), [c[1:] for c in TABLES], ids=[c[0] for c in TABLES])
def test_the_hours_of_a_cell_that_died_are_not_lost(tmp_path, text, seconds):
    if text is not None:
        (tmp_path / "results.csv").write_text(text)
    assert cells._seconds(tmp_path / "results.csv") == seconds


def finish_training(home: Path, metrics: dict | None) -> None:
    (home / "weights").mkdir(parents=True)
    (home / "weights" / "best.pt").write_bytes(b"x")
    manifest = {"seed": 1, "prune": {"share": 0.25}, "best_validation": metrics, "updates": 70, "seconds": 5.0}
    export.write(home, outcome(), source=Path("/set/d.yaml"), data=DATA, manifest=manifest)


def test_a_training_that_was_not_judged_is_not_repeated(tmp_path):
    finish_training(tmp_path / "a", {"metrics/mAP50-95(B)": 0.4})
    found = cells._trained(tmp_path / "a")
    assert (found.map50_95, found.updates, found.kept, found.total) == (0.4, 70, 30, 40)
    (tmp_path / "a" / "weights" / "best.pt").unlink()
    assert cells._trained(tmp_path / "a") is None


def test_a_training_that_only_decided_its_mask_is_not_complete(tmp_path):
    finish_training(tmp_path / "a", None)  # as it is written when the joint stage ends
    assert cells._trained(tmp_path / "a") is None
    assert cells._trained(tmp_path / "none") is None
