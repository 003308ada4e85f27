"""What a run's detector sees in its suspects: a real detector's boxes, of the run's own images, in the run folder."""

import json

import numpy as np
import pytest
import torch
from ultralytics.nn.tasks import DetectionModel

from tests import helpers
from tests.report_runs import make_run
from yolo_adapruner.engine import suspects
from yolo_adapruner.errors import ConfigError
from yolo_adapruner.report.run import SUSPECTS, load
from yolo_adapruner.study.closing import note_suspects, report_run


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose detector knows nothing and says so with little confidence."""
    make_run(tmp_path / "run")
    model = DetectionModel(str(helpers.write_architecture(tmp_path / "small.yaml")), nc=3, verbose=False)
    (tmp_path / "run" / "weights").mkdir()
    torch.save({"model": model.half(), "train_args": {}}, tmp_path / "run" / "weights" / "best.pt")
    monkeypatch.setattr(suspects, "CONFIDENCE", 0.0)
    return load(tmp_path / "run")


@pytest.mark.slow
def test_the_suspects_a_report_shows_get_the_detector_s_surest_boxes_as_shares_of_the_image(run):
    note_suspects(run)
    found = json.loads((run.folder / SUSPECTS).read_text(encoding="utf-8"))["images"]
    reasons = run.reasons
    assert set(found) == {
        path for path, word in zip(run.outcome.paths, reasons, strict=True) if word == "label suspect"
    }
    boxes = np.array([row for rows in found.values() for row in rows])
    assert all(len(rows) <= suspects.MOST for rows in found.values())
    assert all(np.diff([row[1] for row in rows]).max(initial=-1) <= 0 for rows in found.values())
    assert set(boxes[:, 0]) <= {0, 1, 2}
    assert np.abs(boxes[:, 2:]).max() < 10  # shares, not the 64 pixels of a side
    assert load(run.folder).found.keys() == found.keys()


@pytest.mark.slow
def test_a_detector_that_cannot_be_read_costs_a_line_and_the_report_is_written(run, capsys):
    (run.folder / "weights" / "best.pt").write_bytes(b"torn")
    assert report_run(run.folder) == run.folder / "report.html"
    error = capsys.readouterr().err
    assert error.startswith("yolo-adapruner: no detections for the report was written")
    assert error.count("\n") == 1


def test_without_suspects_no_detector_is_loaded(tmp_path, monkeypatch):
    make_run(tmp_path / "run", reasons=False)
    monkeypatch.setattr(suspects, "seen", lambda *_, **__: pytest.fail("asked"))
    note_suspects(load(tmp_path / "run"))
    assert not (tmp_path / "run" / SUSPECTS).exists()


def test_weights_that_are_not_there_are_refused():
    with pytest.raises(ConfigError, match=r"Expected the path of a \.pt checkpoint"):
        suspects.seen("none.pt", {"path": "/", "rest": {"names": {0: "a"}}}, ["/a.png"], imgsz=64, batch=1, device=None)
