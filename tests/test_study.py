"""Studies of the paper's questions: their variants and plans, what their figures come to, and each run at its smallest.

The figures of the tests that train are meaningless: what is tested is that each cell is what its variant says.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests import classes, helpers
from tests.helpers import read_list
from yolo_adapruner import cli
from yolo_adapruner.config import load
from yolo_adapruner.core.pruner import TERMS
from yolo_adapruner.errors import ConfigError
from yolo_adapruner.study import grid
from yolo_adapruner.study.answers import Study, draw, save, summarise
from yolo_adapruner.study.arms import FULL, PRUNED, RANDOM, RUN
from yolo_adapruner.study.masks import outside
from yolo_adapruner.study.questions import MaskRow, StudyRunner, study
from yolo_adapruner.study.table import EPOCHS, UPDATES, run_budget
from yolo_adapruner.study.variants import GRID, MANY_SHARES, QUESTIONS, Trial, plan, variants

CONFIG = load({"model": "resnet18-32px-w16.yaml", "data": "digits-classes"})


# ---- variants and plans


def test_the_command_line_names_the_questions_there_are():
    assert cli._QUESTIONS == QUESTIONS


def test_each_variant_of_terms_lacks_just_the_term_it_names():
    first, *others = variants("terms", CONFIG)
    assert first.config(CONFIG).prune.terms == list(TERMS)
    for variant in others:
        left = variant.config(CONFIG).prune.terms
        assert variant.name == "no " + ", no ".join(sorted(set(TERMS) - set(left)))
        assert variant.beside == first.name
    assert {"no task", "no selection", "no compression"} < {v.name for v in others}


def test_warm_up_is_with_the_configs_own_and_with_none():
    on, off = variants("warmup", load({"model": "m.pt", "data": "d", "prune": {"warmup": 7}}))
    assert on.config(CONFIG).prune == CONFIG.prune
    assert off.config(CONFIG).prune.warmup == 0
    with pytest.raises(ConfigError, match=r"prune\.warmup is 0"):
        variants("warmup", load({"model": "m.pt", "data": "d", "prune": {"warmup": 0}}))


def test_a_grid_has_every_combination_once_and_begins_with_the_configs_own():
    found = variants("scale", CONFIG, vary={"s_end": [1, 5], "ramp": [0.3, 0.6]})
    settings = [(v.config(CONFIG).prune.s_end, v.config(CONFIG).prune.ramp) for v in found]
    assert settings[0] == (5, 0.6)
    assert sorted(settings) == [(1, 0.3), (1, 0.6), (5, 0.3), (5, 0.6)]
    other = variants("scale", CONFIG, vary={"tau": [0.1]})
    assert [v.config(CONFIG).prune.tau for v in other] == [0.25, 0.1]
    assert len(variants("scale", CONFIG)) == np.prod([len(values) for values in GRID.values()])


REFUSED = [
    ("terms", {"to": ["yolo11n-cls.yaml"]}, "Expected --to with study transfer"),
    ("terms", {"vary": {"tau": [1]}}, "Expected --vary with study scale"),
    ("terms", {"only": ["no hope"]}, "Expected variants out of no task; "),
    ("scale", {"vary": {"share": [0.1]}}, "settings of the method to vary, but got share"),
    ("transfer", {}, "Expected another model .* set --to"),
    ("transfer", {"to": ["x/resnet18-32px-w16.yaml"]}, "models of different names"),
    ("transfer", {"to": ["y.yaml"], "retrain": False}, "build on each other"),
    ("why", {}, "Expected a question out of warmup, terms"),
]


@pytest.mark.parametrize(("question", "given", "words"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_cannot_be_studied_is_refused_in_a_line(question, given, words):
    with pytest.raises(ConfigError, match=words):
        variants(question, CONFIG, **given)


def test_a_value_out_of_range_is_refused_as_in_a_run_config():
    wrong = variants("scale", CONFIG, vary={"tau": [3]})[1]
    with pytest.raises(ConfigError, match=r"prune\.tau"):
        wrong.config(CONFIG)


def test_every_trial_comes_after_what_it_is_cut_from():
    for question, given in {"terms": {}, "shares": {}, "transfer": {"to": ["a.yaml", "b.yaml"]}}.items():
        found = variants(question, CONFIG, **given)
        by_name = {v.name: v for v in found}
        chains = plan(found, (0.1, 0.5), (3, 4))
        cells = [cell for chain in chains for cell in chain]
        assert len(set(cells)) == len(cells)
        assert len({cell.name for cell in cells}) == len(cells)
        for chain in chains:
            for i, cell in enumerate(chain):
                if cell.arm in (PRUNED, RANDOM):
                    chooser = by_name[cell.variant].chosen_by or cell.variant
                    assert Trial(RUN, cell.share, EPOCHS, cell.seed, chooser) in chain[:i]


def test_runs_have_what_the_config_gives_them_and_all_else_equal_updates():
    config = load("yolov3-tiny", {"prune.budget": "updates"})
    trials = [trial for chain in plan(variants("terms", config), [0.1], [0], run_budget(config)) for trial in chain]
    assert {trial.budget for trial in trials if trial.arm == RUN} == {UPDATES}
    assert {trial.budget for trial in trials if trial.arm == FULL} == {EPOCHS}
    assert run_budget(load("yolov3-tiny")) == EPOCHS


def test_without_training_anew_only_the_runs_and_full_are_left():
    found = variants("terms", CONFIG, retrain=False)
    arms = [cell.arm for chain in plan(found, (0.1,), (0,)) for cell in chain]
    assert arms == [FULL, *[RUN] * 6]


def test_shares_are_ten_to_eighty_per_cent():
    assert MANY_SHARES == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


# ---- what figures come to


def test_weights_on_the_bounds_are_not_outside():
    assert outside(np.array([0.0, 0.1, 0.5, 0.9, 1.0])) == pytest.approx(0.4)
    assert np.isnan(outside(np.array([np.nan])))


def figures(value, *, updates=9.0):
    return {"map50_95": value, "map50": value, "images": 10, "updates": updates, "hours": 0.1}


@pytest.fixture
def transferred():
    """Two seeds of a transfer: b's own choice 0.5, a's for b 0.6 and 0.8, random 0.4, full 0.9."""
    found = variants("transfer", load({"model": "a.yaml", "data": "d"}), to=["b.yaml"])
    values = {
        ("a", RUN): (0.1, 0.1),
        ("b", FULL): (0.9, 0.9),
        ("b", RUN): (0.7, 0.7),
        ("b", PRUNED): (0.5, 0.5),
        ("b", RANDOM): (0.4, 0.4),
        ("b, chosen by a", PRUNED): (0.6, 0.8),
    }
    chains = plan(found, (0.3,), (0, 1))
    cells = [cell for chain in chains for cell in chain]
    assert {(c.variant, c.arm) for c in cells} == set(values)
    return found, {cell: figures(values[cell.variant, cell.arm][cell.seed]) for cell in cells}


def test_a_transferred_set_is_held_against_the_other_models_own_random_and_full(transferred):
    rows = {(row.variant, row.arm): row for row in summarise(*transferred)}
    row = rows["b, chosen by a", PRUNED]
    assert row.versus_beside.mean == pytest.approx(0.2)
    assert row.versus_random.mean == pytest.approx(0.3)
    assert row.versus_full.mean == pytest.approx(-0.2)
    assert row.versus_beside.seeds == 2
    assert rows["a", RUN].versus_full is None
    assert rows["b", FULL].versus_full is None
    assert rows["b", RANDOM].versus_random is None


def made(tmp_path, found, done, question):
    mask = {"warmup": 3, "joint": 2, "s": 5.0, "kept": 0.7, "outside": 0.8, "matched": 1, "noise": 0.5, "auroc": 0.9}
    runs = sorted({(c.variant, c.share) for c in done if c.arm == RUN})
    masks = [MaskRow(name, share, 2, mask, float("nan")) for name, share in runs]
    facts = {
        "question": question,
        "task": "classify",
        "seeds": 2,
        "jobs": 1,
        "margin": 0.5,
        "reported_on": "test split",
        "hardware": "cpu",
        "versions": {"torch": "2"},
        "config": {**CONFIG.model_dump()},
    }
    return Study(tmp_path, found, summarise(found, done), masks, facts)


def test_the_page_says_what_every_difference_means_and_how_many_leave_out_0(tmp_path, transferred):
    found, done = transferred
    result = made(tmp_path, found, done, "transfer")
    save(result, done)
    text = (tmp_path / "study.md").read_text(encoding="utf-8")
    assert "| b, chosen by a | pruned | 30% | 10 | 9 | 70.0 ± 14.1 | 70.0 ± 14.1 | +20.0 [-107.1, +147.1] |" in text
    assert "- b, chosen by a at 30 %, trained anew on what it kept, gains +20.0 top-1" in text
    assert "against its own choice: inconclusive" in text
    assert "4 of 7 intervals leave 0 out" in text  # those without any spread
    assert "study.svg" in text
    content = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
    assert content["masks"][0]["alike"] is None
    assert [v["chosen_by"] for v in content["variants"]] == [None, None, "a"]
    assert len(content["cells"]) == len(done)
    svg = (tmp_path / "study.svg").read_text(encoding="utf-8")
    draw(result, tmp_path / "again.svg")
    assert svg == (tmp_path / "again.svg").read_text(encoding="utf-8")


def test_shares_are_drawn_over_the_share_and_their_table_names_no_variant(tmp_path):
    found = variants("shares", CONFIG)
    cells = [cell for chain in plan(found, (0.1, 0.5), (0, 1)) for cell in chain]
    result = made(tmp_path, found, {cell: figures(0.5 + 0.01 * cell.seed) for cell in cells}, "shares")
    assert result.report().startswith("| arm | pruned |")
    assert "dropping 50 %, trained anew on what it kept, costs 0.0 top-1" in result.report()
    draw(result, tmp_path / "study.svg")
    assert (tmp_path / "study.svg").read_text(encoding="utf-8").rstrip().endswith("</svg>")


def test_each_share_of_a_variant_is_drawn_in_a_line_of_its_own(tmp_path, transferred):
    found, done = transferred
    more = {replace(cell, share=0.5): value for cell, value in done.items() if cell.arm != FULL}
    draw(made(tmp_path, found, done, "transfer"), tmp_path / "one.svg")
    draw(made(tmp_path, found, {**done, **more}, "transfer"), tmp_path / "two.svg")
    one, two = ((tmp_path / name).read_text(encoding="utf-8") for name in ("one.svg", "two.svg"))
    assert "<!-- b, chosen by a -->" in one
    for share in (30, 50):
        assert f"<!-- b, chosen by a, {share} % -->" not in one
        assert f"<!-- b, chosen by a, {share} % -->" in two


# ---- each question, run at its smallest

SMALL = {"epochs": 3, "imgsz": 32, "batch": 8, "device": "cpu"}
TRAIN = {"nbs": 8, "plots": False, "verbose": False, "workers": 0, "mosaic": 0.0}


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    """A run config of a classifier that trains in a second, its folder, and another model."""
    home = tmp_path_factory.mktemp("studies")
    root = classes.build_folders(home / "set", train=24, val=6, test=9)
    model, other = (classes.write_architecture(home / name) for name in ("small-cls.yaml", "other-cls.yaml"))
    config = {"model": str(model), "data": str(root), **SMALL, "project": str(home / "runs"), "train": TRAIN}
    return home, config, other


def settings_of(result, variant, cell):
    return yaml.safe_load((result.folder / variant / "cells" / cell / "adaprune.yaml").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_terms_are_left_out_in_the_runs_themselves(classifiers):
    _, config, _ = classifiers
    result = study("terms", config, prune=0.25, seeds=1, only=["no task"], retrain=False)
    cells = {(c["variant"], c["arm"]) for c in json.loads((result.folder / "study.json").read_text())["cells"]}
    assert cells == {("all terms", FULL), ("all terms", RUN), ("no task", RUN)}
    manifest = json.loads((result.folder / "no-task" / "cells" / "one-run-0.25-s0" / "manifest.json").read_text())
    assert manifest["prune"]["terms"] == ["selection", "neutral", "compression"]
    # Warm-up, joint stage, fine-tune: up to the end of the second, the network without the task term is the stock one.
    full, whole, without = (
        [{k: row[k] for k in ("train/loss", "val/loss")} for row in helpers.results(result.folder / place)[:2]]
        for place in ("all-terms/cells/full-s0", *(f"{v}/cells/one-run-0.25-s0" for v in ("all-terms", "no-task")))
    )
    assert without == full
    assert whole[0] == full[0]
    assert whole[1]["train/loss"] < 0.6 * full[1]["train/loss"]
    assert all(np.isfinite(row.figures["outside"]) for row in result.masks)
    assert result.masks[1].alike >= 0


@pytest.mark.slow
def test_a_study_goes_on_where_it_was_killed_and_runs_no_finished_cell_again(classifiers, monkeypatch):
    _, config, _ = classifiers
    run_all, begun = grid.run_all, []

    def dies(chains, runner, jobs, *, note):
        def count(cell, figures):
            note(cell, figures)
            if len(begun) == 2:
                raise KeyboardInterrupt
            begun.append(cell)

        return run_all(chains, runner, jobs, note=count)

    monkeypatch.setattr(grid, "run_all", dies)
    words = {"prune": 0.25, "seeds": 1, "name": "killed"}
    with pytest.raises(KeyboardInterrupt):
        study("warmup", config, **words)
    monkeypatch.setattr(grid, "run_all", run_all)
    folder = Path(config["project"]) / "killed"
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("cell.json")}
    assert len(before) == 3
    result = study("warmup", config, **words)
    assert result.folder == folder
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert [(m.variant, m.figures["warmup"]) for m in result.masks] == [("warm-up", 1.0), ("no warm-up", 0.0)]
    arms = [(row.variant, row.arm) for row in result.rows]
    assert arms == [
        *[("warm-up", arm) for arm in (FULL, RUN, PRUNED, RANDOM)],
        *[("no warm-up", a) for a in (RUN, PRUNED)],
    ]
    with pytest.raises(ConfigError, match="holds another"):
        study("terms", config, **words)


@pytest.mark.slow
def test_another_model_trains_on_the_very_images_that_the_first_one_kept(classifiers):
    _, config, other = classifiers
    result = study("transfer", config, prune=0.25, seeds=1, to=[str(other)])
    kept = read_list(result.folder / "small-cls" / "cells" / "one-run-0.25-s0" / "kept.txt")
    given = (result.folder / "other-cls-chosen-by-small-cls" / "pruned-0.25-s0" / "train").rglob("*.png")
    assert {os.path.realpath(p) for p in given} == {os.path.realpath(p) for p in kept}
    row = result.rows[-1]
    assert (row.variant, row.budget) == ("other-cls, chosen by small-cls", UPDATES)
    assert None not in (row.versus_beside, row.versus_full, row.versus_random)
    with pytest.raises(ConfigError, match="another model for classify"):
        study("transfer", config, prune=0.25, seeds=1, to=["yolo11n.yaml"])


@pytest.mark.slow
def test_the_command_studies_a_detector_and_says_where_it_lies(tmp_path, capsys):
    data = helpers.build_set(tmp_path / "set", train=20, val=8)
    model = helpers.write_architecture(tmp_path / "small.yaml")
    run = {"model": str(model), "data": str(data), **SMALL, "imgsz": 64, "project": str(tmp_path / "runs")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**run, "train": TRAIN}), encoding="utf-8")
    words = ["study", "scale", "--vary", "s_end=1,5", "--prune", "0.25", "--seeds", "1", str(tmp_path / "run.yaml")]
    assert cli.main([*words, "--no-retrain", "--name", "scale", "prune.memory=0.5"]) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "runs" / "scale"
    assert f"saved in {folder}" in out
    assert "| s_end 1 | one run | 25% | 15 |" in out
    assert "| mAP50-95 | mAP50 | minus s_end 5 |" in out
    for slug, s_end in (("s_end-5", 5.0), ("s_end-1", 1.0)):
        manifest = json.loads((folder / slug / "cells" / "one-run-0.25-s0" / "manifest.json").read_text())
        assert (manifest["prune"]["s_end"], manifest["prune"]["memory"]) == (s_end, 0.5)
    assert all((folder / name).is_file() for name in ("study.json", "study.md", "study.svg"))


@pytest.mark.slow
def test_shares_prune_what_they_say(classifiers):
    _, config, _ = classifiers
    result = study("shares", config, prune=[0.25, 0.5], seeds=1, retrain=False)
    assert [(row.arm, row.images) for row in result.rows] == [(FULL, 24), (RUN, 18), (RUN, 12)]


def test_bad_words_end_in_a_line(capsys):
    for words, said in (
        (["--vary", "s_end"], "expected KEY=A,B"),
        (["--prune", "auto"], "compare searches for one"),
        (["--seeds", "0", "--prune", "0.1"], "seeds >= 1"),
    ):
        try:
            code = cli.main(["study", "scale", "resnet18-digits", *words])
        except SystemExit as end:
            code = end.code
        assert code == 2
        error = capsys.readouterr().err
        assert said in error
        assert len(error.splitlines()) == 1


def test_a_runner_is_handed_to_other_processes():
    import pickle

    runner = StudyRunner(Path("base"), {})
    assert pickle.loads(pickle.dumps(runner)) == runner
    assert replace(runner, base=Path("other")) != runner
