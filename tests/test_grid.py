"""Every cell is run once, whatever dies on the way, and the table is the one an undisturbed grid gives."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.grids import CELLS, CHAINS, FakeRunner, Killed
from tests.helpers import alive
from yolo_adapruner.errors import RunError
from yolo_adapruner.study.arms import (
    AFSS,
    CHOICES,
    DYNAMIC,
    FULL,
    INFOBATCH,
    LISTED,
    LISTS,
    PRUNED,
    RANDOM,
    RUN,
    WATCHING,
)
from yolo_adapruner.study.grid import plan, run_all
from yolo_adapruner.study.table import EPOCHS, UPDATES, Cell, summarise


def test_a_grid_killed_three_times_ends_with_the_undisturbed_table(tmp_path):
    whole = FakeRunner(tmp_path / "whole")
    whole.folder.mkdir()
    expected = run_all(CHAINS, whole, 1)
    runner = FakeRunner(tmp_path / "killed")
    victims = CELLS[0], CELLS[4], CELLS[-1]
    runner.mark(*victims)
    for _ in victims:
        with pytest.raises(Killed):
            run_all(CHAINS, runner, 1)
    found = run_all(CHAINS, runner, 1)
    assert found == expected
    assert summarise(found) == summarise(expected)
    begun = runner.begun()
    assert {name: begun.count(name) for name in begun} == {
        cell.name: 1 + (cell in victims) for cell in CELLS
    }  # finished cells are not run again


def test_each_cell_is_noted_once(tmp_path):
    noted = []
    run_all(CHAINS, FakeRunner(tmp_path), 1, note=lambda cell, figures: noted.append(cell))
    assert noted == CELLS


@pytest.mark.slow
def test_workers_killed_in_mid_cell_cost_that_cell_alone_and_two_jobs_give_the_serial_table(tmp_path):
    serial = FakeRunner(tmp_path / "serial")
    serial.folder.mkdir()
    expected = run_all(CHAINS, serial, 1)
    runner = FakeRunner(tmp_path / "jobs", kill=True)
    runner.mark(CELLS[3], CELLS[8])
    noted = []
    found = run_all(CHAINS, runner, 2, note=lambda cell, figures: noted.append(cell))
    assert found == expected
    assert summarise(found) == summarise(expected)
    assert sorted(cell.name for cell in noted) == sorted(cell.name for cell in CELLS)
    finished_twice = [cell.name for cell in CELLS if runner.begun().count(cell.name) > 2]
    assert finished_twice == []


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(tmp_path):
    words = f"""
from pathlib import Path
from tests.grids import CHAINS, Endless
from yolo_adapruner.study.grid import run_all
if __name__ == "__main__":
    run_all(CHAINS, Endless(Path({str(tmp_path)!r})), 2)
"""
    script = tmp_path / "compare.py"
    script.write_text(words)
    root = Path(__file__).parents[1]
    parent = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(root)})
    try:
        wait_for(lambda: len(list(tmp_path.glob("*/pid"))) == 2)
        workers = [int(file.read_text()) for file in tmp_path.glob("*/pid")]
        assert all(map(alive, workers))
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: not any(map(alive, workers)))


def wait_for(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 120  # a bound for a hang, not for speed
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_workers_that_die_without_end_are_given_up(tmp_path):
    runner = FakeRunner(tmp_path / "grid", kill=True)
    victim = Cell(FULL, 0.0, EPOCHS, 0)
    runner.mark(*[victim] * 9)
    with pytest.raises(RunError, match=r"3 times in a row one was killed and no cell was finished: look into log\.txt"):
        run_all([[victim]], runner, 2)


def test_an_error_in_a_cell_is_no_death(tmp_path):
    class Wrong(FakeRunner):
        def __call__(self, cell: Cell) -> dict[str, Any]:
            raise RunError("no room")

    with pytest.raises(RunError, match="no room"):
        run_all(CHAINS, Wrong(tmp_path), 1)


@pytest.mark.parametrize("budget", [EPOCHS, UPDATES])
def test_one_budget_is_half_the_grid_of_both(budget):
    chains = plan([0.1], [0], arms=CHOICES, budgets=(budget,), listed=(LISTED, 0.4))
    cells = [cell for chain in chains for cell in chain]
    both = [cell for chain in plan([0.1], [0], arms=CHOICES, listed=(LISTED, 0.4)) for cell in chain]
    alone = {FULL, RUN, AFSS}  # have no other
    assert cells == [cell for cell in both if cell.budget == budget or cell.arm in alone]


def test_further_arms_and_a_given_list_are_planned():
    chains = plan([0.1], [0, 1], arms=CHOICES, listed=(LISTED, 0.4))
    cells = [cell for chain in chains for cell in chain]
    assert len(cells) == len(set(cells)) == 2 * (1 + 1 + 2 * len(LISTS) + 2 + 1 + 2)
    assert len({cell.name for cell in cells}) == len(cells)
    for chain in chains:
        if chain[0].arm == FULL:  # what watches the training on everything comes after it
            assert {cell.arm for cell in chain[1:]} == set(WATCHING)
    assert [Cell(LISTED, 0.4, EPOCHS, 1), Cell(LISTED, 0.4, UPDATES, 1)] in chains
    assert Cell(LISTED, 0.4, UPDATES, 1).name == "given-list-0.4-updates-s1"
    for chain in chains:
        if chain[0].arm not in (FULL, LISTED, *DYNAMIC):
            assert chain[0].arm == RUN
            assert {cell.arm for cell in chain[1:]} == set(LISTS) - set(WATCHING) >= {PRUNED, RANDOM}
    drawn = [chain for chain in chains if chain[0].arm in DYNAMIC and chain[0].seed == 1]
    assert drawn == [  # nothing else to wait for; AFSS knows no share and no other budget
        [Cell(INFOBATCH, 0.1, EPOCHS, 1)],
        [Cell(INFOBATCH, 0.1, UPDATES, 1)],
        [Cell(AFSS, 0.0, EPOCHS, 1)],
    ]
