"""The grid on a Ray cluster: the serial table, whatever dies on the way, and one line for what cannot be."""

import os

import pytest

from tests.grids import CELLS, CHAINS, Failing, FakeRunner, Telling, two_machines
from yolo_adapruner.errors import ConfigError, DataError, RunError
from yolo_adapruner.study.cluster import LOCAL, Cluster, run_on_cluster
from yolo_adapruner.study.compare import compare
from yolo_adapruner.study.grid import plan, run_all
from yolo_adapruner.study.progress import Progress
from yolo_adapruner.study.table import Cell, summarise

ray = pytest.importorskip("ray", reason="Ray has no wheel for this Python or system")
pytestmark = [pytest.mark.slow, pytest.mark.alone]


@pytest.fixture(scope="module")
def nodes():
    with two_machines() as machines:
        yield machines


def test_two_machines_give_the_serial_table_though_workers_are_killed_in_mid_cell(nodes, tmp_path):
    serial = FakeRunner(tmp_path / "serial")
    serial.folder.mkdir()
    expected = run_all(CHAINS, serial, 1)
    runner = FakeRunner(tmp_path / "cluster", kill=True)
    runner.mark(CELLS[0], CELLS[3], CELLS[8])
    noted: list[Cell] = []
    found = run_on_cluster(CHAINS, runner, Cluster(nodes.address), note=lambda cell, figures: noted.append(cell))
    assert found == expected
    assert list(found) == CELLS
    assert summarise(found) == summarise(expected)
    assert sorted(c.name for c in noted) == sorted(c.name for c in CELLS)
    begun = runner.begun()
    assert {name: begun.count(name) for name in set(begun)} == {
        cell.name: 2 if cell in (CELLS[0], CELLS[3], CELLS[8]) else 1 for cell in CELLS
    }


def test_a_cell_waits_for_the_run_that_its_list_is_cut_from(nodes, tmp_path):
    runner = FakeRunner(tmp_path)
    run_on_cluster(CHAINS, runner, Cluster(nodes.address))
    begun = runner.begun()
    for first, *others in CHAINS:
        assert all(begun.index(first.name) < begun.index(cell.name) for cell in others)


def test_both_machines_work_and_a_card_is_shared_by_parts(nodes, tmp_path):
    runner = Telling(tmp_path, wait=0.5)
    found = run_on_cluster(CHAINS, runner, Cluster(nodes.address))
    assert len({figures["machine"] for figures in found.values()}) == 2
    chains = plan([0.1], [0], arms=("random",))
    found = run_on_cluster(chains, Telling(tmp_path / "gpu"), Cluster(nodes.address, gpus=0.5))
    assert {figures["gpus"] for figures in found.values()} == {"0"}


def test_a_machine_that_goes_takes_its_cells_elsewhere(nodes, tmp_path):
    lost = nodes.add_node(num_cpus=1)
    gone = []

    def take_it_away() -> None:
        if not gone:
            nodes.remove_node(lost, allow_graceful=False)
            gone.append(True)

    found = run_on_cluster(CHAINS, Telling(tmp_path, wait=0.5), Cluster(nodes.address), note=lambda *_: take_it_away())
    assert gone
    assert list(found) == CELLS


def test_a_worker_that_dies_without_end_is_given_up_in_one_line(nodes, tmp_path):
    runner = FakeRunner(tmp_path / "grid", kill=True)
    runner.mark(*[CELLS[0]] * 9)
    with pytest.raises(RunError, match=r"cell full-s0 was killed 4 times .*: look into its log\.txt") as error:
        run_on_cluster([[CELLS[0]]], runner, Cluster(nodes.address))
    assert "\n" not in str(error.value)


def test_what_a_cell_says_is_said_as_it_is_and_a_break_in_one_line(nodes, tmp_path):
    with pytest.raises(DataError, match=r"^Expected images, but there is none\.$"):
        run_on_cluster([[CELLS[0]]], Failing(tmp_path), Cluster(nodes.address))
    broken = Cell("full", 0.0, "equal epochs", 1)
    with pytest.raises(RunError, match=r"full-s1 to run, but on a machine of the cluster: ZeroDivisionError: two;"):
        run_on_cluster([[broken]], Failing(tmp_path), Cluster(nodes.address))


def test_a_folder_that_a_machine_does_not_see_is_named(nodes, tmp_path):
    runner = FakeRunner(tmp_path / "not" / "there" / "at all")
    with pytest.raises(RunError, match=r"Expected every machine of the cluster to see .*there, but .* does not"):
        run_on_cluster([[CELLS[0]]], runner, Cluster(nodes.address))


def test_more_than_any_machine_has_is_refused_instead_of_waited_for(nodes, tmp_path):
    with pytest.raises(
        RunError, match=r"Expected a machine with 64 cores and 0 GPUs for a cell, but the cluster has 1"
    ):
        run_on_cluster(CHAINS, FakeRunner(tmp_path), Cluster(nodes.address, cpus=64))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:none"])
def test_no_cluster_at_an_address_is_one_line(tmp_path, address):
    ray.shutdown()
    with pytest.raises(RunError, match=f"Expected a Ray cluster at {address}, but: ") as error:
        run_on_cluster(CHAINS, FakeRunner(tmp_path), Cluster(address))
    assert "\n" not in str(error.value)
    assert f"--ray {LOCAL}" in str(error.value)


def test_a_cluster_of_this_machine_is_a_new_one(tmp_path, monkeypatch):
    """Ray would go to one that it finds, and try for a quarter of an hour where that one is gone."""
    ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    runner = FakeRunner(tmp_path)
    assert run_on_cluster(CHAINS, runner, Cluster(LOCAL)) == run_all(CHAINS, runner, 1)
    assert not ray.is_initialized()


@pytest.mark.parametrize(("cpus", "gpus"), [(0, 0.0), (1, -0.5), (1, 1.5)])
def test_what_no_cell_can_take_is_refused(cpus, gpus):
    with pytest.raises(ConfigError, match="Expected cores of 1 or more a cell, and GPUs a cell"):
        Cluster(LOCAL, cpus, gpus)


def test_where_cells_run_is_said_once():
    with pytest.raises(ConfigError, match="Expected --jobs or --ray, but got --jobs 2 and --ray local"):
        compare("yolov3-tiny", jobs=2, ray=LOCAL)
    with pytest.raises(ConfigError, match="Expected the cluster to hand out its GPUs, but got device=1"):
        compare("yolov3-tiny", ray=Cluster(LOCAL, gpus=0.5), device="1")


def test_the_table_shows_what_is_done_under_way_and_waiting(tmp_path):
    from rich.console import Console

    runner = FakeRunner(tmp_path)
    progress = Progress(CHAINS, runner, 30, live=False)
    progress.note(CELLS[0], {"map50_95": 0.123})
    home = runner.home(CELLS[1])
    home.mkdir()
    (home / "results.csv").write_text("epoch,time\n1,2\n2,4\n")
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(progress.table())
    shown = console.export_text()
    assert f"1 of {len(CELLS)} cells done" in shown
    rows = [line for line in shown.splitlines() if "-s" in line]
    assert CELLS[1].name in rows[0]
    assert "after epoch 2 of about 30" in rows[0]
    assert "waiting" in rows[1]
    assert any(CELLS[0].name in row and "mAP50-95 12.3" in row for row in rows)
